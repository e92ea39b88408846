//! What goes between the terminal of a process and the streams of a command that serves it.
//!
//! Standard input and output are the caller's: whether they wait is for the caller to say (`O_NONBLOCK` belongs to the open file, which others
//! have, too), so both kinds are served and neither is changed.

use std::io::{stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::{self, JoinHandle};

use runtime_core::error::{Context as _, Result};
use runtime_core::sys::process::send_signal;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::{Errno, read, retry_on_intr, write};

use crate::launch::Child;

/// What is moved at once: as much as a pipe takes whole (`PIPE_BUF`).
const PIECE: usize = 4096;
/// More than a terminal holds of what was written to it (the kernel's drivers/tty/pty.c, n_tty.c: 8 KiB, 4 KiB).
const HELD_MAX: usize = 64 << 10;
/// Which descriptor an event is of.
const PROCESS: u64 = 0;
const MASTER: u64 = 1;

/// Copies in both directions.
pub struct Relay(JoinHandle<std::result::Result<(), Errno>>);

impl Relay {
    /// Starts them.
    ///
    /// # Errors
    /// At a limit of descriptors.
    pub fn start(master: &OwnedFd, child: &Child) -> Result<Self> {
        rustix::io::ioctl_fionbio(master, true).context(|| "set a terminal non-blocking")?;
        let duplicate = |fd: &OwnedFd| fd.try_clone().context(|| "dup");
        let output = Output::new(duplicate(master)?, duplicate(&child.pidfd)?)?;
        let typed = duplicate(master)?;
        thread::spawn(move || type_in(&typed));
        Ok(Self(thread::spawn(move || output.copy())))
    }

    /// Waits until all that the process has written has been taken, or its reader has gone.
    ///
    /// # Errors
    /// What standard output refused is lost.
    pub fn finish(self) -> std::result::Result<(), Errno> {
        self.0.join().unwrap_or(Ok(()))
    }
}

/// Until the caller's input has ended or the terminal has gone.
fn type_in(master: &OwnedFd) {
    let stdin = stdin();
    let mut buffer = [0u8; PIECE];
    loop {
        match retry_on_intr(|| read(&stdin, &mut buffer)) {
            Ok(0) => return,
            Ok(length) if write_all(master.as_fd(), &buffer[..length]).is_err() => return,
            Ok(_) => {}
            Err(Errno::AGAIN) if wait(stdin.as_fd(), PollFlags::IN).is_ok() => {}
            Err(_) => return,
        }
    }
}

struct Output {
    master: OwnedFd,
    process: OwnedFd,
    /// Both of them. For poll(2) a master whose peer is not open is at its end, though a process may open the peer again.
    events: OwnedFd,
}

impl Output {
    fn new(master: OwnedFd, process: OwnedFd) -> Result<Self> {
        let events = epoll::create(epoll::CreateFlags::CLOEXEC).context(|| "epoll_create")?;
        let add = |fd: &OwnedFd, name, flags| epoll::add(&events, fd, epoll::EventData::new_u64(name), flags).context(|| "epoll_ctl");
        add(&process, PROCESS, epoll::EventFlags::IN)?;
        add(&master, MASTER, epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        Ok(Self { master, process, events })
    }

    /// All that is written until the process has ended; then what the terminal holds at most, for other processes may go on writing to it without end.
    fn copy(&self) -> std::result::Result<(), Errno> {
        let mut buffer = [0u8; PIECE];
        let (mut ended, mut left, mut taken) = (false, HELD_MAX, Ok(()));
        while left > 0 {
            ended = ended || has_ended(&self.process);
            match retry_on_intr(|| read(&self.master, &mut buffer)) {
                Ok(length @ 1..) => {
                    if taken.is_ok() {
                        taken = write_all(stdout().as_fd(), &buffer[..length]);
                        // It learns of it as if it had written there itself; what it writes all the same is read, or it would block.
                        let _ = if taken == Err(Errno::PIPE) { send_signal(self.process.as_fd(), libc::SIGPIPE) } else { Ok(()) };
                    }
                    left = if ended { left.saturating_sub(length) } else { left };
                }
                // Asked before the read: what the process has written before its end was there to be read.
                Ok(_) | Err(Errno::AGAIN | Errno::IO) if ended => break,
                Ok(_) | Err(Errno::AGAIN | Errno::IO) => ended = self.wait(),
                Err(_) => break,
            }
        }
        // A reader that goes away early is no failure.
        taken.or_else(|errno| if errno == Errno::PIPE { Ok(()) } else { Err(errno) })
    }

    /// Waits for output, or for the end of the process, which is the answer.
    fn wait(&self) -> bool {
        let mut events = Vec::with_capacity(2);
        if retry_on_intr(|| epoll::wait(&self.events, rustix::buffer::spare_capacity(&mut events), None)).is_err() {
            return true;
        }
        events.iter().any(|event| event.data.u64() == PROCESS)
    }
}

fn has_ended(process: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Writes all of it, however often the other side has no room.
///
/// # Errors
/// The reader has gone; what is behind it takes no more.
pub fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> std::result::Result<(), Errno> {
    while !bytes.is_empty() {
        match write(to, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(to, PollFlags::OUT)?,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn wait(fd: BorrowedFd<'_>, flags: PollFlags) -> std::result::Result<(), Errno> {
    retry_on_intr(|| poll(&mut [PollFd::from_borrowed_fd(fd, flags)], None)).map(drop)
}
