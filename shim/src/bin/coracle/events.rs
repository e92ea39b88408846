//! Events: what a container uses, in runc's format, one JSON text a line.

use std::time::Duration;

use runtime_core::cgroup::Stats;
use runtime_core::cgroup::stats::{v1, v2};
use runtime_core::error::{Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};

use crate::Runtime;
use crate::log::print;
use crate::store::{Status, refused};

/// `coracle events`: once, or until the container has ended.
///
/// # Errors
/// It does not run.
pub fn events(runtime: &Runtime, id: &str, once: bool, interval: &str) -> Result<()> {
    let interval = duration(interval)?;
    let (_, state) = runtime.store.look(id)?;
    if state.status(&runtime.host)? == Status::Stopped {
        return Err(refused(format!("container with id {id} is not running")));
    }
    let cgroup = state.cgroup(&runtime.host)?;
    let init = Pid::from_raw(state.pid()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    loop {
        let stats = match cgroup.stats() {
            // It has ended, and was deleted.
            Err(error) if !once && error.kind() == ErrorKind::NotFound => return Ok(()),
            result => result?,
        };
        print(&format!("{}\n", json!({ "type": "stats", "id": id, "data": data(&stats) })));
        let Some(init) = init.as_ref().filter(|_| !once) else { return Ok(()) };
        let timeout = Timespec { tv_sec: interval.as_secs().cast_signed(), tv_nsec: interval.subsec_nanos().into() };
        if poll(&mut [PollFd::new(init, PollFlags::IN)], Some(&timeout)) != Ok(0) {
            return Ok(());
        }
    }
}

/// A number of seconds, minutes or hours, at least a second, as `5s`.
fn duration(text: &str) -> Result<Duration> {
    let wrong = || Error::invalid(format!("--interval {text:?}: want a number above zero with s, m or h"));
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = text.get(..text.len() - 1).and_then(|number| number.parse().ok()).filter(|number| *number > 0).ok_or_else(wrong)?;
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(wrong)
}

fn data(stats: &Stats) -> Value {
    match stats {
        Stats::V1(metrics) => of_v1(metrics),
        Stats::V2(metrics) => of_v2(metrics),
    }
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
        "blkio": {},
        "hugetlb": {},
        "intel_rdt": {},
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
        "blkio": {},
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_has_a_unit() {
        assert_eq!([duration("5s").unwrap(), duration("2m").unwrap()], [Duration::from_secs(5), Duration::from_secs(120)]);
        for wrong in ["", "5", "0s", "s", "-1s", "1é", "99999999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
