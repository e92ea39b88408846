//! What procfs, cgroupfs and sysfs tell about processes, mounts and cgroups (`proc(5)`, `cgroups(7)`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Context, Result};

/// A process as seen in one moment.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its parent.
    pub parent: u32,
    /// One letter: R, S, D, Z, T ...
    pub state: char,
    /// The short name.
    pub name: String,
    /// Its arguments, joined by spaces; empty for a zombie.
    pub command_line: String,
    /// `/proc/<pid>/cgroup`.
    pub cgroups: String,
}

/// All processes; those that go away meanwhile are left out.
pub fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(process).collect()
}

/// One process, while it exists.
pub fn process(pid: u32) -> Option<Process> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    // The name is in parentheses and may hold any character, so the rest starts after the last one.
    let (head, tail) = stat.rsplit_once(')')?;
    let mut fields = tail.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let name = head.split_once('(')?.1.to_owned();
    let command_line = String::from_utf8_lossy(&fs::read(dir.join("cmdline")).ok()?).replace('\0', " ");
    let cgroups = fs::read_to_string(dir.join("cgroup")).unwrap_or_default();
    Some(Process { pid, parent, state, name, command_line, cgroups })
}

/// A line of `/proc/self/mountinfo`.
pub struct Mount {
    /// The mount point.
    pub target: PathBuf,
    /// The whole line.
    pub line: String,
}

/// The mount table of this process, which is the host's.
pub fn mounts() -> Vec<Mount> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = |line: &str| Some(Mount { target: line.split(' ').nth(4)?.into(), line: line.to_owned() });
    table.lines().filter_map(mount).collect()
}

/// The parent of a process: of a container's first one, its daemon.
pub fn parent(pid: u32) -> Result<u32> {
    Ok(process(pid).context(|| format!("process {pid} is gone"))?.parent)
}

/// Whether version 2 of cgroups is alone.
pub fn is_cgroup_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Stops a slice of systemd's and removes its cgroups, unless there is a scope in it: that is for the ledger to find, as is what stays.
pub fn remove_slice(slice: &str) {
    let all = cgroup_roots().into_iter().flat_map(|root| cgroups_below(&root));
    let left: Vec<_> = all.filter(|dir| dir.components().any(|name| name.as_os_str() == slice)).collect();
    if left.iter().any(|dir| dir.extension().is_some_and(|kind| kind == "scope")) {
        return;
    }
    let _ = Command::new("systemctl").args(["stop", slice]).status();
    for dir in left.iter().rev() {
        let _ = std::fs::remove_dir(dir);
    }
}

/// The mount points of every cgroup hierarchy, v1 and v2.
pub fn cgroup_roots() -> Vec<PathBuf> {
    let is_cgroup = |line: &str| line.split_once(" - ").is_some_and(|(_, tail)| tail.starts_with("cgroup"));
    mounts().into_iter().filter(|mount| is_cgroup(&mount.line)).map(|mount| mount.target).collect()
}

/// Every cgroup directory below `root`, parents first.
pub fn cgroups_below(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            found.push(entry.path());
            open.push(entry.path());
        }
    }
    found
}

/// The directory of a process's cgroup for a v1 controller, or the unified one where the controller is there.
pub fn cgroup_of(pid: u32, controller: &str) -> Result<PathBuf> {
    let groups = process(pid).context(|| format!("process {pid} is gone"))?.cgroups;
    let field = |line: &'_ str| line.splitn(3, ':').map(str::to_owned).collect::<Vec<_>>();
    let lines: Vec<Vec<String>> = groups.lines().map(field).filter(|fields| fields.len() == 3).collect();
    let v1 = lines.iter().find(|fields| fields[1].split(',').any(|name| name == controller));
    let path = v1.or_else(|| lines.iter().find(|fields| fields[0] == "0")).context(|| format!("{pid} has no cgroup for {controller}"))?;
    let is_root = |mount: &Mount| {
        let Some((_, tail)) = mount.line.split_once(" - ") else { return false };
        match v1 {
            Some(_) => tail.starts_with("cgroup ") && tail.split([' ', ',']).any(|word| word == controller),
            None => tail.starts_with("cgroup2 "),
        }
    };
    let root = mounts().into_iter().find(is_root).context(|| format!("no hierarchy for {controller} is mounted"))?;
    Ok(root.target.join(path[2].trim_start_matches('/')))
}

/// The directory of a process's cgroup of version 2, if there is one.
pub fn unified_cgroup_of(pid: u32) -> Option<PathBuf> {
    let groups = process(pid)?.cgroups;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    cgroup_roots().into_iter().map(|root| root.join(path)).find(|dir| dir.join("cgroup.subtree_control").exists())
}

/// What a long-lived process holds; equal before and after, or it leaks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Threads.
    pub threads: usize,
    /// Open descriptors.
    pub descriptors: usize,
    /// Of these, terminals' masters.
    pub terminals: usize,
    /// Of these, namespaces.
    pub namespaces: usize,
    /// Children that nobody waited for.
    pub zombies: usize,
}

/// The usage of one process; zeros when it is gone.
pub fn usage(pid: u32) -> Usage {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let targets: Vec<String> = links.filter_map(|e| Some(fs::read_link(e.path()).ok()?.to_string_lossy().into_owned())).collect();
    let count = |test: fn(&str) -> bool| targets.iter().filter(|target| test(target)).count();
    Usage {
        threads: fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count),
        descriptors: targets.len(),
        terminals: count(|target| target.ends_with("/ptmx")),
        namespaces: count(|target| {
            target.ends_with(']') && ["net:", "mnt:", "pid:", "user:", "ipc:", "uts:", "cgroup:"].iter().any(|p| target.starts_with(p))
        }),
        zombies: all().iter().filter(|process| process.parent == pid && process.state == 'Z').count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen() {
        let me = process(std::process::id()).unwrap();
        assert_eq!(me.parent, std::os::unix::process::parent_id());
        assert!(all().iter().any(|process| process.pid == me.pid));
        assert!(mounts().iter().any(|mount| mount.target == Path::new("/proc")));
        assert!(usage(me.pid).threads >= 1);
        assert!(!cgroup_roots().is_empty());
        assert!(cgroup_of(me.pid, "memory").unwrap().is_dir());
    }
}
