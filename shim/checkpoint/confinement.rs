//! Checks restored processes, which do not run yet, against what the new container may have. The images of a checkpoint can
//! contain any credentials, filters and mounts: what the kernel reports about the processes decides, not the images.

use berth_runtime::plan::{ContainerPlan, PidNamespace};

const SETGID: u64 = 1 << 6;
const SETUID: u64 = 1 << 7;

/// The attributes of a thread (proc_pid_status(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThreadStatus {
    users: Vec<u32>,
    groups: Vec<u32>,
    inheritable: u64,
    permitted: u64,
    effective: u64,
    bounding: u64,
    ambient: u64,
    no_new_privs: bool,
    filters: u32,
}

impl ThreadStatus {
    /// Reads the status file of a thread. None if a field is missing.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim)
        };
        let ids = |name: &str| -> Option<Vec<u32>> {
            field(name)?.split_whitespace().map(|id| id.parse().ok()).collect()
        };
        let mask = |name: &str| u64::from_str_radix(field(name)?, 16).ok();
        let mut groups = ids("Gid")?;
        groups.extend(ids("Groups")?);
        let filters = match field("Seccomp")? {
            // SECCOMP_MODE_FILTER
            "2" => field("Seccomp_filters").map_or(Some(1), |count| count.parse().ok())?,
            _ => 0,
        };
        Some(Self {
            users: ids("Uid")?,
            groups,
            inheritable: mask("CapInh")?,
            permitted: mask("CapPrm")?,
            effective: mask("CapEff")?,
            bounding: mask("CapBnd")?,
            ambient: mask("CapAmb")?,
            no_new_privs: field("NoNewPrivs")? == "1",
            filters,
        })
    }

    /// Checks a thread against the plan of the container.
    ///
    /// # Errors
    /// The attribute that it must not have, or lacks.
    pub fn check(&self, plan: &ContainerPlan) -> Result<(), String> {
        let process = &plan.process;
        let limit = process.capabilities.bounding;
        let sets = [
            ("bounding", self.bounding),
            ("permitted", self.permitted),
            ("effective", self.effective),
            ("inheritable", self.inheritable),
            ("ambient", self.ambient),
        ];
        for (name, set) in sets {
            if set & !limit != 0 {
                return Err(format!(
                    "its {name} capabilities {set:#x} exceed those of the container, {limit:#x}"
                ));
            }
        }
        // Without new privileges it could not have got more than the container starts with.
        let start = process.capabilities.permitted | process.capabilities.ambient;
        if process.no_new_privs && self.permitted & !start != 0 {
            return Err(format!(
                "its capabilities {:#x} exceed those of the container, {start:#x}",
                self.permitted
            ));
        }
        if process.no_new_privs && !self.no_new_privs {
            return Err("it lacks no_new_privs".to_owned());
        }
        if process.seccomp.is_some() && self.filters == 0 {
            return Err("it has no seccomp filter".to_owned());
        }
        let other = self.users.iter().find(|id| **id != process.uid);
        if let Some(other) = other.filter(|_| limit & SETUID == 0) {
            return Err(format!("it runs as user {other}, the container as {}", process.uid));
        }
        let other = self.groups.iter().find(|id| **id != process.gid && !process.groups.contains(id));
        if let Some(other) = other.filter(|_| limit & SETGID == 0) {
            return Err(format!("it has the group {other}, which the container does not have"));
        }
        Ok(())
    }
}

/// The namespaces of a process: the targets of the links in `/proc/PID/ns`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenNamespaces {
    /// Namespaces that are the same for all processes of the container and for the program that restores them: kind and
    /// target.
    pub shared: Vec<(&'static str, String)>,
    /// The mount namespace.
    pub mounts: String,
    /// The PID namespace.
    pub pids: String,
}

/// The kinds of [`SeenNamespaces::shared`].
pub const SHARED_KINDS: [&str; 5] = ["net", "ipc", "uts", "user", "cgroup"];

impl SeenNamespaces {
    /// Checks the namespaces of a process against those of the first process and of the program that restores.
    /// `pids` is the PID namespace that the container shares with others.
    ///
    /// # Errors
    /// The kind that is wrong.
    pub fn check(&self, first: &Self, ours: &Self, pids: &str, plan: &ContainerPlan) -> Result<(), String> {
        for (seen, expected) in self.shared.iter().zip(&ours.shared) {
            if seen != expected {
                return Err(format!("its {} namespace is not that of the pod", seen.0));
            }
        }
        if self.mounts != first.mounts || self.mounts == ours.mounts {
            return Err("its mount namespace is not that of the container".to_owned());
        }
        let is_expected = match plan.pid {
            PidNamespace::New => self.pids == first.pids && self.pids != ours.pids,
            _ => self.pids == pids,
        };
        if !is_expected {
            return Err("its PID namespace is not that of the container".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::mount_check::tests::plan;

    const STATUS: &str = "Name:\tsh\nUid:\t5\t5\t5\t5\nGid:\t6\t6\t6\t6\nGroups:\t6 7 \nCapInh:\t0000000000000000\n\
        CapPrm:\t0000000000000003\nCapEff:\t0000000000000003\nCapBnd:\t0000000000000003\nCapAmb:\t0000000000000000\n\
        NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";

    fn confined() -> ContainerPlan {
        let mut plan = plan();
        plan.process.uid = 5;
        plan.process.gid = 6;
        plan.process.groups = vec![7];
        plan.process.capabilities.bounding = 3;
        plan.process.capabilities.permitted = 3;
        plan.process.no_new_privs = true;
        plan
    }

    #[test]
    fn a_thread_within_the_limits_is_accepted() {
        let status = ThreadStatus::parse(STATUS).unwrap();
        status.check(&confined()).unwrap();
        assert!(ThreadStatus::parse("Name:\tsh\n").is_none());
        // With the capability to change users, another user is nothing new.
        let mut plan = confined();
        plan.process.uid = 0;
        plan.process.capabilities.bounding |= SETUID;
        status.check(&plan).unwrap();
    }

    #[test]
    fn more_than_the_container_has_is_refused() {
        for (old, new, why) in [
            ("CapBnd:\t0000000000000003", "CapBnd:\t0000000000200003", "bounding"),
            ("CapEff:\t0000000000000003", "CapEff:\t0000000000000007", "effective"),
            ("CapInh:\t0000000000000000", "CapInh:\t0000000000000008", "inheritable"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "no_new_privs"),
            ("Uid:\t5\t5", "Uid:\t5\t0", "user 0"),
            ("Groups:\t6 7", "Groups:\t6 0", "group 0"),
        ] {
            let status = ThreadStatus::parse(&STATUS.replace(old, new)).unwrap();
            let error = status.check(&confined()).unwrap_err();
            assert!(error.contains(why), "{why}: {error}");
        }
        let mut plan = confined();
        plan.process.capabilities.permitted = 1;
        assert!(ThreadStatus::parse(STATUS).unwrap().check(&plan).is_err());
        let unfiltered = STATUS.replace("Seccomp:\t2", "Seccomp:\t0");
        let status = ThreadStatus::parse(&unfiltered).unwrap();
        status.check(&confined()).unwrap();
        let mut plan = confined();
        plan.process.seccomp = Some(berth_runtime::plan::SeccompPlan {
            filter: berth_runtime::plan::FdSlot(0),
            flags: 0,
            mute: false,
            early: false,
            listener: None,
        });
        assert!(status.check(&plan).unwrap_err().contains("seccomp"));
    }

    #[test]
    fn namespaces_are_those_of_the_pod_and_the_container() {
        let seen = |net: &str, mounts: &str, pids: &str| SeenNamespaces {
            shared: vec![("net", net.to_owned())],
            mounts: mounts.to_owned(),
            pids: pids.to_owned(),
        };
        let (ours, first) = (seen("n", "host", "host"), seen("n", "m", "p"));
        first.check(&first, &ours, "", &confined()).unwrap();
        for bad in
            [seen("x", "m", "p"), seen("n", "host", "p"), seen("n", "m", "host"), seen("n", "other", "p")]
        {
            assert!(bad.check(&first, &ours, "", &confined()).is_err(), "{bad:?}");
        }
        assert!(ours.check(&ours, &ours, "", &confined()).is_err(), "the host's mounts");
        let shared = ContainerPlan { pid: PidNamespace::Pod, ..confined() };
        first.check(&first, &ours, "p", &shared).unwrap();
        assert!(first.check(&first, &ours, "q", &shared).is_err());
    }
}
