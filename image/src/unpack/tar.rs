//! The entries of a tar stream: ustar, pax and GNU (POSIX.1-2024 pax; GNU tar manual, "Basic Tar Format").
//!
//! Readers of tar differ in ambiguous archives, which has been used to smuggle entries (CVE-2025-62518). This
//! reader does the same as Go's archive/tar, which other runtimes use for layers: the size in a pax header
//! applies to the data and to the position of the next header, and types without data never have data.

use super::header::{BLOCK, checksum_matches, field, numeric, padding, plain_name, signed, terminated};
use super::limits::Budget;
use super::path::TreePath;
use super::pax::{Pax, Time};
use super::sparse::Sparse;
use super::stream::LayerStream;
use crate::error::Error;

/// The largest extended header or long name, in bytes.
pub(super) const MAX_EXTENSION: u64 = 1 << 20;

/// The type of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    Character,
    Block,
    Directory,
    Fifo,
}

/// One entry, without its data.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    /// The target of a link.
    pub(super) link: Vec<u8>,
    pub(super) sparse: Option<Sparse>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads entries one after the other.
pub(super) struct TarReader<'a> {
    stream: LayerStream<'a>,
    /// The unread data of the current entry, and the padding after it.
    unread: u64,
    padding: u64,
    ended: bool,
}

#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Pax,
}

impl<'a> TarReader<'a> {
    pub(super) fn new(stream: LayerStream<'a>) -> Self {
        Self { stream, unread: 0, padding: 0, ended: false }
    }

    pub(super) fn what(&self) -> &'a str {
        self.stream.what
    }

    pub(super) fn budget(&self) -> &'a Budget {
        self.stream.budget()
    }

    /// Reads the rest of the stream after the archive. Returns its digest and length.
    pub(super) fn finish(self) -> Result<(crate::digest::Digest, u64), Error> {
        self.stream.finish()
    }

    /// Returns available data of the current entry. Empty at its end.
    pub(super) fn data(&mut self) -> Result<&[u8], Error> {
        if self.unread == 0 {
            return Ok(&[]);
        }
        let unread = usize::try_from(self.unread).unwrap_or(usize::MAX);
        if self.stream.fill()?.is_empty() {
            return Err(self.stream.truncated());
        }
        let available = self.stream.fill()?;
        Ok(available.get(..unread.min(available.len())).unwrap_or_default())
    }

    /// Marks data as read.
    pub(super) fn consume(&mut self, count: usize) {
        self.unread = self.unread.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
        self.stream.consume(count);
    }

    /// Marks data as read that was written to the file of the next [`Self::content`].
    pub(super) fn consume_content(&mut self, count: usize) {
        self.unread = self.unread.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
        self.stream.consume_content(count);
    }

    /// See [`LayerStream::content`].
    pub(super) fn content(&mut self, path: &TreePath, length: u64) {
        self.stream.content(path, length);
    }

    /// Returns the next entry. Unread data of the last one is skipped.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, Error> {
        let mut extensions = Extensions::default();
        loop {
            self.stream.skip(self.unread.saturating_add(self.padding))?;
            (self.unread, self.padding) = (0, 0);
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = self.number(&header, 124, 12, "size")?;
            match header.get(156) {
                Some(b'x') => extensions.pax = Pax::parse(self.what(), &self.extension(size)?)?,
                Some(b'L') => extensions.name = Some(terminated(&self.extension(size)?).to_vec()),
                Some(b'K') => extensions.link = Some(terminated(&self.extension(size)?).to_vec()),
                // Global headers contain comments (git archive). containerd skips them as well.
                Some(b'g') => drop(self.extension(size)?),
                _ => return self.entry(&header, size, extensions).map(Some),
            }
        }
    }

    /// Reads the next header. None at the end of the archive, which is two blocks of zeros or the end of the
    /// stream.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        let mut header = [0; BLOCK];
        if self.ended || !self.stream.read_exact(&mut header)? {
            return Ok(None);
        }
        if header == [0; BLOCK] {
            self.ended = true;
            let mut second = [0; BLOCK];
            if self.stream.read_exact(&mut second)? && second != [0; BLOCK] {
                return Err(Error::corrupt(self.what(), "data after a single block of zeros in the archive"));
            }
            return Ok(None);
        }
        if !checksum_matches(&header) {
            return Err(Error::corrupt(self.what(), "not a tar archive, or a corrupt header (checksum)"));
        }
        Ok(Some(header))
    }

    /// Reads the data of an extended header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > MAX_EXTENSION {
            let why = format!("extended header of {size} bytes, the limit is {MAX_EXTENSION}");
            return Err(Error::limit(self.what(), why));
        }
        let mut data = vec![0; usize::try_from(size).unwrap_or(0)];
        if !data.is_empty() && !self.stream.read_exact(&mut data)? {
            return Err(self.stream.truncated());
        }
        self.stream.skip(padding(size))?;
        Ok(data)
    }

    fn entry(&mut self, header: &[u8; BLOCK], size: u64, extensions: Extensions) -> Result<Entry, Error> {
        let Extensions { name, link, pax } = extensions;
        let mut name = pax.path.or(name).unwrap_or_else(|| plain_name(header));
        let kind = self.kind(header, &name)?;
        let mut stored = if kind == Kind::File { pax.size.unwrap_or(size) } else { 0 };
        self.padding = padding(stored);
        let sparse = if header.get(156) == Some(&b'S') {
            Some(Sparse::old(&mut self.stream, header, stored)?)
        } else if kind == Kind::File {
            Sparse::pax(&mut self.stream, &pax.sparse, &mut stored)?
        } else {
            None
        };
        if let (Some(_), Some(real)) = (&sparse, pax.sparse.name) {
            name = real;
        }
        self.unread = stored;
        let device = if matches!(kind, Kind::Character | Kind::Block) {
            (self.number(header, 329, 8, "device")?, self.number(header, 337, 8, "device")?)
        } else {
            (0, 0)
        };
        let mtime = match pax.mtime {
            Some(time) => time,
            None => Time { seconds: signed(field(header, 136, 12)).unwrap_or(0), nanoseconds: 0 },
        };
        Ok(Entry {
            name,
            kind,
            link: pax.link.or(link).unwrap_or_else(|| terminated(field(header, 157, 100)).to_vec()),
            sparse,
            mode: u32::try_from(self.number::<u64>(header, 100, 8, "mode")? & 0o7777).unwrap_or(0),
            uid: self.id(pax.uid, header, 108, "uid")?,
            gid: self.id(pax.gid, header, 116, "gid")?,
            mtime,
            device: (narrow(self.what(), device.0)?, narrow(self.what(), device.1)?),
            xattrs: pax.xattrs,
        })
    }

    fn kind(&self, header: &[u8; BLOCK], name: &[u8]) -> Result<Kind, Error> {
        Ok(match header.get(156).copied().unwrap_or(0) {
            // Before POSIX, a folder was marked by a slash at the end of its name.
            b'0' | 0 if name.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Character,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let why = format!("{} has the unknown type {:?}", name.escape_ascii(), char::from(other));
                return Err(Error::unsupported(self.what(), why));
            }
        })
    }

    fn number<T: TryFrom<u64>>(
        &self,
        header: &[u8],
        at: usize,
        length: usize,
        name: &str,
    ) -> Result<T, Error> {
        let value = numeric(field(header, at, length)).and_then(|value| T::try_from(value).ok());
        value.ok_or_else(|| Error::corrupt(self.what(), format!("invalid {name} in a header")))
    }

    /// Returns a user or group id. All ones means "unchanged" in chown(2), so it is invalid.
    fn id(&self, pax: Option<u64>, header: &[u8], at: usize, name: &str) -> Result<u32, Error> {
        let value = match pax {
            Some(value) => value,
            None => self.number(header, at, 8, name)?,
        };
        u32::try_from(value)
            .ok()
            .filter(|id| *id != u32::MAX)
            .ok_or_else(|| Error::corrupt(self.what(), format!("invalid {name} {value}")))
    }
}

fn narrow(what: &str, number: u64) -> Result<u32, Error> {
    u32::try_from(number).map_err(|_| Error::corrupt(what, format!("invalid device number {number}")))
}

#[cfg(test)]
mod tests {
    use super::super::limits::Limits;
    use super::*;
    use crate::digest::Algorithm;
    use proptest::prelude::*;

    fn names(archive: &[u8]) -> Result<Vec<(String, Kind, Vec<u8>)>, Error> {
        let budget = Budget::new(Limits::default());
        let mut reader = TarReader::new(LayerStream::new("test", archive, Algorithm::Sha256, &budget, None)?);
        let mut entries = Vec::new();
        while let Some(entry) = reader.next()? {
            let mut data = Vec::new();
            loop {
                let piece = reader.data()?;
                if piece.is_empty() {
                    break;
                }
                data.extend_from_slice(piece);
                let count = piece.len();
                reader.consume(count);
            }
            entries.push((String::from_utf8_lossy(&entry.name).into_owned(), entry.kind, data));
        }
        Ok(entries)
    }

    fn header(name: &str, kind: ::tar::EntryType, size: u64) -> ::tar::Header {
        let mut header = ::tar::Header::new_gnu();
        header.set_path(name).unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        header
    }

    #[test]
    fn numbers_of_every_form_are_parsed() {
        assert_eq!(numeric(b"0000644\0"), Some(0o644));
        assert_eq!(numeric(b"   644 \0"), Some(0o644));
        assert_eq!(numeric(b"\0\0\0\0"), Some(0));
        assert_eq!(numeric(b"77777777777\0"), Some(0o77777777777));
        assert_eq!(numeric(b"\x80\0\0\0\0\0\0\x02\0\0\0\0"), Some(1 << 33));
        assert_eq!(signed(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
        assert_eq!(numeric(b"\xff\xff\xff\xfe"), None);
        assert_eq!(numeric(b"9"), None);
        assert_eq!(numeric(b"\x8f\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
    }

    #[test]
    fn long_names_and_data_are_read() {
        let long = "d/".repeat(150) + "file";
        let mut builder = ::tar::Builder::new(Vec::new());
        let data = vec![5; 1300];
        let mut plain = ::tar::Header::new_gnu();
        plain.set_size(1300);
        plain.set_mode(0o644);
        builder.append_data(&mut plain, &long, data.as_slice()).unwrap();
        builder.append(&header("dir/", ::tar::EntryType::Directory, 0), std::io::empty()).unwrap();
        let archive = builder.into_inner().unwrap();
        assert_eq!(
            names(&archive).unwrap(),
            [(long, Kind::File, data), ("dir/".to_owned(), Kind::Directory, Vec::new())]
        );
    }

    #[test]
    fn the_pax_size_determines_the_next_header() {
        // The header specifies 0, the extended header 512. A reader that follows only one finds a header in
        // the data.
        let mut archive = Vec::new();
        let record = b"12 size=512\n";
        archive.extend(header("x", ::tar::EntryType::XHeader, 12).as_bytes());
        archive.extend(record);
        archive.resize(1024, 0);
        archive.extend(header("outer", ::tar::EntryType::Regular, 0).as_bytes());
        archive.extend(header("smuggled", ::tar::EntryType::Regular, 0).as_bytes());
        archive.resize(archive.len() + 1024, 0);
        let entries = names(&archive).unwrap();
        assert_eq!(entries.iter().map(|entry| entry.0.as_str()).collect::<Vec<_>>(), ["outer"]);
    }

    #[test]
    fn invalid_archives_are_corrupt() {
        let mut archive = header("a", ::tar::EntryType::Regular, 600).as_bytes().to_vec();
        assert!(names(&archive).is_err(), "missing data");
        archive.resize(512 + 600, 0);
        assert!(names(&archive).is_err(), "missing padding");
        assert!(names(&[b'x'; 600]).is_err());
        let mut lone = vec![0; 512];
        lone.extend(header("a", ::tar::EntryType::Regular, 0).as_bytes());
        assert!(names(&lone).is_err());
        let large = header("x", ::tar::EntryType::XHeader, 1 << 30);
        assert!(matches!(names(large.as_bytes()), Err(Error::LimitExceeded { .. })));
        assert!(names(header("a", ::tar::EntryType::new(b'D'), 0).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_rejected(mut data in proptest::collection::vec(any::<u8>(), 0..3000)) {
            drop(names(&data));
            // With a valid checksum the reader gets further.
            if let Some(block) = data.get(..512).map(<[u8]>::to_vec) {
                let mut header = ::tar::Header::new_old();
                header.as_mut_bytes().copy_from_slice(&block);
                header.set_cksum();
                data[..512].copy_from_slice(header.as_bytes());
                drop(names(&data));
            }
        }
    }
}
