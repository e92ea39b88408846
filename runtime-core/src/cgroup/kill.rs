//! Killing everything inside, so that nothing escapes by forking and nothing outside is hit.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::watch::{wait, wait_exit};
use super::{Cgroup, Mode};
use crate::error::{Error, ErrorKind, Result};

/// A pass over a frozen group finds all there are; this bounds a group that cannot be frozen and forks faster than we read.
const PASSES_MAX: usize = 100;
/// How many processes are held by pidfd at a time.
const CHUNK: usize = 128;

impl Cgroup {
    /// Sends SIGKILL to every process inside, descendants and processes forked meanwhile included, and does not wait for their end.
    /// It is thawed in any case: a frozen process of v1 does not die.
    ///
    /// # Errors
    /// Where the kernel refuses; a cgroup that is empty or gone is none.
    pub fn kill(&self) -> Result<()> {
        let killed = self.kill_frozen();
        let thawed = self.thaw();
        killed.and(thawed)
    }

    /// Sends a signal to every process that is inside now.
    ///
    /// # Errors
    /// Where the kernel refuses; processes that end meanwhile are none.
    pub fn signal(&self, signal: i32) -> Result<()> {
        for pid in self.pids_of_any()? {
            let Some(pidfd) = open(pid) else { continue };
            // Checked again with the process held: its number may have passed to a stranger.
            if !self.pids_of_any()?.contains(&pid) {
                continue;
            }
            match crate::sys::process::send_signal(pidfd.as_fd(), signal) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(Error::kernel(format!("send signal {signal} to process {pid}"), errno)),
            }
        }
        Ok(())
    }

    fn kill_frozen(&self) -> Result<()> {
        let Some(tree) = self.unified() else { return self.kill_each(&BTreeSet::new()) };
        let spared = match tree.dir.write("cgroup.kill", "1") {
            Ok(()) if self.mode == Mode::V2 => return Ok(()),
            Err(Errno::NODEV) if self.mode == Mode::V2 => return Ok(()),
            Ok(()) => true,
            // No cgroup.kill (a kernel below 5.14, or a threaded cgroup), or the directory is gone from this tree only.
            Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => false,
            Err(errno) => return Err(Error::kernel(format!("write \"1\" to {}/cgroup.kill", tree.dir.path()), errno)),
        };
        // On a hybrid host only those are left that somebody moved out of the v2 tree.
        self.kill_each(&if spared { tree.dir.pids()?.into_iter().collect() } else { BTreeSet::new() })
    }

    /// Pass after pass, until one finds nobody new. Frozen first, if possible, so that nobody forks in between.
    fn kill_each(&self, already: &BTreeSet<i32>) -> Result<()> {
        if self.pids_of_any()?.is_subset(already) {
            return Ok(());
        }
        // Not being able to freeze only makes it a race; one that the passes win unless the group forks without limit.
        let _ = self.freeze_step(0);
        let mut killed = already.clone();
        for _ in 0..PASSES_MAX {
            let new: Vec<i32> = self.pids_of_any()?.difference(&killed).copied().collect();
            if new.is_empty() {
                return Ok(());
            }
            for chunk in new.chunks(CHUNK) {
                self.kill_pids(chunk)?;
            }
            killed.extend(new);
        }
        Err(Error::new(ErrorKind::Internal, "processes kept appearing in the cgroup while it was being killed"))
    }

    /// Kills those of `pids` that are inside: a number may have passed to a stranger since it was read. A pidfd cannot.
    fn kill_pids(&self, pids: &[i32]) -> Result<()> {
        let held: Vec<(i32, OwnedFd)> = pids.iter().filter_map(|pid| Some((*pid, open(*pid)?))).collect();
        let inside = self.pids_of_any()?;
        for (pid, fd) in held.iter().filter(|(pid, _)| inside.contains(pid)) {
            match rustix::process::pidfd_send_signal(fd, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(Error::kernel(format!("send SIGKILL to process {pid}"), errno)),
            }
        }
        Ok(())
    }

    /// [`Cgroup::kill`], repeated until nobody is inside. Blocks; for the `delete` command, not for a daemon.
    ///
    /// # Errors
    /// When `timeout` passes first: a process in uninterruptible sleep does not die.
    pub fn kill_and_wait(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            let pids = self.pids_of_any()?;
            let Some(first) = pids.first() else { return self.thaw() };
            if Instant::now() >= deadline {
                let message =
                    format!("{} process(es), the first {first}, still alive {} ms after SIGKILL", pids.len(), timeout.as_millis());
                return Err(Error::new(ErrorKind::Internal, message));
            }
            let held: Vec<OwnedFd> = pids.iter().take(CHUNK).filter_map(|pid| open(*pid)).collect();
            self.kill()?;
            for fd in &held {
                wait_exit(fd.as_fd(), deadline.saturating_duration_since(Instant::now()))?;
            }
            if held.is_empty() {
                // Only processes whose leader has exited, which no pidfd of this kernel stands for.
                wait(None, Duration::from_millis(1))?;
            }
        }
    }
}

/// `None` for a process that is gone, or that is the leader no more.
fn open(pid: i32) -> Option<OwnedFd> {
    rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}
