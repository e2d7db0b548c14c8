//! Facts about this host and about the daemon's own process that decide what containers can get. They are read once, when
//! the daemon starts.

use std::path::Path;

use oci_spec::runtime::PosixRlimitType;
use rustix::process::Resource;
use rustix::thread::CapabilitySet;

use crate::error::CriError;
use crate::lsm::apparmor::AppArmor;
use crate::lsm::selinux::SeLinux;

/// The facts.
#[derive(Debug)]
pub struct HostFacts {
    /// The state of AppArmor on this host.
    pub apparmor: AppArmor,
    /// The state of SELinux on this host.
    pub selinux: SeLinux,
    /// The id of this boot: a pod or container of another boot does not run.
    pub boot_id: String,
    /// The highest capability number of the kernel.
    pub last_capability: u8,
    /// The capabilities of the daemon as a mask: it can give only these to containers.
    pub capabilities: u64,
    /// The highest rlimits of containers: without CAP_SYS_RESOURCE they cannot exceed the daemon's hard limits.
    pub rlimit_ceilings: Vec<(PosixRlimitType, u64)>,
    /// The default of RLIMIT_SIGPENDING, computed as the kernel does: half of `threads-max`.
    pub pending_signals: u64,
    /// The daemon's oom_score_adj: without CAP_SYS_RESOURCE no process gets a lower one.
    pub oom_score_adj: i32,
}

impl HostFacts {
    /// Reads the facts.
    ///
    /// # Errors
    /// A file of procfs cannot be read.
    pub fn detect() -> Result<Self, CriError> {
        let fail = |what: &'static str| move |error: std::io::Error| CriError::internal(what, error);
        let own = rustix::thread::capabilities(None)
            .map_err(|error| CriError::internal("read capabilities", error))?;
        Ok(Self {
            apparmor: AppArmor::detect(Path::new("/")),
            selinux: SeLinux::detect(Path::new("/")),
            boot_id: boot_id().map_err(fail("read the boot id"))?,
            last_capability: read_number(Path::new("/proc/sys/kernel/cap_last_cap"))
                .map_err(fail("read the kernel's capabilities"))?,
            capabilities: own.permitted.bits(),
            rlimit_ceilings: rlimit_ceilings(own.permitted),
            pending_signals: read_number::<u64>(Path::new("/proc/sys/kernel/threads-max"))
                .map_err(fail("read the maximum number of threads"))?
                / 2,
            oom_score_adj: read_number(Path::new("/proc/self/oom_score_adj"))
                .map_err(fail("read the daemon's oom_score_adj"))?,
        })
    }

    /// Returns the score to which lower ones are raised. Without `restrict` they fail instead.
    #[must_use]
    pub fn oom_score_adj_floor(&self, restrict: bool) -> Option<i32> {
        restrict.then_some(self.oom_score_adj)
    }
}

const RLIMITS: [(PosixRlimitType, Resource); 16] = [
    (PosixRlimitType::RlimitAs, Resource::As),
    (PosixRlimitType::RlimitCore, Resource::Core),
    (PosixRlimitType::RlimitCpu, Resource::Cpu),
    (PosixRlimitType::RlimitData, Resource::Data),
    (PosixRlimitType::RlimitFsize, Resource::Fsize),
    (PosixRlimitType::RlimitLocks, Resource::Locks),
    (PosixRlimitType::RlimitMemlock, Resource::Memlock),
    (PosixRlimitType::RlimitMsgqueue, Resource::Msgqueue),
    (PosixRlimitType::RlimitNice, Resource::Nice),
    (PosixRlimitType::RlimitNofile, Resource::Nofile),
    (PosixRlimitType::RlimitNproc, Resource::Nproc),
    (PosixRlimitType::RlimitRss, Resource::Rss),
    (PosixRlimitType::RlimitRtprio, Resource::Rtprio),
    (PosixRlimitType::RlimitRttime, Resource::Rttime),
    (PosixRlimitType::RlimitSigpending, Resource::Sigpending),
    (PosixRlimitType::RlimitStack, Resource::Stack),
];

fn rlimit_ceilings(own: CapabilitySet) -> Vec<(PosixRlimitType, u64)> {
    if own.contains(CapabilitySet::SYS_RESOURCE) {
        return Vec::new();
    }
    let hard = |(kind, resource)| Some((kind, rustix::process::getrlimit(resource).maximum?));
    RLIMITS.into_iter().filter_map(hard).collect()
}

/// Returns the id of this boot (proc(5), `/proc/sys/kernel/random/boot_id`).
///
/// # Errors
/// The file cannot be read.
pub fn boot_id() -> std::io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned())
}

/// Reads a number from a file of procfs, such as `/proc/sys/kernel/cap_last_cap`.
///
/// # Errors
/// The file cannot be read, or does not contain a number of this type.
pub fn read_number<T: std::str::FromStr>(file: &Path) -> std::io::Result<T> {
    std::fs::read_to_string(file)?
        .trim()
        .parse()
        .map_err(|_| std::io::Error::new(std::io::ErrorKind::InvalidData, file.display().to_string()))
}
