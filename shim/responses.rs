//! Streams long lists to clients in parts.

use std::pin::Pin;

use futures_util::{Stream, StreamExt, stream};
use tonic::{Response, Status};

/// The number of objects in one message of a streamed list: far below the message limit of clients (4 MiB by default).
const PER_MESSAGE: usize = 100;

/// The reply of an RPC.
pub type Reply<T> = Result<Response<T>, Status>;

/// The stream of responses of an RPC.
pub type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Splits a list into messages of bounded size.
pub fn in_messages<T, M>(items: Vec<T>, message: impl Fn(Vec<T>) -> M + Send + 'static) -> ResponseStream<M>
where
    T: Send + 'static,
    M: Send + 'static,
{
    in_messages_of(PER_MESSAGE, items, message)
}

/// Splits a list into messages of at most `per_message` items.
pub fn in_messages_of<T, M>(
    per_message: usize,
    items: Vec<T>,
    message: impl Fn(Vec<T>) -> M + Send + 'static,
) -> ResponseStream<M>
where
    T: Send + 'static,
    M: Send + 'static,
{
    let pieces = stream::iter(items).chunks(per_message);
    Box::pin(pieces.map(move |piece| Ok(message(piece))))
}
