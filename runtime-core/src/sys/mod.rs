//! Raw system calls, each with a safe face: the calls that rustix lacks. The only folder of the workspace that says `unsafe`.
//!
//! Rules of the folder: descriptors come and go as `OwnedFd`/`BorrowedFd`, paths as `&CStr`, and every descriptor that is made here is
//! close-on-exec from birth. Nothing here allocates, so everything may be called between clone and execve.

#![allow(unsafe_code)]

pub mod bpf;
pub mod fork;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod probe;
pub mod process;
pub mod security;
pub mod socket;
pub mod tty;
pub mod tuning;

use rustix::io::Errno;

/// The result of `libc::syscall` as a `Result`.
fn check(value: libc::c_long) -> Result<libc::c_long, Errno> {
    if value < 0 { Err(last_errno()) } else { Ok(value) }
}

fn last_errno() -> Errno {
    // SAFETY: `__errno_location` has no preconditions and returns this thread's own, always valid, slot.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}
