//! Work that blocks: it runs on threads that do not answer requests.

use crate::error::CriError;

/// Runs `work` that can block (files, cgroups, mounts) on a thread that does not answer requests.
///
/// # Errors
/// The error of `work`, or `Internal` when it panicked.
pub async fn blocking<T, E, F>(work: F) -> Result<T, CriError>
where
    F: FnOnce() -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: Into<CriError> + Send + 'static,
{
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(result) => result.map_err(Into::into),
        Err(panic) => Err(CriError::internal("finish a blocking step", panic)),
    }
}
