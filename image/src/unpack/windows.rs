//! Memory for decompression. A zstd frame specifies its window: how many of the last decompressed bytes the
//! decoder must keep. Few frames need more than 8 MiB. Larger windows share a budget, which is large enough
//! for one of the largest.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The window that every decoder should support (RFC 8878, 3.1.1.1.2). Larger windows are counted in this
/// unit.
pub(super) const SMALL_WINDOW: u64 = 8 << 20;
/// The part of the budget for each of the layers that are unpacked concurrently.
const EACH: u64 = 64 << 20;
/// The smallest budget: the window that the zstd program uses with `--ultra -22` or `--long`, and accepts by
/// default (zstd(1), "--long").
const LEAST: u64 = 128 << 20;

/// The budget for the large windows of all layers.
#[derive(Debug)]
pub(crate) struct Windows {
    capacity: u64,
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// A permit for a large window.
#[derive(Debug)]
pub(super) struct LargeWindow {
    held: Arc<AtomicUsize>,
    _permit: OwnedSemaphorePermit,
}

/// The large windows of one image.
#[derive(Debug)]
pub(super) struct ImageWindows {
    all: Arc<Windows>,
    held: Arc<AtomicUsize>,
}

impl Windows {
    pub(crate) fn new(concurrency: usize) -> Self {
        let capacity = u64::try_from(concurrency).unwrap_or(1).saturating_mul(EACH).max(LEAST);
        let units = usize::try_from(units(capacity)).unwrap_or(Semaphore::MAX_PERMITS);
        let free = Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS)));
        Self { capacity, free, waiting: AtomicUsize::new(0) }
    }
}

impl ImageWindows {
    pub(super) fn new(all: &Arc<Windows>) -> Self {
        Self { all: all.clone(), held: Arc::default() }
    }

    /// Waits for a window of this many bytes. It blocks. A caller that has a window must release it first:
    /// otherwise two callers could wait for each other.
    pub(super) fn large(&self, bytes: u64) -> io::Result<LargeWindow> {
        let capacity = self.all.capacity;
        let count = u32::try_from(units(bytes)).ok().filter(|_| bytes <= capacity);
        let count = count.ok_or_else(|| too_large(bytes, capacity))?;
        let free = self.all.free.clone();
        let permit = match free.clone().try_acquire_many_owned(count) {
            Ok(permit) => permit,
            Err(_) => {
                let runtime = Handle::try_current().map_err(io::Error::other)?;
                self.all.waiting.fetch_add(1, Ordering::Relaxed);
                let permit = runtime.block_on(free.acquire_many_owned(count));
                self.all.waiting.fetch_sub(1, Ordering::Relaxed);
                permit.map_err(io::Error::other)?
            }
        };
        self.held.fetch_add(1, Ordering::Relaxed);
        Ok(LargeWindow { held: self.held.clone(), _permit: permit })
    }

    /// Returns whether others wait for a window while this image has one.
    pub(super) fn block_others(&self) -> bool {
        self.held.load(Ordering::Relaxed) > 0 && self.all.waiting.load(Ordering::Relaxed) > 0
    }
}

/// Checks the window of a layer that does not share a budget.
pub(super) fn check_alone(bytes: u64) -> io::Result<()> {
    if bytes <= LEAST { Ok(()) } else { Err(too_large(bytes, LEAST)) }
}

fn too_large(bytes: u64, limit: u64) -> io::Error {
    let why = format!("a window of {bytes} bytes, the limit is {limit}");
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn units(bytes: u64) -> u64 {
    bytes.div_ceil(SMALL_WINDOW)
}

impl Drop for LargeWindow {
    fn drop(&mut self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn an_image_with_a_window_blocks_others_that_wait() {
        let windows = Arc::new(Windows::new(1));
        let (one, two) = (ImageWindows::new(&windows), ImageWindows::new(&windows));
        let held = one.large(LEAST).unwrap();
        assert!(!one.block_others());
        let waiting = tokio::task::spawn_blocking(move || {
            let held = two.large(SMALL_WINDOW + 1).unwrap();
            assert!(!two.block_others());
            drop(held);
            two
        });
        while !one.block_others() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        drop(held);
        let two = waiting.await.unwrap();
        assert!(!one.block_others() && !two.block_others());
    }

    #[test]
    fn windows_share_the_budget_by_their_sizes() {
        let windows = Arc::new(Windows::new(6));
        let image = ImageWindows::new(&windows);
        let three: Vec<_> = (0..3).map(|_| image.large(128 << 20).unwrap()).collect();
        assert_eq!(windows.free.available_permits(), 0);
        drop(three);
        let all = image.large(6 * EACH).unwrap();
        assert_eq!(windows.free.available_permits(), 0);
        drop(all);
        let error = image.large(6 * EACH + 1).unwrap_err();
        assert!(error.to_string().ends_with("402653185 bytes, the limit is 402653184"), "{error}");
    }
}
