//! clone3(2) for the yardstick, which has children of its own; the runtime's own children are born as siblings.
#![allow(unsafe_code, reason = "no crate offers clone3 with namespaces, a cgroup and a pidfd")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use runtime_core::sys::process::Cloned;
use rustix::io::Errno;

/// clone3(2), Linux 5.7; the constant of the libc crate overflows its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A copy of the caller, which must be single-threaded, with the namespaces of `flags`, born inside `cgroup` if one is given.
///
/// # Errors
/// The errno of clone3(2).
pub fn clone(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned, Errno> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all-zero is a valid `clone_args`: no stack, no tls, no tid set.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` outlives the call and is as long as is said; without CLONE_VM the child runs on its own copy of this stack.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) } {
        0 => Ok(Cloned::Child),
        // SAFETY: the kernel stored a new descriptor in `pidfd` that nobody else owns.
        pid if pid > 0 => Ok(Cloned::Parent(pid as libc::pid_t, unsafe { OwnedFd::from_raw_fd(pidfd) })),
        // SAFETY: this thread's own errno, which is always valid.
        _ => Err(Errno::from_raw_os_error(unsafe { *libc::__errno_location() })),
    }
}
