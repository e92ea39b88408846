//! Removing the cgroup with all that was made below it.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Cgroup;
use super::dir::Dir;
use super::pace::{AtOnce, Pace, at_once};
use super::tree::Tree;
use super::walk::{Step, Walk};
use super::watch::wait;
use crate::error::{Context, Error, ErrorKind, Result};

/// A process that has exited keeps its cgroup busy until the kernel is done with it; version 1 does not say when.
const RETRY: Duration = Duration::from_millis(5);

impl Cgroup {
    /// One attempt to remove the directory of every hierarchy, nested ones first. False while something is still inside. Never waits; what is
    /// gone is gone, so it may be called again at any time.
    ///
    /// # Errors
    /// Where the kernel refuses for another reason than being busy, after all that can be removed is.
    pub fn try_remove(&self) -> Result<bool> {
        at_once(self.try_remove_by(&mut AtOnce))
    }

    /// [`Cgroup::try_remove`] at this pace.
    ///
    /// # Errors
    /// As [`Cgroup::try_remove`].
    pub async fn try_remove_by(&self, pace: &mut impl Pace) -> Result<bool> {
        let mut removed = Ok(true);
        for tree in &self.trees {
            match (try_remove(tree, pace).await, &mut removed) {
                (Ok(gone), Ok(all)) => *all &= gone,
                (Err(error), Ok(_)) => removed = Err(error),
                (_, Err(_)) => {}
            }
        }
        removed
    }

    /// [`Cgroup::try_remove`] until it succeeds. Blocks; for the `delete` command.
    ///
    /// # Errors
    /// `FailedPrecondition` when `timeout` passes first.
    pub fn remove(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let events = self.events()?;
        while !self.try_remove()? {
            if Instant::now() >= deadline {
                let path = self.trees.first().map_or("", |tree| tree.dir.path());
                let message = format!("cgroup {path} is still busy after {} ms", timeout.as_millis());
                return Err(Error::new(ErrorKind::FailedPrecondition, message));
            }
            wait(events.as_ref().map(|watch| watch.as_fd()), RETRY)?;
            if let Some(events) = &events {
                events.acknowledge()?;
            }
        }
        Ok(())
    }
}

async fn try_remove(tree: &Tree, pace: &mut impl Pace) -> Result<bool> {
    let Some((parent, name)) = tree.parent()? else { return Ok(true) };
    if rmdir(&parent, name)? {
        return Ok(true);
    }
    let mut walk = match Walk::of(&tree.dir) {
        Err(Errno::NOENT | Errno::NODEV) => return rmdir(&parent, name),
        result => result.context(|| format!("look into cgroup {}", tree.dir.path()))?,
    };
    while let Some(step) = walk.next() {
        if let Step::Left(name) = step
            && let Err(error) = rmdir(walk.dir(), &*name)
        {
            walk.note(error);
        }
        pace.rest().await;
    }
    let walked = walk.end();
    let removed = rmdir(&parent, name)?;
    // What could not be looked at matters only if it is still there.
    if removed { Ok(true) } else { walked.map(|()| false) }
}

fn rmdir(parent: &Dir, name: impl rustix::path::Arg + Copy) -> Result<bool> {
    match parent.remove(name) {
        Ok(()) | Err(Errno::NOENT | Errno::NODEV) => Ok(true),
        Err(Errno::BUSY | Errno::NOTEMPTY) => Ok(false),
        Err(errno) => Err(Error::kernel(format!("rmdir {}/{}", parent.path(), name.to_string_lossy()), errno)),
    }
}
