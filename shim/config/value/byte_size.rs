//! Numbers of bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Described, InvalidValue, invalid};

/// A number of bytes, written without a unit or with a binary one: `64GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "toml::Value", into = "String")]
pub struct ByteSize(u64);

/// The units, largest first: a size is written in the first unit that divides it.
const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl ByteSize {
    /// A size of `count` MiB.
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// A size of `count` GiB.
    #[must_use]
    pub const fn gib(count: u64) -> Self {
        Self(count << 30)
    }

    /// Returns the number of bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl Described for ByteSize {
    const VALUES: &'static str = "bytes, or with a unit: `\"512MiB\"`, `\"64GiB\"`";
}

impl FromStr for ByteSize {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let (digits, unit) = UNITS
            .iter()
            .find_map(|(name, size)| text.strip_suffix(name).map(|digits| (digits, *size)))
            .unwrap_or((text, 1));
        let count: Option<u64> = digits.trim_end().parse().ok();
        match count.and_then(|count| count.checked_mul(unit)) {
            Some(bytes) if bytes > 0 => Ok(Self(bytes)),
            _ => invalid(format!("{text:?} is not a size such as \"512MiB\" or \"64GiB\"")),
        }
    }
}

impl TryFrom<toml::Value> for ByteSize {
    type Error = InvalidValue;

    fn try_from(value: toml::Value) -> Result<Self, InvalidValue> {
        match value {
            toml::Value::String(text) => text.parse(),
            toml::Value::Integer(bytes) => bytes.to_string().parse(),
            other => invalid(format!("{other} is not a size such as \"512MiB\" or \"64GiB\"")),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, size)| self.0.is_multiple_of(*size)) {
            Some((name, size)) => write!(f, "{}{name}", self.0 / size),
            None => write!(f, "{}", self.0),
        }
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> Self {
        size.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("1", 1), ("10KiB", 10 << 10), ("512MiB", 512 << 20), ("64 GiB", 64 << 30)] {
            assert_eq!(text.parse::<ByteSize>().unwrap().bytes(), bytes, "{text}");
        }
        for text in ["", "0", "-1", "1.5GiB", "GiB", "10GB", "99999999TiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        assert_eq!(ByteSize::gib(64).to_string(), "64GiB");
    }

    proptest! {
        #[test]
        fn a_size_is_read_as_it_is_written(bytes in 1_u64..) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse::<ByteSize>().unwrap().bytes(), bytes);
        }

        #[test]
        fn arbitrary_text_does_not_panic(text in ".*") {
            drop(text.parse::<ByteSize>());
        }
    }
}
