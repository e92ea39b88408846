//! Descriptors that report: who is inside, whether it is frozen, and out-of-memory kills.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Cgroup;
use super::dir::{Dir, read_to_end};
use super::host::Version;
use crate::error::{Context, Error, Result};

/// The pauses after which to [ask](OomWatch::take) again: cgroup v1 reports that memory has run out before it counts the kill, and not again
/// when it has.
pub const OOM_COUNTED: [Duration; 5] = [
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
];

/// How a descriptor reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// POLLIN.
    Readable,
    /// POLLPRI; such a descriptor is always readable.
    Priority,
}

/// A descriptor to poll. It reports until [`Watch::acknowledge`] is called, once right after it was made.
#[derive(Debug)]
pub struct Watch {
    fd: OwnedFd,
    trigger: Trigger,
}

impl Watch {
    fn file(dir: &Dir, name: &str) -> Result<Option<Self>> {
        match dir.open_file(name, OFlags::RDONLY) {
            Ok(fd) => Ok(Some(Self { fd, trigger: Trigger::Priority })),
            Err(Errno::NOENT | Errno::NODEV) => Ok(None),
            Err(errno) => Err(Error::kernel(format!("open {}/{name}", dir.path()), errno)),
        }
    }

    /// What to poll for.
    pub fn trigger(&self) -> Trigger {
        self.trigger
    }

    /// Takes note of what was reported: what happens from now on is reported again. So look at the state after it, not before.
    ///
    /// # Errors
    /// Where the descriptor cannot be read; that the cgroup is gone is none.
    pub fn acknowledge(&self) -> Result<()> {
        let result = match self.trigger {
            // The count goes back to 0.
            Trigger::Readable => rustix::io::read(&self.fd, &mut [0u8; 8]).map(drop),
            // The kernel remembers, with the read, which event this reader has seen (fs/kernfs/file.c, kernfs_seq_show).
            Trigger::Priority => read_to_end(self.fd.as_fd()).map(drop),
        };
        match result {
            Ok(()) | Err(Errno::AGAIN | Errno::NODEV) => Ok(()),
            Err(errno) => Err(Error::kernel("read a cgroup event", errno)),
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reports out-of-memory kills.
#[derive(Debug)]
pub struct OomWatch {
    watch: Watch,
    /// v1: the file with the counter; on v2 it is the one that reports.
    counter: Option<OwnedFd>,
    seen: u64,
    above: Option<Above>,
}

/// The counter of the cgroup above, which counts for all below it (cgroup-v2.rst, memory.events), and what it said before the own one was read last.
#[derive(Debug)]
struct Above {
    counter: OwnedFd,
    seen: u64,
}

impl OomWatch {
    /// How many processes were killed for want of memory since the last call.
    ///
    /// The counter of v1 is written after the report, so ask once more when the process has exited. On v1 kills in nested cgroups are not
    /// counted: that kernel keeps them apart.
    ///
    /// # Errors
    /// Where the counter cannot be read; that the cgroup is gone is none.
    pub fn take(&mut self) -> Result<u64> {
        self.watch.acknowledge()?;
        // In this order a kill between the two is told of twice rather than never.
        let above = self.above.as_ref().map_or(Ok(None), |above| kills(&above.counter))?;
        let Some(count) = kills(self.own())? else { return Ok(0) };
        if let (Some(above), Some(count)) = (&mut self.above, above) {
            above.seen = count;
        }
        let new = count.saturating_sub(self.seen);
        self.seen = count;
        Ok(new)
    }

    /// How many processes were killed for want of memory, in the cgroup above and all below it, since [`OomWatch::take`] last found the cgroup;
    /// 0 for one that is still there. For a process that was killed by nobody else.
    ///
    /// # Errors
    /// As [`OomWatch::take`].
    pub fn take_from_above(&mut self) -> Result<u64> {
        if kills(self.own())?.is_some() {
            return Ok(0);
        }
        let Some(above) = &mut self.above else { return Ok(0) };
        let count = kills(&above.counter)?.unwrap_or(above.seen);
        Ok(count.saturating_sub(std::mem::replace(&mut above.seen, count)))
    }

    fn own(&self) -> &OwnedFd {
        self.counter.as_ref().unwrap_or(&self.watch.fd)
    }

    /// What to poll; no need to acknowledge, [`OomWatch::take`] does.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }
}

impl Cgroup {
    /// Reports when the cgroup, with all below it, becomes empty or populated, frozen or thawed. `None` on a pure v1 host, which has no such event.
    ///
    /// # Errors
    /// Where the file cannot be opened.
    pub fn events(&self) -> Result<Option<Watch>> {
        self.unified().map_or(Ok(None), |tree| Watch::file(&tree.dir, "cgroup.events"))
    }

    /// Reports out-of-memory kills. `None` without the memory controller.
    ///
    /// # Errors
    /// Where the kernel refuses the watch.
    pub fn oom_watch(&self) -> Result<Option<OomWatch>> {
        let Some(tree) = self.home("memory") else { return Ok(None) };
        let watch = match tree.version {
            Version::V1 => Some(oom_v1(&tree.dir)?),
            Version::V2 => Watch::file(&tree.dir, "memory.events")?.map(|watch| OomWatch { watch, counter: None, seen: 0, above: None }),
        };
        let Some(mut watch) = watch else { return Ok(None) };
        watch.take()?;
        Ok(Some(watch))
    }

    /// As [`Cgroup::oom_watch`], of a cgroup that somebody else removes as soon as it is empty, as systemd does: in version 2 the cgroup above is
    /// asked when it is gone.
    ///
    /// # Errors
    /// Where the kernel refuses the watch.
    pub fn oom_watch_of_scope(&self) -> Result<Option<OomWatch>> {
        let Some(mut watch) = self.oom_watch()? else { return Ok(None) };
        if let Some(tree) = self.home("memory").filter(|tree| tree.version == Version::V2)
            && let Some((parent, _)) = tree.parent()?
            && let Some(Watch { fd: counter, .. }) = Watch::file(&parent, "memory.events")?
        {
            watch.above = Some(Above { counter, seen: 0 });
            watch.take()?;
        }
        Ok(Some(watch))
    }
}

/// What a counter of kills says; nothing once its cgroup is gone.
fn kills(counter: &OwnedFd) -> Result<Option<u64>> {
    match read_to_end(counter.as_fd()) {
        Err(Errno::NODEV) => Ok(None),
        result => {
            let text = result.context(|| "read the counter of out-of-memory kills")?;
            Ok(text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()))
        }
    }
}

/// Documentation/admin-guide/cgroup-v1/memory.rst, "OOM Control".
fn oom_v1(dir: &Dir) -> Result<OomWatch> {
    let what = || format!("watch for out-of-memory kills in {}", dir.path());
    let counter = dir.open_file("memory.oom_control", OFlags::RDONLY).context(what)?;
    let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context(what)?;
    dir.write("cgroup.event_control", &format!("{} {}", fd.as_raw_fd(), counter.as_raw_fd())).context(what)?;
    Ok(OomWatch { watch: Watch { fd, trigger: Trigger::Readable }, counter: Some(counter), seen: 0, above: None })
}

/// Waits for `event` to report (POLLPRI), or a pidfd to become readable, at most for `timeout`. Without an event it is a pause.
pub(super) fn wait(event: Option<BorrowedFd<'_>>, timeout: Duration) -> Result<()> {
    poll(event, PollFlags::PRI, timeout).map(drop)
}

/// Waits for the process behind `pidfd` to exit; false when `timeout` passed first.
pub(super) fn wait_exit(pidfd: BorrowedFd<'_>, timeout: Duration) -> Result<bool> {
    poll(Some(pidfd), PollFlags::IN, timeout)
}

fn poll(fd: Option<BorrowedFd<'_>>, flags: PollFlags, timeout: Duration) -> Result<bool> {
    let timeout = Timespec { tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: timeout.subsec_nanos().into() };
    let mut fds: Vec<PollFd<'_>> = fd.iter().map(|fd| PollFd::from_borrowed_fd(*fd, flags)).collect();
    match rustix::event::poll(&mut fds, Some(&timeout)) {
        Ok(count) => Ok(count > 0),
        Err(Errno::INTR) => Ok(false),
        Err(errno) => Err(Error::kernel("poll a cgroup event", errno)),
    }
}
