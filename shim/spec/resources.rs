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

/// Whether the limits can be set here at all.
///
/// # Errors
/// Files of cgroup v2 are named and this host has none.
pub fn check(asked: &LinuxContainerResources, cgroup_v2: bool) -> Result<()> {
    match asked.unified.keys().min() {
        Some(file) if !cgroup_v2 => {
            Err(error("linux.resources.unified", format!("has {file:?}, and this host has no cgroup v2")))
        }
        _ => Ok(()),
    }
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
