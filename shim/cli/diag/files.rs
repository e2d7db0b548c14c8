//! Files that a page shows: mounts, the log of a keeper, the time of a record.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::time::UNIX_EPOCH;

/// The most mounts that are shown.
const MAX_MOUNTS: usize = 100;

/// How much of the end of a keeper's log is read.
const MAX_KEEPER_LOG: u64 = 16 << 10;

/// Returns the mounts that a process sees: mount point, type, source, options.
pub(super) fn mounts(pid: i32) -> Result<Vec<String>, String> {
    let path = format!("/proc/{pid}/mountinfo");
    let text = fs::read_to_string(&path).map_err(|error| format!("failed to read {path}: {error}"))?;
    let mut mounts: Vec<String> = text.lines().filter_map(mount).take(MAX_MOUNTS).collect();
    let all = text.lines().count();
    if all > MAX_MOUNTS {
        mounts.push(format!("and {} more", all - MAX_MOUNTS));
    }
    Ok(mounts)
}

/// Parses a line of mountinfo (proc_pid_mountinfo(5)). The options of the filesystem are left out: they can have
/// credentials.
fn mount(line: &str) -> Option<String> {
    let (first, second) = line.split_once(" - ")?;
    let mut fields = first.split(' ').skip(4);
    let (point, options) = (fields.next()?, fields.next()?);
    let mut of_filesystem = second.split(' ');
    let (kind, source) = (of_filesystem.next()?, of_filesystem.next()?);
    Some(berth_image::printable(&format!("{point}  {kind}  {source}  {options}"), 300))
}

/// Returns the last lines of a text file. A missing file has none.
pub(super) fn last_lines(path: &str, lines: usize) -> Result<Vec<String>, String> {
    let failed = |error: std::io::Error| format!("failed to read {path}: {error}");
    let mut file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened.map_err(failed)?,
    };
    let length = file.metadata().map_err(failed)?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_KEEPER_LOG))).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_KEEPER_LOG).read_to_end(&mut bytes).map_err(failed)?;
    let text = String::from_utf8_lossy(&bytes);
    let shown: Vec<String> = text.lines().map(|line| berth_image::printable(line, 400)).collect();
    Ok(shown.into_iter().rev().take(lines).rev().collect())
}

/// Returns the time of the last change of a file in nanoseconds since the epoch.
pub(super) fn changed_at(path: &str) -> Result<i64, String> {
    let failed = |error: std::io::Error| format!("failed to read {path}: {error}");
    let time = fs::metadata(path).and_then(|metadata| metadata.modified()).map_err(failed)?;
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_has_no_options_of_its_filesystem() {
        let line = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - cifs //server/x rw,username=u,password=p";
        assert_eq!(mount(line).unwrap(), "/mnt2  cifs  //server/x  rw,noatime");
        assert_eq!(mount("36 35"), None);
        assert!(mounts(i32::try_from(std::process::id()).unwrap()).unwrap().len() > 1);
    }

    #[test]
    fn the_last_lines_of_a_file_are_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "one\ntwo\nthree\n").unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(last_lines(path, 2).unwrap(), ["two", "three"]);
        assert!(changed_at(path).unwrap() > 0);
        assert!(last_lines("/nonexistent/keeper.log", 2).unwrap().is_empty());
        assert!(changed_at("/nonexistent/keeper.log").unwrap_err().contains("/nonexistent/keeper.log"));
    }
}
