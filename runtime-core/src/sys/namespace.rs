//! ioctl_nsfs(2).

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::check;

/// `NS_GET_NSTYPE` of ioctl_nsfs(2): the `CLONE_NEW*` flag of a namespace descriptor.
///
/// # Errors
/// `ENOTTY` if `fd` is no namespace.
pub fn namespace_type(fd: BorrowedFd<'_>) -> Result<i32, Errno> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: this request takes no argument.
    check(libc::c_long::from(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) })).map(|kind| kind as i32)
}
