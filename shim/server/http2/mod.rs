//! Rewrites the bytes of a client's connection, between the socket and the HTTP/2 server.
//!
//! * [`requests`]: what the client sends. Header blocks are decoded and encoded again, with an `:authority`
//!   that the server accepts
//! * [`fields`]: the header fields of one block
//! * [`resets`]: what the server sends. Requests that it rejects before they reach a service are logged
//! * [`frame`]: the header of a frame
//!
//! gRPC clients of the C core (C++, Python, Ruby, PHP), of Java and of Swift send the path of the unix socket
//! as `:authority`. This is not an authority of RFC 3986. The `h2` library resets such a request with
//! PROTOCOL_ERROR and has no setting to change that. Go's server ignores the value, and so does this one.

mod fields;
mod frame;
mod requests;
mod resets;
#[cfg(test)]
mod tests;

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::Connected;

use requests::Requests;
use resets::Resets;

/// Size of one read from the socket.
const CHUNK: usize = 8 << 10;

/// A client's connection.
pub struct Connection<S = UnixStream> {
    socket: S,
    requests: Requests,
    resets: Resets,
}

impl<S: std::fmt::Debug> std::fmt::Debug for Connection<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl<S> Connection<S> {
    /// Creates a connection on a socket. `peer` is the process at its other end, for logs.
    pub fn new(socket: S, peer: Option<i32>) -> Self {
        Self { socket, requests: Requests::new(peer), resets: Resets::new(peer) }
    }
}

impl<S: Connected> Connected for Connection<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.socket.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while !this.requests.read(buffer) {
            let mut space = [MaybeUninit::uninit(); CHUNK];
            let mut chunk = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut this.socket).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                this.requests.end();
                this.requests.read(buffer);
                break;
            }
            this.requests.receive(chunk.filled());
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.socket).poll_write(cx, bytes))?;
        this.resets.sent(bytes.get(..written).unwrap_or(bytes));
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.socket).poll_write_vectored(cx, slices))?;
        let mut left = written;
        for slice in slices {
            let part = slice.get(..left).unwrap_or(slice);
            this.resets.sent(part);
            left -= part.len();
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}
