//! The fields of a tar header: names, numbers and the checksum (POSIX.1-2024 pax, "ustar Interchange Format").

/// The length of a header, and the unit of the data after it.
pub(super) const BLOCK: usize = 512;

/// Returns the name in a plain header. In POSIX its first part is in another field.
pub(super) fn plain_name(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = terminated(field(header, 0, 100));
    let prefix = terminated(field(header, 345, 155));
    if field(header, 257, 6) != b"ustar\0" || prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

/// Returns the number of bytes that fill the last block.
pub(super) fn padding(size: u64) -> u64 {
    (512 - size % 512) % 512
}

pub(super) fn terminated(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == 0).next().unwrap_or_default()
}

pub(super) fn field(block: &[u8], at: usize, length: usize) -> &[u8] {
    block.get(at..at + length).unwrap_or_default()
}

/// Parses a number: octal digits between spaces and NULs, or GNU's binary form for large numbers, which has
/// the highest bit set.
pub(super) fn numeric(text: &[u8]) -> Option<u64> {
    signed(text).and_then(|value| u64::try_from(value).ok())
}

pub(super) fn signed(text: &[u8]) -> Option<i64> {
    let first = *text.first()?;
    if first & 0x80 != 0 {
        // Two's complement. The highest bit is the marker, the next one is the sign.
        let negative = first & 0x40 != 0;
        let mut value = if negative { i64::from(first) - 256 } else { i64::from(first & 0x7f) };
        for byte in text.iter().skip(1) {
            value = value.checked_mul(256)?.checked_add(i64::from(*byte))?;
        }
        return Some(value);
    }
    let digits: Vec<u8> = text
        .iter()
        .copied()
        .skip_while(|byte| *byte == b' ' || *byte == 0)
        .take_while(|byte| *byte != b' ' && *byte != 0)
        .collect();
    if digits.is_empty() {
        return Some(0);
    }
    if !digits.iter().all(|byte| (b'0'..=b'7').contains(byte)) {
        return None;
    }
    i64::from_str_radix(std::str::from_utf8(&digits).ok()?, 8).ok()
}

/// Checks the sum of all bytes, with the field of the sum as spaces. Some old programs summed signed bytes.
pub(super) fn checksum_matches(header: &[u8; BLOCK]) -> bool {
    let (mut unsigned, mut signed_sum) = (0i64, 0i64);
    for (place, byte) in header.iter().enumerate() {
        let byte = if (148..156).contains(&place) { b' ' } else { *byte };
        unsigned += i64::from(byte);
        signed_sum += i64::from(i8::from_ne_bytes([byte]));
    }
    signed(field(header, 148, 8)).is_some_and(|sum| sum == unsigned || sum == signed_sum)
}
