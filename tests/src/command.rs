//! Runs a program with a time limit and keeps what it said.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::{Context, Result, fail};

/// What a program left.
#[derive(Debug)]
pub struct Output {
    /// Its standard output, lossily as text.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// 128 + signal for a signal, as shells count.
    pub code: i32,
}

/// The time limit of one program.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Runs `command` to its end; over [`LIMIT`] it is killed, which is a failure.
pub fn run(command: &mut Command) -> Result<Output> {
    run_for(command, LIMIT)
}

/// As [`run`] with another limit.
pub fn run_for(command: &mut Command, limit: Duration) -> Result<Output> {
    let name = describe(command);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context(|| name.clone())?;
    let stdout = child.stdout.take().map(reader);
    let stderr = child.stderr.take().map(reader);
    let ended = wait_for(&mut child, limit)?;
    if ended.is_none() {
        child.kill()?;
        child.wait()?;
    }
    let (stdout, stderr) = (joined(stdout), joined(stderr));
    match ended {
        Some(status) => Ok(Output { stdout, stderr, code: code(status) }),
        None => fail!("{name}: not done after {limit:?}; stdout {stdout:?}, stderr {stderr:?}"),
    }
}

/// Runs `command` and expects exit code 0; answers its stdout.
pub fn output(command: &mut Command) -> Result<String> {
    let done = run(command)?;
    if done.code != 0 {
        fail!("{}: exit code {}, stdout {:?}, stderr {:?}", describe(command), done.code, done.stdout, done.stderr);
    }
    Ok(done.stdout)
}

/// Waits for a child by its pidfd; `None` when it still runs after `limit`.
pub fn wait_for(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    if let Some(status) = child.try_wait()? {
        return Ok(Some(status));
    }
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    if readable(&pidfd, limit)? { Ok(Some(child.wait()?)) } else { Ok(None) }
}

/// Waits until `fd` can be read (a pidfd: until its process ended); false after `limit`.
pub fn readable(fd: &impl std::os::fd::AsFd, limit: Duration) -> Result<bool> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => fail!("poll: {e}"),
        }
    }
}

/// Signals a process by number; one that is gone is no error.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let Some(pid) = Pid::from_raw(pid.cast_signed()) else { fail!("no process has pid {pid}") };
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(e) => fail!("kill {pid:?}: {e}"),
    }
}

/// 0-255, or 128 + signal.
pub fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn reader(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        // A pipe that breaks ends the text; the exit code tells the rest.
        let _ = from.read_to_end(&mut all);
        all
    })
}

fn joined(reader: Option<JoinHandle<Vec<u8>>>) -> String {
    let bytes = reader.and_then(|thread| thread.join().ok()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_code_and_limit() {
        let done = run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"])).unwrap();
        assert_eq!((done.stdout.as_str(), done.stderr.as_str(), done.code), ("out\n", "err\n", 3));
        let killed = run(Command::new("sh").args(["-c", "kill -9 $$"])).unwrap();
        assert_eq!(killed.code, 137);
        let slow = run_for(Command::new("sleep").arg("60"), Duration::from_millis(50)).unwrap_err();
        assert!(slow.0.contains("not done"), "{slow}");
    }
}
