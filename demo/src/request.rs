//! The head of an HTTP/1.1 message: read with limits, and split into the parts of its first line.

use std::io::{self, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// The maximum length of a head.
const MAX_HEAD: usize = 8 << 10;

/// A head including its empty line, and the part of the body that was read with it.
pub(crate) struct Head {
    pub(crate) head: Vec<u8>,
    pub(crate) rest: Vec<u8>,
}

/// Reads until the empty line. Returns `None` if the head is too long.
///
/// `patience` limits the whole head, so that a client that sends single bytes cannot block the thread for longer.
pub(crate) fn read_head(stream: &mut TcpStream, patience: Duration) -> io::Result<Option<Head>> {
    let deadline = Instant::now() + patience;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        if let Some(end) = end_of_head(&head) {
            let rest = head.split_off(end);
            return Ok(Some(Head { head, rest }));
        }
        if head.len() > MAX_HEAD {
            return Ok(None);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => head.extend(buffer.iter().take(length)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// Returns the three parts of the first line, if it is HTTP/1: `GET / HTTP/1.1`, `HTTP/1.1 200 OK`.
pub(crate) fn first_line(head: &[u8]) -> Option<[&str; 3]> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let mut parts = std::str::from_utf8(line).ok()?.splitn(3, ' ');
    let parts = [parts.next()?, parts.next()?, parts.next().unwrap_or_default()];
    parts.iter().any(|part| part.starts_with("HTTP/1.")).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_line_of_http_1_has_three_parts() {
        assert_eq!(first_line(b"GET /env HTTP/1.1\r\nHost: x\r\n\r\n"), Some(["GET", "/env", "HTTP/1.1"]));
        assert_eq!(first_line(b"HTTP/1.1 404 Not Found\r\n\r\n"), Some(["HTTP/1.1", "404", "Not Found"]));
        assert_eq!(
            first_line(b"HTTP/1.0 200\r\n\r\n"),
            Some(["HTTP/1.0", "200", ""]),
            "the phrase is optional"
        );
        for garbage in
            [&b"\r\n\r\n"[..], b"GET\r\n\r\n", b"GET / HTTP/2\r\n\r\n", b"\xff\xfe \x00 HTTP/1.1\r\n\r\n"]
        {
            assert_eq!(first_line(garbage), None, "{garbage:?}");
        }
    }

    #[test]
    fn the_head_ends_at_the_first_empty_line() {
        assert_eq!(end_of_head(b"a\r\n\r\nb\r\n\r\n"), Some(5));
        assert_eq!(end_of_head(b"a\r\nb\r\n"), None);
    }
}
