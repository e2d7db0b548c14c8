//! Archives of images, sent in pieces: the daemon writes nothing to disk.

use std::io::{self, Write};

use berth_image::ImageStore;
use berth_proto::admin::ArchivePiece;
use futures_util::stream;
use tokio::sync::mpsc;
use tonic::Status;

use crate::error::CriError;
use crate::responses::ResponseStream;

/// The size of a piece in bytes; a message has at most 4 MiB.
const PIECE: usize = 1 << 20;

/// Saves images. An error is the last message.
#[must_use]
pub fn stream(store: ImageStore, names: Vec<String>) -> ResponseStream<ArchivePiece> {
    let (sink, pieces) = mpsc::channel(2);
    tokio::spawn(async move {
        let pieces = Pieces { sink: sink.clone(), gathered: Vec::new() };
        if let Err(error) = store.save(&names, pieces).await {
            // The send fails if the client has disconnected.
            drop(sink.send(Err(Status::from(CriError::from(error)))).await);
        }
    });
    Box::pin(stream::unfold(pieces, |mut pieces| async { pieces.recv().await.map(|piece| (piece, pieces)) }))
}

/// A writer that sends its input as messages.
struct Pieces {
    sink: mpsc::Sender<Result<ArchivePiece, Status>>,
    gathered: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let space = PIECE.saturating_sub(self.gathered.len()).min(bytes.len());
        self.gathered.extend_from_slice(bytes.get(..space).unwrap_or_default());
        if self.gathered.len() >= PIECE {
            self.flush()?;
        }
        Ok(space)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let data = std::mem::take(&mut self.gathered);
        let sent = self.sink.blocking_send(Ok(ArchivePiece { data }));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the client has disconnected"))
    }
}
