//! The times of folders. They are set last, since creating a file in a folder changes them. A layer may have
//! any number of folders, so the times are buffered in a file.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, openat, unlinkat};

use super::path::TreePath;
use crate::error::Error;

/// The bytes that are buffered in memory. This is sufficient for most layers.
const GATHER: usize = 256 << 10;
/// The length of two times and the length of a path.
const HEAD: usize = 4 * 8 + 4;

/// Folders with their times, in the order in which they were added.
#[derive(Debug, Default)]
pub(crate) struct FolderTimes {
    gathered: Vec<u8>,
    file: Option<File>,
}

impl FolderTimes {
    /// Adds a folder. If there are many, they are written to an unnamed file in `root`.
    ///
    /// # Errors
    /// The file cannot be created or written.
    pub(crate) fn add(&mut self, root: impl AsFd, path: &TreePath, times: &Timestamps) -> io::Result<()> {
        let path = path.as_bytes();
        let length = u32::try_from(path.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        for time in [&times.last_access, &times.last_modification] {
            self.gathered.extend(time.tv_sec.to_le_bytes());
            self.gathered.extend(time.tv_nsec.to_le_bytes());
        }
        self.gathered.extend(length.to_le_bytes());
        self.gathered.extend(path);
        if self.gathered.len() < GATHER {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(unnamed(root)?),
        };
        file.write_all(&self.gathered)?;
        self.gathered.clear();
        Ok(())
    }

    /// Passes each folder to `set`. `what` is the layer in errors.
    ///
    /// # Errors
    /// The file cannot be read, or `set` fails.
    pub(crate) fn for_each(
        self,
        what: &str,
        mut set: impl FnMut(&TreePath, &Timestamps) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Self { gathered, file } = self;
        let failed = |error| Error::io("read the times of folders of", what, error);
        if let Some(mut file) = file {
            file.seek(SeekFrom::Start(0)).map_err(failed)?;
            let mut file = BufReader::with_capacity(GATHER, file);
            while let Some((path, times)) = next(&mut file).map_err(failed)? {
                set(&path, &times)?;
            }
        }
        let mut gathered = gathered.as_slice();
        while let Some((path, times)) = next(&mut gathered).map_err(failed)? {
            set(&path, &times)?;
        }
        Ok(())
    }
}

fn next(from: &mut impl Read) -> io::Result<Option<(TreePath, Timestamps)>> {
    let mut head = [0; HEAD];
    if from.read(head.get_mut(..1).unwrap_or_default())? == 0 {
        return Ok(None);
    }
    from.read_exact(head.get_mut(1..).unwrap_or_default())?;
    let number = |at: usize| {
        let bytes = head.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, i64::from_le_bytes)
    };
    let time = |at| Timespec { tv_sec: number(at), tv_nsec: number(at + 8) };
    let times = Timestamps { last_access: time(0), last_modification: time(16) };
    let length = head.get(32..).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
    let mut path = vec![0; usize::try_from(length).unwrap_or(0)];
    from.read_exact(&mut path)?;
    let path = TreePath::parse(&path).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Some((path, times)))
}

/// Creates a file beneath `root` without a name. It is deleted when its descriptor is closed.
fn unnamed(root: impl AsFd) -> io::Result<File> {
    let name = format!(".berth-{:032x}", rand::random::<u128>());
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&root, name.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
    unlinkat(&root, name.as_str(), AtFlags::empty())?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_returned_in_order_and_leave_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let root = File::open(folder.path()).unwrap();
        let mut times = FolderTimes::default();
        let time = |seconds| Timespec { tv_sec: seconds, tv_nsec: 7 };
        let of = |number: i64| Timestamps { last_access: time(-number), last_modification: time(number) };
        let path = |number: i64| TreePath::parse(format!("{number}/{}", "x".repeat(300)).as_bytes()).unwrap();
        times.add(&root, &TreePath::default(), &of(0)).unwrap();
        for number in 1..5000 {
            times.add(&root, &path(number), &of(number)).unwrap();
        }
        assert!(times.file.is_some() && times.gathered.len() < GATHER);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let mut next = 0;
        let all = times.for_each("test", |actual, times| {
            let expected = if next == 0 { TreePath::default() } else { path(next) };
            assert_eq!(
                (actual, times.last_access, times.last_modification),
                (&expected, time(-next), time(next))
            );
            next += 1;
            Ok(())
        });
        assert!(all.is_ok() && next == 5000);
    }
}
