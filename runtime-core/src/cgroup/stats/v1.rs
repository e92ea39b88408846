//! `io.containerd.cgroups.v1.Metrics` (Documentation/admin-guide/cgroup-v1/ for the files).

use super::super::dir::Dir;
use super::{PidsStat, RdmaStat, device_number, huge_page_sizes, pairs, pids, rdma, single};
use crate::error::Result;

/// The whole message, but for network and task states, which no cgroup file has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The names are those of the message.
pub struct Metrics {
    pub hugetlb: Vec<HugetlbStat>,
    pub pids: Option<PidsStat>,
    pub cpu: Option<CpuStat>,
    pub memory: Option<MemoryStat>,
    pub blkio: Option<BlkIoStat>,
    pub rdma: Option<RdmaStat>,
    pub memory_oom_control: Option<MemoryOomControl>,
}

/// One page size: bytes in use, the most there ever were, and how often the limit was hit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct HugetlbStat {
    pub usage: u64,
    pub max: u64,
    pub failcnt: u64,
    pub pagesize: String,
}

/// Both parts of processor use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct CpuStat {
    pub usage: Option<CpuUsage>,
    pub throttling: Option<Throttle>,
}

/// `cpuacct.*`, nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct CpuUsage {
    pub total: u64,
    pub kernel: u64,
    pub user: u64,
    pub per_cpu: Vec<u64>,
}

/// `cpu.stat`; the time is in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Throttle {
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_time: u64,
}

/// `memory.stat` (the `total_` ones with descendants) and the counters beside it, bytes or counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MemoryStat {
    pub cache: u64,
    pub rss: u64,
    pub rss_huge: u64,
    pub mapped_file: u64,
    pub dirty: u64,
    pub writeback: u64,
    pub pg_pg_in: u64,
    pub pg_pg_out: u64,
    pub pg_fault: u64,
    pub pg_maj_fault: u64,
    pub inactive_anon: u64,
    pub active_anon: u64,
    pub inactive_file: u64,
    pub active_file: u64,
    pub unevictable: u64,
    pub hierarchical_memory_limit: u64,
    pub hierarchical_swap_limit: u64,
    pub total_cache: u64,
    pub total_rss: u64,
    pub total_rss_huge: u64,
    pub total_mapped_file: u64,
    pub total_dirty: u64,
    pub total_writeback: u64,
    pub total_pg_pg_in: u64,
    pub total_pg_pg_out: u64,
    pub total_pg_fault: u64,
    pub total_pg_maj_fault: u64,
    pub total_inactive_anon: u64,
    pub total_active_anon: u64,
    pub total_inactive_file: u64,
    pub total_active_file: u64,
    pub total_unevictable: u64,
    pub usage: Option<MemoryEntry>,
    pub swap: Option<MemoryEntry>,
    pub kernel: Option<MemoryEntry>,
    pub kernel_tcp: Option<MemoryEntry>,
}

/// One counter of the memory controller, bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MemoryEntry {
    pub limit: u64,
    pub usage: u64,
    pub max: u64,
    pub failcnt: u64,
}

/// `memory.oom_control`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MemoryOomControl {
    pub oom_kill_disable: u64,
    pub under_oom: u64,
    pub oom_kill: u64,
}

/// `blkio.*`, descendants included where the kernel has such files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct BlkIoStat {
    pub io_service_bytes_recursive: Vec<BlkIoEntry>,
    pub io_serviced_recursive: Vec<BlkIoEntry>,
    pub io_queued_recursive: Vec<BlkIoEntry>,
    pub io_service_time_recursive: Vec<BlkIoEntry>,
    pub io_wait_time_recursive: Vec<BlkIoEntry>,
    pub io_merged_recursive: Vec<BlkIoEntry>,
    pub io_time_recursive: Vec<BlkIoEntry>,
    pub sectors_recursive: Vec<BlkIoEntry>,
}

/// One line: an operation on a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct BlkIoEntry {
    pub op: String,
    pub device: String,
    pub major: u64,
    pub minor: u64,
    pub value: u64,
}

/// `dir` finds the directory of a controller; `None` where it is not mounted.
pub(in super::super) fn read<'a>(dir: impl Fn(&'static str) -> Option<&'a Dir>) -> Result<Metrics> {
    fn of<T>(dir: Option<&Dir>, read: fn(&Dir) -> Result<Option<T>>) -> Result<Option<T>> {
        dir.map_or(Ok(None), read)
    }
    let cpu = CpuStat { usage: of(dir("cpuacct"), cpu_usage)?, throttling: of(dir("cpu"), throttle)? };
    Ok(Metrics {
        hugetlb: dir("hugetlb").map_or(Ok(Vec::new()), hugetlb)?,
        pids: of(dir("pids"), pids)?.map(|stat| PidsStat { limit: if stat.limit == u64::MAX { 0 } else { stat.limit }, ..stat }),
        cpu: (cpu != CpuStat::default()).then_some(cpu),
        memory: of(dir("memory"), memory)?,
        blkio: of(dir("blkio"), blkio)?,
        rdma: of(dir("rdma"), rdma)?,
        memory_oom_control: of(dir("memory"), oom_control)?,
    })
}

/// cpuacct.stat counts in USER_HZ, which the kernel shows as 100 on every architecture we build for.
const NS_PER_TICK: u64 = 10_000_000;

fn cpu_usage(dir: &Dir) -> Result<Option<CpuUsage>> {
    let Some(total) = single(dir, "cpuacct.usage")? else { return Ok(None) };
    let mut usage = CpuUsage { total, ..CpuUsage::default() };
    for (key, ticks) in pairs(&dir.read_if_any("cpuacct.stat")?.unwrap_or_default()) {
        match key {
            "user" => usage.user = ticks.saturating_mul(NS_PER_TICK),
            "system" => usage.kernel = ticks.saturating_mul(NS_PER_TICK),
            _ => {}
        }
    }
    let per_cpu = dir.read_if_any("cpuacct.usage_percpu")?.unwrap_or_default();
    usage.per_cpu = per_cpu.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    Ok(Some(usage))
}

fn throttle(dir: &Dir) -> Result<Option<Throttle>> {
    let Some(text) = dir.read_if_any("cpu.stat")? else { return Ok(None) };
    let mut stat = Throttle::default();
    for (key, value) in pairs(&text) {
        match key {
            "nr_periods" => stat.periods = value,
            "nr_throttled" => stat.throttled_periods = value,
            "throttled_time" => stat.throttled_time = value,
            _ => {}
        }
    }
    Ok(Some(stat))
}

fn memory(dir: &Dir) -> Result<Option<MemoryStat>> {
    let Some(text) = dir.read_if_any("memory.stat")? else { return Ok(None) };
    let mut stat = memory_stat(&text);
    stat.usage = memory_entry(dir, "memory")?;
    stat.swap = memory_entry(dir, "memory.memsw")?;
    stat.kernel = memory_entry(dir, "memory.kmem")?;
    stat.kernel_tcp = memory_entry(dir, "memory.kmem.tcp")?;
    Ok(Some(stat))
}

fn memory_stat(text: &str) -> MemoryStat {
    let mut stat = MemoryStat::default();
    for (key, value) in pairs(text) {
        let field = match key {
            "cache" => &mut stat.cache,
            "rss" => &mut stat.rss,
            "rss_huge" => &mut stat.rss_huge,
            "mapped_file" => &mut stat.mapped_file,
            "dirty" => &mut stat.dirty,
            "writeback" => &mut stat.writeback,
            "pgpgin" => &mut stat.pg_pg_in,
            "pgpgout" => &mut stat.pg_pg_out,
            "pgfault" => &mut stat.pg_fault,
            "pgmajfault" => &mut stat.pg_maj_fault,
            "inactive_anon" => &mut stat.inactive_anon,
            "active_anon" => &mut stat.active_anon,
            "inactive_file" => &mut stat.inactive_file,
            "active_file" => &mut stat.active_file,
            "unevictable" => &mut stat.unevictable,
            "hierarchical_memory_limit" => &mut stat.hierarchical_memory_limit,
            "hierarchical_memsw_limit" => &mut stat.hierarchical_swap_limit,
            "total_cache" => &mut stat.total_cache,
            "total_rss" => &mut stat.total_rss,
            "total_rss_huge" => &mut stat.total_rss_huge,
            "total_mapped_file" => &mut stat.total_mapped_file,
            "total_dirty" => &mut stat.total_dirty,
            "total_writeback" => &mut stat.total_writeback,
            "total_pgpgin" => &mut stat.total_pg_pg_in,
            "total_pgpgout" => &mut stat.total_pg_pg_out,
            "total_pgfault" => &mut stat.total_pg_fault,
            "total_pgmajfault" => &mut stat.total_pg_maj_fault,
            "total_inactive_anon" => &mut stat.total_inactive_anon,
            "total_active_anon" => &mut stat.total_active_anon,
            "total_inactive_file" => &mut stat.total_inactive_file,
            "total_active_file" => &mut stat.total_active_file,
            "total_unevictable" => &mut stat.total_unevictable,
            _ => continue,
        };
        *field = value;
    }
    stat
}

fn memory_entry(dir: &Dir, prefix: &str) -> Result<Option<MemoryEntry>> {
    let value = |name: &str| single(dir, &format!("{prefix}.{name}"));
    let Some(usage) = value("usage_in_bytes")? else { return Ok(None) };
    let limit = value("limit_in_bytes")?.unwrap_or(0);
    Ok(Some(MemoryEntry { limit, usage, max: value("max_usage_in_bytes")?.unwrap_or(0), failcnt: value("failcnt")?.unwrap_or(0) }))
}

fn oom_control(dir: &Dir) -> Result<Option<MemoryOomControl>> {
    let Some(text) = dir.read_if_any("memory.oom_control")? else { return Ok(None) };
    let mut control = MemoryOomControl::default();
    for (key, value) in pairs(&text) {
        match key {
            "oom_kill_disable" => control.oom_kill_disable = value,
            "under_oom" => control.under_oom = value,
            "oom_kill" => control.oom_kill = value,
            _ => {}
        }
    }
    Ok(Some(control))
}

/// On a hybrid host the controller may be on the v2 tree, with that tree's names.
fn hugetlb(dir: &Dir) -> Result<Vec<HugetlbStat>> {
    let mut found = Vec::new();
    for pagesize in huge_page_sizes() {
        let value = |name: &str| single(dir, &format!("hugetlb.{pagesize}.{name}"));
        if let Some(usage) = value("usage_in_bytes")? {
            let (max, failcnt) = (value("max_usage_in_bytes")?.unwrap_or(0), value("failcnt")?.unwrap_or(0));
            found.push(HugetlbStat { usage, max, failcnt, pagesize });
        } else if let Some(usage) = value("current")? {
            let events = dir.read_if_any(&format!("hugetlb.{pagesize}.events"))?.unwrap_or_default();
            let failcnt = pairs(&events).find(|(key, _)| *key == "max").map_or(0, |(_, count)| count);
            found.push(HugetlbStat { usage, max: 0, failcnt, pagesize });
        }
    }
    Ok(found)
}

/// The files of whichever scheduler keeps books: BFQ, CFQ before kernel 5.0, else the throttling layer, which counts bytes and operations only.
fn blkio(dir: &Dir) -> Result<Option<BlkIoStat>> {
    for prefix in ["blkio.bfq.", "blkio."] {
        let list = |name: &str| entries(dir, &format!("{prefix}{name}_recursive"));
        let serviced = list("io_serviced")?;
        if !serviced.is_empty() {
            return Ok(Some(BlkIoStat {
                io_service_bytes_recursive: list("io_service_bytes")?,
                io_serviced_recursive: serviced,
                io_queued_recursive: list("io_queued")?,
                io_service_time_recursive: list("io_service_time")?,
                io_wait_time_recursive: list("io_wait_time")?,
                io_merged_recursive: list("io_merged")?,
                io_time_recursive: list("time")?,
                sectors_recursive: list("sectors")?,
            }));
        }
    }
    let throttle = |name: &str| {
        let recursive = entries(dir, &format!("blkio.throttle.{name}_recursive"))?;
        if recursive.is_empty() { entries(dir, &format!("blkio.throttle.{name}")) } else { Ok(recursive) }
    };
    Ok(Some(BlkIoStat {
        io_service_bytes_recursive: throttle("io_service_bytes")?,
        io_serviced_recursive: throttle("io_serviced")?,
        ..BlkIoStat::default()
    }))
}

fn entries(dir: &Dir, file: &str) -> Result<Vec<BlkIoEntry>> {
    Ok(dir.read_if_any(file)?.unwrap_or_default().lines().filter_map(blkio_entry).collect())
}

/// `8:0 Read 100`, or `8:0 100` in files without operations; the closing `Total 100` is no entry.
fn blkio_entry(line: &str) -> Option<BlkIoEntry> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (number, op, value) = match words[..] {
        [number, op, value] => (number, op, value),
        [number, value] => (number, "", value),
        _ => return None,
    };
    let (major, minor) = device_number(number)?;
    Some(BlkIoEntry { op: op.to_owned(), device: device_name(number), major, minor, value: value.parse().ok()? })
}

/// `/dev/sda` for `8:0`; empty for a device that is gone.
fn device_name(number: &str) -> String {
    let link = std::fs::read_link(format!("/sys/dev/block/{number}")).unwrap_or_default();
    link.file_name().and_then(|name| name.to_str()).map(|name| format!("/dev/{name}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_keys() {
        let text = "cache 1\npgpgin 2\nhierarchical_memsw_limit 3\ntotal_rss 4\ntotal_pgmajfault 5\nswap 6\n";
        let expected =
            MemoryStat { cache: 1, pg_pg_in: 2, hierarchical_swap_limit: 3, total_rss: 4, total_pg_maj_fault: 5, ..MemoryStat::default() };
        assert_eq!(memory_stat(text), expected);
    }

    #[test]
    fn blkio_lines() {
        let entry = blkio_entry("4095:9 Read 100").unwrap();
        assert_eq!((entry.op.as_str(), entry.major, entry.minor, entry.value, entry.device.as_str()), ("Read", 4095, 9, 100, ""));
        assert_eq!(blkio_entry("4095:9 7").map(|entry| (entry.op, entry.value)), Some((String::new(), 7)));
        assert_eq!((blkio_entry("Total 100"), blkio_entry("")), (None, None));
    }

    #[test]
    fn bookkeeping_of_the_throttling_layer_is_used_when_there_is_no_scheduler() {
        let tree = tempfile::tempdir().unwrap();
        std::fs::write(tree.path().join("blkio.throttle.io_serviced_recursive"), "4095:9 Read 3\nTotal 3\n").unwrap();
        std::fs::write(tree.path().join("blkio.throttle.io_service_bytes"), "4095:9 Write 4\n").unwrap();
        std::fs::write(tree.path().join("blkio.bfq.io_serviced_recursive"), "Total 0\n").unwrap();
        let got = blkio(&Dir::mount_point(tree.path().to_str().unwrap(), None).unwrap()).unwrap().unwrap();
        assert_eq!((got.io_serviced_recursive.len(), got.io_service_bytes_recursive[0].value), (1, 4));
    }
}
