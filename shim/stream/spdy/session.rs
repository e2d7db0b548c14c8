//! A session: the streams that a client opens over one connection.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::sync::mpsc;

use super::super::connection::ConnectionTasks;
use super::super::outgoing::QUEUE;
use super::headers::{Decompressor, HeaderWriter};
use super::new_stream::NewStream;
use super::reader::FrameReader;
use super::table::StreamTable;
use super::writer::FrameWriter;

/// Size of the read buffer.
const READ: usize = 64 << 10;

/// A SPDY session. Dropping it aborts the connection.
#[derive(Debug)]
pub struct SpdySession {
    accepted: mpsc::Receiver<NewStream>,
    connection: ConnectionTasks,
}

impl SpdySession {
    /// Starts on an upgraded connection. The client may have `max_streams` open streams.
    pub fn start<T>(io: T, max_streams: usize) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(io);
        let (items, queued) = mpsc::channel(QUEUE);
        let (accepting, accepted) = mpsc::channel(QUEUE);
        let table = Arc::new(StreamTable::new(max_streams));
        let mut reader = FrameReader {
            io: BufReader::with_capacity(READ, read),
            table: table.clone(),
            items: items.clone(),
            accepted: accepting,
            decompressor: Decompressor::default(),
            writer: HeaderWriter::default(),
        };
        let writer = FrameWriter { io: write, table: table.clone() };
        let reading = async move {
            let ended = reader.run().await;
            reader.table.close_all();
            ended.inspect_err(|error| tracing::debug!(%error, "failed to read from a SPDY session")).is_ok()
        };
        let writing = async move {
            let ended = writer.run(queued).await;
            table.close_all();
            ended
        };
        Self { accepted, connection: ConnectionTasks::start(items, reading, writing) }
    }

    /// Returns the next stream that the client opens; none after it has disconnected.
    pub async fn accept(&mut self) -> Option<NewStream> {
        tokio::select! {
            stream = self.accepted.recv() => stream,
            () = self.connection.gone() => None,
        }
    }

    /// Closes the session after everything that was sent before is delivered.
    pub async fn close(self) {
        // Streams that were not accepted do not block the reader.
        drop(self.accepted);
        self.connection.close().await;
    }
}

#[cfg(test)]
mod tests;
