//! The end of an output while containerd is away.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use runtime_core::error::{Context, Result};
use rustix::event::PollFlags;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags};
use tokio::io::Interest;
use tokio::sync::watch;

use super::pump::{Phase, poll_now, until};
use super::watched::Watched;

/// Well above the grace period of a busy machine.
const GRACE: Duration = Duration::from_millis(200);
/// How long a deletion waits for a client that is about to open or to read: on a busy machine it may take tens of milliseconds until a
/// thread runs that the kernel has woken.
pub(super) const LATE: Duration = Duration::from_millis(250);

/// Closes a fifo whose output is complete, once that loses nothing. Answers how many bytes are lost.
///
/// A client waits for the end of the output before it asks for the deletion, so the write end must not stay open; but what lies in
/// a fifo is gone when its last descriptor is closed. So with bytes in it and nobody there to read them, it is kept until
/// someone has opened it, or until the deletion. An empty one is kept just as long: containerd opens its end in a thread of its own, and
/// when that runs only after a quick process is over, it would wait for a writer for ever (`fifo_open` in the kernel's fs/pipe.c).
///
/// containerd's client gives up a fifo at the answer to the deletion, even one that it has opened and not come to read (`Cancel` in
/// its `pkg/cio`, `OpenFifo` in containerd/fifo): so the deletion waits a moment for what lies there to be taken.
pub(super) async fn linger(write: Watched, hold: OwnedFd, phase: &mut watch::Receiver<Phase>) -> u64 {
    drop(hold);
    if !has_reader(&write) && !opened(&write, phase).await {
        return unread(&write);
    }
    if unread(&write) == 0 {
        return 0;
    }
    // Our own reader, from here on only to see what lies there.
    let Ok(look) = reopen(&write) else { return 0 };
    drop(write);
    until(phase, Phase::Draining).await;
    taken(&look, phase, Phase::Stopped).await;
    0
}

fn unread(fifo: impl AsFd) -> u64 {
    rustix::io::ioctl_fionread(fifo).unwrap_or(0)
}

/// Waits until someone has opened the fifo for reading; false if nobody has when the deletion begins, or with bytes in it [`LATE`] after.
async fn opened(write: &Watched, phase: &mut watch::Receiver<Phase>) -> bool {
    // Without inotify the bytes are lost, as they are with containerd's own shim.
    let Ok(opens) = Changes::of(write, WatchFlags::OPEN) else { return false };
    let mut stopped = phase.clone();
    let gone = async {
        until(phase, Phase::Draining).await;
        if unread(write) == 0 {
            return;
        }
        tokio::select! {
            biased;
            () = until(&mut stopped, Phase::Stopped) => {}
            () = tokio::time::sleep(LATE) => {}
        }
    };
    tokio::select! {
        biased;
        () = opens.wait(|| has_reader(write)) => {}
        () = gone => {}
    }
    opens.close();
    has_reader(write)
}

/// Waits until nothing lies in the fifo any more, [`LATE`] at most and not beyond `least`. Not to be dropped on the way, see
/// [`Changes::close`].
pub(super) async fn taken(look: impl AsFd, phase: &mut watch::Receiver<Phase>, least: Phase) {
    if unread(&look) == 0 {
        return;
    }
    let Ok(reads) = Changes::of(&look, WatchFlags::ACCESS) else { return };
    tokio::select! {
        biased;
        () = until(phase, least) => {}
        () = reads.wait(|| unread(&look) == 0) => {}
        () = tokio::time::sleep(LATE) => {}
    }
    reads.close();
}

fn reopen(fifo: &Watched) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(link(fifo), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

fn link(fifo: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fifo.as_fd().as_raw_fd())
}

/// The write end of a pipe reports an error for as long as there is no reader, see `pipe_poll` in the kernel's fs/pipe.c.
fn has_reader(write: &Watched) -> bool {
    !poll_now(write, PollFlags::OUT).contains(PollFlags::ERR)
}

/// Reports what others do with a fifo.
struct Changes {
    inotify: Watched,
    watch: i32,
}

impl Changes {
    fn of(fifo: impl AsFd, what: WatchFlags) -> Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).context(|| "create an inotify instance")?;
        let watch = inotify::add_watch(&inotify, link(fifo), what).context(|| "watch a fifo")?;
        Ok(Self { inotify: Watched::new(inotify, Interest::READABLE)?, watch })
    }

    /// Waits until something holds, asked first and after each change.
    async fn wait(&self, holds: impl Fn() -> bool) {
        while !holds() {
            self.next().await;
        }
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
