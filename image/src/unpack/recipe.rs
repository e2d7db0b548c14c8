//! Recipes: data to rebuild a layer's archive, byte for byte, from its unpacked files. A recipe has the parts
//! of the archive that are not the content of a file (headers, names, padding), compressed, and the order of
//! the files' contents. With it, an image can be saved with its original digests although no archive is kept.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::path::TreePath;

const LITERAL: u8 = 0;
const CONTENT: u8 = 1;
/// The most literal bytes that are buffered.
const GATHER: usize = 64 << 10;
/// The compression level. Headers are repetitive: the fastest level compresses them well.
const LEVEL: i32 = 1;
const COPY: usize = 256 << 10;
/// The longest path. Paths in a layer are shorter (PATH_MAX).
const MAX_PATH: u64 = 1 << 16;

/// Writes a recipe while a layer is unpacked. `finish` returns the first error.
pub(super) struct RecipeWriter {
    out: zstd::Encoder<'static, BufWriter<File>>,
    literal: Vec<u8>,
    failure: Option<io::Error>,
}

impl RecipeWriter {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let out = zstd::Encoder::new(BufWriter::new(file), LEVEL)?;
        Ok(Self { out, literal: Vec::with_capacity(GATHER), failure: None })
    }

    /// Appends bytes of the archive that are not content of a file.
    pub(super) fn literal(&mut self, bytes: &[u8]) {
        self.literal.extend_from_slice(bytes);
        if self.literal.len() >= GATHER {
            self.flush();
        }
    }

    /// Appends a reference to the whole content of a file.
    pub(super) fn content(&mut self, path: &TreePath, length: u64) {
        self.flush();
        let path = path.as_bytes();
        let parts = [&[CONTENT][..], &length.to_le_bytes(), &bytes_of(path.len()).to_le_bytes(), path];
        self.write(&parts.concat());
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.flush();
        match self.failure {
            Some(error) => Err(error),
            None => self.out.finish()?.flush(),
        }
    }

    fn flush(&mut self) {
        if self.literal.is_empty() {
            return;
        }
        let literal = std::mem::take(&mut self.literal);
        self.write(&[&[LITERAL][..], &bytes_of(literal.len()).to_le_bytes()].concat());
        self.write(&literal);
        self.literal = literal;
        self.literal.clear();
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.failure.is_none() {
            self.failure = self.out.write_all(bytes).err();
        }
    }
}

fn bytes_of(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// Writes the archive of a recipe. The result is not verified: the caller compares its digest.
///
/// # Errors
/// The recipe is corrupt, a file is missing or too short, or writing to `out` fails.
pub(crate) fn rebuild(recipe: File, root: BorrowedFd<'_>, out: &mut impl Write) -> io::Result<()> {
    let mut recipe = BufReader::new(zstd::Decoder::new(recipe)?);
    let mut buffer = vec![0_u8; COPY];
    let mut tag = [0_u8; 1];
    while recipe.read(&mut tag)? == 1 {
        let length = number(&mut recipe)?;
        match tag {
            [LITERAL] => copy(&mut recipe, length, &mut buffer, out)?,
            [CONTENT] => {
                let path_length = number(&mut recipe)?;
                if path_length > MAX_PATH {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                let mut path = vec![0; usize::try_from(path_length).unwrap_or(0)];
                recipe.read_exact(&mut path)?;
                let path = TreePath::parse(&path).ok_or(io::ErrorKind::InvalidData)?;
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
                let file = openat2(root, path.as_path(), flags, Mode::empty(), resolve)?;
                copy(&mut File::from(file), length, &mut buffer, out)?;
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    Ok(())
}

fn number(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn copy(from: &mut impl Read, mut length: u64, buffer: &mut [u8], out: &mut impl Write) -> io::Result<()> {
    while length > 0 {
        let piece = usize::try_from(length).unwrap_or(usize::MAX).min(buffer.len());
        let piece = buffer.get_mut(..piece).unwrap_or_default();
        from.read_exact(piece)?;
        out.write_all(piece)?;
        length -= bytes_of(piece.len());
    }
    Ok(())
}
