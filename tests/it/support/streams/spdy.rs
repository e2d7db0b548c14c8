//! A raw SPDY client, which sends the frames that a test wants.

use super::*;

/// The frames that a raw client has received.
#[derive(Clone, Debug, Default)]
pub struct ReceivedFrames {
    pub replies: BTreeSet<u32>,
    pub data: BTreeMap<u32, Vec<u8>>,
    pub reset: BTreeSet<u32>,
}

pub struct Spdy {
    pub io: TcpStream,
    headers: HeaderWriter,
    received: ReceivedFrames,
}

impl Spdy {
    pub(super) fn new(io: TcpStream) -> Self {
        Self { io, headers: HeaderWriter::default(), received: ReceivedFrames::default() }
    }

    pub async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
        let block = self.headers.block(&StreamHeaders::from_pairs(headers.iter().copied()));
        let mut frame = Vec::new();
        ControlFrame::SynStream { stream: StreamId::new(stream), fin: false, block: &block }
            .encode(&mut frame);
        self.io.write_all(&frame).await.unwrap();
    }

    pub async fn data(&mut self, stream: u32, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).unwrap();
        self.io.write_all(&SpdyFrameHeader::data(StreamId::new(stream), false, length)).await.unwrap();
        self.io.write_all(bytes).await.unwrap();
    }

    /// Receives frames until the condition is true.
    pub async fn until(&mut self, condition: impl Fn(&ReceivedFrames) -> bool) -> ReceivedFrames {
        while !condition(&self.received) {
            let frame = tokio::time::timeout(PATIENCE, self.frame()).await;
            frame.unwrap_or_else(|_| panic!("no frame arrives after {:?}", self.received));
        }
        self.received.clone()
    }

    async fn frame(&mut self) {
        let mut head = [0; HEAD];
        self.io.read_exact(&mut head).await.unwrap();
        let head = SpdyFrameHeader::parse(head).unwrap();
        let (SpdyFrameHeader::Data { length, .. } | SpdyFrameHeader::Control { length, .. }) = head;
        let mut payload = vec![0; length];
        self.io.read_exact(&mut payload).await.unwrap();
        match head {
            SpdyFrameHeader::Data { stream, .. } => {
                self.received.data.entry(stream.get()).or_default().extend(payload)
            }
            SpdyFrameHeader::Control { kind, flags, .. } => {
                match ControlFrame::parse(kind, flags, &payload).unwrap() {
                    ControlFrame::SynReply { stream, .. } => drop(self.received.replies.insert(stream.get())),
                    ControlFrame::Reset { stream, .. } => drop(self.received.reset.insert(stream.get())),
                    _ => {}
                }
            }
        }
    }
}
