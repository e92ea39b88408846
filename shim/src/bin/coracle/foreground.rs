//! A command that waits for a process: it serves its terminal, passes signals on and ends with its status.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use runtime_core::error::{Context as _, Result};
use runtime_core::sys::process::send_signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::launch::{Child, timespec};

/// How long output may take to be read after the process has ended.
const DRAIN: Duration = Duration::from_secs(1);

/// Signals that are this command's own, or that nobody can pass on.
const KEPT: [Signal; 10] = [
    Signal::SIGKILL,
    Signal::SIGSTOP,
    Signal::SIGCHLD,
    Signal::SIGPIPE,
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGILL,
    Signal::SIGFPE,
    Signal::SIGABRT,
    Signal::SIGURG,
];

/// Keeps signals for [`attend`]: before there is a process to pass them on to, so that none ends this command and leaves that alone.
///
/// # Errors
/// None on Linux.
pub fn hold_signals() -> Result<SigSet> {
    let mut signals = SigSet::all();
    KEPT.into_iter().for_each(|signal| signals.remove(signal));
    signals.thread_block().context_nix("block signals")?;
    Ok(signals)
}

/// Waits for the end of a process, whose terminal's master this may be, and answers its status as a shell would.
///
/// # Errors
/// The terminal cannot be set up; the process is not our child.
pub fn attend(signals: SigSet, child: &Child, master: Option<OwnedFd>) -> Result<u8> {
    let terminal = master.as_ref().map(|_| Terminal::raw()).transpose()?;
    let copying = master.as_ref().map(copy).transpose()?;
    pass_on(signals, child, master)?;
    let status = child.wait()?.status;
    if let Some(done) = copying {
        // Its last words; a process that it has left behind may hold the terminal for ever.
        let _ = retry_on_intr(|| poll(&mut [PollFd::new(&done, PollFlags::IN)], Some(&timespec(DRAIN))));
    }
    drop(terminal);
    Ok(u8::try_from(status).unwrap_or(u8::MAX))
}

trait ContextNix<T> {
    fn context_nix(self, what: &str) -> Result<T>;
}

impl<T> ContextNix<T> for nix::Result<T> {
    fn context_nix(self, what: &str) -> Result<T> {
        self.map_err(std::io::Error::from).context(|| what.to_owned())
    }
}

/// The caller's terminal, raw as long as this lives.
struct Terminal(Option<Termios>);

impl Terminal {
    fn raw() -> Result<Self> {
        let stdin = std::io::stdin();
        if !isatty(&stdin) {
            return Ok(Self(None));
        }
        let before = tcgetattr(&stdin).context(|| "tcgetattr of standard input")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context(|| "tcsetattr of standard input")?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Both directions; the first descriptor is at its end when all output has been written.
fn copy(master: &OwnedFd) -> Result<OwnedFd> {
    let (done, writing) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context(|| "pipe")?;
    let duplicate = || master.try_clone().context(|| "dup").map(std::fs::File::from);
    let (mut from, mut to) = (duplicate()?, duplicate()?);
    thread::spawn(move || {
        pump(&mut from, &mut std::io::stdout());
        drop(writing);
    });
    thread::spawn(move || pump(&mut std::io::stdin(), &mut to));
    Ok(done)
}

/// Until one side is gone: a terminal's master says EIO then.
fn pump(from: &mut impl Read, to: &mut impl Write) {
    let mut buffer = [0u8; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).and_then(|()| to.flush()).is_err() {
            return;
        }
    }
}

/// Gives the terminal the size of the caller's.
pub fn resize(master: &OwnedFd) {
    // Without a terminal of the caller's there is no size to pass on.
    if let Ok(size) = tcgetwinsize(std::io::stdin()) {
        let _ = tcsetwinsize(master, size);
    }
}

fn pass_on(signals: SigSet, child: &Child, master: Option<OwnedFd>) -> Result<()> {
    let pidfd = child.pidfd.try_clone().context(|| "dup")?;
    thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            match (signal, &master) {
                (Signal::SIGWINCH, Some(master)) => resize(master),
                // It may have ended.
                _ => drop(send_signal(pidfd.as_fd(), signal as i32)),
            }
        }
    });
    Ok(())
}
