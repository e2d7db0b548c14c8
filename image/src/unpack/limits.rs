//! The limits on an image, counted over all of its layers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::windows::{ImageWindows, LargeWindow, Windows, check_alone};
use crate::error::Error;

/// Limits on the resources that an image can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The unpacked bytes of all layers.
    pub bytes: u64,
    /// The files, folders and links of all layers.
    pub entries: u64,
    /// The depth of nested folders.
    pub depth: usize,
    /// The unpacked bytes for each compressed one, in a layer that is larger than `ratio_floor`.
    pub ratio: u64,
    /// Up to this many unpacked bytes any ratio is allowed: files of zeros are common and cheap.
    pub ratio_floor: u64,
    /// The bytes of memory for the notes on one layer while it is unpacked.
    pub notes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            entries: 10_000_000,
            depth: 256,
            // This is more than deflate's maximum of 1032 (zlib's technical details, "Maximum Compression
            // Factor"): gzip is limited by its format and by `bytes`. In zstd, a few bytes can expand to any
            // number.
            ratio: 1100,
            ratio_floor: 4 << 30,
            notes: 16 << 20,
        }
    }
}

/// The limits of one image and the amounts that are used. Its layers are unpacked concurrently.
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

    /// Creates the budget of an image that shares the memory for decompression with others.
    pub(crate) fn of_image(limits: Limits, windows: &Arc<Windows>) -> Self {
        Self { windows: Some(ImageWindows::new(windows)), ..Self::new(limits) }
    }

    /// Waits until a large window is available. It blocks.
    pub(super) fn large_window(&self, bytes: u64) -> io::Result<Option<LargeWindow>> {
        match &self.windows {
            Some(windows) => windows.large(bytes).map(Some),
            None => check_alone(bytes).map(|()| None),
        }
    }

    /// Returns whether others wait for memory that this image has.
    pub(crate) fn blocks_others(&self) -> bool {
        self.windows.as_ref().is_some_and(ImageWindows::block_others)
    }

    /// Counts unpacked bytes.
    pub(crate) fn take_bytes(&self, what: &str, count: u64) -> Result<(), Error> {
        let before = self.bytes.fetch_add(count, Ordering::Relaxed);
        if before.saturating_add(count) > self.limits.bytes {
            let why = format!("the image is larger than {} bytes unpacked", self.limits.bytes);
            return Err(Error::limit(what, why));
        }
        Ok(())
    }

    /// Counts one file, folder or link.
    pub(crate) fn take_entry(&self, what: &str) -> Result<(), Error> {
        if self.entries.fetch_add(1, Ordering::Relaxed) >= self.limits.entries {
            return Err(Error::limit(what, format!("the image has more than {} files", self.limits.entries)));
        }
        Ok(())
    }

    /// Checks the ratio of unpacked to compressed bytes.
    pub(crate) fn check_ratio(&self, what: &str, compressed: u64, unpacked: u64) -> Result<(), Error> {
        let Limits { ratio, ratio_floor, .. } = self.limits;
        if unpacked > ratio_floor && unpacked / ratio.max(1) > compressed {
            let why = format!(
                "{compressed} bytes unpacked to {unpacked}: more than {ratio} for one, this is a decompression bomb"
            );
            return Err(Error::limit(what, why));
        }
        Ok(())
    }
}
