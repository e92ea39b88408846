//! The figures of `coracle events`, field by field in the order of `runc events` (types/events.go).

use std::collections::BTreeMap;

use runtime_core::cgroup::Stats;
use runtime_core::cgroup::stats::details::{CpuSet, Details};
use runtime_core::cgroup::stats::{v1, v2};
use runtime_core::rdt::Groups;
use serde::Serialize;

use crate::rdt;

/// What a container uses, in version 1's terms whatever the version.
#[derive(Serialize)]
pub struct Figures {
    cpu: Cpu,
    cpuset: CpuSet,
    memory: Memory,
    pids: Pids,
    blkio: BlockIo,
    hugetlb: BTreeMap<String, HugePages>,
    intel_rdt: rdt::Figures,
    network_interfaces: Option<()>,
}

#[derive(Default, Serialize)]
struct Cpu {
    #[serde(skip_serializing_if = "unset")]
    usage: CpuUsage,
    #[serde(skip_serializing_if = "unset")]
    throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

/// Nanoseconds.
#[derive(Default, PartialEq, Serialize)]
struct CpuUsage {
    #[serde(skip_serializing_if = "unset")]
    total: u64,
    #[serde(skip_serializing_if = "unset")]
    percpu: Vec<u64>,
    #[serde(skip_serializing_if = "unset")]
    percpu_kernel: Vec<u64>,
    #[serde(skip_serializing_if = "unset")]
    percpu_user: Vec<u64>,
    kernel: u64,
    user: u64,
}

#[derive(Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    #[serde(skip_serializing_if = "unset")]
    periods: u64,
    #[serde(skip_serializing_if = "unset")]
    throttled_periods: u64,
    #[serde(skip_serializing_if = "unset")]
    throttled_time: u64,
}

#[derive(Default, Serialize)]
struct Memory {
    #[serde(skip_serializing_if = "unset")]
    cache: u64,
    #[serde(skip_serializing_if = "unset")]
    usage: MemoryEntry,
    #[serde(skip_serializing_if = "unset")]
    swap: MemoryEntry,
    #[serde(skip_serializing_if = "unset")]
    kernel: MemoryEntry,
    #[serde(rename = "kernelTCP", skip_serializing_if = "unset")]
    kernel_tcp: MemoryEntry,
    #[serde(skip_serializing_if = "unset")]
    raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Default, PartialEq, Serialize)]
struct MemoryEntry {
    limit: u64,
    #[serde(skip_serializing_if = "unset")]
    usage: u64,
    #[serde(skip_serializing_if = "unset")]
    max: u64,
    failcnt: u64,
}

#[derive(Default, Serialize)]
struct Pids {
    #[serde(skip_serializing_if = "unset")]
    current: u64,
    #[serde(skip_serializing_if = "unset")]
    limit: u64,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct BlockIo {
    #[serde(skip_serializing_if = "unset")]
    io_service_bytes_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "unset")]
    io_serviced_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "unset")]
    io_queue_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "unset")]
    io_service_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "unset")]
    io_wait_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "unset")]
    io_merged_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "unset")]
    io_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "unset")]
    sectors_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(PartialEq, Serialize)]
struct BlockIoEntry {
    #[serde(skip_serializing_if = "unset")]
    major: u64,
    #[serde(skip_serializing_if = "unset")]
    minor: u64,
    #[serde(skip_serializing_if = "unset")]
    op: String,
    #[serde(skip_serializing_if = "unset")]
    value: u64,
}

#[derive(Serialize)]
struct HugePages {
    #[serde(skip_serializing_if = "unset")]
    usage: u64,
    #[serde(skip_serializing_if = "unset")]
    max: u64,
    failcnt: u64,
}

#[derive(Serialize)]
struct Pressure {
    #[serde(skip_serializing_if = "Option::is_none")]
    some: Option<PressureData>,
    #[serde(skip_serializing_if = "Option::is_none")]
    full: Option<PressureData>,
}

#[derive(Serialize)]
struct PressureData {
    avg10: f64,
    avg60: f64,
    avg300: f64,
    total: u64,
}

/// Go leaves such fields out.
fn unset<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What a container has used.
pub fn of(stats: &Stats, details: Details, groups: &Groups) -> Figures {
    let figures = match stats {
        Stats::V1(metrics) => of_v1(metrics, groups),
        Stats::V2(metrics) => of_v2(metrics, groups),
    };
    let usage = CpuUsage { percpu_kernel: details.per_cpu_kernel, percpu_user: details.per_cpu_user, ..figures.cpu.usage };
    Figures {
        cpu: Cpu { usage, ..figures.cpu },
        cpuset: details.cpuset,
        memory: Memory { raw: details.memory, ..figures.memory },
        pids: Pids { current: if figures.pids.current == 0 { details.processes } else { figures.pids.current }, ..figures.pids },
        ..figures
    }
}

fn of_v1(metrics: &v1::Metrics, groups: &Groups) -> Figures {
    let cpu = metrics.cpu.clone().unwrap_or_default();
    let (usage, throttling) = (cpu.usage.unwrap_or_default(), cpu.throttling.unwrap_or_default());
    let memory = metrics.memory.clone().unwrap_or_default();
    let pids = metrics.pids.clone().unwrap_or_default();
    let pages =
        |pages: &v1::HugetlbStat| (pages.pagesize.clone(), HugePages { usage: pages.usage, max: pages.max, failcnt: pages.failcnt });
    Figures {
        cpu: Cpu {
            usage: CpuUsage { total: usage.total, percpu: usage.per_cpu, kernel: usage.kernel, user: usage.user, ..CpuUsage::default() },
            throttling: Throttling {
                periods: throttling.periods,
                throttled_periods: throttling.throttled_periods,
                throttled_time: throttling.throttled_time,
            },
            psi: None,
        },
        memory: Memory {
            cache: memory.cache,
            usage: memory.usage.into(),
            swap: memory.swap.into(),
            kernel: memory.kernel.into(),
            kernel_tcp: memory.kernel_tcp.into(),
            ..Memory::default()
        },
        pids: Pids { current: pids.current, limit: pids.limit },
        blkio: metrics.blkio.as_ref().map(BlockIo::from).unwrap_or_default(),
        hugetlb: metrics.hugetlb.iter().map(pages).collect(),
        ..Figures::without(groups)
    }
}

/// In version 1's terms, as runc shows version 2.
fn of_v2(metrics: &v2::Metrics, groups: &Groups) -> Figures {
    let cpu = metrics.cpu.clone().unwrap_or_default();
    let memory = metrics.memory.clone().unwrap_or_default();
    let pids = metrics.pids.clone().unwrap_or_default();
    let nanoseconds = |microseconds: u64| microseconds.saturating_mul(1000);
    let entry = |limit, usage, max| MemoryEntry { limit, usage, max, failcnt: 0 };
    // Version 1 counts memory and swap together.
    let swap = entry(memory.swap_limit.saturating_add(memory.usage_limit), memory.swap_usage.saturating_add(memory.usage), 0);
    let pages = |pages: &v2::HugeTlbStat| (pages.pagesize.clone(), HugePages { usage: pages.current, max: 0, failcnt: pages.failcnt });
    Figures {
        cpu: Cpu {
            usage: CpuUsage {
                total: nanoseconds(cpu.usage_usec),
                kernel: nanoseconds(cpu.system_usec),
                user: nanoseconds(cpu.user_usec),
                ..CpuUsage::default()
            },
            throttling: Throttling {
                periods: cpu.nr_periods,
                throttled_periods: cpu.nr_throttled,
                throttled_time: nanoseconds(cpu.throttled_usec),
            },
            psi: cpu.psi.map(Pressure::from),
        },
        memory: Memory {
            cache: memory.file,
            usage: entry(memory.usage_limit, memory.usage, memory.max_usage),
            swap,
            psi: memory.psi.map(Pressure::from),
            ..Memory::default()
        },
        // No limit is 0, as on version 1.
        pids: Pids { current: pids.current, limit: if pids.limit == u64::MAX { 0 } else { pids.limit } },
        blkio: metrics.io.as_ref().map(BlockIo::from).unwrap_or_default(),
        hugetlb: metrics.hugetlb.iter().map(pages).collect(),
        ..Figures::without(groups)
    }
}

impl Figures {
    fn without(groups: &Groups) -> Self {
        Self {
            cpu: Cpu::default(),
            cpuset: CpuSet::default(),
            memory: Memory::default(),
            pids: Pids::default(),
            blkio: BlockIo::default(),
            hugetlb: BTreeMap::new(),
            intel_rdt: rdt::figures(groups),
            network_interfaces: None,
        }
    }
}

impl From<Option<v1::MemoryEntry>> for MemoryEntry {
    fn from(entry: Option<v1::MemoryEntry>) -> Self {
        entry.map_or_else(Self::default, |entry| Self { limit: entry.limit, usage: entry.usage, max: entry.max, failcnt: entry.failcnt })
    }
}

impl From<&v1::BlkIoStat> for BlockIo {
    fn from(stat: &v1::BlkIoStat) -> Self {
        let entry =
            |entry: &v1::BlkIoEntry| BlockIoEntry { major: entry.major, minor: entry.minor, op: entry.op.clone(), value: entry.value };
        let table = |entries: &[v1::BlkIoEntry]| entries.iter().map(entry).collect();
        Self {
            io_service_bytes_recursive: table(&stat.io_service_bytes_recursive),
            io_serviced_recursive: table(&stat.io_serviced_recursive),
            io_queue_recursive: table(&stat.io_queued_recursive),
            io_service_time_recursive: table(&stat.io_service_time_recursive),
            io_wait_time_recursive: table(&stat.io_wait_time_recursive),
            io_merged_recursive: table(&stat.io_merged_recursive),
            io_time_recursive: table(&stat.io_time_recursive),
            sectors_recursive: table(&stat.sectors_recursive),
            psi: None,
        }
    }
}

impl From<&v2::IoStat> for BlockIo {
    fn from(stat: &v2::IoStat) -> Self {
        let of = |entry: &v2::IoEntry, op: &str, value| BlockIoEntry { major: entry.major, minor: entry.minor, op: op.to_owned(), value };
        let both = |read: fn(&v2::IoEntry) -> u64, write: fn(&v2::IoEntry) -> u64| {
            stat.usage.iter().flat_map(|entry| [of(entry, "Read", read(entry)), of(entry, "Write", write(entry))]).collect()
        };
        Self {
            io_service_bytes_recursive: both(|entry| entry.rbytes, |entry| entry.wbytes),
            io_serviced_recursive: both(|entry| entry.rios, |entry| entry.wios),
            psi: stat.psi.clone().map(Pressure::from),
            ..Self::default()
        }
    }
}

impl From<v2::PsiStats> for Pressure {
    fn from(stats: v2::PsiStats) -> Self {
        let data = |data: v2::PsiData| PressureData { avg10: data.avg10, avg60: data.avg60, avg300: data.avg300, total: data.total };
        Self { some: stats.some.map(data), full: stats.full.map(data) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn shown(stats: &Stats) -> Value {
        serde_json::to_value(of(stats, Details::default(), &Groups::default())).unwrap()
    }

    #[test]
    fn tables_are_those_of_runc() {
        let entry = |op: &str, value| v1::BlkIoEntry { op: op.to_owned(), major: 8, minor: 0, value, ..Default::default() };
        let metrics = v1::Metrics {
            blkio: Some(v1::BlkIoStat { io_serviced_recursive: vec![entry("Read", 3), entry("Write", 0)], ..Default::default() }),
            hugetlb: vec![v1::HugetlbStat { usage: 4096, failcnt: 2, pagesize: "2MB".to_owned(), ..Default::default() }],
            ..Default::default()
        };
        let figures = shown(&Stats::V1(Box::new(metrics)));
        assert_eq!(
            figures["blkio"],
            json!({ "ioServicedRecursive": [{ "major": 8, "op": "Read", "value": 3 }, { "major": 8, "op": "Write" }] })
        );
        assert_eq!(figures["hugetlb"], json!({ "2MB": { "usage": 4096, "failcnt": 2 } }));
        let usage = vec![v2::IoEntry { major: 8, minor: 1, rbytes: 10, wbytes: 20, rios: 1, wios: 2 }];
        let figures = shown(&Stats::V2(Box::new(v2::Metrics { io: Some(v2::IoStat { usage, psi: None }), ..Default::default() })));
        let two = |read: u64, write: u64| json!([{ "major": 8, "minor": 1, "op": "Read", "value": read }, { "major": 8, "minor": 1, "op": "Write", "value": write }]);
        assert_eq!(figures["blkio"], json!({ "ioServiceBytesRecursive": two(10, 20), "ioServicedRecursive": two(1, 2) }));
        assert_eq!((&figures["hugetlb"], &figures["network_interfaces"]), (&json!({}), &Value::Null));
    }

    #[test]
    fn version_2_is_shown_as_version_1() {
        let psi = v2::PsiStats { some: Some(v2::PsiData { avg10: 0.5, total: 7, ..Default::default() }), full: None };
        let memory = v2::MemoryStat { usage: 10, usage_limit: 100, swap_usage: 5, swap_limit: 50, max_usage: 12, ..Default::default() };
        let metrics = v2::Metrics {
            cpu: Some(v2::CpuStat { usage_usec: 3, psi: Some(psi), ..Default::default() }),
            memory: Some(memory),
            pids: Some(runtime_core::cgroup::stats::PidsStat { current: 2, limit: u64::MAX }),
            ..Default::default()
        };
        let figures = shown(&Stats::V2(Box::new(metrics)));
        assert_eq!(figures["pids"], json!({ "current": 2 }));
        assert_eq!(figures["memory"]["swap"], json!({ "limit": 150, "usage": 15, "failcnt": 0 }));
        assert_eq!(figures["memory"]["usage"], json!({ "limit": 100, "usage": 10, "max": 12, "failcnt": 0 }));
        assert_eq!(figures["cpu"]["psi"], json!({ "some": { "avg10": 0.5, "avg60": 0.0, "avg300": 0.0, "total": 7 } }));
    }

    #[test]
    fn keys_are_in_runcs_order() {
        let details =
            Details { memory: [("cache".to_owned(), 1)].into(), per_cpu_user: vec![1], per_cpu_kernel: vec![2], ..Details::default() };
        let text = serde_json::to_string(&of(&Stats::V1(Box::default()), details, &Groups::default())).unwrap();
        let start =
            r#"{"cpu":{"usage":{"percpu_kernel":[2],"percpu_user":[1],"kernel":0,"user":0}},"cpuset":{"cpu_exclusive":0,"mem_hardwall":0,"#;
        let end = r#""sched_relax_domain_level":0},"memory":{"raw":{"cache":1}},"pids":{},"blkio":{},"hugetlb":{},"intel_rdt":{},"network_interfaces":null}"#;
        assert!(text.starts_with(start) && text.ends_with(end), "{text}");
    }
}
