//! What is born in a pid namespace that others share.
//!
//! A process in that namespace can see a new process from its first moment, and through `/proc/<pid>` its root, working directory,
//! descriptors, mounts and network. So the steps that need the host are done by a process outside, which has no number there; the one that is born
//! inside has what it keeps until execve(2), and nothing else.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::retry_on_intr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::{Child, Failed, State};
use crate::plan::report;
use crate::plan::{Filesystem, Slot};
use crate::sys::process::{self as calls, Cloned};

/// Where the process that makes a procfs has its socket, and for a moment the namespace.
const SOCKET: i32 = 0;
const NAMESPACE: i32 = 1;

impl Child<'_> {
    /// The old process ends at once, so that the parent sees the end of the report when the new one executes its program.
    pub(super) fn birth(&self, state: &State) -> Result<(), Failed> {
        match calls::clone_as_sibling(0, None)? {
            Cloned::Parent(..) => calls::exit(0),
            Cloned::Child => {}
        }
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        Ok(report::child::born(self.report(state)?, own.as_fd())?)
    }

    /// A procfs shows the pid namespace of the process that makes it.
    pub(super) fn proc_of(
        &mut self,
        namespace: Slot,
        isolate: i32,
        filesystem: &Filesystem,
        mount: Slot,
        state: &mut State,
    ) -> Result<(), Failed> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let outside = match calls::clone_as_child(0)? {
            Cloned::Child => {
                let failed = self.make_proc(theirs.as_fd(), namespace, isolate, filesystem, state);
                if let Err(Failed { detail, errno }) = failed {
                    report::child::failed(calls::borrow_number(SOCKET), 0, detail, errno, &state.text[..state.text_length]);
                }
                calls::exit(0)
            }
            Cloned::Parent(_, pidfd) => pidfd,
        };
        drop(theirs);
        let made = report::child::handed(ours.as_fd(), &mut state.text, &mut state.text_length);
        retry_on_intr(|| calls::wait(outside.as_fd()))?;
        self.fill(mount, made?)
    }

    /// In a process of its own, outside of the namespace: leaves everything of the host's behind, and has a child make the procfs.
    fn make_proc(
        &self,
        socket: BorrowedFd<'_>,
        namespace: Slot,
        isolate: i32,
        filesystem: &Filesystem,
        state: &mut State,
    ) -> Result<(), Failed> {
        calls::setns(self.stub, libc::CLONE_NEWNS)?;
        if isolate != 0 {
            calls::unshare(isolate)?;
        }
        let namespace = rustix::io::fcntl_dupfd_cloexec(self.fd(namespace)?, NAMESPACE + 1)?;
        calls::duplicate_onto(socket, SOCKET, true)?;
        calls::duplicate_onto(namespace.as_fd(), NAMESPACE, true)?;
        calls::close_from(NAMESPACE.cast_unsigned() + 1)?;
        calls::setns(calls::borrow_number(NAMESPACE), libc::CLONE_NEWPID)?;
        calls::close_number(NAMESPACE.cast_unsigned());
        match calls::clone_as_child(0)? {
            Cloned::Child => {
                let socket = calls::borrow_number(SOCKET);
                match self.make_filesystem(None, filesystem, state) {
                    Ok(tree) => drop(report::child::descriptor(socket, tree.as_fd())),
                    Err(Failed { detail, errno }) => report::child::failed(socket, 0, detail, errno, &state.text[..state.text_length]),
                }
                calls::exit(0)
            }
            Cloned::Parent(_, pidfd) => {
                retry_on_intr(|| calls::wait(pidfd.as_fd()))?;
                Ok(())
            }
        }
    }
}
