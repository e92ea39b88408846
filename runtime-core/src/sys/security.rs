//! seccomp(2), keyctl(2), setdomainname(2): what rustix lacks of the calls that confine a process.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::check;

/// `struct sock_filter` (include/uapi/linux/filter.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Insn {
    /// What to do.
    pub code: u16,
    /// Insns to skip if a comparison holds.
    pub jt: u8,
    /// Insns to skip if it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// Loads a seccomp filter for the caller. `flags` are `SECCOMP_FILTER_FLAG_*`; with `SECCOMP_FILTER_FLAG_NEW_LISTENER` the answer is the number
/// of the listener's descriptor, which is close-on-exec.
///
/// # Errors
/// `EACCES` without no_new_privs and CAP_SYS_ADMIN, `EINVAL` for a bad program or flag, `EBUSY` if an earlier filter has a listener.
pub fn load_filter(program: &[Insn], flags: u32) -> Result<i32, Errno> {
    #[repr(C)]
    struct Program {
        length: libc::c_ushort,
        filter: *const Insn,
    }
    const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
    let length = libc::c_ushort::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let program = Program { length, filter: program.as_ptr() };
    // SAFETY: `program` points at `length` instructions of 8 bytes, which the kernel copies.
    check(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program) }).map(|number| number as i32)
}

/// A new, empty session keyring for the caller (`KEYCTL_JOIN_SESSION_KEYRING`), so that the host's keys are out of reach.
///
/// # Errors
/// `ENOSYS` on a kernel without keyrings, `EDQUOT` at the key quota.
pub fn new_session_keyring(name: &std::ffi::CStr) -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: `name` is NUL-terminated and only read.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) }).map(drop)
}

/// setdomainname(2) of the caller's UTS namespace.
///
/// # Errors
/// `EINVAL` for more than 64 bytes, `EPERM`.
pub fn set_domain_name(name: &[u8]) -> Result<(), Errno> {
    // SAFETY: the kernel reads exactly `name.len()` bytes.
    check(unsafe { libc::syscall(libc::SYS_setdomainname, name.as_ptr(), name.len()) }).map(drop)
}

/// Clears the ambient set (`PR_CAP_AMBIENT_CLEAR_ALL`).
///
/// # Errors
/// None on Linux 4.3 and later.
pub fn clear_ambient() -> Result<(), Errno> {
    ambient(4, 0)
}

/// Raises one capability, by number, in the ambient set (`PR_CAP_AMBIENT_RAISE`).
///
/// # Errors
/// `EPERM` if it is not both permitted and inheritable.
pub fn raise_ambient(capability: u32) -> Result<(), Errno> {
    ambient(2, capability)
}

fn ambient(operation: libc::c_ulong, capability: u32) -> Result<(), Errno> {
    let capability = libc::c_ulong::from(capability);
    // SAFETY: plain integers.
    check(libc::c_long::from(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, operation, capability, 0, 0) })).map(drop)
}

/// Drops one capability, by number, from the bounding set (`PR_CAPBSET_DROP`).
///
/// # Errors
/// `EINVAL` for a number that this kernel does not know, `EPERM` without CAP_SETPCAP.
pub fn drop_bounding(capability: u32) -> Result<(), Errno> {
    // SAFETY: plain integers.
    check(libc::c_long::from(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) })).map(drop)
}

/// Whether the permitted set survives a change from root to another user (`PR_SET_KEEPCAPS`).
///
/// # Errors
/// `EPERM` if the securebit is locked.
pub fn keep_capabilities(keep: bool) -> Result<(), Errno> {
    // SAFETY: plain integers.
    check(libc::c_long::from(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(keep), 0, 0, 0) })).map(drop)
}

/// capset(2) of the calling thread, three sets as bit masks by capability number.
///
/// # Errors
/// `EPERM` for bits that are not permitted.
pub fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> Result<(), Errno> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = Header { version: VERSION_3, pid: 0 };
    let half = |set: u64, shift: u32| (set >> shift) as u32;
    let data =
        [[half(effective, 0), half(permitted, 0), half(inheritable, 0)], [half(effective, 32), half(permitted, 32), half(inheritable, 32)]];
    // SAFETY: version 3 reads the header and two structures of three words each, which `data` is. A kernel that does not know the version writes
    // its own to the header.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) }).map(drop)
}

/// `PR_SET_NO_NEW_PRIVS`.
///
/// # Errors
/// None known.
pub fn no_new_privileges() -> Result<(), Errno> {
    // SAFETY: plain integers.
    check(libc::c_long::from(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })).map(drop)
}

/// setgroups(2) of the calling thread: exactly these.
///
/// # Errors
/// `EINVAL` for more than 65536, `EPERM`.
pub fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: the kernel reads `groups.len()` words.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// setresgid(2) of the calling thread.
///
/// # Errors
/// `EPERM`, `EINVAL` for an unmapped id.
pub fn set_gid(gid: u32) -> Result<(), Errno> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

/// setresuid(2) of the calling thread.
///
/// # Errors
/// `EPERM`, `EINVAL` for an unmapped id, `EAGAIN` at a process limit.
pub fn set_uid(uid: u32) -> Result<(), Errno> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// The caller's soft and hard limit of one resource by its `RLIMIT_*` number, with `u64::MAX` for no limit (prlimit(2)).
///
/// # Errors
/// `EINVAL` for an unknown resource.
pub fn rlimit(resource: u32) -> Result<(u64, u64), Errno> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one structure; no new value is given.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, std::ptr::null::<libc::rlimit64>(), &raw mut limit) })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// prlimit(2) of the caller: one resource by its `RLIMIT_*` number, with `u64::MAX` for no limit.
///
/// # Errors
/// `EPERM` to raise a hard limit without CAP_SYS_RESOURCE, `EINVAL` for soft above hard.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the kernel reads one structure; no old value is asked for.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, std::ptr::null_mut::<libc::rlimit64>()) }).map(drop)
}
