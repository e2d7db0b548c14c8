//! Limits of a container, as the OCI spec has them.

use berth_proto::v1::{ContainerConfig, LinuxContainerSecurityContext};
use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use super::{Host, Result, devices};

/// The limits that the client asks for; 0 and empty are none (CRI `LinuxContainerResources`).
pub(super) fn resources(
    config: &ContainerConfig,
    security: &LinuxContainerSecurityContext,
    host: &Host,
) -> Result<LinuxResources> {
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(devices::rules(config, security, host)?));
    let Some(asked) = config.linux.as_ref().and_then(|linux| linux.resources.as_ref()) else {
        return Ok(resources);
    };
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(positive(asked.cpu_shares));
    cpu.set_period(positive(asked.cpu_period));
    cpu.set_quota(Some(asked.cpu_quota).filter(|quota| *quota != 0));
    cpu.set_cpus(Some(asked.cpuset_cpus.clone()).filter(|cpus| !cpus.is_empty()));
    cpu.set_mems(Some(asked.cpuset_mems.clone()).filter(|mems| !mems.is_empty()));
    resources.set_cpu(Some(cpu));
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
    // A limit of nothing on pages that the host does not have needs no controller: the kubelet sends one for each size.
    let pages: Vec<LinuxHugepageLimit> = pages.filter(|page| page.limit() > 0).collect();
    resources.set_hugepage_limits(Some(pages).filter(|pages| !pages.is_empty()));
    if host.cgroup_v2 && !asked.unified.is_empty() {
        resources.set_unified(Some(asked.unified.clone()));
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use berth_proto::v1::{LinuxContainerConfig, LinuxContainerResources};

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
}
