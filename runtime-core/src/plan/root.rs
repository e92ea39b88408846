//! Paths beneath the container's root: every lookup by openat2(2) from a descriptor, never by a joined string.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// A lookup that races with renames answers EAGAIN; runc measured 128 tries to be enough under attack.
const LOOKUP_TRIES: u32 = 128;
const PATH_MAX: usize = 4096;

/// Which links a lookup may follow. All stay beneath the root; none follows the magic links of procfs.
#[derive(Clone, Copy)]
pub enum Links {
    /// As the container would see them.
    Follow,
    /// None at all.
    Refuse,
}

/// Opens `path` beneath `root` without side effects (`O_PATH`).
pub fn lookup(root: BorrowedFd<'_>, path: &CStr, links: Links, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_with(root, path, links, flags | OFlags::PATH)
}

/// Opens `path` beneath `root`; a terminal found there does not become the caller's.
pub fn open(root: BorrowedFd<'_>, path: &CStr, links: Links, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_with(root, path, links, flags | OFlags::NOCTTY)
}

fn open_with(root: BorrowedFd<'_>, path: &CStr, links: Links, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    if matches!(links, Links::Refuse) {
        resolve |= ResolveFlags::NO_SYMLINKS;
    }
    let path = if path.is_empty() { c"." } else { path };
    for _ in 1..LOOKUP_TRIES {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// What to make at the end of a path that does not exist.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Make {
    Directory,
    File,
}

/// Opens `path` beneath `root`, making what is missing: parents as directories (0755), the last component as `make` says.
pub fn ensure(root: BorrowedFd<'_>, path: &CStr, make: Make, links: Links) -> Result<OwnedFd, Errno> {
    match lookup(root, path, links, OFlags::empty()) {
        Err(Errno::NOENT) => {}
        result => return result,
    }
    let bytes = path.to_bytes();
    let parent = parents(root, bytes, links)?;
    let mut name = Name::default();
    let name = name.set(last_component(bytes))?;
    match make {
        Make::Directory => make_directory(parent.as_fd(), name, 0o755)?,
        Make::File => make_file(parent.as_fd(), name)?,
    }
    // O_NOFOLLOW: what was just made is no link, unless somebody swapped it.
    rustix::fs::openat(&parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Opens the directory that holds the last component of `path`, making missing ones.
pub fn parents(root: BorrowedFd<'_>, path: &[u8], links: Links) -> Result<OwnedFd, Errno> {
    let mut buffer = Name::default();
    let mut directory = lookup(root, c"", links, OFlags::DIRECTORY)?;
    let mut end = 0;
    while let Some(length) = path[end..].iter().position(|&b| b == b'/') {
        let component = &path[end..end + length];
        end += length + 1;
        if component.is_empty() {
            continue;
        }
        let prefix = buffer.set(&path[..end - 1])?;
        directory = match lookup(root, prefix, links, OFlags::DIRECTORY) {
            Err(Errno::NOENT) => {
                let mut name = Name::default();
                make_directory(directory.as_fd(), name.set(component)?, 0o755)?;
                lookup(root, prefix, links, OFlags::DIRECTORY)?
            }
            result => result?,
        };
    }
    Ok(directory)
}

/// The part of `path` after its last slash.
pub fn last_component(path: &[u8]) -> &[u8] {
    path.rsplit(|&b| b == b'/').next().unwrap_or(path)
}

/// mkdirat(2) with an exact mode; an existing one is fine.
pub fn make_directory(parent: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<(), Errno> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(mode)) {
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}

fn make_file(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
    match rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644)) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Removes a name that is no directory, so that it can be made anew; a missing one is fine.
pub fn remove(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// A string on the stack, for names cut from longer paths: the child does not allocate.
pub struct Name {
    bytes: [u8; PATH_MAX],
}

impl Default for Name {
    fn default() -> Self {
        Self { bytes: [0; PATH_MAX] }
    }
}

impl Name {
    /// Holds `text`, which must be shorter than `PATH_MAX` and free of NUL.
    pub fn set(&mut self, text: &[u8]) -> Result<&CStr, Errno> {
        if text.len() >= PATH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        self.bytes[..text.len()].copy_from_slice(text);
        self.bytes[text.len()] = 0;
        CStr::from_bytes_with_nul(&self.bytes[..=text.len()]).map_err(|_| Errno::INVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(directory: &std::path::Path) -> OwnedFd {
        rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    #[test]
    fn missing_parents_are_made_beneath_the_root_through_absolute_links() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/elsewhere", directory.path().join("link")).unwrap();
        std::fs::create_dir(directory.path().join("elsewhere")).unwrap();
        ensure(root(directory.path()).as_fd(), c"link/a/b", Make::File, Links::Follow).unwrap();
        assert!(directory.path().join("elsewhere/a/b").is_file());
    }

    #[test]
    fn a_dangling_link_as_parent_is_an_error_and_nothing_is_made() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("../../nowhere", directory.path().join("link")).unwrap();
        let error = ensure(root(directory.path()).as_fd(), c"link/a", Make::Directory, Links::Follow).unwrap_err();
        assert_eq!(error, Errno::NOENT);
        assert!(!directory.path().join("nowhere").exists());
    }

    #[test]
    fn links_are_refused_where_a_plain_directory_is_asked() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", directory.path().join("proc")).unwrap();
        let error = ensure(root(directory.path()).as_fd(), c"proc", Make::Directory, Links::Refuse).unwrap_err();
        assert_eq!(error, Errno::LOOP);
    }
}
