//! Detects that the rules of pods were removed: `nft flush ruleset`, which nftables.service runs at each reload,
//! removes all tables; other programs flush the table, a chain or a set, or delete a rule or an element.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use futures_util::FutureExt as _;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, TokioSocket};
use rustix::io::Errno;
use rustix::net::sockopt;

use super::TABLE;
use super::comment::Comment;
use super::uapi::{
    NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_DELSET, NFT_MSG_DELSETELEM, NFT_MSG_DELTABLE,
    NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE, NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_USERDATA, NFTA_TABLE_NAME,
};
use crate::netlink::attributes::{attribute, attributes, text_of};
use crate::netlink::messages::messages;
use crate::netlink::netfilter::{Subsystem, attributes_of, is_own};

/// The group of notifications of changes in nftables (linux/netfilter/nfnetlink.h).
const NFNLGRP_NFTABLES: u32 = 7;

/// The delay between changes that remove nothing and the next read.
const DELAY: Duration = Duration::from_millis(50);

/// The rules and elements that other programs have removed, or may have removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loss {
    /// A table or a set of berth was removed, or notifications were lost.
    pub(crate) everything: bool,
    /// Rules or chains of berth's table have changed.
    pub(crate) rules: bool,
    /// The attachments whose elements were removed.
    pub(crate) elements: HashSet<Comment>,
}

impl Loss {
    /// The loss is unknown: everything may be missing.
    pub(crate) fn everything() -> Self {
        Self { everything: true, ..Self::default() }
    }

    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Adds the changes of received messages, except for changes of this process.
    fn add(&mut self, buffer: &[u8]) {
        for message in messages(buffer).filter(|message| !is_own(message.header.port_number)) {
            let body = attributes_of(&message);
            // `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_SET_TABLE` and `NFTA_SET_ELEM_LIST_TABLE` have the same number.
            if attribute(body, NFTA_TABLE_NAME).map(text_of).as_deref() != Some(TABLE) {
                continue;
            }
            let Some(kind) = Subsystem::Nftables.message(message.header.message_type) else { continue };
            match kind {
                NFT_MSG_DELTABLE | NFT_MSG_DELSET => self.everything = true,
                NFT_MSG_DELRULE | NFT_MSG_NEWRULE | NFT_MSG_DELCHAIN | NFT_MSG_NEWCHAIN => self.rules = true,
                NFT_MSG_DELSETELEM => {
                    let elements =
                        attribute(body, NFTA_SET_ELEM_LIST_ELEMENTS).into_iter().flat_map(attributes);
                    let comments =
                        elements.filter_map(|(_, element)| attribute(element, NFTA_SET_ELEM_USERDATA));
                    self.elements.extend(comments.filter_map(Comment::of_data));
                }
                _ => {}
            }
        }
    }
}

/// A socket that receives notifications of changes.
pub(crate) struct RuleWatch {
    socket: TokioSocket,
}

impl RuleWatch {
    /// Opens the socket in the namespace of the calling thread. Needs a tokio runtime.
    pub(crate) fn open() -> io::Result<Self> {
        /// The buffer size: enough for the elements of some thousand pods that are removed together.
        const BUFFER_SIZE: usize = 4 << 20;
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        // Only root may set this size. With a smaller buffer, more notifications are lost, and more is checked again.
        let _without_right = sockopt::set_socket_recv_buffer_size_force(socket.socket_ref(), BUFFER_SIZE);
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().add_membership(NFNLGRP_NFTABLES)?;
        Ok(Self { socket })
    }

    /// Waits until something was removed, or may have been removed.
    pub(crate) async fn loss(&mut self) -> io::Result<Loss> {
        let mut loss = Loss::default();
        while loss.is_nothing() {
            let mut received = Some(self.socket.recv_from_full().await);
            while let Some(next) = received {
                match next {
                    Ok((messages, _)) => loss.add(&messages),
                    Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                        return Ok(Loss::everything());
                    }
                    Err(error) => return Err(error),
                }
                // Read all that is queued, without waiting.
                received = self.socket.recv_from_full().now_or_never();
            }
            if loss.is_nothing() {
                // Batches the changes that an attachment of this process makes.
                tokio::time::sleep(DELAY).await;
            }
        }
        Ok(loss)
    }
}
