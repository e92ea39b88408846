//! The few bytes on disk from which another process can clean up after this one: written before the first side effect.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::own_file;
use crate::cgroup::{Cgroup, CgroupPath, Host};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::sys::mount::detach_all;

const NAME: &str = "coracle.json";
const MODE: u32 = 0o600;

/// A process that can be told from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// As the host sees it.
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`, in clock ticks since boot (proc(5)).
    pub started: u64,
}

impl ProcessId {
    /// The process that has this number now, if there is one.
    pub fn of(pid: i32) -> Option<Self> {
        match started(pid) {
            Ok(Some(started)) => Some(Self { pid, started }),
            _ => None,
        }
    }

    /// It by a descriptor, which cannot come to mean another one; `None` if it has ended, waiting to be reaped or not.
    ///
    /// # Errors
    /// The errno of pidfd_open(2), or why it cannot be told from a later process with its number.
    pub fn open(&self) -> Result<Option<OwnedFd>> {
        let what = || format!("process {}", self.pid);
        let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.pid > 0) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            // The last two: the number is that of a thread of another process.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => return Ok(None),
            result => result.context(what)?,
        };
        // Asked after the opening: before it, the number might still have passed on.
        let same = started(self.pid).context(what)? == Some(self.started);
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ended = retry_on_intr(|| poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&none))).context(what)?;
        Ok((same && ended == 0).then_some(pidfd))
    }

    /// Waits until it has ended, and kills it if it has not after `grace`.
    ///
    /// # Errors
    /// The errno of pidfd_open(2) or pidfd_send_signal(2).
    pub fn end(&self, grace: Duration) -> Result<()> {
        let what = || format!("process {}", self.pid);
        let Some(pidfd) = self.open()? else { return Ok(()) };
        let timeout = Timespec { tv_sec: grace.as_secs().cast_signed(), tv_nsec: grace.subsec_nanos().into() };
        let ended = retry_on_intr(|| poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout))).context(what)?;
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Err(errno) if ended == 0 && errno != Errno::SRCH => Err(Error::kernel(what(), errno)),
            _ => Ok(()),
        }
    }

    /// Whether that process still runs; one that has ended and waits to be reaped does not. Not being able to look is no sign of its end.
    pub fn is_alive(&self) -> bool {
        !matches!(self.open(), Ok(None))
    }

    /// Kills it, if it still runs, and answers by what its end can be waited for.
    ///
    /// # Errors
    /// As [`ProcessId::open`]; the errno of pidfd_send_signal(2).
    pub fn kill(&self) -> Result<Option<OwnedFd>> {
        let Some(pidfd) = self.open()? else { return Ok(None) };
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(Some(pidfd)),
            Err(errno) => Err(Error::kernel(format!("kill process {}", self.pid), errno)),
        }
    }
}

/// Field 22 of `/proc/<pid>/stat`; `None` if there is no such process.
fn started(pid: i32) -> Result<Option<u64>> {
    let path = format!("/proc/{pid}/stat");
    let stat = match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        result => result.context(|| format!("read {path}"))?,
    };
    // The second field is the program's name in parentheses, which may hold any bytes.
    let rest = stat.iter().rposition(|byte| *byte == b')').and_then(|end| std::str::from_utf8(&stat[end + 1..]).ok());
    let field = rest.and_then(|rest| rest.split_ascii_whitespace().nth(19)?.parse().ok());
    field.map(Some).ok_or_else(|| Error::new(ErrorKind::Internal, format!("{path}: no start time")))
}

/// Where what a container has of a network is written down (`net::release`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The directory of the networks' state.
    pub state: PathBuf,
    /// The container's key in it.
    pub key: String,
    /// The network's name.
    pub network: String,
}

/// What is known of a container before and after its daemon's death.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The container's id.
    pub id: String,
    /// The daemon that supervises it.
    pub daemon: Option<ProcessId>,
    /// Its first process, once there is one.
    pub init: Option<ProcessId>,
    /// Its cgroup, as soon as the name is known.
    pub cgroup: Option<CgroupPath>,
    /// Servers of its root filesystem, which end when nobody has it mounted any more.
    #[serde(default)]
    pub servers: Vec<ProcessId>,
    /// Where the host sees its root filesystem, for hooks; unmounted when the last one has run.
    #[serde(default)]
    pub rootfs: Option<PathBuf>,
    /// Of a pod: the bundles of its containers, which may be anywhere.
    #[serde(default)]
    pub members: Vec<PathBuf>,
    /// Groups of resctrl that were made for it, the innermost first.
    #[serde(default)]
    pub resctrl: Vec<PathBuf>,
    /// What it has of a network of the node's.
    #[serde(default)]
    pub network: Option<Place>,
    /// How the first process ended, once it has: status and Unix time in nanoseconds.
    pub exited: Option<(u32, i64)>,
}

impl Record {
    /// Of a container of which nothing is known but its name and cgroup.
    pub fn new(id: &str, cgroup: Option<CgroupPath>) -> Self {
        Self {
            id: id.to_owned(),
            daemon: None,
            init: None,
            cgroup,
            servers: Vec::new(),
            rootfs: None,
            members: Vec::new(),
            resctrl: Vec::new(),
            network: None,
            exited: None,
        }
    }

    /// The same, supervised by the calling process.
    pub fn own(id: &str, cgroup: Option<CgroupPath>) -> Self {
        Self { daemon: ProcessId::of(std::process::id() as i32), ..Self::new(id, cgroup) }
    }

    /// What there is of its cgroup, with its first process, which may be elsewhere.
    ///
    /// # Errors
    /// The hierarchies cannot be read.
    pub fn open_cgroup(&self, host: &Host) -> Result<Cgroup> {
        let (cgroup, found) = self.find_cgroup(host);
        found.map(|()| cgroup)
    }

    /// What can be found of that, and why the rest cannot be: for callers that kill what there is.
    pub fn find_cgroup(&self, host: &Host) -> (Cgroup, Result<()>) {
        let (mut cgroup, found) = self.cgroup.as_ref().map_or_else(|| (Cgroup::none(host), Ok(())), |path| Cgroup::find(host, path));
        match self.init.map_or(Ok(None), |init| Ok(init.open()?.map(|pidfd| (init.pid, pidfd)))) {
            Ok(first) => {
                first.into_iter().for_each(|(pid, pidfd)| cgroup.set_first(pid, Arc::new(pidfd)));
                (cgroup, found)
            }
            Err(error) => (cgroup, Err(error)),
        }
    }

    /// Takes its root filesystem out of the host's sight, where it is in it.
    ///
    /// # Errors
    /// The errno of umount2(2).
    pub fn hide_root(&self) -> Result<()> {
        let Some(path) = &self.rootfs else { return Ok(()) };
        let failed = || format!("unmount {path:?}");
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::invalid(failed()))?;
        detach_all(&path).context(failed)
    }

    /// Writes the record into the bundle, whole or not at all.
    ///
    /// # Errors
    /// The errno of the write.
    pub fn write(&self, bundle: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(self).map_err(|error| Error::invalid(format!("record: {error}")))?;
        write_atomically(&bundle.join(NAME), &bytes)
    }

    /// Reads the record of a bundle, if there is one.
    ///
    /// # Errors
    /// It cannot be read or is no record.
    pub fn read(bundle: &Path) -> Result<Option<Self>> {
        let path = bundle.join(NAME);
        match own_file::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::invalid(format!("{path:?}: {error}"))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("read {path:?}"), &error)),
        }
    }

    /// Removes the record; a missing one is fine.
    ///
    /// # Errors
    /// The errno of unlink(2).
    pub fn remove(bundle: &Path) -> Result<()> {
        let path = bundle.join(NAME);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(format!("remove {path:?}"), &error)),
            _ => Ok(()),
        }
    }
}

/// Replaces a small file of the runtime's own, mode 0600: readers see the old content or the new one.
///
/// # Errors
/// The errno of the write or the rename.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, bytes, MODE)
}

/// The same for a file that the caller has named, with a mode. The directory may be anybody's: nothing that is there is written to, but for the
/// file itself, which is replaced.
///
/// # Errors
/// The errno of the write or the rename.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let what = || format!("write {path:?}");
    let (temporary, mut file) = temporary(path, mode).context(what)?;
    let written = file.write_all(bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The first failure is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written.context(what)
}

/// A new file beside `path`, by a unique name.
fn temporary(path: &Path, mode: u32) -> std::io::Result<(PathBuf, File)> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    loop {
        let name = format!(".coracle-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let temporary = path.with_file_name(name);
        match OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            result => return result.map(|file| (temporary, file)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_number() {
        let own = ProcessId::of(std::process::id() as i32).unwrap();
        assert!(own.is_alive());
        assert!(!ProcessId { started: own.started + 1, ..own }.is_alive());
    }

    /// As a container may name its processes.
    #[test]
    fn a_process_with_any_name_lives_until_its_end() {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        for (escaped, name) in [("x\\377", &b"x\xff\n"[..]), (") Z 1 (", b") Z 1 (\n"), ("\\n) X 9", b"\n) X 9\n")] {
            let mut command = std::process::Command::new("sh");
            command.args(["-c", "printf \"$1\" >/proc/$$/comm; read stop", "sh", escaped]).stdin(std::process::Stdio::piped());
            let mut child = command.spawn().unwrap();
            while fs::read(format!("/proc/{}/comm", child.id())).unwrap() != name {
                assert!(std::time::Instant::now() < deadline);
            }
            let id = ProcessId::of(child.id() as i32).unwrap();
            assert!(id.is_alive() && id.open().unwrap().is_some());
            child.kill().unwrap();
            // It has ended and is not reaped yet.
            while id.is_alive() {
                assert!(std::time::Instant::now() < deadline);
            }
            child.wait().unwrap();
            assert!(!id.is_alive() && id.kill().unwrap().is_none());
        }
    }

    #[test]
    fn a_process_that_does_not_end_is_killed_and_a_later_one_is_not() {
        let mut sleeper = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let id = ProcessId::of(sleeper.id() as i32).unwrap();
        ProcessId { started: id.started + 1, ..id }.end(Duration::ZERO).unwrap();
        assert!(sleeper.try_wait().unwrap().is_none());
        id.end(Duration::from_millis(10)).unwrap();
        assert!(!sleeper.wait().unwrap().success());
        id.end(Duration::from_secs(1000)).unwrap();
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let bundle = tempfile::tempdir().unwrap();
        let record = Record { init: Some(ProcessId { pid: 7, started: 9 }), exited: Some((3, 4)), ..Record::new("a", None) };
        record.write(bundle.path()).unwrap();
        let read = Record::read(bundle.path()).unwrap().unwrap();
        assert_eq!((read.init, read.exited), (record.init, record.exited));
        Record::remove(bundle.path()).unwrap();
        assert!(Record::read(bundle.path()).unwrap().is_none());
    }
}
