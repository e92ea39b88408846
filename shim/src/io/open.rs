//! Opening what the stdio strings name. Nothing here waits for a peer.

use std::fs::DirBuilder;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use runtime_core::error::{Context, Error, ErrorKind, Result};
use runtime_core::sys::process::is_null;
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::Owner;
use super::streams::Channel;

/// Where one output goes, opened.
#[derive(Debug)]
pub(super) enum Output {
    Null,
    Fifo(FifoWriter),
    /// Opened with `O_APPEND`.
    File(OwnedFd),
    Stream(Arc<Channel>),
}

/// Where the input comes from, opened.
#[derive(Debug)]
pub(super) enum Input {
    Null,
    Fifo(FifoReader),
}

/// An output fifo.
#[derive(Debug)]
pub(super) struct FifoWriter {
    pub(super) write: OwnedFd,
    /// Our own reader: output goes on, and stays in the fifo, while containerd is away.
    pub(super) hold: OwnedFd,
}

/// The input fifo.
#[derive(Debug)]
pub(super) struct FifoReader {
    pub(super) read: OwnedFd,
    /// Our own writer: the input ends by CloseIO, not when containerd's writer goes.
    pub(super) hold: OwnedFd,
}

/// What is found at a path that came without a scheme.
enum Found {
    Fifo,
    File,
    Null,
}

/// Opens the output at `path`: a fifo, a regular file to append to (as containerd's shim does), or the null device.
pub(super) fn output(field: &str, path: &Path) -> Result<Output> {
    let (place, found) = find(field, path)?;
    Ok(match found {
        Found::Fifo => {
            // The reader first: a writer that comes first gets ENXIO.
            let hold = reopen(field, path, &place, OFlags::RDONLY | OFlags::NONBLOCK)?;
            let write = reopen(field, path, &place, OFlags::WRONLY | OFlags::NONBLOCK)?;
            Output::Fifo(FifoWriter { write, hold })
        }
        Found::File => Output::File(reopen(field, path, &place, OFlags::WRONLY | OFlags::APPEND)?),
        Found::Null => Output::Null,
    })
}

/// Opens the input at `path`: a fifo or the null device.
pub(super) fn input(path: &Path) -> Result<Input> {
    let (place, found) = find("stdin", path)?;
    match found {
        Found::Fifo => {
            let read = reopen("stdin", path, &place, OFlags::RDONLY | OFlags::NONBLOCK)?;
            let hold = reopen("stdin", path, &place, OFlags::WRONLY | OFlags::NONBLOCK)?;
            Ok(Input::Fifo(FifoReader { read, hold }))
        }
        Found::Null => Ok(Input::Null),
        Found::File => Err(Error::invalid(format!("stdin {path:?}: a regular file, not a fifo"))),
    }
}

/// Takes hold of `path` without opening what is there, and says what it is. Both ends of a fifo are then opened from this one
/// handle, so an exchanged path cannot give two different files.
fn find(field: &str, path: &Path) -> Result<(OwnedFd, Found)> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| bad_path(field, path, errno))?;
    let stat = rustix::fs::fstat(&place).context(|| format!("stat {field} {path:?}"))?;
    let found = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => Found::Fifo,
        FileType::RegularFile => Found::File,
        FileType::CharacterDevice if is_null(&stat) => Found::Null,
        FileType::Symlink => return Err(not_a_fifo(field, path, "a symbolic link")),
        FileType::Directory => return Err(not_a_fifo(field, path, "a directory")),
        FileType::Socket => return Err(not_a_fifo(field, path, "a socket")),
        _ => return Err(not_a_fifo(field, path, "a device")),
    };
    Ok((place, found))
}

fn not_a_fifo(field: &str, path: &Path, what: &str) -> Error {
    Error::invalid(format!("{field} {path:?}: {what}, not a fifo"))
}

fn bad_path(field: &str, path: &Path, errno: Errno) -> Error {
    Error::kernel(format_args!("open {field} {path:?}"), errno).with_kind(ErrorKind::InvalidArgument)
}

fn reopen(field: &str, path: &Path, place: &OwnedFd, flags: OFlags) -> Result<OwnedFd> {
    let link = format!("/proc/self/fd/{}", place.as_raw_fd());
    rustix::fs::open(link, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty()).map_err(|errno| bad_path(field, path, errno))
}

/// Opens the log of a `file://` URI, created 0644 with its directories, as containerd's shim does. The last name is never
/// followed when it is a symbolic link, and nothing but a regular file is written to.
pub(super) fn log_file(field: &str, path: &Path) -> Result<OwnedFd> {
    let log = match open_log(path, OFlags::empty()) {
        Err(Errno::NOENT) => create_log(field, path)?,
        opened => opened.map_err(|errno| bad_path(field, path, errno))?,
    };
    let stat = rustix::fs::fstat(&log).context(|| format!("stat {field} {path:?}"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::invalid(format!("{field} {path:?}: not a regular file")));
    }
    Ok(log)
}

fn open_log(path: &Path, more: OFlags) -> Result<OwnedFd, Errno> {
    // O_NONBLOCK: the open of a fifo that lies there must fail and not wait.
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags | more, Mode::from_raw_mode(0o644))
}

fn create_log(field: &str, path: &Path) -> Result<OwnedFd> {
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent).context(|| format!("create {parent:?} for {field}"))?;
    }
    match open_log(path, OFlags::CREATE | OFlags::EXCL) {
        Ok(log) => {
            // The daemon's umask is not the operator's choice for logs.
            rustix::fs::fchmod(&log, Mode::from_raw_mode(0o644)).context(|| format!("chmod {field} {path:?}"))?;
            Ok(log)
        }
        // Someone else made it in between.
        Err(Errno::EXIST) => open_log(path, OFlags::empty()).map_err(|errno| bad_path(field, path, errno)),
        Err(errno) => Err(bad_path(field, path, errno)),
    }
}

/// `/dev/null`, checked to be it: on a broken host a regular file may lie there.
pub(super) fn dev_null() -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty()).context(|| "open \"/dev/null\"")?;
    let stat = rustix::fs::fstat(&null).context(|| "stat \"/dev/null\"")?;
    if !is_null(&stat) {
        return Err(Error::new(ErrorKind::Internal, "\"/dev/null\" is not the null device"));
    }
    Ok(null)
}

/// A pipe, read end first, both ends blocking and given to `owner`: a process that is not root reopens `/dev/stdout` by its owner.
pub(super) fn pipe(owner: Option<Owner>) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context(|| "create a pipe")?;
    if let Some(Owner { uid, gid }) = owner {
        // Both ends are one inode.
        rustix::fs::fchown(&read, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).context(|| format!("give a pipe to {uid}:{gid}"))?;
    }
    Ok((read, write))
}
