//! Extended headers of the pax format (POSIX.1-2024, pax, "pax Extended Header").

use crate::error::Error;

/// The time of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Time {
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
}

/// The records of an extended header, which apply to the next entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

/// GNU tar's records about sparse files. The version of the format follows from their presence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PaxSparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// Offsets and lengths, alternating.
    pub(super) numbers: Vec<u64>,
}

const XATTR: &[u8] = b"SCHILY.xattr.";

impl Pax {
    pub(super) fn parse(what: &str, mut data: &[u8]) -> Result<Self, Error> {
        let mut pax = Self::default();
        while !data.is_empty() {
            let (key, value, rest) =
                record(data).ok_or_else(|| Error::corrupt(what, "malformed extended header"))?;
            data = rest;
            // An empty value restores the value of the plain header.
            if value.is_empty() && !key.starts_with(XATTR) {
                continue;
            }
            pax.set(key, value).ok_or_else(|| {
                let why = format!("invalid {} in an extended header", key.escape_ascii());
                Error::corrupt(what, why)
            })?;
        }
        Ok(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.major" => self.sparse.major = Some(number(value)?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(number(value)?),
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = Some(number(value)?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.numbers.push(number(value)?),
            b"GNU.sparse.map" => {
                self.sparse.numbers = value.split(|byte| *byte == b',').map(number).collect::<Option<_>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    if name.is_empty() || name.contains(&0) {
                        return None;
                    }
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Some(())
    }
}

/// Splits off one record, "LENGTH KEY=VALUE\n", where the length is that of the whole record.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(number(data.get(..space)?)?).ok()?;
    let body = data.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    let (key, value) = body.split_at(equals);
    Some((key, value.get(1..)?, data.get(length..)?))
}

/// Parses a decimal number without sign.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Parses seconds since the epoch, with an optional sign and decimals.
fn time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        // The kernel counts nanoseconds upward from the previous second.
        return Some(Time { seconds: seconds.checked_sub(1)?, nanoseconds: 1_000_000_000 - nanoseconds });
    }
    Some(Time { seconds, nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns a record with its length, which includes its own digits.
    fn line(key: &str, value: &[u8]) -> Vec<u8> {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let length =
            (1..9).map(|digits| body.len() + digits).find(|sum| sum.to_string().len() + body.len() == *sum);
        [length.unwrap().to_string().into_bytes(), body].concat()
    }

    #[test]
    fn records_are_parsed() {
        let data = [
            line("path", "ä/b".as_bytes()),
            line("size", b"8589934592"),
            line("mtime", b"1700000000.5"),
            line("SCHILY.xattr.security.capability", b"\x01=\n\0"),
            line("comment", b"none of ours"),
            line("linkpath", b""),
        ]
        .concat();
        let pax = Pax::parse("test", &data).unwrap();
        assert_eq!((pax.path.as_deref(), pax.size, pax.link), (Some("ä/b".as_bytes()), Some(1 << 33), None));
        assert_eq!(pax.mtime, Some(Time { seconds: 1_700_000_000, nanoseconds: 500_000_000 }));
        assert_eq!(pax.xattrs, [(b"security.capability".to_vec(), b"\x01=\n\0".to_vec())]);
    }

    #[test]
    fn times_have_signs_and_decimals() {
        let at = |seconds, nanoseconds| Some(Time { seconds, nanoseconds });
        assert_eq!(time(b"-1.25"), at(-2, 750_000_000));
        assert_eq!(time(b"5.1234567899"), at(5, 123_456_789));
        assert_eq!(time(b"7."), at(7, 0));
        assert_eq!(time(b"1.x"), None);
    }

    #[test]
    fn malformed_records_are_rejected() {
        for bad in [
            b"5 a=b".as_slice(),
            b"0 a=b\n",
            b"99 a=b\n",
            b"6 path\n",
            b"x a=b\n",
            b" a=b\n",
            b"18446744073709551616 a=b\n",
            &line("size", b"-1"),
            &line("size", b"0x10"),
            &line("SCHILY.xattr.", b"v"),
        ] {
            assert!(Pax::parse("test", bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_rejected(data: Vec<u8>) {
            drop(Pax::parse("test", &data));
        }

        #[test]
        fn values_survive(value in proptest::collection::vec(any::<u8>(), 1..300)) {
            let pax = Pax::parse("test", &line("path", &value)).unwrap();
            prop_assert_eq!(pax.path, Some(value));
        }
    }
}
