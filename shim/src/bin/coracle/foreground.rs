//! A command that waits for a process: it serves its terminal, passes signals on and ends with its status.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;

use nix::sys::signal::{SigSet, Signal};
use runtime_core::error::{Context as _, Error, Result};
use runtime_core::sys::process::send_signal;
use rustix::termios::{OptionalActions, OutputModes, Termios, Winsize, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::launch::Child;
use crate::log::Log;
use crate::relay::Relay;

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

/// Waits for the end of a process, whose terminal's master this may be, and of its output: its status as a shell would say it.
///
/// # Errors
/// The terminal cannot be set up; the process is not our child.
pub fn attend(log: &Log, signals: SigSet, child: &Child, master: Option<OwnedFd>) -> Result<u8> {
    let terminal = master.as_ref().map(|_| Terminal::raw()).transpose()?;
    let relay = master.as_ref().map(|master| Relay::start(master, child)).transpose()?;
    pass_on(signals, child, master)?;
    let status = child.wait()?.status;
    if let Some(Err(errno)) = relay.map(Relay::finish) {
        log.warn(&Error::kernel("write standard output", errno).to_string());
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
        // The container's terminal leaves newlines to this one.
        raw.output_modes |= before.output_modes & OutputModes::OPOST;
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

/// The size of the caller's terminal, if there is one: as with runc that of the first standard stream that is one, or else the controlling one.
pub fn size() -> Option<Winsize> {
    let of = |stream: &dyn AsFd| tcgetwinsize(stream.as_fd()).ok();
    let controlling = || OpenOptions::new().read(true).custom_flags(libc::O_NOCTTY).open("/dev/tty").ok().and_then(|tty| of(&tty));
    of(&std::io::stderr()).or_else(|| of(&std::io::stdout())).or_else(|| of(&std::io::stdin())).or_else(controlling)
}

fn pass_on(signals: SigSet, child: &Child, master: Option<OwnedFd>) -> Result<()> {
    let pidfd = child.pidfd.try_clone().context(|| "dup")?;
    thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            match (signal, &master) {
                (Signal::SIGWINCH, Some(master)) => drop(size().map(|size| tcsetwinsize(master, size))),
                // It may have ended.
                _ => drop(send_signal(pidfd.as_fd(), signal as i32)),
            }
        }
    });
    Ok(())
}
