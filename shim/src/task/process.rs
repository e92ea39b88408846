//! One process of a container: its state, its streams, its end.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use runtime_core::error::{Error, ErrorKind, Result};
use runtime_core::sys::process::send_signal;
use rustix::io::Errno;
use tokio::sync::watch;

use super::state::State;
use crate::io::{Io, Request};
use crate::sync::lock;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// As a shell would say it.
    pub status: u32,
    /// When.
    pub at: SystemTime,
}

/// See the module.
pub struct Process {
    /// Empty for the first process of a container.
    pub exec_id: String,
    /// Exactly as the request had it: containerd reattaches from it.
    pub stdio: Request,
    /// Held from before a process can end until its start has been told, so that nobody hears of the end first.
    pub telling: tokio::sync::Mutex<()>,
    inner: Mutex<Inner>,
    exit: watch::Sender<Option<Exit>>,
    /// True once the end has been told.
    told: watch::Sender<bool>,
}

struct Inner {
    state: State,
    pid: i32,
    pidfd: Option<Arc<OwnedFd>>,
    io: Option<Arc<Io>>,
    input_closed: bool,
    announced: bool,
    failed: Option<u32>,
    /// Its deletion was asked for while it was being started.
    unwanted: bool,
}

impl Process {
    /// One that is not launched yet.
    pub fn new(exec_id: &str, stdio: Request) -> Self {
        let inner = Inner {
            state: State::Created,
            pid: 0,
            pidfd: None,
            io: None,
            input_closed: false,
            announced: false,
            failed: None,
            unwanted: false,
        };
        Self {
            exec_id: exec_id.to_owned(),
            stdio,
            telling: tokio::sync::Mutex::default(),
            inner: Mutex::new(inner),
            exit: watch::Sender::new(None),
            told: watch::Sender::new(false),
        }
    }

    /// It exists now.
    pub fn launched(&self, pid: i32, pidfd: Arc<OwnedFd>, io: Arc<Io>) {
        let mut inner = lock(&self.inner);
        if inner.input_closed {
            io.close_stdin();
        }
        if inner.unwanted {
            let _ = send_signal(pidfd.as_fd(), libc::SIGKILL);
        }
        (inner.pid, inner.pidfd, inner.io) = (pid, Some(pidfd), Some(io));
    }

    /// It will never exist; its streams are there until they are deleted.
    pub fn has_only(&self, io: Arc<Io>) {
        lock(&self.inner).io = Some(io);
    }

    /// Ends one that is being started, as soon as it exists.
    pub fn is_unwanted(&self) {
        let mut inner = lock(&self.inner);
        inner.unwanted = true;
        if let Some(pidfd) = &inner.pidfd {
            let _ = send_signal(pidfd.as_fd(), libc::SIGKILL);
        }
    }

    /// 0 before it is launched.
    pub fn pid(&self) -> i32 {
        lock(&self.inner).pid
    }

    /// For joining and signals.
    pub fn pidfd(&self) -> Option<Arc<OwnedFd>> {
        lock(&self.inner).pidfd.clone()
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        lock(&self.inner).state
    }

    /// Moves on, unless it has ended meanwhile.
    pub fn advance(&self, to: State) {
        let mut inner = lock(&self.inner);
        if inner.state != State::Stopped {
            inner.state = to;
        }
    }

    /// It never ran its program: whatever its child ends with, this is its status.
    pub fn failed(&self, status: u32) {
        lock(&self.inner).failed = Some(status);
    }

    /// It has ended, which nobody is told before its output has been read, or a moment has passed.
    pub async fn output_taken(&self) {
        if let Some(io) = self.io() {
            io.exited();
            io.taken().await;
        }
    }

    /// It has ended.
    pub fn ended(&self, mut exit: Exit) {
        let io = {
            let mut inner = lock(&self.inner);
            exit.status = inner.failed.unwrap_or(exit.status);
            inner.state = State::Stopped;
            inner.io.clone()
        };
        if let Some(io) = io {
            io.exited();
        }
        self.exit.send_replace(Some(exit));
    }

    /// The world has been told of the end.
    pub fn told(&self) {
        self.told.send_replace(true);
    }

    /// The world knows that it exists, so it will be told of its end.
    pub fn announce(&self) {
        lock(&self.inner).announced = true;
    }

    /// Whether the world knows that it exists.
    pub fn was_told_of(&self) -> bool {
        lock(&self.inner).announced
    }

    /// Waits until the world has been told of the end.
    pub async fn wait_told(&self) {
        // The sender lives as long as `self`.
        let _ = self.told.subscribe().wait_for(|told| *told).await;
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// A receiver that outlives the process's record: Wait goes on when Delete comes first.
    pub fn subscribe(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.subscribe()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] before it exists, [`ErrorKind::NotFound`] after its end.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let (pidfd, stopped) = {
            let inner = lock(&self.inner);
            (inner.pidfd.clone(), inner.state == State::Stopped)
        };
        let finished = || Error::new(ErrorKind::NotFound, "process already finished");
        if stopped {
            return Err(finished());
        }
        let pidfd = pidfd.ok_or_else(|| Error::new(ErrorKind::FailedPrecondition, "process not created"))?;
        match send_signal(pidfd.as_fd(), signal) {
            Ok(()) => Ok(()),
            Err(Errno::SRCH) => Err(finished()),
            Err(Errno::INVAL) => Err(Error::invalid(format!("{signal} is no signal"))),
            Err(errno) => Err(Error::kernel(format!("send signal {signal}"), errno)),
        }
    }

    /// Resizes the terminal, if there is one.
    ///
    /// # Errors
    /// As [`Io::resize`].
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        self.io().map_or(Ok(()), |io| io.resize(width, height))
    }

    /// Closes the input; before the launch it is remembered.
    pub fn close_stdin(&self) {
        let io = {
            let mut inner = lock(&self.inner);
            inner.input_closed = true;
            inner.io.clone()
        };
        if let Some(io) = io {
            io.close_stdin();
        }
    }

    /// The streams, once there are any.
    pub fn io(&self) -> Option<Arc<Io>> {
        lock(&self.inner).io.clone()
    }
}
