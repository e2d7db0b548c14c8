//! Types of values that check themselves when they are read, so that an error has the line of the value. They become
//! plain types in [`super::Config`].

use std::fmt;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

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

checked_text! {
    /// An absolute path without `..`.
    AbsolutePath => PathBuf, absolute,
        "an absolute path without `..`"
}
checked_text! {
    /// A path that fits in the address of a unix socket (unix(7): 108 bytes including the terminating zero).
    SocketPath => PathBuf, socket_path,
        "an absolute path without `..` of at most 107 bytes, also as `unix:///run/...`"
}
checked_text! {
    /// The name of a network interface (netdevice(7): 15 bytes).
    BridgeName => String, interface_name,
        "the name of an interface: 1 to 15 letters, digits and `._-`"
}
checked_text! {
    /// A level such as `info`, or levels by module such as `info,berth_image=debug`.
    LogFilter => String, log_filter,
        "a level, or levels by module: `\"info,berth_image=debug\"`"
}
checked! {
    /// References of images.
    References, "Vec<String>", Vec<String> => Vec<String>, references,
        "a list of references, with a tag or a digest"
}
checked! {
    /// One path or a list of paths.
    PathList, "toml::Value", toml::Value => Vec<PathBuf>, paths,
        "an absolute path without `..`, or a list of them"
}
checked! {
    /// Names of RuntimeClass handlers: DNS labels, as Kubernetes requires.
    HandlerNames, "Vec<String>", Vec<String> => Vec<String>, handlers,
        "a list of DNS labels; a pod without a RuntimeClass needs none"
}
checked! {
    /// Types of built-in CNI plugins.
    PluginNames, "Vec<String>", Vec<String> => Vec<String>, plugins,
        "a list of types of built-in plugins"
}
checked! {
    /// Resource limits as `name=soft:hard`, by the names of setrlimit(2) in lower case.
    Ulimits, "Vec<String>", Vec<String> => Vec<String>, ulimits,
        "a list of limits: `\"nofile=1024:524288\"`, `\"core=0\"`, `\"memlock=unlimited\"`"
}
checked! {
    /// Ranges of pod addresses: at least one, at most one of each family, large enough for a gateway and a pod.
    Subnets, "Vec<IpNet>", Vec<IpNet> => Vec<IpNet>, subnets,
        "at most one range of each address family: `[\"10.83.0.0/16\", \"fd83:6265:7274::/64\"]`"
}
checked! {
    /// An MTU, at least 1280 bytes (required by IPv6) and at most 65535.
    Mtu, "u32", u32 => u32, mtu,
        "1280 to 65535"
}
checked! {
    /// Names without a rule.
    Names, "Vec<String>", Vec<String> => Vec<String>, unchanged,
        "a list of names"
}
checked! {
    /// A name without a rule.
    Name, "String", String => String, unchanged,
        "a text"
}
checked! {
    /// A degree of parallelism.
    Parallel, "usize", usize => usize, parallel,
        "1 to 64"
}

checked! {
    /// A limit of at least 1.
    AtLeastOne, "u64", u64 => u64, at_least_one,
        "a number of at least 1"
}
checked! {
    /// A depth of nested folders. The kernel accepts at most 2047: a path of one-letter names up to PATH_MAX.
    Depth, "usize", usize => usize, depth,
        "1 to 2047"
}

fn ulimits(limits: Vec<String>) -> Result<Vec<String>, InvalidValue> {
    for limit in &limits {
        if let Err(why) = crate::oci::rlimits::parse(limit) {
            return invalid(format!("{limit:?} {why}"));
        }
    }
    Ok(limits)
}

fn plugins(names: Vec<String>) -> Result<Vec<String>, InvalidValue> {
    let built_in = [&berth_cni::BUILT_IN[..], &berth_cni::BUILT_IN_IPAM].concat();
    match names.iter().find(|name| !built_in.contains(&name.as_str())) {
        Some(name) => invalid(format!("{name:?} is not one of {}", built_in.join(", "))),
        None => Ok(names),
    }
}

#[allow(clippy::unnecessary_wraps, reason = "checked types have a function that can fail")]
fn unchanged<T>(value: T) -> Result<T, InvalidValue> {
    Ok(value)
}

fn at_least_one(count: u64) -> Result<u64, InvalidValue> {
    if count > 0 { Ok(count) } else { invalid("is 0, and must be at least 1") }
}

fn depth(count: usize) -> Result<usize, InvalidValue> {
    if (1..=2047).contains(&count) { Ok(count) } else { invalid(format!("{count} is not from 1 to 2047")) }
}

fn references(names: Vec<String>) -> Result<Vec<String>, InvalidValue> {
    for name in &names {
        if let Err(error) = name.parse::<berth_image::Reference>() {
            return invalid(error.to_string());
        }
    }
    Ok(names)
}

fn absolute(text: String) -> Result<PathBuf, InvalidValue> {
    let path = PathBuf::from(&text);
    if text.contains('\0') || !path.is_absolute() {
        return invalid(format!("{text:?} is not an absolute path"));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return invalid(format!("{text:?} contains .."));
    }
    Ok(path)
}

fn socket_path(text: String) -> Result<PathBuf, InvalidValue> {
    // crictl and the kubelet write the socket as a URL.
    let path = absolute(text.strip_prefix("unix://").unwrap_or(&text).to_owned())?;
    let length = path.as_os_str().len();
    if length > 107 {
        return invalid(format!("{text:?} has {length} bytes; the path of a socket has at most 107"));
    }
    Ok(path)
}

fn interface_name(text: String) -> Result<String, InvalidValue> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if text.is_empty() || text.len() > 15 || !text.bytes().all(allowed) || text == "." || text == ".." {
        return invalid(format!("{text:?} is not the name of an interface: 1 to 15 letters, digits and ._-"));
    }
    Ok(text)
}

fn log_filter(text: String) -> Result<String, InvalidValue> {
    // This is stricter than the filter's parser, which panics at some letters beyond ASCII.
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_:=,-".contains(&byte);
    if text.is_empty() || !text.bytes().all(allowed) {
        return invalid(format!(
            "{text:?} is not a log level, nor a list such as \"info,berth_image=debug\""
        ));
    }
    // That parser treats a word that is not a level as a module with every level.
    let level =
        |part: &str| !part.is_empty() && part.parse::<tracing_subscriber::filter::LevelFilter>().is_ok();
    if let Some(part) = text.split(',').find(|part| !part.contains('=') && !level(part)) {
        return invalid(format!("{part:?} is not a log level: off, error, warn, info, debug and trace are"));
    }
    match tracing_subscriber::EnvFilter::builder().parse(&text) {
        Ok(_) => Ok(text),
        Err(error) => invalid(format!("{text:?} is not a log level: {error}")),
    }
}

fn paths(value: toml::Value) -> Result<Vec<PathBuf>, InvalidValue> {
    let one = |value: toml::Value| match value {
        toml::Value::String(text) => absolute(text),
        other => invalid(format!("{other} is not a path")),
    };
    match value {
        toml::Value::Array(values) => values.into_iter().map(one).collect(),
        value => one(value).map(|path| vec![path]),
    }
}

fn handlers(names: Vec<String>) -> Result<Vec<String>, InvalidValue> {
    for name in &names {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let framed = !name.starts_with('-') && !name.ends_with('-');
        if name.is_empty() || name.len() > 63 || !name.bytes().all(allowed) || !framed {
            return invalid(format!(
                "{name:?} is not a handler's name: 1 to 63 lowercase letters, digits and -"
            ));
        }
    }
    Ok(names)
}

fn subnets(subnets: Vec<IpNet>) -> Result<Vec<IpNet>, InvalidValue> {
    if subnets.is_empty() {
        return invalid("is empty; pods need a range of addresses");
    }
    for subnet in &subnets {
        if subnet.addr() != subnet.network() {
            return invalid(format!("{subnet} is an address in a range; the range is {}", subnet.trunc()));
        }
        if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
            return invalid(format!("{subnet} is too small for a gateway and a pod"));
        }
    }
    let v4 = subnets.iter().filter(|subnet| matches!(subnet, IpNet::V4(_))).count();
    if v4 > 1 || subnets.len() - v4 > 1 {
        return invalid("has two ranges of one family; a pod gets one address of each");
    }
    Ok(subnets)
}

fn mtu(mtu: u32) -> Result<u32, InvalidValue> {
    if (1280..=65535).contains(&mtu) { Ok(mtu) } else { invalid(format!("{mtu} is not from 1280 to 65535")) }
}

fn parallel(count: usize) -> Result<usize, InvalidValue> {
    if (1..=64).contains(&count) { Ok(count) } else { invalid(format!("{count} is not from 1 to 64")) }
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Entries for journald if it receives standard error, else text.
    #[default]
    Auto,
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
    /// Entries with fields for journald.
    Journald,
}

impl Described for LogFormat {
    const VALUES: &'static str = "`\"auto\"`, `\"text\"`, `\"json\"` or `\"journald\"`";
}

/// The creator of pods' parent cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// systemd if it runs the host on cgroup v2, else the kubelet.
    #[default]
    Auto,
    /// systemd: parents are slices.
    Systemd,
    /// The kubelet: parents are plain paths.
    Cgroupfs,
}

impl Described for CgroupDriver {
    const VALUES: &'static str = "`\"auto\"`, `\"systemd\"` or `\"cgroupfs\"`";
}

/// Whether systemd is the host's init (`sd_booted(3)`) and cgroup v2 is the only hierarchy.
pub(super) fn is_systemd_host() -> bool {
    Path::new("/run/systemd/system").is_dir() && Path::new("/sys/fs/cgroup/cgroup.controllers").is_file()
}

/// A number of bytes, written without a unit or with a binary one: `64GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "toml::Value", into = "String")]
pub struct ByteSize(u64);

/// The units, largest first: a size is written in the first unit that divides it.
const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl ByteSize {
    /// A size of `count` MiB.
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// A size of `count` GiB.
    #[must_use]
    pub const fn gib(count: u64) -> Self {
        Self(count << 30)
    }

    /// Returns the number of bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl Described for ByteSize {
    const VALUES: &'static str = "bytes, or with a unit: `\"512MiB\"`, `\"64GiB\"`";
}

impl FromStr for ByteSize {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let (digits, unit) = UNITS
            .iter()
            .find_map(|(name, size)| text.strip_suffix(name).map(|digits| (digits, *size)))
            .unwrap_or((text, 1));
        let count: Option<u64> = digits.trim_end().parse().ok();
        match count.and_then(|count| count.checked_mul(unit)) {
            Some(bytes) if bytes > 0 => Ok(Self(bytes)),
            _ => invalid(format!("{text:?} is not a size such as \"512MiB\" or \"64GiB\"")),
        }
    }
}

impl TryFrom<toml::Value> for ByteSize {
    type Error = InvalidValue;

    fn try_from(value: toml::Value) -> Result<Self, InvalidValue> {
        match value {
            toml::Value::String(text) => text.parse(),
            toml::Value::Integer(bytes) => bytes.to_string().parse(),
            other => invalid(format!("{other} is not a size such as \"512MiB\" or \"64GiB\"")),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, size)| self.0.is_multiple_of(*size)) {
            Some((name, size)) => write!(f, "{}{name}", self.0 / size),
            None => write!(f, "{}", self.0),
        }
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> Self {
        size.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("1", 1), ("10KiB", 10 << 10), ("512MiB", 512 << 20), ("64 GiB", 64 << 30)] {
            assert_eq!(text.parse::<ByteSize>().unwrap().bytes(), bytes, "{text}");
        }
        for text in ["", "0", "-1", "1.5GiB", "GiB", "10GB", "99999999TiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        assert_eq!(ByteSize::gib(64).to_string(), "64GiB");
    }

    #[test]
    fn values_that_break_a_rule_are_refused() {
        assert!("relative".parse::<AbsolutePath>().is_err());
        assert!("/a/../b".parse::<AbsolutePath>().is_err());
        assert!(format!("/{}", "a".repeat(107)).parse::<SocketPath>().is_err());
        assert_eq!(
            PathBuf::from("unix:///run/b.sock".parse::<SocketPath>().unwrap()),
            Path::new("/run/b.sock")
        );
        for name in ["", "a/b", "sixteen-letters-", "..", "a b"] {
            assert!(name.parse::<BridgeName>().is_err(), "{name}");
        }
        for filter in ["", "loud", "berth=loud", "info,", "\t㐀="] {
            assert!(filter.parse::<LogFilter>().is_err(), "{filter}");
        }
        assert!("info,berth_image=debug".parse::<LogFilter>().is_ok());
        assert!(handlers(vec!["gvisor-2".to_owned()]).is_ok());
        assert!(plugins(vec!["portmap".to_owned(), "host-local".to_owned()]).is_ok());
        assert!(plugins(vec!["calico".to_owned()]).is_err(), "not built in");
        for name in ["", "A", "-a", "a-", "a_b"] {
            assert!(handlers(vec![name.to_owned()]).is_err(), "{name}");
        }
    }

    #[test]
    fn ranges_are_of_different_families_and_have_room() {
        let nets = |texts: &[&str]| subnets(texts.iter().map(|text| text.parse().unwrap()).collect());
        assert!(nets(&["10.83.0.0/16"]).is_ok());
        assert!(nets(&["10.83.0.0/16", "fd83::/64"]).is_ok());
        for wrong in [&[][..], &["10.83.0.1/16"], &["10.83.0.0/31"], &["10.1.0.0/16", "10.2.0.0/16"]] {
            assert!(nets(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn a_size_is_read_as_it_is_written(bytes in 1_u64..) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse::<ByteSize>().unwrap().bytes(), bytes);
        }

        #[test]
        fn no_text_breaks_a_parser(text in ".*") {
            drop(text.parse::<ByteSize>());
            drop(text.parse::<SocketPath>());
            drop(text.parse::<LogFilter>());
        }

        #[test]
        fn no_filter_breaks_the_filters_parser(text in "[a-z0-9_:=,-]{1,24}") {
            drop(text.parse::<LogFilter>());
        }
    }
}
