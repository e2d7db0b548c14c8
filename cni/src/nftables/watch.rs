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
use super::message::{
    self, DELETE_CHAIN, DELETE_ELEMENT, DELETE_RULE, DELETE_SET, DELETE_TABLE, NEW_CHAIN, NEW_RULE,
};
use crate::attributes::{attribute, attributes, text_of};

/// `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h): notifications of changes in nftables.
const GROUP: u32 = 7;

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
        /// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_SET_TABLE`, `NFTA_SET_ELEM_LIST_TABLE`.
        const NAME: u16 = 1;
        /// `NFTA_SET_ELEM_LIST_ELEMENTS`, and in each `NFTA_SET_ELEM_USERDATA`.
        const ELEMENTS: u16 = 3;
        const COMMENT: u16 = 6;
        for message in message::messages(buffer).filter(|message| !message::is_own(message.port)) {
            let Some(body) = message.body.get(4..) else { continue };
            if attribute(body, NAME).map(text_of).as_deref() != Some(TABLE) {
                continue;
            }
            let Some(kind) = message.kind.checked_sub(message::SUBSYSTEM) else { continue };
            match kind {
                DELETE_TABLE | DELETE_SET => self.everything = true,
                DELETE_RULE | NEW_RULE | DELETE_CHAIN | NEW_CHAIN => self.rules = true,
                DELETE_ELEMENT => {
                    let elements = attribute(body, ELEMENTS).into_iter().flat_map(attributes);
                    let comments = elements.filter_map(|(_, element)| attribute(element, COMMENT));
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
        socket.socket_mut().add_membership(GROUP)?;
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
