//! Whether somebody takes the tables away: `nft flush ruleset`, which nftables.service does at each reload, spares nobody's.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, TokioSocket};
use rustix::io::Errno;

use super::message::{self, DELETE_TABLE, attribute, text_of};
use super::table::TABLE;

/// `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h): what changes in nftables.
const GROUP: u32 = 7;

/// What has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// A table of ours, with all that is of pods.
    Table,
    /// More has changed than the socket can hold: nobody knows.
    Unknown,
}

/// A socket that hears of changes.
pub(crate) struct Watch {
    socket: TokioSocket,
}

impl Watch {
    /// In the namespace of the calling thread. Needs a tokio runtime.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().add_membership(GROUP)?;
        Ok(Self { socket })
    }

    /// Waits until a table of ours has gone, or may have.
    pub(crate) async fn loss(&mut self) -> io::Result<Loss> {
        loop {
            match self.socket.recv_from_full().await {
                Ok((messages, _)) if takes_a_table_away(&messages) => return Ok(Loss::Table),
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                    return Ok(Loss::Unknown);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn takes_a_table_away(buffer: &[u8]) -> bool {
    /// `NFTA_TABLE_NAME`.
    const NAME: u16 = 1;
    message::messages(buffer).any(|message| {
        let name = message.body.get(4..).and_then(|body| attribute(body, NAME)).map(text_of);
        message.kind == message::SUBSYSTEM | DELETE_TABLE && name.as_deref() == Some(TABLE)
    })
}
