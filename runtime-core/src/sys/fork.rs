//! fork(2), for a process that is still single-threaded.

use std::os::unix::fs::MetadataExt;

use crate::error::{Context, Error, ErrorKind, Result};
use rustix::process::Pid;

/// Which of the two processes returned from [`fork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The caller, with the pid of the new process.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Duplicates the calling process.
///
/// Both sides may go on as they like (allocate, lock, log), because the caller is refused when it has a second thread: only then could
/// the copy hold a lock that nobody will release.
///
/// # Errors
/// `FailedPrecondition` when the process has more than one thread; otherwise the errno of fork(2).
pub fn fork() -> Result<Fork> {
    let threads = threads()?;
    if threads != 1 {
        return Err(Error::new(ErrorKind::FailedPrecondition, format!("fork: the process has {threads} threads")));
    }
    // SAFETY: fork(2) takes no argument and touches no memory of ours. This is the only thread (checked above, and nobody else could
    // start one), so no lock of libc's or std's is held by a thread that the child lacks.
    match unsafe { libc::fork() } {
        -1 => Err(Error::io("fork", &std::io::Error::last_os_error())),
        0 => Ok(Fork::Child),
        pid => match Pid::from_raw(pid) {
            Some(pid) => Ok(Fork::Parent(pid)),
            None => Err(Error::new(ErrorKind::Internal, "fork: no pid")),
        },
    }
}

/// How many threads the process has: the subdirectories of `/proc/self/task` (proc_pid_task(5)), which its link count tells.
fn threads() -> Result<u64> {
    let task = std::fs::metadata("/proc/self/task").context(|| "stat /proc/self/task")?;
    Ok(task.nlink().saturating_sub(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_forked() {
        // The test harness runs every test in a thread of its own.
        let error = fork().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(error.to_string().starts_with("fork: the process has "), "{error}");
    }

    #[test]
    fn threads_are_counted() {
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        let (up, started) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            up.send(()).unwrap();
            wait.recv().unwrap_err();
        });
        started.recv().unwrap();
        let during = threads().unwrap();
        assert!(during >= 2, "{during}");
        drop(stop);
        thread.join().unwrap();
    }
}
