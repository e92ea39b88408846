//! unix(7): sockets whose path is too long for an address.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Bytes of a path in `struct sockaddr_un`, the last of which is a NUL.
const SUN_PATH: usize = 108;

/// A path to the socket at `path` that an address has room for, good for as long as the descriptor with it is held.
///
/// # Errors
/// That of open(2).
pub fn reachable(path: &Path) -> io::Result<(PathBuf, Option<OwnedFd>)> {
    if path.as_os_str().as_bytes().len() < SUN_PATH {
        return Ok((path.to_owned(), None));
    }
    let held = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd())), Some(held)))
}
