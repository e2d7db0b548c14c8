//! The frames of a zstd stream (RFC 8878). Each header is parsed before the decoder receives it, since it
//! specifies how much memory decoding takes.

use std::io::{self, BufRead, Read};

use zstd::stream::raw::{DParameter, Decoder, Operation as _};

use super::windows::{LargeWindow, SMALL_WINDOW};

/// The longest header (RFC 8878, 3.1.1): magic number, descriptor, window, dictionary, size of the content.
const MAX_HEADER: usize = 18;
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The last three bytes of a skippable frame's magic number (3.1.2). The first byte is 0x50 to 0x5f.
const SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// The largest window of the library. The limit for a frame is checked by its header.
const MAX_WINDOW_LOG: u32 = 31;

/// A function that grants a large window of this many bytes. It may wait.
pub(super) type RequestWindow<'a> = dyn Fn(u64) -> io::Result<Option<LargeWindow>> + 'a;

/// A reader of the decompressed content of `source`.
pub(super) struct Frames<'a, R> {
    source: R,
    decoder: Decoder<'static>,
    /// Bytes of `source` that were read to parse a header, and how many of them were decoded.
    head: Vec<u8>,
    used: usize,
    within: bool,
    request_window: Box<RequestWindow<'a>>,
    /// The decoder keeps its memory between frames. A window is requested once, and again if a frame has a
    /// larger one.
    window: u64,
    large: Option<LargeWindow>,
}

/// A parsed header.
#[derive(Debug, PartialEq, Eq)]
enum Header {
    /// A frame with this window, in bytes.
    Frame(u64),
    /// A frame to skip, with its length including the header.
    Skippable(u64),
}

/// Returns whether a stream starts with a frame.
pub(super) fn is_frame(start: &[u8]) -> bool {
    start.starts_with(&MAGIC) || is_skippable(start)
}

fn is_skippable(start: &[u8]) -> bool {
    start.get(1..4) == Some(SKIPPABLE.as_slice()) && start.first().is_some_and(|byte| byte >> 4 == 5)
}

impl<'a, R: BufRead> Frames<'a, R> {
    pub(super) fn new(source: R, request_window: Box<RequestWindow<'a>>) -> io::Result<Self> {
        let (decoder, window) = (new_decoder()?, SMALL_WINDOW);
        Ok(Self {
            source,
            decoder,
            head: Vec::new(),
            used: 0,
            within: false,
            request_window,
            window,
            large: None,
        })
    }

    /// Parses the next header. Returns false at the end of the stream.
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            self.read_head()?;
            let head = self.head.get(self.used..).unwrap_or_default();
            if head.is_empty() {
                return Ok(false);
            }
            match header(head) {
                Some(Header::Frame(window)) => {
                    self.check(window)?;
                    self.within = true;
                    return Ok(true);
                }
                Some(Header::Skippable(length)) => self.skip(length)?,
                None => return Err(io::Error::new(io::ErrorKind::InvalidData, "not a zstd frame")),
            }
        }
    }

    /// Reads as many bytes as the longest header.
    fn read_head(&mut self) -> io::Result<()> {
        self.head.drain(..self.used.min(self.head.len()));
        self.used = 0;
        while self.head.len() < MAX_HEADER {
            let missing = MAX_HEADER - self.head.len();
            let available = self.source.fill_buf()?;
            let available = available.get(..missing).unwrap_or(available);
            if available.is_empty() {
                break;
            }
            self.head.extend_from_slice(available);
            let count = available.len();
            self.source.consume(count);
        }
        Ok(())
    }

    fn check(&mut self, window: u64) -> io::Result<()> {
        if window > self.window {
            if self.large.take().is_some() {
                // The old window is released, with its memory, before a larger one is requested.
                self.decoder = new_decoder()?;
            }
            self.large = (self.request_window)(window)?;
            self.window = window;
        }
        Ok(())
    }

    fn skip(&mut self, mut length: u64) -> io::Result<()> {
        let here = self.head.len() - self.used;
        let step = usize::try_from(length).unwrap_or(usize::MAX).min(here);
        self.used += step;
        length -= count(step);
        while length > 0 {
            let available = self.source.fill_buf()?.len();
            if available == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = usize::try_from(length).unwrap_or(usize::MAX).min(available);
            self.source.consume(step);
            length -= count(step);
        }
        Ok(())
    }
}

fn new_decoder() -> io::Result<Decoder<'static>> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))?;
    Ok(decoder)
}

impl<R: BufRead> Read for Frames<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.within && !self.begin()? {
                return Ok(0);
            }
            let head = self.head.get(self.used..).unwrap_or_default();
            let from_head = !head.is_empty();
            let input = if from_head { head } else { self.source.fill_buf()? };
            let is_end = input.is_empty();
            let status = self.decoder.run_on_buffers(input, buffer)?;
            if from_head {
                self.used += status.bytes_read;
            } else {
                self.source.consume(status.bytes_read);
            }
            // The frame ends when the decoder expects no more input.
            self.within = status.remaining > 0;
            if status.bytes_written > 0 {
                return Ok(status.bytes_written);
            }
            if is_end && self.within {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the last frame is truncated"));
            }
        }
    }
}

/// Parses a header (RFC 8878, 3.1.1.1 and 3.1.2). `None` if it is invalid or truncated.
fn header(bytes: &[u8]) -> Option<Header> {
    let number = |at: usize, length: usize| {
        let bytes = bytes.get(at..at + length)?;
        Some(bytes.iter().rev().fold(0, |value: u64, byte| (value << 8) | u64::from(*byte)))
    };
    if is_skippable(bytes) {
        return Some(Header::Skippable(number(4, 4)? + 8));
    }
    if !bytes.starts_with(&MAGIC) {
        return None;
    }
    let descriptor = *bytes.get(4)?;
    let is_single_segment = descriptor & 0x20 != 0;
    if !is_single_segment {
        let window = *bytes.get(5)?;
        let base = 1_u64 << (10 + (window >> 3));
        return Some(Header::Frame(base + base / 8 * u64::from(window & 7)));
    }
    // In a single segment, the window is the whole content.
    let dictionary = [0, 1, 2, 4].get(usize::from(descriptor & 3))?;
    let content = match descriptor >> 6 {
        0 => number(5 + dictionary, 1)?,
        1 => number(5 + dictionary, 2)? + 256,
        2 => number(5 + dictionary, 4)?,
        _ => number(5 + dictionary, 8)?,
    };
    Some(Header::Frame(content))
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::super::windows::check_alone;
    use super::*;

    /// Returns its bytes one by one, as from a slow network.
    struct Drops<'a>(&'a [u8]);

    impl Read for Drops<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let mut available = self.fill_buf()?;
            let read = available.read(buffer)?;
            self.consume(read);
            Ok(read)
        }
    }

    impl BufRead for Drops<'_> {
        fn fill_buf(&mut self) -> io::Result<&[u8]> {
            Ok(&self.0[..self.0.len().min(1)])
        }

        fn consume(&mut self, amount: usize) {
            self.0 = &self.0[amount..];
        }
    }

    fn decode(source: impl BufRead, requests: &Cell<usize>) -> io::Result<Vec<u8>> {
        let request_window = |bytes| {
            requests.set(requests.get() + 1);
            check_alone(bytes).map(|()| None)
        };
        let mut content = Vec::new();
        Frames::new(source, Box::new(request_window))?.read_to_end(&mut content)?;
        Ok(content)
    }

    /// Returns a frame without a content size, with a window of 2 to the power of `log`.
    fn frame(content: &[u8], log: u32) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn frames_of_all_kinds_are_one_stream() {
        let content: Vec<u8> = (0..300_000_u32).flat_map(|number| (number / 7).to_le_bytes()).collect();
        let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let long = [&[0x50, 0x2a, 0x4d, 0x18, 100, 0, 0, 0][..], &[7; 100]].concat();
        let whole = zstd::encode_all(content.as_slice(), 3).unwrap();
        let empty = zstd::encode_all(&b""[..], 1).unwrap();
        let small = zstd::bulk::compress(b"single segment", 1).unwrap();
        let parts = [&skippable, &whole, &empty, &small, &long, &frame(b"end", 20), &skippable];
        let stream: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let expected = [content.as_slice(), b"single segment", b"end"].concat();
        let requests = Cell::new(0);
        assert!(decode(stream.as_slice(), &requests).unwrap() == expected);
        assert!(decode(Drops(&stream), &requests).unwrap() == expected);
        assert_eq!(requests.get(), 0);
        for cut in [stream.len() - 1, stream.len() - 4, stream.len() - skippable.len() - 2, 3, 9] {
            assert!(decode(&stream[..cut], &requests).is_err(), "{cut}");
        }
        assert!(
            decode([whole.as_slice(), b"xyz"].concat().as_slice(), &requests).is_err(),
            "trailing bytes are not a frame"
        );
    }

    #[test]
    fn a_large_window_is_requested_once_and_a_huge_one_is_rejected() {
        let content = vec![1; 100_000];
        for (logs, times) in [([20, 23], 0), ([20, 24], 1), ([26, 25], 1), ([27, 27], 1), ([24, 27], 2)] {
            let requests = Cell::new(0);
            let stream: Vec<u8> = logs.iter().flat_map(|log| frame(&content, *log)).collect();
            assert_eq!(decode(stream.as_slice(), &requests).unwrap().len(), 200_000);
            assert_eq!(requests.get(), times, "{logs:?}");
        }
        let requests = Cell::new(0);
        let error = decode(frame(&content, 28).as_slice(), &requests).unwrap_err();
        assert!(error.to_string().contains("268435456 bytes, the limit is 134217728"), "{error}");
    }

    #[test]
    fn headers_are_parsed_as_specified() {
        let of = |rest: &[u8]| header(&[&MAGIC, rest].concat());
        assert_eq!(of(&[0, 0]), Some(Header::Frame(1024)));
        assert_eq!(of(&[0, 0x6f]), Some(Header::Frame((1 << 23) + 7 * (1 << 20))));
        assert_eq!(of(&[0x20, 200]), Some(Header::Frame(200)));
        assert_eq!(of(&[0x61, 9, 1, 1]), Some(Header::Frame(257 + 256)));
        assert_eq!(of(&[0xa0, 0, 0, 0, 8]), Some(Header::Frame(8 << 24)));
        assert_eq!(of(&[0xe3, 1, 2, 3, 4, 0, 0, 0, 0, 1, 0, 0, 0]), Some(Header::Frame(1 << 32)));
        assert_eq!(of(&[0xe0, 0]), None);
        assert_eq!(header(&[0x5f, 0x2a, 0x4d, 0x18, 1, 0, 0, 0]), Some(Header::Skippable(9)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_rejected_as_by_the_library(
            mut bytes in proptest::collection::vec(any::<u8>(), 1..200), at in 0usize..200, byte: u8, sound: bool,
        ) {
            if sound {
                bytes = [zstd::encode_all(bytes.as_slice(), 1).unwrap(), frame(&bytes, 20)].concat();
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            let ours = decode(bytes.as_slice(), &Cell::new(0));
            let theirs = zstd::stream::read::Decoder::with_buffer(bytes.as_slice()).and_then(|mut decoder| {
                decoder.window_log_max(27)?;
                let mut content = Vec::new();
                decoder.read_to_end(&mut content).map(|_| content)
            });
            prop_assert_eq!(ours.ok(), theirs.ok());
        }
    }
}
