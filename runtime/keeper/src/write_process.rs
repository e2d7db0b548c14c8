//! The writer: the process that writes to disk for the keeper, logs of its pod and exit records of containers. The keeper does
//! not write these itself. A write to a frozen filesystem, or to one whose server is lost, cannot be interrupted, and would
//! block everything that the keeper does for its pod.
//!
//! The writer is a child of the keeper. It owns its end of a packet socket and the files that it received over it. It ends when
//! the keeper closes the other end, after the last packet.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use berth_runtime::sys::spawn::SingleThread;
use berth_runtime::sys::{self, process, security};
use rustix::io::Errno;

use crate::lines::{Lines, Stream};
use crate::stamp::{Stamp, now};

/// The maximum length of the records in one packet, far less than the capacity of a socket (unix(7), `SO_SNDBUF`).
pub(crate) const MOST: usize = 48 << 10;

/// Kind, number and count before the records.
const HEADER: usize = 9;

/// A message of the keeper to the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packet<'a> {
    /// Whole records for a log. A new file of the log comes with them as a descriptor. `lost` is the number of
    /// records that were dropped before these.
    Records { log: u32, lost: u32, records: &'a [u8] },
    /// Closes the file of a log.
    Close { log: u32 },
    /// The exit record of a container, for `exit.json` in its folder.
    Exit { folder: &'a str, record: &'a [u8] },
    /// Requests an acknowledgement, with the same number, when all packets before it are written.
    Flush(u32),
}

impl<'a> Packet<'a> {
    pub(crate) fn encode(self) -> Vec<u8> {
        let (kind, number, count, folder, records) = match self {
            Self::Records { log, lost, records } => (0_u8, log, lost, "", records),
            Self::Close { log } => (1, log, 0, "", &[][..]),
            Self::Flush(number) => (2, number, 0, "", &[][..]),
            Self::Exit { folder, record } => {
                (3, 0, u32::try_from(folder.len()).unwrap_or(u32::MAX), folder, record)
            }
        };
        let mut bytes = Vec::with_capacity(HEADER + folder.len() + records.len());
        bytes.push(kind);
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(folder.as_bytes());
        bytes.extend_from_slice(records);
        bytes
    }

    fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (header, records) = bytes.split_at_checked(HEADER)?;
        let (kind, numbers) = header.split_first()?;
        let (number, count) = numbers.split_at_checked(4)?;
        let number = u32::from_le_bytes(number.try_into().ok()?);
        let count = u32::from_le_bytes(count.try_into().ok()?);
        match kind {
            0 => Some(Self::Records { log: number, lost: count, records }),
            1 => Some(Self::Close { log: number }),
            2 => Some(Self::Flush(number)),
            3 => {
                let (folder, record) = records.split_at_checked(usize::try_from(count).ok()?)?;
                Some(Self::Exit { folder: std::str::from_utf8(folder).ok()?, record })
            }
            _ => None,
        }
    }
}

/// Runs the writer. Returns only on an error.
pub(crate) fn run(socket: OwnedFd, single: SingleThread) {
    let Err(error) = single.keep_only(socket, serve);
    crate::report(&format!("failed to start the writer: {error}"));
}

fn serve(socket: OwnedFd) -> ! {
    // Shown by ps(1) and top(1); nothing depends on it.
    let _named = security::set_name(c"berth-writer");
    let mut files = BTreeMap::new();
    let mut buffer = vec![0; HEADER + MOST];
    loop {
        match sys::socket::receive(socket.as_fd(), &mut buffer) {
            Ok((0, _)) => break,
            Ok((length, descriptors)) => {
                let file = descriptors.into_iter().next();
                let packet = Packet::decode(buffer.get(..length).unwrap_or_default());
                if !packet.is_some_and(|packet| handle(packet, file, &mut files, &socket)) {
                    break;
                }
            }
            Err(error) if error.errno == Errno::INTR => {}
            Err(_) => break,
        }
    }
    process::exit_now(0);
}

/// Handles a packet. Returns whether the keeper is still there.
fn handle(
    packet: Packet<'_>,
    file: Option<OwnedFd>,
    files: &mut BTreeMap<u32, File>,
    socket: &OwnedFd,
) -> bool {
    match packet {
        Packet::Records { log, lost, records } => {
            if let Some(fd) = file {
                let before = files.insert(log, File { fd, lost: 0 });
                // The new file reports the records that the old one lost.
                if let (Some(before), Some(file)) = (before, files.get_mut(&log)) {
                    file.lost = before.lost;
                }
            }
            if let Some(file) = files.get_mut(&log) {
                file.lost = file.lost.saturating_add(lost);
                file.write(records);
            }
            true
        }
        Packet::Close { log } => {
            files.remove(&log);
            true
        }
        Packet::Exit { folder, record } => {
            if let Err(error) = write_exit(folder, record) {
                crate::report(&format!("failed to write exit.json in {folder}: {error}"));
            }
            true
        }
        Packet::Flush(number) => sys::socket::send(socket.as_fd(), &number.to_le_bytes(), &[]).is_ok(),
    }
}

/// Replaces an older record by rename(2).
fn write_exit(folder: &str, record: &[u8]) -> std::io::Result<()> {
    let (path, beside) = (format!("{folder}/exit.json"), format!("{folder}/exit.json.tmp"));
    std::fs::write(&beside, record)?;
    std::fs::rename(&beside, &path)
}

/// An open log file.
#[derive(Debug)]
struct File {
    fd: OwnedFd,
    /// The number of records that could not be written since the last successful write.
    lost: u32,
}

impl File {
    /// Writes whole records. Records that a full disk does not take are dropped and counted. The container
    /// continues. The log reports the number of missing records as soon as there is space again.
    fn write(&mut self, records: &[u8]) {
        if records.is_empty() {
            return;
        }
        if self.lost > 0 {
            let mut marker = Vec::new();
            let text = format!("[berth: {} log records could not be written]\n", self.lost);
            Lines::new(Stream::Stderr).push(text.as_bytes(), &Stamp::of(now()), &mut marker);
            if write_whole(&self.fd, &marker) < marker.len() {
                self.lost = self.lost.saturating_add(count(records));
                return;
            }
            self.lost = 0;
        }
        let written = write_whole(&self.fd, records);
        self.lost = self.lost.saturating_add(count(records.get(written..).unwrap_or_default()));
    }
}

/// Writes as many whole records as possible. Returns the length of these. A record that was written in part is
/// removed.
fn write_whole(file: &OwnedFd, records: &[u8]) -> usize {
    let mut written = 0;
    while let Some(rest) = records.get(written..).filter(|rest| !rest.is_empty()) {
        match rustix::io::write(file, rest) {
            Ok(0) => break,
            Ok(more) => written += more,
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    if written == records.len() {
        return written;
    }
    let done = records.get(..written).unwrap_or_default();
    let whole = memchr::memrchr(b'\n', done).map_or(0, |end| end + 1);
    let torn = u64::try_from(written - whole).unwrap_or(0);
    if torn > 0 {
        let size = rustix::fs::fstat(file).ok().and_then(|stat| u64::try_from(stat.st_size).ok());
        if let Some(size) = size.and_then(|size| size.checked_sub(torn)) {
            // If the file cannot be truncated, the incomplete record remains. The marker that follows reports it.
            let _stays = rustix::fs::ftruncate(file, size);
        }
    }
    whole
}

/// Returns the number of records.
pub(crate) fn count(records: &[u8]) -> u32 {
    u32::try_from(memchr::memchr_iter(b'\n', records).count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_log_goes_to_its_file_and_a_flush_is_acknowledged_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str| OwnedFd::from(std::fs::File::create(folder.path().join(name)).unwrap());
        let text = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let (ours, theirs) = sys::socket::pair().unwrap();
        let mut files = BTreeMap::new();
        let mut send = |packet: Packet<'_>, file| handle(packet, file, &mut files, &theirs);
        assert!(send(Packet::Records { log: 1, lost: 0, records: b"a\n" }, Some(open("a"))));
        assert!(send(Packet::Records { log: 2, lost: 0, records: b"b\n" }, Some(open("b"))));
        assert!(send(Packet::Records { log: 1, lost: 0, records: b"c\n" }, None));
        assert!(send(Packet::Records { log: 1, lost: 0, records: b"" }, Some(open("new"))));
        assert!(send(Packet::Records { log: 1, lost: 2, records: b"d\n" }, None));
        assert!(send(Packet::Close { log: 2 }, None));
        assert!(send(Packet::Records { log: 2, lost: 0, records: b"of nobody\n" }, None));
        assert!(send(Packet::Flush(7), None));
        assert_eq!((text("a"), text("b")), ("a\nc\n".to_owned(), "b\n".to_owned()));
        let new = text("new");
        assert!(
            new.contains("[berth: 2 log records could not be written]\n") && new.ends_with("\nd\n"),
            "{new}"
        );
        let mut number = [0; 4];
        assert_eq!(sys::socket::receive(ours.as_fd(), &mut number).unwrap().0, 4);
        assert_eq!(u32::from_le_bytes(number), 7);
        drop(ours);
        assert!(!handle(Packet::Flush(8), None, &mut BTreeMap::new(), &theirs), "the keeper is gone");
    }

    #[test]
    fn an_exit_record_is_written_to_the_containers_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let (_ours, theirs) = sys::socket::pair().unwrap();
        for record in [&b"first"[..], b"second"] {
            assert!(handle(Packet::Exit { folder: path, record }, None, &mut BTreeMap::new(), &theirs));
        }
        let names: Vec<_> =
            std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["exit.json"]);
        assert_eq!(std::fs::read(folder.path().join("exit.json")).unwrap(), b"second");
        // The folder may have been removed. The writer continues.
        assert!(handle(
            Packet::Exit { folder: "/nonexistent", record: b"" },
            None,
            &mut BTreeMap::new(),
            &theirs
        ));
    }

    #[test]
    fn records_that_a_full_disk_rejects_are_counted() {
        let fd = OwnedFd::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
        let mut file = File { fd, lost: 0 };
        file.write(b"1\n2\n");
        file.write(b"3\n");
        assert_eq!(file.lost, 3);
    }

    proptest! {
        #[test]
        fn packets_are_decoded_as_encoded(log: u32, lost: u32, folder in "\\PC{0,40}", bytes: Vec<u8>) {
            let records = Packet::Records { log, lost, records: &bytes };
            let exit = Packet::Exit { folder: &folder, record: &bytes };
            for packet in [records, exit, Packet::Close { log }, Packet::Flush(lost)] {
                let bytes = packet.encode();
                prop_assert_eq!(Packet::decode(&bytes), Some(packet));
            }
        }

        #[test]
        fn no_bytes_break_the_decoder(bytes: Vec<u8>) {
            let _packet = Packet::decode(&bytes);
        }
    }
}
