//! Copies single files of an archive, by their names, or unpacks one that is not a layer.

use std::fs::File;
use std::io::{BufRead, Write as _};
use std::os::fd::OwnedFd;

use super::extract::extract;
use super::limits::{Budget, Limits};
use super::path::TreePath;
use super::stream::LayerStream;
use super::tar::{Kind, TarReader};
use crate::digest::Algorithm;
use crate::error::Error;

/// Copies regular files of an untrusted tar archive. `open` gets the path of each of its entries, without a leading `./` or
/// `/`, and returns the new file for its content, or `None` to skip the entry.
///
/// # Errors
/// The archive is damaged or exceeds the limits, a selected entry is not a regular file, or a name leads out of the archive.
pub fn copy_files(
    what: &str,
    source: impl BufRead,
    limits: Limits,
    mut open: impl FnMut(&str) -> std::io::Result<Option<File>>,
) -> Result<(), Error> {
    let budget = Budget::new(limits);
    let mut reader = TarReader::new(LayerStream::new(what, source, Algorithm::Sha256, &budget, None)?);
    while let Some(entry) = reader.next()? {
        budget.take_entry(what)?;
        let path = TreePath::parse(&entry.name).ok_or_else(|| {
            Error::corrupt(
                what,
                format!("the name {:?} leads out of it", entry.name.escape_ascii().to_string()),
            )
        })?;
        let Ok(name) = std::str::from_utf8(path.as_bytes()) else { continue };
        if entry.kind == Kind::Directory {
            continue;
        }
        let Some(mut file) = open(name).map_err(|error| Error::io("create", name, error))? else { continue };
        if entry.kind != Kind::File || entry.sparse.is_some() {
            return Err(Error::corrupt(what, format!("{name} is not a regular file")));
        }
        loop {
            let data = reader.data()?;
            if data.is_empty() {
                break;
            }
            let written = file.write(data).map_err(|error| Error::io("write", name, error))?;
            reader.consume(written);
        }
    }
    reader.finish().map(drop)
}

/// Unpacks an untrusted tar archive of files, folders and links into a folder. The rules and limits are those of a layer.
///
/// # Errors
/// The archive is damaged or exceeds the limits, or a name or a link leads out of it.
pub fn unpack_files(what: &str, source: impl BufRead, root: OwnedFd, limits: Limits) -> Result<(), Error> {
    let outcome = extract(what, source, root, Algorithm::Sha256, &Budget::new(limits), None)?;
    match outcome.links.first_key_value() {
        Some((link, target)) => {
            Err(Error::unsupported(what, format!("{link} is a link to {target}, which it does not contain")))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs;
    use tar::{Builder, EntryType, Header};

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = Header::new_gnu();
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(u64::try_from(content.len()).unwrap());
            header.set_mode(0o644);
            header.set_cksum();
            builder.append(&header, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn copy(archive: &[u8], limits: Limits) -> (Result<(), Error>, BTreeSet<String>) {
        let folder = tempfile::tempdir().unwrap();
        let result = copy_files("archive", archive, limits, |name| match name {
            "a" | "b/c" => File::create_new(folder.path().join(name.replace('/', "-"))).map(Some),
            _ => Ok(None),
        });
        let names = fs::read_dir(folder.path()).unwrap();
        (result, names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
    }

    #[test]
    fn only_selected_files_are_copied() {
        let file = EntryType::Regular;
        let data = archive(&[
            ("./a", file, "1"),
            ("b", EntryType::Directory, ""),
            ("b/c", file, "2"),
            ("d", EntryType::Symlink, ""),
        ]);
        let (result, names) = copy(&data, Limits::default());
        result.unwrap();
        assert_eq!(names, ["a".to_owned(), "b-c".to_owned()].into());
        let cut = copy(data.get(..600).unwrap(), Limits::default()).0;
        assert!(cut.is_err(), "{cut:?}");
    }

    #[test]
    fn links_duplicates_and_names_that_lead_out_are_errors() {
        let file = EntryType::Regular;
        for bad in [
            archive(&[("a", EntryType::Symlink, "")]),
            archive(&[("a", EntryType::Link, "")]),
            archive(&[("a", EntryType::Block, "")]),
            archive(&[("a", file, ""), ("a", file, "")]),
            archive(&[("../a", file, "")]),
            archive(&[("x/../../a", file, "")]),
        ] {
            assert!(copy(&bad, Limits::default()).0.is_err());
        }
    }

    #[test]
    fn the_size_and_the_number_of_entries_are_limited() {
        let file = EntryType::Regular;
        let data = archive(&[("x", file, "12345678"), ("a", file, "1")]);
        let limits = Limits { entries: 1, ..Limits::default() };
        assert!(matches!(copy(&data, limits).0, Err(Error::LimitExceeded { .. })));
        let limits = Limits { bytes: 600, ..Limits::default() };
        assert!(matches!(copy(&data, limits).0, Err(Error::LimitExceeded { .. })));
    }
}
