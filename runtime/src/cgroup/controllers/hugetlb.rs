//! Usage of huge pages (Documentation/admin-guide/cgroup-v1/hugetlb.rst, cgroup-v2.rst).

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use oci_spec::runtime::LinuxResources;

use crate::cgroup::files::Reader;
use crate::cgroup::interface::Interface;
use crate::cgroup::limits::{IfMissing, LimitWrite};

const CONTROLLER: &str = "hugetlb";

/// Huge pages of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HugePages {
    /// The size, as the kernel names it: `2MB`.
    pub size: String,
    /// Bytes in use.
    pub usage: u64,
    /// Largest usage so far, where the kernel counts it (v1).
    pub max_usage: Option<u64>,
}

/// The names of the files, behind `hugetlb.SIZE.`.
struct HugetlbNames {
    usage: &'static str,
    max_usage: Option<&'static str>,
    limit: &'static str,
}

const V1: HugetlbNames =
    HugetlbNames { usage: "usage_in_bytes", max_usage: Some("max_usage_in_bytes"), limit: "limit_in_bytes" };

const V2: HugetlbNames = HugetlbNames { usage: "current", max_usage: None, limit: "max" };

impl HugetlbNames {
    const fn of(interface: Interface) -> &'static Self {
        match interface {
            Interface::V1 => &V1,
            Interface::V2 => &V2,
        }
    }
}

fn file(size: &str, name: &str) -> String {
    format!("hugetlb.{size}.{name}")
}

/// The sizes of the host's huge pages. They do not change while it runs. A list of a cgroup's folder, which has about a
/// hundred files on v2, takes longer than the files themselves.
static SIZES: OnceLock<Vec<String>> = OnceLock::new();

/// Reads the usage of each size.
pub(super) fn usage(reader: &Reader<'_>) -> Vec<HugePages> {
    let Some(folder) = reader.folder(CONTROLLER).filter(|_| reader.has_controller(CONTROLLER)) else {
        return Vec::new();
    };
    if let Some(sizes) = SIZES.get() {
        return usage_of(reader, sizes);
    }
    let sizes = sizes_in(folder, HugetlbNames::of(reader.interface));
    let pages = usage_of(reader, &sizes);
    // On v2 the controller may be disabled in this cgroup.
    if !sizes.is_empty() {
        SIZES.get_or_init(|| sizes);
    }
    pages
}

fn usage_of(reader: &Reader<'_>, sizes: &[String]) -> Vec<HugePages> {
    let names = HugetlbNames::of(reader.interface);
    let page = |size: &String| {
        Some(HugePages {
            size: size.clone(),
            usage: reader.number(CONTROLLER, &file(size, names.usage))?,
            max_usage: names.max_usage.and_then(|max| reader.number(CONTROLLER, &file(size, max))),
        })
    };
    sizes.iter().filter_map(page).collect()
}

/// Returns the sizes for which a cgroup has files.
fn sizes_in(folder: &Path, names: &HugetlbNames) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let size = |name: &str| {
        // `hugetlb.SIZE.rsvd.current` counts reservations: a size has no dot.
        let (size, kind) = name.strip_prefix("hugetlb.")?.split_once('.')?;
        (kind == names.usage).then(|| size.to_owned())
    };
    let mut sizes: Vec<String> =
        entries.filter_map(|entry| size(entry.ok()?.file_name().to_str()?)).collect();
    sizes.sort();
    sizes
}

/// Returns the files that set the limits.
pub(super) fn limits(reader: &Reader<'_>, resources: &LinuxResources) -> Vec<LimitWrite> {
    let names = HugetlbNames::of(reader.interface);
    let write = |page: &oci_spec::runtime::LinuxHugepageLimit| {
        // The kubelet sends a limit of 0 for every page size, also on hosts that have no such pages.
        let if_missing = if page.limit() == 0 { IfMissing::Omit } else { IfMissing::Fail };
        let file = file(page.page_size(), names.limit);
        LimitWrite::new("hugepageLimits", CONTROLLER, file, page.limit()).if_missing(if_missing)
    };
    resources.hugepage_limits().iter().flatten().map(write).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::files::with_files;

    #[test]
    fn usage_of_both_versions() {
        let page = |size: &str, usage, max_usage| HugePages { size: size.to_owned(), usage, max_usage };
        let v1 = [
            ("hugetlb.2MB.usage_in_bytes", "0\n"),
            ("hugetlb.2MB.max_usage_in_bytes", "2097152\n"),
            ("hugetlb.2MB.rsvd.usage_in_bytes", "1\n"),
            ("hugetlb.1GB.usage_in_bytes", "7\n"),
        ];
        let expected = [page("1GB", 7, None), page("2MB", 0, Some(2 << 20))];
        let read = |interface, files: &[(&str, &str)]| {
            with_files(interface, files, |reader| {
                let sizes = sizes_in(reader.folder(CONTROLLER).unwrap(), HugetlbNames::of(interface));
                usage_of(reader, &sizes)
            })
        };
        assert_eq!(read(Interface::V1, &v1), expected);
        let v2 =
            [("hugetlb.2MB.current", "2097152\n"), ("hugetlb.2MB.rsvd.current", "1\n"), ("cpu.stat", "")];
        assert_eq!(read(Interface::V2, &v2), [page("2MB", 2 << 20, None)]);
        assert!(read(Interface::V2, &[("cpu.stat", "")]).is_empty());
        // A cgroup that has been removed.
        with_files(Interface::V2, &[], |reader| assert!(usage_of(reader, &["2MB".to_owned()]).is_empty()));
    }
}
