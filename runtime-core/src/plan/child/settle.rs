//! Binds that follow the host's mounts: nothing that is mounted while they are made may be lost.
//!
//! What the host mounts below a source reaches a clone of it only once the clone is attached: before that it is in no mount namespace. So
//! a clone is attached first, somewhere where that has no effect, and looked at then. Moved from there it follows all the time.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

use super::mounts::{is_directory, slash};
use super::{Child, Failed, State, UNSETTLED, part};
use crate::plan::{Host, Slot, Step};
use crate::sys::mount::set_attributes;
use crate::sys::process;

/// How often the host's mounts may change during the few system calls of one try.
const TRIES: u32 = 64;

impl Child<'_> {
    pub(super) fn watch_host(&mut self, host: &Host) -> Result<(), Failed> {
        let open = |path, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
        self.fill(host.table, open(c"/proc/self/mountinfo", OFlags::RDONLY)?)?;
        self.fill(host.namespace, open(c"/proc/self/ns/mnt", OFlags::RDONLY)?)?;
        self.fill(host.root, slash()?)?;
        self.fill(host.process, open(c"/proc/self", OFlags::PATH | OFlags::DIRECTORY)?)
    }

    pub(super) fn settle(&mut self, host: &Host, mount: Slot, again: &[Step], state: &mut State) -> Result<(), Failed> {
        // Nothing can be mounted below a file.
        if !is_directory(self.fd(mount)?)? {
            return Ok(());
        }
        for _ in 0..TRIES {
            // What an earlier bind has seen happened after this clone, too.
            if state.host_changed {
                self.make_again(host, again, state)?;
            }
            // The mount on `/` is private or a slave, so that nobody else sees this one.
            move_mount(self.fd(mount)?, c"", rustix::fs::CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(part(2))?;
            if !self.has_changed(host)? {
                return Ok(());
            }
            state.host_changed = true;
            self.detach(mount).map_err(part(3))?;
        }
        Err(Failed { detail: UNSETTLED, errno: Errno::AGAIN })
    }

    fn detach(&self, mount: Slot) -> Result<(), Errno> {
        let mount = self.fd(mount)?;
        // What is unmounted below a shared mount is unmounted at its peers, too, and these are the host's (mount_namespaces(7)).
        set_attributes(mount, c"", true, 0, 0, libc::MS_PRIVATE)?;
        rustix::process::fchdir(mount)?;
        unmount(c".", UnmountFlags::DETACH)?;
        rustix::process::chdir(c"/")
    }

    /// Goes back to the host's mounts for the steps that open the source.
    fn make_again(&mut self, host: &Host, again: &[Step], state: &mut State) -> Result<(), Failed> {
        let own = rustix::fs::openat(self.fd(host.process)?, c"ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let own_root = slash()?;
        self.return_to_host(host)?;
        // What has happened so far will be in the new clone.
        self.has_changed(host)?;
        for step in again {
            self.perform(step, state)?;
        }
        process::setns(own.as_fd(), libc::CLONE_NEWNS)?;
        Ok(change_root(own_root.as_fd())?)
    }

    pub(super) fn return_to_host(&self, host: &Host) -> Result<(), Failed> {
        process::setns(self.fd(host.namespace)?, libc::CLONE_NEWNS)?;
        Ok(change_root(self.fd(host.root)?)?)
    }

    /// Since the last time it was asked.
    fn has_changed(&self, host: &Host) -> Result<bool, Errno> {
        let table = self.fd(host.table)?;
        let mut polled = [PollFd::from_borrowed_fd(table, PollFlags::PRI)];
        retry_on_intr(|| poll(&mut polled, Some(&Timespec::default())))?;
        Ok(polled[0].revents().intersects(PollFlags::PRI | PollFlags::ERR))
    }
}

/// setns(2) leaves a process at the top of whatever is mounted on the namespace's root.
pub(super) fn change_root(root: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::process::fchdir(root)?;
    rustix::process::chroot(c".")
}
