//! The limits of memory.

use oci_spec::runtime::LinuxResources;

use super::{CONTROLLER, MemoryNames, V1};
use crate::cgroup::files::{Reader, number};
use crate::cgroup::interface::Interface;
use crate::cgroup::limits::{IfMissing, LimitWrite, given, max_or};

/// Returns the files that set the limits, in the order in which they must be written.
pub(in crate::cgroup::controllers) fn limits(
    reader: &Reader<'_>,
    resources: &LinuxResources,
) -> Vec<LimitWrite> {
    let Some(memory) = resources.memory() else { return Vec::new() };
    let (limit, swap, soft) = (given(memory.limit()), given(memory.swap()), given(memory.reservation()));
    let write = |limit, file, value: String| LimitWrite::new(limit, CONTROLLER, file, value);
    let names = MemoryNames::of(reader.interface);
    let v1 = reader.interface == Interface::V1;
    let text = |limit: i64| if v1 { limit.to_string() } else { max_or(limit) };
    // Version 1 and the OCI spec limit the sum of memory and swap, version 2 limits swap alone.
    let swap = swap.map(|swap| match v1 || swap < 0 {
        true => swap,
        false => swap.saturating_sub(limit.unwrap_or(0)).max(0),
    });
    let mut writes = Vec::new();
    writes.extend(limit.map(|limit| write("memory.limit", names.limit, text(limit))));
    // A kernel that does not account swap has no such file, and no limit of swap.
    let swap = swap.map(|swap| write("memory.swap", names.swap_limit, text(swap)));
    writes.extend(swap.map(|swap| swap.if_missing(IfMissing::OmitFile)));
    if v1 && limit.is_some_and(|limit| exceeds_swap_limit(reader, limit)) {
        writes.reverse();
    }
    let soft_limit = if v1 { names.soft_limit } else { "memory.low" };
    writes.extend(soft.map(|soft| write("memory.reservation", soft_limit, text(soft))));
    if v1 {
        let swappiness = memory.swappiness().map(|value| value.to_string());
        writes.extend(swappiness.map(|value| write("memory.swappiness", "memory.swappiness", value)));
        let disabled = memory.disable_oom_killer().map(|value| u8::from(value).to_string());
        writes.extend(disabled.map(|value| write("memory.disableOOMKiller", names.events, value)));
    }
    writes
}

/// Returns whether a new limit of memory exceeds the present one of memory and swap. The kernel refuses that, so the limit of memory
/// and swap is then written first (Documentation/admin-guide/cgroup-v1/memory.rst, 2.4).
fn exceeds_swap_limit(reader: &Reader<'_>, limit: i64) -> bool {
    let present = reader.text(CONTROLLER, V1.swap_limit);
    let number_of = |limit: i64| u64::try_from(limit).unwrap_or(u64::MAX);
    present.is_some_and(|present| number_of(limit) > number(&present).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxMemory, LinuxMemoryBuilder, LinuxResourcesBuilder};

    use super::*;
    use crate::cgroup::files::with_files;

    #[test]
    fn limits_are_written_in_an_order_that_the_kernel_accepts() {
        let order = |interface, present: &str, memory: LinuxMemory| {
            let resources = LinuxResourcesBuilder::default().memory(memory).build().unwrap();
            with_files(interface, &[("memory.memsw.limit_in_bytes", present)], |reader| {
                let writes = limits(reader, &resources).into_iter();
                writes.map(|write| format!("{}={}", write.limit, write.value)).collect::<Vec<_>>()
            })
        };
        let memory = |limit: i64, swap: i64| {
            LinuxMemoryBuilder::default().limit(limit).swap(swap).reservation(7_i64).build().unwrap()
        };
        let (v1, v2) = (Interface::V1, Interface::V2);
        let shrinks = ["memory.limit=1000", "memory.swap=1500", "memory.reservation=7"];
        assert_eq!(order(v1, "9223372036854771712\n", memory(1000, 1500)), shrinks);
        let grows = ["memory.swap=1500", "memory.limit=1000", "memory.reservation=7"];
        assert_eq!(order(v1, "900\n", memory(1000, 1500)), grows);
        let unlimited = ["memory.swap=-1", "memory.limit=-1", "memory.reservation=7"];
        assert_eq!(order(v1, "900\n", memory(-1, -1)), unlimited);
        let alone = ["memory.limit=1000", "memory.swap=500", "memory.reservation=7"];
        assert_eq!(order(v2, "900\n", memory(1000, 1500)), alone);
        let no_swap = ["memory.limit=max", "memory.swap=max", "memory.reservation=7"];
        assert_eq!(order(v2, "", memory(-1, -1)), no_swap);
    }
}
