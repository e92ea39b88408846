//! What a cgroup has used, field for field as containerd's two `Metrics` messages have it (`io.containerd.cgroups.v1` and `.v2`), so that
//! whoever speaks that protocol only copies. A file that this kernel or this group does not have leaves its field empty.

pub mod details;
pub mod v1;
pub mod v2;

use super::dir::Dir;
use crate::error::Result;

/// The statistics in the form of the host's cgroup version: a hybrid host's are those of version 1.
#[derive(Clone, Debug, PartialEq)]
pub enum Stats {
    /// `io.containerd.cgroups.v1.Metrics`.
    V1(Box<v1::Metrics>),
    /// `io.containerd.cgroups.v2.Metrics`.
    V2(Box<v2::Metrics>),
}

/// Limits of an RDMA device, or what is in use of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RdmaEntry {
    /// Device name.
    pub device: String,
    /// HCA handles; `u32::MAX` for no limit.
    pub hca_handles: u32,
    /// HCA objects; `u32::MAX` for no limit.
    pub hca_objects: u32,
}

/// `rdma.current` and `rdma.max`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RdmaStat {
    /// In use.
    pub current: Vec<RdmaEntry>,
    /// Limits.
    pub limit: Vec<RdmaEntry>,
}

/// `pids.current` and `pids.max`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PidsStat {
    /// Tasks.
    pub current: u64,
    /// The limit. Without one: 0 on version 1, `u64::MAX` on version 2, as containerd reports it.
    pub limit: u64,
}

/// The lines `key number` of a flat-keyed file; what has another form is passed over.
fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

/// A file with one number, or `max` for no limit (`u64::MAX`).
fn single(dir: &Dir, file: &str) -> Result<Option<u64>> {
    Ok(dir.read_if_any(file)?.as_deref().and_then(number))
}

fn number(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(u64::MAX),
        digits => digits.parse().ok(),
    }
}

fn pids(dir: &Dir) -> Result<Option<PidsStat>> {
    let Some(current) = single(dir, "pids.current")? else { return Ok(None) };
    Ok(Some(PidsStat { current, limit: single(dir, "pids.max")?.unwrap_or(0) }))
}

/// Both versions have the same two files.
fn rdma(dir: &Dir) -> Result<Option<RdmaStat>> {
    let Some(current) = dir.read_if_any("rdma.current")? else { return Ok(None) };
    let limit = dir.read_if_any("rdma.max")?.unwrap_or_default();
    Ok(Some(RdmaStat { current: current.lines().filter_map(rdma_entry).collect(), limit: limit.lines().filter_map(rdma_entry).collect() }))
}

/// `mlx4_0 hca_handle=2 hca_object=2000`, `max` for no limit.
fn rdma_entry(line: &str) -> Option<RdmaEntry> {
    let mut words = line.split_whitespace();
    let mut entry = RdmaEntry { device: words.next()?.to_owned(), ..RdmaEntry::default() };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let value = number(value).map(|value| u32::try_from(value).unwrap_or(u32::MAX))?;
        match key {
            "hca_handle" => entry.hca_handles = value,
            "hca_object" => entry.hca_objects = value,
            _ => {}
        }
    }
    Some(entry)
}

/// `8:16` as numbers.
fn device_number(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The page sizes of this kernel as the hugetlb files spell them: `2MB`, `1GB`.
fn huge_page_sizes() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut sizes: Vec<u64> = names.filter_map(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()).collect();
    sizes.sort_unstable();
    sizes.into_iter().map(page_size).collect()
}

/// As `hugetlb_cgroup_file_init` of the kernel's mm/hugetlb_cgroup.c formats it.
fn page_size(kib: u64) -> String {
    match kib {
        _ if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        _ if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        _ => format!("{kib}KB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_are_spelled_as_in_file_names() {
        assert_eq!([64, 2048, 32_768, 1 << 20, 16 << 20].map(page_size), ["64KB", "2MB", "32MB", "1GB", "16GB"]);
    }

    #[test]
    fn rdma_lines() {
        let entry = rdma_entry("mlx4_0 hca_handle=2 hca_object=max").unwrap();
        assert_eq!(entry, RdmaEntry { device: "mlx4_0".into(), hca_handles: 2, hca_objects: u32::MAX });
        assert_eq!(rdma_entry(""), None);
        assert_eq!(rdma_entry("mlx4_0 hca_handle=x"), None);
    }

    #[test]
    fn lines_that_are_not_pairs_are_passed_over() {
        assert_eq!(pairs("a 1\nb\nc x\n\nd 2 \ne -1\n").collect::<Vec<_>>(), [("a", 1), ("d", 2)]);
    }
}
