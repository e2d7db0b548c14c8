//! The records of a log file (Kubernetes, "CRI: Log Management for Container Stdout/Stderr Streams"): time, stream, tags
//! and text. The tag `P` marks a part of a line; the last part of a line has the tag `F`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

use jiff::Timestamp;

/// The longest part of a line that is kept until the line is complete. A longer line is written in pieces.
const MAX_LINE: usize = 1 << 20;

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) struct LogRecord<'a> {
    pub(in crate::cli) time: &'a str,
    pub(in crate::cli) is_stderr: bool,
    /// Whether it ends a line.
    pub(in crate::cli) is_full: bool,
    pub(in crate::cli) text: &'a [u8],
}

impl<'a> LogRecord<'a> {
    /// Parses a line of the file, without its line break. Tags after the first are for future extensions.
    pub(in crate::cli) fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(fields.next()?).ok()?;
        let is_stderr = match fields.next()? {
            b"stdout" => false,
            b"stderr" => true,
            _ => return None,
        };
        let is_full = match fields.next()?.split(|byte| *byte == b':').next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Self { time, is_stderr, is_full, text: fields.next().unwrap_or_default() })
    }
}

/// Joins the parts of lines of each stream, and writes complete lines.
#[derive(Debug)]
pub(in crate::cli) struct Joiner<W> {
    sink: W,
    since: Option<Timestamp>,
    timestamps: bool,
    parts: [Vec<u8>; 2],
}

impl<W: Write> Joiner<W> {
    pub(in crate::cli) fn new(sink: W, since: Option<Timestamp>, timestamps: bool) -> Self {
        Self { sink, since, timestamps, parts: Default::default() }
    }

    /// Takes a line of the file. A line that is not a record is written as it is.
    pub(in crate::cli) fn take(&mut self, line: &[u8]) -> io::Result<()> {
        let Some(record) = LogRecord::parse(line) else {
            self.sink.write_all(line)?;
            return self.sink.write_all(b"\n");
        };
        if self.since.is_some_and(|since| record.time.parse::<Timestamp>().is_ok_and(|time| time < since)) {
            return Ok(());
        }
        let [out, err] = &mut self.parts;
        let kept = if record.is_stderr { err } else { out };
        if kept.is_empty() && self.timestamps {
            kept.extend_from_slice(record.time.as_bytes());
            kept.push(b' ');
        }
        kept.extend_from_slice(record.text);
        if record.is_full {
            kept.push(b'\n');
        }
        if record.is_full || kept.len() > MAX_LINE {
            self.sink.write_all(kept)?;
            kept.clear();
        }
        Ok(())
    }

    pub(in crate::cli) fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }

    /// Writes lines without an end, and returns the sink.
    pub(in crate::cli) fn finish(mut self) -> io::Result<()> {
        self.write_rest()
    }

    fn write_rest(&mut self) -> io::Result<()> {
        for kept in &mut self.parts {
            if !kept.is_empty() {
                self.sink.write_all(kept)?;
                self.sink.write_all(b"\n")?;
                kept.clear();
            }
        }
        self.sink.flush()
    }
}

/// Reads a log file up to its current end, again and again.
#[derive(Debug)]
pub(in crate::cli) struct LogReader {
    file: BufReader<File>,
    /// The start of a record whose rest is not written yet.
    rest: Vec<u8>,
}

impl LogReader {
    pub(in crate::cli) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: BufReader::with_capacity(64 << 10, File::open(path)?), rest: Vec::new() })
    }

    /// The file. Its position may be changed only before the first read.
    pub(in crate::cli) fn file(&mut self) -> &mut File {
        self.file.get_mut()
    }

    /// Passes on all records up to the current end.
    pub(in crate::cli) fn read(&mut self, joiner: &mut Joiner<impl Write>) -> io::Result<()> {
        loop {
            self.file.read_until(b'\n', &mut self.rest)?;
            if self.rest.last() != Some(&b'\n') {
                return joiner.flush();
            }
            self.rest.pop();
            joiner.take(&self.rest)?;
            self.rest.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIME: &str = "2026-11-27T16:00:00.123456789Z";

    fn joined(lines: &[&str], since: Option<&str>, timestamps: bool) -> String {
        let mut sink = Vec::new();
        let mut joiner = Joiner::new(&mut sink, since.map(|text| text.parse().unwrap()), timestamps);
        lines.iter().for_each(|line| joiner.take(line.as_bytes()).unwrap());
        joiner.finish().unwrap();
        String::from_utf8(sink).unwrap()
    }

    #[test]
    fn parts_of_lines_are_joined_by_stream() {
        let lines = [
            "2026-11-27T16:00:00Z stdout P one ",
            "2026-11-27T16:00:01Z stderr F error",
            "2026-11-27T16:00:02Z stdout P  two",
            "2026-11-27T16:00:03Z stdout F ",
            "2026-11-27T16:00:04Z stdout F:future  indented",
            "not a record",
            "2026-11-27T16:00:05Z stdout P unfinished",
        ];
        assert_eq!(joined(&lines, None, false), "error\none  two\n indented\nnot a record\nunfinished\n");
        assert_eq!(
            joined(&lines[..4], None, true),
            "2026-11-27T16:00:01Z error\n2026-11-27T16:00:00Z one  two\n"
        );
        assert_eq!(
            joined(&lines, Some("2026-11-27T16:00:04Z"), false),
            " indented\nnot a record\nunfinished\n"
        );
    }

    #[test]
    fn only_records_of_the_specification_are_records() {
        let full = format!("{TIME} stderr F a b");
        let record = LogRecord::parse(full.as_bytes()).unwrap();
        assert_eq!((record.is_stderr, record.is_full, record.text), (true, true, &b"a b"[..]));
        for line in ["", TIME, &format!("{TIME} stdin F x"), &format!("{TIME} stdout X x"), "\u{7f}"] {
            assert_eq!(LogRecord::parse(line.as_bytes()), None, "{line}");
        }
        let empty = format!("{TIME} stdout F");
        assert_eq!(LogRecord::parse(empty.as_bytes()).unwrap().text, b"");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(lines in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20)) {
            let mut joiner = Joiner::new(io::sink(), None, false);
            for line in &lines {
                joiner.take(line).unwrap();
            }
            joiner.finish().unwrap();
        }

        #[test]
        fn lines_are_the_same_however_they_are_split(
            lines in prop::collection::vec("[a-z ]{0,20}", 0..10),
            length in 1..7_usize,
        ) {
            let mut sink = Vec::new();
            let mut joiner = Joiner::new(&mut sink, None, false);
            for line in &lines {
                let parts: Vec<&[u8]> = line.as_bytes().chunks(length).collect();
                for part in &parts {
                    joiner.take(&[TIME.as_bytes(), b" stdout P ", part].concat()).unwrap();
                }
                joiner.take(format!("{TIME} stdout F ").as_bytes()).unwrap();
            }
            joiner.finish().unwrap();
            let expected: String = lines.iter().map(|line| format!("{line}\n")).collect();
            prop_assert_eq!(String::from_utf8(sink).unwrap(), expected);
        }
    }
}
