//! The shim's failpoints from the test's side: a socket for each, at which the shim waits.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command::readable;
use crate::{Result, ensure};

/// The variable that tells the shim where the sockets are.
pub const DIRECTORY: &str = "CORACLE_FAILPOINTS";

/// The variable with the milliseconds after which an idle shim ends.
pub const IDLE: &str = "CORACLE_IDLE_MS";

/// The methods of the Task service as failpoints name them.
pub const RPCS: [&str; 17] = [
    "state",
    "create",
    "start",
    "delete",
    "pids",
    "pause",
    "resume",
    "checkpoint",
    "kill",
    "exec",
    "resize_pty",
    "close_io",
    "update",
    "wait",
    "stats",
    "connect",
    "shutdown",
];

/// When, as failpoints name it.
pub const MOMENTS: [&str; 3] = ["before", "inside", "after"];

/// A point that is armed: until it is dropped, who comes there waits.
pub struct Failpoint {
    path: PathBuf,
    listener: UnixListener,
    held: Option<UnixStream>,
}

impl Failpoint {
    /// Arms a point.
    pub fn arm(directory: &Path, point: &str) -> Result<Failpoint> {
        let path = directory.join(point);
        Ok(Failpoint { listener: UnixListener::bind(&path)?, path, held: None })
    }

    /// Waits until the shim is there.
    pub fn reached(&mut self, limit: Duration) -> Result<()> {
        ensure!(readable(&self.listener, limit)?, "nobody came to {} in {limit:?}", self.path.display());
        self.held = Some(self.listener.accept()?.0);
        Ok(())
    }

    /// Waits until the shim has given up what it was about to do.
    pub fn abandoned(&self, limit: Duration) -> Result<()> {
        let Some(shim) = &self.held else { crate::fail!("nobody is at {}", self.path.display()) };
        ensure!(readable(shim, limit)?, "the shim stays at {} without its client", self.path.display());
        Ok(())
    }

    /// What the shim is to do instead of going on: `error` or `abort`.
    pub fn order(mut self, word: &str) -> Result<()> {
        if let Some(shim) = &mut self.held {
            shim.write_all(word.as_bytes())?;
        }
        Ok(())
    }
}

impl Drop for Failpoint {
    fn drop(&mut self) {
        // First the name, so that nobody comes between.
        let _ = std::fs::remove_file(&self.path);
    }
}
