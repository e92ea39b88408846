//! Plans run for real, without a shim: one single-threaded process that forks a launcher, as the daemon does.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use runtime_core::cgroup;
use runtime_core::compile::{self, CgroupView, Compiled, Container, Streams};
use runtime_core::container::failure;
use runtime_core::plan::launcher::{Launched, Launcher, Request};
use runtime_core::plan::report::{self, GO, Message};
use runtime_core::spec::{Spec, check};
use runtime_core::sys::process;

fn main() {
    let launcher = Launcher::spawn().unwrap();
    let tests: &[(&str, fn(&Launcher))] = &[("a container runs and sees only its own", runs), ("a missing program is a sentence", missing)];
    let filter = std::env::args().nth(1).filter(|arg| !arg.starts_with('-')).unwrap_or_default();
    let mut passed = 0;
    for (name, test) in tests.iter().filter(|(name, _)| name.contains(&filter)) {
        test(&launcher);
        println!("ok: {name}");
        passed += 1;
    }
    println!("{passed} passed, 0 failed");
}

const SPEC: &str = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},"hostname":"inside",
 "process":{"args":["sh","-c","SCRIPT"],"cwd":"/","env":["PATH=/bin"],"user":{"uid":0,"gid":0},"noNewPrivileges":true,
  "capabilities":{"bounding":["CAP_KILL"],"effective":["CAP_KILL"],"permitted":["CAP_KILL"]}},
 "mounts":[{"destination":"/proc","type":"proc","source":"proc","options":["nosuid","noexec","nodev"]},
  {"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","strictatime","mode=755","size=65536k"]},
  {"destination":"/dev/pts","type":"devpts","source":"devpts","options":["nosuid","noexec","newinstance","ptmxmode=0666","mode=0620","gid=5"]},
  {"destination":"/dev/shm","type":"tmpfs","source":"shm","options":["nosuid","noexec","nodev","mode=1777","size=65536k"]},
  {"destination":"/dev/mqueue","type":"mqueue","source":"mqueue","options":["nosuid","noexec","nodev"]},
  {"destination":"/sys","type":"sysfs","source":"sysfs","options":["nosuid","noexec","nodev","ro"]},
  {"destination":"/run","type":"tmpfs","source":"tmpfs","options":["nosuid","strictatime","mode=755","size=65536k"]}],
 "linux":{"namespaces":[{"type":"pid"},{"type":"ipc"},{"type":"uts"},{"type":"mount"},{"type":"network"}],
  "sysctl":{"net.ipv4.ip_forward":"1"},
  "maskedPaths":["/proc/acpi","/proc/kcore","/proc/keys","/sys/firmware"],
  "readonlyPaths":["/proc/sys","/proc/bus"]}}"#;

fn bundle(script: &str) -> tempfile::TempDir {
    let bundle = tempfile::tempdir().unwrap();
    let bin = bundle.path().join("rootfs/bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    for applet in ["sh", "cat", "ls", "id", "hostname", "mount", "sleep", "echo"] {
        std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap();
    }
    std::fs::write(bundle.path().join("config.json"), SPEC.replace("SCRIPT", script)).unwrap();
    bundle
}

fn launch(launcher: &Launcher, compiled: &mut Compiled) -> Launched {
    let bytes = Request::Launch(Box::new(compiled.launch.clone())).encode().unwrap();
    let fds: Vec<_> = compiled.descriptors.iter().map(AsFd::as_fd).collect();
    assert_eq!(launcher.send(&bytes, &fds).unwrap(), bytes.len());
    // Among them is the child's end of the report, whose closing is the sign of execve.
    compiled.descriptors.clear();
    wait_readable(launcher.socket());
    launcher.receive().unwrap().unwrap()
}

fn wait_readable(fd: std::os::fd::BorrowedFd<'_>) {
    let mut poll = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut poll, None).unwrap();
}

fn next(report: &OwnedFd) -> Option<Message> {
    wait_readable(report.as_fd());
    report::receive(report.as_fd()).unwrap()
}

fn compile(bundle: &Path, stdout: OwnedFd) -> (Compiled, OwnedFd) {
    let spec = Spec::load(bundle).unwrap();
    check(&spec).unwrap();
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let (parent, child) = report::pair().unwrap();
    let compiled = compile::container(Container {
        id: "t",
        bundle,
        spec: &spec,
        rootfs: &[],
        cgroup: CgroupView { procs: Vec::new(), directory: None, mounts: cgroup::Mounts::V2 },
        streams: Streams::Given([null(), stdout.try_clone().unwrap(), stdout]),
        filter: None,
        report: child,
        no_pivot_root: false,
        no_new_keyring: false,
        layers_one_by_one: true,
    })
    .unwrap();
    (compiled, parent)
}

fn runs(launcher: &Launcher) {
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    let script = "hostname; id -u; echo $$; ls /; cat /proc/self/mountinfo /proc/sys/net/ipv4/ip_forward; ls -l /proc/self/fd; cat /proc/kcore | head -c 4";
    let bundle = bundle(script);
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (mut compiled, report) = compile(bundle.path(), write);
    let launched = launch(launcher, &mut compiled);
    match next(&report) {
        Some(Message::Ready) => {}
        Some(Message::Failed(failure)) => panic!("{}\n{}", failure::explain(&compiled.launch, &failure), compiled.launch.plan),
        other => panic!("{other:?}"),
    }
    rustix::io::write(&report, &[GO]).unwrap();
    match next(&report) {
        None => {}
        Some(Message::Failed(failure)) => panic!("{}", failure::explain(&compiled.launch, &failure)),
        other => panic!("{other:?}"),
    }
    let mut output = String::new();
    std::fs::File::from(read).read_to_string(&mut output).unwrap();
    let exited = process::wait(launched.pidfd.as_fd()).unwrap().unwrap();
    println!("{output}");
    assert_eq!((exited.pid, exited.status), (launched.pid, 0), "{output}");
    assert!(output.starts_with("inside\n0\n1\n"), "{output}");
    let after = std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    assert_eq!(before, after, "the host's mount table grew");
}

fn missing(launcher: &Launcher) {
    let bundle = bundle("x");
    let config = std::fs::read_to_string(bundle.path().join("config.json")).unwrap().replace("\"sh\"", "\"nosuch\"");
    std::fs::write(bundle.path().join("config.json"), config).unwrap();
    let (mut compiled, report) = compile(bundle.path(), OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
    let launched = launch(launcher, &mut compiled);
    let Some(Message::Failed(failure)) = next(&report) else { panic!() };
    let sentence = failure::explain(&compiled.launch, &failure).to_string();
    assert_eq!(sentence, r#"exec: "nosuch": executable file not found in $PATH"#);
    assert_eq!(process::wait(launched.pidfd.as_fd()).unwrap().unwrap().status, 1);
}
