//! The leak ledger: what a test's containers own on the host, before and after.
//!
//! Other work goes on on the same machine, so things are counted by name and not by number: ids carry this run's tag and the case's own
//! number, and what belongs to an id is found by command line, cgroup, parent, path or socket hash.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::{Result, fail, proc, wait};

/// The time after the last Delete in which the kernel and containerd may still tidy up, and a node's daemon waits for another pod
/// (2 s, then up to 6 s for the last events), on a machine that runs a dozen suites at once.
pub const GRACE: Duration = Duration::from_secs(15);

/// Whose things are looked for.
#[derive(Clone, Default)]
pub struct Scope {
    /// Words that only the case's own containers, groups and bundles have in their names.
    pub words: Vec<String>,
    /// Sockets in the shims' common directory.
    pub sockets: Vec<PathBuf>,
    /// Processes whose children count too.
    pub parents: Vec<u32>,
}

impl Scope {
    /// Adds a container or group: its word and the shim socket that its id leads to under a containerd's address.
    pub fn add(&mut self, grpc_address: &Path, namespace: &str, id: &str) {
        self.words.push(id.to_owned());
        let key = grpc_address.join(namespace).join(id);
        for key in [key.clone(), key.join("debug")] {
            let digest = Sha256::digest(key.to_string_lossy().as_bytes());
            let name: String = digest.iter().map(|b| format!("{b:02x}")).collect();
            self.sockets.push(Path::new("/run/containerd/s").join(name));
        }
    }

    fn names(&self, text: &str) -> bool {
        self.words.iter().any(|word| text.contains(word.as_str()))
    }
}

/// One line per thing found.
pub type Entries = BTreeSet<String>;

/// All that exists now in the scope.
pub fn read(scope: &Scope) -> Entries {
    let mut entries = Entries::new();
    processes(scope, &mut entries);
    entries.extend(proc::mounts().iter().filter(|mount| scope.names(&mount.line)).map(|mount| format!("mount {}", mount.line)));
    for root in proc::cgroup_roots() {
        let dirs = proc::cgroups_below(&root).into_iter().filter(|dir| scope.names(&dir.to_string_lossy()));
        entries.extend(dirs.map(|dir| format!("cgroup {}", dir.display())));
    }
    entries.extend(scope.sockets.iter().filter(|path| path.exists()).map(|path| format!("socket {}", path.display())));
    entries.extend(runtime_files(scope));
    entries.extend(loop_devices(scope));
    entries
}

/// Fails with the difference unless all that is new since `before` goes within [`GRACE`].
pub fn expect_clean(scope: &Scope, before: &Entries) -> Result<()> {
    let mut left = Entries::new();
    let clean = wait::until(GRACE, || {
        left = read(scope).difference(before).cloned().collect();
        left.is_empty().then_some(())
    });
    match clean {
        Some(()) => Ok(()),
        None => fail!("left behind after {GRACE:?}:\n    {}", left.into_iter().collect::<Vec<_>>().join("\n    ")),
    }
}

/// Processes by name, cgroup or descent, zombies included; and the namespaces that their descriptors pin.
fn processes(scope: &Scope, entries: &mut Entries) {
    let all = proc::all();
    let mut ours: HashSet<u32> = scope.parents.iter().copied().collect();
    // A client of the test itself names the same ids.
    let named = |process: &&proc::Process| (scope.names(&process.command_line) && !is_client(process)) || scope.names(&process.cgroups);
    ours.extend(all.iter().filter(named).map(|process| process.pid));
    loop {
        let known = ours.len();
        ours.extend(all.iter().filter(|p| ours.contains(&p.parent) && !is_client(p)).map(|process| process.pid).collect::<Vec<_>>());
        if ours.len() == known {
            break;
        }
    }
    for process in all.iter().filter(|process| ours.contains(&process.pid) && !scope.parents.contains(&process.pid)) {
        let kind = if process.state == 'Z' { "zombie" } else { "process" };
        entries.insert(format!("{kind} {} of {} {} {}", process.pid, process.parent, process.name, process.command_line));
    }
}

fn is_client(process: &proc::Process) -> bool {
    process.name == "ctr" || process.pid == std::process::id()
}

/// Bundles, fifos and state directories: every path below the directories of runtimes whose name has one of the words.
fn runtime_files(scope: &Scope) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![(PathBuf::from("/run"), 0)];
    while let Some((dir, depth)) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let of_runtimes = depth > 0 || ["coracle", "containerd", "runc", "crun"].iter().any(|prefix| name.starts_with(prefix));
            if scope.names(&name) {
                found.push(format!("file {}", entry.path().display()));
            } else if of_runtimes && depth < 6 && name != "rootfs" && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push((entry.path(), depth + 1));
            }
        }
    }
    found
}

fn loop_devices(scope: &Scope) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let backing = devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    backing.filter(|file| scope.names(file)).map(|file| format!("loop device of {}", file.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_a_cgroup_and_a_file_are_found_and_seen_to_go() {
        let word = format!("coracle-ledger-{}", std::process::id());
        let scope = Scope { words: vec![word.clone()], ..Scope::default() };
        let before = read(&scope);
        assert!(before.is_empty(), "{before:?}");

        let mut child = Command::new("sh").args(["-c", "sleep 100; true", &word]).spawn().unwrap();
        let cgroup = proc::cgroup_roots().into_iter().next().unwrap().join(&word);
        let file = Path::new("/run").join(&word);
        fs::create_dir(&cgroup).unwrap();
        fs::create_dir(&file).unwrap();
        let found = read(&scope);
        for kind in ["process", "cgroup", "file"] {
            assert!(found.iter().any(|line| line.starts_with(kind)), "{kind} is not in {found:?}");
        }

        child.kill().unwrap();
        child.wait().unwrap();
        fs::remove_dir(&cgroup).unwrap();
        fs::remove_dir(&file).unwrap();
        expect_clean(&scope, &before).unwrap();
    }

    #[test]
    fn what_stays_is_named() {
        let word = format!("coracle-stays-{}", std::process::id());
        let scope = Scope { words: vec![word.clone()], ..Scope::default() };
        let dir = Path::new("/run").join(&word);
        fs::create_dir(&dir).unwrap();
        let failure = expect_clean(&scope, &Entries::new()).unwrap_err();
        fs::remove_dir(&dir).unwrap();
        assert!(failure.0.contains(&word), "{failure}");
    }

    #[test]
    fn sockets_are_found_by_containerds_hash() {
        let mut scope = Scope::default();
        scope.add(Path::new("/run/containerd/containerd.sock"), "default", "a");
        // printf %s /run/containerd/containerd.sock/default/a | sha256sum
        assert!(scope.sockets[0].ends_with("82795ca4b9b166c1139546afbf9dfd59d74776e0b49c8edfbb195f9d8b9e94a6"));
    }
}
