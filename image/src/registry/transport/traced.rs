//! Traces of the requests of one task, for `berth` commands that show what a pull would send.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use super::{OutgoingRequest, without_query};
use crate::printable::Printable;

tokio::task_local! {
    /// Collects the requests and answers of a traced task.
    static TRACE: Mutex<Vec<String>>;
}

/// Runs `work` and returns its output with the requests that it sent and their answers.
pub(crate) async fn traced<F: Future>(work: F) -> (F::Output, Vec<String>) {
    let trace = Mutex::new(Vec::new());
    TRACE
        .scope(trace, async move {
            let output = work.await;
            let lines = TRACE
                .with(|trace| std::mem::take(&mut *trace.lock().unwrap_or_else(PoisonError::into_inner)));
            (output, lines)
        })
        .await
}

pub(super) fn trace(outgoing: &OutgoingRequest, answer: &dyn fmt::Display) {
    let add = |trace: &Mutex<Vec<String>>| {
        let line = format!("{} {}: {answer}", outgoing.method, without_query(&outgoing.uri));
        trace.lock().unwrap_or_else(PoisonError::into_inner).push(Printable::new(&line).to_string());
    };
    // An ordinary pull is not traced.
    TRACE.try_with(add).unwrap_or_default();
}
