use bytes::BytesMut;
use loona_hpack::{Decoder, Encoder};
use proptest::prelude::*;
use tokio::io::ReadBuf;

use super::frame::{CONTINUATION, END_HEADERS, FrameHeader, GOAWAY, HEADERS, PADDED, PRIORITY, RST_STREAM};
use super::requests::Requests;
use super::resets::{Reset, Resets};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const END_STREAM: u8 = 1;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = FrameHeader { length: payload.len(), kind, flags, stream }.bytes().to_vec();
    frame.extend_from_slice(payload);
    frame
}

/// Returns what the server receives if the client sends these bytes in pieces of this length.
fn passed_on(bytes: &[u8], piece: usize) -> Vec<u8> {
    let mut requests = Requests::new(None);
    let mut all = Vec::new();
    let mut drain = |requests: &mut Requests| {
        let mut space = [0; 100];
        let mut buffer = ReadBuf::new(&mut space);
        while requests.read(&mut buffer) {
            all.extend_from_slice(buffer.filled());
            buffer.clear();
        }
    };
    for piece in bytes.chunks(piece) {
        requests.receive(piece);
        drain(&mut requests);
    }
    requests.end();
    drain(&mut requests);
    all
}

/// Returns the frames after the preface.
fn frames(mut bytes: &[u8]) -> Vec<(FrameHeader, &[u8])> {
    let mut frames = Vec::new();
    bytes = bytes.strip_prefix(PREFACE).unwrap();
    while !bytes.is_empty() {
        let head = FrameHeader::read(bytes).unwrap();
        let (frame, rest) = bytes.split_at(9 + head.length);
        frames.push((head, &frame[9..]));
        bytes = rest;
    }
    frames
}

/// Decodes a block as a server without a table does.
fn fields(block: &[u8]) -> Vec<(String, String)> {
    let mut decoder = Decoder::new();
    decoder.set_max_allowed_table_size(0);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    decoder.decode(block).unwrap().into_iter().map(|(name, value)| (text(name), text(value))).collect()
}

fn request(authority: &str) -> Vec<(&[u8], &[u8])> {
    vec![
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/runtime.v1.RuntimeService/Version"),
        (b":authority", authority.as_bytes()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
}

#[test]
fn a_path_as_authority_is_replaced_even_if_it_is_in_the_table() {
    let mut encoder = Encoder::new();
    let mut sent = PREFACE.to_vec();
    let names = [
        "%2Frun%2Fberth%2Fberth.sock",
        "/run/berth/berth.sock",
        "unix:///run/berth/berth.sock",
        "localhost:80",
        "",
    ];
    // Each is sent twice: the second block refers to fields of the first by their index in the table.
    let twice: Vec<_> = names.iter().flat_map(|name| [*name, *name]).collect();
    for (number, authority) in (0..).zip(&twice) {
        sent.extend(frame(HEADERS, END_HEADERS, 2 * number + 1, &encoder.encode(request(authority))));
        sent.extend(frame(DATA, END_STREAM, 2 * number + 1, b"\0\0\0\0\0"));
    }
    for piece in [1, 7, 9, 64, sent.len()] {
        let got = passed_on(&sent, piece);
        let got = frames(&got);
        assert_eq!(got.len(), 2 * twice.len());
        for (pair, authority) in got.chunks(2).zip(&twice) {
            let expected = if *authority == "localhost:80" { *authority } else { "localhost" };
            let expected: Vec<_> = request(expected)
                .into_iter()
                .map(|(name, value)| {
                    (String::from_utf8_lossy(name).into_owned(), String::from_utf8_lossy(value).into_owned())
                })
                .collect();
            assert_eq!(fields(pair[0].1), expected);
            assert_eq!((pair[1].0.kind, pair[1].0.flags, pair[1].1), (DATA, END_STREAM, &b"\0\0\0\0\0"[..]));
        }
    }
}

#[test]
fn a_block_in_many_frames_with_padding_and_priority_is_one_request() {
    let long = "x".repeat(40_000);
    let mut list = request("/run/berth/berth.sock");
    list.push((b"long", long.as_bytes()));
    let block = Encoder::new().encode(list);
    let (first, rest) = block.split_at(10);
    let mut payload = vec![3];
    payload.extend_from_slice(&[0, 0, 0, 0, 15]);
    payload.extend_from_slice(first);
    payload.extend_from_slice(&[0; 3]);
    let mut sent = PREFACE.to_vec();
    sent.extend(frame(HEADERS, PADDED | PRIORITY | END_STREAM, 1, &payload));
    let parts: Vec<_> = rest.chunks(15_000).collect();
    for (number, part) in parts.iter().enumerate() {
        let flags = if number + 1 == parts.len() { END_HEADERS } else { 0 };
        sent.extend(frame(CONTINUATION, flags, 1, part));
    }
    let got = passed_on(&sent, 1000);
    let got = frames(&got);
    assert_eq!((got[0].0.kind, got[0].0.flags), (HEADERS, PRIORITY | END_STREAM));
    assert_eq!(got[0].1[..5], [0, 0, 0, 0, 15]);
    let mut block = BytesMut::from(&got[0].1[5..]);
    for (head, part) in &got[1..] {
        assert_eq!((head.kind, head.stream), (CONTINUATION, 1));
        block.extend_from_slice(part);
    }
    assert!(got.last().unwrap().0.has(END_HEADERS));
    let fields = fields(&block);
    assert_eq!(fields[3], (":authority".to_owned(), "localhost".to_owned()));
    assert_eq!(fields.last().unwrap().1, long);
}

#[test]
fn invalid_header_blocks_are_passed_on_unchanged() {
    let block = Encoder::new().encode(request("localhost"));
    let interrupted = [frame(HEADERS, 0, 1, &block), frame(DATA, 0, 1, b"early")].concat();
    let cases = [
        // An index into an empty table.
        frame(HEADERS, END_HEADERS, 1, &[0xff, 0x7f]),
        // More padding than payload.
        frame(HEADERS, PADDED | END_HEADERS, 1, &[200, 0]),
        frame(HEADERS, PADDED | END_HEADERS, 1, &[]),
        frame(CONTINUATION, END_HEADERS, 1, &block),
        interrupted,
        // Longer than any frame that the server allows.
        frame(HEADERS, END_HEADERS, 1, &vec![0; 20_000]),
        // The client closes in the middle of a frame.
        frame(HEADERS, END_HEADERS, 1, &block)[..20].to_vec(),
    ];
    for case in cases {
        let sent = [PREFACE, &case[..]].concat();
        assert_eq!(passed_on(&sent, 5), sent);
    }
    assert_eq!(passed_on(b"GET / HTTP/1.1\r\n\r\n", 3), b"GET / HTTP/1.1\r\n\r\n");
}

#[test]
fn a_small_block_cannot_expand_without_limit() {
    let value = "v".repeat(4000);
    let field: [(&[u8], &[u8]); 1] = [(b"x", value.as_bytes())];
    let mut sent = PREFACE.to_vec();
    sent.extend(frame(HEADERS, END_HEADERS, 1, &Encoder::new().encode(field)));
    // The first field of the table, 16,000 times: 64 MB of fields.
    let bomb = frame(HEADERS, END_HEADERS, 3, &vec![0x80 | 62; 16_000]);
    sent.extend_from_slice(&bomb);
    let got = passed_on(&sent, 4096);
    assert!(got.ends_with(&bomb) && got.len() < 30_000);
}

#[test]
fn server_errors_are_found_in_writes_of_any_size() {
    let sent = [
        frame(4, 0, 0, &[0; 6]),
        frame(RST_STREAM, 0, 5, &1u32.to_be_bytes()),
        // A cancellation by the server, which is not a fault of the client.
        frame(RST_STREAM, 0, 7, &8u32.to_be_bytes()),
        frame(DATA, 0, 1, &[RST_STREAM; 50]),
        frame(GOAWAY, 0, 0, &[0, 0, 0, 5, 0, 0, 0, 9, b'w', b'h', b'y']),
        frame(RST_STREAM, 0, 9, &[0; 2]),
        frame(RST_STREAM, 0, 11, &7u32.to_be_bytes()),
    ]
    .concat();
    for piece in 1..40 {
        let mut resets = Resets::new(Some(1));
        let mut seen = Vec::new();
        for piece in sent.chunks(piece) {
            resets.watch(piece, |_, reset| seen.push(reset));
        }
        assert_eq!(
            seen,
            [
                Reset::Stream { stream: 5, code: "PROTOCOL_ERROR" },
                Reset::Connection { code: "COMPRESSION_ERROR" },
                Reset::Stream { stream: 11, code: "REFUSED_STREAM" },
            ]
        );
    }
}

proptest! {
    #[test]
    fn bytes_pass_independent_of_piece_size(bytes: Vec<u8>, piece in 1usize..50) {
        let sent = [PREFACE, &bytes[..]].concat();
        let whole = passed_on(&sent, sent.len());
        prop_assert_eq!(passed_on(&sent, piece), whole);
    }

    #[test]
    fn any_fields_reach_the_server(list: Vec<(Vec<u8>, Vec<u8>)>, piece in 1usize..50) {
        let block = Encoder::new().encode(list.iter().map(|(name, value)| (&name[..], &value[..])));
        let sent = [PREFACE, &frame(HEADERS, END_HEADERS, 1, &block)[..]].concat();
        prop_assume!(block.len() < 16_000);
        let got = passed_on(&sent, piece);
        let mut decoder = Decoder::new();
        prop_assert_eq!(decoder.decode(frames(&got)[0].1).unwrap(), list);
    }
}
