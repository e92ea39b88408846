//! Removing the cgroup with all that was made below it.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Cgroup;
use super::dir::Dir;
use super::tree::Tree;
use super::watch::wait;
use crate::error::{Error, ErrorKind, Result};

/// A process that has exited keeps its cgroup busy until the kernel is done with it; version 1 does not say when.
const RETRY: Duration = Duration::from_millis(5);

impl Cgroup {
    /// One attempt to remove the directory of every hierarchy, nested ones first. False while something is still inside. Never blocks; what is
    /// gone is gone, so it may be called again at any time.
    ///
    /// # Errors
    /// Where the kernel refuses for another reason than being busy.
    pub fn try_remove(&self) -> Result<bool> {
        let mut removed = true;
        for tree in &self.trees {
            removed &= try_remove(tree)?;
        }
        Ok(removed)
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

fn try_remove(tree: &Tree) -> Result<bool> {
    let Some((parent, name)) = tree.parent()? else { return Ok(true) };
    if rmdir(&parent, name)? {
        return Ok(true);
    }
    for relative in tree.dir.descendants()?.iter().rev() {
        let (above, name) = relative.rsplit_once('/').unwrap_or(("", relative));
        match tree.dir.open(above) {
            Ok(above) => drop(rmdir(&above, name)?),
            Err(Errno::NOENT | Errno::NODEV) => {}
            Err(errno) => return Err(Error::kernel(format!("open {}/{above}", tree.dir.path()), errno)),
        }
    }
    rmdir(&parent, name)
}

fn rmdir(parent: &Dir, name: &str) -> Result<bool> {
    match parent.remove(name) {
        Ok(()) | Err(Errno::NOENT | Errno::NODEV) => Ok(true),
        Err(Errno::BUSY | Errno::NOTEMPTY) => Ok(false),
        Err(errno) => Err(Error::kernel(format!("rmdir {}/{name}", parent.path()), errno)),
    }
}
