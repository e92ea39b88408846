//! What is left of a container whose daemon is gone: killed, removed, and told.

use std::path::Path;
use std::time::{Duration, SystemTime};

use runtime_core::cgroup::{Cgroup, CgroupPath, Host};
use runtime_core::container::record::{ProcessId, Record};
use runtime_core::error::{Context as _, Error, Result};
use runtime_core::net;
use runtime_core::rdt;
use runtime_core::systemd;

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
pub fn cleanup(bundle: &Path, last: impl FnOnce(&Record)) -> Result<Exit> {
    let Some(record) = Record::read(bundle)? else {
        return Ok(Exit { pid: init_pid(bundle)?, status: KILLED, at: SystemTime::now() });
    };
    // Whatever its cgroup looks like.
    let killed = record.init.map_or(Ok(()), |init| init.kill().map(drop));
    let host = Host::detect()?;
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
    let pid = record.init.map_or(0, |init| init.pid as u32);
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

fn init_pid(bundle: &Path) -> Result<u32> {
    let path = bundle.join("init.pid");
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        read => read.map_err(|error| Error::io(format!("read {path:?}"), &error))?,
    };
    text.trim().parse().map_err(|_| Error::invalid(format!("{path:?} holds no pid: {:?}", text.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_never_ran_ended_too() {
        let tmp = tempfile::tempdir().unwrap();
        let exit = cleanup(tmp.path(), |_| {}).unwrap();
        assert_eq!((exit.pid, exit.status), (0, 137));
        assert_eq!(cleanup(&tmp.path().join("gone"), |_| {}).unwrap().pid, 0);
        std::fs::write(tmp.path().join("init.pid"), "42").unwrap();
        assert_eq!(cleanup(tmp.path(), |_| {}).unwrap().pid, 42);
        std::fs::write(tmp.path().join("init.pid"), "x").unwrap();
        assert!(cleanup(tmp.path(), |_| {}).is_err());
    }

    #[test]
    fn a_recorded_end_is_told_as_it_was() {
        let bundle = tempfile::tempdir().unwrap();
        let record = Record { init: Some(ProcessId { pid: 7, started: 9 }), exited: Some((3, 5)), ..Record::new("a", None) };
        record.write(bundle.path()).unwrap();
        let exit = cleanup(bundle.path(), |_| {}).unwrap();
        assert_eq!((exit.pid, exit.status, exit.at), (7, 3, SystemTime::UNIX_EPOCH + Duration::from_nanos(5)));
    }
}
