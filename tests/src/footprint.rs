//! What a shim costs while it lives: threads, descriptors, memory, processor time, wake-ups (`proc(5)`).

use std::fs;
use std::time::Duration;

use crate::{Context, Result, ensure, ensure_eq, fail, proc, wait};

/// One process in one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Threads.
    pub threads: usize,
    /// Open descriptors.
    pub descriptors: usize,
    /// Memory that nobody shares, in KiB: `Private_Dirty` of smaps_rollup.
    pub private: u64,
    /// Processor time, in nanoseconds.
    pub cpu: u64,
    /// How often it has gone to sleep, so how often it was woken.
    pub sleeps: u64,
    /// Bytes that it and its reaped children have read by read(2) and its like, in which splice(2) is not counted.
    pub read: u64,
}

impl Footprint {
    /// Of a process that exists.
    pub fn of(pid: u32) -> Result<Footprint> {
        let file = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).context(|| format!("{name} of process {pid}"));
        let (status, memory, times, io) = (file("status")?, file("smaps_rollup")?, file("schedstat")?, file("io")?);
        let usage = proc::usage(pid);
        Ok(Footprint {
            threads: usage.threads,
            descriptors: usage.descriptors,
            private: field(&memory, "Private_Dirty:")?,
            cpu: times.split(' ').next().unwrap_or_default().parse()?,
            sleeps: field(&status, "voluntary_ctxt_switches:")?,
            read: field(&io, "rchar:")?,
        })
    }
}

/// The memory of a process with its share of what others have, too, in KiB: `Pss` of smaps_rollup.
///
/// # Errors
/// A process that is gone.
pub fn proportional(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    field(&fs::read_to_string(&path).context(|| path.clone())?, "Pss:")
}

fn field(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).context(|| format!("no {name} in {text}"))?;
    Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
}

/// The two processes of a shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shims {
    /// The parent of its containers.
    pub daemon: u32,
    /// The daemon's child, which forks what becomes a container.
    pub launcher: u32,
}

/// How much memory may come with thousands of containers, in KiB: what the allocator keeps, not what each of them leaves.
pub const MEMORY_BOUND: u64 = 256;

/// How long what is being closed may stay open, and what is free may not yet be given back (a second or two after the last call).
const SETTLING: Duration = Duration::from_secs(4);

impl Shims {
    /// Those of a container, by the pid of its init.
    pub fn of(init: u32) -> Result<Shims> {
        let init = proc::process(init).context(|| format!("the container's process {init} is gone"))?;
        Shims::of_daemon(init.parent)
    }

    /// Those of a daemon.
    pub fn of_daemon(daemon: u32) -> Result<Shims> {
        let itself = proc::process(daemon).context(|| format!("the daemon {daemon} is gone"))?;
        // A container's process that waits for its start still has the launcher's name, but no longer its cgroups.
        let is_launcher =
            |process: &proc::Process| process.parent == daemon && process.name == "coracle-launch" && process.cgroups == itself.cgroups;
        match proc::all().iter().filter(|process| is_launcher(process)).map(|process| process.pid).collect::<Vec<_>>()[..] {
            [launcher] => Ok(Shims { daemon, launcher }),
            ref found => fail!("the daemon {daemon} ({}) has the launchers {found:?}", itself.command_line),
        }
    }

    /// Both, the daemon first.
    pub fn read(&self) -> Result<[Footprint; 2]> {
        Ok([Footprint::of(self.daemon)?, Footprint::of(self.launcher)?])
    }

    /// Fails unless each has one thread.
    pub fn expect_one_thread(&self, when: &str) -> Result<()> {
        let [daemon, launcher] = self.read()?;
        ensure_eq!((daemon.threads, launcher.threads), (1, 1), "threads of daemon and launcher {when}");
        Ok(())
    }

    /// Fails unless both have as many threads and descriptors as before, and at most [`MEMORY_BOUND`] more memory; answers a line that says so.
    pub fn expect_no_growth(&self, before: &[Footprint; 2]) -> Result<String> {
        let counts = |of: &[Footprint; 2]| of.map(|one| (one.threads, one.descriptors));
        // Fewer is no growth: the count before may have caught a connection that was about to close.
        let fits = |now: &[Footprint; 2]| {
            now.iter().zip(before).all(|(now, then)| now.threads <= then.threads && now.descriptors <= then.descriptors)
        };
        let is_small = |now: &[Footprint; 2]| now.iter().zip(before).all(|(now, before)| now.private <= before.private + MEMORY_BOUND);
        let settled = wait::until(SETTLING, || self.read().ok().filter(|now| fits(now) && is_small(now)));
        let now = settled.map_or_else(|| self.read(), Ok)?;
        ensure!(fits(&now), "threads and descriptors {:?} instead of {:?}: {}", counts(&now), counts(before), self.open_files());
        let memory = |of: &[Footprint; 2]| of.map(|one| one.private);
        let line = format!("threads and descriptors {:?}, private KiB {:?} -> {:?}", counts(&now), memory(before), memory(&now));
        ensure!(is_small(&now), "more than {MEMORY_BOUND} KiB of memory: {line}");
        Ok(line)
    }

    fn open_files(&self) -> String {
        let links = fs::read_dir(format!("/proc/{}/fd", self.daemon)).into_iter().flatten().flatten();
        let mut names: Vec<String> = links.filter_map(|link| Some(fs::read_link(link.path()).ok()?.display().to_string())).collect();
        names.sort();
        names.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_counted() {
        let before = Footprint::of(std::process::id()).unwrap();
        let file = fs::read("/proc/self/exe").unwrap();
        let after = Footprint::of(std::process::id()).unwrap();
        assert!(after.read >= before.read + file.len() as u64, "{before:?} {after:?}");
        assert!(after.threads >= 1 && after.descriptors >= 3 && after.private > 0 && after.cpu >= before.cpu);
    }
}
