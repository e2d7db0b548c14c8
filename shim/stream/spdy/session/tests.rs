//! A session against a client that is written here, frame by frame.

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::super::frame::{Control, GoAwayStatus, HEAD, Head, INITIAL_WINDOW, ResetStatus};
use super::super::headers::Writer as HeaderWriter;
use super::*;

/// What a client receives.
#[derive(Debug, PartialEq, Eq)]
enum Got {
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
    async fn control(&mut self, control: Control<'_>) {
        let mut frame = Vec::new();
        control.encode(&mut frame);
        self.io.write_all(&frame).await.unwrap();
    }

    async fn open(&mut self, stream: u32, pairs: &[(&str, &str)]) {
        let block = self.headers.block(&Headers::from_pairs(pairs.iter().copied()));
        self.control(Control::SynStream { stream: StreamId::new(stream), fin: false, block: &block }).await;
    }

    async fn data(&mut self, stream: u32, fin: bool, bytes: &[u8]) {
        let head = Head::data(StreamId::new(stream), fin, u32::try_from(bytes.len()).unwrap());
        self.io.write_all(&head).await.unwrap();
        self.io.write_all(bytes).await.unwrap();
    }

    /// The next frame; none at the end.
    async fn next(&mut self) -> Option<Got> {
        let mut head = [0; HEAD];
        self.io.read_exact(&mut head).await.ok()?;
        let (kind, flags, length) = match Head::parse(head).unwrap() {
            Head::Data { stream, fin, length } => {
                let mut bytes = vec![0; length];
                self.io.read_exact(&mut bytes).await.unwrap();
                return Some(Got::Data(stream.get(), fin, bytes));
            }
            Head::Control { kind, flags, length } => (kind, flags, length),
        };
        let mut payload = vec![0; length];
        self.io.read_exact(&mut payload).await.unwrap();
        Some(match Control::parse(kind, flags, &payload).unwrap() {
            Control::SynReply { stream, .. } => Got::Reply(stream.get()),
            Control::Reset { stream, status } => Got::Reset(stream.get(), status),
            Control::WindowUpdate { stream, delta } => Got::Window(stream.get(), delta),
            Control::Ping(id) => Got::Ping(id),
            Control::GoAway { last, status } => Got::GoAway(last.get(), status),
            other => panic!("{other:?}"),
        })
    }

    async fn expect(&mut self, wanted: Got) {
        assert_eq!(self.next().await, Some(wanted));
    }
}

fn pair(max_streams: usize) -> (Client, Session) {
    let (near, far) = tokio::io::duplex(1 << 20);
    (Client { io: far, headers: HeaderWriter::default() }, Session::start(near, max_streams))
}

async fn opened(client: &mut Client, session: &mut Session, stream: u32) -> NewStream {
    client.open(stream, &[("streamType", "data")]).await;
    client.expect(Got::Reply(stream)).await;
    session.accept().await.unwrap()
}

#[tokio::test]
async fn streams_carry_data_both_ways_and_end_one_by_one() {
    let (mut client, mut session) = pair(4);
    client.open(1, &[("streamType", "data"), ("port", "80")]).await;
    client.expect(Got::Reply(1)).await;
    let mut stream = session.accept().await.unwrap();
    assert_eq!((stream.id.get(), stream.headers.get("port")), (1, Some("80")));
    client.data(1, false, b"to the server").await;
    client.data(1, true, b"").await;
    assert_eq!(stream.incoming.next().await, Ok(Some(Bytes::from_static(b"to the server"))));
    assert_eq!(stream.incoming.next().await, Ok(None));
    stream.outgoing.send(Bytes::from_static(b"to the client")).await.unwrap();
    stream.outgoing.finish().await.unwrap();
    client.expect(Got::Data(1, false, b"to the client".to_vec())).await;
    client.expect(Got::Data(1, true, Vec::new())).await;
    let closing = tokio::spawn(session.close());
    client.expect(Got::GoAway(1, GoAwayStatus::OK)).await;
    assert_eq!(client.next().await, None);
    drop(client);
    closing.await.unwrap();
}

#[tokio::test]
async fn more_streams_than_there_may_be_are_refused_until_others_end() {
    let (mut client, mut session) = pair(1);
    let first = opened(&mut client, &mut session, 1).await;
    client.open(3, &[]).await;
    client.expect(Got::Reset(3, ResetStatus::REFUSED_STREAM)).await;
    client.data(1, true, b"").await;
    first.outgoing.finish().await.unwrap();
    client.expect(Got::Data(1, true, Vec::new())).await;
    opened(&mut client, &mut session, 5).await;
}

#[tokio::test]
async fn a_reset_ends_a_stream_on_both_sides_and_no_other() {
    let (mut client, mut session) = pair(4);
    let mut first = opened(&mut client, &mut session, 1).await;
    let second = opened(&mut client, &mut session, 3).await;
    client.control(Control::Reset { stream: first.id, status: ResetStatus::CANCEL }).await;
    first.incoming.next().await.unwrap_err();
    first.outgoing.send(Bytes::from_static(b"late")).await.unwrap_err();
    // What was under way is passed over.
    client.data(1, false, b"under way").await;
    second.outgoing.send(Bytes::from_static(b"x")).await.unwrap();
    client.expect(Got::Data(3, false, b"x".to_vec())).await;
    second.outgoing.abort().await.unwrap();
    client.expect(Got::Reset(3, ResetStatus::CANCEL)).await;
}

#[tokio::test]
async fn pings_are_answered_and_unknown_frames_passed_over() {
    let (mut client, _session) = pair(4);
    client.control(Control::Unknown(77)).await;
    client.control(Control::Ping(2)).await;
    client.control(Control::Ping(3)).await;
    client.expect(Got::Ping(3)).await;
    client.data(9, false, b"never opened").await;
    client.expect(Got::Reset(9, ResetStatus::INVALID_STREAM)).await;
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_is_told_and_let_go() {
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
        assert_eq!(last, Some(Got::GoAway(1, GoAwayStatus::PROTOCOL_ERROR)), "{bytes:?}");
    }
}

#[tokio::test]
async fn a_bomb_of_headers_ends_the_session() {
    let (mut client, mut session) = pair(4);
    let value = "x".repeat(100 << 10);
    let mut zlib = flate2::Compress::new(flate2::Compression::best(), true);
    zlib.set_dictionary(&super::super::dictionary::DICTIONARY).unwrap();
    let mut block = Vec::with_capacity(64 << 10);
    let plain = Headers::from_pairs([("x", value.as_str())]).encode();
    zlib.compress_vec(&plain, &mut block, flate2::FlushCompress::Sync).unwrap();
    client.control(Control::SynStream { stream: StreamId::new(1), fin: false, block: &block }).await;
    assert!(session.accept().await.is_none());
    client.expect(Got::GoAway(0, GoAwayStatus::PROTOCOL_ERROR)).await;
}

#[tokio::test]
async fn a_client_that_goes_ends_what_waits_for_it() {
    let (mut client, mut session) = pair(4);
    let mut stream = opened(&mut client, &mut session, 1).await;
    drop(client);
    assert!(session.accept().await.is_none());
    stream.incoming.next().await.unwrap_err();
    stream.outgoing.send(Bytes::from_static(b"late")).await.unwrap_err();
}

#[tokio::test]
async fn what_is_consumed_is_told_and_what_is_not_is_held_back() {
    let (mut client, mut session) = pair(4);
    let mut stream = opened(&mut client, &mut session, 1).await;
    let window = usize::try_from(INITIAL_WINDOW).unwrap();
    client.data(1, false, &vec![7; window]).await;
    let mut consumed = 0;
    while consumed < window {
        consumed += stream.incoming.next().await.unwrap().unwrap().len();
    }
    let mut told = (0, 0);
    while told.0 < window / 2 || told.1 < window / 2 {
        match client.next().await {
            Some(Got::Window(0, delta)) => told.0 += usize::try_from(delta).unwrap(),
            Some(Got::Window(1, delta)) => told.1 += usize::try_from(delta).unwrap(),
            other => panic!("{other:?}"),
        }
    }
    assert!(told.0 <= window && told.1 <= window, "{told:?}");
}

#[tokio::test]
async fn a_peer_with_flow_control_is_not_sent_more_than_it_asked_for() {
    let (mut client, mut session) = pair(4);
    client.control(Control::Settings { initial_window: Some(10) }).await;
    let stream = opened(&mut client, &mut session, 1).await;
    let sending = tokio::spawn(async move {
        stream.outgoing.send(Bytes::from(vec![1; 25])).await.unwrap();
        stream.outgoing.finish().await.unwrap();
    });
    client.expect(Got::Data(1, false, vec![1; 10])).await;
    // Nothing more comes before the answer to a ping that is asked for now.
    client.control(Control::Ping(1)).await;
    client.expect(Got::Ping(1)).await;
    client.control(Control::WindowUpdate { stream: StreamId::new(1), delta: 100 }).await;
    client.expect(Got::Data(1, false, vec![1; 15])).await;
    client.expect(Got::Data(1, true, Vec::new())).await;
    sending.await.unwrap();
}
