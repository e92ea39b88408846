//! Starting processes: the shim's launcher, for the time of one command. What it starts is a child of the command's, and when the command ends,
//! of whoever adopts it: conmon, Docker's shim or init.

use std::cell::OnceCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use runtime_core::cgroup::CgroupPath;
use runtime_core::compile::Compiled;
use runtime_core::container::progress;
pub use runtime_core::container::progress::Progress;
use runtime_core::container::record::ProcessId;
use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use runtime_core::plan::Launch;
use runtime_core::plan::launcher::{Launched, Launcher, Request};
use runtime_core::sealed::is_sealed;
use runtime_core::sys::process::{self, Exited};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, PidfdGetfdFlags, WaitOptions, pidfd_getfd, waitpid};

/// Forked when first needed, from a process that has one thread; ended and reaped with this.
#[derive(Default)]
pub struct Launching(OnceCell<Launcher>);

/// A process that has not executed its program.
pub struct Child {
    /// As the host sees it.
    pub pid: i32,
    /// For signals and its end.
    pub pidfd: Arc<OwnedFd>,
    /// What it does.
    pub launch: Launch,
    report: OwnedFd,
    /// The process outside of the pid namespace that it was before its birth: all that it does is to end.
    old: Option<Launched>,
}

impl Launching {
    fn launcher(&self) -> Result<&Launcher> {
        if let Some(launcher) = self.0.get() {
            return Ok(launcher);
        }
        if !is_sealed()? {
            return Err(Error::new(ErrorKind::Internal, "a command that starts processes is not sealed"));
        }
        let launcher = Launcher::spawn()?;
        Ok(self.0.get_or_init(|| launcher))
    }

    /// Forks it, before there is a lock that it would hold as well until it has closed what it has inherited.
    ///
    /// # Errors
    /// At a limit of processes or descriptors.
    pub fn prepare(&self) -> Result<()> {
        self.launcher().map(drop)
    }

    /// What is in this cgroup dies if this command does: until it is [left alone](Self::leave). The lock is held until that is done.
    ///
    /// # Errors
    /// The launcher is gone.
    pub fn watch(&self, id: &str, cgroup: &CgroupPath, lock: BorrowedFd<'_>) -> Result<()> {
        send(self.launcher()?, &Request::Watch(id.to_owned(), cgroup.clone()), &[lock])
    }

    /// The same for its first process, which may leave it.
    ///
    /// # Errors
    /// The launcher is gone.
    pub fn watch_first(&self, id: &str, first: Option<ProcessId>) -> Result<()> {
        first.map_or(Ok(()), |first| send(self.launcher()?, &Request::First(id.to_owned(), first), &[]))
    }

    /// The container outlives this command.
    ///
    /// # Errors
    /// The launcher is gone.
    pub fn leave(&self, id: &str) -> Result<()> {
        send(self.launcher()?, &Request::Forget(id.to_owned()), &[])
    }

    /// Starts a process.
    ///
    /// # Errors
    /// The errno of clone3(2).
    pub fn launch(&self, compiled: Compiled, report: OwnedFd) -> Result<Child> {
        let Compiled { launch, descriptors } = compiled;
        let launcher = self.launcher()?;
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        send(launcher, &Request::Launch(Box::new(launch.clone())), &borrowed)?;
        let answer = loop {
            match launcher.receive() {
                Err(Errno::AGAIN) => wait(launcher.socket(), PollFlags::IN)?,
                Err(Errno::INTR) => {}
                result => break result.context(|| "launcher")?,
            }
        };
        let Launched { pid, pidfd } = answer.context(|| "clone3")?;
        Ok(Child { pid, pidfd, launch, report, old: None })
    }
}

impl Drop for Launching {
    fn drop(&mut self) {
        let Some(launcher) = self.0.take() else { return };
        let pid = Pid::from_raw(launcher.pid());
        // It ends when its socket closes.
        drop(launcher);
        let _ = retry_on_intr(|| waitpid(pid, WaitOptions::empty()));
    }
}

impl Child {
    /// The first process of a container that another command has created: the end of its report that this command needs is in its own keeping.
    ///
    /// # Errors
    /// It has ended; pidfd_getfd(2) is not allowed.
    pub fn waiting(init: Option<ProcessId>, parents_end: i32, launch: Launch) -> Result<Self> {
        let ended = || Error::new(ErrorKind::FailedPrecondition, "cannot start a container that has stopped");
        let init = init.ok_or_else(ended)?;
        let (pid, pidfd) = (init.pid, init.open()?.ok_or_else(ended)?);
        let report = pidfd_getfd(&pidfd, parents_end, PidfdGetfdFlags::empty())
            .context(|| format!("pidfd_getfd of the report of process {pid}, which takes CAP_SYS_PTRACE"))?;
        Ok(Self { pid, pidfd: Arc::new(pidfd), launch, report, old: None })
    }

    /// The next thing that the child says. After a birth in a pid namespace it is the new process from here on.
    ///
    /// # Errors
    /// The step that failed, as a sentence.
    pub fn progress(&mut self) -> Result<Progress> {
        loop {
            let progress = Progress::next(self.report.as_fd(), self.pidfd.as_fd(), &self.launch);
            match progress {
                Ok(Some(Progress::Born(born))) => {
                    self.become_born(born.clone());
                    return Ok(Progress::Born(born));
                }
                Ok(None) => wait(self.report.as_fd(), PollFlags::IN)?,
                progress => {
                    self.reap_old()?;
                    return progress?.ok_or_else(unexpected);
                }
            }
        }
    }

    fn become_born(&mut self, Launched { pid, pidfd }: Launched) {
        let (pid, pidfd) = (std::mem::replace(&mut self.pid, pid), std::mem::replace(&mut self.pidfd, pidfd));
        self.old = Some(Launched { pid, pidfd });
    }

    /// If the old process was killed on its way to its end, the new one is what was meant.
    fn reap_old(&mut self) -> Result<()> {
        let Some(old) = self.old.take() else { return Ok(()) };
        if wait_for(&old)?.status != 0 {
            let _ = process::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        }
        Ok(())
    }

    /// The word that the child waits for.
    ///
    /// # Errors
    /// `EPIPE` if it is gone.
    pub fn go(&self) -> Result<()> {
        progress::go(self.report.as_fd())
    }

    /// Ends and reaps it.
    pub fn kill(&self) {
        let _ = process::send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        let _ = self.wait();
        let _ = self.old.as_ref().map(wait_for);
    }

    /// Waits for its end and reaps it.
    ///
    /// # Errors
    /// It is not our child.
    pub fn wait(&self) -> Result<Exited> {
        wait_for(&Launched { pid: self.pid, pidfd: Arc::clone(&self.pidfd) })
    }
}

fn wait_for(launched: &Launched) -> Result<Exited> {
    let exited = retry_on_intr(|| process::wait(launched.pidfd.as_fd())).context(|| format!("wait for process {}", launched.pid))?;
    exited.ok_or_else(unexpected)
}

fn send(launcher: &Launcher, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let message = request.encode()?;
    let mut sent = 0;
    while sent < message.len() {
        // The descriptors go with the first byte.
        match launcher.send(&message[sent..], if sent == 0 { descriptors } else { &[] }) {
            Ok(more) => sent += more,
            Err(Errno::AGAIN) => wait(launcher.socket(), PollFlags::OUT)?,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::kernel("launcher", errno)),
        }
    }
    Ok(())
}

/// A child said what it has no reason to say.
pub fn unexpected() -> Error {
    Error::new(ErrorKind::Internal, "an unexpected report of a process")
}

/// A span as poll(2) takes it.
pub fn timespec(span: Duration) -> Timespec {
    Timespec { tv_sec: span.as_secs().cast_signed(), tv_nsec: span.subsec_nanos().into() }
}

fn wait(fd: BorrowedFd<'_>, flags: PollFlags) -> Result<()> {
    retry_on_intr(|| poll(&mut [PollFd::from_borrowed_fd(fd, flags)], None)).map(drop).context(|| "poll")
}
