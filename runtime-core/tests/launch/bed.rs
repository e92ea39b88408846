//! What the tests share: a launcher, bundles with a small root filesystem, and processes to talk to.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use runtime_core::cgroup::{Cgroup, Mounts};
use runtime_core::compile::{self, CgroupView, Compiled, Container, Joined, Joining, RootMount, Streams};
use runtime_core::container::{failure, progress};
use runtime_core::kernel::Features;
use runtime_core::plan::launcher::{Launched, Launcher, Request};
use runtime_core::plan::report::{self, GO, Message};
use runtime_core::rdt::Groups;
use runtime_core::seccomp::{self, Filter};
use runtime_core::spec::{Process, Spec};
use runtime_core::sys::process;
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::{Value, json};

/// A name and what it does.
pub type Test = (&'static str, fn(&Bed));

/// How often to look whether the launcher is through.
const PATIENCE: u32 = 1000;
const APPLETS: [&str; 24] = [
    "sh", "cat", "ls", "id", "hostname", "mount", "sleep", "echo", "grep", "stat", "touch", "tty", "stty", "umask", "mkdir", "pwd", "test",
    "head", "mknod", "env", "kill", "readlink", "dd", "umount",
];

/// A launcher for all tests, as a daemon has one.
pub struct Bed {
    pub launcher: Launcher,
}

impl Bed {
    pub fn new() -> Self {
        // The host's mount table for these tests: nobody else's mounts come and go in it.
        process::unshare(libc::CLONE_NEWNS).unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        process::set_subreaper().unwrap();
        let bed = Self { launcher: Launcher::spawn().unwrap() };
        // Until it answers, it is not what it will be: its descriptors are still those of its start.
        Bundle::new("").output(&bed);
        bed
    }

    /// What a test must not change: the host's mounts, descriptors here and in the launcher, children.
    pub fn traces(&self) -> [usize; 4] {
        let count = |path: &str| std::fs::read_dir(path).unwrap().count();
        let own = std::process::id();
        let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap();
        [
            std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count(),
            count("/proc/self/fd"),
            count(&format!("/proc/{}/fd", self.launcher.pid())),
            children.split_ascii_whitespace().count(),
        ]
    }

    /// The launcher closes its descriptors of a process right after it has answered.
    pub fn assert_no_trace(&self, before: [usize; 4], what: &str) {
        for _ in 0..PATIENCE {
            if self.traces() == before {
                return;
            }
            std::thread::yield_now();
        }
        assert_eq!(before, self.traces(), "left behind: {what}");
    }

    pub fn launch(&self, compiled: Compiled, report: OwnedFd, output: OwnedFd) -> Running {
        self.try_launch(compiled, report, output).unwrap()
    }

    /// Fails if the process cannot even be cloned.
    pub fn try_launch(&self, mut compiled: Compiled, report: OwnedFd, output: OwnedFd) -> Result<Running, Errno> {
        let bytes = Request::Launch(Box::new(compiled.launch.clone())).encode().unwrap();
        let descriptors: Vec<_> = compiled.descriptors.iter().map(AsFd::as_fd).collect();
        assert_eq!(self.launcher.send(&bytes, &descriptors).unwrap(), bytes.len());
        // Among them is the child's end of the report, whose closing is the sign of execve.
        compiled.descriptors.clear();
        wait_readable(self.launcher.socket());
        let launched = self.launcher.receive().unwrap()?;
        Ok(Running { launched, report, output, compiled })
    }
}

/// Both ways where the running kernel knows the newer one.
pub fn ways(newer: bool) -> impl Iterator<Item = bool> {
    [true, false].into_iter().filter(move |way| newer || !way)
}

/// A bundle and what its container is compiled with.
pub struct Bundle {
    pub directory: tempfile::TempDir,
    pub spec: Value,
    pub rootfs: Vec<RootMount>,
    pub by_helper: Vec<OwnedFd>,
    pub cgroup: Option<Cgroup>,
    pub kernel: Features,
    pub terminal: bool,
    pub no_pivot_root: bool,
}

impl Bundle {
    /// A container that runs `script`, much as `ctr run` makes it.
    pub fn new(script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fill(&directory.path().join("rootfs"));
        Self {
            directory,
            spec: spec(script),
            rootfs: Vec::new(),
            by_helper: Vec::new(),
            cgroup: None,
            kernel: Features::get(),
            terminal: false,
            no_pivot_root: false,
        }
    }

    /// Sets one field by its JSON pointer.
    #[must_use]
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        self.spec.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(key.to_owned(), value);
        self
    }

    /// Adds a mount after the others.
    #[must_use]
    pub fn mount(mut self, destination: &str, fstype: &str, source: &str, options: &[&str]) -> Self {
        let mount = json!({"destination": destination, "type": fstype, "source": source, "options": options});
        self.spec["mounts"].as_array_mut().unwrap().push(mount);
        self
    }

    /// Removes the mounts on and below a destination.
    #[must_use]
    pub fn without_mount(mut self, destination: &str) -> Self {
        let mounts = self.spec["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with(destination));
        self
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    pub fn parse(&self) -> Spec {
        std::fs::write(self.directory.path().join("config.json"), self.spec.to_string()).unwrap();
        Spec::load(self.directory.path()).unwrap()
    }

    /// The container's plan, the parent's end of the report and of its output.
    pub fn compile(&self) -> runtime_core::Result<(Compiled, OwnedFd, OwnedFd)> {
        let spec = self.parse();
        let (parent, child) = report::pair().unwrap();
        let (output, streams) = streams(self.terminal);
        let filter = filter(&spec);
        let compiled = compile::container(Container {
            id: "t",
            bundle: self.directory.path(),
            spec: &spec,
            rootfs: &self.rootfs,
            by_helper: self.by_helper.iter().map(|mount| mount.try_clone().unwrap()).collect(),
            pod: None,
            cgroup: cgroup_view(self.cgroup.as_ref()),
            streams,
            filter: filter.as_ref(),
            report: child,
            parents_end: None,
            preserved: Vec::new(),
            no_pivot_root: self.no_pivot_root,
            networked: false,
            no_new_keyring: false,
            kernel: self.kernel,
        })?;
        Ok((compiled, parent, output))
    }

    /// Started, and let go.
    pub fn running(&self, bed: &Bed) -> Running {
        let mut init = self.start(bed);
        init.ready();
        init.go();
        init
    }

    pub fn start(&self, bed: &Bed) -> Running {
        let (compiled, report, output) = self.compile().unwrap();
        bed.launch(compiled, report, output)
    }

    /// What the container prints, which must end well.
    pub fn output(&self, bed: &Bed) -> String {
        let mut running = self.start(bed);
        running.ready();
        running.go();
        let (status, output) = running.end();
        assert_eq!(status, 0, "{output}");
        output
    }

    /// Why the container cannot be made.
    pub fn failure(&self, bed: &Bed) -> String {
        match self.compile() {
            Err(error) => error.to_string(),
            Ok((compiled, report, output)) => bed.launch(compiled, report, output).failure(),
        }
    }

    /// A process that joins; its JSON is the container's with the fields of `changes`.
    pub fn join(&self, bed: &Bed, init: &Running, changes: Value, terminal: bool) -> runtime_core::Result<Running> {
        let (compiled, report, output) = self.compile_joining(init, changes, terminal)?;
        Ok(bed.launch(compiled, report, output))
    }

    /// As [`Bundle::compile`].
    pub fn compile_joining(&self, init: &Running, changes: Value, terminal: bool) -> runtime_core::Result<(Compiled, OwnedFd, OwnedFd)> {
        let spec = self.parse();
        let mut process = self.spec["process"].clone();
        for (key, value) in changes.as_object().unwrap() {
            process[key] = value.clone();
        }
        let process = Process::parse(process.to_string().as_bytes())?;
        let (parent, child) = report::pair().unwrap();
        let (output, streams) = streams(terminal);
        let filter = filter(&spec);
        let compiled = compile::joining(Joining {
            id: "t",
            namespaces: &Joined::of(&spec.linux).unwrap(),
            process: &process,
            init: init.launched.pidfd.try_clone().unwrap(),
            cgroup: cgroup_view(self.cgroup.as_ref()),
            streams,
            filter: filter.as_ref(),
            report: child,
            preserved: Vec::new(),
            no_new_keyring: false,
        })?;
        Ok((compiled, parent, output))
    }

    /// What a joining shell prints, which must end well.
    pub fn join_output(&self, bed: &Bed, init: &Running, changes: Value) -> String {
        let mut joined = self.join(bed, init, changes, false).unwrap();
        joined.executed();
        let (status, output) = joined.end();
        assert_eq!(status, 0, "{output}");
        output
    }
}

/// A launched process.
pub struct Running {
    pub launched: Launched,
    pub report: OwnedFd,
    pub output: OwnedFd,
    pub compiled: Compiled,
}

impl Running {
    /// What it says next; a process that is born again is followed, and owners that it wants mapped are mapped.
    pub fn next(&mut self) -> Option<Message> {
        loop {
            wait_readable(self.report.as_fd());
            match report::receive(self.report.as_fd()).unwrap() {
                Some(Message::Born(pidfd)) => {
                    let old = std::mem::replace(&mut self.launched, progress::born(pidfd).unwrap());
                    assert_eq!(process::wait(old.pidfd.as_fd()).unwrap().unwrap().status, 0);
                }
                Some(Message::Map { mount, namespace, recursive }) => {
                    let (report, pidfd) = (self.report.as_fd(), self.launched.pidfd.as_fd());
                    progress::map_owners(report, pidfd, &self.compiled.launch, (mount, namespace), recursive).unwrap();
                }
                message => return message,
            }
        }
    }

    fn told(&self, message: Option<Message>) -> String {
        match message {
            Some(Message::Failed(failure)) => failure::explain(&self.compiled.launch, &failure).to_string(),
            other => format!("{other:?}"),
        }
    }

    /// Takes the next message, which must be the master of a terminal.
    pub fn console(&mut self) {
        match self.next() {
            Some(Message::Console(master)) => self.output = master,
            other => panic!("no console: {}\n{}", self.told(other), self.compiled.launch.plan),
        }
    }

    pub fn ready(&mut self) {
        match self.next() {
            Some(Message::Ready) => {}
            Some(Message::Console(master)) => {
                self.output = master;
                self.ready();
            }
            other => panic!("not ready: {}\n{}", self.told(other), self.compiled.launch.plan),
        }
    }

    /// Starts the program.
    pub fn go(&mut self) {
        rustix::io::write(&self.report, &[GO]).unwrap();
        self.executed();
    }

    /// Takes the next message, which must be a mount.
    pub fn mount(&mut self) -> OwnedFd {
        match self.next() {
            Some(Message::Handed(mount)) => mount,
            other => panic!("no mount: {}\n{}", self.told(other), self.compiled.launch.plan),
        }
    }

    pub fn executed(&mut self) {
        match self.next() {
            None => {}
            other => panic!("not executed: {}\n{}", self.told(other), self.compiled.launch.plan),
        }
    }

    /// Its exit status and all that it printed.
    pub fn end(self) -> (u32, String) {
        let mut bytes = Vec::new();
        match File::from(self.output).read_to_end(&mut bytes) {
            Ok(_) => {}
            // A terminal whose other end is closed.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => {}
            Err(error) => panic!("{error}"),
        }
        let exited = process::wait(self.launched.pidfd.as_fd()).unwrap().unwrap();
        assert_eq!(exited.pid, self.launched.pid);
        (exited.status, String::from_utf8_lossy(&bytes).replace("\r\n", "\n"))
    }

    /// Starts it, whatever comes of it: the sentence of its failure, or what it printed.
    pub fn finish(mut self) -> Result<String, String> {
        loop {
            match self.next() {
                Some(Message::Failed(failure)) => {
                    let sentence = failure::explain(&self.compiled.launch, &failure).to_string();
                    self.end();
                    return Err(sentence);
                }
                Some(Message::Console(master)) => self.output = master,
                Some(Message::Handed(mount)) => drop(mount),
                Some(Message::Born(_) | Message::Map { .. }) => unreachable!("next() sees to it"),
                Some(Message::Ready | Message::Hooks | Message::Listener(_)) => drop(rustix::io::write(&self.report, &[GO]).unwrap()),
                None => return Ok(self.end().1),
            }
        }
    }

    pub fn kill(self) {
        rustix::process::pidfd_send_signal(&self.launched.pidfd, rustix::process::Signal::KILL).unwrap();
        process::wait(self.launched.pidfd.as_fd()).unwrap().unwrap();
    }

    /// Why it gave up.
    pub fn failure(self) -> String {
        self.finish().expect_err("it did not fail")
    }
}

pub fn wait_readable(fd: BorrowedFd<'_>) {
    let mut poll = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut poll, None).unwrap();
}

pub fn null() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

/// A pipe: where to read, and where to write.
pub fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}

fn streams(terminal: bool) -> (OwnedFd, Streams) {
    if terminal {
        return (null(), Streams::Terminal { served: false });
    }
    let (read, write) = pipe();
    (read, Streams::Given([null(), write.try_clone().unwrap(), write]))
}

fn filter(spec: &Spec) -> Option<Filter> {
    spec.linux.seccomp.as_ref().map(|profile| seccomp::compile(profile).unwrap())
}

pub fn cgroup_view(cgroup: Option<&Cgroup>) -> CgroupView {
    match cgroup {
        None => CgroupView { procs: Vec::new(), directory: None, mounts: Mounts::V2 },
        Some(cgroup) => CgroupView::of(cgroup, &Groups::default()).unwrap(),
    }
}

/// A root filesystem with a shell.
pub fn fill(root: &Path) {
    let bin = root.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    match std::fs::hard_link("/bin/busybox", bin.join("busybox")) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => drop(std::fs::copy("/bin/busybox", bin.join("busybox")).unwrap()),
        result => result.unwrap(),
    }
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap();
    }
}

fn spec(script: &str) -> Value {
    let capabilities = ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID", "CAP_MKNOD"];
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "hostname": "inside",
        "process": {
            "args": ["sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}, "noNewPrivileges": true,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities}
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/nosuch", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/sys", "/proc/nosuch"]
        }
    })
}
