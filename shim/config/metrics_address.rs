//! The address of the metrics: TCP, or a unix socket as `unix:///PATH`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use super::value::{Described, SocketPath};

/// The start of the address of a unix socket, as in the kubelet's `--container-runtime-endpoint`.
const UNIX: &str = "unix://";

/// Where metrics are served.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum MetricsAddress {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl Described for MetricsAddress {
    const VALUES: &'static str = "an IP address and a port, or a unix socket: `\"127.0.0.1:9470\"`, `\"unix:///run/berth/metrics.sock\"`";
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix(UNIX) {
            Some(path) => path
                .parse::<SocketPath>()
                .map(|path| Self::Unix(path.into()))
                .map_err(|error| format!("invalid socket path: {error}")),
            None => text
                .parse()
                .map(Self::Tcp)
                .map_err(|_| format!("{text:?} is neither ADDRESS:PORT nor {UNIX}/PATH")),
        }
    }
}

impl TryFrom<String> for MetricsAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

impl Serialize for MetricsAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        for text in ["127.0.0.1:9470", "[::1]:9470", "unix:///run/berth/metrics.sock"] {
            assert_eq!(text.parse::<MetricsAddress>().unwrap().to_string(), text);
        }
        for text in ["", "9470", "127.0.0.1", "unix://relative", "http://127.0.0.1:9470", "host"] {
            assert!(text.parse::<MetricsAddress>().is_err(), "{text}");
        }
    }
}
