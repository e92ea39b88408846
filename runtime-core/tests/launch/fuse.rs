//! Root filesystems made by mount helpers: a real FUSE server, small enough to be this program.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use runtime_core::compile::{ByHelper, Compiled, RootMount, by_helper};
use runtime_core::plan::report;
use runtime_core::sys::process;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::bed::{Bed, Bundle, Running, Test, null};
use super::fuse_server::SERVER;

pub const TESTS: &[Test] = &[
    ("a FUSE filesystem lives as long as its container", lifetime),
    ("a FUSE filesystem that nobody takes ends", not_taken),
    ("mount helpers that fail say so", failures),
    ("a mount helper gets nothing that is not its own", helper_has_nothing),
    ("a mount helper that hangs is killed with all that it started", hanging),
];

const LONG: Duration = Duration::from_secs(10);

/// Where the plan looks for helpers first, with a directory of the test's over it. The real one stays as it is.
pub struct Helpers(tempfile::TempDir);

const PLACE: &str = "/usr/local/sbin";

impl Helpers {
    fn new(script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["mount.fuse", "mount.fuse3"] {
            let path = directory.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        mount_bind(directory.path(), PLACE).unwrap();
        Self(directory)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.path().join(name)).unwrap_or_default()
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        unmount(PLACE, UnmountFlags::DETACH).unwrap();
    }
}

/// A helper that starts this program as the server.
pub fn real() -> Helpers {
    Helpers::new(&format!("exec {} {SERVER} \"$@\"", std::env::current_exe().unwrap().display()))
}

fn fuse(target: &str) -> RootMount {
    RootMount {
        fstype: "fuse3.test".into(),
        source: "the source".into(),
        target: target.into(),
        options: vec!["ro".into(), "a=b:c".into()],
    }
}

/// The plan of a helper, and the parent's end of its report.
pub fn compile(target: &Path) -> (Compiled, OwnedFd) {
    let (parent, child) = report::pair().unwrap();
    (by_helper(ByHelper { mount: &fuse(""), target, report: child }).unwrap(), parent)
}

fn launch(bed: &Bed, target: &Path) -> Running {
    let (compiled, report) = compile(target);
    bed.launch(compiled, report, null())
}

fn ends(keeper: &Running, within: Duration) -> bool {
    let mut polled = [PollFd::new(&keeper.launched.pidfd, PollFlags::IN)];
    let ended = poll(&mut polled, Some(&Timespec::try_from(within).unwrap())).unwrap() == 1;
    ended && process::wait(keeper.launched.pidfd.as_fd()).unwrap().is_some_and(|exited| exited.status == 0)
}

fn lifetime(bed: &Bed) {
    let _helpers = real();
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut bundle =
        Bundle::new("stat -c %F,%u:%g /mnt; grep -c ' /mnt .* fuse.test ' /proc/self/mountinfo; ls /proc | grep -c '^[0-9]'; cat /fifo");
    let fifo = bundle.root().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let mut keeper = launch(bed, &bundle.root());
    bundle.by_helper = vec![keeper.mount()];
    assert!(keeper.next().is_none());
    let root = RootMount {
        fstype: "bind".into(),
        source: bundle.root().display().to_string(),
        target: String::new(),
        options: vec!["rbind".into()],
    };
    bundle.rootfs = vec![root, fuse("/mnt")];
    let mut running = bundle.start(bed);
    bundle.by_helper.clear();
    running.ready();
    running.go();
    assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    assert!(!ends(&keeper, Duration::from_millis(50)), "the server ended before its container");
    std::fs::write(fifo, "").unwrap();
    // The directory is the server's; its processes are not among the container's: the shell and what it runs are three at most.
    let (status, output) = running.end();
    assert_eq!((status, output.as_str()), (0, "directory,12:34\n1\n3\n"));
    assert!(ends(&keeper, LONG), "the server outlives its container");
}

fn not_taken(bed: &Bed) {
    let _helpers = real();
    let target = tempfile::tempdir().unwrap();
    let mut keeper = launch(bed, target.path());
    drop(keeper.mount());
    assert!(ends(&keeper, LONG), "the server outlives its mount");
}

fn failures(bed: &Bed) {
    let target = tempfile::tempdir().unwrap();
    let failure = |script: &str| {
        let _helpers = Helpers::new(script);
        launch(bed, target.path()).failure()
    };
    assert_eq!(failure("echo cannot; echo really cannot >&2; exit 3"), "mount helper mount.fuse3: exit status 3: cannot; really cannot");
    assert!(failure("exit 0").ends_with("the helper ended well and mounted nothing: no such device"), "{}", failure("exit 0"));
    assert!(failure("head -c 100000 /dev/zero | tr '\\0' x; exit 1").len() < 300);
    let _none = Helpers::new("");
    std::fs::remove_file(Path::new(PLACE).join("mount.fuse3")).unwrap();
    // A host that has fuse3 has its helper in a later place, and that one knows no such type.
    let installed = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().any(|place| Path::new(place).join("mount.fuse3").exists());
    let expected =
        if installed { "mount helper mount.fuse3: exit status" } else { "mount helper \"mount.fuse3\" is not in /usr/local/sbin:" };
    let sentence = launch(bed, target.path()).failure();
    assert!(sentence.starts_with(expected), "{sentence}");
}

fn helper_has_nothing(bed: &Bed) {
    let helpers = Helpers::new("");
    let target = tempfile::tempdir().unwrap();
    let script = format!(
        "env > {0}; for fd in /proc/self/fd/*; do readlink $fd; done > {1} 2>/dev/null; for i in \"$@\"; do echo \"$i\"; done > {2}; \
         mount -t tmpfs fake \"$2\"; readlink /proc/self > {3}",
        helpers.path("env"),
        helpers.path("fds"),
        helpers.path("arguments"),
        helpers.path("pid"),
    );
    std::fs::write(helpers.path("mount.fuse3"), format!("#!/bin/sh\n{script}\n")).unwrap();
    let mut keeper = launch(bed, target.path());
    drop(keeper.mount());
    assert!(ends(&keeper, LONG));
    let environment = helpers.read("env");
    let names: Vec<&str> = environment.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    assert!(names.iter().all(|name| matches!(*name, "PATH" | "PWD" | "SHLVL" | "_" | "OLDPWD")), "{environment}");
    // The shell reads its script through one, and the list of descriptors itself is another.
    let descriptors = helpers.read("fds");
    let known =
        |line: &str| line == "/dev/null" || line.starts_with("pipe:") || line.starts_with("/proc/") || line.ends_with("mount.fuse3");
    assert!(descriptors.lines().all(|line| known(line) || line == helpers.path("fds")), "{descriptors}");
    let arguments = format!("the source\n{}\n-o\nro\n-o\na=b:c\n-t\ntest\n", target.path().display());
    assert_eq!(helpers.read("arguments"), arguments);
    assert_eq!(std::fs::read_dir(target.path()).unwrap().count(), 0);
}

fn hanging(bed: &Bed) {
    let helpers = Helpers::new("");
    let target = tempfile::tempdir().unwrap();
    let script = format!("sleep 1000 & readlink /proc/self > {0}.new; mv {0}.new {0}; wait", helpers.path("pid"));
    std::fs::write(helpers.path("mount.fuse3"), format!("#!/bin/sh\n{script}\n")).unwrap();
    let keeper = launch(bed, target.path());
    let since = Instant::now();
    while helpers.read("pid").is_empty() {
        assert!(since.elapsed() < LONG);
        std::thread::yield_now();
    }
    let helper = children_of(&keeper.launched.pid.to_string());
    let sleeper = children_of(&helper[0]);
    keeper.kill();
    for pid in helper.iter().chain(&sleeper) {
        assert!(!Path::new("/proc").join(pid).exists(), "{pid} is left");
    }
}

fn children_of(pid: &str) -> Vec<String> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    assert!(!children.is_empty());
    children.split_ascii_whitespace().map(str::to_owned).collect()
}
