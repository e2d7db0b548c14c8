//! The end of a log file, without reading all of it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use super::record::{Joiner, LogRecord};

/// How much of the end is read at first. If it has too few lines, ten times as much is read.
const FIRST: u64 = 64 << 10;

/// Returns the offset of the last `lines` lines. Parts of a line count as one line.
pub(super) fn start(file: &mut File, lines: usize) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut window = FIRST;
    loop {
        let from = length.saturating_sub(window);
        let bytes = read_from(file, from, length)?;
        if let Some(place) = start_in(&bytes, from == 0, lines) {
            return Ok(from + u64::try_from(place).unwrap_or(0));
        }
        window = window.saturating_mul(10);
    }
}

/// Returns the last lines of a file as text of bounded length.
pub(in crate::cli) fn last_lines(path: &Path, lines: usize) -> io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    // A page of diagnosis shows a few lines. If they are longer than this, the first of them are left out.
    let from = length.saturating_sub(FIRST);
    let bytes = read_from(&mut file, from, length)?;
    let place = start_in(&bytes, true, lines).unwrap_or(0);
    let mut text = Vec::new();
    let mut joiner = Joiner::new(&mut text, None, true);
    let rest = bytes.get(place..).unwrap_or_default();
    for line in rest.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        // The first line can be the rest of a record.
        if from == 0 || LogRecord::parse(line).is_some() {
            joiner.take(line)?;
        }
    }
    joiner.finish()?;
    let text = String::from_utf8_lossy(&text);
    let shown: Vec<String> = text.lines().map(|line| berth_image::printable(line, 400)).collect();
    Ok(shown.into_iter().rev().take(lines).rev().collect())
}

fn read_from(file: &mut File, from: u64, to: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    // The file can grow or shrink meanwhile.
    file.take(to - from).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns the place of the last `lines` lines in the end of a file; none if the end has fewer. `is_whole` is true if
/// it is the whole file.
fn start_in(bytes: &[u8], is_whole: bool, lines: usize) -> Option<usize> {
    let mut starts = vec![0];
    let breaks = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    starts.extend(breaks.map(|(place, _)| place + 1));
    let (mut left, mut end) = (lines, bytes.len());
    for place in starts.into_iter().rev() {
        let line = bytes.get(place..end).unwrap_or_default();
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        // The record before this one ends another line.
        if !line.is_empty() && LogRecord::parse(line).is_none_or(|record| record.is_full) {
            if left == 0 {
                return Some(end);
            }
            left -= 1;
        }
        end = place;
    }
    is_whole.then_some(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(text: &str) -> (tempfile::NamedTempFile, File) {
        let mut made = tempfile::NamedTempFile::new().unwrap();
        made.write_all(text.as_bytes()).unwrap();
        let file = made.reopen().unwrap();
        (made, file)
    }

    #[test]
    fn parts_of_a_line_count_as_one_line() {
        let time = "2026-11-27T16:00:00Z";
        let records = [("F", "one"), ("P", "tw"), ("P", "o"), ("F", ""), ("F", "three")];
        let lines = records.map(|(tag, text)| format!("{time} stdout {tag} {text}\n"));
        let (made, mut file) = file(&lines.concat());
        let rest = |place: usize| u64::try_from(lines[..place].concat().len()).unwrap();
        for (count, expected) in [(0, 5), (1, 4), (2, 1), (3, 0), (9, 0)] {
            assert_eq!(start(&mut file, count).unwrap(), rest(expected), "{count}");
        }
        assert_eq!(last_lines(made.path(), 2).unwrap(), [format!("{time} two"), format!("{time} three")]);
    }

    #[test]
    fn the_end_of_a_large_file_is_found() {
        let text: String =
            (0..50_000).map(|number| format!("2026-11-27T16:00:00Z stdout F {number}\n")).collect();
        let (_made, mut file) = file(&text);
        for count in [1, 100, 20_000, 60_000] {
            let place = usize::try_from(start(&mut file, count).unwrap()).unwrap();
            assert_eq!(text[place..].lines().count(), count.min(50_000));
        }
    }

    #[test]
    fn an_empty_file_has_no_lines() {
        let (made, mut file) = file("");
        assert_eq!(start(&mut file, 3).unwrap(), 0);
        assert!(last_lines(made.path(), 3).unwrap().is_empty());
    }
}
