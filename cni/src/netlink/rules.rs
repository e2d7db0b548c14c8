//! Routing rules, which select the table of a packet (ip-rule(8)).

use std::net::IpAddr;

use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use super::socket::Operation;
use super::{Netlink, NetlinkContext as _, unless_errno};
use crate::Result;

/// An installed routing rule.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// The address that the rule matches, if it matches exactly one.
    pub(crate) source: Option<IpAddr>,
    pub(crate) table: u32,
    pub(crate) message: RuleMessage,
}

impl Netlink {
    /// Adds a rule: packets from an address use a table.
    pub(crate) async fn add_source_rule(&self, from: IpAddr, table: u32) -> Result<()> {
        let mut message = RuleMessage::default();
        (message.header.family, message.header.src_len) = match from {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        message.header.action = RuleAction::ToTable;
        message.attributes.push(RuleAttribute::Source(from));
        match u8::try_from(table) {
            Ok(table) => message.header.table = table,
            Err(_) => message.attributes.push(RuleAttribute::Table(table)),
        }
        let added = self.request(Operation::Create, RouteNetlinkMessage::NewRule(message)).await;
        unless_errno(added, Errno::EXIST)
            .map(drop)
            .doing_netlink(format!("add a rule for packets from {from}"))
    }

    /// Lists the rules of both families.
    pub(crate) async fn rules(&self) -> Result<Vec<Rule>> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            let rules = self.list(RouteNetlinkMessage::GetRule(message)).await.doing_netlink("list rules")?;
            all.extend(rules.into_iter().filter_map(|message| match message {
                RouteNetlinkMessage::NewRule(rule) => Some(rule_of(rule)),
                _ => None,
            }));
        }
        Ok(all)
    }

    /// Removes a rule, if it exists.
    pub(crate) async fn remove_rule(&self, rule: RuleMessage) -> Result<()> {
        let removed = self.request(Operation::Delete, RouteNetlinkMessage::DelRule(rule)).await;
        unless_errno(removed, Errno::NOENT).map(drop).doing_netlink("remove a rule")
    }
}

fn rule_of(message: RuleMessage) -> Rule {
    let full_length = if message.header.family == AddressFamily::Inet { 32 } else { 128 };
    let source = message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Source(source) if message.header.src_len == full_length => Some(*source),
        _ => None,
    });
    let table = message.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    Rule { source, table: table.unwrap_or_else(|| u32::from(message.header.table)), message }
}
