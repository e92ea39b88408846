//! What a tmpfs with `tmpcopyup` begins with: a copy of what the image has in its place, with owners, modes, times and file capabilities.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RawDir, RawMode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::{Child, Failed, part};
use crate::plan::Slot;
use crate::plan::root::{self, Links, Name};

/// Deeper than any image's tree, and little enough for the stack.
const DEPTH_MAX: u32 = 100;
const ENTRIES: usize = 2048;
/// At most this much by one sendfile(2).
const CHUNK: usize = 1 << 30;
/// `XATTR_CAPS_SZ_3` and some more (linux/capability.h).
const CAPABILITY_MAX: usize = 64;
const CAPABILITY: &CStr = c"security.capability";

impl Child<'_> {
    pub(super) fn copy_up(&self, mount: Slot, root: Slot, target: &CStr, owner: bool) -> Result<(), Failed> {
        let found = match root::lookup(self.fd(root)?, target, Links::Follow, OFlags::DIRECTORY) {
            // What is no directory, the attaching will tell of.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            result => result?,
        };
        let from = open_directory(found.as_fd(), c".")?;
        let to = open_directory(self.fd(mount)?, c".")?;
        if owner {
            let stat = rustix::fs::fstat(&from)?;
            rustix::fs::fchown(&to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
        }
        tree(from.as_fd(), to.as_fd(), 0).map_err(part(1))
    }
}

fn open_directory(at: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

fn tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: u32) -> Result<(), Errno> {
    if depth == DEPTH_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    let mut buffer = [MaybeUninit::<u8>::uninit(); ENTRIES];
    let mut entries = RawDir::new(from, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => directory(from, to, name, depth)?,
            FileType::RegularFile => file(from, to, name)?,
            FileType::Symlink => link(from, to, name, &stat)?,
            kind => node(to, name, kind, &stat)?,
        }
    }
    Ok(())
}

fn directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: u32) -> Result<(), Errno> {
    let source = open_directory(from, name)?;
    let stat = rustix::fs::fstat(&source)?;
    rustix::fs::mkdirat(to, name, Mode::RWXU)?;
    let copy = open_directory(to, name)?;
    tree(source.as_fd(), copy.as_fd(), depth + 1)?;
    finish(copy.as_fd(), &stat)
}

/// What was a regular file a moment ago is opened without waiting for anybody, should it be a fifo now.
fn file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let source = rustix::fs::openat(from, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&source)?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(Errno::INVAL);
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let copy = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
    loop {
        match rustix::fs::sendfile(&copy, &source, None, CHUNK) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    let mut capability = [0u8; CAPABILITY_MAX];
    // After the change of owner, which takes file capabilities away.
    finish(copy.as_fd(), &stat)?;
    match rustix::fs::fgetxattr(&source, CAPABILITY, &mut capability) {
        Ok(length) => rustix::fs::fsetxattr(&copy, CAPABILITY, &capability[..length], XattrFlags::empty()),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn link(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let mut text = Name::default();
    rustix::fs::symlinkat(text.link(from, name)?, to, name)?;
    own(to, name, stat)
}

fn node(to: BorrowedFd<'_>, name: &CStr, kind: FileType, stat: &Stat) -> Result<(), Errno> {
    rustix::fs::mknodat(to, name, kind, permissions(stat.st_mode), stat.st_rdev)?;
    own(to, name, stat)
}

fn own(at: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    rustix::fs::chownat(at, name, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)), AtFlags::SYMLINK_NOFOLLOW)
}

fn finish(copy: BorrowedFd<'_>, stat: &Stat) -> Result<(), Errno> {
    rustix::fs::fchown(copy, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(copy, permissions(stat.st_mode))?;
    let time = |seconds, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    let times =
        Timestamps { last_access: time(stat.st_atime, stat.st_atime_nsec), last_modification: time(stat.st_mtime, stat.st_mtime_nsec) };
    rustix::fs::futimens(copy, &times)
}

fn permissions(mode: RawMode) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}
