//! The program's own file, out of its containers' reach (CVE-2019-5736).
//!
//! Until execve(2) a new process of a container runs this program, and a process that shares its pid namespace and has CAP_SYS_PTRACE may
//! open its `/proc/<pid>/exe`. What it finds there must never lead to a file that it can write to. So the program executes itself once more
//! from a mount of nothing but its own file, which is read-only and in no mount namespace:
//!
//! * The mount is made with open_tree(2) and its only descriptor closes at the execve. Then the kernel takes it out of the anonymous mount
//!   namespace that it was made in, and it lives on only because the running program is on it. mount_setattr(2) and open_tree(2) refuse a
//!   mount that is in no namespace, also for a process that holds a descriptor on it and has CAP_SYS_ADMIN: read-only is for ever.
//! * Whatever is opened through the link is opened on that mount, so every way to write is `EROFS`, now and after the last process ended.
//! * Nothing is copied (as a memfd would be: its whole size, per pod) and no filesystem is made (as an overlay would be); every process
//!   shares the page cache of the file on disk.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;

use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::{Context, Error, Result};
use crate::sys::mount::{attr, set_attributes};
use crate::sys::process::{StringArray, execve_file};

const OWN: &std::ffi::CStr = c"/proc/self/exe";

/// Whether the program runs from a mount of its own: such a mount's root is the file, so the link reads `/`, which no path of a file does.
///
/// # Errors
/// There is no procfs.
pub fn is_sealed() -> Result<bool> {
    let path = rustix::fs::readlink(OWN, Vec::new()).context(|| "readlink /proc/self/exe")?;
    Ok(path.as_bytes() == b"/")
}

/// Makes sure that the program runs from a read-only mount of its own: executes it again with the same arguments and environment if it does
/// not. Call it first: everything in memory is gone, and so is every descriptor that is close-on-exec.
///
/// # Errors
/// The mount could not be made (`EPERM` without CAP_SYS_ADMIN) or not be executed from.
pub fn ensure() -> Result<()> {
    if is_sealed()? {
        // The kernel names a process that was executed by descriptor after the descriptor.
        let name = std::env::args_os().next().map(OsStringExt::into_vec).unwrap_or_default();
        let name = name.rsplit(|&b| b == b'/').next().unwrap_or_default();
        let name = CString::new(name).unwrap_or_default();
        return rustix::thread::set_name(&name).context(|| "prctl PR_SET_NAME");
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let program = open_tree(rustix::fs::CWD, OWN, flags).context(|| "open_tree /proc/self/exe")?;
    set_attributes(program.as_fd(), c"", false, attr::RDONLY | attr::NOSUID | attr::NODEV, 0, libc::MS_PRIVATE)
        .context(|| "mount_setattr /proc/self/exe")?;
    let arguments = strings(std::env::args_os().map(OsStringExt::into_vec));
    let environment = strings(std::env::vars_os().map(|(name, value)| [name.into_vec(), value.into_vec()].join(&b'=')));
    Err(Error::kernel("execute /proc/self/exe again, sealed", execve_file(program.as_fd(), &arguments, &environment)))
}

/// What the kernel gave as C strings holds no NUL.
fn strings(all: impl Iterator<Item = Vec<u8>>) -> StringArray {
    StringArray::new(all.filter_map(|text| CString::new(text).ok()).collect())
}
