//! What a child has to say to its parent, in the parent's terms.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use super::failure;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::plan::launcher::Launched;
use crate::plan::report::{self, Message};
use crate::plan::{Launch, Step};
use crate::sys::mount::set_idmap;
use crate::sys::process::send_signal;

/// Where a child has got to.
pub enum Progress {
    /// It waits for the hooks.
    Hooks,
    /// The master of its terminal.
    Console(OwnedFd),
    /// A mount or a namespace that it made.
    Handed(OwnedFd),
    /// The listener of the filter that it has loaded; it waits until that is taken.
    Listener(OwnedFd),
    /// It goes on as this new process, a child of the same parent, and ends as the old one.
    Born(Launched),
    /// It waits for the start.
    Ready,
    /// It has executed its program, or was killed.
    Executed,
}

impl Progress {
    /// The next thing that a child says which does `launch`, if it has said something.
    ///
    /// # Errors
    /// The step that failed, as a sentence.
    pub fn next(report: BorrowedFd<'_>, pidfd: BorrowedFd<'_>, launch: &Launch) -> Result<Option<Self>> {
        loop {
            return match report::receive(report) {
                Ok(Some(Message::Ready)) => Ok(Some(Self::Ready)),
                Ok(Some(Message::Hooks)) => Ok(Some(Self::Hooks)),
                Ok(Some(Message::Console(master))) => Ok(Some(Self::Console(master))),
                Ok(Some(Message::Handed(descriptor))) => Ok(Some(Self::Handed(descriptor))),
                Ok(Some(Message::Listener(number))) => {
                    let listener = pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty());
                    listener.context(|| "pidfd_getfd of the seccomp listener").map(|listener| Some(Self::Listener(listener)))
                }
                Ok(Some(Message::Map { mount, namespace, recursive })) => {
                    map_owners(report, pidfd, launch, (mount, namespace), recursive)?;
                    continue;
                }
                Ok(Some(Message::Born(pidfd))) => born(pidfd).map(|launched| Some(Self::Born(launched))),
                Ok(Some(Message::Failed(failed))) => Err(failure::explain(launch, &failed)),
                Ok(None) => Ok(Some(Self::Executed)),
                Err(Errno::AGAIN) => Ok(None),
                Err(Errno::INTR) => continue,
                Err(errno) => Err(Error::kernel("read the child's report", errno)),
            };
        }
    }
}

/// Does for a child what [`Step::IdMapByParent`] asks for, with a mount and a user namespace by the child's numbers of them. Only a child that
/// has such a step gets it, since it takes rights that no container has.
///
/// # Errors
/// The child is gone. That it was not done is told to the child.
pub fn map_owners(report: BorrowedFd<'_>, pidfd: BorrowedFd<'_>, launch: &Launch, numbers: (i32, i32), recursive: bool) -> Result<()> {
    let take = |number| pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty());
    let asks = launch.plan.steps.iter().any(|step| matches!(step, Step::IdMapByParent { .. }));
    let done = match asks {
        true => take(numbers.0).and_then(|mount| set_idmap(mount.as_fd(), take(numbers.1)?.as_fd(), recursive)),
        false => Err(Errno::PERM),
    };
    let told = match done {
        Ok(()) => report::go(report),
        Err(errno) => report::refuse(report, errno),
    };
    told.context(|| "answer the child that asks for mapped owners")
}

/// The process that a child goes on as, by its pidfd.
///
/// # Errors
/// It has ended and was reaped.
pub fn born(pidfd: OwnedFd) -> Result<Launched> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(&path).context(|| format!("read {path}")).inspect_err(|_| {
        // Otherwise no record would name it.
        let _ = send_signal(pidfd.as_fd(), libc::SIGKILL);
    })?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok()).filter(|pid| *pid > 0);
    let pid = pid.ok_or_else(|| Error::new(ErrorKind::FailedPrecondition, "the process was killed at its birth"))?;
    Ok(Launched { pid, pidfd: Arc::new(pidfd) })
}

/// Says the word that a child waits for.
///
/// # Errors
/// `EPIPE` if it is gone.
pub fn go(report: BorrowedFd<'_>) -> Result<()> {
    report::go(report).context(|| "tell the child to go on")
}
