//! Memory for decompression. A layer in the zstd format says how much of what it has unpacked its decoder must remember: a
//! window. Few need more than 8 MiB; the larger ones share a budget, in which one of the largest has room.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What every decoder should take (RFC 8878, 3.1.1.1.2); larger windows are counted in this unit.
pub(super) const SMALL_WINDOW: u64 = 8 << 20;
/// The room for large windows that each layer of those that are unpacked at once adds.
const EACH: u64 = 64 << 20;
/// The least room for all: what the zstd program makes with `--ultra -22` or `--long`, and takes without being asked to
/// (zstd(1), "--long").
const LEAST: u64 = 128 << 20;

/// The large windows of all layers.
#[derive(Debug)]
pub(crate) struct Windows {
    room: u64,
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
        let room = u64::try_from(at_once).unwrap_or(1).saturating_mul(EACH).max(LEAST);
        let units = usize::try_from(units(room)).unwrap_or(Semaphore::MAX_PERMITS);
        let free = Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS)));
        Self { room, free, waiting: AtomicUsize::new(0) }
    }
}

impl ImageWindows {
    pub(super) fn new(of_all: &Arc<Windows>) -> Self {
        Self { of_all: of_all.clone(), held: Arc::default() }
    }

    /// Waits for one of this many bytes. For threads that may block. Who has one already gives it back first: two that
    /// wait for what the other one has would wait for ever.
    pub(super) fn large(&self, bytes: u64) -> io::Result<LargeWindow> {
        let room = self.of_all.room;
        let count = u32::try_from(units(bytes)).ok().filter(|_| bytes <= room);
        let count = count.ok_or_else(|| too_large(bytes, room))?;
        let free = self.of_all.free.clone();
        let permit = match free.clone().try_acquire_many_owned(count) {
            Ok(permit) => permit,
            Err(_) => {
                let runtime = Handle::try_current().map_err(io::Error::other)?;
                self.of_all.waiting.fetch_add(1, Ordering::Relaxed);
                let permit = runtime.block_on(free.acquire_many_owned(count));
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

/// Without a budget: what one layer may have.
pub(super) fn check_alone(bytes: u64) -> io::Result<()> {
    if bytes <= LEAST { Ok(()) } else { Err(too_large(bytes, LEAST)) }
}

fn too_large(bytes: u64, room: u64) -> io::Error {
    let why = format!("a window of {bytes} bytes, the limit is {room}");
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
    async fn who_has_one_while_others_wait_is_in_the_way() {
        let windows = Arc::new(Windows::new(1));
        let (one, two) = (ImageWindows::new(&windows), ImageWindows::new(&windows));
        let held = one.large(LEAST).unwrap();
        assert!(!one.are_in_the_way());
        let waiting = tokio::task::spawn_blocking(move || {
            let held = two.large(SMALL_WINDOW + 1).unwrap();
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

    #[test]
    fn windows_share_the_room_by_their_sizes() {
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
