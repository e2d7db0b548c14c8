//! When something last went over a connection, so that one that nobody uses does not stay forever.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// When something last went over a connection.
#[derive(Debug)]
pub struct Activity {
    begun: Instant,
    /// Milliseconds since then.
    last: AtomicU64,
}

impl Activity {
    fn touch(&self) {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Waits until nothing has gone over the connection for so long.
    pub async fn idle(&self, limit: Duration) {
        while self.until(limit) > Instant::now() {
            tokio::time::sleep_until(self.until(limit)).await;
        }
    }

    /// Until when it is not idle yet, if nothing more goes over it.
    fn until(&self, limit: Duration) -> Instant {
        self.begun + Duration::from_millis(self.last.load(Ordering::Relaxed)) + limit
    }
}

/// A connection that keeps its [`Activity`].
#[derive(Debug)]
pub struct Watched<T> {
    io: T,
    activity: Arc<Activity>,
}

impl<T> Watched<T> {
    /// Begins now.
    pub fn new(io: T) -> Self {
        Self { io, activity: Arc::new(Activity { begun: Instant::now(), last: AtomicU64::new(0) }) }
    }

    /// Its activity.
    #[must_use]
    pub fn activity(&self) -> Arc<Activity> {
        self.activity.clone()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
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

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
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
    async fn what_goes_over_it_puts_off_the_end() {
        let (near, mut far) = tokio::io::duplex(10);
        let mut near = Watched::new(near);
        let activity = near.activity();
        let limit = Duration::from_secs(100);
        let before = activity.until(limit);
        activity.idle(Duration::ZERO).await;
        while before > Instant::now() + limit - Duration::from_millis(2) {
            tokio::task::yield_now().await;
        }
        far.write_all(b"x").await.unwrap();
        near.read_u8().await.unwrap();
        assert!(activity.until(limit) > before);
        near.write_all(b"y").await.unwrap();
        assert!(activity.until(limit) <= Instant::now() + limit);
    }
}
