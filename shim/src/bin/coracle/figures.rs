//! The figures of `coracle events`.

use runtime_core::cgroup::Stats;
use runtime_core::cgroup::stats::{v1, v2};
use runtime_core::rdt::Groups;
use serde_json::{Map, Value, json};

use crate::rdt;

/// What a container has used, in version 1's terms whatever the version, as `runc events` has it (types/events.go).
pub fn data(stats: &Stats, groups: &Groups) -> Value {
    let mut data = match stats {
        Stats::V1(metrics) => of_v1(metrics),
        Stats::V2(metrics) => of_v2(metrics),
    };
    data["intel_rdt"] = rdt::figures(groups);
    data
}

fn of_v1(metrics: &v1::Metrics) -> Value {
    let usage = metrics.cpu.as_ref().and_then(|cpu| cpu.usage.as_ref());
    let throttling = metrics.cpu.as_ref().and_then(|cpu| cpu.throttling.as_ref());
    let memory = metrics.memory.as_ref();
    let entry = |entry: Option<&v1::MemoryEntry>| {
        entry.map_or_else(
            || json!({ "limit": 0, "failcnt": 0 }),
            |entry| json!({ "limit": entry.limit, "usage": entry.usage, "max": entry.max, "failcnt": entry.failcnt }),
        )
    };
    json!({
        "cpu": {
            "usage": usage.map_or_else(
                || json!({ "kernel": 0, "user": 0 }),
                |usage| json!({ "total": usage.total, "percpu": usage.per_cpu, "kernel": usage.kernel, "user": usage.user }),
            ),
            "throttling": throttling.map_or_else(|| json!({}), |throttling| json!({
                "periods": throttling.periods, "throttledPeriods": throttling.throttled_periods, "throttledTime": throttling.throttled_time,
            })),
        },
        "memory": {
            "cache": memory.map_or(0, |memory| memory.cache),
            "usage": entry(memory.and_then(|memory| memory.usage.as_ref())),
            "swap": entry(memory.and_then(|memory| memory.swap.as_ref())),
            "kernel": entry(memory.and_then(|memory| memory.kernel.as_ref())),
            "kernelTCP": entry(memory.and_then(|memory| memory.kernel_tcp.as_ref())),
        },
        "pids": metrics.pids.as_ref().map_or_else(|| json!({}), |pids| json!({ "current": pids.current, "limit": pids.limit })),
        "blkio": metrics.blkio.as_ref().map_or_else(|| json!({}), block_io_of_v1),
        "hugetlb": metrics.hugetlb.iter().map(|pages| huge_pages(&pages.pagesize, pages.usage, pages.max, pages.failcnt)).collect::<Map<_, _>>(),
        "network_interfaces": null,
    })
}

/// In version 1's terms, as runc shows version 2.
fn of_v2(metrics: &v2::Metrics) -> Value {
    let cpu = metrics.cpu.as_ref();
    let memory = metrics.memory.as_ref();
    let nanoseconds = |microseconds: u64| microseconds.saturating_mul(1000);
    json!({
        "cpu": {
            "usage": cpu.map_or_else(|| json!({ "kernel": 0, "user": 0 }), |cpu| json!({
                "total": nanoseconds(cpu.usage_usec), "kernel": nanoseconds(cpu.system_usec), "user": nanoseconds(cpu.user_usec),
            })),
            "throttling": cpu.map_or_else(|| json!({}), |cpu| json!({
                "periods": cpu.nr_periods, "throttledPeriods": cpu.nr_throttled, "throttledTime": nanoseconds(cpu.throttled_usec),
            })),
        },
        "memory": memory.map_or_else(|| json!({}), |memory| json!({
            "cache": memory.file,
            "usage": { "limit": memory.usage_limit, "usage": memory.usage, "max": memory.max_usage, "failcnt": 0 },
            "swap": { "limit": memory.swap_limit, "usage": memory.swap_usage, "failcnt": 0 },
            "kernel": { "limit": 0, "failcnt": 0 },
            "kernelTCP": { "limit": 0, "failcnt": 0 },
        })),
        "pids": metrics.pids.as_ref().map_or_else(|| json!({}), |pids| json!({ "current": pids.current, "limit": pids.limit })),
        "blkio": metrics.io.as_ref().map_or_else(|| json!({}), block_io_of_v2),
        "hugetlb": metrics.hugetlb.iter().map(|pages| huge_pages(&pages.pagesize, pages.current, 0, pages.failcnt)).collect::<Map<_, _>>(),
        "network_interfaces": null,
    })
}

/// One entry of a table of devices; what is zero or empty is left out.
fn of_device(major: u64, minor: u64, op: &str, value: u64) -> Value {
    let numbers = [("major", major), ("minor", minor), ("value", value)];
    let mut entry: Map<String, Value> =
        numbers.into_iter().filter(|(_, number)| *number > 0).map(|(name, number)| (name.to_owned(), json!(number))).collect();
    if !op.is_empty() {
        entry.insert("op".to_owned(), json!(op));
    }
    entry.into()
}

fn tables<const N: usize>(tables: [(&str, Vec<Value>); N]) -> Value {
    let filled = tables.into_iter().filter(|(_, entries)| !entries.is_empty());
    filled.map(|(name, entries)| (name.to_owned(), Value::from(entries))).collect::<Map<_, _>>().into()
}

fn block_io_of_v1(stat: &v1::BlkIoStat) -> Value {
    let table =
        |entries: &[v1::BlkIoEntry]| entries.iter().map(|entry| of_device(entry.major, entry.minor, &entry.op, entry.value)).collect();
    tables([
        ("ioServiceBytesRecursive", table(&stat.io_service_bytes_recursive)),
        ("ioServicedRecursive", table(&stat.io_serviced_recursive)),
        ("ioQueueRecursive", table(&stat.io_queued_recursive)),
        ("ioServiceTimeRecursive", table(&stat.io_service_time_recursive)),
        ("ioWaitTimeRecursive", table(&stat.io_wait_time_recursive)),
        ("ioMergedRecursive", table(&stat.io_merged_recursive)),
        ("ioTimeRecursive", table(&stat.io_time_recursive)),
        ("sectorsRecursive", table(&stat.sectors_recursive)),
    ])
}

fn block_io_of_v2(stat: &v2::IoStat) -> Value {
    let both = |read: fn(&v2::IoEntry) -> u64, write: fn(&v2::IoEntry) -> u64| {
        let of = |entry: &v2::IoEntry, op, value| of_device(entry.major, entry.minor, op, value);
        stat.usage.iter().flat_map(|entry| [of(entry, "Read", read(entry)), of(entry, "Write", write(entry))]).collect()
    };
    tables([
        ("ioServiceBytesRecursive", both(|entry| entry.rbytes, |entry| entry.wbytes)),
        ("ioServicedRecursive", both(|entry| entry.rios, |entry| entry.wios)),
    ])
}

fn huge_pages(size: &str, usage: u64, max: u64, failures: u64) -> (String, Value) {
    let mut figures = json!({ "failcnt": failures });
    for (name, value) in [("usage", usage), ("max", max)].into_iter().filter(|(_, value)| *value > 0) {
        figures[name] = json!(value);
    }
    (size.to_owned(), figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_those_of_runc() {
        let entry = |op: &str, value| v1::BlkIoEntry { op: op.to_owned(), major: 8, minor: 0, value, ..Default::default() };
        let metrics = v1::Metrics {
            blkio: Some(v1::BlkIoStat { io_serviced_recursive: vec![entry("Read", 3), entry("Write", 0)], ..Default::default() }),
            hugetlb: vec![v1::HugetlbStat { usage: 4096, failcnt: 2, pagesize: "2MB".to_owned(), ..Default::default() }],
            ..Default::default()
        };
        let shown = data(&Stats::V1(Box::new(metrics)), &Groups::default());
        assert_eq!(
            shown["blkio"],
            json!({ "ioServicedRecursive": [{ "major": 8, "op": "Read", "value": 3 }, { "major": 8, "op": "Write" }] })
        );
        assert_eq!(shown["hugetlb"], json!({ "2MB": { "usage": 4096, "failcnt": 2 } }));
        let usage = vec![v2::IoEntry { major: 8, minor: 1, rbytes: 10, wbytes: 20, rios: 1, wios: 2 }];
        let shown =
            data(&Stats::V2(Box::new(v2::Metrics { io: Some(v2::IoStat { usage, psi: None }), ..Default::default() })), &Groups::default());
        let two = |read: u64, write: u64| json!([{ "major": 8, "minor": 1, "op": "Read", "value": read }, { "major": 8, "minor": 1, "op": "Write", "value": write }]);
        assert_eq!(shown["blkio"], json!({ "ioServiceBytesRecursive": two(10, 20), "ioServicedRecursive": two(1, 2) }));
        assert_eq!(shown["hugetlb"], json!({}));
    }
}
