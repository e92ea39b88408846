//! Freezing and thawing, in steps for an event loop or in one blocking call.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::dir::Dir;
use super::host::Version;
use super::pace::{AtOnce, Pace, at_once};
use super::tree::Tree;
use super::watch::wait;
use super::{Cgroup, gone, v1, v2, walk};
use crate::error::{Context, Error, ErrorKind, Result};

/// How far freezing got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezeStep {
    /// Every process stands still.
    Frozen,
    /// Take the next step when [`Cgroup::events`] reports one, at the latest after this time.
    Pending(Duration),
}

/// v1 reports no event; a freeze takes the time its processes need to get out of system calls.
const V1_RETRY: Duration = Duration::from_millis(1);
/// After this many steps in FREEZING the group is thawed for a moment: a kernel of version 1 can get stuck while processes keep appearing.
const V1_STEPS_PER_THAW: u32 = 50;
const V1_THAW: Duration = Duration::from_millis(10);
/// Only a bound: v2 reports the event.
const V2_RETRY: Duration = Duration::from_millis(100);

impl Cgroup {
    /// One step of freezing; `step` counts them from 0. Never blocks. Whoever gives up must [`Cgroup::thaw`], for the wish stays.
    ///
    /// # Errors
    /// `Unimplemented` where the host has no freezer; `NotFound` when the cgroup is gone.
    pub fn freeze_step(&self, step: u32) -> Result<FreezeStep> {
        let message = "cannot freeze: this host has neither the freezer controller nor cgroup v2";
        let tree = self.freezer().ok_or_else(|| self.gone("freezer").unwrap_or_else(|| Error::new(ErrorKind::Unimplemented, message)))?;
        if tree.dir.is_gone() {
            return Err(gone(tree.dir.path()));
        }
        match tree.version {
            Version::V1 => freeze_v1(&tree.dir, step),
            Version::V2 => freeze_v2(&tree.dir, step),
        }
    }

    /// Freezes, and waits for it.
    ///
    /// # Errors
    /// Those of [`Cgroup::freeze_step`], and when `timeout` passes first. It is thawed then.
    pub fn freeze(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let events = self.events()?;
        let mut step = 0;
        let result = loop {
            if let Some(events) = &events {
                events.acknowledge()?;
            }
            match self.freeze_step(step) {
                Ok(FreezeStep::Frozen) => return Ok(()),
                Ok(FreezeStep::Pending(pause)) if Instant::now() < deadline => wait(events.as_ref().map(|watch| watch.as_fd()), pause)?,
                Ok(FreezeStep::Pending(_)) => {
                    break Error::new(ErrorKind::Internal, format!("not frozen after {} ms", timeout.as_millis()));
                }
                Err(error) => break error,
            }
            step += 1;
        };
        let thawed = self.thaw();
        Err(thawed.err().unwrap_or(result))
    }

    /// Lets the processes run. What is frozen below stays frozen: a process of the container may have frozen it. Of a cgroup that is not frozen, or gone,
    /// nothing is asked.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn thaw(&self) -> Result<()> {
        let thawed = [self.freezer_v1().map(|tree| thaw_v1(&tree.dir)), self.unified().map(|tree| thaw_v2(&tree.dir))];
        thawed.into_iter().flatten().collect()
    }

    /// Lets killed processes die: thaws the cgroup and, on version 1, where a frozen process does not die, every cgroup below it.
    ///
    /// # Errors
    /// Where the kernel refuses, after all that can be thawed is.
    pub async fn thaw_all_by(&self, pace: &mut impl Pace) -> Result<()> {
        let thawed = self.thaw();
        let Some(tree) = self.freezer_v1() else { return thawed };
        thawed.and(walk::each(&tree.dir, pace, thaw_v1).await)
    }

    /// [`Cgroup::thaw_all_by`] at once.
    ///
    /// # Errors
    /// As [`Cgroup::thaw_all_by`].
    pub fn thaw_all(&self) -> Result<()> {
        at_once(self.thaw_all_by(&mut AtOnce))
    }

    /// Whether the cgroup is frozen, or about to be, by whomever: processes in it stand still.
    ///
    /// # Errors
    /// Where the state cannot be read; one that is gone is not frozen.
    pub fn is_frozen(&self) -> Result<bool> {
        let frozen_v1 = self.freezer_v1().map_or(Ok(false), |tree| is_frozen_v1(&tree.dir))?;
        Ok(frozen_v1 || self.unified().map_or(Ok(false), |tree| is_frozen_v2(&tree.dir))?)
    }

    pub(super) fn freezer_v1(&self) -> Option<&Tree> {
        self.home("freezer").filter(|tree| tree.version == Version::V1)
    }

    fn freezer(&self) -> Option<&Tree> {
        self.home("freezer").or_else(|| self.unified())
    }
}

fn thaw_v1(dir: &Dir) -> Result<()> {
    if !is_frozen_v1(dir)? {
        return Ok(());
    }
    match dir.write("freezer.state", "THAWED") {
        Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        result => result.context(|| format!("thaw {}", dir.path())),
    }
}

fn thaw_v2(dir: &Dir) -> Result<()> {
    if v2::freeze_wanted(dir)? { dir.put("cgroup.freeze", "0") } else { Ok(()) }
}

fn is_frozen_v1(dir: &Dir) -> Result<bool> {
    Ok(dir.read_if_any("freezer.state")?.is_some_and(|state| state.trim() != "THAWED"))
}

/// An ancestor may be frozen in its place.
fn is_frozen_v2(dir: &Dir) -> Result<bool> {
    Ok(v2::freeze_wanted(dir)? || v2::events(dir)?.frozen)
}

fn freeze_v1(dir: &Dir, step: u32) -> Result<FreezeStep> {
    if step % V1_STEPS_PER_THAW == V1_STEPS_PER_THAW - 1 {
        dir.put("freezer.state", "THAWED")?;
        return Ok(FreezeStep::Pending(V1_THAW));
    }
    dir.put("freezer.state", "FROZEN")?;
    let frozen = v1::freezer_state(dir)? == v1::FreezerState::Frozen;
    Ok(if frozen { FreezeStep::Frozen } else { FreezeStep::Pending(V1_RETRY) })
}

fn freeze_v2(dir: &Dir, step: u32) -> Result<FreezeStep> {
    if step == 0 {
        dir.write("cgroup.freeze", "1").context(|| format!("freeze {}", dir.path()))?;
    }
    Ok(if v2::events(dir)?.frozen { FreezeStep::Frozen } else { FreezeStep::Pending(V2_RETRY) })
}
