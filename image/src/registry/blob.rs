//! The transfer of a blob: piece by piece into a channel, with its digest computed on the fly. A transfer
//! that broke off is resumed, from the next host if necessary.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use hyper::body::Incoming;
use tokio::sync::mpsc;

use super::endpoint::{self, Endpoint};
use super::pace::{OnSlow, Pace};
use super::repository::{RETRIES, Repository, header};
use crate::descriptor::Descriptor;
use crate::digest::Hasher;
use crate::error::{Error, ErrorKind};

/// A message to the reader of a transfer. If the channel closes without `End`, the transfer broke off.
#[derive(Debug)]
pub(crate) enum Piece {
    Data(Bytes),
    /// The blob is complete, and its digest is right.
    End,
}

/// The outcome of a transfer.
#[derive(Debug)]
pub(crate) struct Transfer {
    /// The index of the host that sent the last byte.
    pub(crate) endpoint: usize,
    /// True if the blob is complete and its digest is right. False if the reader has stopped; it reports the
    /// reason.
    pub(crate) result: Result<bool, Error>,
}

struct TransferState<'a> {
    offset: u64,
    hasher: Hasher,
    pace: Pace<'a>,
    /// The offset, for the watcher.
    received: &'a AtomicU64,
}

/// Receives the progress of a transfer.
pub(crate) struct Watcher<'a> {
    /// The number of received bytes.
    pub(crate) received: &'a AtomicU64,
    /// See [`OnSlow`].
    pub(crate) on_slow: &'a OnSlow<'a>,
}

impl fmt::Debug for Watcher<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher").field("received", &self.received).finish_non_exhaustive()
    }
}

enum Attempt {
    Complete,
    ReaderGone,
    /// The body broke off. The rest can be requested.
    Broken(Error),
    /// The host does not send the blob.
    Refused(Error),
}

impl Repository {
    /// Returns domain and path.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the number of hosts.
    pub(crate) fn hosts(&self) -> usize {
        self.endpoints.len()
    }

    /// Sends a blob into `sink`, from the first host at or after index `first` that sends it.
    pub(crate) async fn transfer(
        &self,
        blob: &Descriptor,
        first: usize,
        sink: &mpsc::Sender<Piece>,
        watcher: &Watcher<'_>,
    ) -> Transfer {
        let what = format!("blob {}@{}", self.name, blob.digest);
        let mut progress = TransferState {
            offset: 0,
            hasher: Hasher::new(blob.digest.algorithm()),
            pace: Pace::new(self.registry.transport.timeouts().slow, watcher.on_slow),
            received: watcher.received,
        };
        let mut failure = None;
        let mut last = first;
        let external: Vec<Endpoint> =
            blob.urls.kept().iter().filter_map(|url| endpoint::external(url)).collect();
        for (place, endpoint) in self.endpoints.iter().chain(&external).enumerate().skip(first) {
            // External locations are only used if the registry does not have the blob.
            let unneeded = endpoint.external
                && failure.as_ref().is_some_and(|error: &Error| error.kind() != ErrorKind::NotFound);
            if !endpoint.pull || unneeded {
                continue;
            }
            last = place;
            match self.transfer_from(endpoint, &what, blob, &mut progress, sink).await {
                Ok(false) => return Transfer { endpoint: place, result: Ok(false) },
                Ok(true) => {
                    let result = finish(&what, blob, progress, sink).await.map(|()| true);
                    return Transfer { endpoint: place, result };
                }
                // Wrong content may have been passed on: the transfer has to start again.
                Err(error @ Error::Corrupt { .. }) => {
                    return Transfer { endpoint: place, result: Err(error) };
                }
                Err(error) => self.note(endpoint, error, &mut failure),
            }
        }
        let error = failure
            .unwrap_or_else(|| Error::not_found(what, "hosts.toml has no host with the capability to pull"));
        Transfer { endpoint: last, result: Err(error) }
    }

    /// Returns true if the blob is complete, false if the reader has stopped.
    async fn transfer_from(
        &self,
        endpoint: &Endpoint,
        what: &str,
        blob: &Descriptor,
        progress: &mut TransferState<'_>,
        sink: &mpsc::Sender<Piece>,
    ) -> Result<bool, Error> {
        let mut failures = 0;
        loop {
            let before = progress.offset;
            let error = match self.attempt(endpoint, what, blob, progress, sink).await {
                Attempt::Complete => return Ok(true),
                Attempt::ReaderGone => return Ok(false),
                Attempt::Refused(error) => return Err(error),
                Attempt::Broken(error) => error,
            };
            if progress.offset > before {
                failures = 0;
            }
            failures += 1;
            if failures > RETRIES {
                return Err(error);
            }
            tracing::info!(%error, offset = progress.offset, of = blob.size, "resuming transfer");
            progress.pace.wait(tokio::time::sleep(self.backoff(failures))).await?;
        }
    }

    async fn attempt(
        &self,
        endpoint: &Endpoint,
        what: &str,
        blob: &Descriptor,
        progress: &mut TransferState<'_>,
        sink: &mpsc::Sender<Piece>,
    ) -> Attempt {
        if progress.offset == blob.size && blob.size > 0 {
            return Attempt::Complete;
        }
        let headers = range(progress.offset);
        let rest = format!("blobs/{}", blob.digest);
        let answer = progress.pace.wait(self.send(endpoint, what, Method::GET, &rest, headers)).await;
        let response = match answer.flatten() {
            Ok(response) => response,
            Err(error) => return Attempt::Refused(error),
        };
        let mut skip = match start(what, &response, progress.offset, blob.size) {
            Ok(start) => progress.offset - start,
            Err(error) => return Attempt::Refused(error),
        };
        let mut body = response.into_body();
        loop {
            let piece = match progress.pace.wait(self.registry.transport.piece(what, &mut body)).await {
                Ok(piece) => piece,
                Err(error) => return Attempt::Refused(error),
            };
            let mut data = match piece {
                Ok(Some(data)) => data,
                Ok(None) if progress.offset == blob.size => return Attempt::Complete,
                Ok(None) => return Attempt::Broken(broken(what, "the body ended too early", blob, progress)),
                Err(Error::Unavailable { why, .. }) => {
                    return Attempt::Broken(broken(what, why.as_str(), blob, progress));
                }
                Err(error) => return Attempt::Broken(error),
            };
            let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
            progress.pace.received(length);
            if skip >= length {
                skip -= length;
                continue;
            }
            // Skips the bytes that were received before. `skip` is less than the length.
            let data = data.split_off(usize::try_from(skip).unwrap_or(0));
            skip = 0;
            progress.offset += u64::try_from(data.len()).unwrap_or(u64::MAX);
            if progress.offset > blob.size {
                let why = format!("larger than the {} bytes of its descriptor", blob.size);
                return Attempt::Refused(Error::corrupt(what, why));
            }
            progress.received.store(progress.offset, Ordering::Relaxed);
            progress.hasher.update(&data);
            if sink.send(Piece::Data(data)).await.is_err() {
                return Attempt::ReaderGone;
            }
        }
    }
}

/// Creates an error with the received bytes and the time.
fn broken(what: &str, why: &str, blob: &Descriptor, progress: &TransferState<'_>) -> Error {
    let TransferState { offset, pace, .. } = progress;
    let why = format!("{why}: received {offset} of {} bytes, {}", blob.size, pace.figures());
    Error::unavailable(what, why)
}

async fn finish(
    what: &str,
    blob: &Descriptor,
    progress: TransferState<'_>,
    sink: &mpsc::Sender<Piece>,
) -> Result<(), Error> {
    let digest = progress.hasher.finish();
    if digest != blob.digest {
        return Err(Error::corrupt(what, format!("digest is {digest} instead of {}", blob.digest)));
    }
    // A reader that has stopped reports its own error.
    drop(sink.send(Piece::End).await);
    Ok(())
}

fn range(offset: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if offset > 0
        && let Ok(value) = HeaderValue::from_str(&format!("bytes={offset}-"))
    {
        headers.insert(RANGE, value);
    }
    headers
}

/// Returns the offset at which an answer starts: the requested one, or 0 for a server without support for
/// ranges.
fn start(what: &str, response: &Response<Incoming>, offset: u64, size: u64) -> Result<u64, Error> {
    let length =
        header(response.headers(), CONTENT_LENGTH.as_str()).and_then(|text| text.parse::<u64>().ok());
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return match length {
            Some(length) if length != size => {
                Err(Error::corrupt(what, format!("size is {length} instead of {size}")))
            }
            _ => Ok(0),
        };
    }
    let range = header(response.headers(), CONTENT_RANGE.as_str());
    let first = range
        .as_deref()
        .and_then(|text| text.trim().strip_prefix("bytes "))
        .and_then(|text| text.split('-').next())
        .and_then(|text| text.parse::<u64>().ok());
    if first != Some(offset) {
        let why = format!("requested bytes from {offset}, received the range {range:?}");
        return Err(Error::unavailable(what, why));
    }
    Ok(offset)
}
