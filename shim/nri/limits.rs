//! Merges the limits that plugins set. A plugin sets single values; each belongs to the plugin that set it.

use berth_proto::nri::{Field, LinuxCpu, LinuxMemory, LinuxResources};

use super::owners::{OwnerConflict, Ownership};
use super::plugin::PluginName;

/// Claims and copies each value that is present.
macro_rules! merge_values {
    ($claim:expr, $into:expr, $from:expr, $($value:ident: $field:ident,)+) => {
        $(if $from.$value.is_some() {
            $claim(Field::$field)?;
            $into.$value.clone_from(&$from.$value);
        })+
    };
}

/// Merges the limits that a plugin sets for a container into limits of the plugins before it.
///
/// # Errors
/// Another plugin has set one of the limits.
pub fn merge(
    owners: &mut Ownership,
    container: &str,
    plugin: &PluginName,
    into: &mut LinuxResources,
    from: &LinuxResources,
) -> Result<(), OwnerConflict> {
    let mut claim = |field| owners.claim(container, field, plugin);
    if let Some(memory) = &from.memory {
        merge_memory(&mut claim, into.memory.get_or_insert_default(), memory)?;
    }
    if let Some(cpu) = &from.cpu {
        merge_cpu(&mut claim, into.cpu.get_or_insert_default(), cpu)?;
    }
    merge_values!(claim, into, from,
        blockio_class: BlockioClass,
        rdt_class: RdtClass,
        pids: PidsLimit,
    );
    for page in &from.hugepage_limits {
        owners.claim_entry(container, Field::HugepageLimits, &page.page_size, plugin)?;
        into.hugepage_limits.retain(|other| other.page_size != page.page_size);
        into.hugepage_limits.push(page.clone());
    }
    for (file, value) in &from.unified {
        owners.claim_entry(container, Field::CgroupsUnified, file, plugin)?;
        into.unified.insert(file.clone(), value.clone());
    }
    // Rules have no owners: all of them apply, in order.
    into.devices.extend(from.devices.iter().cloned());
    Ok(())
}

fn merge_memory(
    claim: &mut impl FnMut(Field) -> Result<(), OwnerConflict>,
    into: &mut LinuxMemory,
    from: &LinuxMemory,
) -> Result<(), OwnerConflict> {
    merge_values!(claim, into, from,
        limit: MemLimit,
        reservation: MemReservation,
        swap: MemSwapLimit,
        kernel: MemKernelLimit,
        kernel_tcp: MemTcpLimit,
        swappiness: MemSwappiness,
        disable_oom_killer: MemDisableOomKiller,
        use_hierarchy: MemUseHierarchy,
    );
    Ok(())
}

fn merge_cpu(
    claim: &mut impl FnMut(Field) -> Result<(), OwnerConflict>,
    into: &mut LinuxCpu,
    from: &LinuxCpu,
) -> Result<(), OwnerConflict> {
    merge_values!(claim, into, from,
        shares: CpuShares,
        quota: CpuQuota,
        period: CpuPeriod,
        realtime_runtime: CpuRealtimeRuntime,
        realtime_period: CpuRealtimePeriod,
    );
    if !from.cpus.is_empty() {
        claim(Field::CpuSetCpUs)?;
        into.cpus.clone_from(&from.cpus);
    }
    if !from.mems.is_empty() {
        claim(Field::CpuSetMems)?;
        into.mems.clone_from(&from.mems);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use berth_proto::nri::{HugepageLimit, LinuxPids, OptionalInt64, OptionalUInt64};

    use super::*;

    fn plugin(name: &str) -> PluginName {
        PluginName::of_file(name).unwrap()
    }

    #[test]
    fn limits_of_several_plugins_are_merged() {
        let shares = |value| LinuxResources {
            cpu: Some(LinuxCpu { shares: Some(OptionalUInt64 { value }), ..LinuxCpu::default() }),
            ..LinuxResources::default()
        };
        let others = LinuxResources {
            memory: Some(LinuxMemory { limit: Some(OptionalInt64 { value: 7 }), ..LinuxMemory::default() }),
            cpu: Some(LinuxCpu { cpus: "0-1".to_owned(), ..LinuxCpu::default() }),
            pids: Some(LinuxPids { limit: 9 }),
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".to_owned(), limit: 1 }],
            unified: [("memory.high".to_owned(), "5".to_owned())].into(),
            ..LinuxResources::default()
        };
        let (mut owners, mut merged) = (Ownership::default(), LinuxResources::default());
        merge(&mut owners, "c", &plugin("10-a"), &mut merged, &shares(3)).unwrap();
        merge(&mut owners, "c", &plugin("20-b"), &mut merged, &others).unwrap();
        let mut expected = others.clone();
        expected.cpu.as_mut().unwrap().shares = Some(OptionalUInt64 { value: 3 });
        assert_eq!(merged, expected);
        let error = merge(&mut owners, "c", &plugin("20-b"), &mut merged, &shares(4)).unwrap_err();
        assert_eq!((error.first.to_string().as_str(), error.field), ("10-a", Field::CpuShares));
        let again = LinuxResources { unified: others.unified.clone(), ..LinuxResources::default() };
        let error = merge(&mut owners, "c", &plugin("30-c"), &mut merged, &again).unwrap_err();
        assert_eq!((error.first.to_string().as_str(), error.key.as_deref()), ("20-b", Some("memory.high")));
    }
}
