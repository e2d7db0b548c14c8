//! Types of values that check themselves when they are read, so that an error has the line of the value. They become
//! plain types in [`super::Config`].
//!
//! * [`byte_size`]: numbers of bytes
//! * [`cgroup_driver`]: the choice between systemd and plain cgroups
//! * [`logging`]: the levels and the format of the log
//! * [`names`]: names of images, RuntimeClass handlers, plugins and resource limits
//! * [`network`]: the built-in pod network
//! * [`numbers`]: numbers with limits
//! * [`paths`]: absolute paths, and paths of sockets

use std::net::SocketAddr;

/// A value that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(String);

fn invalid<T>(why: impl Into<String>) -> Result<T, InvalidValue> {
    Err(InvalidValue(why.into()))
}

/// A type of values with a description of what it accepts.
pub trait Described {
    /// The accepted values, for docs/configuration.md.
    const VALUES: &'static str;
}

impl Described for bool {
    const VALUES: &'static str = "`true` or `false`";
}

impl Described for SocketAddr {
    const VALUES: &'static str = "an IP address and a port: `\"127.0.0.1:9470\"`, `\"[::1]:9470\"`";
}

/// Defines a type around `$inner` that is read as `$raw` and checked by a function.
macro_rules! checked {
    ($(#[$doc:meta])* $name:ident, $raw_text:literal, $raw:ty => $inner:ty, $check:ident, $values:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize)]
        #[serde(try_from = $raw_text)]
        pub struct $name($inner);

        impl TryFrom<$raw> for $name {
            type Error = InvalidValue;

            fn try_from(raw: $raw) -> Result<Self, InvalidValue> {
                $check(raw).map(Self)
            }
        }

        impl From<$name> for $inner {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl From<$name> for Option<$inner> {
            fn from(value: $name) -> Self {
                Some(value.0)
            }
        }

        impl Described for $name {
            const VALUES: &'static str = $values;
        }
    };
}

/// Defines a checked type that is read as text, also from flags.
macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident => $inner:ty, $check:ident, $values:literal) => {
        checked! { $(#[$doc])* $name, "String", String => $inner, $check, $values }

        impl FromStr for $name {
            type Err = InvalidValue;

            fn from_str(text: &str) -> Result<Self, InvalidValue> {
                Self::try_from(text.to_owned())
            }
        }
    };
}

mod byte_size;
mod cgroup_driver;
mod logging;
mod names;
mod network;
mod numbers;
mod paths;

pub use byte_size::ByteSize;
pub use cgroup_driver::CgroupDriver;
pub(super) use cgroup_driver::is_systemd_host;
pub use logging::{LogFilter, LogFormat};
pub(super) use names::check_handler_name;
pub use names::{HandlerNames, Name, Names, PluginNames, References, Ulimits};
pub use network::{BridgeName, Mtu, Subnets};
pub use numbers::{AtLeastOne, Depth, Parallel};
pub use paths::{AbsolutePath, PathList, SocketPath};
