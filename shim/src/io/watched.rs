//! Waiting for descriptors on the runtime's reactor, with nothing that can spin.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use runtime_core::error::{Context, Result};
use rustix::event::epoll;
use rustix::time::Timespec;
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

/// What a wait came back with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edge {
    /// Something happened since the last wait: try the operation again.
    Changed,
    /// The other end is closed. The reactor reports this for ever after, so an operation that would still block has met its end.
    HungUp,
}

/// A descriptor that does not block, registered with the reactor for as long as it lives.
///
/// The rule of use is: try the operation; on `EAGAIN` wait; try again. A wait forgets the readiness it reports, so an event
/// that came before the next try is seen by that try, and a later one ends the next wait.
#[derive(Debug)]
pub(crate) struct Watched(AsyncFd<OwnedFd>);

impl Watched {
    /// Sets `O_NONBLOCK` on `fd` and registers it for `interest`. Must be called inside a runtime.
    ///
    /// # Errors
    /// Those of `ioctl(FIONBIO)` and of `epoll_ctl(2)`: `EPERM` for a regular file or a directory.
    #[allow(unsafe_code)] // tokio has no safe constructor for an owned descriptor.
    pub(crate) fn new(fd: OwnedFd, interest: Interest) -> Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true).context(|| "set a descriptor non-blocking")?;
        // SAFETY: the OwnedFd keeps its descriptor open until the AsyncFd drops it, always reports the same number, and no method
        // of Watched hands out `&mut` access through which it could be exchanged.
        let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
        registered.map(Self).map_err(std::io::Error::from).context(|| "watch a descriptor")
    }

    /// Waits until there may be something to read.
    pub(crate) async fn readable(&self) -> Edge {
        forget(self.0.readable().await)
    }

    /// Waits for whatever it was registered for.
    pub(crate) async fn ready(&self) -> Edge {
        forget(self.0.ready(Interest::READABLE | Interest::PRIORITY).await)
    }

    /// Waits until there may be room to write.
    pub(crate) async fn writable(&self) -> Edge {
        forget(self.0.writable().await)
    }
}

/// Takes note of what is ready and clears it. The reactor fails only when it shuts down, which ends every descriptor.
fn forget(ready: std::io::Result<AsyncFdReadyGuard<'_, OwnedFd>>) -> Edge {
    match ready {
        Ok(mut guard) => {
            let ready = guard.ready();
            guard.clear_ready();
            if ready.is_read_closed() || ready.is_write_closed() { Edge::HungUp } else { Edge::Changed }
        }
        Err(_) => Edge::HungUp,
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// Edges of a descriptor whose hang-up is not final, such as a terminal's master.
///
/// The reactor remembers a hang-up for ever, so a master whose last slave was closed, and may be opened again, would never be
/// waited for again. An epoll instance in between reports each change once.
#[derive(Debug)]
pub(crate) struct Edges(Watched);

impl Edges {
    /// Reports changes of `fd` among `events`, and hang-ups. `fd` is not kept open by this.
    ///
    /// # Errors
    /// Those of `epoll_create1(2)` and `epoll_ctl(2)`.
    pub(crate) fn new(fd: impl AsFd, events: epoll::EventFlags) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context(|| "create an epoll instance")?;
        epoll::add(&epoll, fd, epoll::EventData::new_u64(0), events | epoll::EventFlags::ET).context(|| "watch a terminal")?;
        Watched::new(epoll, Interest::READABLE).map(Self)
    }

    /// Waits for the next change, which is never final. Same rule of use as [`Watched`].
    pub(crate) async fn next(&self) -> Edge {
        self.0.readable().await;
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
        // Only takes the edge off the list; that it cannot fail for our arguments is no concern of the caller, who tries again.
        let _ = epoll::wait(&self.0, &mut events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        Edge::Changed
    }
}
