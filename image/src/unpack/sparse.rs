//! Sparse files, in the four formats of GNU tar (GNU tar manual, "Storing Sparse Files").

use super::header::{BLOCK, field, numeric};
use super::pax::{PaxSparse, number};
use super::stream::LayerStream;
use crate::error::Error;

/// The most segments of a sparse file.
const MAX_SEGMENTS: usize = 1 << 16;

/// The segments of a sparse file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sparse {
    /// The length of the file.
    pub(super) size: u64,
    /// Offset and length of each stored segment, in order.
    pub(super) segments: Vec<(u64, u64)>,
}

impl Sparse {
    /// Returns the number of bytes that are not stored.
    pub(super) fn holes(&self) -> u64 {
        let stored = self.segments.iter().fold(0, |sum: u64, (_, length)| sum.saturating_add(*length));
        self.size.saturating_sub(stored)
    }

    /// Checks that the segments are in order and inside the file, and that their total length is that of the
    /// stored data.
    fn new(what: &str, size: u64, numbers: &[u64], stored: u64) -> Result<Self, Error> {
        let invalid = || Error::corrupt(what, "inconsistent map of a sparse file");
        if !numbers.len().is_multiple_of(2) {
            return Err(invalid());
        }
        let mut segments = Vec::with_capacity(numbers.len() / 2);
        let (mut end, mut sum) = (0u64, 0u64);
        for pair in numbers.chunks_exact(2) {
            let [offset, length] = *pair else {
                return Err(invalid());
            };
            if offset < end {
                return Err(invalid());
            }
            end = offset.checked_add(length).filter(|end| *end <= size).ok_or_else(invalid)?;
            sum = sum.checked_add(length).ok_or_else(invalid)?;
            segments.push((offset, length));
        }
        if sum != stored {
            return Err(invalid());
        }
        Ok(Self { size, segments })
    }

    /// Reads the old format: the map is in the header (at 386) and in the blocks that follow it.
    pub(super) fn old(
        stream: &mut LayerStream<'_>,
        header: &[u8; BLOCK],
        stored: u64,
    ) -> Result<Self, Error> {
        let what = stream.what;
        let size = numeric(field(header, 483, 12)).ok_or_else(|| stream.truncated())?;
        let mut numbers = Vec::new();
        let mut more = pieces(what, field(header, 386, 96), &mut numbers)? && header.get(482) != Some(&0);
        while more {
            let mut block = [0; BLOCK];
            if !stream.read_exact(&mut block)? {
                return Err(stream.truncated());
            }
            more = pieces(what, field(&block, 0, 504), &mut numbers)? && block.get(504) != Some(&0);
        }
        Self::new(what, size, &numbers, stored)
    }

    /// Reads the pax formats. In 1.0 the map precedes the data. Its length is subtracted from `stored`.
    pub(super) fn pax(
        stream: &mut LayerStream<'_>,
        pax: &PaxSparse,
        stored: &mut u64,
    ) -> Result<Option<Self>, Error> {
        let what = stream.what;
        match (pax.major, pax.minor, pax.size) {
            (Some(1), Some(0), Some(size)) => {
                let numbers = leading_map(stream, stored)?;
                Self::new(what, size, &numbers, *stored).map(Some)
            }
            (None | Some(0), _, Some(size)) => Self::new(what, size, &pax.numbers, *stored).map(Some),
            (None, None, None) => Ok(None),
            _ => Err(Error::corrupt(what, "sparse file of an unknown format")),
        }
    }
}

/// Reads the segments of one block in the old format. Returns false if the list ends within it.
fn pieces(what: &str, block: &[u8], numbers: &mut Vec<u64>) -> Result<bool, Error> {
    for piece in block.chunks_exact(24) {
        let (offset, length) = (field(piece, 0, 12), field(piece, 12, 12));
        if offset.first() == Some(&0) || length.first() == Some(&0) {
            return Ok(false);
        }
        match (numeric(offset), numeric(length)) {
            (Some(offset), Some(length)) if numbers.len() < 2 * MAX_SEGMENTS => {
                numbers.extend([offset, length])
            }
            _ => return Err(Error::corrupt(what, "invalid map of a sparse file")),
        }
    }
    Ok(true)
}

/// Reads the map of format 1.0: decimal numbers, one a line, starting with their count, padded to whole
/// blocks.
fn leading_map(stream: &mut LayerStream<'_>, stored: &mut u64) -> Result<Vec<u64>, Error> {
    let what = stream.what;
    let invalid = || Error::corrupt(what, "invalid map of a sparse file");
    let block = u64::try_from(BLOCK).unwrap_or(512);
    let mut numbers = Vec::new();
    let mut expected = None;
    let mut line = Vec::new();
    while expected.is_none_or(|expected| numbers.len() < expected) {
        let mut bytes = [0; BLOCK];
        *stored = stored.checked_sub(block).ok_or_else(invalid)?;
        if !stream.read_exact(&mut bytes)? {
            return Err(stream.truncated());
        }
        for byte in bytes {
            if expected.is_some_and(|expected| numbers.len() >= expected) {
                break;
            }
            if byte != b'\n' {
                line.push(byte);
                if line.len() > 20 {
                    return Err(invalid());
                }
                continue;
            }
            let value = number(&line).ok_or_else(invalid)?;
            line.clear();
            match expected {
                Some(_) => numbers.push(value),
                None => {
                    let count = usize::try_from(value).ok().filter(|count| *count <= MAX_SEGMENTS);
                    expected = Some(count.ok_or_else(invalid)? * 2);
                }
            }
        }
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inconsistent_maps_are_rejected() {
        let new = |size, numbers: &[u64], stored| Sparse::new("test", size, numbers, stored);
        assert_eq!(new(10, &[0, 2, 5, 5], 7).unwrap().segments, [(0, 2), (5, 5)]);
        assert_eq!(new(10, &[0, 2, 5, 5], 7).unwrap().holes(), 3);
        assert!(new(10, &[], 0).is_ok());
        for (numbers, stored) in [
            ([5, 5, 0, 2], 7),
            ([0, 6, 5, 5], 11),
            ([0, 2, 5, 6], 8),
            ([0, 2, 5, 5], 8),
            ([0, u64::MAX, u64::MAX, 2], 1),
        ] {
            assert!(new(10, &numbers, stored).is_err(), "{numbers:?}");
        }
        assert!(new(10, &[1], 0).is_err());
    }
}
