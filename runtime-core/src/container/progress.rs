//! What a child has to say to its parent, in the parent's terms.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use super::failure;
use crate::error::{Context, Error, Result};
use crate::plan::Launch;
use crate::plan::report::{self, GO, Message};

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
                Ok(Some(Message::Failed(failed))) => Err(failure::explain(launch, &failed)),
                Ok(None) => Ok(Some(Self::Executed)),
                Err(Errno::AGAIN) => Ok(None),
                Err(Errno::INTR) => continue,
                Err(errno) => Err(Error::kernel("read the child's report", errno)),
            };
        }
    }
}

/// Says the word that a child waits for.
///
/// # Errors
/// `EPIPE` if it is gone.
pub fn go(report: BorrowedFd<'_>) -> Result<()> {
    rustix::net::send(report, &[GO], SendFlags::NOSIGNAL).map(drop).context(|| "tell the child to go on")
}
