//! The end of an output while containerd is away.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use runtime_core::error::{Context, Result};
use rustix::event::PollFlags;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::sync::watch;

use super::pump::{Phase, poll_now, until};
use super::watched::Watched;

/// Well above the grace period of a busy machine.
const GRACE: Duration = Duration::from_millis(200);

/// Closes a fifo whose output is complete, once that loses nothing.
///
/// A client waits for the end of the output before it asks for the deletion, so the write end must not stay open; but what lies in
/// a fifo is gone when its last descriptor is closed. So with bytes in it and nobody there to read them, it is kept until
/// someone has opened it, or until the deletion.
pub(super) async fn linger(write: Watched, hold: OwnedFd, phase: &mut watch::Receiver<Phase>) {
    drop(hold);
    let deleted = *phase.borrow() >= Phase::Draining;
    if deleted || rustix::io::ioctl_fionread(&write).unwrap_or(0) == 0 || has_reader(&write) {
        return;
    }
    // Without inotify the bytes are lost, as they are with containerd's own shim.
    let Ok(opens) = Opens::of(&write) else { return };
    while !has_reader(&write) {
        tokio::select! {
            biased;
            () = until(phase, Phase::Draining) => break,
            () = opens.next() => {}
        }
    }
    opens.close();
}

/// The write end of a pipe reports an error for as long as there is no reader, see `pipe_poll` in the kernel's fs/pipe.c.
fn has_reader(write: &Watched) -> bool {
    !poll_now(write, PollFlags::OUT).contains(PollFlags::ERR)
}

/// Reports each open of a fifo.
struct Opens {
    inotify: Watched,
    watch: i32,
}

impl Opens {
    fn of(fifo: &Watched) -> Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).context(|| "create an inotify instance")?;
        let link = format!("/proc/self/fd/{}", fifo.as_fd().as_raw_fd());
        let watch = inotify::add_watch(&inotify, link, WatchFlags::OPEN).context(|| "watch a fifo")?;
        Ok(Self { inotify: Watched::new(inotify, Interest::READABLE)?, watch })
    }

    async fn next(&self) {
        self.inotify.readable().await;
        while rustix::io::read(&self.inotify, &mut [MaybeUninit::<u8>::uninit(); 256][..]).is_ok() {}
    }

    /// To close an instance that has just lost a watch takes the kernel several milliseconds, in which the thread would stand
    /// still (it waits for an SRCU grace period, `fsnotify_wait_marks_destroyed`). A little later it takes none.
    fn close(self) {
        let _ = inotify::remove_watch(&self.inotify, self.watch);
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            drop(self);
        });
    }
}
