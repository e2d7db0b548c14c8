//! Digests of content (OCI image spec, "Digests"). They are validated once, so the hex digits are safe as a
//! file name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

use crate::error::Error;

/// A digest algorithm that the OCI image spec registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// 64 hex digits.
    Sha256,
    /// 128 hex digits.
    Sha512,
}

impl Algorithm {
    /// Returns the name of the algorithm in a digest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_digits(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// The digest of some content, such as `sha256:e3b0...`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

impl Digest {
    /// Computes the digest of `content`.
    #[must_use]
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(content);
        hasher.finish()
    }

    /// Returns the algorithm.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the lower-case hex digits.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Returns the name of the file or folder that is stored under this digest.
    pub(crate) fn file_name(&self) -> String {
        format!("{}-{}", self.algorithm.as_str(), self.hex)
    }

    /// Returns the digest for a name from [`Self::file_name`].
    pub(crate) fn from_file_name(name: &str) -> Option<Self> {
        let (algorithm, hex) = name.split_once('-')?;
        format!("{algorithm}:{hex}").parse().ok()
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = |why: &str| Error::invalid(format!("digest {text:?}"), why);
        let (algorithm, hex) = text.split_once(':').ok_or_else(|| invalid("no algorithm"))?;
        let algorithm = match algorithm {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(invalid("the algorithm is neither sha256 nor sha512")),
        };
        if hex.len() != algorithm.hex_digits() {
            return Err(invalid("wrong length"));
        }
        if !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(invalid("not lower-case hex digits"));
        }
        Ok(Self { algorithm, hex: hex.into() })
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Computes a digest of content that arrives in pieces.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    pub(crate) fn update(&mut self, content: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(content),
            Self::Sha512(hasher) => hasher.update(content),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => {
                Digest { algorithm: Algorithm::Sha256, hex: hex::encode(hasher.finalize()).into() }
            }
            Self::Sha512(hasher) => {
                Digest { algorithm: Algorithm::Sha512, hex: hex::encode(hasher.finalize()).into() }
            }
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn content_has_the_known_digest() {
        assert_eq!(Digest::of(Algorithm::Sha256, b"").to_string(), EMPTY);
        assert_eq!(Digest::of(Algorithm::Sha512, b"abc").hex().get(..8), Some("ddaf35a1"));
    }

    #[test]
    fn invalid_digests_are_rejected() {
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        let path = format!("sha256:{}", "../".repeat(21) + "a");
        for bad in
            ["", "sha256", "sha256:", "md5:d41d8cd98f00b204e9800998ecf8427e", &EMPTY[..70], &upper, &path]
        {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        let multibyte = format!("sha256:{}", "é".repeat(32));
        assert!(multibyte.parse::<Digest>().is_err());
    }

    proptest! {
        #[test]
            fn any_text_is_rejected_or_round_trips(text in "(sha256|sha512|x)?:?[0-9a-fA-F/.]{0,130}") {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
                prop_assert!(!digest.file_name().contains('/'));
                prop_assert_eq!(Digest::from_file_name(&digest.file_name()), Some(digest));
            }
        }

        #[test]
        fn pieces_give_the_digest_of_the_whole(content: Vec<u8>, cut: prop::sample::Index) {
            let cut = cut.index(content.len() + 1);
            let mut hasher = Hasher::new(Algorithm::Sha256);
            hasher.update(&content[..cut]);
            hasher.update(&content[cut..]);
            prop_assert_eq!(hasher.finish(), Digest::of(Algorithm::Sha256, &content));
        }
    }
}
