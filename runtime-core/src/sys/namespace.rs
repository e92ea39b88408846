//! ioctl_nsfs(2).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::check;

/// `CLONE_NEWTIME` (include/uapi/linux/sched.h), for unshare(2), setns(2) and clone3(2).
pub const CLONE_NEWTIME: i32 = 0x80;

/// `NS_GET_NSTYPE` of ioctl_nsfs(2): the `CLONE_NEW*` flag of a namespace descriptor.
///
/// # Errors
/// `ENOTTY` if `fd` is no namespace.
pub fn namespace_type(fd: BorrowedFd<'_>) -> Result<i32, Errno> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: this request takes no argument.
    check(libc::c_long::from(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) })).map(|kind| kind as i32)
}

/// `NS_GET_USERNS` of ioctl_nsfs(2): the user namespace that owns a namespace.
///
/// # Errors
/// `EPERM` if that is outside of the caller's own one, `ENOTTY` if `fd` is no namespace.
pub fn owner(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    // SAFETY: this request takes no argument.
    let opened = check(libc::c_long::from(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_USERNS) }))?;
    // SAFETY: the kernel has just made this descriptor, close-on-exec, for the caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(opened as i32) })
}
