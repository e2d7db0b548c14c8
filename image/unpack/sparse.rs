//! Files with holes, in the four ways in which GNU tar has stored them (GNU tar manual, "Storing Sparse Files").

use super::pax::{PaxSparse, number};
use super::stream::LayerStream;
use super::tar::{BLOCK, field, numeric};
use crate::error::Error;

/// A map of this many pieces belongs to no file that anybody packed.
const MAX_SEGMENTS: usize = 1 << 16;

/// Where the stored bytes of a file belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sparse {
    /// The length of the file.
    pub(super) size: u64,
    /// Offset and length of each stored piece, in order.
    pub(super) segments: Vec<(u64, u64)>,
}

impl Sparse {
    /// The bytes that are not stored.
    pub(super) fn holes(&self) -> u64 {
        let stored = self.segments.iter().fold(0, |sum: u64, (_, length)| sum.saturating_add(*length));
        self.size.saturating_sub(stored)
    }

    /// Checks that the pieces are in order, inside the file, and as long together as what is stored.
    fn new(what: &str, size: u64, numbers: &[u64], stored: u64) -> Result<Self, Error> {
        let invalid = || Error::corrupt(what, "has a map of holes that contradicts itself");
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

    /// The old format: the map is in the header (at 386) and in blocks that follow it.
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

    /// The pax formats. In 1.0 the map precedes the data and is taken from `stored`, which is then the data alone.
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
            _ => Err(Error::corrupt(what, "has a sparse file of an unknown format")),
        }
    }
}

/// Reads the pieces of one block of the old format; false where the list ends within it.
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
            _ => return Err(Error::corrupt(what, "has a map of holes that is not valid")),
        }
    }
    Ok(true)
}

/// The map of format 1.0: decimal numbers, one a line, the first of them their count; padded to whole blocks.
fn leading_map(stream: &mut LayerStream<'_>, stored: &mut u64) -> Result<Vec<u64>, Error> {
    let what = stream.what;
    let invalid = || Error::corrupt(what, "has a map of holes that is not valid");
    let block = u64::try_from(BLOCK).unwrap_or(512);
    let mut numbers = Vec::new();
    let mut wanted = None;
    let mut line = Vec::new();
    while wanted.is_none_or(|wanted| numbers.len() < wanted) {
        let mut bytes = [0; BLOCK];
        *stored = stored.checked_sub(block).ok_or_else(invalid)?;
        if !stream.read_exact(&mut bytes)? {
            return Err(stream.truncated());
        }
        for byte in bytes {
            if wanted.is_some_and(|wanted| numbers.len() >= wanted) {
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
            match wanted {
                Some(_) => numbers.push(value),
                None => {
                    let count = usize::try_from(value).ok().filter(|count| *count <= MAX_SEGMENTS);
                    wanted = Some(count.ok_or_else(invalid)? * 2);
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
    fn maps_that_contradict_themselves_are_refused() {
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
