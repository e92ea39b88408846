//! What is left of a container whose daemon is gone.

use std::path::Path;
use std::time::SystemTime;

use runtime_core::error::{Error, Result};

/// The status of a process that SIGKILL ended, as shells and containerd write it.
const KILLED: u32 = 128 + 9;

/// How a container ended, as far as a stranger can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The pid of its first process; 0 when it never had one.
    pub pid: u32,
    /// Its exit status.
    pub status: u32,
    /// When it ended.
    pub at: SystemTime,
}

/// Tells how the container `id` of `namespace` ended, from what `bundle` holds. A bundle without a trace is an end, too.
///
/// # Errors
/// When the pid file cannot be read or holds no pid.
pub fn cleanup(bundle: &Path, _namespace: &str, _id: &str) -> Result<Exit> {
    Ok(Exit { pid: init_pid(bundle)?, status: KILLED, at: SystemTime::now() })
}

fn init_pid(bundle: &Path) -> Result<u32> {
    let path = bundle.join("init.pid");
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        read => read.map_err(|error| Error::io(format!("read {path:?}"), &error))?,
    };
    text.trim().parse().map_err(|_| Error::invalid(format!("{path:?} holds no pid: {:?}", text.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_never_ran_ended_too() {
        let tmp = tempfile::tempdir().unwrap();
        let exit = cleanup(tmp.path(), "ns", "web").unwrap();
        assert_eq!((exit.pid, exit.status), (0, 137));
        assert_eq!(cleanup(&tmp.path().join("gone"), "ns", "web").unwrap().pid, 0);
        std::fs::write(tmp.path().join("init.pid"), "42").unwrap();
        assert_eq!(cleanup(tmp.path(), "ns", "web").unwrap().pid, 42);
        std::fs::write(tmp.path().join("init.pid"), "x").unwrap();
        assert!(cleanup(tmp.path(), "ns", "web").is_err());
    }
}
