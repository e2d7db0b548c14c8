//! The table of all metrics. A descriptor's type contains the number of its labels, so that a metric cannot have a
//! different number ([`Collector::add_with`](super::collector::Collector::add_with)).

use berth_proto::v1::{MetricDescriptor, MetricType};

/// The labels of every metric, in this order.
pub(super) const COMMON_LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// One metric with `N` labels in addition to [`COMMON_LABELS`].
#[derive(Debug)]
pub(super) struct Descriptor<const N: usize> {
    pub(super) name: &'static str,
    pub(super) kind: MetricType,
    labels: [&'static str; N],
    help: &'static str,
}

impl<const N: usize> Descriptor<N> {
    fn message(&self) -> MetricDescriptor {
        let keys = COMMON_LABELS.iter().chain(&self.labels);
        MetricDescriptor {
            name: self.name.to_owned(),
            help: self.help.to_owned(),
            label_keys: keys.map(|&key| key.to_owned()).collect(),
        }
    }
}

/// Declares descriptors as constants, and the list of all of them.
macro_rules! descriptors {
    ($($constant:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub(super) const $constant: Descriptor<{ <[&str]>::len(&[$($label),*]) }> =
                Descriptor { name: $name, kind: MetricType::$kind, labels: [$($label),*], help: $help };
        )*

        /// Returns the descriptors of all metrics.
        #[must_use]
        pub fn list_metric_descriptors() -> Vec<MetricDescriptor> {
            vec![$($constant.message()),*]
        }
    };
}

descriptors! {
    CPU_USAGE: Counter "container_cpu_usage_seconds_total" ["cpu"] "Processor time in seconds.";
    CPU_USER: Counter "container_cpu_user_seconds_total" [] "Processor time in user mode, in seconds.";
    CPU_SYSTEM: Counter "container_cpu_system_seconds_total" [] "Processor time in kernel mode, in seconds.";
    CFS_PERIODS: Counter "container_cpu_cfs_periods_total" [] "Periods of the CPU quota in which a task ran.";
    CFS_THROTTLED_PERIODS: Counter "container_cpu_cfs_throttled_periods_total" [] "Periods in which the CPU quota was used up.";
    CFS_THROTTLED_TIME: Counter "container_cpu_cfs_throttled_seconds_total" [] "Time for which tasks were throttled by the CPU quota, in seconds.";
    CPU_WAITING: Counter "container_pressure_cpu_waiting_seconds_total" [] "Time in which some tasks waited for a processor, in seconds.";
    CPU_STALLED: Counter "container_pressure_cpu_stalled_seconds_total" [] "Time in which all tasks waited for a processor, in seconds.";

    MEMORY_USAGE: Gauge "container_memory_usage_bytes" [] "Memory in use, including caches, in bytes.";
    MEMORY_WORKING_SET: Gauge "container_memory_working_set_bytes" [] "Memory in use without inactive file pages, in bytes.";
    MEMORY_MAX_USAGE: Gauge "container_memory_max_usage_bytes" [] "Highest memory usage in bytes; 0 if the kernel does not record it.";
    MEMORY_RSS: Gauge "container_memory_rss" [] "Anonymous memory in bytes.";
    MEMORY_CACHE: Gauge "container_memory_cache" [] "Page cache in bytes.";
    MEMORY_MAPPED_FILE: Gauge "container_memory_mapped_file" [] "Files mapped into memory, in bytes.";
    MEMORY_ACTIVE_FILE: Gauge "container_memory_total_active_file_bytes" [] "Active file pages in bytes.";
    MEMORY_INACTIVE_FILE: Gauge "container_memory_total_inactive_file_bytes" [] "Inactive file pages in bytes.";
    MEMORY_KERNEL: Gauge "container_memory_kernel_usage" [] "Kernel memory in bytes.";
    MEMORY_SWAP: Gauge "container_memory_swap" [] "Swap in use, in bytes.";
    MEMORY_LIMIT_HITS: Counter "container_memory_failcnt" [] "Number of times that memory usage reached its limit.";
    MEMORY_FAULTS: Counter "container_memory_failures_total" ["failure_type", "scope"] "Page faults (pgfault) and major page faults (pgmajfault).";
    MEMORY_WAITING: Counter "container_pressure_memory_waiting_seconds_total" [] "Time in which some tasks waited for memory, in seconds.";
    MEMORY_STALLED: Counter "container_pressure_memory_stalled_seconds_total" [] "Time in which all tasks waited for memory, in seconds.";
    OOM_KILLS: Counter "container_oom_events_total" [] "Processes killed because memory ran out.";
    HUGE_PAGES_USAGE: Gauge "container_hugetlb_usage_bytes" ["pagesize"] "Huge pages in use, in bytes.";
    HUGE_PAGES_MAX_USAGE: Gauge "container_hugetlb_max_usage_bytes" ["pagesize"] "Highest usage of huge pages in bytes.";

    DEVICE_BYTES: Counter "container_blkio_device_usage_total" ["device", "major", "minor", "operation"] "Bytes read from and written to a block device.";
    FS_READ_BYTES: Counter "container_fs_reads_bytes_total" ["device"] "Bytes read from a block device.";
    FS_READS: Counter "container_fs_reads_total" ["device"] "Reads completed by a block device.";
    FS_WRITTEN_BYTES: Counter "container_fs_writes_bytes_total" ["device"] "Bytes written to a block device.";
    FS_WRITES: Counter "container_fs_writes_total" ["device"] "Writes completed by a block device.";
    IO_WAITING: Counter "container_pressure_io_waiting_seconds_total" [] "Time in which some tasks waited for I/O, in seconds.";
    IO_STALLED: Counter "container_pressure_io_stalled_seconds_total" [] "Time in which all tasks waited for I/O, in seconds.";

    FS_USAGE: Gauge "container_fs_usage_bytes" ["device"] "Size of the writable layer and the log, in bytes.";
    FS_LIMIT: Gauge "container_fs_limit_bytes" ["device"] "Size of the filesystem of the writable layer, in bytes.";
    FS_INODES: Gauge "container_fs_inodes_total" ["device"] "Inodes of the filesystem of the writable layer.";
    FS_INODES_FREE: Gauge "container_fs_inodes_free" ["device"] "Free inodes of the filesystem of the writable layer.";

    RECEIVED_BYTES: Counter "container_network_receive_bytes_total" ["interface"] "Bytes received.";
    RECEIVED_PACKETS: Counter "container_network_receive_packets_total" ["interface"] "Packets received.";
    RECEIVE_DROPS: Counter "container_network_receive_packets_dropped_total" ["interface"] "Packets dropped on receipt.";
    RECEIVE_ERRORS: Counter "container_network_receive_errors_total" ["interface"] "Errors on receipt.";
    SENT_BYTES: Counter "container_network_transmit_bytes_total" ["interface"] "Bytes sent.";
    SENT_PACKETS: Counter "container_network_transmit_packets_total" ["interface"] "Packets sent.";
    SEND_DROPS: Counter "container_network_transmit_packets_dropped_total" ["interface"] "Packets dropped on sending.";
    SEND_ERRORS: Counter "container_network_transmit_errors_total" ["interface"] "Errors on sending.";

    PROCESSES: Gauge "container_processes" [] "Processes.";
    THREADS: Gauge "container_threads" [] "Threads of all processes.";
    THREADS_MAX: Gauge "container_threads_max" [] "Limit of threads; 0 is unlimited.";
    FILE_DESCRIPTORS: Gauge "container_file_descriptors" [] "Open file descriptors of all processes.";
    SOCKETS: Gauge "container_sockets" [] "File descriptors that are sockets.";
    ULIMITS: Gauge "container_ulimits_soft" ["ulimit"] "Soft limits of the first process.";

    CREATION_TIME: Gauge "container_creation_time_seconds" [] "Creation time in seconds since the epoch.";
    START_TIME: Gauge "container_start_time_seconds" [] "Start time in seconds since the epoch.";
    LAST_SEEN: Gauge "container_last_seen" [] "Time of the measurement in seconds since the epoch.";

    SPEC_CPU_PERIOD: Gauge "container_spec_cpu_period" [] "Period of the CPU quota in microseconds.";
    SPEC_CPU_QUOTA: Gauge "container_spec_cpu_quota" [] "CPU quota in microseconds per period.";
    SPEC_CPU_SHARES: Gauge "container_spec_cpu_shares" [] "CPU shares.";
    SPEC_MEMORY_LIMIT: Gauge "container_spec_memory_limit_bytes" [] "Memory limit in bytes; 0 is unlimited.";
    SPEC_MEMORY_RESERVATION: Gauge "container_spec_memory_reservation_limit_bytes" [] "Memory above which the kernel reclaims first, in bytes; 0 is unlimited.";
    SPEC_MEMORY_SWAP: Gauge "container_spec_memory_swap_limit_bytes" [] "Swap limit in bytes; 0 is unlimited. On cgroup v1 it includes memory.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_metric_has_one_name_a_help_and_distinct_labels() {
        let all = list_metric_descriptors();
        let names: BTreeSet<&str> = all.iter().map(|descriptor| descriptor.name.as_str()).collect();
        assert_eq!(names.len(), all.len());
        for descriptor in &all {
            assert!(descriptor.name.starts_with("container_"), "{descriptor:?}");
            assert!(descriptor.help.ends_with('.'), "{descriptor:?}");
            assert_eq!(descriptor.label_keys[..COMMON_LABELS.len()], COMMON_LABELS, "{descriptor:?}");
            let keys: BTreeSet<&String> = descriptor.label_keys.iter().collect();
            assert_eq!(keys.len(), descriptor.label_keys.len(), "{descriptor:?}");
        }
    }
}
