//! The shim's socket: its name, its directory, and who may have it.
//!
//! One group of containers has one socket, so `start` may be called many times at once for the same name. Claims are serialised by a
//! lock on the directory itself: it leaves no file behind and is given back by the kernel when the holder dies. Nothing under the lock
//! can block. Names are those of containerd's `pkg/shim/util_unix.go` (`SocketAddress`).

use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime_core::error::{Context, Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, fstat, openat, statat, unlinkat};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};
use sha2::{Digest, Sha256};

/// The longest path that Go's and the kernel's `sockaddr_un` both take (unix(7): 108 with the terminating NUL).
const MAX_PATH_BYTES: usize = 106;

/// How many clients may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// What became of a claim.
#[derive(Debug)]
pub enum Claim {
    /// Another daemon of the group answers at the address.
    Live,
    /// The socket is ours, and listens.
    Bound(Bound),
}

/// Having one of these means that the socket listens, and that nobody else replaces it as long as it does.
#[derive(Debug)]
pub struct Bound {
    /// Where clients come in.
    pub listener: UnixListener,
    /// The file they find it by.
    pub file: SocketFile,
}

/// The file of a socket that this process, or the one it was forked from, bound.
#[derive(Debug, Clone)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// The path of the socket for `group` (the id, where there is no group) of the containerd at `grpc_address`.
///
/// # Errors
/// `InvalidArgument` when the path is longer than a socket's may be, or not absolute.
pub fn path(dir: &Path, grpc_address: &str, namespace: &str, group: &str) -> Result<PathBuf> {
    let digest = Sha256::digest(join(&[grpc_address, namespace, group]));
    let mut name = String::with_capacity(64);
    for byte in digest {
        // Writing to a string cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    let path = dir.join(name);
    let length = path.as_os_str().len();
    if length > MAX_PATH_BYTES {
        let message = format!("socket path {path:?}: {length} bytes, at most {MAX_PATH_BYTES}: choose a shorter socket directory");
        return Err(Error::invalid(message));
    }
    if !path.is_absolute() {
        return Err(Error::invalid(format!("socket path {path:?}: not absolute")));
    }
    Ok(path)
}

/// The address that containerd dials for a socket at `path`.
pub fn address(path: &Path) -> String {
    format!("unix://{}", path.display())
}

/// Go's `filepath.Join`: empty elements are left out, the rest is cleaned lexically.
fn join(elements: &[&str]) -> String {
    let joined = elements.iter().filter(|e| !e.is_empty()).copied().collect::<Vec<_>>().join("/");
    let absolute = joined.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if absolute => {}
            part => parts.push(part),
        }
    }
    let relative = parts.join("/");
    if absolute { format!("/{relative}") } else { relative }
}

/// Takes the socket at `path`, unless a daemon listens there. A socket that nobody listens on is replaced.
///
/// # Errors
/// `FailedPrecondition` when the directory is not ours alone; else the errno of the step that failed.
pub fn claim(path: &Path) -> Result<Claim> {
    let (dir, name) = open_dir(path)?;
    flock(&dir, FlockOperation::LockExclusive).context(|| format!("lock {:?}", path.parent()))?;
    if let Some(bound) = bind(path, &dir, &name)? {
        return Ok(Claim::Bound(bound));
    }
    if is_live(path)? {
        return Ok(Claim::Live);
    }
    unlinkat(&dir, name.as_path(), AtFlags::empty()).context(|| format!("remove the stale socket {path:?}"))?;
    match bind(path, &dir, &name)? {
        Some(bound) => Ok(Claim::Bound(bound)),
        None => Err(Error::from_errno(format!("bind {path:?}"), Errno::ADDRINUSE.raw_os_error())),
    }
}

/// Removes the socket that `address` names, if it is one and nobody listens there. A socket that is gone is fine. Answers whether somebody
/// listens, so that it stays.
///
/// # Errors
/// The errno of the step that failed.
pub fn remove_dead(address: &str) -> Result<bool> {
    let Some(path) = address.strip_prefix("unix://").map(Path::new).filter(|path| path.is_absolute()) else {
        return Err(Error::invalid(format!("address {address:?}: not a unix socket")));
    };
    let (dir, name) = match open_existing_dir(path) {
        Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(false),
        opened => opened?,
    };
    flock(&dir, FlockOperation::LockExclusive).context(|| format!("lock {:?}", path.parent()))?;
    match statat(&dir, name.as_path(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Socket => {}
        Ok(_) | Err(Errno::NOENT) => return Ok(false),
        Err(errno) => return Err(Error::kernel(format!("stat {path:?}"), errno)),
    }
    if is_live(path)? {
        return Ok(true);
    }
    unlinkat(&dir, name.as_path(), AtFlags::empty()).context(|| format!("remove {path:?}"))?;
    Ok(false)
}

/// Whether somebody takes clients at `address`, and does not merely have the listener open. A client that sends nothing more is let go by who
/// serves; one that nobody took is reset when the listener is closed. Whoever does neither within `limit` (a stopped process) counts as alive.
///
/// # Errors
/// The errno of the step that failed.
pub fn is_served(address: &str, limit: Duration) -> Result<bool> {
    let what = || format!("look for a daemon at {address:?}");
    let path = address.strip_prefix("unix://").unwrap_or(address);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).context(what)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path).context(what)?) {
        Ok(()) => {}
        // Its queue is full, so it has been alive for long.
        Err(Errno::AGAIN) => return Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => return Ok(false),
        Err(errno) => return Err(Error::kernel(what(), errno)),
    }
    rustix::net::shutdown(&socket, Shutdown::Write).context(what)?;
    let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
    let ready = retry_on_intr(|| poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&limit))).context(what)?;
    Ok(ready == 0 || rustix::io::read(&socket, &mut [0_u8]) == Ok(0))
}

impl SocketFile {
    /// The address that containerd dials.
    pub fn address(&self) -> String {
        address(&self.path)
    }

    /// Removes the file, if it is still the one that was bound. To be called while the listener is open: until then nobody else
    /// takes the name.
    ///
    /// # Errors
    /// The errno of the step that failed.
    pub fn remove(&self) -> Result<()> {
        self.remove_unless(|| false).map(drop)
    }

    /// As [`SocketFile::remove`], unless somebody wants it, which is asked when no `start` can be looking at it. Answers whether it is gone.
    ///
    /// # Errors
    /// The errno of the step that failed.
    pub fn remove_unless(&self, wanted: impl FnOnce() -> bool) -> Result<bool> {
        let (dir, name) = open_existing_dir(&self.path)?;
        flock(&dir, FlockOperation::LockExclusive).context(|| format!("lock {:?}", self.path.parent()))?;
        if wanted() {
            return Ok(false);
        }
        match statat(&dir, name.as_path(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if (stat.st_dev, stat.st_ino) == (self.device, self.inode) => {
                unlinkat(&dir, name.as_path(), AtFlags::empty()).context(|| format!("remove {:?}", self.path))?;
                Ok(true)
            }
            Ok(_) | Err(Errno::NOENT) => Ok(true),
            Err(errno) => Err(Error::kernel(format!("stat {:?}", self.path), errno)),
        }
    }
}

fn split(path: &Path) -> Result<(&Path, PathBuf)> {
    match (path.parent(), path.file_name()) {
        (Some(dir), Some(name)) => Ok((dir, PathBuf::from(name))),
        _ => Err(Error::invalid(format!("socket path {path:?}: no file name"))),
    }
}

/// Opens the directory of `path`, made with mode 0700 if it does not exist.
fn open_dir(path: &Path) -> Result<(OwnedFd, PathBuf)> {
    let (dir, _) = split(path)?;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).context(|| format!("create socket directory {dir:?}"))?;
    open_existing_dir(path)
}

/// Opens the directory of `path`, which nobody but us may change (CVE-2020-15257: the socket is as good as root).
fn open_existing_dir(path: &Path) -> Result<(OwnedFd, PathBuf)> {
    let (dir, name) = split(path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty()).context(|| format!("open socket directory {dir:?}"))?;
    let stat = fstat(&fd).context(|| format!("stat socket directory {dir:?}"))?;
    let (uid, ours) = (stat.st_uid, rustix::process::geteuid().as_raw());
    if uid != ours || stat.st_mode & 0o022 != 0 {
        let mode = stat.st_mode & 0o7777;
        let message =
            format!("socket directory {dir:?}: owner {uid}, mode {mode:04o}: must belong to uid {ours} and be writable by it alone");
        return Err(Error::new(ErrorKind::FailedPrecondition, message));
    }
    Ok((fd, name))
}

/// Binds and listens; `None` when the name is taken.
fn bind(path: &Path, dir: &OwnedFd, name: &Path) -> Result<Option<Bound>> {
    let what = || format!("bind {path:?}");
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).context(what)?;
    // The file gets the mode of the socket's own inode (`unix_bind_bsd` in the kernel's net/unix/af_unix.c), so it never exists with
    // more rights than these.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).context(what)?;
    match rustix::net::bind(&socket, &SocketAddrUnix::new(path).context(what)?) {
        Ok(()) => {}
        Err(Errno::ADDRINUSE) => return Ok(None),
        Err(errno) => return Err(Error::kernel(what(), errno)),
    }
    rustix::net::listen(&socket, BACKLOG).context(|| format!("listen on {path:?}"))?;
    let stat = openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).and_then(fstat).context(what)?;
    let file = SocketFile { path: path.to_path_buf(), device: stat.st_dev, inode: stat.st_ino };
    Ok(Some(Bound { listener: UnixListener::from(socket), file }))
}

/// Whether somebody listens at `path`. Never waits: a full queue of clients has a listener, too.
fn is_live(path: &Path) -> Result<bool> {
    let what = || format!("connect to {path:?}");
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).context(what)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path).context(what)?) {
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(errno) => Err(Error::kernel(what(), errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::net::UnixStream;

    fn socket_in(dir: &Path) -> PathBuf {
        path(&dir.join("s"), "/run/containerd/containerd.sock", "default", "web").unwrap()
    }

    fn bound(path: &Path) -> Bound {
        match claim(path).unwrap() {
            Claim::Bound(bound) => bound,
            Claim::Live => panic!("{path:?} is taken"),
        }
    }

    fn owner_and_mode(path: &Path) -> (u32, u32) {
        let metadata = std::fs::symlink_metadata(path).unwrap();
        (metadata.uid(), metadata.mode() & 0o7777)
    }

    #[test]
    fn the_name_is_that_of_containerd() {
        // printf %s /run/containerd/containerd.sock/default/web | sha256sum
        let expected = "/s/2cde4450fa38";
        let name = path(Path::new("/s"), "/run//containerd/./containerd.sock", "default", "web").unwrap();
        assert_eq!(name, path(Path::new("/s"), "/run/containerd/containerd.sock", "default", "web").unwrap());
        assert!(name.to_str().unwrap().starts_with(expected), "{name:?}");
        assert_eq!(join(&["", "a/../..", "b"]), "../b");
        assert_eq!(join(&["/..", "b"]), "/b");
    }

    #[test]
    fn a_long_path_is_refused_before_the_kernel_cuts_it() {
        let dir = format!("/{}", "d".repeat(40));
        assert_eq!(path(Path::new(&dir), "a", "b", "c").unwrap().as_os_str().len(), 106);
        let error = path(Path::new(&format!("{dir}d")), "a", "b", "c").unwrap_err();
        assert!(error.to_string().contains("107 bytes, at most 106"), "{error}");
        assert!(path(Path::new("relative"), "a", "b", "c").is_err());
    }

    #[test]
    fn the_socket_and_its_directory_are_ours_alone() {
        let tmp = tempfile::tempdir().unwrap();
        let path = socket_in(tmp.path());
        let _bound = bound(&path);
        let uid = rustix::process::geteuid().as_raw();
        assert_eq!(owner_and_mode(&path), (uid, 0o600));
        assert_eq!(owner_and_mode(path.parent().unwrap()), (uid, 0o700));
    }

    #[test]
    fn a_live_socket_is_shared_and_a_stale_one_replaced() {
        let tmp = tempfile::tempdir().unwrap();
        let path = socket_in(tmp.path());
        let first = bound(&path);
        assert!(matches!(claim(&path).unwrap(), Claim::Live));
        drop(first.listener);
        let second = bound(&path);
        UnixStream::connect(&path).unwrap();
        second.file.remove().unwrap();
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
        second.file.remove().unwrap();
        let _third = bound(&path);
        second.file.remove().unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn one_of_many_claims_wins() {
        let tmp = tempfile::tempdir().unwrap();
        let path = socket_in(tmp.path());
        for _ in 0..100 {
            drop(bound(&path).listener);
            let together = std::sync::Barrier::new(8);
            let claim_together = || {
                together.wait();
                claim(&path).unwrap()
            };
            let claims: Vec<Claim> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(claim_together)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(claims.iter().filter(|claim| matches!(claim, Claim::Bound(_))).count(), 1);
            assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_directory_that_others_write_to_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let path = socket_in(tmp.path());
        let dir = path.parent().unwrap();
        std::fs::create_dir(dir).unwrap();
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o770)).unwrap();
        let error = claim(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(error.to_string().contains("mode 0770"), "{error}");
    }

    #[test]
    fn only_a_dead_socket_is_removed() {
        let tmp = tempfile::tempdir().unwrap();
        let path = socket_in(tmp.path());
        assert!(!remove_dead(&address(&path)).unwrap());
        let bound = bound(&path);
        assert!(remove_dead(&address(&path)).unwrap() && path.exists());
        drop(bound.listener);
        assert!(!remove_dead(&address(&path)).unwrap() && !path.exists());
        std::fs::write(&path, "not a socket").unwrap();
        assert!(!remove_dead(&address(&path)).unwrap() && path.exists());
        assert!(remove_dead("vsock://1:2").is_err());
    }

    #[test]
    fn who_has_only_the_listener_open_serves_nobody() {
        let tmp = tempfile::tempdir().unwrap();
        let path = socket_in(tmp.path());
        let limit = Duration::from_secs(5);
        assert!(!is_served(&address(&path), limit).unwrap(), "nobody is there");
        let taken = bound(&path);
        let served = std::thread::spawn({
            let listener = taken.listener.try_clone().unwrap();
            move || drop(listener.accept().unwrap())
        });
        assert!(is_served(&address(&path), limit).unwrap(), "the client is taken and let go");
        served.join().unwrap();
        // A process that is killed between the first look and the end of its descriptors.
        let dying = std::thread::spawn({
            let address = address(&path);
            move || is_served(&address, limit).unwrap()
        });
        let ready = || poll(&mut [PollFd::new(&taken.listener, PollFlags::IN)], Some(&Timespec { tv_sec: 5, tv_nsec: 0 }));
        assert_eq!(retry_on_intr(ready), Ok(1));
        drop(taken);
        assert!(!dying.join().unwrap());
    }
}
