//! Binds that follow the host's mounts: nothing that is mounted while they are made may be lost.
//!
//! What the host mounts below a source reaches a clone of it only once the clone is attached: before that it is in no mount namespace. So
//! a clone is attached first, somewhere where that has no effect, and looked at then. Moved from there it follows all the time.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

use super::attach::{MOVE, PINNED};
use super::mounts::{is_directory, slash};
use super::{Child, Failed, State, UNSETTLED, part};
use crate::plan::{Host, Slot, Step};
use crate::sys::mount::{holds_mount_namespace, set_attributes};
use crate::sys::process;

/// How often the host's mounts may change during the few system calls of one try.
const TRIES: u32 = 64;

impl Child<'_> {
    pub(super) fn open_host(&mut self, host: &Host, state: &mut State) -> Result<(), Failed> {
        let open = |path, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
        self.fill(host.namespace, open(c"/proc/self/ns/mnt", OFlags::RDONLY)?)?;
        self.fill(host.root, slash()?)?;
        self.fill(host.process, open(c"/proc/self", OFlags::PATH | OFlags::DIRECTORY)?)?;
        state.host = Some(*host);
        Ok(())
    }

    pub(super) fn watch_host(&mut self, host: &Host) -> Result<(), Failed> {
        self.fill(host.table, rustix::fs::open(c"/proc/self/mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    pub(super) fn settle(&mut self, host: &Host, mount: Slot, again: &[Step], state: &mut State) -> Result<(), Failed> {
        if self.fd(mount).is_err() {
            self.at_host(host, again, state)?;
        }
        // Nothing can be mounted below a file.
        if !is_directory(self.fd(mount)?)? {
            return Ok(());
        }
        // What an earlier bind has seen happened after this clone, too.
        let mut is_old = state.host_changed;
        for _ in 0..TRIES {
            if is_old {
                self.at_host(host, again, state)?;
            }
            // The mount on `/` is private or a slave, so that nobody else sees this one.
            match move_mount(self.fd(mount)?, c"", rustix::fs::CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH) {
                Err(Errno::LOOP) if !state.host_copied => {
                    (state.host_copied, is_old) = (true, true);
                    continue;
                }
                Err(Errno::LOOP) => return Err(Failed { detail: PINNED, errno: Errno::LOOP }),
                result => result.map_err(part(2))?,
            }
            if !state.host_copied && holds_mount_namespace(self.fd(mount)?)? {
                (state.host_copied, is_old) = (true, true);
                self.detach(mount).map_err(part(3))?;
                continue;
            }
            if !self.has_changed(host)? {
                return Ok(());
            }
            (state.host_changed, is_old) = (true, true);
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
    pub(super) fn at_host(&mut self, host: &Host, steps: &[Step], state: &mut State) -> Result<(), Failed> {
        let own = rustix::fs::openat(self.fd(host.process)?, c"ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let own_root = slash()?;
        self.return_to_host(host)?;
        if state.host_copied {
            process::unshare(libc::CLONE_NEWNS)?;
        }
        // What has happened so far will be in the new clone.
        if self.fd(host.table).is_ok() {
            self.has_changed(host)?;
        }
        for step in steps {
            self.perform(step, state)?;
        }
        process::setns(own.as_fd(), libc::CLONE_NEWNS)?;
        Ok(change_root(own_root.as_fd())?)
    }

    pub(super) fn return_to_host(&self, host: &Host) -> Result<(), Failed> {
        process::setns(self.fd(host.namespace)?, libc::CLONE_NEWNS)?;
        Ok(change_root(self.fd(host.root)?)?)
    }

    /// Attaches a mount. A mount namespace in it, which the kernel means to refuse (`mnt_ns_loop` of fs/namespace.c) and on Linux 6.18 refuses
    /// by chance, since the numbers by which it tells older ones are no longer given in order, is left out.
    pub(super) fn attach_without_namespaces(
        &mut self,
        slot: Slot,
        state: &mut State,
        attach: impl Fn(BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> Result<(), Failed> {
        let refused = |result| match result {
            Err(Errno::LOOP) => Err(Failed { detail: PINNED, errno: Errno::LOOP }),
            result => Ok(result.map_err(part(MOVE))?),
        };
        let is_recursive = of_host(&self.launch.plan.steps, slot);
        if is_recursive.is_none() || !self.is_namespace(slot, state)? {
            match attach(self.fd(slot)?) {
                Err(Errno::LOOP) => {}
                Ok(()) if is_recursive == Some(true) && holds_mount_namespace(self.fd(slot)?)? => self.detach(slot).map_err(part(MOVE))?,
                result => return refused(result),
            }
        }
        self.without_namespaces(slot, state)?;
        refused(attach(self.fd(slot)?))
    }

    /// Whether a mount is a namespace, of whatever kind.
    fn is_namespace(&self, mount: Slot, state: &State) -> Result<bool, Errno> {
        let Some(host) = state.host else { return Ok(false) };
        let device = |slot| Ok(rustix::fs::fstat(self.fd(slot)?)?.st_dev);
        Ok(device(mount)? == device(host.namespace)?)
    }

    /// Makes a mount of the host's once more, from a copy of the host's mount namespace: the kernel lets no mount namespace that is mounted
    /// somewhere into another one, for they could keep each other, and leaves them out of a copy (`copy_mnt_ns` of fs/namespace.c).
    pub(super) fn without_namespaces(&mut self, mount: Slot, state: &mut State) -> Result<(), Failed> {
        let failed = Failed { detail: PINNED, errno: Errno::LOOP };
        let (Some(host), Some(steps)) = (state.host, making(&self.launch.plan.steps, mount)) else { return Err(failed) };
        let copied = std::mem::replace(&mut state.host_copied, true);
        let made = self.at_host(&host, steps, state);
        state.host_copied = copied;
        made
    }

    /// Since the last time it was asked.
    fn has_changed(&self, host: &Host) -> Result<bool, Errno> {
        let table = self.fd(host.table)?;
        let mut polled = [PollFd::from_borrowed_fd(table, PollFlags::PRI)];
        retry_on_intr(|| poll(&mut polled, Some(&Timespec::default())))?;
        Ok(polled[0].revents().intersects(PollFlags::PRI | PollFlags::ERR))
    }
}

/// The steps that make a mount in sight of the host's.
fn making(steps: &[Step], mount: Slot) -> Option<&[Step]> {
    let clones = |step: &Step| matches!(step, Step::CloneTree { mount: made, .. } if *made == mount);
    let changes = |step: &Step| match step {
        Step::CloneTree { mount: changed, .. }
        | Step::Attributes { mount: changed, .. }
        | Step::BindFlags { mount: changed, .. }
        | Step::IdMap { mount: changed, .. } => *changed == mount,
        _ => false,
    };
    steps.iter().enumerate().find_map(|(index, step)| match step {
        Step::AtHost { steps, .. } | Step::Settle { again: steps, .. } if steps.iter().any(clones) => Some(steps.as_slice()),
        step if clones(step) => {
            let length = steps[index..].iter().take_while(|step| changes(step)).count();
            steps.get(index..index + length)
        }
        _ => None,
    })
}

/// Whether a mount of the host's may have others below; nothing for one that is not the host's.
fn of_host(steps: &[Step], mount: Slot) -> Option<bool> {
    match making(steps, mount)?.first()? {
        Step::CloneTree { recursive, .. } => Some(*recursive),
        _ => None,
    }
}

/// setns(2) leaves a process at the top of whatever is mounted on the namespace's root.
pub(super) fn change_root(root: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::process::fchdir(root)?;
    rustix::process::chroot(c".")
}
