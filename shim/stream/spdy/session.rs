//! A session: the streams that a client opens over one connection.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::sync::mpsc;

use super::super::connection::Connection;
use super::super::inbox::Incoming;
use super::super::outgoing::{Outgoing, QUEUE};
use super::frame::StreamId;
use super::headers::{Decompressor, Headers, Writer};
use super::reader::Reader;
use super::table::Table;
use super::writer::FrameWriter;

/// How much is read at once.
const READ: usize = 64 << 10;

/// A stream that the client has opened. It is accepted already.
#[derive(Debug)]
pub struct NewStream {
    /// Its number.
    pub id: StreamId,
    /// What the client says of it.
    pub headers: Headers,
    /// What the client sends.
    pub incoming: Incoming,
    /// What it is sent.
    pub outgoing: Outgoing,
}

/// See the module. Dropping it breaks the connection off.
#[derive(Debug)]
pub struct Session {
    accepted: mpsc::Receiver<NewStream>,
    connection: Connection,
}

impl Session {
    /// Begins on a connection that was upgraded. The client may have so many streams open at once.
    pub fn start<T>(io: T, max_streams: usize) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(io);
        let (items, queued) = mpsc::channel(QUEUE);
        let (accepting, accepted) = mpsc::channel(QUEUE);
        let table = Arc::new(Table::new(max_streams));
        let mut reader = Reader {
            io: BufReader::with_capacity(READ, read),
            table: table.clone(),
            items: items.clone(),
            accepted: accepting,
            decompressor: Decompressor::default(),
            writer: Writer::default(),
        };
        let writer = FrameWriter { io: write, table: table.clone() };
        let reading = async move {
            let ended = reader.run().await;
            reader.table.lose();
            ended.inspect_err(|error| tracing::debug!(%error, "a SPDY session breaks off")).is_ok()
        };
        let writing = async move {
            let ended = writer.run(queued).await;
            table.lose();
            ended
        };
        Self { accepted, connection: Connection::start(items, reading, writing) }
    }

    /// The next stream that the client opens; none when it has gone.
    pub async fn accept(&mut self) -> Option<NewStream> {
        tokio::select! {
            stream = self.accepted.recv() => stream,
            () = self.connection.gone() => None,
        }
    }

    /// Ends in order: what was sent before arrives.
    pub async fn close(self) {
        // Streams that nobody accepts any more do not hold up the reader.
        drop(self.accepted);
        self.connection.close().await;
    }
}

#[cfg(test)]
mod tests;
