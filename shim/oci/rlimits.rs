//! The rlimits of a container. The CRI does not contain any, so they come from the configuration, or else from fixed
//! defaults. Every rlimit is set, so that none is inherited from the daemon.

use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType};

use super::{Host, Result, error};

/// The default limit of open files. Programs that close every possible descriptor take very long with the daemon's
/// limit; this is the common value under Docker and containerd.
const OPEN_FILES: u64 = 1 << 20;

/// The default limits: those of the kernel's first process (getrlimit(2)), except for open files and processes. The
/// cgroup limits processes per container; this limit would count those of a user in all containers.
const DEFAULTS: [(PosixRlimitType, u64, u64); 15] = [
    (PosixRlimitType::RlimitNofile, OPEN_FILES, OPEN_FILES),
    (PosixRlimitType::RlimitAs, NONE, NONE),
    (PosixRlimitType::RlimitCore, 0, NONE),
    (PosixRlimitType::RlimitCpu, NONE, NONE),
    (PosixRlimitType::RlimitData, NONE, NONE),
    (PosixRlimitType::RlimitFsize, NONE, NONE),
    (PosixRlimitType::RlimitLocks, NONE, NONE),
    (PosixRlimitType::RlimitMemlock, 8 << 20, 8 << 20),
    (PosixRlimitType::RlimitMsgqueue, 819_200, 819_200),
    (PosixRlimitType::RlimitNice, 0, 0),
    (PosixRlimitType::RlimitNproc, NONE, NONE),
    (PosixRlimitType::RlimitRss, NONE, NONE),
    (PosixRlimitType::RlimitRtprio, 0, 0),
    (PosixRlimitType::RlimitRttime, NONE, NONE),
    (PosixRlimitType::RlimitStack, 8 << 20, NONE),
];

/// A resource without a limit (`RLIM_INFINITY`).
const NONE: u64 = u64::MAX;

const NAMES: [(&str, PosixRlimitType); 16] = [
    ("as", PosixRlimitType::RlimitAs),
    ("core", PosixRlimitType::RlimitCore),
    ("cpu", PosixRlimitType::RlimitCpu),
    ("data", PosixRlimitType::RlimitData),
    ("fsize", PosixRlimitType::RlimitFsize),
    ("locks", PosixRlimitType::RlimitLocks),
    ("memlock", PosixRlimitType::RlimitMemlock),
    ("msgqueue", PosixRlimitType::RlimitMsgqueue),
    ("nice", PosixRlimitType::RlimitNice),
    ("nofile", PosixRlimitType::RlimitNofile),
    ("nproc", PosixRlimitType::RlimitNproc),
    ("rss", PosixRlimitType::RlimitRss),
    ("rtprio", PosixRlimitType::RlimitRtprio),
    ("rttime", PosixRlimitType::RlimitRttime),
    ("sigpending", PosixRlimitType::RlimitSigpending),
    ("stack", PosixRlimitType::RlimitStack),
];

/// Parses a limit: `name=soft:hard`, or `name=value` for both; -1 and `unlimited` mean no limit.
///
/// # Errors
/// The reason why the text is invalid.
pub fn parse(text: &str) -> std::result::Result<(PosixRlimitType, u64, u64), String> {
    let (name, values) = text.split_once('=').ok_or("is not of the form name=soft:hard")?;
    let entry = NAMES.iter().find(|(known, _)| *known == name);
    let (_, kind) =
        entry.ok_or_else(|| format!("is not one of the limits {}", NAMES.map(|n| n.0).join(", ")))?;
    let number = |text: &str| match text {
        "-1" | "unlimited" => Ok(NONE),
        text => text.parse::<u64>().map_err(|_| format!("has {text:?}, which is not a number")),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if soft > hard {
        return Err("has a soft limit above the hard one".to_owned());
    }
    Ok((*kind, soft, hard))
}

/// Returns the limits of a container, independently of the daemon's limits.
pub(super) fn of_container(host: &Host) -> Result<Vec<PosixRlimit>> {
    let mut limits = DEFAULTS.to_vec();
    limits.push((PosixRlimitType::RlimitSigpending, host.pending_signals, host.pending_signals));
    for text in &host.default_ulimits {
        let limit = parse(text).map_err(|why| error("default_ulimits", format!("{text:?} {why}")))?;
        limits.retain(|existing| existing.0 != limit.0);
        limits.push(limit);
    }
    limits.into_iter().map(|limit| rlimit(limit, host)).collect()
}

fn rlimit((kind, soft, hard): (PosixRlimitType, u64, u64), host: &Host) -> Result<PosixRlimit> {
    let most = host.rlimit_ceilings.iter().find(|(known, _)| *known == kind).map_or(NONE, |(_, most)| *most);
    PosixRlimitBuilder::default()
        .typ(kind)
        .soft(soft.min(most))
        .hard(hard.min(most))
        .build()
        .map_err(|oci| error("rlimits", oci.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_names_and_one_or_two_numbers() {
        assert_eq!(parse("nofile=10:20"), Ok((PosixRlimitType::RlimitNofile, 10, 20)));
        assert_eq!(parse("core=0"), Ok((PosixRlimitType::RlimitCore, 0, 0)));
        assert_eq!(parse("memlock=unlimited"), Ok((PosixRlimitType::RlimitMemlock, u64::MAX, u64::MAX)));
        for wrong in ["nofile", "files=1", "nofile=x", "nofile=2:1", "nofile=1:2:3"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_configuration_replaces_defaults() {
        let host = Host {
            default_ulimits: vec!["nofile=10:20".to_owned(), "core=0".to_owned()],
            rlimit_ceilings: vec![(PosixRlimitType::RlimitNofile, 15), (PosixRlimitType::RlimitNproc, 70)],
            pending_signals: 5,
            ..Host::default()
        };
        let limits = of_container(&host).unwrap();
        let of = |kind| {
            let mut found = limits.iter().filter(|limit| limit.typ() == kind);
            let limit = found.next().unwrap();
            assert!(found.next().is_none(), "{kind:?} is set once");
            (limit.soft(), limit.hard())
        };
        assert_eq!(of(PosixRlimitType::RlimitNofile), (10, 15));
        assert_eq!(of(PosixRlimitType::RlimitCore), (0, 0));
        assert_eq!(of(PosixRlimitType::RlimitNproc), (70, 70));
        assert_eq!(of(PosixRlimitType::RlimitStack), (8 << 20, NONE));
        assert_eq!(of(PosixRlimitType::RlimitSigpending), (5, 5));
        for (name, kind) in NAMES {
            assert!(limits.iter().any(|limit| limit.typ() == kind), "{name} would be the daemon's");
        }
    }
}
