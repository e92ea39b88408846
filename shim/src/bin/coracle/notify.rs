//! sd_notify(3) for a container, as runc has it (notify_socket.go): its first process finds a socket of its own in `NOTIFY_SOCKET`, and when it
//! says there that it is ready, the service manager that this command serves is told so, and which process to look after.
//!
//! The socket is made by the command that lets the process go, in a directory of the container's state that is mounted into it, and goes with
//! that state. What else a program says is for the manager of its own service, and this is another one's.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, Permissions};
use std::io::ErrorKind as IoKind;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::MountBuilder;
use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use runtime_core::plan::report::send_with;
use runtime_core::spec::Spec;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::SendFlags;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::launch::timespec;
use crate::log::Log;
use crate::store::Entry;

const VARIABLE: &str = "NOTIFY_SOCKET";
/// In the container's state, and as the last component of the place where it is mounted.
const DIRECTORY: &str = "notify";
const SOCKET: &str = "notify.sock";
const INSIDE: &str = "/run/notify";
/// What a message may have.
const MESSAGE_MAX: usize = 4096;
/// How long the service manager may take to read what it was told.
const BARRIER: Duration = Duration::from_secs(30);

fn manager() -> Option<OsString> {
    std::env::var_os(VARIABLE).filter(|name| !name.is_empty())
}

/// Gives a container that is being created a place for its socket, if this command was started by a service manager that listens.
///
/// # Errors
/// The directory cannot be made.
pub fn offer(entry: &Entry, spec: &mut Spec) -> Result<()> {
    let (Some(_), Some(process)) = (manager(), &mut spec.process) else { return Ok(()) };
    let directory = entry.path().join(DIRECTORY);
    DirBuilder::new().mode(0o755).create(&directory).context(|| format!("make {directory:?}"))?;
    // For users of a user namespace, too, whatever the mask.
    fs::set_permissions(&directory, Permissions::from_mode(0o755)).context(|| format!("chmod {directory:?}"))?;
    let options = ["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned).to_vec();
    let mount = MountBuilder::default().destination(INSIDE).typ("bind").source(directory).options(options).build();
    spec.mounts.push(mount.map_err(|error| Error::new(ErrorKind::Internal, format!("{VARIABLE}: {error}")))?);
    process.env.retain(|variable| !variable.starts_with("NOTIFY_SOCKET="));
    process.env.push(format!("{VARIABLE}={INSIDE}/{SOCKET}"));
    Ok(())
}

/// A container's socket, and the service manager.
pub struct Notify {
    container: UnixDatagram,
    manager: UnixDatagram,
}

impl Notify {
    /// Listens at the place that `create` has made, before the first process may speak. It is no error if there is no manager.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn listen(entry: &Entry, log: &Log) -> Result<Option<Self>> {
        let Some(name) = manager() else { return Ok(None) };
        let directory = entry.path().join(DIRECTORY);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match rustix::fs::open(&directory, flags, Mode::empty()) {
            // It was created without a service manager.
            Err(Errno::NOENT) => return Ok(None),
            result => result.context(|| format!("open {directory:?}"))?,
        };
        let manager = match connect(&name) {
            Ok(manager) => manager,
            Err(error) => {
                log.warn(&format!("{VARIABLE} {name:?}: {error}, ignoring"));
                return Ok(None);
            }
        };
        let container = bind(&opened).context(|| format!("{VARIABLE}: listen at {:?}", directory.join(SOCKET)))?;
        Ok(Some(Self { container, manager }))
    }

    /// Waits until the container is ready or has ended, and tells the manager that its first process is the one to look after. The container
    /// runs, whatever the manager does.
    pub fn wait(&self, pid: i32, pidfd: BorrowedFd<'_>, log: &Log) {
        if let Err(error) = self.forward(pid.cast_unsigned(), Some(pidfd)) {
            log.warn(&format!("{error}, ignoring"));
        }
    }

    fn forward(&self, process: u32, container: Option<BorrowedFd<'_>>) -> Result<()> {
        let Some(ready) = self.ready(container)? else { return Ok(()) };
        let tell = |message: &[u8]| self.manager.send(message).map(drop).context(|| format!("{VARIABLE}: tell the service manager"));
        tell(&[&ready[..], b"\n"].concat())?;
        tell(format!("MAINPID={process}\n").as_bytes())?;
        self.barrier()
    }

    /// The same beside a command that stays as long as the container, and is itself the process to look after: it ends with its status.
    pub fn forward_in_background(self) {
        std::thread::spawn(move || self.forward(std::process::id(), None));
    }

    /// The line that says so, from any message.
    fn ready(&self, container: Option<BorrowedFd<'_>>) -> Result<Option<Vec<u8>>> {
        let mut message = [0u8; MESSAGE_MAX];
        loop {
            let mut polled = vec![PollFd::new(&self.container, PollFlags::IN)];
            polled.extend(container.map(|container| PollFd::from_borrowed_fd(container, PollFlags::IN)));
            retry_on_intr(|| poll(&mut polled, None)).context(|| "poll")?;
            if !polled[0].revents().contains(PollFlags::IN) {
                return Ok(None);
            }
            let length = self.container.recv(&mut message).context(|| format!("{VARIABLE}: read from the container"))?;
            if let Some(line) = message[..length].split(|byte| *byte == b'\n').find(|line| line.starts_with(b"READY=")) {
                return Ok(Some(line.to_vec()));
            }
        }
    }

    /// sd_notify_barrier(3): the manager closes the descriptor when it has read all that came before. One that knows no barriers never does.
    fn barrier(&self) -> Result<()> {
        let (reading, writing) = pipe_with(PipeFlags::CLOEXEC).context(|| "pipe")?;
        send_with(self.manager.as_fd(), b"BARRIER=1", writing.as_fd(), SendFlags::NOSIGNAL)
            .context(|| format!("{VARIABLE}: tell the service manager"))?;
        drop(writing);
        retry_on_intr(|| poll(&mut [PollFd::new(&reading, PollFlags::empty())], Some(&timespec(BARRIER)))).map(drop).context(|| "poll")
    }
}

/// A name that begins with `@` is an abstract one.
fn connect(name: &OsString) -> std::io::Result<UnixDatagram> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(Path::new(name))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

/// By the directory's descriptor: its path may be longer than an address. Every user of the container may speak there.
fn bind(directory: &OwnedFd) -> std::io::Result<UnixDatagram> {
    let path = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
    match fs::remove_file(&path) {
        // An earlier `start` has failed.
        Err(error) if error.kind() != IoKind::NotFound => return Err(error),
        _ => {}
    }
    let mask = rustix::process::umask(Mode::empty());
    let socket = UnixDatagram::bind(path);
    rustix::process::umask(mask);
    socket
}
