//! Converts limits to systemd's properties (systemd.resource-control(5); their types are in
//! org.freedesktop.systemd1(5)).

use berth_runtime::cgroup::weight_of;
use oci_spec::runtime::LinuxResources;
use zbus::Variant;

/// The name of a property and its value.
pub(super) type Property = (&'static str, Variant<'static>);

/// The value for no limit.
const INFINITY: u64 = u64::MAX;

/// Returns the properties of berth's scopes: the cgroup is delegated, and the scope is removed as soon as it is empty,
/// whatever its result.
pub(super) fn of_scope(slice: &str, description: &str, pid: u32) -> Vec<Property> {
    let mut properties: Vec<Property> = vec![
        ("Description", description.to_owned().into()),
        ("Slice", slice.to_owned().into()),
        ("Delegate", true.into()),
        ("PIDs", vec![pid].into()),
        ("CollectMode", "inactive-or-failed".into()),
    ];
    // Without accounting, controllers may be missing in the slices above.
    for accounting in ["CPUAccounting", "IOAccounting", "MemoryAccounting", "TasksAccounting"] {
        properties.push((accounting, true.into()));
    }
    properties
}

/// Returns the properties for the limits of a container.
pub(super) fn of(resources: &LinuxResources, v2: bool) -> Vec<Property> {
    let mut properties = Vec::new();
    let mut limit = |name, value: Option<i64>| {
        if let Some(value) = value.filter(|value| *value != 0) {
            properties.push((name, Variant::from(u64::try_from(value).unwrap_or(INFINITY))));
        }
    };
    if let Some(memory) = resources.memory() {
        limit(if v2 { "MemoryMax" } else { "MemoryLimit" }, memory.limit());
        if v2 {
            limit("MemoryLow", memory.reservation());
        }
    }
    limit("TasksMax", resources.pids().as_ref().map(|pids| pids.limit()));
    if let Some(swap) =
        resources.memory().as_ref().and_then(|memory| memory.swap()).filter(|swap| v2 && *swap != 0)
    {
        let limit = resources.memory().as_ref().and_then(|memory| memory.limit()).unwrap_or(0);
        // v1 and the OCI spec count memory and swap together.
        let alone = if swap < 0 { INFINITY } else { u64::try_from(swap - limit).unwrap_or(0) };
        properties.push(("MemorySwapMax", alone.into()));
    }
    properties.extend(of_cpu(resources, v2));
    properties
}

/// Returns the limits before an update, and no limit for those that only the update has set.
pub(super) fn restored(before: &LinuxResources, after: &LinuxResources, v2: bool) -> Vec<Property> {
    let mut properties = of(before, v2);
    for (name, _) in of(after, v2) {
        if properties.iter().all(|(existing, _)| *existing != name) {
            properties.push((name, unset(name)));
        }
    }
    properties
}

/// Returns the value of an unset property: an empty list, or the value for no limit and no weight.
fn unset(name: &str) -> Variant<'static> {
    match name {
        "AllowedCPUs" | "AllowedMemoryNodes" => Vec::<u8>::new().into(),
        _ => INFINITY.into(),
    }
}

fn of_cpu(resources: &LinuxResources, v2: bool) -> Vec<Property> {
    let Some(cpu) = resources.cpu() else { return Vec::new() };
    let mut properties: Vec<Property> = Vec::new();
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        properties.push(if v2 {
            ("CPUWeight", weight_of(shares).into())
        } else {
            ("CPUShares", shares.into())
        });
    }
    let period = cpu.period().filter(|period| *period != 0).unwrap_or(100_000);
    if let Some(quota) = cpu.quota().filter(|quota| *quota != 0) {
        properties.push(("CPUQuotaPeriodUSec", period.into()));
        properties.push(("CPUQuotaPerSecUSec", per_second(quota, period).into()));
    }
    for (name, list) in [("AllowedCPUs", cpu.cpus()), ("AllowedMemoryNodes", cpu.mems())] {
        if let Some(bits) = list.as_ref().and_then(|list| bits(list)).filter(|_| v2) {
            properties.push((name, bits.into()));
        }
    }
    properties
}

/// Returns microseconds per second. systemd counts in whole percents: a fraction is rounded up.
fn per_second(quota: i64, period: u64) -> u64 {
    const PERCENT: u64 = 10_000;
    match u64::try_from(quota) {
        Ok(quota) => (quota.saturating_mul(1_000_000) / period).div_ceil(PERCENT) * PERCENT,
        Err(_) => INFINITY,
    }
}

/// Converts a list such as `0-2,5` to bits, the lowest first; none for an invalid list, which the kernel refuses.
fn bits(list: &str) -> Option<Vec<u8>> {
    const MOST: usize = 1 << 16;
    let mut bits: Vec<u8> = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        for number in first..=last {
            let place = number / 8;
            if bits.len() <= place {
                bits.resize(place + 1, 0);
            }
            if let Some(byte) = bits.get_mut(place) {
                *byte |= 1 << (number % 8);
            }
        }
    }
    (!bits.is_empty()).then_some(bits)
}

#[cfg(test)]
mod tests {
    use berth_proto::v1::LinuxContainerResources;

    use super::*;
    use crate::oci::resources::limits;

    fn named(v2: bool, requested: &LinuxContainerResources) -> Vec<Property> {
        of(&limits(requested, v2), v2)
    }

    /// Returns the number that a property is set to.
    fn number(properties: &[Property], name: &str) -> Option<u64> {
        let (_, value) = properties.iter().find(|property| property.0 == name)?;
        u64::try_from(value).ok()
    }

    #[test]
    fn limits_have_names_on_both_versions() {
        let requested = LinuxContainerResources {
            memory_limit_in_bytes: 1000,
            cpu_shares: 1024,
            cpu_quota: 50_500,
            cpu_period: 100_000,
            cpuset_cpus: "0-1,9".to_owned(),
            ..Default::default()
        };
        let v2 = named(true, &requested);
        for (name, value) in
            [("MemoryMax", 1000), ("MemorySwapMax", 0), ("CPUWeight", 39), ("CPUQuotaPerSecUSec", 510_000)]
        {
            assert_eq!(number(&v2, name), Some(value), "{name} in {v2:?}");
        }
        let v1 = named(false, &requested);
        assert_eq!(number(&v1, "MemoryLimit"), Some(1000), "{v1:?}");
        assert_eq!(number(&v1, "CPUShares"), Some(1024), "{v1:?}");
        assert!(v1.iter().all(|(name, _)| !["CPUWeight", "AllowedCPUs"].contains(name)), "{v1:?}");
        let unlimited =
            LinuxContainerResources { memory_limit_in_bytes: -1, cpu_quota: -1, ..Default::default() };
        let unlimited = named(true, &unlimited);
        for name in ["MemoryMax", "CPUQuotaPerSecUSec"] {
            assert_eq!(number(&unlimited, name), Some(INFINITY), "{name} in {unlimited:?}");
        }
    }

    #[test]
    fn limits_that_an_update_set_are_unset() {
        let before = LinuxContainerResources { cpu_shares: 1024, ..Default::default() };
        let after = LinuxContainerResources {
            cpu_shares: 512,
            memory_limit_in_bytes: 1000,
            cpuset_cpus: "0".to_owned(),
            ..Default::default()
        };
        let restored = restored(&limits(&before, true), &limits(&after, true), true);
        assert_eq!(number(&restored, "CPUWeight"), Some(39));
        assert_eq!(number(&restored, "MemoryMax"), Some(INFINITY));
        assert_eq!(number(&restored, "MemorySwapMax"), Some(INFINITY));
        assert!(restored.iter().any(|(name, _)| *name == "AllowedCPUs"), "{restored:?}");
        assert_eq!(restored.len(), 4, "{restored:?}");
    }

    #[test]
    fn lists_are_bits() {
        assert_eq!(bits("0-1,9"), Some(vec![0b11, 0b10]));
        assert_eq!(bits("7"), Some(vec![0b1000_0000]));
        for wrong in ["", "x", "3-1", "0-99999999"] {
            assert_eq!(bits(wrong), None, "{wrong}");
        }
    }
}
