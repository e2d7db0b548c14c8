//! Finds the members of a plain tar file without reading their content. The data of headers that is kept is
//! limited: a long name or an extended header may have any length.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::header::{BLOCK, checksum_matches, field, numeric, padding, plain_name, terminated};
use super::pax::Pax;
use super::tar::MAX_EXTENSION;
use crate::error::Error;

/// A member of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// The name as written in the archive.
    pub(crate) name: Vec<u8>,
    pub(crate) kind: MemberKind,
}

/// The type of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MemberKind {
    /// A file, with the position of its content.
    File { offset: u64, length: u64 },
    /// Another name of a member.
    HardLink(Vec<u8>),
    /// A path relative to its folder.
    Symlink(Vec<u8>),
    /// A folder, a device, or another type.
    Other,
}

/// Reads the headers of an archive.
#[derive(Debug)]
pub(crate) struct Members<'a> {
    what: &'a str,
    file: &'a File,
    position: u64,
}

impl<'a> Members<'a> {
    pub(crate) fn new(what: &'a str, file: &'a File) -> Self {
        Self { what, file, position: 0 }
    }

    /// Returns the next member. None at the end of the archive, which is a block of zeros or the end of the
    /// file.
    ///
    /// # Errors
    /// The file is not an archive, is corrupt, or has a header that is too long.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, Error> {
        let (mut name, mut link) = (None, None);
        let mut pax = Pax::default();
        loop {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = numeric(field(&header, 124, 12));
            let size = size.ok_or_else(|| self.corrupt("invalid size in a header"))?;
            match header.get(156) {
                Some(b'x') => pax = Pax::parse(self.what, &self.extension(size)?)?,
                Some(b'L') => name = Some(terminated(&self.extension(size)?).to_vec()),
                Some(b'K') => link = Some(terminated(&self.extension(size)?).to_vec()),
                Some(b'g') => drop(self.extension(size)?),
                kind => {
                    let kind = kind.copied().unwrap_or(0);
                    let name = pax.path.or(name).unwrap_or_else(|| plain_name(&header));
                    let link = pax.link.or(link);
                    let link = link.unwrap_or_else(|| terminated(field(&header, 157, 100)).to_vec());
                    let length = pax.size.unwrap_or(size);
                    return Ok(Some(Member { kind: self.kind(kind, &name, link, length)?, name }));
                }
            }
        }
    }

    fn kind(&mut self, kind: u8, name: &[u8], link: Vec<u8>, length: u64) -> Result<MemberKind, Error> {
        Ok(match kind {
            b'1' => MemberKind::HardLink(link),
            b'2' => MemberKind::Symlink(link),
            // These types have no data, whatever their size field is (as in layers).
            b'3'..=b'6' => MemberKind::Other,
            kind => {
                let offset = self.position;
                self.skip(length)?;
                let is_file = matches!(kind, b'0' | 0 | b'7') && !name.ends_with(b"/");
                if is_file { MemberKind::File { offset, length } } else { MemberKind::Other }
            }
        })
    }

    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        let mut header = [0; BLOCK];
        match self.file.read_exact_at(&mut header, self.position) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return self.at_end(),
            Err(error) => return Err(Error::io("read", self.what, error)),
        }
        if header == [0; BLOCK] {
            return Ok(None);
        }
        if !checksum_matches(&header) {
            return Err(self.corrupt("not a tar archive, or a corrupt header (checksum)"));
        }
        self.skip(512)?;
        Ok(Some(header))
    }

    /// Handles less than a block. If no bytes remain, this is the end of the archive as well.
    fn at_end(&self) -> Result<Option<[u8; BLOCK]>, Error> {
        let length = self.file.metadata().map_err(|error| Error::io("read", self.what, error))?.len();
        if length <= self.position { Ok(None) } else { Err(self.corrupt("the archive is truncated")) }
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > MAX_EXTENSION {
            let why = format!("extended header of {size} bytes, the limit is {MAX_EXTENSION}");
            return Err(Error::limit(self.what, why));
        }
        let mut data = vec![0; usize::try_from(size).unwrap_or(0)];
        let read = self.file.read_exact_at(&mut data, self.position);
        read.map_err(|_| self.corrupt("the archive is truncated"))?;
        self.skip(size)?;
        Ok(data)
    }

    /// Skips data and its padding.
    fn skip(&mut self, size: u64) -> Result<(), Error> {
        let next = self.position.checked_add(size).and_then(|end| end.checked_add(padding(size)));
        self.position = next.ok_or_else(|| self.corrupt("the size of a member is out of range"))?;
        Ok(())
    }

    fn corrupt(&self, why: &str) -> Error {
        Error::corrupt(self.what, why)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;
    use tar::{Builder, EntryType, Header};

    use super::*;
    use crate::error::ErrorKind;

    fn members(bytes: &[u8]) -> Result<Vec<Member>, Error> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let mut members = Members::new("test", &file);
        std::iter::from_fn(|| members.next().transpose()).collect()
    }

    fn archive() -> Vec<u8> {
        let mut tar = Builder::new(Vec::new());
        let mut add = |kind: EntryType, name: &str, link: &str, data: &[u8]| {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(data.len().try_into().unwrap());
            if link.is_empty() {
                tar.append_data(&mut header, name, data).unwrap();
            } else {
                tar.append_link(&mut header, name, link).unwrap();
            }
        };
        add(EntryType::Directory, "d/", "", b"");
        add(EntryType::Regular, "d/a", "", &[1; 700]);
        add(EntryType::Symlink, "d/s", "a", b"");
        add(EntryType::Link, "h", "d/a", b"");
        add(EntryType::Regular, &format!("d/{}", "n".repeat(200)), "", b"long");
        tar.append_pax_extensions([("path", "ä/b".as_bytes()), ("size", b"3")]).unwrap();
        let mut header = Header::new_ustar();
        header.set_size(3);
        tar.append_data(&mut header, "short", b"pax".as_slice()).unwrap();
        tar.into_inner().unwrap()
    }

    #[test]
    fn members_are_found_at_their_positions() {
        let bytes = archive();
        let parsed = members(&bytes).unwrap();
        let names: Vec<_> =
            parsed.iter().map(|member| String::from_utf8(member.name.clone()).unwrap()).collect();
        let long = format!("d/{}", "n".repeat(200));
        assert_eq!(names, ["d/", "d/a", "d/s", "h", &long, "ä/b"]);
        let content = |place: usize| match parsed[place].kind {
            MemberKind::File { offset, length } => {
                let start = usize::try_from(offset).unwrap();
                bytes[start..start + usize::try_from(length).unwrap()].to_vec()
            }
            _ => panic!("no file: {:?}", parsed[place]),
        };
        assert_eq!((content(1), content(4), content(5)), (vec![1; 700], b"long".to_vec(), b"pax".to_vec()));
        assert_eq!(parsed[0].kind, MemberKind::Other);
        assert_eq!(parsed[2].kind, MemberKind::Symlink(b"a".to_vec()));
        assert_eq!(parsed[3].kind, MemberKind::HardLink(b"d/a".to_vec()));
        assert!(members(b"").unwrap().is_empty());
        assert_eq!(members(&bytes[..600]).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(members(&[b'x'; 2000]).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_long_name_is_rejected_before_it_is_read() {
        for kind in [b'L', b'K', b'x', b'g'] {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::new(kind));
            header.set_size(8 << 30);
            header.set_cksum();
            let error = members(header.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::LimitExceeded);
            assert!(error.to_string().contains("8589934592"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_rejected(at in 0usize..6000, byte: u8, cut in 0usize..6000) {
            let mut bytes = archive();
            let length = bytes.len();
            bytes[at % length] = byte;
            drop(members(&bytes));
            let mut header = Header::new_old();
            header.as_mut_bytes().copy_from_slice(&bytes[..512]);
            header.set_cksum();
            bytes[..512].copy_from_slice(header.as_bytes());
            drop(members(&bytes[..cut % length]));
        }
    }
}
