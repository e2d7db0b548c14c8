//! What pods need of nftables, in one table named for berth (`inet berth`; what is about frames is in `bridge berth`, since
//! a table has one family). What others have in nftables is never touched, and a batch is atomic: there are the old
//! rules or the new, never none.
//!
//! The rules are the same however many pods there are: what is a pod's is an element of a set or map, found by hash, with
//! the attachment that it belongs to as its comment. So an attachment is one batch of elements, and what it has left can
//! be found when nothing else of it is known any more.
//!
//! * [`message`], [`expression`]: the wire; [`table`]: chains, sets and elements
//! * [`masquerade`]: behind the host's address; [`ports`]: ports of the host; [`spoof`]: frames with a pod's own
//!   address alone
//! * [`watch`]: whether somebody takes the tables away
//! * [`guard`]: which bridges forward to which pods; [`conntrack`]: connections that the kernel remembers

pub(crate) mod conntrack;
mod expression;
pub(crate) mod guard;
pub(crate) mod masquerade;
mod message;
pub(crate) mod ports;
pub(crate) mod spoof;
mod table;
mod watch;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Context, Error, Result};

pub(crate) use table::Comment;
pub(crate) use watch::{Loss, Watch};

/// Which parts of the table this process has made: they are made again when an element finds no place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Made {
    parts: Arc<Mutex<HashSet<String>>>,
}

impl Made {
    fn has(&self, part: &str) -> bool {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).contains(part)
    }

    fn insert(&self, part: String) {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).insert(part);
    }

    fn clear(&self) {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Runs blocking work with nftables away from the threads that answer requests.
async fn blocking<T: Send + 'static>(
    action: String,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    let worked = joined.map_err(std::io::Error::other).and_then(|result| result);
    worked.map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::Io {
            action: format!("{action} (nftables; does the kernel have nf_tables with nat and fib?)"),
            source,
        },
        _ => Error::Io { action: format!("{action} (nftables)"), source },
    })
}

/// Takes away what one attachment has in some sets; what it does not have is gone already.
async fn release(owner: Comment, sets: &'static [table::Set]) -> Result<()> {
    let action = format!("remove the rules of {owner}");
    let is_in = |set: &table::Set| sets.iter().any(|of| of.name == set.name);
    blocking(action, move || table::remove_elements(is_in, |comment| *comment == owner).map(drop)).await
}

/// Takes away what attachments have of whom `gone` says so; whose it was.
pub(crate) async fn release_where(gone: impl Fn(&Comment) -> bool + Send + 'static) -> Result<Vec<Comment>> {
    let action = "remove rules of pods that are gone".to_owned();
    blocking(action, move || table::remove_elements(|_| true, gone)).await
}

/// The attachments that have something in the tables.
pub(crate) async fn owners() -> Result<HashSet<Comment>> {
    blocking("list the rules of pods".to_owned(), table::owners).await
}

/// Takes the tables away if no attachment has anything in them.
pub(crate) async fn remove_if_unused(made: &Made) -> Result<()> {
    let removed = tokio::task::spawn_blocking(table::remove_if_unused).await;
    if removed
        .map_err(std::io::Error::other)
        .and_then(|result| result)
        .doing("remove unused tables (nftables)")?
    {
        made.clear();
    }
    Ok(())
}
