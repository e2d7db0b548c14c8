//! The time of the last activity on a connection, for the idle timeout.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// The time of the last activity on a connection.
#[derive(Debug)]
pub struct Activity {
    begun: Instant,
    /// Milliseconds between `begun` and the last activity.
    last: AtomicU64,
}

impl Activity {
    fn touch(&self) {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Waits until the connection was idle for `limit`.
    pub async fn idle(&self, limit: Duration) {
        while self.deadline(limit) > Instant::now() {
            tokio::time::sleep_until(self.deadline(limit)).await;
        }
    }

    /// Returns when the limit is reached if there is no further activity.
    fn deadline(&self, limit: Duration) -> Instant {
        self.begun + Duration::from_millis(self.last.load(Ordering::Relaxed)) + limit
    }
}

/// A connection that records its [`Activity`].
#[derive(Debug)]
pub struct TrackedIo<T> {
    io: T,
    activity: Arc<Activity>,
}

impl<T> TrackedIo<T> {
    /// Wraps a connection; its activity begins now.
    pub fn new(io: T) -> Self {
        Self { io, activity: Arc::new(Activity { begun: Instant::now(), last: AtomicU64::new(0) }) }
    }

    /// Returns its activity.
    #[must_use]
    pub fn activity(&self) -> Arc<Activity> {
        self.activity.clone()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for TrackedIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.io).poll_read(context, buffer));
        self.activity.touch();
        Poll::Ready(read)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for TrackedIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(context, bytes));
        self.activity.touch();
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(context, slices));
        self.activity.touch();
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn activity_extends_the_timeout() {
        let (near, mut far) = tokio::io::duplex(10);
        let mut near = TrackedIo::new(near);
        let activity = near.activity();
        let limit = Duration::from_secs(100);
        let before = activity.deadline(limit);
        activity.idle(Duration::ZERO).await;
        while before > Instant::now() + limit - Duration::from_millis(2) {
            tokio::task::yield_now().await;
        }
        far.write_all(b"x").await.unwrap();
        near.read_u8().await.unwrap();
        assert!(activity.deadline(limit) > before);
        near.write_all(b"y").await.unwrap();
        assert!(activity.deadline(limit) <= Instant::now() + limit);
    }
}
