//! ioctl_tty(2): what rustix lacks, and the loopback interface's flag, netdevice(7).

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::check;

/// Unlocks the peer of a pseudoterminal's master (`TIOCSPTLCK` 0).
///
/// # Errors
/// `ENOTTY` if it is no master.
pub fn unlock(master: BorrowedFd<'_>) -> Result<(), Errno> {
    let unlocked: libc::c_int = 0;
    // SAFETY: the kernel reads one int.
    check(libc::c_long::from(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })).map(drop)
}

/// The number of the peer, the `N` of `/dev/pts/N` (`TIOCGPTN`).
///
/// # Errors
/// `ENOTTY` if it is no master.
pub fn peer_number(master: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut number: libc::c_uint = 0;
    // SAFETY: the kernel writes one unsigned int.
    check(libc::c_long::from(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number) }))?;
    Ok(number)
}

/// Makes `terminal` the controlling terminal of the caller's session (`TIOCSCTTY`).
///
/// # Errors
/// `EPERM` if the caller leads no session.
pub fn set_controlling(terminal: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: plain integers.
    check(libc::c_long::from(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) })).map(drop)
}

/// Sets the loopback interface of `socket`'s network namespace up (`SIOCSIFFLAGS`).
///
/// # Errors
/// `ENODEV` if there is none.
pub fn set_loopback_up(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the kernel reads one `ifreq`, whose name is NUL-terminated by the zeroes, and may write it back as a whole.
    check(libc::c_long::from(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) })).map(drop)
}
