//! How `start` learns what became of the daemon it forked: one pipe, one message, then the end of file.

use std::io::{PipeReader, PipeWriter, Read, Write};

use runtime_core::error::{Context, Error, ErrorKind, Result};
use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

const READY: u8 = b'R';
const FAILED: u8 = b'E';

/// The longest failure that is told.
const MAX_TEXT_BYTES: u64 = 4096;

/// The daemon's end.
#[derive(Debug)]
pub struct Ready(Option<PipeWriter>);

/// The end of `start`.
#[derive(Debug)]
pub struct Outcome(PipeReader);

/// Makes the two ends. Each process keeps one and drops the other.
///
/// # Errors
/// The errno of pipe2(2).
pub fn pair() -> Result<(Outcome, Ready)> {
    let (reader, writer) = std::io::pipe().context(|| "make the readiness pipe")?;
    Ok((Outcome(reader), Ready(Some(writer))))
}

impl Ready {
    /// Says that clients are served now.
    ///
    /// # Errors
    /// When `start` is gone, and nobody will ever learn the address.
    pub fn notify(&mut self) -> Result<()> {
        match self.0.take() {
            Some(mut pipe) => pipe.write_all(&[READY]).context(|| "tell start that the daemon is ready"),
            None => Ok(()),
        }
    }

    /// Says why there is no daemon. Returns whether there was still somebody to tell.
    pub fn fail(&mut self, error: &Error) -> bool {
        let Some(mut pipe) = self.0.take() else { return false };
        let mut message = vec![FAILED];
        message.extend_from_slice(error.to_string().as_bytes());
        pipe.write_all(&message).is_ok()
    }
}

impl Outcome {
    /// Waits until the daemon `pid` is ready, or dead.
    ///
    /// # Errors
    /// What the daemon said before it gave up, or how it died.
    pub fn wait(self, pid: Pid) -> Result<()> {
        let mut message = Vec::new();
        self.0.take(MAX_TEXT_BYTES).read_to_end(&mut message).context(|| "wait for the daemon")?;
        match message.split_first() {
            Some((&READY, _)) => Ok(()),
            Some((_, text)) => {
                reap(pid);
                Err(Error::new(ErrorKind::Internal, String::from_utf8_lossy(text)))
            }
            None => Err(Error::new(ErrorKind::Internal, format!("the daemon died before it was ready: {}", death(reap(pid))))),
        }
    }
}

fn reap(pid: Pid) -> Option<WaitStatus> {
    waitpid(Some(pid), WaitOptions::empty()).ok().flatten().map(|(_, status)| status)
}

fn death(status: Option<WaitStatus>) -> String {
    let signal = status.and_then(WaitStatus::terminating_signal);
    let code = status.and_then(WaitStatus::exit_status);
    match (signal, code) {
        (Some(signal), _) => format!("killed by signal {signal}"),
        (None, Some(code)) => format!("exit status {code}"),
        (None, None) => "no status".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A child that is not ours to wait for: `wait` only waits when the daemon failed.
    fn no_child() -> Pid {
        Pid::INIT
    }

    #[test]
    fn the_daemon_is_ready_or_says_why_not() {
        let (outcome, mut ready) = pair().unwrap();
        ready.notify().unwrap();
        ready.notify().unwrap();
        outcome.wait(no_child()).unwrap();

        let (outcome, mut ready) = pair().unwrap();
        assert!(ready.fail(&Error::invalid("no \"x\"")));
        assert!(!ready.fail(&Error::invalid("again")));
        assert_eq!(outcome.wait(no_child()).unwrap_err().to_string(), "no \"x\"");

        let (outcome, ready) = pair().unwrap();
        drop(ready);
        assert_eq!(outcome.wait(no_child()).unwrap_err().to_string(), "the daemon died before it was ready: no status");
    }

    #[test]
    fn without_start_there_is_no_daemon() {
        let (outcome, mut ready) = pair().unwrap();
        drop(outcome);
        assert_eq!(ready.notify().unwrap_err().errno(), Some(libc::EPIPE));
    }
}
