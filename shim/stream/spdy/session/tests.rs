//! Tests of a session against a client that sends single frames.

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::super::frame::{
    ControlFrame, GoAwayStatus, HEAD, INITIAL_WINDOW, ResetStatus, SpdyFrameHeader, StreamId,
};
use super::super::headers::{HeaderWriter, StreamHeaders};
use super::*;

/// A frame that the client receives.
#[derive(Debug, PartialEq, Eq)]
enum Received {
    Data(u32, bool, Vec<u8>),
    Reply(u32),
    Reset(u32, ResetStatus),
    Window(u32, u32),
    Ping(u32),
    GoAway(u32, GoAwayStatus),
}

struct Client {
    io: DuplexStream,
    headers: HeaderWriter,
}

impl Client {
    async fn control(&mut self, control: ControlFrame<'_>) {
        let mut frame = Vec::new();
        control.encode(&mut frame);
        self.io.write_all(&frame).await.unwrap();
    }

    async fn open(&mut self, stream: u32, pairs: &[(&str, &str)]) {
        let block = self.headers.block(&StreamHeaders::from_pairs(pairs.iter().copied()));
        self.control(ControlFrame::SynStream { stream: StreamId::new(stream), fin: false, block: &block })
            .await;
    }

    async fn data(&mut self, stream: u32, fin: bool, bytes: &[u8]) {
        let head = SpdyFrameHeader::data(StreamId::new(stream), fin, u32::try_from(bytes.len()).unwrap());
        self.io.write_all(&head).await.unwrap();
        self.io.write_all(bytes).await.unwrap();
    }

    /// Returns the next frame; none at the end.
    async fn next(&mut self) -> Option<Received> {
        let mut head = [0; HEAD];
        self.io.read_exact(&mut head).await.ok()?;
        let (kind, flags, length) = match SpdyFrameHeader::parse(head).unwrap() {
            SpdyFrameHeader::Data { stream, fin, length } => {
                let mut bytes = vec![0; length];
                self.io.read_exact(&mut bytes).await.unwrap();
                return Some(Received::Data(stream.get(), fin, bytes));
            }
            SpdyFrameHeader::Control { kind, flags, length } => (kind, flags, length),
        };
        let mut payload = vec![0; length];
        self.io.read_exact(&mut payload).await.unwrap();
        Some(match ControlFrame::parse(kind, flags, &payload).unwrap() {
            ControlFrame::SynReply { stream, .. } => Received::Reply(stream.get()),
            ControlFrame::Reset { stream, status } => Received::Reset(stream.get(), status),
            ControlFrame::WindowUpdate { stream, delta } => Received::Window(stream.get(), delta),
            ControlFrame::Ping(id) => Received::Ping(id),
            ControlFrame::GoAway { last, status } => Received::GoAway(last.get(), status),
            other => panic!("{other:?}"),
        })
    }

    async fn expect(&mut self, expected: Received) {
        assert_eq!(self.next().await, Some(expected));
    }
}

fn pair(max_streams: usize) -> (Client, SpdySession) {
    let (near, far) = tokio::io::duplex(1 << 20);
    (Client { io: far, headers: HeaderWriter::default() }, SpdySession::start(near, max_streams))
}

async fn opened(client: &mut Client, session: &mut SpdySession, stream: u32) -> NewStream {
    client.open(stream, &[("streamType", "data")]).await;
    client.expect(Received::Reply(stream)).await;
    session.accept().await.unwrap()
}

#[tokio::test]
async fn streams_carry_data_both_ways_and_end_separately() {
    let (mut client, mut session) = pair(4);
    client.open(1, &[("streamType", "data"), ("port", "80")]).await;
    client.expect(Received::Reply(1)).await;
    let mut stream = session.accept().await.unwrap();
    assert_eq!((stream.id.get(), stream.headers.get("port")), (1, Some("80")));
    client.data(1, false, b"to the server").await;
    client.data(1, true, b"").await;
    assert_eq!(stream.incoming.next().await, Ok(Some(Bytes::from_static(b"to the server"))));
    assert_eq!(stream.incoming.next().await, Ok(None));
    stream.outgoing.send(Bytes::from_static(b"to the client")).await.unwrap();
    stream.outgoing.finish().await.unwrap();
    client.expect(Received::Data(1, false, b"to the client".to_vec())).await;
    client.expect(Received::Data(1, true, Vec::new())).await;
    let closing = tokio::spawn(session.close());
    client.expect(Received::GoAway(1, GoAwayStatus::OK)).await;
    assert_eq!(client.next().await, None);
    drop(client);
    closing.await.unwrap();
}

#[tokio::test]
async fn too_many_streams_are_refused_until_others_end() {
    let (mut client, mut session) = pair(1);
    let first = opened(&mut client, &mut session, 1).await;
    client.open(3, &[]).await;
    client.expect(Received::Reset(3, ResetStatus::REFUSED_STREAM)).await;
    client.data(1, true, b"").await;
    first.outgoing.finish().await.unwrap();
    client.expect(Received::Data(1, true, Vec::new())).await;
    opened(&mut client, &mut session, 5).await;
}

#[tokio::test]
async fn a_reset_ends_a_stream_on_both_sides_and_no_other() {
    let (mut client, mut session) = pair(4);
    let mut first = opened(&mut client, &mut session, 1).await;
    let second = opened(&mut client, &mut session, 3).await;
    client.control(ControlFrame::Reset { stream: first.id, status: ResetStatus::CANCEL }).await;
    first.incoming.next().await.unwrap_err();
    first.outgoing.send(Bytes::from_static(b"late")).await.unwrap_err();
    // Data in flight is dropped.
    client.data(1, false, b"under way").await;
    second.outgoing.send(Bytes::from_static(b"x")).await.unwrap();
    client.expect(Received::Data(3, false, b"x".to_vec())).await;
    second.outgoing.abort().await.unwrap();
    client.expect(Received::Reset(3, ResetStatus::CANCEL)).await;
}

#[tokio::test]
async fn pings_are_answered_and_unknown_frames_are_ignored() {
    let (mut client, _session) = pair(4);
    client.control(ControlFrame::Unknown(77)).await;
    client.control(ControlFrame::Ping(2)).await;
    client.control(ControlFrame::Ping(3)).await;
    client.expect(Received::Ping(3)).await;
    client.data(9, false, b"never opened").await;
    client.expect(Received::Reset(9, ResetStatus::INVALID_STREAM)).await;
}

#[tokio::test]
async fn a_client_that_violates_the_protocol_gets_an_error() {
    let garbage: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n________________________________________________________________",
        &[0x80, 2, 0, 1, 0, 0, 0, 0],
        &[0x80, 3, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1],
        &[0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff],
    ];
    for bytes in garbage {
        let (mut client, mut session) = pair(4);
        let mut stream = opened(&mut client, &mut session, 1).await;
        client.io.write_all(bytes).await.unwrap();
        client.io.shutdown().await.unwrap();
        assert!(session.accept().await.is_none());
        stream.incoming.next().await.unwrap_err();
        let mut last = None;
        while let Some(got) = client.next().await {
            last = Some(got);
        }
        assert_eq!(last, Some(Received::GoAway(1, GoAwayStatus::PROTOCOL_ERROR)), "{bytes:?}");
    }
}

#[tokio::test]
async fn a_compression_bomb_ends_the_session() {
    let (mut client, mut session) = pair(4);
    let value = "x".repeat(100 << 10);
    let mut zlib = flate2::Compress::new(flate2::Compression::best(), true);
    zlib.set_dictionary(&super::super::dictionary::DICTIONARY).unwrap();
    let mut block = Vec::with_capacity(64 << 10);
    let plain = StreamHeaders::from_pairs([("x", value.as_str())]).encode();
    zlib.compress_vec(&plain, &mut block, flate2::FlushCompress::Sync).unwrap();
    client.control(ControlFrame::SynStream { stream: StreamId::new(1), fin: false, block: &block }).await;
    assert!(session.accept().await.is_none());
    client.expect(Received::GoAway(0, GoAwayStatus::PROTOCOL_ERROR)).await;
}

#[tokio::test]
async fn a_disconnect_ends_all_streams() {
    let (mut client, mut session) = pair(4);
    let mut stream = opened(&mut client, &mut session, 1).await;
    drop(client);
    assert!(session.accept().await.is_none());
    stream.incoming.next().await.unwrap_err();
    stream.outgoing.send(Bytes::from_static(b"late")).await.unwrap_err();
}

#[tokio::test]
async fn consumed_bytes_are_credited_to_the_client() {
    let (mut client, mut session) = pair(4);
    let mut stream = opened(&mut client, &mut session, 1).await;
    let window = usize::try_from(INITIAL_WINDOW).unwrap();
    client.data(1, false, &vec![7; window]).await;
    let mut consumed = 0;
    while consumed < window {
        consumed += stream.incoming.next().await.unwrap().unwrap().len();
    }
    let mut updates = (0, 0);
    while updates.0 < window / 2 || updates.1 < window / 2 {
        match client.next().await {
            Some(Received::Window(0, delta)) => updates.0 += usize::try_from(delta).unwrap(),
            Some(Received::Window(1, delta)) => updates.1 += usize::try_from(delta).unwrap(),
            other => panic!("{other:?}"),
        }
    }
    assert!(updates.0 <= window && updates.1 <= window, "{updates:?}");
}

#[tokio::test]
async fn a_peer_with_flow_control_receives_no_more_than_its_window() {
    let (mut client, mut session) = pair(4);
    client.control(ControlFrame::Settings { initial_window: Some(10) }).await;
    let stream = opened(&mut client, &mut session, 1).await;
    let sending = tokio::spawn(async move {
        stream.outgoing.send(Bytes::from(vec![1; 25])).await.unwrap();
        stream.outgoing.finish().await.unwrap();
    });
    client.expect(Received::Data(1, false, vec![1; 10])).await;
    // No data arrives before the answer to a ping that is sent here.
    client.control(ControlFrame::Ping(1)).await;
    client.expect(Received::Ping(1)).await;
    client.control(ControlFrame::WindowUpdate { stream: StreamId::new(1), delta: 100 }).await;
    client.expect(Received::Data(1, false, vec![1; 15])).await;
    client.expect(Received::Data(1, true, Vec::new())).await;
    sending.await.unwrap();
}
