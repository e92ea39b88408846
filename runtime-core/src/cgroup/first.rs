//! The first process of a container, which its cgroup may not hold: it may have moved, or in a user namespace there may be no cgroup.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::Cgroup;
use super::kill::hold;
use crate::error::{Error, Result};

/// By a descriptor, which cannot come to mean another process.
#[derive(Clone, Debug)]
pub(super) struct First {
    pub pid: i32,
    pub pidfd: Arc<OwnedFd>,
}

impl Cgroup {
    /// Whose cgroup it is: the first process of the container is killed and listed with those inside, wherever it is. If it is the init of a
    /// pid namespace, all in that namespace end with it.
    pub fn set_first(&mut self, pid: i32, pidfd: Arc<OwnedFd>) {
        self.first = Some(First { pid, pidfd });
    }
}

impl First {
    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(0)
    }

    /// Sends it a signal; that it has ended is no failure.
    pub fn send(&self, signal: i32) -> Result<()> {
        match crate::sys::process::send_signal(self.pidfd.as_fd(), signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(Error::kernel(format!("send signal {signal} to process {}", self.pid), errno)),
        }
    }

    /// Adds it, and who is with it in a pid namespace of its own, unless it is among `pids`: then those inside the cgroup are the container.
    pub fn add_to(&self, pids: &mut BTreeSet<i32>) {
        if !pids.contains(&self.pid) && self.is_alive() {
            pids.insert(self.pid);
            pids.extend(self.companions());
        }
    }

    /// Sends a signal to all others in its pid namespace but those in `done`.
    pub fn send_to_companions(&self, signal: i32, done: &BTreeSet<i32>) -> Result<()> {
        let own = self.namespace();
        for pid in self.companions().into_iter().filter(|pid| *pid != self.pid && !done.contains(pid)) {
            let Ok(pidfd) = hold(pid) else { continue };
            // Asked again with the process held: its number may have passed to a stranger.
            if own.is_some() && namespace_of(&pid.to_string()) == own {
                First { pid, pidfd: Arc::new(pidfd) }.send(signal)?;
            }
        }
        Ok(())
    }

    /// None, if other containers share its pid namespace.
    fn companions(&self) -> Vec<i32> {
        let Some(namespace) = self.namespace() else { return Vec::new() };
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let processes = names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        processes.filter(|name| namespace_of(name).as_ref() == Some(&namespace)).filter_map(|name| name.parse().ok()).collect()
    }

    /// As procfs names it; `None` if it is ours, or the process has ended.
    fn namespace(&self) -> Option<PathBuf> {
        let namespace = namespace_of(&self.pid.to_string()).filter(|namespace| namespace_of("self").as_ref() != Some(namespace));
        // Asked after the look, for the number may have passed on.
        namespace.filter(|_| self.is_alive())
    }
}

fn namespace_of(process: &str) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{process}/ns/pid")).ok()
}
