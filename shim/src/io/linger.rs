//! The end of an output while containerd is away.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use runtime_core::error::{Context, Result};
use rustix::event::PollFlags;
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use tokio::io::Interest;
use tokio::sync::watch;

use super::pump::{Phase, poll_now, until};
use super::watched::Watched;

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
    let Ok(opens) = opens_of(&write) else { return };
    while !has_reader(&write) {
        tokio::select! {
            biased;
            () = until(phase, Phase::Draining) => return,
            _ = opens.readable() => {}
        }
        while rustix::io::read(&opens, &mut [MaybeUninit::<u8>::uninit(); 256][..]).is_ok() {}
    }
}

/// The write end of a pipe reports an error for as long as there is no reader, see `pipe_poll` in the kernel's fs/pipe.c.
fn has_reader(write: &Watched) -> bool {
    !poll_now(write, PollFlags::OUT).contains(PollFlags::ERR)
}

/// Reports each open of `fifo`.
fn opens_of(fifo: &Watched) -> Result<Watched> {
    let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).context(|| "create an inotify instance")?;
    let link = format!("/proc/self/fd/{}", fifo.as_fd().as_raw_fd());
    add_watch(&inotify, link, WatchFlags::OPEN).context(|| "watch a fifo")?;
    Watched::new(inotify, Interest::READABLE)
}
