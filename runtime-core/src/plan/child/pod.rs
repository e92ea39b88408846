//! What a pod shares: the namespaces that one process makes for others, and the mounts that they take from there.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::mounts::slash;
use super::settle::change_root;
use super::{Child, Failed, part};
use crate::plan::Slot;
use crate::sys::process;

impl Child<'_> {
    /// Before Linux 6.15 only what is mounted in the caller's own mount namespace can be cloned, so that the process goes there for it.
    pub(super) fn take_from(&mut self, namespace: Slot, path: &CStr, mount: Slot) -> Result<(), Failed> {
        let own = rustix::fs::open(c"/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let own_root = slash()?;
        process::setns(self.fd(namespace)?, libc::CLONE_NEWNS).map_err(part(1))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let taken = open_tree(rustix::fs::CWD, path, flags).map_err(part(2))?;
        process::setns(own.as_fd(), libc::CLONE_NEWNS)?;
        change_root(own_root.as_fd())?;
        self.fill(mount, taken)
    }

    pub(super) fn open_namespace(&mut self, proc: Slot, path: &CStr, namespace: Slot) -> Result<(), Failed> {
        let opened = rustix::fs::openat(self.fd(proc)?, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        self.fill(namespace, opened)
    }
}
