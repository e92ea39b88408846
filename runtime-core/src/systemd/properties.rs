//! The properties of a scope: what the cgroup's files are to hold, in systemd's words, so that it keeps them when it writes the files anew
//! (`daemon-reload`, `set-property`). What has no property is in the files only. As in runc and crun; systemd.resource-control(5).

use super::unit::Scope;
use super::wire::{Property, Value};
use crate::cgroup::{AllowedDevice, Intent, Mode};
use crate::error::{Error, Result};

/// `CGROUP_LIMIT_MAX` and `USEC_INFINITY` of systemd.
const INFINITY: u64 = u64::MAX;
/// The kernel's and systemd's default period of a quota, in microseconds.
const PERIOD_US: u64 = 100_000;
const SECOND_US: u128 = 1_000_000;
/// systemd keeps a quota in percent of one processor.
const PERCENT_US: u128 = 10_000;
/// More processors or nodes than any kernel has (CONFIG_NR_CPUS).
const NUMBER_MAX: usize = 1 << 16;

/// Since which version systemd has a property.
mod since {
    pub const COLLECT_MODE: u32 = 236;
    /// `DeviceAllow=` of devices that have no node, and by number.
    pub const DEVICE_NUMBERS: u32 = 240;
    pub const CPU_QUOTA_PERIOD: u32 = 242;
    pub const CPUSET: u32 = 244;
    /// `CPUWeight=idle`.
    pub const CPU_IDLE: u32 = 252;
    /// `OOMPolicy=` of scopes.
    pub const OOM_POLICY: u32 = 253;
}

fn property(name: &str, value: Value) -> Property {
    (name.to_owned(), value)
}

/// What a new scope is made with, besides its limits.
pub(super) fn of_new(scope: &Scope, id: &str, pid: u32, mode: Mode, version: u32) -> Vec<Property> {
    let io = if mode == Mode::V2 { "IOAccounting" } else { "BlockIOAccounting" };
    let mut properties = vec![
        property("Description", Value::Text(format!("Coracle container {id}"))),
        property("Slice", Value::Text(scope.slice.clone())),
        property("Delegate", Value::Bool(true)),
        property("PIDs", Value::Uint32s(vec![pid])),
        // systemd.scope(5): the defaults would end the container early in a shutdown, before who supervises it.
        property("DefaultDependencies", Value::Bool(false)),
    ];
    properties.extend(["MemoryAccounting", "CPUAccounting", io, "TasksAccounting"].map(|name| property(name, Value::Bool(true))));
    if version >= since::COLLECT_MODE {
        // One whose processes were killed for want of memory would stay as failed, should nobody be left to reset it.
        properties.push(property("CollectMode", Value::Text("inactive-or-failed".to_owned())));
    }
    properties
}

/// The properties that stand for limits.
///
/// # Errors
/// `InvalidArgument` for a value that is none, by the file's name.
pub(super) fn of_limits(intent: &Intent, version: u32) -> Result<Vec<Property>> {
    let mut properties = devices(intent, version);
    let idle = version >= since::CPU_IDLE && intent.files.iter().any(|(file, value)| file == "cpu.idle" && value.trim() == "1");
    for (file, value) in intent.files.iter().chain(&quota_of_v1(intent)) {
        let value = value.trim();
        let wrong = || Error::invalid(format!("{file} {value:?} is not a value that systemd takes"));
        let mut add = |name: &str, value: Value| {
            // The last one of a file counts, as in the file.
            properties.retain(|(other, _)| other != name);
            properties.push(property(name, value));
        };
        let number = || limit(value).ok_or_else(wrong);
        match file.as_str() {
            "memory.max" => add("MemoryMax", Value::Uint64(number()?)),
            "memory.high" => add("MemoryHigh", Value::Uint64(number()?)),
            "memory.low" => add("MemoryLow", Value::Uint64(number()?)),
            "memory.min" => add("MemoryMin", Value::Uint64(number()?)),
            "memory.swap.max" => add("MemorySwapMax", Value::Uint64(number()?)),
            "memory.limit_in_bytes" => add("MemoryLimit", Value::Uint64(number()?)),
            "pids.max" => add("TasksMax", Value::Uint64(number()?)),
            "cpu.idle" if idle => add("CPUWeight", Value::Uint64(0)),
            "cpu.weight" if !idle => add("CPUWeight", Value::Uint64(number()?)),
            "cpu.shares" => add("CPUShares", Value::Uint64(number()?)),
            "io.weight" if !value.contains(' ') => add("IOWeight", Value::Uint64(number()?)),
            "blkio.weight" => add("BlockIOWeight", Value::Uint64(number()?)),
            "cpu.max" => {
                let (quota, period) = quota(value).ok_or_else(wrong)?;
                add("CPUQuotaPerSecUSec", Value::Uint64(quota));
                if version >= since::CPU_QUOTA_PERIOD {
                    add("CPUQuotaPeriodUSec", Value::Uint64(period));
                }
            }
            "cpuset.cpus" if version >= since::CPUSET => add("AllowedCPUs", Value::Bytes(bits(value).ok_or_else(wrong)?)),
            "cpuset.mems" if version >= since::CPUSET => add("AllowedMemoryNodes", Value::Bytes(bits(value).ok_or_else(wrong)?)),
            "memory.oom.group" if version >= since::OOM_POLICY => {
                let policy = if value == "1" { "kill" } else { "continue" };
                add("OOMPolicy", Value::Text(policy.to_owned()));
            }
            _ => {}
        }
    }
    Ok(properties)
}

/// The two files of v1 as the one of v2.
fn quota_of_v1(intent: &Intent) -> Option<(String, String)> {
    let find = |wanted| intent.files.iter().rfind(|(file, _)| file == wanted).map(|(_, value)| value.as_str());
    let quota = find("cpu.cfs_quota_us")?;
    let period = find("cpu.cfs_period_us").map_or(PERIOD_US.to_string(), str::to_owned);
    Some(("cpu.max".to_owned(), format!("{quota} {period}")))
}

fn limit(value: &str) -> Option<u64> {
    // v1 has no word for it.
    if matches!(value, "max" | "-1") { Some(INFINITY) } else { value.parse().ok() }
}

/// `cpu.max` in microseconds of processor time for each second, rounded up to what systemd can keep, and the period.
fn quota(value: &str) -> Option<(u64, u64)> {
    let mut words = value.split_ascii_whitespace();
    let quota = limit(words.next()?)?;
    let period = words.next().map_or(Some(PERIOD_US), |period| period.parse().ok()).filter(|period| *period > 0)?;
    if words.next().is_some() {
        return None;
    }
    if quota == INFINITY {
        return Some((INFINITY, period));
    }
    let per_second = (u128::from(quota) * SECOND_US / u128::from(period)).next_multiple_of(PERCENT_US);
    Some((u64::try_from(per_second).ok()?, period))
}

/// A list such as `0-3,7` as a mask, the lowest number in the lowest bit of the first byte.
fn bits(list: &str) -> Option<Vec<u8>> {
    let mut mask = Vec::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= NUMBER_MAX {
            return None;
        }
        mask.resize(mask.len().max(last / 8 + 1), 0u8);
        (first..=last).for_each(|number| mask[number / 8] |= 1 << (number % 8));
    }
    Some(mask)
}

/// The container's own program, or its v1 list, decides as well: both must allow. What systemd cannot express, it allows.
fn devices(intent: &Intent, version: u32) -> Vec<Property> {
    let list = |policy: &str, allow| {
        // An empty list empties the one that is there.
        let empty = property("DeviceAllow", Value::Pairs(Vec::new()));
        vec![property("DevicePolicy", Value::Text(policy.to_owned())), empty].into_iter().chain(allow).collect()
    };
    match &intent.devices {
        None => Vec::new(),
        Some(Some(allowed)) if version >= since::DEVICE_NUMBERS => {
            list("strict", Some(property("DeviceAllow", Value::Pairs(allowed.iter().filter_map(device).collect()))))
        }
        Some(_) => list("auto", None),
    }
}

/// `None` for a minor number of every major one, which systemd has no word for.
fn device(device: &AllowedDevice) -> Option<(String, String)> {
    let kind = if device.block { "block" } else { "char" };
    let path = match (device.major, device.minor) {
        (None, None) => format!("{kind}-*"),
        (Some(major), None) => format!("{kind}-{major}"),
        (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
        (None, Some(_)) => return None,
    };
    Some((path, device.access.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Host;
    use crate::spec::Resources;
    use proptest::prelude::*;
    use serde_json::json;

    const NOW: u32 = 257;

    fn limits(resources: serde_json::Value, version: u32) -> Result<Vec<Property>> {
        let resources: Resources = serde_json::from_value(resources).unwrap();
        let host = Host::plain_v2(std::path::Path::new("/nonexistent"));
        of_limits(&Intent::new(&host, &resources, None).unwrap(), version)
    }

    fn find(properties: &[Property], name: &str) -> Vec<Value> {
        properties.iter().filter(|(other, _)| other == name).map(|(_, value)| value.clone()).collect()
    }

    #[test]
    fn limits_become_properties() {
        let resources = json!({
            "memory": { "limit": 1 << 20, "reservation": 1 << 19, "swap": 3 << 20 },
            "cpu": { "shares": 2048, "quota": 15_100, "period": 10_000, "cpus": "0-2,9", "mems": "0" },
            "pids": { "limit": 0 },
            "blockIO": { "weight": 500 },
        });
        let found = limits(resources, NOW).unwrap();
        for (name, value) in [
            ("MemoryMax", Value::Uint64(1 << 20)),
            ("MemoryLow", Value::Uint64(1 << 19)),
            ("MemorySwapMax", Value::Uint64(2 << 20)),
            ("CPUWeight", Value::Uint64(174)),
            ("CPUQuotaPerSecUSec", Value::Uint64(1_510_000)),
            ("CPUQuotaPeriodUSec", Value::Uint64(10_000)),
            ("AllowedCPUs", Value::Bytes(vec![0b111, 0b10])),
            ("AllowedMemoryNodes", Value::Bytes(vec![1])),
            ("TasksMax", Value::Uint64(1)),
            ("IOWeight", Value::Uint64(4950)),
        ] {
            assert_eq!(find(&found, name), [value], "{name}");
        }
    }

    #[test]
    fn what_is_not_limited_is_infinite_and_what_is_not_given_is_left_alone() {
        let found = limits(json!({ "memory": { "limit": -1 }, "pids": { "limit": -1 }, "cpu": { "quota": -1 } }), NOW).unwrap();
        for name in ["MemoryMax", "MemorySwapMax", "TasksMax", "CPUQuotaPerSecUSec"] {
            assert_eq!(find(&found, name), [Value::Uint64(INFINITY)], "{name}");
        }
        let none = limits(json!({}), NOW).unwrap();
        assert!(none.iter().all(|(name, _)| name.starts_with("Device")), "{none:?}");
    }

    #[test]
    fn files_of_their_own_override_and_become_properties_too() {
        let resources = json!({
            "memory": { "limit": 1 << 20 },
            "unified": { "memory.max": "max", "memory.high": "4096", "cpu.max": "1001 3000", "memory.oom.group": "1", "hugetlb.2MB.max": "0" },
        });
        let found = limits(resources, NOW).unwrap();
        assert_eq!(find(&found, "MemoryMax"), [Value::Uint64(INFINITY)]);
        assert_eq!(find(&found, "MemoryHigh"), [Value::Uint64(4096)]);
        // A third of a processor and a bit: the next whole percent.
        assert_eq!(find(&found, "CPUQuotaPerSecUSec"), [Value::Uint64(340_000)]);
        assert_eq!(find(&found, "OOMPolicy"), [Value::Text("kill".to_owned())]);
        let error = limits(json!({ "unified": { "memory.max": "lots" } }), NOW).unwrap_err().to_string();
        assert!(error.contains("memory.max \"lots\""), "{error}");
        assert!(limits(json!({ "cpu": { "cpus": "3-1" } }), NOW).is_err());
    }

    #[test]
    fn an_old_systemd_is_not_asked_for_what_it_does_not_know() {
        let resources = json!({ "cpu": { "quota": 1000, "period": 10_000, "cpus": "0", "idle": 1, "shares": 5 }, "unified": { "memory.oom.group": "1" } });
        let names: Vec<String> = limits(resources.clone(), 235).unwrap().into_iter().map(|(name, _)| name).collect();
        for absent in ["CPUQuotaPeriodUSec", "AllowedCPUs", "OOMPolicy"] {
            assert!(!names.iter().any(|name| name == absent), "{absent}");
        }
        assert_eq!(find(&limits(resources.clone(), NOW).unwrap(), "CPUWeight"), [Value::Uint64(0)]);
        assert!(find(&limits(resources, 251).unwrap(), "CPUWeight").is_empty());
        let scope = Scope::new(None, "a", super::super::Instance::System).unwrap();
        let collects = |version| !find(&of_new(&scope, "a", 1, Mode::V2, version), "CollectMode").is_empty();
        assert!(collects(236) && !collects(235));
    }

    #[test]
    fn devices_are_an_allow_list_or_all() {
        let strict = limits(
            json!({ "devices": [{ "allow": false, "access": "rwm" }, { "allow": true, "type": "b", "major": 8, "access": "r" }] }),
            NOW,
        );
        let strict = strict.unwrap();
        assert_eq!(find(&strict, "DevicePolicy"), [Value::Text("strict".to_owned())]);
        let lists = find(&strict, "DeviceAllow");
        assert_eq!(lists[0], Value::Pairs(Vec::new()));
        let Value::Pairs(allowed) = &lists[1] else { panic!("{lists:?}") };
        for (path, access) in [("block-8", "r"), ("block-*", "m"), ("char-*", "m"), ("/dev/char/1:3", "rwm"), ("char-136", "rwm")] {
            assert!(allowed.iter().any(|pair| pair == &(path.to_owned(), access.to_owned())), "{path} {allowed:?}");
        }
        for all in [
            json!([{ "allow": true, "access": "rwm" }]),
            json!([{ "allow": true }, { "allow": false, "type": "c", "major": 1, "minor": 1, "access": "rwm" }]),
        ] {
            let all = limits(json!({ "devices": all }), NOW).unwrap();
            assert_eq!(find(&all, "DevicePolicy"), [Value::Text("auto".to_owned())]);
            assert_eq!(find(&all, "DeviceAllow"), [Value::Pairs(Vec::new())]);
        }
    }

    proptest! {
        #[test]
        fn a_mask_has_the_numbers_of_the_list(numbers in proptest::collection::btree_set(0usize..300, 1..20)) {
            let list = numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
            let mask = bits(&list).unwrap();
            let found: Vec<usize> = (0..mask.len() * 8).filter(|number| mask[number / 8] & (1 << (number % 8)) != 0).collect();
            prop_assert_eq!(found, numbers.into_iter().collect::<Vec<_>>());
        }
    }
}
