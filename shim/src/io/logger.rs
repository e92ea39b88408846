//! Logger processes of `binary://` and `binary-v2://`.
//!
//! The process is started by a [`Spawner`], for only the owner of the fork knows how; what it gets, how it says that it is ready
//! and how it is ended are here. See containerd's `core/runtime/v2/logging` and `NewBinaryCmd`.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use runtime_core::error::{Context, Error, ErrorKind, Result};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::time::timeout;

use super::open;
use super::target::{LoggerUri, Readiness};
use super::watched::Watched;
use super::{Origin, Owner};

/// How long a logger may take until it reads.
const READY_BOUND: Duration = Duration::from_secs(10);
/// How long a logger may go on by itself after the end of its input.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long a logger may take to obey SIGTERM; containerd's `binaryIOProcTermTimeout`.
const TERM_BOUND: Duration = Duration::from_secs(12);

/// A logger to start: its whole environment, and its descriptors beside 0, 1 and 2, which are `/dev/null`.
#[derive(Debug)]
pub struct LoggerCommand {
    /// Absolute; checked to be an executable that only root can change.
    pub path: PathBuf,
    /// The arguments after the program's name.
    pub args: Vec<OsString>,
    /// All of the environment.
    pub env: Vec<(&'static str, String)>,
    /// The descriptors and the numbers they must have in the process. All others must be closed.
    pub fds: Vec<(OwnedFd, i32)>,
}

/// Starts loggers.
#[async_trait]
pub trait Spawner: Send + Sync {
    /// Starts `command`; returns when the execve is done.
    ///
    /// # Errors
    /// What hindered the fork or the execve.
    async fn spawn_logger(&self, command: LoggerCommand) -> Result<Box<dyn LoggerProcess>>;
}

/// A running logger.
#[async_trait]
pub trait LoggerProcess: Send {
    /// Sends `signal`. To a process that is gone already it does nothing.
    fn kill(&self, signal: Signal);

    /// Waits for the end and reaps. May be dropped while it waits and called again.
    async fn wait(&mut self);
}

/// A logger that said it is ready. Dropped, it is ended in a task of its own.
pub(super) struct Logger(Option<Box<dyn LoggerProcess>>);

/// The write ends of a logger's input.
pub(super) struct LoggerEnds {
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// Starts the logger of `uri` and waits until it is ready.
pub(super) async fn start(uri: LoggerUri, origin: &Origin<'_>, owner: Option<Owner>) -> Result<(Logger, LoggerEnds)> {
    let path = uri.path.clone();
    start_checked(uri, origin, owner).await.context(|| format!("logger {path:?}"))
}

async fn start_checked(uri: LoggerUri, origin: &Origin<'_>, owner: Option<Owner>) -> Result<(Logger, LoggerEnds)> {
    let spawner = origin.spawner.ok_or_else(|| Error::invalid("binary loggers are not allowed (allow_binary_logger)"))?;
    check_binary(&uri.path)?;
    let (stdout_read, stdout) = open::pipe(owner)?;
    let (stderr_read, stderr) = open::pipe(owner)?;
    let (ready, ready_write) = open::pipe(None)?;
    let command = LoggerCommand {
        path: uri.path,
        args: uri.args,
        env: vec![("CONTAINER_ID", origin.id.to_owned()), ("CONTAINER_NAMESPACE", origin.namespace.to_owned())],
        fds: vec![(stdout_read, 3), (stderr_read, 4), (ready_write, 5)],
    };
    let logger = Logger(Some(spawner.spawn_logger(command).await?));
    let ready = Watched::new(ready, Interest::READABLE)?;
    let Ok(byte) = timeout(READY_BOUND, said_ready(&ready)).await else {
        return Err(Error::new(ErrorKind::Internal, format!("not ready within {} s", READY_BOUND.as_secs())));
    };
    if !byte? && uri.readiness == Readiness::Byte {
        return Err(Error::new(ErrorKind::Internal, "closed descriptor 5, or ended, without saying that it is ready"));
    }
    Ok((logger, LoggerEnds { stdout, stderr }))
}

/// Whether a byte came before the end.
async fn said_ready(ready: &Watched) -> Result<bool> {
    loop {
        match rustix::io::read(ready, &mut [0u8]) {
            Ok(count) => return Ok(count == 1),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                ready.readable().await;
            }
            Err(errno) => return Err(Error::kernel("read descriptor 5", errno)),
        }
    }
}

/// The URI names a program to be run as root on the host: only root may have been able to write it.
fn check_binary(path: &Path) -> Result<()> {
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context(|| "open")?;
    let stat = rustix::fs::fstat(&file).context(|| "stat")?;
    let refuse = |why: &str| Err(Error::invalid(why));
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if stat.st_uid != 0 => refuse("not owned by root"),
        FileType::RegularFile if stat.st_mode & 0o022 != 0 => refuse("writable by others than root"),
        FileType::RegularFile if stat.st_mode & 0o111 == 0 => refuse("not executable"),
        FileType::RegularFile => Ok(()),
        _ => refuse("not a regular file"),
    }
}

impl Logger {
    /// Lets the logger read to the end of its input, then ends it. Its input must have been closed.
    pub(super) async fn finish(mut self) {
        if let Some(mut process) = self.0.take()
            && timeout(LAST_WORDS, process.wait()).await.is_err()
        {
            terminate(process).await;
        }
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        let Some(process) = self.0.take() else { return };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(terminate(process))),
            Err(_) => process.kill(Signal::KILL),
        }
    }
}

async fn terminate(mut process: Box<dyn LoggerProcess>) {
    process.kill(Signal::TERM);
    if timeout(TERM_BOUND, process.wait()).await.is_err() {
        log::warn!("a logger did not end within {} s of SIGTERM and is killed", TERM_BOUND.as_secs());
        process.kill(Signal::KILL);
        process.wait().await;
    }
}
