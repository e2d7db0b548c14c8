//! The decompressed bytes of a layer: one buffer, checked against the limits and hashed for the diff id.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, Cursor, Read};
use std::rc::Rc;

use super::frames::{Frames, is_frame};
use super::limits::Budget;
use super::path::TreePath;
use super::recipe::RecipeWriter;
use super::windows::check_alone;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::Error;

const BUFFER: usize = 256 << 10;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Returns a reader of the decompressed content of `source`. The compression is detected from the first
/// bytes, not from the media type: wrong media types are common in registries. `budget` is that of the image,
/// if `source` is a layer.
pub(crate) fn decompressed<'a>(
    mut source: impl BufRead + 'a,
    budget: Option<&'a Budget>,
) -> io::Result<Box<dyn Read + 'a>> {
    let mut start = Vec::with_capacity(4);
    while start.len() < 4 {
        let mut byte = [0];
        if source.read(&mut byte)? == 0 {
            break;
        }
        start.extend(byte);
    }
    let is_zstd = is_frame(&start);
    let is_gzip = start.starts_with(&GZIP);
    let whole = Cursor::new(start).chain(source);
    if is_gzip {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(whole)));
    }
    if is_zstd {
        let request_window = move |bytes| match budget {
            Some(budget) => budget.large_window(bytes),
            None => check_alone(bytes).map(|()| None),
        };
        return Ok(Box::new(Frames::new(whole, Box::new(request_window))?));
    }
    Ok(Box::new(whole))
}

/// Counts the bytes that are read from a source.
struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut available = self.inner.fill_buf()?;
        let read = available.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.count.set(self.count.get().saturating_add(length(amount)));
        self.inner.consume(amount);
    }
}

/// The tar stream of one layer.
pub(super) struct LayerStream<'a> {
    /// The layer's name in errors.
    pub(super) what: &'a str,
    decoder: Box<dyn Read + 'a>,
    compressed: Rc<Cell<u64>>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    hasher: Hasher,
    position: u64,
    budget: &'a Budget,
    recipe: Option<RecipeWriter>,
}

impl<'a> LayerStream<'a> {
    pub(super) fn new(
        what: &'a str,
        source: impl BufRead + 'a,
        algorithm: Algorithm,
        budget: &'a Budget,
        recipe: Option<File>,
    ) -> Result<Self, Error> {
        let recipe = recipe.map(RecipeWriter::new).transpose();
        let recipe = recipe.map_err(|error| Error::io("write the recipe of", what, error))?;
        let compressed = Rc::new(Cell::new(0));
        let counted = Counted { inner: source, count: compressed.clone() };
        let decoder = decompressed(counted, Some(budget)).map_err(|error| broken(what, error))?;
        Ok(Self {
            what,
            decoder,
            compressed,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            hasher: Hasher::new(algorithm),
            position: 0,
            budget,
            recipe,
        })
    }

    /// Returns the available bytes. Empty at the end.
    pub(super) fn fill(&mut self) -> Result<&[u8], Error> {
        if self.start == self.end {
            self.refill()?;
        }
        Ok(self.buffer.get(self.start..self.end).unwrap_or_default())
    }

    pub(super) fn consume(&mut self, count: usize) {
        let start = self.start;
        self.consume_content(count);
        if let Some(recipe) = &mut self.recipe {
            recipe.literal(self.buffer.get(start..self.start).unwrap_or_default());
        }
    }

    /// Consumes content of a file. It is not copied to the recipe, which refers to the file: see
    /// [`Self::content`].
    pub(super) fn consume_content(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
    }

    /// Records that the content consumed last is that of this file.
    pub(super) fn content(&mut self, path: &TreePath, length: u64) {
        if let Some(recipe) = self.recipe.as_mut().filter(|_| length > 0) {
            recipe.content(path, length);
        }
    }

    fn refill(&mut self) -> Result<(), Error> {
        self.start = 0;
        self.end = loop {
            match self.decoder.read(&mut self.buffer) {
                Ok(read) => break read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(self.what, error)),
            }
        };
        let count = length(self.end);
        self.position = self.position.saturating_add(count);
        self.budget.take_bytes(self.what, count)?;
        self.budget.check_ratio(self.what, self.compressed.get(), self.position)?;
        self.hasher.update(self.buffer.get(..self.end).unwrap_or_default());
        Ok(())
    }

    /// Fills `target`. Returns false if the stream ends before its first byte.
    pub(super) fn read_exact(&mut self, target: &mut [u8]) -> Result<bool, Error> {
        let mut done = 0;
        while done < target.len() {
            let available = self.fill()?;
            if available.is_empty() {
                if done == 0 {
                    return Ok(false);
                }
                return Err(self.truncated());
            }
            let rest = target.get_mut(done..).unwrap_or_default();
            let count = rest.len().min(available.len());
            for (to, from) in rest.iter_mut().zip(available) {
                *to = *from;
            }
            self.consume(count);
            done += count;
        }
        Ok(true)
    }

    pub(super) fn skip(&mut self, mut count: u64) -> Result<(), Error> {
        while count > 0 {
            let available = length(self.fill()?.len());
            if available == 0 {
                return Err(self.truncated());
            }
            let step = available.min(count);
            self.consume(usize::try_from(step).unwrap_or(usize::MAX));
            count -= step;
        }
        Ok(())
    }

    /// Reads the rest of the stream, which is part of the digest. Returns the digest and the length.
    pub(super) fn finish(mut self) -> Result<(Digest, u64), Error> {
        loop {
            let available = self.fill()?.len();
            if available == 0 {
                break;
            }
            self.consume(available);
        }
        if let Some(recipe) = self.recipe {
            recipe.finish().map_err(|error| Error::io("write the recipe of", self.what, error))?;
        }
        Ok((self.hasher.finish(), self.position))
    }

    pub(super) fn truncated(&self) -> Error {
        Error::corrupt(self.what, "the archive ends within an entry")
    }

    pub(super) fn budget(&self) -> &'a Budget {
        self.budget
    }
}

/// Returns the error of the source that a decoder passed on, if it is one of ours.
pub(crate) fn inner_error(error: &io::Error) -> Option<Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).cloned()
}

fn broken(what: &str, error: io::Error) -> Error {
    inner_error(&error).unwrap_or_else(|| Error::corrupt(what, format!("failed to decompress: {error}")))
}

fn length(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::limits::Limits;
    use super::*;
    use crate::error::ErrorKind;
    use std::io::Write as _;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn digest(source: &[u8], limits: Limits) -> Result<Digest, Error> {
        let budget = Budget::new(limits);
        LayerStream::new("test", source, Algorithm::Sha256, &budget, None)?.finish().map(|(digest, _)| digest)
    }

    #[test]
    fn every_compression_gives_the_digest_of_the_content() {
        let content: Vec<u8> = (0..1_000_000u32).flat_map(|number| number.to_le_bytes()).collect();
        let expected = Digest::of(Algorithm::Sha256, &content);
        let zstd = zstd::encode_all(content.as_slice(), 1).unwrap();
        let mut skippable = vec![0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        skippable.extend(&zstd);
        let (first, second) = content.split_at(1234);
        let members = [gzip(first), gzip(second)].concat();
        for source in [&content, &gzip(&content), &members, &zstd, &skippable] {
            assert_eq!(digest(source, Limits::default()).unwrap(), expected);
        }
        assert_eq!(digest(b"", Limits::default()).unwrap(), Digest::of(Algorithm::Sha256, b""));
    }

    #[test]
    fn truncated_and_corrupt_streams_are_detected() {
        let content = vec![7; 100_000];
        for mut source in [gzip(&content), zstd::encode_all(content.as_slice(), 1).unwrap()] {
            let cut = &source[..source.len() - 3];
            assert_eq!(digest(cut, Limits::default()).unwrap_err().kind(), ErrorKind::Corrupt);
            let at = source.len() / 2;
            source[at] ^= 0xff;
            assert!(digest(&source, Limits::default()).is_err());
        }
    }

    #[test]
    fn zeros_in_the_best_gzip_compression_are_accepted() {
        let content = vec![0; 16 << 20];
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&content).unwrap();
        let bytes = encoder.finish().unwrap();
        assert!(content.len() / bytes.len() > 1000, "{} bytes", bytes.len());
        let limits = Limits { ratio_floor: 1 << 20, ..Limits::default() };
        assert_eq!(digest(&bytes, limits).unwrap(), Digest::of(Algorithm::Sha256, &content));
        // For zstd the ratio is exceeded: a few bytes expand to any number of zeros.
        let error = digest(&zstd::encode_all(content.as_slice(), 1).unwrap(), limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
    }

    #[test]
    fn bombs_are_rejected_with_figures() {
        let content = vec![0; 8 << 20];
        let limits = Limits { bytes: 1 << 20, ..Limits::default() };
        let error = digest(&gzip(&content), limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
        assert!(error.to_string().contains("1048576"), "{error}");
        let limits = Limits { ratio: 100, ratio_floor: 1 << 20, ..Limits::default() };
        let error = digest(&zstd::encode_all(content.as_slice(), 1).unwrap(), limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
    }
}
