//! The init of a pid namespace that the containers of a pod share: a program of its own, so that nothing of the daemon's memory is in it.
//!
//! It is executed in an empty mount namespace, without rights, and does nothing. Its parent is the daemon.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;

use crate::error::{Context, Result};
use crate::sys::process;

/// The program's name and its only argument: what people see who list the processes of the pod.
pub const NAME: &str = "coracle-pod";

/// This program, to be executed under [`NAME`].
///
/// # Errors
/// There is no procfs.
pub fn program() -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::open(c"/proc/self/exe", flags, Mode::empty()).context(|| "open /proc/self/exe")
}

/// The life of the process: until it is killed, or the daemon has ended.
pub fn hold() -> ! {
    let _ = process::forbid_dump();
    // The kernel names a process that was executed by descriptor after the descriptor.
    let _ = rustix::thread::set_name(&CString::new(NAME).unwrap_or_default());
    // Nobody else is left to kill it should the launcher die with the daemon.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let _ = process::close_from(0);
    // The kernel reaps the orphans of the pod then, and wakes nobody for it (wait(2), "NOTES").
    process::leave_children_to_kernel();
    loop {
        process::pause();
    }
}
