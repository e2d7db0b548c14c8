//! The nftables rules of pods, in one table of berth (`inet berth`; rules for frames are in `bridge berth`, because a
//! table has one family). Foreign tables are never changed. A batch is atomic: either the old or the new rules apply,
//! never none.
//!
//! The number of rules does not depend on the number of pods: the data of a pod are elements of sets and maps, found by
//! hash, with the attachment as their comment. An attachment is therefore one batch of elements, and its elements can
//! be found when all its other state is lost.
//!
//! * [`message`], [`expression`], [`uapi`]: the wire format
//! * [`sets`]: the sets and maps; [`elements`]: their elements; [`comment`]: the owners of elements
//! * [`table`]: installs the tables; [`chains`]: the chains on the host
//! * [`masquerade`]: source NAT; [`ports`]: host ports; [`spoof`]: drops frames with a foreign source address
//! * [`watch`]: detects that rules were removed; [`foreign`]: foreign rules that drop pods' packets
//! * [`describe`]: elements as text
//! * [`guard`]: isolation of bridges; [`conntrack`]: connection tracking entries

mod chains;
mod comment;
pub(crate) mod conntrack;
pub(crate) mod describe;
mod elements;
mod expression;
mod foreign;
pub(crate) mod guard;
pub(crate) mod masquerade;
mod message;
pub(crate) mod ports;
mod sets;
pub(crate) mod spoof;
mod table;
mod uapi;
mod watch;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::result::CniResult;
use crate::{Context, Error, Result};

pub(crate) use comment::Comment;
pub(crate) use foreign::Packet;
pub(crate) use watch::{Loss, RuleWatch};

/// The name of the tables.
const TABLE: &str = "berth";

/// The rules of one attachment.
#[derive(Clone, Debug)]
pub(crate) struct Rules<'a> {
    /// The attachment that the elements belong to.
    pub(crate) owner: Comment,
    /// The parts that this process has installed.
    pub(crate) installed: &'a InstalledParts,
    /// The result lists everything that the plugins created.
    pub(crate) knows_all: bool,
}

/// The parts of the table that this process has installed. A part is installed again when an element does not find its
/// set, or when rules are missing.
#[derive(Clone, Debug, Default)]
pub(crate) struct InstalledParts {
    /// The chains of each part, with their number of rules.
    parts: Arc<Mutex<HashMap<String, Vec<ChainRules>>>>,
}

/// An installed chain.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ChainRules {
    family: message::Family,
    chain: String,
    count: usize,
}

impl InstalledParts {
    fn parts(&self) -> MutexGuard<'_, HashMap<String, Vec<ChainRules>>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, part: &str) -> bool {
        self.parts().contains_key(part)
    }

    fn insert(&self, part: &table::TablePart) {
        let rules = |chain: &table::Chain| ChainRules {
            family: part.family,
            chain: chain.name.clone(),
            count: chain.rules.len(),
        };
        self.parts().insert(part.name.clone(), part.chains.iter().map(rules).collect());
    }

    /// Assumes that nothing is installed.
    pub(crate) fn clear(&self) {
        self.parts().clear();
    }

    /// Whether all rules of the installed parts exist.
    pub(crate) async fn is_whole(&self) -> Result<bool> {
        let expected: Vec<ChainRules> = self.parts().values().flatten().cloned().collect();
        blocking("count the rules of pods".to_owned(), move || table::has_rules(&expected)).await
    }
}

/// Runs blocking work with nftables on a blocking thread, not on one that serves requests.
async fn blocking<T: Send + 'static>(
    action: String,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    let result = joined.map_err(std::io::Error::other).and_then(|inner| inner);
    result.map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::Io {
            action: format!("{action} (nftables; does the kernel have nf_tables with nat and fib?)"),
            source,
        },
        _ => Error::Io { action: format!("{action} (nftables)"), source },
    })
}

/// The elements of an attachment that are to be removed from some sets.
enum Removal {
    /// These elements.
    Elements(Vec<elements::Element>),
    /// All elements with the attachment's comment.
    AllOfOwner,
}

impl Removal {
    /// Selects the given elements if the result lists everything that the attachment has.
    fn of(rules: &Rules<'_>, result: &CniResult, elements: Vec<elements::Element>) -> Self {
        match rules.knows_all && !result.ips.is_empty() && !elements.is_empty() {
            true => Self::Elements(elements),
            false => Self::AllOfOwner,
        }
    }
}

/// Removes the elements of an attachment from some sets, if there are any.
async fn release(owner: &Comment, sets: &'static [sets::Set], removal: Removal) -> Result<()> {
    let action = format!("remove the rules of {owner}");
    let owner = owner.clone();
    blocking(action, move || match removal {
        Removal::Elements(elements) => elements::remove(&elements, &owner),
        Removal::AllOfOwner => {
            let is_in = |set: &sets::Set| sets.iter().any(|of| of.name == set.name);
            elements::remove_elements(is_in, |comment| *comment == owner).map(drop)
        }
    })
    .await
}

/// Removes the elements of all attachments that fulfil `gone`. Returns these attachments.
pub(crate) async fn release_where(gone: impl Fn(&Comment) -> bool + Send + 'static) -> Result<Vec<Comment>> {
    let action = "remove the rules of removed pods".to_owned();
    blocking(action, move || elements::remove_elements(|_| true, gone)).await
}

/// Returns the attachments that have elements in the tables.
pub(crate) async fn owners() -> Result<HashSet<Comment>> {
    blocking("list the rules of pods".to_owned(), elements::owners).await
}

/// Returns a foreign rule that certainly drops one of these packets.
pub(crate) async fn obstacle(packets: Vec<Packet>) -> Result<Option<String>> {
    blocking("read foreign rules".to_owned(), move || first_obstacle(&packets)).await
}

/// Like [`obstacle`], on the calling thread, which must be allowed to block.
pub(crate) fn first_obstacle(packets: &[Packet]) -> std::io::Result<Option<String>> {
    for packet in packets {
        if let Some(obstacle) = foreign::obstacle(packet)? {
            return Ok(Some(obstacle));
        }
    }
    Ok(None)
}

/// Installs a rule that masquerades all packets, to find out whether the kernel supports it. On the calling thread, in its
/// network namespace.
pub(crate) fn try_masquerade() -> std::io::Result<()> {
    table::add(&InstalledParts::default(), &[masquerade::of_all_packets()], &[], &Comment::new("", "", ""))
}

/// Removes the tables if they contain no elements of attachments.
pub(crate) async fn remove_if_unused(installed: &InstalledParts) -> Result<()> {
    let removed = tokio::task::spawn_blocking(table::remove_if_unused).await;
    if removed
        .map_err(std::io::Error::other)
        .and_then(|result| result)
        .doing("remove unused tables (nftables)")?
    {
        installed.clear();
    }
    Ok(())
}
