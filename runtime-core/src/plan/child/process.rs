//! Steps that change the process itself.

use std::ffi::CStr;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::mounts::slash;
use super::{Failed, HOME, OTHER_LABEL, OUTSIDE, State, part};
use crate::plan::Label;
use crate::plan::decimal::decimal;
use crate::plan::passwd;
use crate::plan::root::{self, Links, Make, Name};
use crate::sys::namespace::CLONE_NEWTIME;
use crate::sys::process::is_null;
use crate::sys::{process, security, tty};

/// As much as the kernel shows (fs/proc/base.c, `proc_pid_attr_read`: a page).
const LABEL_MAX: usize = 4096;
const HIGHEST_CAPABILITY: u32 = 63;
/// What shells end with, and Docker's and Kubernetes' users know.
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;
/// How much of a passwd(5) is read: the image may hold anything, even something without an end.
const PASSWD_MAX: usize = 4 << 20;

pub fn oom_score_adj(score: i32) -> Result<(), Failed> {
    let mut text = [b'-'; 11];
    let mut digits = [0; 10];
    let digits = decimal(score.unsigned_abs(), &mut digits);
    text[1..=digits.len()].copy_from_slice(digits);
    let text = if score < 0 { &text[..=digits.len()] } else { digits };
    let file = rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::io::write(file, text).map(drop)?)
}

/// What the file says then has the mode of a profile or a NUL at its end.
pub fn label(label: &Label) -> Result<(), Failed> {
    let file = rustix::fs::open(&label.file, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, label.text.to_bytes())?;
    let mut shown = [0u8; LABEL_MAX];
    let length = rustix::io::pread(&file, &mut shown, 0)?;
    let wanted = label.shown.to_bytes();
    let same = shown[..length].starts_with(wanted)
        && (wanted.is_empty() || matches!(shown[..length].get(wanted.len()), None | Some(b' ' | b'\n' | 0)));
    if same && length > 0 { Ok(()) } else { Err(Failed { detail: OTHER_LABEL, errno: Errno::PROTO }) }
}

pub fn new_keyring(name: &CStr) -> Result<(), Failed> {
    match security::new_session_keyring(name) {
        Ok(()) | Err(Errno::NOSYS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Router advertisements could re-route a container that has its own addresses (CVE-2020-10749).
pub fn loopback() -> Result<(), Failed> {
    for path in [c"/proc/sys/net/ipv6/conf/all/accept_ra", c"/proc/sys/net/ipv6/conf/default/accept_ra"] {
        match rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => drop(rustix::io::write(file, b"0").map_err(part(1))?),
            // A kernel without IPv6.
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(Failed { detail: 1, errno }),
        }
    }
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    Ok(tty::set_loopback_up(socket.as_fd())?)
}

pub fn time_offsets(offsets: &CStr) -> Result<(), Failed> {
    let file = rustix::fs::open(c"/proc/self/timens_offsets", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::io::write(file, offsets.to_bytes()).map(drop)?)
}

/// unshare(2) makes a time namespace for children; the caller stays where it is until it says so.
pub fn enter_time() -> Result<(), Failed> {
    let new = rustix::fs::open(c"/proc/self/ns/time_for_children", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(part(1))?;
    Ok(process::setns(new.as_fd(), CLONE_NEWTIME)?)
}

/// Gives a descriptor its number. In place of the host's null device, whose mode and owner could be changed by it, one that nobody can change.
pub fn stream(from: BorrowedFd<'_>, number: i32, null: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let Some(root) = null.filter(|_| rustix::fs::fstat(from).is_ok_and(|found| is_null(&found))) else {
        return process::duplicate_onto(from, number, false);
    };
    let access = rustix::fs::fcntl_getfl(from)? & OFlags::RWMODE;
    let own = rustix::fs::openat(root, c"dev/null", access | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())?;
    process::place(own, number, false)
}

pub fn own_streams(uid: u32) -> Result<(), Failed> {
    for number in 0..3 {
        let stream = process::borrow_number(number);
        let found = rustix::fs::fstat(stream)?;
        if is_null(&found) || found.st_uid == uid {
            continue;
        }
        match rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), None) {
            // A file of a read-only or foreign filesystem stays whose it is.
            Ok(()) | Err(Errno::ROFS | Errno::PERM | Errno::INVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

pub fn make_working_directory(path: &CStr) -> Result<(), Failed> {
    let slash = slash()?;
    let path = path.to_bytes();
    let mut name = Name::default();
    let relative = name.set(path.strip_prefix(b"/").unwrap_or(path))?;
    match root::ensure(slash.as_fd(), relative, Make::Directory, Links::Follow) {
        // A read-only image without the directory: entering it will say so.
        Ok(_) | Err(Errno::ROFS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// As runc: an image whose passwd(5) is missing, or is something else, is no error.
pub fn home(uid: u32, environment: &mut process::StringArray) -> Result<(), Failed> {
    let mut search = passwd::Search::new(uid);
    let _ = read_passwd(&mut search);
    let home = search.home().unwrap_or(b"/");
    Ok(environment.add(&[HOME, home])?)
}

fn read_passwd(search: &mut passwd::Search) -> Result<(), Errno> {
    // A fifo must not keep us waiting for its other end.
    let file = root::open(slash()?.as_fd(), c"etc/passwd", Links::Follow, OFlags::RDONLY | OFlags::NONBLOCK)?;
    if !rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode).is_file() {
        return Ok(());
    }
    let mut piece = [0u8; 4096];
    for _ in 0..PASSWD_MAX / piece.len() {
        let length = rustix::io::read(&file, &mut piece)?;
        if length == 0 {
            search.end_of_line();
            return Ok(());
        }
        if search.take(&piece[..length]) {
            return Ok(());
        }
    }
    Ok(())
}

pub fn bounding_set(keep: u64) -> Result<(), Failed> {
    for capability in 0..=HIGHEST_CAPABILITY {
        if keep & (1 << capability) != 0 {
            continue;
        }
        match security::drop_bounding(capability) {
            Ok(()) => {}
            // Past the last one that this kernel knows.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

pub fn identity(uid: u32, gid: u32, groups: Option<&[u32]>) -> Result<(), Failed> {
    security::keep_capabilities(true)?;
    groups.map_or(Ok(()), security::set_groups).map_err(part(1))?;
    security::set_gid(gid).map_err(part(2))?;
    security::set_uid(uid).map_err(part(3))?;
    // A change of user makes a process undumpable anyway, but not from root to root.
    Ok(process::forbid_dump()?)
}

pub fn capabilities(effective: u64, permitted: u64, inheritable: u64, ambient: u64) -> Result<(), Failed> {
    security::clear_ambient()?;
    security::set_capabilities(effective, permitted, inheritable)?;
    for capability in 0..=HIGHEST_CAPABILITY {
        if ambient & (1 << capability) != 0 {
            security::raise_ambient(capability).map_err(part(1))?;
        }
    }
    Ok(security::keep_capabilities(false)?)
}

/// As runc: root tries first, since the directory may be closed to the user; then the user, whose network filesystem may be closed to root.
pub fn working_directory(path: &CStr, later: bool, state: &mut State) -> Result<(), Failed> {
    if !state.entered {
        match rustix::process::chdir(path) {
            Ok(()) => state.entered = true,
            Err(Errno::ACCESS | Errno::PERM) if later => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
    // A path through a descriptor of the host would leave the process outside its root (CVE-2024-21626).
    if process::working_directory_is_reachable()? { Ok(()) } else { Err(Failed { detail: OUTSIDE, errno: Errno::NOENT }) }
}

pub fn executable(path: &CStr) -> Result<(), Errno> {
    let found = rustix::fs::stat(path)?;
    match rustix::fs::FileType::from_raw_mode(found.st_mode) {
        rustix::fs::FileType::RegularFile => {}
        rustix::fs::FileType::Directory => return Err(Errno::ISDIR),
        // As execve(2) would say it.
        _ => return Err(Errno::ACCESS),
    }
    match rustix::fs::accessat(rustix::fs::CWD, path, rustix::fs::Access::EXEC_OK, AtFlags::EACCESS) {
        // faccessat2(2) may be younger than the seccomp profile; execve will tell.
        Err(Errno::NOSYS | Errno::PERM) if found.st_mode & 0o111 != 0 => Ok(()),
        result => result,
    }
}

/// The end of a process whose program cannot be executed, as runc has it but for the status, which is a shell's.
pub fn last_words(path: &CStr, errno: Errno) -> ! {
    let (status, text) = match errno {
        Errno::NOENT => (NOT_FOUND, "no such file or directory"),
        Errno::NOTDIR => (NOT_FOUND, "not a directory"),
        Errno::NOEXEC => (NOT_EXECUTABLE, "exec format error"),
        Errno::ACCESS => (NOT_EXECUTABLE, "permission denied"),
        Errno::PERM => (NOT_EXECUTABLE, "operation not permitted"),
        Errno::TOOBIG => (NOT_EXECUTABLE, "argument list too long"),
        Errno::NOMEM => (NOT_EXECUTABLE, "cannot allocate memory"),
        Errno::LOOP => (NOT_EXECUTABLE, "too many levels of symbolic links"),
        Errno::TXTBSY => (NOT_EXECUTABLE, "text file busy"),
        _ => (NOT_EXECUTABLE, ""),
    };
    let mut digits = [0; 10];
    let text = match text {
        "" => [&b"errno "[..], decimal(errno.raw_os_error().unsigned_abs(), &mut digits)],
        text => [text.as_bytes(), b""],
    };
    let parts = [b"exec ", path.to_bytes(), b": ", text[0], text[1], b"\n"].map(IoSlice::new);
    // The reader may be gone.
    let _ = rustix::io::writev(rustix::stdio::stderr(), &parts);
    process::exit(status)
}

pub fn umask(mask: u32) -> Result<(), Failed> {
    rustix::process::umask(Mode::from_raw_mode(mask));
    Ok(())
}
