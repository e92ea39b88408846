//! One directory of a cgroup filesystem, held by descriptor.
//!
//! Nothing below is ever reached by an absolute path: names are resolved with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV`
//! (openat2(2)), so neither a `..` nor a mount or link that a container with a writable cgroupfs puts there leads outside.
//! What a container has made below is opened name by name ([`super::walk`]): a name is any bytes, and a path of them may be longer than PATH_MAX.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, ErrorKind, Result};

/// `CGROUP_SUPER_MAGIC`, statfs(2).
pub(super) const CGROUP1_MAGIC: u64 = 0x0027_e0eb;
/// `CGROUP2_SUPER_MAGIC`, statfs(2).
pub(super) const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Having one means that the directory was reached without leaving the cgroup filesystem it belongs to.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: String,
}

impl Dir {
    /// Opens a mount point and checks that a filesystem with `magic` is mounted there; `None` checks nothing (tests on a plain directory).
    pub fn mount_point(path: &str, magic: Option<u64>) -> Result<Self> {
        let what = || format!("open cgroup filesystem {path:?}");
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).context(what)?;
        if let Some(magic) = magic {
            let found = rustix::fs::fstatfs(&fd).context(what)?.f_type as u64;
            if found != magic {
                return Err(Error::new(ErrorKind::FailedPrecondition, format!("{}: not a cgroup filesystem (type {found:#x})", what())));
            }
        }
        Ok(Self { fd, path: path.trim_end_matches('/').to_owned() })
    }

    /// Where the directory was when it was opened, for messages.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Opens the directory `relative` below this one; "" is this one again.
    pub fn open(&self, relative: &str) -> Result<Self, Errno> {
        let name = if relative.is_empty() { "." } else { relative };
        let fd = self.openat(name, OFlags::DIRECTORY)?;
        let path = if relative.is_empty() { self.path.clone() } else { format!("{}/{relative}", self.path) };
        Ok(Self { fd, path })
    }

    /// Opens a file of this directory.
    pub fn open_file(&self, name: &str, access: OFlags) -> Result<OwnedFd, Errno> {
        self.openat(name, access | OFlags::NOCTTY)
    }

    fn openat(&self, name: impl rustix::path::Arg, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        rustix::fs::openat2(&self.fd, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Reads a whole file of this directory, or of one below.
    pub fn read(&self, name: &str) -> Result<String, Errno> {
        read_to_end(self.open_file(name, OFlags::RDONLY)?.as_fd())
    }

    /// Reads a file that may not exist (controller off, older kernel) or whose cgroup is going away: `None` then.
    pub fn read_if_any(&self, name: &str) -> Result<Option<String>> {
        match self.read(name) {
            Ok(text) => Ok(Some(text)),
            Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => Err(Error::kernel(format!("read {}/{name}", self.path), errno)),
        }
    }

    /// Writes `value` to a file in one write(2): cgroup files take a write as a whole.
    pub fn write(&self, name: &str, value: &str) -> Result<(), Errno> {
        let file = self.open_file(name, OFlags::WRONLY)?;
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, value.as_bytes()))?;
        if written == value.len() { Ok(()) } else { Err(Errno::IO) }
    }

    /// [`Dir::write`] with the failure as a sentence.
    pub fn put(&self, name: &str, value: &str) -> Result<()> {
        self.write(name, value).context(|| format!("write {value:?} to {}/{name}", self.path))
    }

    /// [`Dir::put`] of several lines, each a write of its own to the file opened once.
    pub fn put_lines<'a>(&self, name: &str, lines: impl IntoIterator<Item = &'a String>) -> Result<()> {
        let file = self.open_file(name, OFlags::WRONLY).context(|| format!("open {}/{name}", self.path))?;
        for line in lines {
            let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, line.as_bytes()));
            let written = written.context(|| format!("write {line:?} to {}/{name}", self.path))?;
            if written != line.len() {
                return Err(Error::kernel(format!("write {line:?} to {}/{name}", self.path), Errno::IO));
            }
        }
        Ok(())
    }

    /// Makes the subdirectory `name`; false when it was there already.
    pub fn make(&self, name: &str) -> Result<bool> {
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(Error::kernel(format!("mkdir {}/{name}", self.path), errno)),
        }
    }

    /// Removes the subdirectory `name`, which must have neither processes nor children.
    pub fn remove(&self, name: impl rustix::path::Arg) -> Result<(), Errno> {
        rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)
    }

    /// The subdirectory `name`, which is one component; `path` is what messages call it.
    pub fn child(&self, name: &CStr, path: String) -> Result<Self, Errno> {
        Ok(Self { fd: self.openat(name, OFlags::DIRECTORY)?, path })
    }

    /// The directory above, which is in the same filesystem. A cgroup never changes its parent.
    pub fn above(&self, path: String) -> Result<Self, Errno> {
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { fd: rustix::fs::openat2(&self.fd, c"..", flags, Mode::empty(), resolve)?, path })
    }

    /// The directory at `path` below this one, opened name by name.
    pub fn descend(&self, path: &[u8]) -> Result<Self, Errno> {
        let mut dir = self.open("")?;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let label = format!("{}/{}", dir.path, String::from_utf8_lossy(name));
            dir = Self { fd: dir.openat(name, OFlags::DIRECTORY)?, path: label };
        }
        Ok(dir)
    }

    /// Whether the directory was removed since it was opened.
    pub fn is_gone(&self) -> bool {
        matches!(self.open_file("cgroup.procs", OFlags::RDONLY), Err(Errno::NOENT | Errno::NODEV))
    }

    /// Process ids in this cgroup itself. Ids that this pid namespace cannot name (0) are left out.
    pub fn own_pids(&self) -> Result<Vec<i32>> {
        // A threaded cgroup answers EOPNOTSUPP: its processes are listed by the domain above it (cgroups(7), "Thread mode").
        let text = self.read_if_any("cgroup.procs")?.unwrap_or_default();
        Ok(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0).collect())
    }
}

impl From<Dir> for OwnedFd {
    fn from(dir: Dir) -> Self {
        dir.fd
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reads `fd` from its start to its end. For a kernfs file this also takes note of the event that poll(2) reported.
pub(super) fn read_to_end(fd: BorrowedFd<'_>) -> Result<String, Errno> {
    let mut bytes = Vec::with_capacity(4096);
    let mut chunk = [0u8; 4096];
    loop {
        match rustix::io::pread(fd, &mut chunk, bytes.len() as u64) {
            Ok(0) => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leaves_the_tree_is_refused() {
        let tree = tempfile::tempdir().unwrap();
        std::fs::create_dir(tree.path().join("inside")).unwrap();
        std::os::unix::fs::symlink("/", tree.path().join("link")).unwrap();
        let root = Dir::mount_point(tree.path().to_str().unwrap(), None).unwrap();
        let inside = root.open("inside").unwrap();
        assert_eq!(inside.open("..").unwrap_err(), Errno::XDEV);
        assert_eq!(inside.open("/etc").unwrap_err(), Errno::XDEV);
        assert_eq!(root.open("link").unwrap_err(), Errno::LOOP);
        assert_eq!(root.open("link/etc").unwrap_err(), Errno::LOOP);
    }

    #[test]
    fn another_filesystem_is_not_taken_for_a_cgroup_filesystem() {
        let error = Dir::mount_point("/proc", Some(CGROUP2_MAGIC)).unwrap_err();
        assert_eq!(error.to_string(), "open cgroup filesystem \"/proc\": not a cgroup filesystem (type 0x9fa0)");
    }
}
