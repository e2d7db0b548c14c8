//! Hardware addresses as text.

use crate::{Error, Result};

/// Returns the first hardware address that is set. The order of precedence differs among the reference plugins.
pub(crate) fn first_mac<const N: usize>(requested: [Option<&str>; N]) -> Result<Option<Vec<u8>>> {
    requested.into_iter().flatten().find(|mac| !mac.is_empty()).map(parse_mac).transpose()
}

/// Parses a hardware address: six bytes in hexadecimal.
pub(crate) fn parse_mac(text: &str) -> Result<Vec<u8>> {
    let bytes: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|byte| u8::from_str_radix(byte, 16).ok().filter(|_| byte.len() == 2))
        .collect();
    bytes
        .filter(|bytes| bytes.len() == 6)
        .ok_or_else(|| Error::Invalid(format!("invalid hardware address {text:?}")))
}
