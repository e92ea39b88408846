//! What is left of a container whose daemon is gone: killed, removed, and told.

use std::path::Path;
use std::time::{Duration, SystemTime};

use runtime_core::cgroup::{Cgroup, CgroupPath, Host};
use runtime_core::container::own_file;
use runtime_core::container::record::{ProcessId, Record};
use runtime_core::error::{Context as _, Result};
use runtime_core::net;
use runtime_core::rdt;
use runtime_core::systemd::{self, Scope};

use crate::systemd::Systemd;

/// The status of a process that SIGKILL ended, as shells and containerd write it.
const KILLED: u32 = 128 + 9;
/// containerd gives the whole verb five seconds.
const DEATH: Duration = Duration::from_secs(3);
const REMOVAL: Duration = Duration::from_secs(1);
/// How long a server of a root filesystem may take to end after its last user.
const SERVERS: Duration = Duration::from_millis(500);

/// How a container ended, as far as a stranger can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The pid of its first process; 0 when it never had one.
    pub pid: u32,
    /// Its exit status.
    pub status: u32,
    /// When it ended.
    pub at: SystemTime,
}

/// Kills and removes what `bundle` tells of, and what its dead daemon left of other containers of its group; tells how the container ended.
/// A bundle without a trace is an end, too: it may be called for a container that was never created, or twice. When the container is gone but
/// for its root filesystem, `last` is called.
///
/// # Errors
/// A process that does not die in time, or a record that cannot be read.
pub fn cleanup(bundle: &Path, id: &str, last: impl FnOnce(&Record)) -> Result<Exit> {
    let host = Host::detect()?;
    let record = match Record::read(bundle) {
        Ok(None) => return Ok(Exit { pid: init_pid(bundle).unwrap_or(0), status: KILLED, at: SystemTime::now() }),
        Ok(Some(record)) if record.id == id => record,
        Ok(Some(record)) => salvage(&host, bundle, id, &format!("the record is that of {:?}", record.id)),
        Err(error) => salvage(&host, bundle, id, &error.to_string()),
    };
    // Whatever its cgroup looks like.
    let killed = record.init.map_or(Ok(()), |init| init.kill().map(drop));
    let cleaned = clean(&host, &record, Root::Hidden, || last(&record)).and(killed);
    for other in &members(&record) {
        // Its own `delete` reports what fails here; containerd does not ask for it in every mode.
        let _ = clean(&host, other, Root::Hidden, || {});
    }
    for other in &orphaned(bundle, &record) {
        // Its own `delete` has hooks to run.
        let _ = clean(&host, other, Root::Left, || {});
    }
    cleaned?;
    Record::remove(bundle)?;
    // A record that is none does not tell it once the process has ended; the answer only names it.
    let pid = record.init.map(|init| init.pid.cast_unsigned()).or_else(|| init_pid(bundle)).unwrap_or(0);
    let (status, at) = record.exited.map_or((KILLED, SystemTime::now()), |(status, nanoseconds)| {
        (status, SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0)))
    });
    Ok(Exit { pid, status, at })
}

/// What becomes of a root filesystem that the host sees.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Root {
    Hidden,
    Left,
}

fn clean(host: &Host, record: &Record, root: Root, last: impl FnOnce()) -> Result<()> {
    let what = || format!("container {:?}", record.id);
    let (cgroup, found) = record.find_cgroup(host);
    let servers = |grace| record.servers.iter().try_for_each(|server| server.end(grace)).context(what);
    match cgroup.kill_and_wait(DEATH) {
        // A process that waits for a server that does not answer cannot be killed.
        Err(_) if !record.servers.is_empty() => servers(Duration::ZERO).and_then(|()| cgroup.kill_and_wait(REMOVAL).context(what))?,
        result => result.context(what)?,
    }
    let removed = remove(record, &cgroup).context(what);
    if removed.is_ok() {
        last();
    }
    let hidden = if root == Root::Hidden { record.hide_root().context(what) } else { Ok(()) };
    servers(SERVERS)?;
    removed.and(found.context(what)).and(hidden)
}

fn remove(record: &Record, cgroup: &Cgroup) -> Result<()> {
    cgroup.remove(REMOVAL)?;
    systemd::stop(record.cgroup.as_ref().and_then(CgroupPath::scope), REMOVAL);
    if let Some(place) = &record.network {
        net::release(place)?;
    }
    rdt::remove(&record.resctrl)
}

/// What can be known of a container without its record: its first process, and the cgroup that its configuration names.
fn salvage(host: &Host, bundle: &Path, id: &str, why: &str) -> Record {
    eprintln!("containerd-shim-coracle-v2: delete: {why}; going by init.pid and cgroupsPath");
    Record { init: first_process(bundle), ..Record::new(id, cgroup_of(host, bundle, id)) }
}

fn cgroup_of(host: &Host, bundle: &Path, id: &str) -> Option<CgroupPath> {
    let config: serde_json::Value = serde_json::from_slice(&own_file::read(&bundle.join("config.json")).ok()?).ok()?;
    let path = config.pointer("/linux/cgroupsPath").and_then(serde_json::Value::as_str);
    if Scope::is_meant_by(path) {
        return CgroupPath::of_scope(&Scope::new(path, id, Systemd::instance()).ok()?, "").ok();
    }
    CgroupPath::new(host, path, id).ok()
}

/// The process that `init.pid` means: one that has this number now and was there when the file was written.
fn first_process(bundle: &Path) -> Option<ProcessId> {
    let pid = init_pid(bundle)?;
    let written = bundle.join("init.pid").metadata().and_then(|found| found.modified()).ok()?;
    let process = ProcessId::of(pid.cast_signed())?;
    let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let age = Duration::new(uptime.tv_sec.cast_unsigned(), 0)
        .checked_sub(Duration::from_secs(process.started / rustix::param::clock_ticks_per_second()))?;
    // To the second: a number is not given again within one.
    (SystemTime::now().checked_sub(age)? <= written + Duration::from_secs(1)).then_some(process)
}

/// Cleans up after the pods beside that of `bundle` whose daemons died together with their launchers: containerd calls no `delete` for them.
pub fn reconcile(bundle: &Path) {
    let Some(siblings) = bundle.parent() else { return };
    let Ok(host) = Host::detect() else { return };
    for record in records(siblings).filter(|record| record.daemon.is_some_and(|daemon| !daemon.is_alive())) {
        for left in members(&record).iter().chain([&record]) {
            if let Err(error) = clean(&host, left, Root::Hidden, || {}) {
                log::warn!("{}: left by a dead daemon: {error}", left.id);
            }
        }
    }
}

/// The records of a pod's containers.
fn members(pod: &Record) -> Vec<Record> {
    let records = pod.members.iter().filter_map(|bundle| Record::read(bundle).ok().flatten());
    records.filter(|record| record.daemon == pod.daemon).collect()
}

/// Those in the bundles of a directory.
fn records(directory: &Path) -> impl Iterator<Item = Record> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| Record::read(&entry.path()).ok().flatten())
}

/// The records, in the bundles beside this one, of containers that the same daemon supervised, if that is dead.
fn orphaned(bundle: &Path, record: &Record) -> Vec<Record> {
    let dead = record.daemon.filter(|daemon: &ProcessId| !daemon.is_alive());
    let (Some(daemon), Some(siblings)) = (dead, bundle.parent()) else { return Vec::new() };
    records(siblings).filter(|other| other.daemon == Some(daemon) && other.id != record.id).collect()
}

/// `None` where there is no such file, or none that holds a number.
fn init_pid(bundle: &Path) -> Option<u32> {
    String::from_utf8(own_file::read(&bundle.join("init.pid")).ok()?).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_never_ran_ended_too() {
        let tmp = tempfile::tempdir().unwrap();
        let exit = cleanup(tmp.path(), "a", |_| {}).unwrap();
        assert_eq!((exit.pid, exit.status), (0, 137));
        assert_eq!(cleanup(&tmp.path().join("gone"), "a", |_| {}).unwrap().pid, 0);
        std::fs::write(tmp.path().join("init.pid"), "42").unwrap();
        assert_eq!(cleanup(tmp.path(), "a", |_| {}).unwrap().pid, 42);
        std::fs::write(tmp.path().join("init.pid"), "x").unwrap();
        assert_eq!(cleanup(tmp.path(), "a", |_| {}).unwrap().pid, 0);
    }

    #[test]
    fn a_process_that_is_younger_than_the_file_is_a_stranger() {
        let bundle = tempfile::tempdir().unwrap();
        let path = bundle.path().join("init.pid");
        std::fs::write(&path, std::process::id().to_string()).unwrap();
        assert_eq!(first_process(bundle.path()).map(|it| it.pid), Some(std::process::id().cast_signed()));
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(100_000_000)).unwrap();
        assert_eq!(first_process(bundle.path()), None);
    }

    #[test]
    fn a_recorded_end_is_told_as_it_was() {
        let bundle = tempfile::tempdir().unwrap();
        let record = Record { init: Some(ProcessId { pid: 7, started: 9 }), exited: Some((3, 5)), ..Record::new("a", None) };
        record.write(bundle.path()).unwrap();
        let exit = cleanup(bundle.path(), "a", |_| {}).unwrap();
        assert_eq!((exit.pid, exit.status, exit.at), (7, 3, SystemTime::UNIX_EPOCH + Duration::from_nanos(5)));
    }
}
