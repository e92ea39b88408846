//! `io.containerd.cgroups.v2.Metrics` (cgroup-v2.rst for the files).

use super::super::dir::Dir;
use super::{PidsStat, RdmaStat, device_number, huge_page_sizes, number, pairs, pids, rdma, single};
use crate::error::Result;

/// The whole message; its network part is per namespace and not a cgroup's business.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)] // The names are those of the message.
pub struct Metrics {
    pub pids: Option<PidsStat>,
    pub cpu: Option<CpuStat>,
    pub memory: Option<MemoryStat>,
    pub rdma: Option<RdmaStat>,
    pub io: Option<IoStat>,
    pub hugetlb: Vec<HugeTlbStat>,
    pub memory_events: Option<MemoryEvents>,
}

/// One line of a pressure file: percentages over the last 10, 60 and 300 s, and the total in µs.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct PsiData {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total: u64,
}

/// A pressure file: some tasks stalled, or all of them.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct PsiStats {
    pub some: Option<PsiData>,
    pub full: Option<PsiData>,
}

/// `cpu.stat` and `cpu.pressure`.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct CpuStat {
    pub usage_usec: u64,
    pub user_usec: u64,
    pub system_usec: u64,
    pub nr_periods: u64,
    pub nr_throttled: u64,
    pub throttled_usec: u64,
    pub psi: Option<PsiStats>,
    pub nr_bursts: u64,
    pub burst_usec: u64,
}

/// `memory.stat` and its neighbours, bytes or counts. No limit is `u64::MAX`.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct MemoryStat {
    pub anon: u64,
    pub file: u64,
    pub kernel_stack: u64,
    pub slab: u64,
    pub sock: u64,
    pub shmem: u64,
    pub file_mapped: u64,
    pub file_dirty: u64,
    pub file_writeback: u64,
    pub anon_thp: u64,
    pub inactive_anon: u64,
    pub active_anon: u64,
    pub inactive_file: u64,
    pub active_file: u64,
    pub unevictable: u64,
    pub slab_reclaimable: u64,
    pub slab_unreclaimable: u64,
    pub pgfault: u64,
    pub pgmajfault: u64,
    pub workingset_refault: u64,
    pub workingset_activate: u64,
    pub workingset_nodereclaim: u64,
    pub pgrefill: u64,
    pub pgscan: u64,
    pub pgsteal: u64,
    pub pgactivate: u64,
    pub pgdeactivate: u64,
    pub pglazyfree: u64,
    pub pglazyfreed: u64,
    pub thp_fault_alloc: u64,
    pub thp_collapse_alloc: u64,
    pub usage: u64,
    pub usage_limit: u64,
    pub swap_usage: u64,
    pub swap_limit: u64,
    pub max_usage: u64,
    pub swap_max_usage: u64,
    pub psi: Option<PsiStats>,
}

/// `memory.events`, descendants included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MemoryEvents {
    pub low: u64,
    pub high: u64,
    pub max: u64,
    pub oom: u64,
    pub oom_kill: u64,
    pub oom_group_kill: u64,
}

/// `io.stat` and `io.pressure`.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct IoStat {
    pub usage: Vec<IoEntry>,
    pub psi: Option<PsiStats>,
}

/// One device of `io.stat`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct IoEntry {
    pub major: u64,
    pub minor: u64,
    pub rbytes: u64,
    pub wbytes: u64,
    pub rios: u64,
    pub wios: u64,
}

/// One page size: bytes in use, the limit (`u64::MAX` for none), and how often it was hit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct HugeTlbStat {
    pub current: u64,
    pub max: u64,
    pub pagesize: String,
    pub failcnt: u64,
}

pub(in super::super) fn read(dir: &Dir) -> Result<Metrics> {
    Ok(Metrics {
        pids: pids(dir)?,
        cpu: cpu(dir)?,
        memory: memory(dir)?,
        rdma: rdma(dir)?,
        io: io(dir)?,
        hugetlb: hugetlb(dir)?,
        memory_events: memory_events(dir)?,
    })
}

fn cpu(dir: &Dir) -> Result<Option<CpuStat>> {
    let Some(text) = dir.read_if_any("cpu.stat")? else { return Ok(None) };
    let mut stat = CpuStat { psi: psi(dir, "cpu.pressure")?, ..CpuStat::default() };
    for (key, value) in pairs(&text) {
        match key {
            "usage_usec" => stat.usage_usec = value,
            "user_usec" => stat.user_usec = value,
            "system_usec" => stat.system_usec = value,
            "nr_periods" => stat.nr_periods = value,
            "nr_throttled" => stat.nr_throttled = value,
            "throttled_usec" => stat.throttled_usec = value,
            "nr_bursts" => stat.nr_bursts = value,
            "burst_usec" => stat.burst_usec = value,
            _ => {}
        }
    }
    Ok(Some(stat))
}

fn memory(dir: &Dir) -> Result<Option<MemoryStat>> {
    let Some(text) = dir.read_if_any("memory.stat")? else { return Ok(None) };
    let mut stat = memory_stat(&text);
    let value = |file| Ok::<_, crate::error::Error>(single(dir, file)?.unwrap_or(0));
    stat.usage = value("memory.current")?;
    stat.usage_limit = value("memory.max")?;
    stat.max_usage = value("memory.peak")?;
    stat.swap_usage = value("memory.swap.current")?;
    stat.swap_limit = value("memory.swap.max")?;
    stat.swap_max_usage = value("memory.swap.peak")?;
    stat.psi = psi(dir, "memory.pressure")?;
    Ok(Some(stat))
}

/// Kernel 5.9 split the workingset counters by anon and file; the message has their sum.
fn memory_stat(text: &str) -> MemoryStat {
    let mut stat = MemoryStat::default();
    for (key, value) in pairs(text) {
        match key {
            "anon" => stat.anon = value,
            "file" => stat.file = value,
            "kernel_stack" => stat.kernel_stack = value,
            "slab" => stat.slab = value,
            "sock" => stat.sock = value,
            "shmem" => stat.shmem = value,
            "file_mapped" => stat.file_mapped = value,
            "file_dirty" => stat.file_dirty = value,
            "file_writeback" => stat.file_writeback = value,
            "anon_thp" => stat.anon_thp = value,
            "inactive_anon" => stat.inactive_anon = value,
            "active_anon" => stat.active_anon = value,
            "inactive_file" => stat.inactive_file = value,
            "active_file" => stat.active_file = value,
            "unevictable" => stat.unevictable = value,
            "slab_reclaimable" => stat.slab_reclaimable = value,
            "slab_unreclaimable" => stat.slab_unreclaimable = value,
            "pgfault" => stat.pgfault = value,
            "pgmajfault" => stat.pgmajfault = value,
            "workingset_refault" | "workingset_refault_anon" | "workingset_refault_file" => stat.workingset_refault += value,
            "workingset_activate" | "workingset_activate_anon" | "workingset_activate_file" => stat.workingset_activate += value,
            "workingset_nodereclaim" => stat.workingset_nodereclaim = value,
            "pgrefill" => stat.pgrefill = value,
            "pgscan" => stat.pgscan = value,
            "pgsteal" => stat.pgsteal = value,
            "pgactivate" => stat.pgactivate = value,
            "pgdeactivate" => stat.pgdeactivate = value,
            "pglazyfree" => stat.pglazyfree = value,
            "pglazyfreed" => stat.pglazyfreed = value,
            "thp_fault_alloc" => stat.thp_fault_alloc = value,
            "thp_collapse_alloc" => stat.thp_collapse_alloc = value,
            _ => {}
        }
    }
    stat
}

fn memory_events(dir: &Dir) -> Result<Option<MemoryEvents>> {
    let Some(text) = dir.read_if_any("memory.events")? else { return Ok(None) };
    let mut events = MemoryEvents::default();
    for (key, value) in pairs(&text) {
        match key {
            "low" => events.low = value,
            "high" => events.high = value,
            "max" => events.max = value,
            "oom" => events.oom = value,
            "oom_kill" => events.oom_kill = value,
            "oom_group_kill" => events.oom_group_kill = value,
            _ => {}
        }
    }
    Ok(Some(events))
}

fn io(dir: &Dir) -> Result<Option<IoStat>> {
    let Some(text) = dir.read_if_any("io.stat")? else { return Ok(None) };
    Ok(Some(IoStat { usage: text.lines().filter_map(io_entry).collect(), psi: psi(dir, "io.pressure")? }))
}

/// `8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0`.
fn io_entry(line: &str) -> Option<IoEntry> {
    let mut words = line.split_whitespace();
    let (major, minor) = device_number(words.next()?)?;
    let mut entry = IoEntry { major, minor, ..IoEntry::default() };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let field = match key {
            "rbytes" => &mut entry.rbytes,
            "wbytes" => &mut entry.wbytes,
            "rios" => &mut entry.rios,
            "wios" => &mut entry.wios,
            _ => continue,
        };
        *field = value.parse().unwrap_or(0);
    }
    Some(entry)
}

fn hugetlb(dir: &Dir) -> Result<Vec<HugeTlbStat>> {
    let mut found = Vec::new();
    for pagesize in huge_page_sizes() {
        let Some(current) = single(dir, &format!("hugetlb.{pagesize}.current"))? else { continue };
        let max = single(dir, &format!("hugetlb.{pagesize}.max"))?.unwrap_or(0);
        let events = dir.read_if_any(&format!("hugetlb.{pagesize}.events"))?.unwrap_or_default();
        let failcnt = pairs(&events).find(|(key, _)| *key == "max").map_or(0, |(_, count)| count);
        found.push(HugeTlbStat { current, max, pagesize, failcnt });
    }
    Ok(found)
}

/// A kernel with `psi=0` has the files and answers EOPNOTSUPP, which reads as absent.
fn psi(dir: &Dir, file: &str) -> Result<Option<PsiStats>> {
    Ok(dir.read_if_any(file)?.map(|text| {
        let line = |kind| text.lines().find_map(|line| psi_data(line.strip_prefix(kind)?));
        PsiStats { some: line("some "), full: line("full ") }
    }))
}

/// `avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn psi_data(text: &str) -> Option<PsiData> {
    let mut data = PsiData::default();
    for (key, value) in text.split_whitespace().filter_map(|word| word.split_once('=')) {
        match key {
            "avg10" => data.avg10 = value.parse().ok()?,
            "avg60" => data.avg60 = value.parse().ok()?,
            "avg300" => data.avg300 = value.parse().ok()?,
            "total" => data.total = number(value)?,
            _ => {}
        }
    }
    Some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_keys_of_old_and_new_kernels() {
        let text =
            "anon 1\nfile 2\nworkingset_refault_anon 3\nworkingset_refault_file 4\nworkingset_activate 5\nthp_collapse_alloc 6\nlater 7\n";
        let expected =
            MemoryStat { anon: 1, file: 2, workingset_refault: 7, workingset_activate: 5, thp_collapse_alloc: 6, ..MemoryStat::default() };
        assert_eq!(memory_stat(text), expected);
    }

    #[test]
    fn io_lines() {
        let line = "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6";
        assert_eq!(io_entry(line), Some(IoEntry { major: 8, minor: 16, rbytes: 1, wbytes: 2, rios: 3, wios: 4 }));
        assert_eq!(io_entry("8:0").map(|entry| entry.rbytes), Some(0));
        assert_eq!(io_entry("sda rbytes=1"), None);
    }

    #[test]
    fn pressure_lines() {
        let data = psi_data("avg10=1.50 avg60=0.25 avg300=0.00 total=1234").unwrap();
        assert_eq!(data, PsiData { avg10: 1.5, avg60: 0.25, avg300: 0.0, total: 1234 });
    }

    #[test]
    fn every_file_of_a_group_is_read_and_missing_ones_are_not_needed() {
        let tree = tempfile::tempdir().unwrap();
        let files = [
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("cpu.stat", "usage_usec 9\nnr_throttled 2\n"),
            ("cpu.pressure", "some avg10=0.10 avg60=0.00 avg300=0.00 total=7\n"),
            ("memory.stat", "anon 4096\n"),
            ("memory.current", "8192\n"),
            ("memory.max", "max\n"),
            ("memory.peak", "9000\n"),
            ("memory.events", "low 0\noom 1\noom_kill 2\n"),
            ("io.stat", "8:0 rbytes=5 wbytes=6 rios=7 wios=8\n"),
            ("rdma.current", "mlx4_0 hca_handle=1 hca_object=2\n"),
        ];
        for (name, text) in files {
            std::fs::write(tree.path().join(name), text).unwrap();
        }
        let got = read(&Dir::mount_point(tree.path().to_str().unwrap(), None).unwrap()).unwrap();
        assert_eq!(got.pids, Some(PidsStat { current: 3, limit: u64::MAX }));
        let cpu = got.cpu.unwrap();
        assert_eq!((cpu.usage_usec, cpu.nr_throttled, cpu.psi.unwrap().some.unwrap().total), (9, 2, 7));
        let memory = got.memory.unwrap();
        assert_eq!((memory.anon, memory.usage, memory.usage_limit, memory.max_usage, memory.psi), (4096, 8192, u64::MAX, 9000, None));
        assert_eq!(got.memory_events.unwrap().oom_kill, 2);
        assert_eq!(got.io.unwrap().usage[0].wios, 8);
        assert_eq!(got.rdma.unwrap().current[0].hca_objects, 2);
        assert!(got.hugetlb.is_empty());

        let empty = tempfile::tempdir().unwrap();
        let nothing = read(&Dir::mount_point(empty.path().to_str().unwrap(), None).unwrap()).unwrap();
        assert_eq!(nothing, Metrics::default());
    }
}
