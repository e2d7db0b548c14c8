//! Usage of huge pages (Documentation/admin-guide/cgroup-v1/hugetlb.rst, cgroup-v2.rst).

use std::fs;
use std::path::Path;

use super::files::number;

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

/// Reads `hugetlb.SIZE.usage_in_bytes` and the largest usage.
pub(super) fn usage_v1(folder: &Path) -> Vec<HugePages> {
    huge_pages(folder, ".usage_in_bytes", Some(".max_usage_in_bytes"))
}

/// Reads `hugetlb.SIZE.current`.
pub(super) fn usage_v2(folder: &Path) -> Vec<HugePages> {
    huge_pages(folder, ".current", None)
}

/// Reads the files `hugetlb.SIZE.current` (v2) or `hugetlb.SIZE.usage_in_bytes` (v1) of a folder.
fn huge_pages(folder: &Path, usage: &str, max: Option<&str>) -> Vec<HugePages> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let pages = entries.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(usage)?;
        // `hugetlb.SIZE.rsvd.current` counts reservations.
        if size.contains('.') {
            return None;
        }
        Some(HugePages {
            size: size.to_owned(),
            usage: number(&folder.join(&name))?,
            max_usage: max.and_then(|max| number(&folder.join(format!("hugetlb.{size}{max}")))),
        })
    });
    let mut pages: Vec<HugePages> = pages.collect();
    pages.sort_by(|left, right| left.size.cmp(&right.size));
    pages
}
