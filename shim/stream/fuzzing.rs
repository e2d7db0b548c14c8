//! Entry points for fuzzing: one function for each protocol that clients speak. The fuzz targets (`fuzz/`)
//! call them with any bytes; the tests here with the corpus in `fuzz/corpus`.

use super::resize;
use super::spdy::frame::{ControlFrame, HEAD, SpdyFrameHeader};
use super::spdy::headers::{Decompressor, HeaderWriter, MAX_BLOCK, StreamHeaders};
use super::websocket::frame::{self, MAX_CONTROL, Order, Part};

/// Parses a SPDY session, up to the first error.
///
/// # Panics
/// A parsed value is not encoded to the same bytes, or is larger than its limit.
pub fn spdy(bytes: &[u8]) {
    let mut rest = bytes;
    let mut decompressor = Decompressor::default();
    while let Some((head, after)) = rest.split_first_chunk::<HEAD>() {
        let Ok(head) = SpdyFrameHeader::parse(*head) else { return };
        let (SpdyFrameHeader::Data { length, .. } | SpdyFrameHeader::Control { length, .. }) = head;
        let Some((payload, after)) = after.split_at_checked(length) else { return };
        rest = after;
        let SpdyFrameHeader::Control { kind, flags, .. } = head else { continue };
        let Ok(control) = ControlFrame::parse(kind, flags, payload) else { return };
        assert_round_trip(&control);
        let (ControlFrame::SynStream { block, .. }
        | ControlFrame::SynReply { block, .. }
        | ControlFrame::Headers { block, .. }) = control
        else {
            continue;
        };
        let Ok(headers) = decompressor.block(block) else { return };
        let block = headers.encode();
        assert!(block.len() <= MAX_BLOCK, "{} bytes of headers", block.len());
        let again = Decompressor::default().block(&HeaderWriter::default().block(&headers));
        assert_eq!(again.as_ref(), Ok(&headers));
        assert_eq!(StreamHeaders::parse(&block), Ok(headers));
    }
}

fn assert_round_trip(control: &ControlFrame<'_>) {
    let mut frame = Vec::new();
    control.encode(&mut frame);
    let Some((head, payload)) = frame.split_first_chunk() else { return };
    let again = match SpdyFrameHeader::parse(*head) {
        Ok(SpdyFrameHeader::Control { kind, flags, .. }) => ControlFrame::parse(kind, flags, payload).ok(),
        _ => None,
    };
    assert_eq!(again.as_ref(), Some(control));
}

/// Parses the frames of a WebSocket connection, up to the first error, and their payloads as terminal sizes.
///
/// # Panics
/// A head is longer than its input, or a control frame is larger than its limit.
pub fn websocket(bytes: &[u8]) {
    let mut rest = bytes;
    let mut order = Order::default();
    while let Ok(Some((head, length))) = frame::WebSocketFrameHeader::parse(rest) {
        let (_, after) = rest.split_at(length);
        let Ok(part) = order.next(&head) else { return };
        let Some((payload, after)) =
            usize::try_from(head.length).ok().and_then(|length| after.split_at_checked(length))
        else {
            return;
        };
        rest = after;
        let mut payload = payload.to_vec();
        frame::unmask(&mut { head.mask }, &mut payload);
        match part {
            Part::Message { .. } => drop(resize::sizes(&mut bytes::BytesMut::from(&payload[..]))),
            Part::Close | Part::Ping | Part::Pong => assert!(payload.len() <= MAX_CONTROL),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let corpus: Vec<_> = entries.map(|path| std::fs::read(path).unwrap()).collect();
        assert!(!corpus.is_empty(), "{}", folder.display());
        corpus
    }

    #[test]
    fn the_corpus_does_not_break_the_parsers() {
        corpus("spdy").iter().for_each(|bytes| spdy(bytes));
        corpus("websocket").iter().for_each(|bytes| websocket(bytes));
    }

    /// An input of the corpus with some bytes changed, possibly truncated.
    fn mutated(target: &str) -> impl Strategy<Value = Vec<u8>> {
        let changes = prop::collection::vec((any::<Index>(), any::<u8>()), 0..6);
        (prop::sample::select(corpus(target)), changes, any::<Index>(), any::<bool>()).prop_map(
            |(mut bytes, changes, cut, whole)| {
                for (place, byte) in changes {
                    let place = place.index(bytes.len());
                    bytes[place] = byte;
                }
                bytes.truncate(if whole { bytes.len() } else { cut.index(bytes.len()) });
                bytes
            },
        )
    }

    proptest! {
        #[test]
        fn mutated_spdy_does_not_break_the_parsers(bytes in mutated("spdy")) {
            spdy(&bytes);
        }

        #[test]
        fn mutated_websocket_does_not_break_the_parsers(bytes in mutated("websocket")) {
            websocket(&bytes);
        }
    }
}
