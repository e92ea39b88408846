//! Update, Stats and Pids, compared with the cgroup's files.

use std::path::PathBuf;

use proto::protobuf::Message;
use serde_json::{Value, json};
use tests::bundle::process;
use tests::containerd::eventually;
use tests::hand::Hand;
use tests::requests::{CREATED, PAUSED, RUNNING, STOPPED, end, exec_ran, finish, running};
use tests::rpc::{Shim, refused};
use tests::{Context, Result, ensure, ensure_eq, proc};
use ttrpc::Code;

use crate::SOON;

const MIB: u64 = 1 << 20;

fn unified() -> bool {
    proc::is_cgroup_v2()
}

/// The limit files of version 1 or 2, and what they say of the container with this pid.
struct Memory(PathBuf);

impl Memory {
    fn of(pid: u32) -> Result<Memory> {
        proc::cgroup_of(pid, "memory").map(Memory)
    }

    fn read(&self, v1: &str, v2: &str) -> Result<u64> {
        let path = self.0.join(if unified() { v2 } else { v1 });
        let text = std::fs::read_to_string(&path).context(|| path.display().to_string())?;
        Ok(text.trim().parse().unwrap_or(u64::MAX))
    }

    fn limit(&self) -> Result<u64> {
        self.read("memory.limit_in_bytes", "memory.max")
    }

    /// Of memory and swap together, as the spec counts.
    fn both(&self) -> Result<u64> {
        if unified() {
            return Ok(self.limit()? + self.read("", "memory.swap.max")?);
        }
        self.read("memory.memsw.limit_in_bytes", "")
    }
}

fn memory(limit: u64, swap: u64) -> Value {
    json!({"memory": {"limit": limit, "swap": swap}})
}

pub fn update_in_every_state(hand: &mut Hand) -> Result<()> {
    let bundle = hand.bundle("a", &["sleep", "1000"])?;
    let shim = hand.shim(&bundle)?;
    let pid = shim.create_quiet(&bundle)?;
    let limits = Memory::of(pid)?;
    let updated = |state: i32, mib: u64| -> Result<()> {
        ensure_eq!(shim.state(&bundle.id, "")?.status.value(), state, "status");
        shim.update_to(&bundle.id, &json!({"memory": {"limit": mib * MIB}}))?;
        ensure_eq!(limits.limit()?, mib * MIB, "limit set in state {state}");
        Ok(())
    };
    updated(CREATED, 64)?;
    shim.start(&bundle.id, "")?;
    updated(RUNNING, 65)?;
    shim.pause(&bundle.id)?;
    updated(PAUSED, 66)?;
    shim.resume(&bundle.id)?;
    for (bad, text) in [(json!({"memory": {"limit": "much"}}), "resources"), (json!([1]), "resources")] {
        refused(shim.update_to(&bundle.id, &bad), Code::INVALID_ARGUMENT, text)?;
    }
    refused(
        shim.update(proto::api::UpdateTaskRequest { id: bundle.id.clone(), ..Default::default() }),
        Code::INVALID_ARGUMENT,
        "resources",
    )?;
    ensure_eq!(limits.limit()?, 66 * MIB, "limit after refusals");
    shim.kill(&bundle.id, "", 9)?;
    shim.wait(&bundle.id, "")?;
    ensure_eq!(shim.state(&bundle.id, "")?.status.value(), STOPPED, "status");
    refused(shim.update_to(&bundle.id, &memory(64 * MIB, 64 * MIB)), Code::FAILED_PRECONDITION, "stopped")?;
    end(&shim, &bundle)?;
    refused(shim.update_to(&bundle.id, &memory(64 * MIB, 64 * MIB)), Code::NOT_FOUND, &bundle.id)?;
    shim.shutdown(&bundle.id)
}

/// Version 1 refuses a limit above that of memory and swap, so the order of the two writes depends on the direction.
pub fn memory_grows_and_shrinks(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    bundle.edit(|spec| spec["linux"]["resources"]["memory"] = json!({"limit": 64 * MIB, "swap": 64 * MIB}))?;
    let shim = hand.shim(&bundle)?;
    let limits = Memory::of(shim.create_quiet(&bundle)?)?;
    shim.start(&bundle.id, "")?;
    for (limit, both) in [(64, 64), (128, 256), (32, 32), (200, 200), (16, 300), (64, 64)] {
        if (limit, both) != (64, 64) || limits.limit()? != 64 * MIB {
            shim.update_to(&bundle.id, &memory(limit * MIB, both * MIB))?;
        }
        ensure_eq!((limits.limit()?, limits.both()?), (limit * MIB, both * MIB), "limits in bytes");
    }
    // Only what is named changes.
    shim.update_to(&bundle.id, &json!({"pids": {"limit": 77}, "cpu": {"shares": 512}}))?;
    ensure_eq!(limits.limit()?, 64 * MIB, "memory limit after an update of others");
    let pid = shim.state(&bundle.id, "")?.pid;
    let pids = std::fs::read_to_string(proc::cgroup_of(pid, "pids")?.join("pids.max"))?;
    ensure_eq!(pids.trim(), "77", "pids limit");
    shim.update_to(&bundle.id, &json!({"memory": {"limit": -1, "swap": -1}}))?;
    ensure!(limits.limit()? > 1 << 60, "no limit is {}", limits.limit()?);
    finish(&shim, &bundle)
}

pub fn memory_below_what_is_in_use(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sh", "-c", "head -c 40000000 /dev/zero >/run/big && echo >/ready && exec sleep 1000"])?;
    bundle.edit(|spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 128 * MIB, "swap": 128 * MIB});
        let mounts = spec["mounts"].as_array_mut().into_iter().flatten();
        mounts.filter(|mount| mount["destination"] == "/run").for_each(|mount| mount["options"] = json!(["mode=755", "size=64m"]));
    })?;
    let shim = hand.shim(&bundle)?;
    let limits = Memory::of(shim.create_quiet(&bundle)?)?;
    shim.start(&bundle.id, "")?;
    eventually("the memory is in use", SOON, || bundle.written("ready").exists())?;
    // With checkBeforeUpdate as runc has it; without, version 1 refuses by itself what it cannot reclaim.
    let checked = json!({"memory": {"limit": 8 * MIB, "swap": 8 * MIB, "checkBeforeUpdate": true}});
    refused(shim.update_to(&bundle.id, &checked), Code::FAILED_PRECONDITION, "memory")?;
    ensure_eq!(limits.limit()?, 128 * MIB, "limit after the refusal");
    if !unified() {
        refused(shim.update_to(&bundle.id, &memory(8 * MIB, 8 * MIB)), Code::FAILED_PRECONDITION, "in use")?;
        ensure_eq!((limits.limit()?, limits.both()?), (128 * MIB, 128 * MIB), "limits after the kernel's refusal");
    }
    ensure_eq!(shim.state(&bundle.id, "")?.status.value(), RUNNING, "status");
    shim.update_to(&bundle.id, &memory(96 * MIB, 96 * MIB))?;
    finish(&shim, &bundle)
}

/// The numbers of a container, whichever message they came in.
#[derive(Debug)]
struct Numbers {
    usage: u64,
    limit: u64,
    anonymous: u64,
    cpu_nanoseconds: u64,
    pids: u64,
    pids_limit: u64,
    oom_kills: u64,
}

fn numbers(shim: &Shim, id: &str) -> Result<Numbers> {
    let any = shim.stats(id)?;
    if unified() {
        let metrics = proto::cgroups_v2::metrics::Metrics::parse_from_bytes(&any.value)?;
        return Ok(Numbers {
            usage: metrics.memory.usage,
            limit: metrics.memory.usage_limit,
            anonymous: metrics.memory.anon,
            cpu_nanoseconds: metrics.cpu.usage_usec * 1000,
            pids: metrics.pids.current,
            pids_limit: metrics.pids.limit,
            oom_kills: metrics.memory_events.oom_kill,
        });
    }
    let metrics = proto::cgroups::metrics::Metrics::parse_from_bytes(&any.value)?;
    Ok(Numbers {
        usage: metrics.memory.usage.usage,
        limit: metrics.memory.usage.limit,
        anonymous: metrics.memory.total_rss,
        cpu_nanoseconds: metrics.cpu.usage.total,
        pids: metrics.pids.current,
        pids_limit: metrics.pids.limit,
        oom_kills: metrics.memory_oom_control.oom_kill,
    })
}

fn near(what: &str, told: u64, read: u64, by: u64) -> Result<()> {
    ensure!(told.abs_diff(read) <= by, "{what}: Stats say {told}, the cgroup's file says {read}");
    Ok(())
}

pub fn stats_are_the_cgroups(hand: &mut Hand) -> Result<()> {
    // awk holds 20 MB that it has touched, and the loop takes time.
    let script = "sleep 1000 & n=0; while [ $n -lt 20000 ]; do n=$((n+1)); done; head -c 10000000 /dev/zero >/run/x; echo >/ready; wait";
    let mut bundle = hand.bundle("a", &["sh", "-c", script])?;
    bundle.edit(|spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 64 * MIB});
        spec["linux"]["resources"]["pids"] = json!({"limit": 33});
    })?;
    let shim = hand.shim(&bundle)?;
    let pid = shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    eventually("it rests", SOON, || bundle.written("ready").exists())?;
    let files = Memory::of(pid)?;
    let told = numbers(&shim, &bundle.id)?;
    near("memory usage", told.usage, files.read("memory.usage_in_bytes", "memory.current")?, 2 * MIB)?;
    ensure!(told.usage > 10_000_000, "usage is {}", told.usage);
    ensure_eq!(told.limit, 64 * MIB, "memory limit");
    let stat = std::fs::read_to_string(files.0.join("memory.stat"))?;
    let key = if unified() { "anon " } else { "total_rss " };
    let anonymous = stat.lines().find_map(|line| line.strip_prefix(key)).context(|| format!("no {key}in memory.stat"))?;
    near("anonymous memory", told.anonymous, anonymous.parse()?, MIB)?;
    ensure_eq!((told.pids, told.pids_limit, told.oom_kills), (2, 33, 0), "pids, their limit, kills");
    let cpu = if unified() {
        let text = std::fs::read_to_string(files.0.join("cpu.stat"))?;
        text.lines().find_map(|line| line.strip_prefix("usage_usec ")).context(|| "no usage".to_owned())?.parse::<u64>()? * 1000
    } else {
        std::fs::read_to_string(proc::cgroup_of(pid, "cpuacct")?.join("cpuacct.usage"))?.trim().parse()?
    };
    near("cpu time", told.cpu_nanoseconds, cpu, 50_000_000)?;
    ensure!(told.cpu_nanoseconds > 1_000_000, "cpu time is {}", told.cpu_nanoseconds);
    finish(&shim, &bundle)
}

pub fn stats_until_delete(hand: &mut Hand) -> Result<()> {
    // Killed by its limit, so that there is something to be found after the end.
    let mut bundle = hand.bundle("a", &["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"])?;
    bundle.edit(|spec| spec["linux"]["resources"]["memory"] = json!({"limit": 32 * MIB, "swap": 32 * MIB}))?;
    let shim = hand.shim(&bundle)?;
    let init = shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    ensure_eq!(shim.wait(&bundle.id, "")?.exit_status, 137, "status");
    let told = numbers(&shim, &bundle.id)?;
    ensure_eq!((told.oom_kills, told.pids), (1, 0), "kills and processes after the end");
    // containerd takes an empty answer for a shim without a task, and would delete what still has its exit status.
    ensure_eq!(shim.pids(&bundle.id)?, [init], "Pids after the end");
    shim.delete(&bundle.id, "")?;
    refused(shim.stats(&bundle.id), Code::NOT_FOUND, &bundle.id)?;
    refused(shim.pids(&bundle.id), Code::NOT_FOUND, &bundle.id)?;
    shim.shutdown(&bundle.id)
}

pub fn pids_name_their_execs(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sh", "-c", "sleep 1000 & wait"])?;
    let init = shim.state(&bundle.id, "")?.pid;
    shim.exec(&bundle.id, "e", &["sleep", "1000"])?;
    let exec = shim.start(&bundle.id, "e")?;
    eventually("three processes", SOON, || shim.pids(&bundle.id).is_ok_and(|pids| pids.len() == 3))?;
    for process in shim.processes(&bundle.id)? {
        let details = process.info.as_ref().map(|any| {
            ensure_eq!(any.type_url, "containerd.runc.v1.ProcessDetails", "type");
            Ok(proto::shim::oci::ProcessDetails::parse_from_bytes(&any.value)?.exec_id)
        });
        let named = details.transpose()?;
        ensure_eq!(named, (process.pid == exec).then(|| "e".to_owned()), "details of {} (init {init}, exec {exec})", process.pid);
    }
    shim.kill(&bundle.id, "e", 9)?;
    shim.wait(&bundle.id, "e")?;
    ensure!(!shim.pids(&bundle.id)?.contains(&exec), "Pids has a process that has ended");
    // In a cgroup below the container's own, too.
    let dir = if unified() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" };
    let below = proc::cgroup_of(init, "pids")?.join("below");
    if !unified() {
        std::fs::create_dir(&below).context(|| dir.to_owned())?;
        let other = shim.pids(&bundle.id)?.into_iter().find(|pid| *pid != init).context(|| "no other process".to_owned())?;
        std::fs::write(below.join("cgroup.procs"), other.to_string())?;
        ensure!(shim.pids(&bundle.id)?.contains(&other), "Pids lacks a process of a nested cgroup");
    }
    ensure_eq!(exec_ran(&shim, &bundle, "f", &process(&["true"]))?, 0, "an exec");
    finish(&shim, &bundle)
}
