//! Limits of a container, as the OCI spec has them.

use berth_proto::v1::{ContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext};
use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use super::{Host, Result, devices, error};

/// The limits of a container, and its devices.
pub(super) fn resources(
    config: &ContainerConfig,
    security: &LinuxContainerSecurityContext,
    host: &Host,
) -> Result<LinuxResources> {
    let asked = config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    asked.map_or(Ok(()), |asked| check(asked, host.cgroup_v2))?;
    let mut resources = asked.map(|asked| limits(asked, host.cgroup_v2)).unwrap_or_default();
    resources.set_devices(Some(devices::rules(config, security, host)?));
    Ok(resources)
}

/// The kernel's bounds of a period of the CPU controller, in microseconds (kernel/sched/core.c, `min_cfs_quota_period`,
/// `max_cfs_quota_period`). The lower one holds for a quota as well.
const PERIOD: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;

/// The period of a quota that comes without one (sched-bwc.rst, `cpu.cfs_period_us`).
const DEFAULT_PERIOD: i64 = 100_000;

/// The scores of the kernel (proc_pid_oom_score_adj(5)).
const SCORES: std::ops::RangeInclusive<i64> = -1000..=1000;

/// Whether the limits can be set at all, whatever state the host is in.
///
/// # Errors
/// A value is out of its bounds or contradicts another; files of cgroup v2 are named and this host has none.
pub fn check(asked: &LinuxContainerResources, cgroup_v2: bool) -> Result<()> {
    let wrong = |field: &str, why: String| Err(error(format!("linux.resources.{field}"), why));
    let LinuxContainerResources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit_in_bytes: memory,
        memory_swap_limit_in_bytes: swap,
        oom_score_adj,
        ..
    } = *asked;
    if cpu_period != 0 && !PERIOD.contains(&cpu_period) {
        let (least, most) = (PERIOD.start(), PERIOD.end());
        return wrong("cpu_period", format!("{cpu_period} is not from {least} to {most} microseconds"));
    }
    if cpu_quota > 0 && cpu_quota < *PERIOD.start() {
        return wrong("cpu_quota", format!("{cpu_quota} is below {} microseconds", PERIOD.start()));
    }
    if cpu_shares < 0 {
        return wrong("cpu_shares", format!("{cpu_shares} is negative"));
    }
    for (field, limit) in [("memory_limit_in_bytes", memory), ("memory_swap_limit_in_bytes", swap)] {
        if limit < -1 {
            return wrong(field, format!("{limit} is neither a number of bytes nor -1, which is no limit"));
        }
    }
    if swap > 0 && memory <= 0 {
        return wrong("memory_swap_limit_in_bytes", "needs a memory_limit_in_bytes".to_owned());
    }
    if swap > 0 && swap < memory {
        let why = format!("{swap} is below memory_limit_in_bytes ({memory}), which it includes");
        return wrong("memory_swap_limit_in_bytes", why);
    }
    if !SCORES.contains(&oom_score_adj) {
        return wrong("oom_score_adj", format!("{oom_score_adj} is not from -1000 to 1000"));
    }
    for page in &asked.hugepage_limits {
        if !is_page_size(&page.page_size) {
            return wrong("hugepage_limits", format!("{:?} is not a page size such as 2MB", page.page_size));
        }
    }
    for (field, list) in [("cpuset_cpus", &asked.cpuset_cpus), ("cpuset_mems", &asked.cpuset_mems)] {
        if list.chars().any(char::is_control) {
            return wrong(field, format!("{list:?} has control characters"));
        }
    }
    match asked.unified.keys().min() {
        Some(file) if !cgroup_v2 => wrong("unified", format!("has {file:?}, and this host has no cgroup v2")),
        _ => Ok(()),
    }
}

/// A number and a unit, as the kernel names the files of pages (CRI `HugepageLimit.page_size`).
fn is_page_size(text: &str) -> bool {
    let digits = text.strip_suffix("KB").or(text.strip_suffix("MB")).or(text.strip_suffix("GB"));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The limits as they hold, for `ContainerStatus.resources`: with what a limit is set to that the client left to the
/// runtime or to the kernel, and the score that the container has.
#[must_use]
pub fn applied(asked: &LinuxContainerResources, oom_score_adj: i32) -> LinuxContainerResources {
    let mut applied = asked.clone();
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

/// The limits that the client asks for; 0 and empty are none (CRI `LinuxContainerResources`).
#[must_use]
pub fn limits(asked: &LinuxContainerResources, cgroup_v2: bool) -> LinuxResources {
    let mut resources = LinuxResources::default();
    resources.set_devices(None);
    resources.set_cpu(Some(cpu(asked)));
    let limit = Some(asked.memory_limit_in_bytes).filter(|limit| *limit != 0);
    let mut memory = LinuxMemory::default();
    memory.set_limit(limit);
    // Without a word on swap a container with a limit gets none: memory and swap together are the limit, as the kubelet
    // has it for nodes without swap.
    memory.set_swap(Some(asked.memory_swap_limit_in_bytes).filter(|swap| *swap != 0).or(limit));
    resources.set_memory(Some(memory));
    let pages = asked.hugepage_limits.iter().map(|page| {
        let mut limit = LinuxHugepageLimit::default();
        limit.set_page_size(page.page_size.clone());
        limit.set_limit(i64::try_from(page.limit).unwrap_or(i64::MAX));
        limit
    });
    let pages: Vec<LinuxHugepageLimit> = pages.collect();
    resources.set_hugepage_limits(Some(pages).filter(|pages| !pages.is_empty()));
    if cgroup_v2 && !asked.unified.is_empty() {
        resources.set_unified(Some(asked.unified.clone()));
    }
    resources
}

fn cpu(asked: &LinuxContainerResources) -> LinuxCpu {
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(positive(asked.cpu_shares));
    cpu.set_period(positive(asked.cpu_period));
    cpu.set_quota(Some(asked.cpu_quota).filter(|quota| *quota != 0));
    cpu.set_cpus(Some(asked.cpuset_cpus.clone()).filter(|cpus| !cpus.is_empty()));
    cpu.set_mems(Some(asked.cpuset_mems.clone()).filter(|mems| !mems.is_empty()));
    cpu
}

/// What is asked for now, over what was before: 0 and empty change nothing.
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
        // That of before was reckoned for another limit.
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
        before.hugepage_limits.retain(|known| known.page_size != page.page_size);
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
        let asked = LinuxContainerResources {
            memory_limit_in_bytes: 1000,
            cpu_shares: 512,
            cpu_quota: -1,
            ..Default::default()
        };
        let linux = LinuxContainerConfig { resources: Some(asked), security_context: None };
        let config = ContainerConfig { linux: Some(linux), ..Default::default() };
        let resources = resources(&config, &Default::default(), &Host::default()).unwrap();
        let memory = resources.memory().unwrap();
        assert_eq!((memory.limit(), memory.swap()), (Some(1000), Some(1000)));
        let cpu = resources.cpu().clone().unwrap();
        assert_eq!((cpu.shares(), cpu.quota(), cpu.period()), (Some(512), Some(-1), None));
    }

    #[test]
    fn files_of_v2_need_v2() {
        let unified = [("memory.high".to_owned(), "900".to_owned())].into();
        let asked = LinuxContainerResources { unified, ..Default::default() };
        assert!(check(&asked, false).unwrap_err().to_string().contains("memory.high"));
        assert!(check(&asked, true).is_ok() && check(&Default::default(), false).is_ok());
    }

    #[test]
    fn what_the_kernel_would_refuse_is_named() {
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
            let mut asked = LinuxContainerResources::default();
            change(&mut asked);
            let error = check(&asked, true).unwrap_err();
            assert_eq!(error.field, format!("linux.resources.{field}"), "{asked:?}");
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
    fn what_is_left_to_the_runtime_is_told_as_it_is_set() {
        let asked = LinuxContainerResources {
            memory_limit_in_bytes: 1000,
            cpu_quota: 5000,
            oom_score_adj: -998,
            ..Default::default()
        };
        let applied = applied(&asked, 100);
        assert_eq!((applied.memory_swap_limit_in_bytes, applied.cpu_period), (1000, 100_000));
        assert_eq!(applied.oom_score_adj, 100, "raised to what the daemon may give");
        assert_eq!(super::applied(&Default::default(), 0), LinuxContainerResources::default());
    }

    #[test]
    fn what_is_not_said_stays() {
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
