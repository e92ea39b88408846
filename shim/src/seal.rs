//! The shim's own program, out of reach of its containers.
//!
//! What becomes a container is a fork of this program until it executes its own, and may execute `/proc/self/exe`, or a script whose
//! interpreter that is: then a process of the container has the shim's file as its program and may open it for writing as soon as nobody
//! runs it (CVE-2019-5736). So the shim runs from a read-only mount of its file that is attached nowhere: whoever opens the file by way of
//! `/proc/<pid>/exe` gets it through that mount.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;

use runtime_core::error::{Context, Error, Result};
use runtime_core::sys::mount::{attr, set_attributes};
use rustix::fs::StatVfsMountFlags;
use rustix::mount::{OpenTreeFlags, open_tree};

const PROGRAM: &std::ffi::CStr = c"/proc/self/exe";

/// Starts the program again, from a read-only mount, with the same arguments and environment; comes back if it runs from one.
///
/// # Errors
/// The step that failed.
pub fn program() -> Result<()> {
    let found = rustix::fs::statvfs(PROGRAM).context(|| "stat /proc/self/exe")?;
    if found.f_flag.contains(StatVfsMountFlags::RDONLY) {
        // The kernel named the process after a descriptor.
        return rustix::thread::set_name(c"containerd-shim").context(|| "set the process's name");
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let file = open_tree(rustix::fs::CWD, PROGRAM, flags).context(|| "clone the mount of /proc/self/exe")?;
    set_attributes(std::os::fd::AsFd::as_fd(&file), c"", false, attr::RDONLY, 0, 0)
        .context(|| "make the mount of /proc/self/exe read-only")?;
    let arguments: Vec<CString> = std::env::args_os().map(text).collect::<Result<_>>()?;
    let environment: Vec<CString> = std::env::vars_os()
        .map(|(mut key, value)| {
            key.push("=");
            key.push(value);
            text(key)
        })
        .collect::<Result<_>>()?;
    match nix::unistd::fexecve(&file, &arguments, &environment) {
        Ok(never) => match never {},
        Err(errno) => Err(Error::from_errno("execute /proc/self/exe from a read-only mount", errno as i32)),
    }
}

fn text(string: OsString) -> Result<CString> {
    CString::new(string.into_vec()).map_err(|_| Error::invalid("an argument or a variable holds a NUL"))
}
