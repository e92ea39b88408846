//! User namespaces that are only there for their maps.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::{Failed, OTHER_MAPS, part};
use crate::plan::root::Name;
use crate::sys::process::{self, Cloned};

/// Longer than the lines before and the line itself in `/proc/<pid>/fdinfo/<fd>` of a pidfd.
const FDINFO: usize = 256;

/// A user namespace with these maps.
///
/// Only a process has maps that can be written, so there is one for a moment. It ends when its end of the pipe is told so, which also
/// happens when this process dies.
pub(super) fn user_namespace(uid_map: &CStr, gid_map: &CStr) -> Result<OwnedFd, Failed> {
    let (wait, end) = pipe_with(PipeFlags::CLOEXEC)?;
    let pidfd = match process::clone_as_child(libc::CLONE_NEWUSER as u64).map_err(part(1))? {
        Cloned::Child => {
            drop(end);
            let _ = rustix::io::retry_on_intr(|| rustix::io::read(&wait, &mut [0u8; 1]));
            process::exit(0);
        }
        Cloned::Parent(_, pidfd) => pidfd,
    };
    let namespace = with_maps(pidfd.as_fd(), uid_map, gid_map);
    drop(end);
    let _ = rustix::io::retry_on_intr(|| process::wait(pidfd.as_fd()));
    namespace
}

/// The maps of a user namespace, users' and groups', as the caller's own user namespace sees them.
///
/// They are shown of a process only, so there is one for a moment that does nothing but join.
///
/// # Errors
/// Those of clone3(2) and setns(2), or of reading the maps.
pub fn maps_of(namespace: BorrowedFd<'_>) -> Result<[String; 2], Errno> {
    let (wait, end) = pipe_with(PipeFlags::CLOEXEC)?;
    let (joined, tell) = pipe_with(PipeFlags::CLOEXEC)?;
    let pidfd = match process::clone_as_child(0)? {
        Cloned::Child => {
            drop(end);
            let number = process::setns(namespace, libc::CLONE_NEWUSER).map_or_else(Errno::raw_os_error, |()| 0);
            let _ = rustix::io::write(&tell, &number.to_ne_bytes());
            let _ = rustix::io::retry_on_intr(|| rustix::io::read(&wait, &mut [0u8; 1]));
            process::exit(0);
        }
        Cloned::Parent(_, pidfd) => pidfd,
    };
    drop(tell);
    let maps = shown_maps(joined.as_fd(), pidfd.as_fd());
    drop(end);
    let _ = rustix::io::retry_on_intr(|| process::wait(pidfd.as_fd()));
    maps
}

fn shown_maps(joined: BorrowedFd<'_>, pidfd: BorrowedFd<'_>) -> Result<[String; 2], Errno> {
    let mut number = [0u8; 4];
    match rustix::io::retry_on_intr(|| rustix::io::read(joined, &mut number))? {
        4 if number == [0; 4] => {}
        4 => return Err(Errno::from_raw_os_error(i32::from_ne_bytes(number))),
        _ => return Err(Errno::CHILD),
    }
    maps_of_process(pidfd)
}

/// The maps of the user namespace of a process.
///
/// # Errors
/// `ESRCH` for a process that has ended.
pub fn maps_of_process(pidfd: BorrowedFd<'_>) -> Result<[String; 2], Errno> {
    let process = process_directory(pidfd)?;
    let read = |name: &CStr| {
        let file = rustix::fs::openat(&process, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let text = std::io::read_to_string(std::fs::File::from(file));
        text.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    };
    Ok([read(c"uid_map")?, read(c"gid_map")?])
}

/// Longer than any map: 340 lines of three numbers (`UID_GID_MAP_MAX_EXTENTS` of the kernel's user_namespace.h), each padded to ten places.
const MAP: usize = 340 * 34;

/// Whether this process lives under these maps, in whatever order of lines.
pub(super) fn check(uid_map: &CStr, gid_map: &CStr) -> Result<(), Failed> {
    for (path, expected) in [(c"/proc/self/uid_map", uid_map), (c"/proc/self/gid_map", gid_map)] {
        let mut found = [0u8; MAP];
        let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut length = 0;
        loop {
            match rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut found[length..]))? {
                0 => break,
                more => length += more,
            }
        }
        if !same_lines(&found[..length], expected.to_bytes()) {
            return Err(Failed { detail: OTHER_MAPS, errno: Errno::INVAL });
        }
    }
    Ok(())
}

fn same_lines(found: &[u8], expected: &[u8]) -> bool {
    let count = |text: &[u8]| text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).count();
    let has = |line: &[u8]| expected.split(|&byte| byte == b'\n').any(|other| same_words(line, other));
    count(found) == count(expected) && found.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).all(has)
}

fn same_words(one: &[u8], other: &[u8]) -> bool {
    fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
        line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty())
    }
    words(one).eq(words(other))
}

fn with_maps(pidfd: BorrowedFd<'_>, uid_map: &CStr, gid_map: &CStr) -> Result<OwnedFd, Failed> {
    let process = process_directory(pidfd)?;
    for (name, map, number) in [(c"uid_map", uid_map, 2), (c"gid_map", gid_map, 3)] {
        let file = rustix::fs::openat(&process, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(part(number))?;
        // The kernel takes a map whole, in one write (user_namespaces(7)).
        rustix::io::write(&file, map.to_bytes()).map_err(part(number))?;
    }
    Ok(rustix::fs::openat(&process, c"ns/user", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The directory in procfs of a process that cannot be reaped meanwhile. Its number there is not the one that clone3(2) told where the
/// caller lives in a pid namespace of its own.
fn process_directory(pidfd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let (mut name, mut text) = (Name::default(), [0u8; FDINFO]);
    let path = name.numbered(b"/proc/self/fdinfo/", pidfd.as_raw_fd() as u32)?;
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let length = rustix::io::read(&file, &mut text)?;
    let pid = pid_in(&text[..length]).ok_or(Errno::SRCH)?;
    let path = name.numbered(b"/proc/", pid)?;
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The line `Pid:` of a pidfd's fdinfo (proc_pid_fdinfo(5)).
fn pid_in(fdinfo: &[u8]) -> Option<u32> {
    let line = fdinfo.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"Pid:\t"))?;
    std::str::from_utf8(line).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_its_pidfd() {
        let own = rustix::process::getpid();
        let pidfd = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).unwrap();
        let directory = process_directory(pidfd.as_fd()).unwrap();
        let status = rustix::fs::openat(&directory, c"status", OFlags::RDONLY, Mode::empty()).unwrap();
        let text = std::io::read_to_string(std::fs::File::from(status)).unwrap();
        assert!(text.contains(&format!("\nPid:\t{}\n", own.as_raw_nonzero())), "{text}");
    }

    #[test]
    fn the_maps_of_a_namespace_are_those_that_it_was_made_with() {
        let namespace = user_namespace(c"0 100000 65536\n65536 7 1\n", c"0 5 10\n").unwrap_or_else(|failed| panic!("{}", failed.errno));
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
        let [users, groups] = maps_of(namespace.as_fd()).unwrap();
        assert_eq!((words(&users), words(&groups)), ("0 100000 65536 65536 7 1".to_owned(), "0 5 10".to_owned()));
        let other = std::fs::File::open("/proc/self/ns/net").unwrap();
        assert_eq!(maps_of(other.as_fd()).unwrap_err(), Errno::INVAL);
    }

    #[test]
    fn maps_are_compared_line_by_line() {
        let kernel = b"         0     100000      65536\n     65536          7          1\n";
        assert!(same_lines(kernel, b"65536 7 1\n0 100000 65536\n"));
        assert!(!same_lines(kernel, b"0 100000 65536\n"));
        assert!(!same_lines(kernel, b"0 100000 65536\n65536 7 2\n"));
    }

    #[test]
    fn a_process_that_has_ended_or_is_elsewhere_has_no_number() {
        assert_eq!(pid_in(b"pos:\t0\nflags:\t02000002\nPid:\t4711\nNSpid:\t4711\t2\n"), Some(4711));
        assert_eq!(pid_in(b"pos:\t0\nPid:\t-1\n"), None);
        assert_eq!(pid_in(b"pos:\t0\n"), None);
    }
}
