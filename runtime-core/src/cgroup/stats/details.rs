//! What containerd's messages have no field for, and `runc events` shows (types/events.go).

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::dir::Dir;
use super::pairs;
use crate::error::Result;

/// A cgroup's, of whichever version; what it lacks is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// `memory.stat`, key by key.
    pub memory: BTreeMap<String, u64>,
    /// Nanoseconds in the kernel for each processor (version 1).
    pub per_cpu_kernel: Vec<u64>,
    /// Nanoseconds outside of it (version 1).
    pub per_cpu_user: Vec<u64>,
    /// `cpuset.*` (version 1).
    pub cpuset: CpuSet,
    /// Processes inside, for a cgroup without the controller that counts them.
    pub processes: u64,
}

/// The files of version 1's cpuset, by their names, which are those of `events` as well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct CpuSet {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u16>,
    pub cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u16>,
    pub mem_hardwall: u64,
    pub mem_exclusive: u64,
    pub memory_migrate: u64,
    pub memory_spread_page: u64,
    pub memory_spread_slab: u64,
    pub memory_pressure: u64,
    pub sched_load_balance: u64,
    pub sched_relax_domain_level: i64,
}

/// From the directories of the controllers; of cpuset only one of version 1.
pub(in super::super) fn read(memory: Option<&Dir>, cpuacct: Option<&Dir>, cpuset: Option<&Dir>) -> Result<Details> {
    let text = |dir: Option<&Dir>, file| dir.map_or(Ok(None), |dir| dir.read_if_any(file)).map(Option::unwrap_or_default);
    let (per_cpu_user, per_cpu_kernel) = per_cpu(&text(cpuacct, "cpuacct.usage_all")?);
    Ok(Details {
        memory: pairs(&text(memory, "memory.stat")?).map(|(key, value)| (key.to_owned(), value)).collect(),
        per_cpu_kernel,
        per_cpu_user,
        cpuset: cpuset.map_or(Ok(CpuSet::default()), of_cpuset)?,
        processes: 0,
    })
}

/// `cpu user system`, one processor a line.
fn per_cpu(text: &str) -> (Vec<u64>, Vec<u64>) {
    let of = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().skip(1).map(|word| word.parse::<u64>().ok());
        numbers.next()?.zip(numbers.next()?)
    };
    text.lines().skip(1).filter_map(of).unzip()
}

fn of_cpuset(dir: &Dir) -> Result<CpuSet> {
    let text = |name: &str| dir.read_if_any(&format!("cpuset.{name}")).map(Option::unwrap_or_default);
    let number = |name: &str| text(name).map(|text| text.trim().parse().unwrap_or(0));
    Ok(CpuSet {
        cpus: list(&text("cpus")?),
        cpu_exclusive: number("cpu_exclusive")?,
        mems: list(&text("mems")?),
        mem_hardwall: number("mem_hardwall")?,
        mem_exclusive: number("mem_exclusive")?,
        memory_migrate: number("memory_migrate")?,
        memory_spread_page: number("memory_spread_page")?,
        memory_spread_slab: number("memory_spread_slab")?,
        memory_pressure: number("memory_pressure")?,
        sched_load_balance: number("sched_load_balance")?,
        sched_relax_domain_level: text("sched_relax_domain_level")?.trim().parse().unwrap_or(0),
    })
}

/// The numbers of a list such as `0-3,7` (cpuset(7), "List format").
fn list(text: &str) -> Vec<u16> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_version_1() {
        let tree = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("memory.stat", "cache 1\ntotal_rss 7\n"),
            ("cpuacct.usage_all", "cpu user system\n0 10 20\n1 30 40\n"),
            ("cpuset.cpus", "0-2,5\n"),
            ("cpuset.mems", "0\n"),
            ("cpuset.sched_load_balance", "1\n"),
            ("cpuset.sched_relax_domain_level", "-1\n"),
        ] {
            std::fs::write(tree.path().join(name), text).unwrap();
        }
        let dir = Dir::mount_point(tree.path().to_str().unwrap(), None).unwrap();
        let got = read(Some(&dir), Some(&dir), Some(&dir)).unwrap();
        assert_eq!(got.memory, BTreeMap::from([("cache".to_owned(), 1), ("total_rss".to_owned(), 7)]));
        assert_eq!((got.per_cpu_user, got.per_cpu_kernel), (vec![10, 30], vec![20, 40]));
        let cpuset =
            CpuSet { cpus: vec![0, 1, 2, 5], mems: vec![0], sched_load_balance: 1, sched_relax_domain_level: -1, ..CpuSet::default() };
        assert_eq!(got.cpuset, cpuset);
        assert_eq!(read(None, None, None).unwrap(), Details::default());
    }
}
