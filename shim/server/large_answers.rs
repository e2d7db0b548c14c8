//! Memory of large answers. The metrics of some hundred pods are tens of megabytes while the answer is built. Most of it is
//! between small allocations, so the allocator keeps it until a call returns it (malloc_trim(3)).

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

/// Answers that are at least this large, in bytes, are followed by a trim.
const LARGE: usize = 256 << 10;

/// Returns a body that returns the memory of its answer to the kernel when it has been sent, if the answer is large.
pub(super) fn released(body: Body) -> Body {
    Body::new(Released { inner: body, sent: 0 })
}

struct Released {
    inner: Body,
    sent: usize,
}

impl hyper::body::Body for Released {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.sent += frame.data_ref().map_or(0, Bytes::len);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Released {
    fn drop(&mut self) {
        if self.sent >= LARGE {
            // It takes milliseconds, which must not delay other calls.
            drop(tokio::task::spawn_blocking(berth_runtime::sys::memory::trim));
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    #[tokio::test]
    async fn an_answer_is_unchanged() {
        let content = Bytes::from(vec![7; LARGE]);
        let body = released(Body::new(Full::new(content.clone())));
        assert_eq!(body.collect().await.unwrap().to_bytes(), content);
    }
}
