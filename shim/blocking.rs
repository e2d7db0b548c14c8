//! Work that blocks: it runs on threads that do not answer requests.

use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;

use crate::error::CriError;

/// A thread gets at least this many items, because a thread for a few items costs more than it saves.
const MIN_SHARE: usize = 32;

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

/// Runs `work` for every item, on as many threads as the machine has processors, and returns the results in the order of the
/// items.
///
/// # Errors
/// `Internal` when `work` panicked.
pub async fn blocking_each<T, R, F>(mut items: Vec<T>, work: F) -> Result<Vec<R>, CriError>
where
    T: Send + 'static,
    R: Send + 'static,
    F: Fn(T) -> R + Send + Sync + 'static,
{
    let work = Arc::new(work);
    let threads = available_parallelism().map_or(1, NonZero::get);
    let share = items.len().div_ceil(threads).max(MIN_SHARE);
    let mut shares = Vec::new();
    while !items.is_empty() {
        let rest = items.split_off(items.len().min(share));
        let (work, items) = (work.clone(), std::mem::replace(&mut items, rest));
        shares.push(blocking(move || Ok::<_, CriError>(items.into_iter().map(|item| work(item)).collect())));
    }
    let results: Vec<Vec<R>> = futures_util::future::try_join_all(shares).await?;
    Ok(results.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn results_have_the_order_of_the_items() {
        for count in [0, 1, MIN_SHARE, 10 * MIN_SHARE + 7] {
            let numbers: Vec<usize> = (0..count).collect();
            assert_eq!(blocking_each(numbers.clone(), |number| number).await.unwrap(), numbers);
        }
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let work = |number: usize| assert!(number != 300, "as expected");
        assert!(blocking_each((0..500).collect(), work).await.is_err());
    }
}
