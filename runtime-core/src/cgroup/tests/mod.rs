//! On plain directories: what is written where. On the kernel: that it has effect, on version 1 and on version 2.

mod adverse;
mod kernel;
mod plain;
mod version2;

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use super::*;

const LONG: Duration = Duration::from_secs(10);

fn resources(json: &str) -> Resources {
    serde_json::from_str(json).unwrap()
}

/// A cgroup for one test, removed at its end whatever happens.
struct Scratch {
    host: Host,
    path: CgroupPath,
    cgroup: Option<Cgroup>,
}

impl Scratch {
    fn new(name: &str, json: &str) -> Self {
        let host = Host::detect().unwrap();
        let path = CgroupPath::new(&host, Some(&format!("/coracle-test-{}-{name}", std::process::id())), name).unwrap();
        let mut scratch = Self { host, path, cgroup: None };
        scratch.cgroup = Some(Cgroup::create(&scratch.host, &scratch.path, &resources(json)).unwrap());
        scratch
    }

    fn cgroup(&self) -> &Cgroup {
        self.cgroup.as_ref().unwrap()
    }

    /// Runs a shell inside.
    fn run(&self, script: &str) -> Child {
        // The shell waits for its standard input, so that it is inside before the script runs.
        let mut child = Command::new("sh").arg("-c").arg(format!("read go; {script}")).stdin(std::process::Stdio::piped()).spawn().unwrap();
        self.cgroup().add(child.id().try_into().unwrap()).unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"go\n").unwrap();
        child
    }

    fn read(&self, controller: &'static str, file: &str) -> String {
        self.cgroup().home(controller).unwrap().dir.read(file).unwrap().trim().to_owned()
    }

    /// Of the file that this host's version has.
    fn read_either(&self, controller: &'static str, v1: &str, v2: &str) -> String {
        self.read(controller, if self.is_v2(controller) { v2 } else { v1 })
    }

    fn is_v2(&self, controller: &'static str) -> bool {
        self.cgroup().home(controller).unwrap().version == Version::V2
    }

    fn gone(&self) -> bool {
        Cgroup::open(&self.host, &self.path).unwrap().trees.is_empty()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let cgroup = Cgroup::open(&self.host, &self.path).unwrap();
        let _ = cgroup.kill_and_wait(LONG);
        let _ = cgroup.remove(LONG);
    }
}

/// Waits until `check` holds; there is no event for what the tests look at from outside.
#[track_caller]
fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + LONG;
    while !check() {
        assert!(std::time::Instant::now() < deadline, "not in time: {what}");
        watch::wait(None, Duration::from_millis(2)).unwrap();
    }
}

/// Runs on any version: list, freeze, thaw, kill while frozen, remove.
fn lifecycle(name: &str) {
    let scratch = Scratch::new(name, "{}");
    let cgroup = scratch.cgroup();
    assert!(!cgroup.populated().unwrap() && cgroup.pids().unwrap().is_empty());
    let mut child = scratch.run("sleep 1000 & sleep 1000");
    eventually("three processes", || cgroup.pids().unwrap().len() == 3);
    assert!(cgroup.populated().unwrap());

    // Half of them into a nested cgroup, in every hierarchy.
    for tree in &cgroup.trees {
        tree.dir.make("nested").unwrap();
        tree.dir.make("other").unwrap();
        tree.dir.open("other").unwrap().make("deep").unwrap();
        if tree.has("cpuset") && tree.version == Version::V1 {
            v1::inherit(&tree.dir, &tree.dir.open("nested").unwrap()).unwrap();
        }
        tree.dir.write("nested/cgroup.procs", &child.id().to_string()).unwrap();
    }
    assert_eq!(cgroup.pids().unwrap().len(), 3);

    for _ in 0..20 {
        cgroup.freeze(LONG).unwrap();
        // Frozen right after it was thawed, a v2 group may say "frozen 0" once more for some milliseconds: a process that was still about to
        // leave its stop is counted out and in again (kernel/cgroup/freezer.c).
        eventually("frozen", || cgroup.is_frozen().unwrap());
        cgroup.thaw().unwrap();
        eventually("thawed", || !cgroup.is_frozen().unwrap());
    }
    assert!(!cgroup.try_remove().unwrap(), "removed with processes inside");
    cgroup.freeze(LONG).unwrap();

    // Another process that knows only the record, as after a crash.
    let record = serde_json::to_string(&scratch.path).unwrap();
    let again = Cgroup::open(&Host::detect().unwrap(), &serde_json::from_str(&record).unwrap()).unwrap();
    again.kill_and_wait(LONG).unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(libc::SIGKILL));
    // As above: the events of a v2 group come a little after what they tell of.
    eventually("empty and thawed", || !cgroup.populated().unwrap() && !cgroup.is_frozen().unwrap());
    again.remove(LONG).unwrap();
    assert!(scratch.gone());
    again.remove(LONG).unwrap();
    again.kill().unwrap();
    assert!(cgroup.pids().unwrap().is_empty() && cgroup.try_remove().unwrap());
}

fn forking(name: &str) {
    let scratch = Scratch::new(name, "{}");
    // Three that never stay: each is forked by one that exits at once.
    let mut child = scratch.run("f() { f & }; f & f & f & exec sleep 1000");
    let mut seen = BTreeSet::new();
    eventually("forking", || {
        seen.extend(scratch.cgroup().pids().unwrap());
        seen.len() > 100
    });
    scratch.cgroup().freeze(LONG).unwrap();
    let frozen = scratch.cgroup().pids().unwrap();
    assert_eq!(scratch.cgroup().pids().unwrap(), frozen, "still forking");
    scratch.cgroup().thaw().unwrap();
    scratch.cgroup().kill_and_wait(LONG).unwrap();
    child.wait().unwrap();
    assert!(scratch.cgroup().pids().unwrap().is_empty());
}

/// /dev/full is not among the defaults of the rules below, /dev/null is.
fn devices(name: &str) {
    let scratch =
        Scratch::new(name, r#"{"devices": [{"allow": false}, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"}]}"#);
    let attempt = |script: &str| scratch.run(script).wait().unwrap().success();
    let dir = tempfile::tempdir().unwrap();
    let node = |name: &str, kind: rustix::fs::FileType, major, minor| {
        let path = dir.path().join(name);
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, rustix::fs::Mode::RWXU, rustix::fs::makedev(major, minor)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let log = node("kmsg", rustix::fs::FileType::CharacterDevice, 1, 11);
    let null = node("null", rustix::fs::FileType::CharacterDevice, 1, 3);
    assert!(attempt(&format!("echo > {null}")));
    assert!(!attempt(&format!("exec 2>&-; head -c 0 < {log}")), "a denied device was opened");
    assert!(attempt(&format!("mknod {}/made b 8 0", dir.path().display())), "making a node is allowed");
    scratch.cgroup().update(&resources(r#"{"devices": [{"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}]}"#)).unwrap();
    assert!(attempt(&format!("head -c 0 < {log}")), "the new rule is not in force");
    assert!(!attempt(&format!("exec 2>&-; echo > {log}")), "reading was allowed, not writing");
    scratch.cgroup().update(&resources(r#"{"devices": [{"allow": true}]}"#)).unwrap();
    assert!(attempt(&format!("head -c 0 < {log}")));
}
