//! Limits of NRI and of the OCI spec.

use berth_proto::nri::{
    HugepageLimit, LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxPids, LinuxResources, OptionalBool,
    OptionalInt64, OptionalUInt64,
};
use oci_spec::runtime::{
    LinuxCpu as OciCpu, LinuxHugepageLimit, LinuxMemory as OciMemory, LinuxPids as OciPids,
    LinuxResources as OciResources, Spec,
};
use serde_json::json;

use super::parse;

/// Applies limits to a spec.
///
/// # Errors
/// A limit that is invalid or not supported.
pub fn apply(spec: &mut Spec, changes: &LinuxResources, cgroup_v2: bool) -> Result<(), String> {
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    let mut resources = linux.resources().clone().unwrap_or_default();
    overlay(&mut resources, changes, cgroup_v2)?;
    linux.set_resources(Some(resources));
    Ok(())
}

/// Sets the limits that are present in the changes.
///
/// # Errors
/// A limit that is invalid or not supported.
pub fn overlay(
    resources: &mut OciResources,
    changes: &LinuxResources,
    cgroup_v2: bool,
) -> Result<(), String> {
    refuse_unsupported(changes, cgroup_v2)?;
    if let Some(memory) = &changes.memory {
        let mut limits = (*resources.memory()).unwrap_or_default();
        overlay_memory(&mut limits, memory);
        resources.set_memory(Some(limits));
    }
    if let Some(cpu) = &changes.cpu {
        let mut limits = resources.cpu().clone().unwrap_or_default();
        overlay_cpu(&mut limits, cpu);
        resources.set_cpu(Some(limits));
    }
    if let Some(pids) = &changes.pids {
        let mut limits = OciPids::default();
        limits.set_limit(pids.limit);
        resources.set_pids(Some(limits));
    }
    if !changes.hugepage_limits.is_empty() {
        let mut pages = resources.hugepage_limits().clone().unwrap_or_default();
        for page in &changes.hugepage_limits {
            pages.retain(|other| *other.page_size() != page.page_size);
            let mut limit = LinuxHugepageLimit::default();
            limit.set_page_size(page.page_size.clone());
            limit.set_limit(i64::try_from(page.limit).unwrap_or(i64::MAX));
            pages.push(limit);
        }
        resources.set_hugepage_limits(Some(pages));
    }
    if !changes.unified.is_empty() {
        let mut unified = resources.unified().clone().unwrap_or_default();
        unified.extend(changes.unified.clone());
        resources.set_unified(Some(unified));
    }
    let mut rules = resources.devices().clone().unwrap_or_default();
    for rule in &changes.devices {
        rules.push(rule_of(rule)?);
    }
    resources.set_devices(Some(rules).filter(|rules| !rules.is_empty()));
    Ok(())
}

/// Refuses limits that would have no effect.
fn refuse_unsupported(changes: &LinuxResources, cgroup_v2: bool) -> Result<(), String> {
    let class = |class: &Option<berth_proto::nri::OptionalString>| {
        class.as_ref().is_some_and(|class| !class.value.is_empty())
    };
    if class(&changes.blockio_class) {
        return Err("block I/O classes are not supported".to_owned());
    }
    if class(&changes.rdt_class) {
        return Err("RDT classes are not supported".to_owned());
    }
    if !changes.unified.is_empty() && !cgroup_v2 {
        return Err("unified limits need cgroup v2, and this host has cgroup v1".to_owned());
    }
    Ok(())
}

fn overlay_memory(limits: &mut OciMemory, changes: &LinuxMemory) {
    if let Some(limit) = &changes.limit {
        limits.set_limit(Some(limit.value));
        // Without swap, as for a limit of a client.
        limits.set_swap(Some(limit.value));
    }
    if let Some(swap) = &changes.swap {
        limits.set_swap(Some(swap.value));
    }
    if let Some(reservation) = &changes.reservation {
        limits.set_reservation(Some(reservation.value));
    }
    if let Some(kernel) = &changes.kernel {
        limits.set_kernel(Some(kernel.value));
    }
    if let Some(kernel) = &changes.kernel_tcp {
        limits.set_kernel_tcp(Some(kernel.value));
    }
    if let Some(swappiness) = &changes.swappiness {
        limits.set_swappiness(Some(swappiness.value));
    }
    if let Some(disabled) = &changes.disable_oom_killer {
        limits.set_disable_oom_killer(Some(disabled.value));
    }
    if let Some(hierarchy) = &changes.use_hierarchy {
        limits.set_use_hierarchy(Some(hierarchy.value));
    }
}

fn overlay_cpu(limits: &mut OciCpu, changes: &LinuxCpu) {
    if let Some(shares) = &changes.shares {
        limits.set_shares(Some(shares.value));
    }
    if let Some(quota) = &changes.quota {
        limits.set_quota(Some(quota.value));
    }
    if let Some(period) = &changes.period {
        limits.set_period(Some(period.value));
    }
    if let Some(runtime) = &changes.realtime_runtime {
        limits.set_realtime_runtime(Some(runtime.value));
    }
    if let Some(period) = &changes.realtime_period {
        limits.set_realtime_period(Some(period.value));
    }
    if !changes.cpus.is_empty() {
        limits.set_cpus(Some(changes.cpus.clone()));
    }
    if !changes.mems.is_empty() {
        limits.set_mems(Some(changes.mems.clone()));
    }
}

fn rule_of(rule: &LinuxDeviceCgroup) -> Result<oci_spec::runtime::LinuxDeviceCgroup, String> {
    let kind = Some(&rule.r#type).filter(|kind| !kind.is_empty());
    let value = json!({
        "allow": rule.allow,
        "type": kind,
        "major": rule.major.map(|major| major.value),
        "minor": rule.minor.map(|minor| minor.value),
        "access": rule.access,
    });
    parse("device rule", value)
}

/// Returns the limits of a spec as plugins see them.
#[must_use]
pub fn view(resources: &OciResources) -> LinuxResources {
    let signed = |value: Option<i64>| value.map(|value| OptionalInt64 { value });
    let unsigned = |value: Option<u64>| value.map(|value| OptionalUInt64 { value });
    let boolean = |value: Option<bool>| value.map(|value| OptionalBool { value });
    let memory = resources.memory().map(|memory| LinuxMemory {
        limit: signed(memory.limit()),
        reservation: signed(memory.reservation()),
        swap: signed(memory.swap()),
        kernel: signed(memory.kernel()),
        kernel_tcp: signed(memory.kernel_tcp()),
        swappiness: unsigned(memory.swappiness()),
        disable_oom_killer: boolean(memory.disable_oom_killer()),
        use_hierarchy: boolean(memory.use_hierarchy()),
    });
    let cpu = resources.cpu().as_ref().map(|cpu| LinuxCpu {
        shares: unsigned(cpu.shares()),
        quota: signed(cpu.quota()),
        period: unsigned(cpu.period()),
        realtime_runtime: signed(cpu.realtime_runtime()),
        realtime_period: unsigned(cpu.realtime_period()),
        cpus: cpu.cpus().clone().unwrap_or_default(),
        mems: cpu.mems().clone().unwrap_or_default(),
    });
    let pages = resources.hugepage_limits().iter().flatten().map(|page| HugepageLimit {
        page_size: page.page_size().clone(),
        limit: u64::try_from(page.limit()).unwrap_or_default(),
    });
    let rules = resources.devices().iter().flatten().map(|rule| LinuxDeviceCgroup {
        allow: rule.allow(),
        r#type: rule.typ().map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
        major: signed(rule.major()),
        minor: signed(rule.minor()),
        access: rule.access().clone().unwrap_or_default(),
    });
    LinuxResources {
        memory,
        cpu,
        hugepage_limits: pages.collect(),
        unified: resources.unified().clone().unwrap_or_default(),
        devices: rules.collect(),
        pids: resources.pids().as_ref().map(|pids| LinuxPids { limit: pids.limit() }),
        ..LinuxResources::default()
    }
}
