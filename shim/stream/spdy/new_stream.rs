//! A stream as a session hands it over.

use super::super::inbox::Incoming;
use super::super::outgoing::Outgoing;
use super::frame::StreamId;
use super::headers::StreamHeaders;

/// A stream that the client has opened. The reply was already sent.
#[derive(Debug)]
pub struct NewStream {
    /// The stream's number.
    pub id: StreamId,
    /// The headers of the stream.
    pub headers: StreamHeaders,
    /// The client's data.
    pub incoming: Incoming,
    /// Sends data to the client.
    pub outgoing: Outgoing,
}
