//! Converts output to lines of a CRI log: `TIME STREAM TAG LINE`. The tag is `F` for a whole line (or the last
//! part of one), and `P` for a part without a line break. Readers do not add a line break after a part.

use crate::stamp::Stamp;

/// The maximum length of a part of a line, as in containerd (`max_container_log_line_size`).
pub(crate) const LONGEST: usize = 16 << 10;

/// The stream of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Stdout => b" stdout ",
            Self::Stderr => b" stderr ",
        }
    }
}

/// Splits the output of one stream into lines. Stores an incomplete line.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: Stream,
    open: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, open: Vec::new() }
    }

    /// Appends the lines that `bytes` completes to `log`, all with the same time stamp.
    pub(crate) fn push(&mut self, bytes: &[u8], stamp: &Stamp, log: &mut Vec<u8>) {
        let mut rest = bytes;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (line, after) = rest.split_at(end);
            if self.open.is_empty() {
                self.line(line, stamp, log);
            } else {
                self.open.extend_from_slice(line);
                let open = std::mem::take(&mut self.open);
                self.line(&open, stamp, log);
            }
            rest = after.get(1..).unwrap_or_default();
        }
        if !rest.is_empty() {
            self.open.extend_from_slice(rest);
            // The last part is kept: if the line ends there, it is a whole one.
            while self.open.len() > LONGEST {
                let after = self.open.split_off(LONGEST);
                let part = std::mem::replace(&mut self.open, after);
                self.record(b"P ", &part, stamp, log);
            }
        }
    }

    /// Appends the rest at the end of the stream. As in containerd, a last line without a line break is a part, so
    /// that readers get exactly the bytes that were written.
    pub(crate) fn finish(&mut self, stamp: &Stamp, log: &mut Vec<u8>) {
        let open = std::mem::take(&mut self.open);
        for part in open.chunks(LONGEST) {
            self.record(b"P ", part, stamp, log);
        }
    }

    fn line(&self, line: &[u8], stamp: &Stamp, log: &mut Vec<u8>) {
        let mut rest = line;
        while let Some((part, after)) = rest.split_at_checked(LONGEST).filter(|(_, after)| !after.is_empty())
        {
            self.record(b"P ", part, stamp, log);
            rest = after;
        }
        self.record(b"F ", rest, stamp, log);
    }

    fn record(&self, tag: &[u8], part: &[u8], stamp: &Stamp, log: &mut Vec<u8>) {
        log.extend_from_slice(stamp.as_bytes());
        log.extend_from_slice(self.stream.name());
        log.extend_from_slice(tag);
        log.extend_from_slice(part);
        log.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(log: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut records = Vec::new();
        for record in log.split_inclusive(|byte| *byte == b'\n') {
            let record = record.strip_suffix(b"\n").expect("every record ends with a newline");
            let mut fields = record.splitn(4, |byte| *byte == b' ');
            assert_eq!(fields.next().unwrap().len(), crate::stamp::LENGTH);
            assert_eq!(fields.next().unwrap(), b"stdout");
            let tag = String::from_utf8(fields.next().unwrap().to_vec()).unwrap();
            records.push((tag, fields.next().unwrap().to_vec()));
        }
        records
    }

    fn log_of(pieces: &[&[u8]]) -> Vec<(String, Vec<u8>)> {
        let (mut lines, mut log) = (Lines::new(Stream::Stdout), Vec::new());
        for piece in pieces {
            lines.push(piece, &Stamp::of(0), &mut log);
        }
        lines.finish(&Stamp::of(0), &mut log);
        parse(&log)
    }

    fn full(line: &[u8]) -> (String, Vec<u8>) {
        ("F".to_owned(), line.to_vec())
    }

    #[test]
    fn lines_are_whole_for_any_split_of_the_output() {
        assert_eq!(log_of(&[b"a\nb\n"]), [full(b"a"), full(b"b")]);
        let last = ("P".to_owned(), b"c".to_vec());
        assert_eq!(log_of(&[b"a", b"b\n", b"\n", b"c"]), [full(b"ab"), full(b""), last]);
        assert!(log_of(&[]).is_empty());
    }

    #[test]
    fn a_long_line_is_split_into_parts() {
        let long = vec![b'x'; LONGEST * 2];
        let parts = log_of(&[&long, b"\n"]);
        assert_eq!(
            parts.iter().map(|(tag, part)| (tag.as_str(), part.len())).collect::<Vec<_>>(),
            [("P", LONGEST), ("F", LONGEST)]
        );
    }

    proptest! {
        // Lines of many parts are long: more cases would be slow.
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn nothing_is_lost_or_added(
            pieces in proptest::collection::vec(proptest::collection::vec(prop_oneof![9 => Just(b'x'), 1 => Just(b'\n')], 0..40_000), 0..6)
        ) {
            let all = pieces.concat();
            let borrowed: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let mut joined = Vec::new();
            for (tag, part) in log_of(&borrowed) {
                prop_assert!(part.len() <= LONGEST);
                joined.extend_from_slice(&part);
                if tag == "F" {
                    joined.push(b'\n');
                }
            }
            prop_assert_eq!(joined, all);
        }
    }
}
