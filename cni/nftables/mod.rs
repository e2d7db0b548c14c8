//! What pods need of nftables, in one table named for berth (`inet berth`; what is about frames is in `bridge berth`, since
//! a table has one family). What others have in nftables is never touched, and a batch is atomic: there are the old
//! rules or the new, never none.
//!
//! The rules are the same however many pods there are: what is a pod's is an element of a set or map, found by hash, with
//! the attachment that it belongs to as its comment. So an attachment is one batch of elements, and what it has left can
//! be found when nothing else of it is known any more.
//!
//! * [`message`], [`expression`]: the wire; [`table`]: chains and sets; [`elements`]: what is in these
//! * [`masquerade`]: behind the host's address; [`ports`]: ports of the host; [`spoof`]: frames with a pod's own
//!   address alone
//! * [`watch`]: whether somebody takes something of that away; [`foreign`]: what others have that is in the way
//! * [`guard`]: which bridges forward to which pods; [`conntrack`]: connections that the kernel remembers

pub(crate) mod conntrack;
mod elements;
mod expression;
mod foreign;
pub(crate) mod guard;
pub(crate) mod masquerade;
mod message;
pub(crate) mod ports;
pub(crate) mod spoof;
mod table;
mod watch;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::call::Call;
use crate::result::CniResult;
use crate::{Context, Error, Result};

pub(crate) use elements::Comment;
pub(crate) use foreign::Packet;
#[cfg(test)]
pub(crate) use message::Attributes;
pub(crate) use message::attribute;
pub(crate) use watch::{Loss, Watch};

/// Which parts of the table this process has made: they are made again when an element finds no place, or when rules of
/// them are missing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Made {
    /// The chains of each part, with the number of their rules.
    parts: Arc<Mutex<HashMap<String, Vec<Rules>>>>,
}

/// A chain that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rules {
    family: message::Family,
    chain: String,
    count: usize,
}

impl Made {
    fn parts(&self) -> MutexGuard<'_, HashMap<String, Vec<Rules>>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, part: &str) -> bool {
        self.parts().contains_key(part)
    }

    fn insert(&self, part: &table::Part) {
        let rules = |chain: &table::Chain| Rules {
            family: part.family,
            chain: chain.name.clone(),
            count: chain.rules.len(),
        };
        self.parts().insert(part.name.clone(), part.chains.iter().map(rules).collect());
    }

    /// Nothing is known to be there.
    pub(crate) fn clear(&self) {
        self.parts().clear();
    }

    /// Whether all rules are there that were made.
    pub(crate) async fn is_whole(&self) -> Result<bool> {
        let wanted: Vec<Rules> = self.parts().values().flatten().cloned().collect();
        blocking("count the rules of pods".to_owned(), move || table::has_rules(&wanted)).await
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

/// What one attachment has in some sets.
enum Holding {
    /// These elements.
    Known(Vec<elements::Element>),
    /// Whatever has its name on it.
    Unknown,
}

impl Holding {
    /// The elements, where the result says all that an attachment has.
    fn of(call: &Call<'_>, result: &CniResult, elements: Vec<elements::Element>) -> Self {
        match call.knows_all && !result.ips.is_empty() && !elements.is_empty() {
            true => Self::Known(elements),
            false => Self::Unknown,
        }
    }
}

/// Takes away what one attachment has in some sets; what it does not have is gone already.
async fn release(owner: Comment, sets: &'static [table::Set], holding: Holding) -> Result<()> {
    let action = format!("remove the rules of {owner}");
    blocking(action, move || match holding {
        Holding::Known(known) => elements::remove(&known, &owner),
        Holding::Unknown => {
            let is_in = |set: &table::Set| sets.iter().any(|of| of.name == set.name);
            elements::remove_elements(is_in, |comment| *comment == owner).map(drop)
        }
    })
    .await
}

/// Takes away what attachments have of whom `gone` says so; whose it was.
pub(crate) async fn release_where(gone: impl Fn(&Comment) -> bool + Send + 'static) -> Result<Vec<Comment>> {
    let action = "remove rules of pods that are gone".to_owned();
    blocking(action, move || elements::remove_elements(|_| true, gone)).await
}

/// The attachments that have something in the tables.
pub(crate) async fn owners() -> Result<HashSet<Comment>> {
    blocking("list the rules of pods".to_owned(), elements::owners).await
}

/// What of others drops one of these packets for certain.
pub(crate) async fn obstacle(packets: Vec<Packet>) -> Result<Option<String>> {
    blocking("look at others' rules".to_owned(), move || first_obstacle(&packets)).await
}

/// See [`obstacle`]; for a thread that may wait.
pub(crate) fn first_obstacle(packets: &[Packet]) -> std::io::Result<Option<String>> {
    for packet in packets {
        if let Some(obstacle) = foreign::obstacle(packet)? {
            return Ok(Some(obstacle));
        }
    }
    Ok(None)
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
