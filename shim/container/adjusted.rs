//! Applies the changes of NRI plugins to a container that is being created.

use std::path::PathBuf;

use berth_proto::nri::{ContainerAdjustment, LinuxResources as NriResources};
use berth_proto::v1::{HugepageLimit, LinuxContainerResources};
use berth_runtime::cgroup::CgroupPath;

use super::assemble::Draft;
use crate::cdi;
use crate::cgroups::Cgroups;
use crate::error::CriError;
use crate::nri::adaptation::NriError;
use crate::nri::adjust;
use crate::oci::resources;
use crate::store::Container;

/// Applies the changes to the draft and to the record of the container.
///
/// # Errors
/// A change is invalid or not supported, or the record cannot be written.
pub(super) fn adjust(
    cgroups: &Cgroups,
    cdi_folders: &[PathBuf],
    container: &Container,
    draft: &mut Draft,
    changes: &ContainerAdjustment,
) -> Result<(), CriError> {
    adjust::apply(&mut draft.spec, changes, cgroups.is_v2()).map_err(NriError::Apply)?;
    let names: Vec<String> = changes.cdi_devices.iter().map(|device| device.name.clone()).collect();
    draft.device_sources.extend(cdi::inject(&mut draft.spec, &names, cdi_folders)?);
    let linux = changes.linux.clone().unwrap_or_default();
    if !linux.cgroups_path.is_empty() {
        set_cgroup(cgroups, container, draft, &linux.cgroups_path)?;
    }
    let score = linux.oom_score_adj.as_ref().map(|score| score.value);
    if linux.resources.is_some() || score.is_some() {
        let mut limits = container.with(crate::store::ContainerRecord::limits);
        resources::change(&mut limits, &to_cri(&linux.resources.unwrap_or_default()));
        limits.oom_score_adj = score.unwrap_or(limits.oom_score_adj);
        let score = i32::try_from(limits.oom_score_adj).unwrap_or_default();
        let shown = resources::applied(&limits, score);
        container.intend(|record| record.resources = Some(shown.clone()))?;
    }
    Ok(())
}

fn set_cgroup(
    cgroups: &Cgroups,
    container: &Container,
    draft: &mut Draft,
    path: &str,
) -> Result<(), CriError> {
    if cgroups.has_scopes() {
        let why = "cgroups_path is not supported with the systemd cgroup driver".to_owned();
        return Err(NriError::Apply(why).into());
    }
    let path = CgroupPath::from_recorded(path)?;
    container.intend(|record| record.cgroup = path.to_string())?;
    if let Some(linux) = draft.spec.linux_mut() {
        linux.set_cgroups_path(Some(path.to_string().into()));
    }
    Ok(())
}

/// Returns the limits of NRI that the CRI has too. 0 and empty are unchanged.
pub(super) fn to_cri(limits: &NriResources) -> LinuxContainerResources {
    let memory = limits.memory.unwrap_or_default();
    let cpu = limits.cpu.clone().unwrap_or_default();
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    LinuxContainerResources {
        cpu_period: cpu.period.map_or(0, |period| signed(period.value)),
        cpu_quota: cpu.quota.map_or(0, |quota| quota.value),
        cpu_shares: cpu.shares.map_or(0, |shares| signed(shares.value)),
        memory_limit_in_bytes: memory.limit.map_or(0, |limit| limit.value),
        memory_swap_limit_in_bytes: memory.swap.map_or(0, |swap| swap.value),
        oom_score_adj: 0,
        cpuset_cpus: cpu.cpus,
        cpuset_mems: cpu.mems,
        hugepage_limits: limits
            .hugepage_limits
            .iter()
            .map(|page| HugepageLimit { page_size: page.page_size.clone(), limit: page.limit })
            .collect(),
        unified: limits.unified.clone(),
    }
}

/// Returns the limits of NRI that the CRI does not have.
pub(super) fn beyond_cri(limits: &NriResources) -> NriResources {
    let memory =
        limits.memory.map(|memory| berth_proto::nri::LinuxMemory { limit: None, swap: None, ..memory });
    let cpu = limits.cpu.clone().map(|cpu| berth_proto::nri::LinuxCpu {
        realtime_runtime: cpu.realtime_runtime,
        realtime_period: cpu.realtime_period,
        ..Default::default()
    });
    NriResources { memory, cpu, hugepage_limits: Vec::new(), unified: Default::default(), ..limits.clone() }
}
