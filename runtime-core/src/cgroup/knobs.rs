//! One table: field of `linux.resources` → file and text on cgroup v1 and on cgroup v2.
//!
//! Decided field by field as runc 1.5 does it; an empty column means "has no counterpart there, ignored". Sources: config-linux.md of the OCI
//! runtime specification, Documentation/admin-guide/cgroup-v1/ and cgroup-v2.rst of the kernel.

use std::borrow::Cow;

use rustix::io::Errno;

use super::convert;
use super::dir::Dir;
use super::host::Version;
use crate::error::{Error, ErrorKind, Result};
use crate::spec::resources::{Resources, ThrottleDevice};

/// One row: what a field is called, which controller serves it, and what is written.
pub(super) struct Knob {
    pub field: &'static str,
    /// The v1 name; see [`controller_on`].
    pub controller: &'static str,
    v1: Option<Encode>,
    v2: Option<Encode>,
}

type Encode = fn(&Resources, Current<'_>) -> Result<Vec<Setting>>;

/// The cgroup as it is, for fields that mean something only together with one that is not given. `None` before it exists.
#[derive(Clone, Copy)]
pub(super) struct Current<'a>(pub Option<&'a Dir>);

impl Current<'_> {
    fn read(self, file: &str) -> Option<String> {
        self.0?.read(file).ok()
    }
}

/// One text for one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub file: Cow<'static, str>,
    pub value: String,
    /// Losing it loses nothing: it is what the kernel does anyway.
    pub dispensable: bool,
    /// What to write on kernels that have another file for it.
    pub otherwise: Option<Box<Setting>>,
}

impl Setting {
    fn dispensable_if(self, is_default: bool) -> Self {
        Self { dispensable: is_default, ..self }
    }

    fn or(self, other: Self) -> Self {
        Self { otherwise: Some(Box::new(other)), ..self }
    }
}

fn set(file: impl Into<Cow<'static, str>>, value: impl ToString) -> Setting {
    Setting { file: file.into(), value: value.to_string(), dispensable: false, otherwise: None }
}

const fn knob(field: &'static str, controller: &'static str, v1: Option<Encode>, v2: Option<Encode>) -> Knob {
    Knob { field, controller, v1, v2 }
}

/// The rows in the order in which they are written. Within one controller a text refused with EINVAL is tried again after the others,
/// so pairs that bound each other (memory and swap, period and quota) need no order of their own.
#[rustfmt::skip]
pub(super) const KNOBS: &[Knob] = &[
    knob("pids.limit", "pids", Some(pids_limit), Some(pids_limit)),

    knob("cpu.cpus", "cpuset", Some(cpuset_cpus), Some(cpuset_cpus)),
    knob("cpu.mems", "cpuset", Some(cpuset_mems), Some(cpuset_mems)),

    knob("memory.limit", "memory",
        Some(|r, _| bytes(r.memory.limit, "memory.limit_in_bytes", signed)),
        None), // written after the swap limit, below
    knob("memory.swap", "memory", Some(swap_v1), Some(swap_v2)),
    knob("memory.limit", "memory",
        None,
        Some(|r, _| bytes(r.memory.limit, "memory.max", or_max))),
    knob("memory.reservation", "memory",
        Some(|r, _| bytes(r.memory.reservation, "memory.soft_limit_in_bytes", signed)),
        Some(|r, _| bytes(r.memory.reservation, "memory.low", or_max))),
    knob("memory.disableOOMKiller", "memory",
        Some(|r, _| Ok(list(r.memory.disable_oom_killer.filter(|on| *on).map(|_| set("memory.oom_control", 1))))),
        None),
    knob("memory.swappiness", "memory", Some(swappiness), None),

    knob("cpu.idle", "cpu", Some(cpu_idle), Some(cpu_idle)),
    knob("cpu.shares", "cpu", Some(shares_v1), Some(shares_v2)),
    knob("cpu.period", "cpu",
        Some(|r, _| Ok(list(period(r)?.map(|us| set("cpu.cfs_period_us", us).dispensable_if(us == CFS_PERIOD_US))))),
        Some(period_v2)),
    knob("cpu.burst", "cpu",
        Some(|r, _| Ok(list(r.cpu.burst.map(|us| set("cpu.cfs_burst_us", us).dispensable_if(us == 0))))),
        Some(|r, _| Ok(list(r.cpu.burst.map(|us| set("cpu.max.burst", us).dispensable_if(us == 0)))))),
    knob("cpu.quota", "cpu",
        Some(|r, _| Ok(list(quota(r)?.map(|us| set("cpu.cfs_quota_us", us).dispensable_if(us < 0))))),
        Some(quota_v2)),
    knob("cpu.realtimePeriod", "cpu",
        Some(|r, _| Ok(list(given(r.cpu.realtime_period).map(|us| set("cpu.rt_period_us", us))))),
        None),
    knob("cpu.realtimeRuntime", "cpu",
        Some(realtime_runtime),
        None),

    knob("blockIO.weight", "blkio", Some(weight_v1), Some(weight_v2)),
    knob("blockIO.leafWeight", "blkio",
        Some(|r, _| Ok(list(weight(r.block_io.leaf_weight)?.map(|weight| set("blkio.leaf_weight", weight))))),
        None),
    knob("blockIO.weightDevice", "blkio", Some(weight_device_v1), Some(weight_device_v2)),
    knob("blockIO.throttleReadBpsDevice", "blkio",
        Some(|r, _| throttle_v1(&r.block_io.throttle_read_bps_device, "blkio.throttle.read_bps_device")),
        Some(|r, _| throttle_v2(&r.block_io.throttle_read_bps_device, "rbps"))),
    knob("blockIO.throttleWriteBpsDevice", "blkio",
        Some(|r, _| throttle_v1(&r.block_io.throttle_write_bps_device, "blkio.throttle.write_bps_device")),
        Some(|r, _| throttle_v2(&r.block_io.throttle_write_bps_device, "wbps"))),
    knob("blockIO.throttleReadIOPSDevice", "blkio",
        Some(|r, _| throttle_v1(&r.block_io.throttle_read_iops_device, "blkio.throttle.read_iops_device")),
        Some(|r, _| throttle_v2(&r.block_io.throttle_read_iops_device, "riops"))),
    knob("blockIO.throttleWriteIOPSDevice", "blkio",
        Some(|r, _| throttle_v1(&r.block_io.throttle_write_iops_device, "blkio.throttle.write_iops_device")),
        Some(|r, _| throttle_v2(&r.block_io.throttle_write_iops_device, "wiops"))),

    knob("hugepageLimits", "hugetlb",
        Some(|r, _| hugepages(r, ".limit_in_bytes", ".rsvd.limit_in_bytes")),
        Some(|r, _| hugepages(r, ".max", ".rsvd.max"))),

    knob("network.classID", "net_cls",
        Some(|r, _| Ok(list(given(r.network.class_id).map(|class| set("net_cls.classid", class))))),
        None),
    knob("network.priorities", "net_prio", Some(priorities), None),

    knob("rdma", "rdma", Some(rdma), Some(rdma)),
];

/// What `resources` asks of `knob` on this version.
pub(super) fn settings(knob: &Knob, version: Version, resources: &Resources, current: Current<'_>) -> Result<Vec<Setting>> {
    let encode = match version {
        Version::V1 => knob.v1,
        Version::V2 => knob.v2,
    };
    encode.map_or(Ok(Vec::new()), |encode| encode(resources, current))
}

/// The name of a v1 controller on the other version.
pub(super) fn controller_on(version: Version, controller: &'static str) -> &'static str {
    if version == Version::V2 && controller == "blkio" { "io" } else { controller }
}

/// Refuses, before anything is made, what no kernel would take.
pub(super) fn check(version: Version, resources: &Resources) -> Result<()> {
    for knob in KNOBS {
        settings(knob, version, resources, Current(None)).map_err(|error| error.context(format!("resources.{}", knob.field)))?;
    }
    unified(version, resources).map(drop)
}

/// The fields that are set and that this version has no counterpart for.
pub(super) fn ignored(version: Version, resources: &Resources) -> Vec<&'static str> {
    let other = if version == Version::V1 { Version::V2 } else { Version::V1 };
    let asked = |knob: &Knob, version| settings(knob, version, resources, Current(None)).map(|list| !list.is_empty());
    let of = |field: &'static str| KNOBS.iter().filter(move |knob| knob.field == field);
    let counts_elsewhere = |field| of(field).any(|knob| asked(knob, other).unwrap_or(false));
    // What cannot be done here is refused, not ignored.
    let counts = |field| of(field).any(|knob| asked(knob, version).unwrap_or(true));
    let mut fields: Vec<_> = KNOBS.iter().map(|knob| knob.field).filter(|field| counts_elsewhere(field) && !counts(field)).collect();
    // containerd gives every container a period: without a quota it limits nothing on either version.
    fields.retain(|field| *field != "cpu.period");
    fields.extend(given(resources.memory.kernel).map(|_| "memory.kernel"));
    fields.extend(given(resources.memory.kernel_tcp).map(|_| "memory.kernelTCP"));
    fields
}

/// `unified` as (file, line) pairs, in the order of the keys.
pub(super) fn unified(version: Version, resources: &Resources) -> Result<Vec<(&str, &str)>> {
    if version == Version::V1 && !resources.unified.is_empty() {
        return Err(Error::invalid("resources.unified: needs cgroup v2, and this host has version 1"));
    }
    for file in resources.unified.keys() {
        let refuse = |why: &str| Err(Error::invalid(format!("resources.unified {file:?}: {why}")));
        match file.split_once('.') {
            _ if file.contains(['/', '\0']) => return refuse("must be a file name, without a slash"),
            None | Some(("" | ".", _)) => return refuse("must have the form CONTROLLER.PARAMETER"),
            // These move, stop or kill processes and limit nothing.
            Some(("cgroup", "procs" | "threads" | "kill" | "freeze")) => return refuse("is not a limit"),
            Some(_) => {}
        }
    }
    Ok(resources.unified.iter().flat_map(|(file, text)| text.lines().map(move |line| (file.as_str(), line))).collect())
}

/// Refuses a memory limit below what is in use, where `checkBeforeUpdate` asks for that. As in runc, best effort: an unreadable usage is no error.
pub(super) fn check_usage(version: Version, resources: &Resources, dir: &Dir) -> Result<()> {
    if resources.memory.check_before_update != Some(true) {
        return Ok(());
    }
    let (memory_file, swap_file) = match version {
        Version::V1 => ("memory.usage_in_bytes", "memory.memsw.usage_in_bytes"),
        Version::V2 => ("memory.current", "memory.current"),
    };
    for (field, limit, file) in [("memory.swap", resources.memory.swap, swap_file), ("memory.limit", resources.memory.limit, memory_file)] {
        let usage = dir.read(file).ok().and_then(|text| text.trim().parse::<u64>().ok());
        if let (Some(usage), Some(limit @ 1..)) = (usage, limit)
            && limit.unsigned_abs() <= usage
        {
            let message = format!("resources.{field}: {limit} is not above the {usage} bytes in use");
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        }
    }
    Ok(())
}

/// The sentence for a limit that the kernel refused with `errno`.
pub(super) fn refused(field: &str, setting: &Setting, dir: &Dir, errno: Errno) -> Error {
    let error = Error::kernel(format!("resources.{field}: write {:?} to {}/{}", setting.value, dir.path(), setting.file), errno);
    let usage = dir.read("memory.usage_in_bytes").unwrap_or_default();
    match errno {
        // Documentation/admin-guide/cgroup-v1/memory.rst: the limit could not be reached by reclaiming.
        Errno::BUSY if setting.file.starts_with("memory.") => {
            let message = format!("resources.{field}: {} is below what is in use ({} bytes)", setting.value, usage.trim());
            Error::new(ErrorKind::FailedPrecondition, message)
        }
        Errno::INVAL | Errno::RANGE => error.with_kind(ErrorKind::InvalidArgument),
        _ => error,
    }
}

/// The kernel's `default_cfs_period`.
const CFS_PERIOD_US: u64 = 100_000;
/// The kernel's least quota and period, and its longest period.
const CFS_MIN_US: u64 = 1000;
const CFS_PERIOD_MAX_US: u64 = 1_000_000;
/// The kernel's default weight of a group.
const SHARES: u64 = 1024;

fn list(setting: Option<Setting>) -> Vec<Setting> {
    setting.into_iter().collect()
}

/// Go's zero value stands for "not set" in most fields.
fn given<T: Default + PartialEq>(value: Option<T>) -> Option<T> {
    value.filter(|value| *value != T::default())
}

fn signed(value: i64) -> String {
    if value < 0 { "-1".to_owned() } else { value.to_string() }
}

fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

fn bytes(value: Option<i64>, file: &'static str, text: fn(i64) -> String) -> Result<Vec<Setting>> {
    Ok(list(limit(value)?.map(|value| set(file, text(value)).dispensable_if(value < 0))))
}

/// A number of bytes, or -1: the kernel and runc take no other negative number.
fn limit(value: Option<i64>) -> Result<Option<i64>> {
    match given(value) {
        Some(value) if value < -1 => Err(Error::invalid(format!("{value} is neither a number of bytes nor -1 for no limit"))),
        value => Ok(value),
    }
}

/// The kernel's bounds of a period (kernel/sched/core.c, `max_cfs_quota_period` and `min_cfs_quota_period`).
fn period(r: &Resources) -> Result<Option<u64>> {
    match given(r.cpu.period) {
        Some(us) if !(CFS_MIN_US..=CFS_PERIOD_MAX_US).contains(&us) => {
            Err(Error::invalid(format!("{us} us is not in the range {CFS_MIN_US}-{CFS_PERIOD_MAX_US}")))
        }
        period => Ok(period),
    }
}

/// As with the kernel and runc, each negative number is no limit.
fn quota(r: &Resources) -> Result<Option<i64>> {
    match given(r.cpu.quota) {
        Some(us @ 1..) if us.unsigned_abs() < CFS_MIN_US => {
            Err(Error::invalid(format!("{us} us is less than the kernel's minimum of {CFS_MIN_US}")))
        }
        quota => Ok(quota),
    }
}

fn realtime_runtime(r: &Resources, _: Current<'_>) -> Result<Vec<Setting>> {
    match given(r.cpu.realtime_runtime) {
        Some(us) if us < -1 => Err(Error::invalid(format!("{us} is neither a number of microseconds nor -1 for no limit"))),
        runtime => Ok(list(runtime.map(|us| set("cpu.rt_runtime_us", us)))),
    }
}

fn weight(weight: Option<u16>) -> Result<Option<u16>> {
    given(weight).map(|weight| convert::io_weight(weight).map(|_| weight)).transpose()
}

/// 0 is a limit, but one under which not even the first process can be cloned into the group; 1 forbids forks just as well.
fn pids_limit(r: &Resources, _: Current<'_>) -> Result<Vec<Setting>> {
    Ok(list(r.pids.limit.map(|limit| set("pids.max", or_max(if limit == 0 { 1 } else { limit })).dispensable_if(limit < 0))))
}

fn cpuset_cpus(r: &Resources, _: Current<'_>) -> Result<Vec<Setting>> {
    Ok(list(given(r.cpu.cpus.clone()).map(|cpus| set("cpuset.cpus", cpus))))
}

fn cpuset_mems(r: &Resources, _: Current<'_>) -> Result<Vec<Setting>> {
    Ok(list(given(r.cpu.mems.clone()).map(|mems| set("cpuset.mems", mems))))
}

/// Lifting the memory limit alone lifts the swap limit too: it cannot stay below the new one.
fn swap_v1(r: &Resources, _: Current<'_>) -> Result<Vec<Setting>> {
    let swap = given(r.memory.swap).or_else(|| r.memory.limit.filter(|limit| *limit == -1));
    if let (Some(swap @ 1..), Some(limit @ 1..)) = (swap, r.memory.limit) {
        convert::swap(swap, limit)?;
    }
    bytes(swap, "memory.memsw.limit_in_bytes", signed)
}

/// v2 limits swap alone, the specification memory and swap together. Without swap accounting there is nothing to forbid or to lift.
fn swap_v2(r: &Resources, current: Current<'_>) -> Result<Vec<Setting>> {
    let swap = match (given(r.memory.limit), limit(r.memory.swap)?) {
        (Some(-1), None) | (_, Some(..0)) => return Ok(vec![set("memory.swap.max", "max").dispensable_if(true)]),
        (_, None) => return Ok(Vec::new()),
        // Without a limit of memory there is nothing to take off, as with runc.
        (Some(-1), Some(swap)) => swap,
        (limit, Some(swap)) => {
            let limit = limit.or_else(|| current.read("memory.max")?.trim().parse().ok()).filter(|limit| *limit > 0);
            convert::swap(swap, limit.ok_or_else(|| Error::invalid("a limit of memory and swap needs a memory.limit"))?)?
        }
    };
    Ok(vec![set("memory.swap.max", swap).dispensable_if(swap == 0)])
}

fn swappiness(r: &Resources, _: Current<'_>) -> Result<Vec<Setting>> {
    match r.memory.swappiness {
        // -1 as Docker's Go code writes it into an unsigned field.
        None | Some(u64::MAX) => Ok(Vec::new()),
        Some(value @ 0..=100) => Ok(vec![set("memory.swappiness", value)]),
        Some(value) => Err(Error::invalid(format!("{value} is not in the range 0-100"))),
    }
}

fn cpu_idle(r: &Resources, _: Current<'_>) -> Result<Vec<Setting>> {
    match r.cpu.idle {
        Some(idle) if !(0..=1).contains(&idle) => Err(Error::invalid(format!("{idle} is neither 0 nor 1"))),
        idle => Ok(list(idle.map(|idle| set("cpu.idle", idle).dispensable_if(idle == 0)))),
    }
}

/// An idle group has a fixed weight and refuses another with EINVAL (kernel/sched/fair.c, `sched_group_set_shares`).
fn shares(r: &Resources) -> Option<u64> {
    given(r.cpu.shares).filter(|_| r.cpu.idle != Some(1))
}

/// The kernel would silently clamp; runc reads back and refuses, in these words.
fn shares_v1(r: &Resources, _: Current<'_>) -> Result<Vec<Setting>> {
    match shares(r) {
        Some(1) => Err(Error::invalid("the minimum allowed cpu-shares is 2")),
        Some(shares) if shares > 1 << 18 => Err(Error::invalid("the maximum allowed cpu-shares is 262144")),
        shares => Ok(list(shares.map(|shares| set("cpu.shares", shares).dispensable_if(shares == SHARES)))),
    }
}

fn shares_v2(r: &Resources, _: Current<'_>) -> Result<Vec<Setting>> {
    Ok(list(shares(r).map(|shares| set("cpu.weight", convert::cpu_weight(shares)).dispensable_if(shares == SHARES))))
}

/// The period alone: the quota stays.
fn period_v2(r: &Resources, current: Current<'_>) -> Result<Vec<Setting>> {
    let (Some(period), None) = (period(r)?, given(r.cpu.quota)) else { return Ok(Vec::new()) };
    let now = current.read("cpu.max").unwrap_or_default();
    let quota = now.split_whitespace().next().unwrap_or("max");
    Ok(vec![set("cpu.max", format!("{quota} {period}")).dispensable_if(quota == "max")])
}

/// The quota alone: the kernel keeps the period.
fn quota_v2(r: &Resources, _: Current<'_>) -> Result<Vec<Setting>> {
    let Some(quota) = quota(r)? else { return Ok(Vec::new()) };
    let period = given(r.cpu.period).map(|period| format!(" {period}")).unwrap_or_default();
    Ok(vec![set("cpu.max", format!("{}{period}", or_max(quota))).dispensable_if(quota < 0)])
}

fn device(major: i64, minor: i64) -> Result<String> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) => Ok(format!("{major}:{minor}")),
        _ => Err(Error::invalid(format!("{major}:{minor} is not a device number"))),
    }
}

fn weight_v1(r: &Resources, _: Current<'_>) -> Result<Vec<Setting>> {
    Ok(list(weight(r.block_io.weight)?.map(|weight| set("blkio.weight", weight).or(set("blkio.bfq.weight", weight)))))
}

fn weight_v2(r: &Resources, _: Current<'_>) -> Result<Vec<Setting>> {
    let setting = |weight| Ok(set("io.bfq.weight", weight).or(set("io.weight", convert::io_weight(weight)?)));
    given(r.block_io.weight).map(setting).transpose().map(list)
}

fn weight_device_v1(r: &Resources, _: Current<'_>) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    for entry in &r.block_io.weight_device {
        let device = device(entry.major, entry.minor)?;
        settings.extend(weight(entry.weight)?.map(|weight| {
            let text = format!("{device} {weight}");
            set("blkio.weight_device", &text).or(set("blkio.bfq.weight_device", &text))
        }));
        settings.extend(weight(entry.leaf_weight)?.map(|weight| set("blkio.leaf_weight_device", format!("{device} {weight}"))));
    }
    Ok(settings)
}

fn weight_device_v2(r: &Resources, _: Current<'_>) -> Result<Vec<Setting>> {
    let entries = r.block_io.weight_device.iter().filter_map(|entry| Some((entry, given(entry.weight)?)));
    let setting = |(entry, weight): (&crate::spec::resources::WeightDevice, u16)| {
        let device = device(entry.major, entry.minor)?;
        let plain = set("io.weight", format!("{device} {}", convert::io_weight(weight)?));
        Ok(set("io.bfq.weight", format!("{device} {weight}")).or(plain))
    };
    entries.map(setting).collect()
}

fn throttle_v1(devices: &[ThrottleDevice], file: &'static str) -> Result<Vec<Setting>> {
    devices.iter().map(|entry| Ok(set(file, format!("{} {}", device(entry.major, entry.minor)?, entry.rate)))).collect()
}

/// A rate of 0 lifts the limit on v1 and is refused by v2, where that is spelled `max`.
fn throttle_v2(devices: &[ThrottleDevice], key: &str) -> Result<Vec<Setting>> {
    let rate = |rate| if rate == 0 { "max".to_owned() } else { format!("{rate}") };
    devices.iter().map(|entry| Ok(set("io.max", format!("{} {key}={}", device(entry.major, entry.minor)?, rate(entry.rate))))).collect()
}

/// Both the limit of use and that of reservation; the second came with kernel 5.7.
fn hugepages(r: &Resources, limit: &str, reservation: &str) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    for entry in &r.hugepage_limits {
        let size = convert::page_size(&entry.page_size)?;
        settings.push(set(format!("hugetlb.{size}{limit}"), entry.limit));
        settings.push(set(format!("hugetlb.{size}{reservation}"), entry.limit).dispensable_if(true));
    }
    Ok(settings)
}

fn priorities(r: &Resources, _: Current<'_>) -> Result<Vec<Setting>> {
    let entries = r.network.priorities.iter();
    entries.map(|entry| Ok(set("net_prio.ifpriomap", format!("{} {}", convert::word(&entry.name)?, entry.priority)))).collect()
}

fn rdma(r: &Resources, _: Current<'_>) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    for (device, limits) in &r.rdma {
        let mut text = convert::word(device)?.to_owned();
        text.extend(limits.hca_handles.map(|handles| format!(" hca_handle={handles}")));
        text.extend(limits.hca_objects.map(|objects| format!(" hca_object={objects}")));
        settings.push(set("rdma.max", text));
    }
    Ok(settings)
}

#[cfg(test)]
mod tests;
