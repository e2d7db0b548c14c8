//! What an image may cost at most, counted over all of its layers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::windows::{ImageWindows, LargeWindow, Windows, check_alone};
use crate::error::Error;

/// Bounds on what a registry can make this node do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all layers, unpacked.
    pub bytes: u64,
    /// Files, folders and links of all layers.
    pub entries: u64,
    /// Folders in one another.
    pub depth: usize,
    /// Unpacked bytes for each compressed one, where a layer is larger than `ratio_floor`.
    pub ratio: u64,
    /// Below this many unpacked bytes any ratio is allowed: files of zeros are common and cheap.
    pub ratio_floor: u64,
    /// Bytes of memory for what has to be noted of one layer until it is in its place.
    pub notes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            entries: 10_000_000,
            depth: 256,
            // More than the 1032 that deflate can come to (zlib's technical details, "Maximum Compression Factor"): gzip is
            // bounded by its format and by `bytes`. In the zstd format a few bytes may stand for as many as one likes.
            ratio: 1100,
            ratio_floor: 4 << 30,
            notes: 16 << 20,
        }
    }
}

/// The limits of one image and what is left of them; its layers are unpacked at the same time.
#[derive(Debug)]
pub(crate) struct Budget {
    pub(crate) limits: Limits,
    bytes: AtomicU64,
    entries: AtomicU64,
    windows: Option<ImageWindows>,
}

impl Budget {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, bytes: AtomicU64::new(0), entries: AtomicU64::new(0), windows: None }
    }

    /// Of an image that shares the memory for decompression with others.
    pub(crate) fn of_image(limits: Limits, windows: &Arc<Windows>) -> Self {
        Self { windows: Some(ImageWindows::new(windows)), ..Self::new(limits) }
    }

    /// Waits until a large window may be used. For threads that may block.
    pub(super) fn large_window(&self, bytes: u64) -> io::Result<Option<LargeWindow>> {
        match &self.windows {
            Some(windows) => windows.large(bytes).map(Some),
            None => check_alone(bytes).map(|()| None),
        }
    }

    /// Whether others wait for memory that this image has.
    pub(crate) fn is_in_the_way(&self) -> bool {
        self.windows.as_ref().is_some_and(ImageWindows::are_in_the_way)
    }

    /// Takes unpacked bytes.
    pub(crate) fn take_bytes(&self, what: &str, count: u64) -> Result<(), Error> {
        let before = self.bytes.fetch_add(count, Ordering::Relaxed);
        if before.saturating_add(count) > self.limits.bytes {
            let why = format!("the image is larger than {} bytes unpacked", self.limits.bytes);
            return Err(Error::limit(what, why));
        }
        Ok(())
    }

    /// Takes one file, folder or link.
    pub(crate) fn take_entry(&self, what: &str) -> Result<(), Error> {
        if self.entries.fetch_add(1, Ordering::Relaxed) >= self.limits.entries {
            return Err(Error::limit(what, format!("the image has more than {} files", self.limits.entries)));
        }
        Ok(())
    }

    /// Compares what went in with what came out.
    pub(crate) fn check_ratio(&self, what: &str, compressed: u64, unpacked: u64) -> Result<(), Error> {
        let Limits { ratio, ratio_floor, .. } = self.limits;
        if unpacked > ratio_floor && unpacked / ratio.max(1) > compressed {
            let why = format!(
                "{compressed} bytes became {unpacked}: more than {ratio} for one, which is no layer but a bomb"
            );
            return Err(Error::limit(what, why));
        }
        Ok(())
    }
}
