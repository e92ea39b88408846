//! Killing everything inside, so that nothing escapes by forking and nothing outside is hit.
//!
//! The first process comes first, by its descriptor. Then each directory is read, who is in it is held by pidfd, the directory is read again,
//! and who is still there gets the signal: a number may have passed to a stranger, a pidfd cannot. So the work grows with the number of
//! processes and cgroups, and nothing that cannot be looked at keeps the others alive.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use super::dir::Dir;
use super::pace::{AtOnce, Pace, at_once};
use super::walk::{self, Step, Walk};
use super::watch::{wait, wait_exit};
use super::{Cgroup, Mode};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::process::send_signal;

/// A pass over a frozen group finds all there are; this bounds a group that cannot be frozen and forks faster than we read.
const PASSES_MAX: usize = 100;
/// How many processes are held by pidfd at a time: few enough for one short step of work, so many that reading the directory again for each
/// lot costs little.
const CHUNK: usize = 128;
/// A process that is alive after this time is killed again: it may have been frozen meanwhile.
const AGAIN: Duration = Duration::from_millis(100);

impl Cgroup {
    /// Sends SIGKILL to the first process, wherever it is, and to every process inside, descendants and processes forked meanwhile included,
    /// and does not wait for their end. All is thawed in any case: a frozen process of v1 does not die.
    ///
    /// # Errors
    /// Where the kernel refuses, after all that can be done is done; a cgroup that is empty or gone is none.
    pub fn kill(&self) -> Result<()> {
        at_once(self.kill_by(&mut AtOnce))
    }

    /// [`Cgroup::kill`] at this pace.
    ///
    /// # Errors
    /// As [`Cgroup::kill`].
    pub async fn kill_by(&self, pace: &mut impl Pace) -> Result<()> {
        let first = self.first.as_ref().map_or(Ok(()), |first| first.send(libc::SIGKILL));
        let inside = self.kill_inside(pace).await;
        let thawed = self.thaw_all_by(pace).await;
        first.and(inside).and(thawed)
    }

    /// Sends a signal to every process that is inside now.
    ///
    /// # Errors
    /// Where the kernel refuses, after all others have got it; processes that end meanwhile are none.
    pub fn signal(&self, signal: i32) -> Result<()> {
        at_once(self.signal_by(signal, &mut AtOnce))
    }

    /// [`Cgroup::signal`] at this pace.
    ///
    /// # Errors
    /// As [`Cgroup::signal`].
    pub async fn signal_by(&self, signal: i32, pace: &mut impl Pace) -> Result<()> {
        let mut sweep = Sweep::new(signal);
        let mut first_is_inside = false;
        for tree in &self.trees {
            sweep.pass(&tree.dir, pace).await;
            first_is_inside |= self.first.as_ref().is_some_and(|first| sweep.done.contains(&first.pid));
        }
        if let Some(first) = self.first.as_ref().filter(|_| !first_is_inside) {
            let sent = first.send(signal).and_then(|()| first.send_to_companions(signal, &sweep.done));
            sent.unwrap_or_else(|error| sweep.note(error));
        }
        sweep.end()
    }

    async fn kill_inside(&self, pace: &mut impl Pace) -> Result<()> {
        let mut sweep = Sweep::new(libc::SIGKILL);
        if let Some(tree) = self.unified() {
            match tree.dir.write("cgroup.kill", "1") {
                Ok(()) | Err(Errno::NODEV) if self.mode == Mode::V2 => return Ok(()),
                // On a hybrid host only those are left that somebody moved out of the v2 tree.
                Ok(()) => walk::pids(&tree.dir, &mut sweep.done, pace).await.unwrap_or_else(|error| sweep.note(error)),
                // No cgroup.kill (a kernel below 5.14, or a threaded cgroup), or the directory is gone from this tree only.
                Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => {}
                Err(errno) => sweep.note(Error::kernel(format!("write \"1\" to {}/cgroup.kill", tree.dir.path()), errno)),
            }
        }
        for pass in 0..PASSES_MAX {
            let before = sweep.done.len();
            for tree in &self.trees {
                sweep.pass(&tree.dir, pace).await;
            }
            if sweep.done.len() == before {
                return sweep.end();
            }
            if pass == 0 {
                // Not being able to freeze only makes it a race; one that the passes win unless the group forks without limit.
                let _ = self.freeze_step(0);
            }
        }
        Err(Error::new(ErrorKind::Internal, "processes kept appearing in the cgroup while it was being killed"))
    }

    /// [`Cgroup::kill`], repeated until the cgroup is empty and the first process has ended. Blocks; for the `delete` command, not for a daemon.
    ///
    /// # Errors
    /// When `timeout` passes first: a process in uninterruptible sleep does not die. Where the kernel refuses.
    pub fn kill_and_wait(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            let killed = self.kill();
            let (pids, seen) = self.everybody();
            let Some(first) = pids.first() else { return killed.and(seen) };
            if Instant::now() >= deadline {
                let message =
                    format!("{} process(es), the first {first}, still alive {} ms after SIGKILL", pids.len(), timeout.as_millis());
                return Err(Error::new(ErrorKind::Internal, message));
            }
            let held: Vec<OwnedFd> = pids.iter().take(CHUNK).filter_map(|pid| hold(*pid).ok()).collect();
            let round = deadline.min(Instant::now() + AGAIN);
            for fd in &held {
                wait_exit(fd.as_fd(), round.saturating_duration_since(Instant::now()))?;
            }
            if held.is_empty() {
                // Only processes whose leader has exited, which no pidfd of this kernel stands for.
                wait(None, Duration::from_millis(1))?;
            }
        }
    }

    /// Process ids inside according to any hierarchy, and the first process, as far as can be seen.
    pub(super) fn everybody(&self) -> (BTreeSet<i32>, Result<()>) {
        let mut pids = BTreeSet::new();
        let seen: Vec<_> = self.trees.iter().map(|tree| at_once(walk::pids(&tree.dir, &mut pids, &mut AtOnce))).collect();
        self.first.iter().for_each(|first| first.add_to(&mut pids));
        (pids, seen.into_iter().collect())
    }
}

/// One signal for everybody, once for each.
struct Sweep {
    signal: i32,
    done: BTreeSet<i32>,
    failure: Option<Error>,
}

impl Sweep {
    fn new(signal: i32) -> Self {
        Self { signal, done: BTreeSet::new(), failure: None }
    }

    fn note(&mut self, failure: Error) {
        self.failure.get_or_insert(failure);
    }

    fn end(self) -> Result<()> {
        self.failure.map_or(Ok(()), Err)
    }

    /// Sends it to all in the cgroup and below who have not got it.
    async fn pass(&mut self, root: &Dir, pace: &mut impl Pace) {
        let mut walk = match Walk::of(root) {
            Ok(walk) => walk,
            Err(Errno::NOENT | Errno::NODEV) => return,
            Err(errno) => return self.note(Error::kernel(format!("look into cgroup {}", root.path()), errno)),
        };
        while let Some(step) = walk.next() {
            if matches!(step, Step::Entered) {
                self.visit(walk.dir(), pace).await;
            }
            pace.rest().await;
        }
        if let Err(error) = walk.end() {
            self.note(error);
        }
    }

    async fn visit(&mut self, dir: &Dir, pace: &mut impl Pace) {
        let pids = match dir.own_pids() {
            Ok(pids) => pids,
            Err(error) => return self.note(error),
        };
        let mut new = pids.into_iter().filter(|pid| !self.done.contains(pid)).collect::<Vec<_>>();
        while !new.is_empty() {
            let mut held = Vec::new();
            while let Some(pid) = new.last().filter(|_| held.len() < CHUNK) {
                match hold(*pid) {
                    Ok(pidfd) => held.push((*pid, pidfd)),
                    // As many as this process may have.
                    Err(Errno::MFILE | Errno::NFILE) if !held.is_empty() => break,
                    // It has ended.
                    Err(Errno::SRCH | Errno::NOENT | Errno::INVAL) => {}
                    Err(errno) => self.note(Error::kernel(format!("pidfd_open of process {pid}"), errno)),
                }
                new.pop();
            }
            pace.rest().await;
            self.send(dir, held);
            pace.rest().await;
        }
    }

    fn send(&mut self, dir: &Dir, held: Vec<(i32, OwnedFd)>) {
        let inside: BTreeSet<i32> = match dir.own_pids() {
            Ok(pids) => pids.into_iter().collect(),
            Err(error) => return self.note(error),
        };
        for (pid, pidfd) in held.into_iter().filter(|(pid, _)| inside.contains(pid)) {
            match send_signal(pidfd.as_fd(), self.signal) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => self.note(Error::kernel(format!("send signal {} to process {pid}", self.signal), errno)),
            }
            self.done.insert(pid);
        }
    }
}

/// Fails for a process that is gone, or a thread that is no leader.
pub(super) fn hold(pid: i32) -> Result<OwnedFd, Errno> {
    rustix::process::pidfd_open(Pid::from_raw(pid).ok_or(Errno::SRCH)?, PidfdFlags::empty())
}
