//! Memory for decompression. A layer in the zstd format says how much of what it has unpacked its decoder must remember,
//! up to 64 MiB. Few need more than 8 MiB; how many of these are unpacked at once is limited.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A window may not be larger: what containerd's decoder takes.
pub(super) const MAX_WINDOW: u64 = 64 << 20;
/// The logarithm of that.
pub(super) const MAX_WINDOW_LOG: u32 = 26;
/// What every decoder should take (RFC 8878, 3.1.1.1.2).
pub(super) const SMALL_WINDOW: u64 = 8 << 20;

/// The large windows of all layers.
#[derive(Debug)]
pub(crate) struct Windows {
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// Leave to use a large one.
#[derive(Debug)]
pub(super) struct LargeWindow {
    held: Arc<AtomicUsize>,
    _permit: OwnedSemaphorePermit,
}

/// The large windows of one image.
#[derive(Debug)]
pub(super) struct ImageWindows {
    of_all: Arc<Windows>,
    held: Arc<AtomicUsize>,
}

impl Windows {
    pub(crate) fn new(at_once: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(at_once.max(1))), waiting: AtomicUsize::new(0) }
    }
}

impl ImageWindows {
    pub(super) fn new(of_all: &Arc<Windows>) -> Self {
        Self { of_all: of_all.clone(), held: Arc::default() }
    }

    /// Waits for one. For threads that may block.
    pub(super) fn large(&self) -> io::Result<LargeWindow> {
        let free = self.of_all.free.clone();
        let permit = match free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let runtime = Handle::try_current().map_err(io::Error::other)?;
                self.of_all.waiting.fetch_add(1, Ordering::Relaxed);
                let permit = runtime.block_on(free.acquire_owned());
                self.of_all.waiting.fetch_sub(1, Ordering::Relaxed);
                permit.map_err(io::Error::other)?
            }
        };
        self.held.fetch_add(1, Ordering::Relaxed);
        Ok(LargeWindow { held: self.held.clone(), _permit: permit })
    }

    /// Whether others wait for one while this image has one.
    pub(super) fn are_in_the_way(&self) -> bool {
        self.held.load(Ordering::Relaxed) > 0 && self.of_all.waiting.load(Ordering::Relaxed) > 0
    }
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
    async fn who_has_one_while_others_wait_is_in_the_way() {
        let windows = Arc::new(Windows::new(1));
        let (one, two) = (ImageWindows::new(&windows), ImageWindows::new(&windows));
        let held = one.large().unwrap();
        assert!(!one.are_in_the_way());
        let waiting = tokio::task::spawn_blocking(move || {
            let held = two.large().unwrap();
            assert!(!two.are_in_the_way());
            drop(held);
            two
        });
        while !one.are_in_the_way() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        drop(held);
        let two = waiting.await.unwrap();
        assert!(!one.are_in_the_way() && !two.are_in_the_way());
    }
}
