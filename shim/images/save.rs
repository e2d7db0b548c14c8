//! Archives of images, sent piece by piece: nothing is written on the daemon's side.

use std::io::{self, Write};

use berth_proto::admin::ArchivePiece;
use futures_util::stream;
use tokio::sync::mpsc;
use tonic::Status;

use crate::daemon::Daemon;
use crate::error::CriError;
use crate::runtime_service::Answers;

/// The bytes of a message; a message has at most 4 MiB.
const PIECE: usize = 1 << 20;

/// Saves images; an error is the last message.
#[must_use]
pub fn save(daemon: &Daemon, names: Vec<String>) -> Answers<ArchivePiece> {
    let store = daemon.images.clone();
    let (sink, pieces) = mpsc::channel(2);
    tokio::spawn(async move {
        let pieces = Pieces { sink: sink.clone(), gathered: Vec::new() };
        if let Err(error) = store.save(&names, pieces).await {
            // Who has gone needs no answer.
            drop(sink.send(Err(Status::from(CriError::from(error)))).await);
        }
    });
    Box::pin(stream::unfold(pieces, |mut pieces| async { pieces.recv().await.map(|piece| (piece, pieces)) }))
}

/// Writes into messages.
struct Pieces {
    sink: mpsc::Sender<Result<ArchivePiece, Status>>,
    gathered: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE.saturating_sub(self.gathered.len()).min(bytes.len());
        self.gathered.extend_from_slice(bytes.get(..room).unwrap_or_default());
        if self.gathered.len() >= PIECE {
            self.flush()?;
        }
        Ok(room)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let data = std::mem::take(&mut self.gathered);
        let sent = self.sink.blocking_send(Ok(ArchivePiece { data }));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody receives it any more"))
    }
}
