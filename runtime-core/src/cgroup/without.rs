//! A container without a cgroup, in a user namespace that may make none: who is inside of it then.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Cgroup;
use crate::error::{Context, Result};

/// The first process, and who else is in the pid namespace that it is the init of.
#[derive(Debug)]
pub(super) struct Members {
    init: i32,
    pidfd: OwnedFd,
    /// As procfs names it; `None` if it is one that others share.
    namespace: Option<PathBuf>,
}

impl Cgroup {
    /// Where there is no cgroup in any hierarchy, those are inside whose first process is `init`, and who share its pid
    /// namespace if that is not ours. Elsewhere this changes nothing.
    ///
    /// # Errors
    /// `pidfd` cannot be duplicated.
    pub fn or_processes_of(&mut self, init: i32, pidfd: impl AsFd) -> Result<()> {
        if self.trees.is_empty() {
            let pidfd = pidfd.as_fd().try_clone_to_owned().context(|| "dup")?;
            let namespace = namespace_of(&init.to_string()).filter(|namespace| namespace_of("self").as_ref() != Some(namespace));
            self.members = Some(Members { init, pidfd, namespace });
        }
        Ok(())
    }
}

impl Members {
    /// In ascending order. Nobody outlives the init of a pid namespace.
    pub fn pids(&self) -> Vec<i32> {
        let ended = poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) != Ok(0);
        if ended {
            return Vec::new();
        }
        let Some(namespace) = &self.namespace else { return vec![self.init] };
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let inside = names.filter(|name| namespace_of(name).as_ref() == Some(namespace));
        let mut pids: Vec<i32> = inside.filter_map(|name| name.parse().ok()).collect();
        pids.sort_unstable();
        pids
    }
}

fn namespace_of(process: &str) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{process}/ns/pid")).ok()
}
