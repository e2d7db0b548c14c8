//! The buffers for output and input, which all containers share: only one stream is copied at a time.

/// Buffers that all streams share.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    piece: Vec<u8>,
    records: Vec<u8>,
}

impl Buffers {
    /// The piece that was read last.
    pub(crate) fn piece(&mut self) -> &mut Vec<u8> {
        &mut self.piece
    }

    /// The records of the output that is written next.
    pub(crate) fn records(&mut self) -> &mut Vec<u8> {
        &mut self.records
    }

    /// Both buffers.
    pub(crate) fn parts(&mut self) -> (&mut Vec<u8>, &mut Vec<u8>) {
        (&mut self.piece, &mut self.records)
    }

    /// Releases the memory while the keeper is idle.
    pub(crate) fn release(&mut self) {
        *self = Self::default();
    }
}
