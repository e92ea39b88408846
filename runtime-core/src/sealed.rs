//! The program's own file, out of its containers' reach (CVE-2019-5736).
//!
//! Until execve(2) a new process of a container runs this program, and a process that shares its pid namespace and has CAP_SYS_PTRACE may
//! open its `/proc/<pid>/exe`; so may one whose file begins with `#!/proc/self/exe`. What is found there must never lead to a file that can be
//! written to. So the program executes itself once more from a file that no process can write to:
//!
//! 1. From a read-only mount of nothing but its own file. The mount is made with open_tree(2) and its only descriptor closes at the execve.
//!    Then the kernel takes it out of the anonymous mount namespace that it was made in, and it lives on only because the running program is
//!    on it. mount_setattr(2) and open_tree(2) refuse a mount that is in no namespace, also for a process that holds a descriptor on it and has
//!    CAP_SYS_ADMIN: the mount stays read-only. Whatever is opened through the link is opened on that mount, so every way to write is `EROFS`, now
//!    and after the last process ended.
//! 2. Where that is not allowed (it takes CAP_SYS_ADMIN over the mount namespace that the program lies in, which a user namespace without a
//!    mount namespace of its own does not give), from a copy in memory whose seals forbid every change, as runc does it (memfd_create(2),
//!    F_SEAL_WRITE of fcntl(2)).
//!
//! The mount is preferred though every process shares the page cache of the file on disk, which a fault of the kernel's like CVE-2022-0847
//! lets a process that can read the file change. A copy does not end such a fault: it reaches every file that a container can read, the host's
//! files behind its read-only mounts and the layers of all images among them. And a copy costs its whole size, in memory that cannot be
//! dropped: for each pod, or for the node once if some process or a file that is trusted by its path kept it for all, which would be one more
//! thing to protect. runc's overlay, which it prefers to its copy, shares the page cache as well.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::{Context, Error, Result};
use crate::sys::mount::{attr, set_attributes};
use crate::sys::process::{StringArray, execve_file_again};

const OWN: &std::ffi::CStr = c"/proc/self/exe";
const COPY: &std::ffi::CStr = c"coracle";
/// How the link to a memfd begins (`dentry_operations` of the kernel's mm/shmem.c).
const COPY_LINK: &[u8] = b"/memfd:";
const SEALS: SealFlags = SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// Whether the program runs from a read-only mount of its own, whose root is the file, so that the link reads `/`, which no path of a file
/// does; or from a sealed copy in memory.
///
/// # Errors
/// There is no procfs.
pub fn is_sealed() -> Result<bool> {
    let path = rustix::fs::readlink(OWN, Vec::new()).context(|| "readlink /proc/self/exe")?;
    if path.as_bytes() == b"/" {
        let flags = rustix::fs::statvfs(OWN).context(|| "statvfs /proc/self/exe")?.f_flag;
        return Ok(flags.contains(StatVfsMountFlags::RDONLY));
    }
    if !path.as_bytes().starts_with(COPY_LINK) {
        return Ok(false);
    }
    let seals = rustix::fs::fcntl_get_seals(open_own()?).context(|| "seals of /proc/self/exe")?;
    Ok(seals.contains(SEALS))
}

/// Makes sure that the program is sealed: executes it again with the same arguments and environment if it is not. Call it first: everything in
/// memory is gone, and so is every descriptor that is close-on-exec.
///
/// # Errors
/// Neither the mount nor the copy could be made and executed.
pub fn ensure() -> Result<()> {
    if is_sealed()? {
        // The kernel names a process that was executed by descriptor after the descriptor.
        let name = std::env::args_os().next().map(OsStringExt::into_vec).unwrap_or_default();
        let name = name.rsplit(|&b| b == b'/').next().filter(|name| !name.is_empty()).unwrap_or(COPY.to_bytes());
        let name = CString::new(name).unwrap_or_default();
        return rustix::thread::set_name(&name).context(|| "prctl PR_SET_NAME");
    }
    let by_mount = own_mount().map_or_else(|error| error, |program| execute("a mount of its own", &program));
    let by_copy = sealed_copy().map_or_else(|error| error, |program| execute("a copy in memory", &program));
    Err(by_copy.context(by_mount))
}

fn own_mount() -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let program = open_tree(CWD, OWN, flags).context(|| "open_tree /proc/self/exe")?;
    set_attributes(program.as_fd(), c"", false, attr::RDONLY | attr::NOSUID | attr::NODEV, 0, libc::MS_PRIVATE)
        .context(|| "mount_setattr /proc/self/exe")?;
    Ok(program)
}

fn sealed_copy() -> Result<OwnedFd> {
    let mut program = File::from(open_own()?);
    let mut copy = File::from(executable_memory().context(|| "memfd_create")?);
    std::io::copy(&mut program, &mut copy).context(|| "copy /proc/self/exe into memory")?;
    rustix::fs::fchmod(&copy, Mode::from_raw_mode(0o555)).context(|| "chmod of a copy of /proc/self/exe")?;
    rustix::fs::fcntl_add_seals(&copy, SEALS).context(|| "seal a copy of /proc/self/exe")?;
    // What is open for writing cannot be executed.
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(|| "open a copy of /proc/self/exe")
}

/// Kernels before Linux 6.3 do not know the flag, and give what can be executed without it.
fn executable_memory() -> std::result::Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(COPY, flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(COPY, flags),
        result => result,
    }
}

fn open_own() -> Result<OwnedFd> {
    rustix::fs::open(OWN, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(|| "open /proc/self/exe")
}

fn execute(from: &str, program: &OwnedFd) -> Error {
    // What the kernel gave as C strings holds no NUL.
    let arguments = std::env::args_os().filter_map(|text| CString::new(text.into_vec()).ok()).collect();
    Error::kernel(format!("execute /proc/self/exe again from {from}"), execve_file_again(program.as_fd(), &StringArray::new(arguments)))
}
