//! The limits of a container in the form of the OCI spec.

use berth_proto::v1::{ContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext};
use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use super::{Host, Result, devices, error};

/// Returns the limits of a container and its device rules.
pub(super) fn build(
    config: &ContainerConfig,
    security: &LinuxContainerSecurityContext,
    host: &Host,
) -> Result<LinuxResources> {
    let requested = config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    requested.map_or(Ok(()), |requested| check(requested, host.cgroup_v2))?;
    let mut resources = requested.map(|requested| limits(requested, host.cgroup_v2)).unwrap_or_default();
    resources.set_devices(Some(devices::rules(config, security, host)?));
    Ok(resources)
}

/// The kernel's limits for the period of the CPU controller, in microseconds (kernel/sched/core.c,
/// `min_cfs_quota_period`, `max_cfs_quota_period`). The lower one applies to quotas too.
const PERIOD: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;

/// The default period of a quota (sched-bwc.rst, `cpu.cfs_period_us`).
const DEFAULT_PERIOD: i64 = 100_000;

/// The valid values of oom_score_adj (proc_pid_oom_score_adj(5)).
const SCORES: std::ops::RangeInclusive<i64> = -1000..=1000;

/// Checks limits independently of the state of the host.
///
/// # Errors
/// A value is out of range or contradicts another; a file of cgroup v2 is named and this host has no cgroup v2.
pub fn check(requested: &LinuxContainerResources, cgroup_v2: bool) -> Result<()> {
    let invalid = |field: &str, why: String| Err(error(format!("linux.resources.{field}"), why));
    let LinuxContainerResources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit_in_bytes: memory,
        memory_swap_limit_in_bytes: swap,
        oom_score_adj,
        ..
    } = *requested;
    if cpu_period != 0 && !PERIOD.contains(&cpu_period) {
        let (least, most) = (PERIOD.start(), PERIOD.end());
        return invalid("cpu_period", format!("{cpu_period} is not from {least} to {most} microseconds"));
    }
    if cpu_quota > 0 && cpu_quota < *PERIOD.start() {
        return invalid("cpu_quota", format!("{cpu_quota} is below {} microseconds", PERIOD.start()));
    }
    if cpu_shares < 0 {
        return invalid("cpu_shares", format!("{cpu_shares} is negative"));
    }
    for (field, limit) in [("memory_limit_in_bytes", memory), ("memory_swap_limit_in_bytes", swap)] {
        if limit < -1 {
            return invalid(field, format!("{limit} is neither a number of bytes nor -1 (no limit)"));
        }
    }
    if swap > 0 && memory <= 0 {
        return invalid("memory_swap_limit_in_bytes", "requires memory_limit_in_bytes".to_owned());
    }
    if swap > 0 && swap < memory {
        let why = format!("{swap} is below memory_limit_in_bytes ({memory}), which it includes");
        return invalid("memory_swap_limit_in_bytes", why);
    }
    if !SCORES.contains(&oom_score_adj) {
        return invalid("oom_score_adj", format!("{oom_score_adj} is not from -1000 to 1000"));
    }
    for page in &requested.hugepage_limits {
        if !is_page_size(&page.page_size) {
            return invalid(
                "hugepage_limits",
                format!("{:?} is not a page size such as 2MB", page.page_size),
            );
        }
    }
    for (field, list) in [("cpuset_cpus", &requested.cpuset_cpus), ("cpuset_mems", &requested.cpuset_mems)] {
        if list.chars().any(char::is_control) {
            return invalid(field, format!("{list:?} has control characters"));
        }
    }
    match requested.unified.keys().min() {
        Some(file) if !cgroup_v2 => {
            invalid("unified", format!("has {file:?}, and this host has no cgroup v2"))
        }
        _ => Ok(()),
    }
}

/// Whether a text is a page size: a number and a unit, as in the kernel's file names (CRI `HugepageLimit.page_size`).
fn is_page_size(text: &str) -> bool {
    let digits = text.strip_suffix("KB").or(text.strip_suffix("MB")).or(text.strip_suffix("GB"));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Returns the limits in effect, for `ContainerStatus.resources`: includes the values that the runtime or the kernel
/// chose for omitted limits, and the effective oom_score_adj.
#[must_use]
pub fn applied(requested: &LinuxContainerResources, oom_score_adj: i32) -> LinuxContainerResources {
    let mut applied = requested.clone();
    applied.oom_score_adj = oom_score_adj.into();
    if applied.cpu_quota != 0 && applied.cpu_period == 0 {
        applied.cpu_period = DEFAULT_PERIOD;
    }
    if applied.memory_swap_limit_in_bytes == 0 {
        // See `limits`.
        applied.memory_swap_limit_in_bytes = applied.memory_limit_in_bytes;
    }
    applied
}

/// Returns the requested limits; 0 and empty mean no limit (CRI `LinuxContainerResources`).
#[must_use]
pub fn limits(requested: &LinuxContainerResources, cgroup_v2: bool) -> LinuxResources {
    let mut resources = LinuxResources::default();
    resources.set_devices(None);
    resources.set_cpu(Some(cpu(requested)));
    let limit = Some(requested.memory_limit_in_bytes).filter(|limit| *limit != 0);
    let mut memory = LinuxMemory::default();
    memory.set_limit(limit);
    // If the request has no swap limit, a container with a memory limit gets no swap: the limit of memory and swap
    // together is the memory limit, as the kubelet sets it on nodes without swap.
    memory.set_swap(Some(requested.memory_swap_limit_in_bytes).filter(|swap| *swap != 0).or(limit));
    resources.set_memory(Some(memory));
    let pages = requested.hugepage_limits.iter().map(|page| {
        let mut limit = LinuxHugepageLimit::default();
        limit.set_page_size(page.page_size.clone());
        limit.set_limit(i64::try_from(page.limit).unwrap_or(i64::MAX));
        limit
    });
    let pages: Vec<LinuxHugepageLimit> = pages.collect();
    resources.set_hugepage_limits(Some(pages).filter(|pages| !pages.is_empty()));
    if cgroup_v2 && !requested.unified.is_empty() {
        resources.set_unified(Some(requested.unified.clone()));
    }
    resources
}

fn cpu(requested: &LinuxContainerResources) -> LinuxCpu {
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(positive(requested.cpu_shares));
    cpu.set_period(positive(requested.cpu_period));
    cpu.set_quota(Some(requested.cpu_quota).filter(|quota| *quota != 0));
    cpu.set_cpus(Some(requested.cpuset_cpus.clone()).filter(|cpus| !cpus.is_empty()));
    cpu.set_mems(Some(requested.cpuset_mems.clone()).filter(|mems| !mems.is_empty()));
    cpu
}

/// Merges a request into earlier limits: 0 and empty change nothing.
pub fn change(before: &mut LinuxContainerResources, now: &LinuxContainerResources) {
    let number = |before: &mut i64, now: i64| {
        if now != 0 {
            *before = now;
        }
    };
    number(&mut before.cpu_period, now.cpu_period);
    number(&mut before.cpu_quota, now.cpu_quota);
    number(&mut before.cpu_shares, now.cpu_shares);
    number(&mut before.oom_score_adj, now.oom_score_adj);
    if now.memory_limit_in_bytes != 0 {
        before.memory_limit_in_bytes = now.memory_limit_in_bytes;
        // The earlier swap limit belonged to the earlier memory limit.
        before.memory_swap_limit_in_bytes = 0;
    }
    number(&mut before.memory_swap_limit_in_bytes, now.memory_swap_limit_in_bytes);
    for (before, now) in
        [(&mut before.cpuset_cpus, &now.cpuset_cpus), (&mut before.cpuset_mems, &now.cpuset_mems)]
    {
        if !now.is_empty() {
            before.clone_from(now);
        }
    }
    for page in &now.hugepage_limits {
        before.hugepage_limits.retain(|existing| existing.page_size != page.page_size);
        before.hugepage_limits.push(page.clone());
    }
    before.unified.extend(now.unified.clone());
}

#[cfg(test)]
mod tests {
    use berth_proto::v1::{HugepageLimit, LinuxContainerConfig};

    use super::*;

    #[test]
    fn zero_is_no_limit() {
        let requested = LinuxContainerResources {
            memory_limit_in_bytes: 1000,
            cpu_shares: 512,
            cpu_quota: -1,
            ..Default::default()
        };
        let linux = LinuxContainerConfig { resources: Some(requested), security_context: None };
        let config = ContainerConfig { linux: Some(linux), ..Default::default() };
        let resources = build(&config, &Default::default(), &Host::default()).unwrap();
        let memory = resources.memory().unwrap();
        assert_eq!((memory.limit(), memory.swap()), (Some(1000), Some(1000)));
        let cpu = resources.cpu().clone().unwrap();
        assert_eq!((cpu.shares(), cpu.quota(), cpu.period()), (Some(512), Some(-1), None));
    }

    #[test]
    fn files_of_v2_need_v2() {
        let unified = [("memory.high".to_owned(), "900".to_owned())].into();
        let requested = LinuxContainerResources { unified, ..Default::default() };
        assert!(check(&requested, false).unwrap_err().to_string().contains("memory.high"));
        assert!(check(&requested, true).is_ok() && check(&Default::default(), false).is_ok());
    }

    #[test]
    fn values_that_the_kernel_would_refuse_are_refused() {
        let page = HugepageLimit { page_size: "../2MB".to_owned(), limit: 1 };
        type Change = fn(&mut LinuxContainerResources);
        let cases: [(&str, Change); 12] = [
            ("cpu_period", |r| r.cpu_period = 999),
            ("cpu_period", |r| r.cpu_period = 1_000_001),
            ("cpu_period", |r| r.cpu_period = -1),
            ("cpu_quota", |r| r.cpu_quota = 999),
            ("cpu_shares", |r| r.cpu_shares = -1),
            ("memory_limit_in_bytes", |r| r.memory_limit_in_bytes = -2),
            ("memory_swap_limit_in_bytes", |r| r.memory_swap_limit_in_bytes = i64::MIN),
            ("memory_swap_limit_in_bytes", |r| r.memory_swap_limit_in_bytes = 1),
            ("memory_swap_limit_in_bytes", |r| {
                (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (2, 1);
            }),
            ("oom_score_adj", |r| r.oom_score_adj = 1001),
            ("oom_score_adj", |r| r.oom_score_adj = i64::MIN),
            ("cpuset_cpus", |r| r.cpuset_cpus = "0\n".to_owned()),
        ];
        for (field, change) in cases {
            let mut requested = LinuxContainerResources::default();
            change(&mut requested);
            let error = check(&requested, true).unwrap_err();
            assert_eq!(error.field, format!("linux.resources.{field}"), "{requested:?}");
        }
        let pages = LinuxContainerResources { hugepage_limits: vec![page], ..Default::default() };
        assert_eq!(check(&pages, true).unwrap_err().field, "linux.resources.hugepage_limits");
        let fine = LinuxContainerResources {
            cpu_period: 1_000,
            cpu_quota: -1,
            cpu_shares: 2,
            memory_limit_in_bytes: 1000,
            memory_swap_limit_in_bytes: -1,
            oom_score_adj: -1000,
            hugepage_limits: vec![HugepageLimit { page_size: "64KB".to_owned(), limit: 0 }],
            ..Default::default()
        };
        assert_eq!(check(&fine, true), Ok(()));
    }

    #[test]
    fn omitted_limits_are_reported_as_they_are_set() {
        let requested = LinuxContainerResources {
            memory_limit_in_bytes: 1000,
            cpu_quota: 5000,
            oom_score_adj: -998,
            ..Default::default()
        };
        let applied = applied(&requested, 100);
        assert_eq!((applied.memory_swap_limit_in_bytes, applied.cpu_period), (1000, 100_000));
        assert_eq!(applied.oom_score_adj, 100, "raised to the daemon's");
        assert_eq!(super::applied(&Default::default(), 0), LinuxContainerResources::default());
    }

    #[test]
    fn omitted_limits_stay() {
        let page = |size: &str, limit| HugepageLimit { page_size: size.to_owned(), limit };
        let mut before = LinuxContainerResources {
            memory_limit_in_bytes: 1000,
            memory_swap_limit_in_bytes: 3000,
            cpu_shares: 512,
            cpuset_cpus: "0".to_owned(),
            hugepage_limits: vec![page("2MB", 1), page("1GB", 1)],
            unified: [("memory.high".to_owned(), "900".to_owned())].into(),
            ..Default::default()
        };
        let now = LinuxContainerResources {
            memory_limit_in_bytes: 2000,
            cpu_quota: 5000,
            hugepage_limits: vec![page("2MB", 2)],
            unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        change(&mut before, &now);
        assert_eq!((before.memory_limit_in_bytes, before.memory_swap_limit_in_bytes), (2000, 0));
        assert_eq!((before.cpu_shares, before.cpu_quota, before.cpuset_cpus.as_str()), (512, 5000, "0"));
        assert_eq!(before.hugepage_limits, [page("1GB", 1), page("2MB", 2)]);
        assert_eq!(before.unified.len(), 2);
    }
}
