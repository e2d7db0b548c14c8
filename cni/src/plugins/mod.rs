//! The plugins of a network. The built-in ones have a file each with their type's name: the keys, which are checked
//! when the configuration is read, and the implementation of the commands ([`commands`]).
//!
//! Plugins that create an interface: [`bridge`], [`ptp`], [`derived`] (macvlan, ipvlan, vlan, dummy), [`host_device`],
//! [`loopback`]. Plugins that change an existing interface: [`portmap`], [`bandwidth`], [`tuning`], [`firewall`],
//! [`sbr`], [`vrf`]. [`interface`] contains what the first group shares. Other plugins are programs
//! ([`outside`]).

pub(crate) mod bandwidth;
pub(crate) mod bridge;
mod commands;
pub(crate) mod derived;
pub(crate) mod firewall;
pub(crate) mod host_device;
pub(crate) mod interface;
pub(crate) mod loopback;
mod outside;
pub(crate) mod portmap;
pub(crate) mod ptp;
pub(crate) mod sbr;
pub(crate) mod tuning;
pub(crate) mod vrf;

use serde_json::Value;

use crate::call::Call;
use crate::external::{Program, Search, find};
use crate::ipam::Ipam;
use crate::names::is_name;
use crate::result::CniResult;
use crate::runtime_config::Bandwidth;
use crate::{Error, Result};

use commands::{Choice, Commands};
use outside::Missing;

/// Defines the plugins from a table of the built-in ones.
macro_rules! plugins {
    ($($kind:literal => $variant:ident($built_in:ty),)+) => {
        /// A plugin of a network.
        #[derive(Clone, Debug, PartialEq)]
        pub(crate) enum Plugin {
            $($variant(Box<$built_in>),)+
            /// A plugin program.
            External(Program),
            /// A plugin of a recorded configuration that does not exist any longer.
            Missing(Missing),
        }

        /// The types of the built-in plugins.
        pub const BUILT_IN: [&str; [$($kind),+].len()] = [$($kind),+];

        /// Compiles and checks the configuration of a plugin of a type.
        fn read(kind: &str, config: &Value, search: &Search) -> std::result::Result<Plugin, String> {
            match kind {
                $($kind => Ok(match <$built_in>::read(kind, config, search)? {
                    Choice::BuiltIn(plugin) => Plugin::$variant(Box::new(plugin)),
                    Choice::Program(program) => Plugin::External(program),
                }),)+
                kind => find(kind, search).map(Plugin::External),
            }
        }

        impl Plugin {
            /// See [`Commands::add`].
            pub(crate) async fn add(&self, call: &Call<'_>, config: &Value, previous: CniResult) -> Result<CniResult> {
                match self {
                    $(Self::$variant(plugin) => plugin.add(call, config, previous).await,)+
                    Self::External(plugin) => plugin.add(call, config, previous).await,
                    Self::Missing(plugin) => plugin.add(call, config, previous).await,
                }
            }

            /// See [`Commands::del`].
            pub(crate) async fn del(&self, call: &Call<'_>, config: &Value, previous: &CniResult) -> Result<()> {
                match self {
                    $(Self::$variant(plugin) => plugin.del(call, config, previous).await,)+
                    Self::External(plugin) => plugin.del(call, config, previous).await,
                    Self::Missing(plugin) => plugin.del(call, config, previous).await,
                }
            }

            /// See [`Commands::check`].
            pub(crate) async fn check(&self, call: &Call<'_>, config: &Value, previous: &CniResult) -> Result<()> {
                match self {
                    $(Self::$variant(plugin) => plugin.check(call, config, previous).await,)+
                    Self::External(plugin) => plugin.check(call, config, previous).await,
                    Self::Missing(plugin) => plugin.check(call, config, previous).await,
                }
            }

            /// See [`Commands::restore`].
            pub(crate) async fn restore(&self, call: &Call<'_>, result: &CniResult) -> Result<bool> {
                match self {
                    $(Self::$variant(plugin) => plugin.restore(call, result).await,)+
                    Self::External(plugin) => plugin.restore(call, result).await,
                    Self::Missing(plugin) => plugin.restore(call, result).await,
                }
            }

            /// See [`Commands::status`].
            pub(crate) async fn status(&self, call: &Call<'_>, config: &Value) -> Result<()> {
                match self {
                    $(Self::$variant(plugin) => plugin.status(call, config).await,)+
                    Self::External(plugin) => plugin.status(call, config).await,
                    Self::Missing(plugin) => plugin.status(call, config).await,
                }
            }

            /// See [`Commands::is_chained`].
            pub(crate) fn is_chained(&self) -> bool {
                match self {
                    $(Self::$variant(plugin) => plugin.is_chained(),)+
                    Self::External(plugin) => plugin.is_chained(),
                    Self::Missing(plugin) => plugin.is_chained(),
                }
            }

            /// See [`Commands::ipam`].
            pub(crate) fn ipam(&self) -> Option<&Ipam> {
                match self {
                    $(Self::$variant(plugin) => plugin.ipam(),)+
                    Self::External(plugin) => plugin.ipam(),
                    Self::Missing(plugin) => plugin.ipam(),
                }
            }

            /// See [`Commands::routes_by`].
            pub(crate) fn routes_by(&self) -> Option<String> {
                match self {
                    $(Self::$variant(plugin) => plugin.routes_by(),)+
                    Self::External(plugin) => plugin.routes_by(),
                    Self::Missing(plugin) => plugin.routes_by(),
                }
            }
        }
    };
}

plugins! {
    "bandwidth" => Bandwidth(Bandwidth),
    "bridge" => Bridge(bridge::Bridge),
    "dummy" => Dummy(derived::Derived),
    "firewall" => Firewall(firewall::Firewall),
    "host-device" => HostDevice(host_device::HostDevice),
    "ipvlan" => Ipvlan(derived::Derived),
    "loopback" => Loopback(loopback::Loopback),
    "macvlan" => Macvlan(derived::Derived),
    "portmap" => Portmap(portmap::Portmap),
    "ptp" => Ptp(ptp::Ptp),
    "sbr" => Sbr(sbr::Sbr),
    "tuning" => Tuning(tuning::Tuning),
    "vlan" => Vlan(derived::Derived),
    "vrf" => Vrf(vrf::Vrf),
}

/// Compiles and checks the configuration of one plugin.
pub(crate) fn compile(config: &Value, search: &Search) -> std::result::Result<Plugin, String> {
    let kind = config.get("type").and_then(Value::as_str).ok_or("type: missing")?;
    if !is_name(kind) {
        return Err(format!("type: invalid plugin name {kind:?}"));
    }
    if search.external.iter().any(|external| external == kind) {
        return find(kind, search).map(Plugin::External);
    }
    read(kind, config, search)
}

/// Like [`compile`], for a recorded configuration: a plugin that cannot be found fails when it is called.
pub(crate) fn compile_recorded(config: &Value, search: &Search) -> Plugin {
    compile(config, search).unwrap_or_else(|why| Plugin::Missing(Missing { why }))
}

impl Plugin {
    /// Whether programs are involved, which address namespaces by path.
    pub(crate) fn is_external(&self) -> bool {
        matches!(self, Self::External(_)) || self.ipam().is_some_and(Ipam::is_external)
    }
}

/// Combines an error with the errors of the rollback.
pub(crate) fn with_undo(error: Error, undone: impl IntoIterator<Item = Result<()>>) -> Error {
    let errors: Vec<Error> = undone.into_iter().filter_map(Result::err).collect();
    match errors.is_empty() {
        true => error,
        false => Error::Several([error].into_iter().chain(errors).collect()),
    }
}
