//! Mounts, devices and paths, as the container sees them.

use runtime_core::compile::RootMount;
use runtime_core::plan::Step;
use runtime_core::plan::report::{GO, Message};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use serde_json::json;

use super::bed::{Bed, Bundle, Test};

pub const TESTS: &[Test] = &[
    ("a read-only root", read_only_root),
    ("masked and read-only paths", masked),
    ("paths that engines leave empty, relative or the root itself", odd_paths),
    ("devices have the spec's modes, whatever the mask", devices),
    ("of two devices at one place the first counts, and what is there stays", devices_twice),
    ("a bound /dev is left alone", bound_dev),
    ("devices of the host, where none may be made", devices_of_host),
    ("a read-only tmpfs gets its mount points first", read_only_tmpfs),
    ("a tmpfs has the mode of the directory that it covers", tmpfs_mode),
    ("a file and a directory do not cover each other", file_and_directory),
    ("binds: ro is for one mount, rro for all below", recursive_read_only),
    ("binds of files, options in order", bind_options),
    ("propagation of binds", propagation),
    ("propagation of the root", root_propagation),
    ("what the host mounts while a bind is made", late_mounts),
    ("binds that follow nobody do not watch the host", not_watched),
    ("mount points beneath links", links),
    ("a given mount namespace is taken over", given_namespace),
    ("the host's mount namespace is not to be had", hosts_namespace),
];

fn read_only_root(bed: &Bed) {
    let bundle = Bundle::new("touch /x 2>&1; touch /run/x /dev/shm/x && echo rest").with("/root/readonly", json!(true));
    assert_eq!(bundle.output(bed), "touch: /x: Read-only file system\nrest\n");
}

fn masked(bed: &Bed) {
    let script = "stat -c %t:%T /proc/keys /file; ls -A /directory | grep -c .; touch /directory/x /proc/sys/x /ro/x 2>&1; cat /ro/y; \
                  grep -c ' /directory ro' /proc/self/mountinfo";
    let bundle = Bundle::new(script)
        .with("/linux/maskedPaths", json!(["/proc/keys", "/file", "/directory", "/other", "/nosuch/x", "/directory/", "/x/../directory"]))
        .with("/linux/readonlyPaths", json!(["/proc/sys", "/ro"]));
    for directory in ["directory", "other", "ro"] {
        std::fs::create_dir(bundle.root().join(directory)).unwrap();
        std::fs::write(bundle.root().join(directory).join("y"), "secret\n").unwrap();
    }
    std::fs::write(bundle.root().join("file"), "secret").unwrap();
    let mut running = bundle.start(bed);
    running.ready();
    running.go();
    let (_, output) = running.end();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(&lines[..3], ["1:3", "1:3", "0"], "{output}");
    assert!(lines[3].contains("/directory/x: Read-only file system"), "{output}");
    assert!(lines[4].contains("/proc/sys/x: ") && lines[5].contains("/ro/x: Read-only"), "{output}");
    assert_eq!(&lines[6..], ["secret", "1"], "{output}");
}

fn odd_paths(bed: &Bed) {
    let script = "touch /x 2>&1; touch /run/x && echo rest; ls -A /m | grep -c . || true";
    let mut bundle =
        Bundle::new(script).with("/linux/maskedPaths", json!(["", "m", "m/../m"])).with("/linux/readonlyPaths", json!(["", "run/y"]));
    std::fs::create_dir(bundle.root().join("m")).unwrap();
    std::fs::write(bundle.root().join("m/secret"), "").unwrap();
    assert_eq!(bundle.output(bed), "rest\n0\n");
    bundle = bundle.with("/linux/readonlyPaths", json!(["/", "/"]));
    assert_eq!(bundle.output(bed), "touch: /x: Read-only file system\nrest\n0\n");
}

fn devices_twice(bed: &Bed) {
    let script = "stat -c '%n %F %a %t:%T' /dev/one /dev/zero /dev/full /dev/kmsg";
    let node = |path: &str, minor: u32, mode: u32| json!({"path": path, "type": "c", "major": 1, "minor": minor, "fileMode": mode});
    let devices = [node("/dev/one", 3, 0o600), node("/dev/one", 5, 0o666), node("/dev//./one", 7, 0o666)];
    let devices = devices.into_iter().chain([node("/dev/../dev/zero", 5, 0o640), node("/dev/kmsg", 11, 0o600)]).collect::<Vec<_>>();
    let bundle = Bundle::new(script).with("/linux/devices", json!(devices)).mount("/dev/full", "bind", "/dev/null", &["bind"]).mount(
        "/dev/kmsg",
        "bind",
        "/dev/null",
        &["bind"],
    );
    let seen = bundle.output(bed);
    let file = "character special file";
    let null = seen.lines().last().unwrap_or_default().trim_start_matches("/dev/kmsg ").to_owned();
    assert!(null.starts_with(file) && null.ends_with(" 1:3"), "{seen}");
    assert_eq!(seen, format!("/dev/one {file} 600 1:3\n/dev/zero {file} 640 1:5\n/dev/full {null}\n/dev/kmsg {null}\n"));
}

fn devices(bed: &Bed) {
    let script = "stat -c '%n %F %a %u:%g %t:%T' /dev/null /dev/full /dev/fuse /dev/deep/block /dev/fifo; readlink /dev/fd; readlink /dev/stdout; readlink /dev/ptmx; \
                  echo x > /dev/null && echo written; head -c 2 /dev/zero | wc -c; dd if=/dev/deep/block count=1 2>&1 | tail -1";
    let given = json!([
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 3, "gid": 4},
        {"path": "/dev/deep/block", "type": "b", "major": 7, "minor": 200, "fileMode": 384},
        {"path": "/dev/fifo", "type": "p", "major": 0, "minor": 0}
    ]);
    let bundle = Bundle::new(script).with("/linux/devices", given);
    std::os::unix::fs::symlink("busybox", bundle.root().join("bin/wc")).unwrap();
    std::os::unix::fs::symlink("busybox", bundle.root().join("bin/tail")).unwrap();
    let output = bundle.output(bed);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "/dev/null character special file 666 0:0 1:3", "{output}");
    assert_eq!(lines[1], "/dev/full character special file 666 0:0 1:7", "{output}");
    assert_eq!(lines[2], "/dev/fuse character special file 666 3:4 a:e5", "{output}");
    assert_eq!(lines[3], "/dev/deep/block block special file 600 0:0 7:c8", "{output}");
    assert_eq!(lines[4], "/dev/fifo fifo 666 0:0 0:0", "{output}");
    assert_eq!(&lines[5..10], ["/proc/self/fd", "/proc/self/fd/1", "pts/ptmx", "written", "2"], "{output}");
}

fn devices_of_host(bed: &Bed) {
    let script = "stat -c '%n %t:%T' /dev/null /dev/tty; echo x > /dev/null; grep -c ' /dev/null ' /proc/self/mountinfo; readlink /dev/ptmx; \
                  stat -c %F /dev/pipe";
    let list = json!([{"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2}, {"path": "/dev/pipe", "type": "p"}]);
    let mut bundle = Bundle::new(script).with("/linux/devices", list);
    bundle.kernel.in_user_namespace = true;
    assert_eq!(bundle.output(bed), "/dev/null 1:3\n/dev/tty 5:0\n1\npts/ptmx\nfifo\n");
    for (path, major) in [("/dev/none", 1), ("/dev/null", 5)] {
        bundle = bundle.with("/linux/devices", json!([{"path": path, "type": "c", "major": major, "minor": 1}]));
        let sentence = bundle.failure(bed);
        assert!(sentence.starts_with(&format!("linux.devices: \"{path}\": a user namespace can make no device")), "{sentence}");
    }
}

fn bound_dev(bed: &Bed) {
    let dev = tempfile::tempdir().unwrap();
    std::fs::write(dev.path().join("only"), "").unwrap();
    let source = dev.path().display().to_string();
    let bundle = Bundle::new("echo /dev/*").without_mount("/dev").mount("/dev", "bind", &source, &["rbind", "rw"]);
    assert_eq!(bundle.output(bed), "/dev/only\n");
    assert_eq!(std::fs::read_dir(dev.path()).unwrap().count(), 1);
}

fn read_only_tmpfs(bed: &Bed) {
    let bundle = Bundle::new("touch /t/x 2>&1 || true; touch /t/inner/x && echo inner")
        .mount("/t", "tmpfs", "tmpfs", &["ro", "size=1m"])
        .mount("/t/inner", "tmpfs", "tmpfs", &[]);
    assert_eq!(bundle.output(bed), "touch: /t/x: Read-only file system\ninner\n");
}

fn tmpfs_mode(bed: &Bed) {
    let bundle = Bundle::new("stat -c '%n %a %u' /closed /new /given /real")
        .mount("/closed", "tmpfs", "tmpfs", &["ro"])
        .mount("/new", "tmpfs", "tmpfs", &[])
        .mount("/given", "tmpfs", "tmpfs", &["mode=711"])
        .mount("/link", "tmpfs", "tmpfs", &["uid=3"]);
    for (name, mode) in [("closed", 0o750), ("given", 0o750), ("real", 0o2705)] {
        std::fs::create_dir(bundle.root().join(name)).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(bundle.root().join(name), mode).unwrap();
    }
    std::os::unix::fs::symlink("/real", bundle.root().join("link")).unwrap();
    assert_eq!(bundle.output(bed), "/closed 750 0\n/new 1777 0\n/given 711 0\n/real 2705 3\n");
}

fn file_and_directory(bed: &Bed) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    for (source, destination) in [(file.as_path(), "/bin"), (directory.path(), "/bin/busybox")] {
        let source = source.display().to_string();
        let failure = Bundle::new("").mount(destination, "bind", &source, &["rbind"]).failure(bed);
        assert_eq!(failure, format!("attach bind {source:?} at {destination:?}: move the mount there: not a directory"));
    }
}

/// A tmpfs with another one below it, in the tests' own mount namespace.
struct Nested(tempfile::TempDir);

impl Nested {
    fn new(propagation: MountPropagationFlags) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("below");
        mount("tmpfs", directory.path(), "tmpfs", MountFlags::empty(), None).unwrap();
        mount_change(directory.path(), propagation).unwrap();
        std::fs::create_dir(&below).unwrap();
        mount("tmpfs", &below, "tmpfs", MountFlags::empty(), None).unwrap();
        Self(directory)
    }

    fn source(&self) -> String {
        self.0.path().display().to_string()
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        unmount(self.0.path(), UnmountFlags::DETACH).unwrap();
    }
}

fn recursive_read_only(bed: &Bed) {
    let nested = Nested::new(MountPropagationFlags::PRIVATE);
    let script = "touch /b/x 2>&1; touch /b/below/x 2>&1; echo end";
    let run = |options: &[&str]| Bundle::new(script).mount("/b", "bind", &nested.source(), options).output(bed);
    assert_eq!(run(&["rbind", "ro"]), "touch: /b/x: Read-only file system\nend\n");
    assert_eq!(run(&["rbind", "rro"]), "touch: /b/x: Read-only file system\ntouch: /b/below/x: Read-only file system\nend\n");
    let shallow = Bundle::new("echo /b/*; ls /b/below").mount("/b", "bind", &nested.source(), &["bind"]).output(bed);
    assert_eq!(shallow, "/b/below\n");
}

fn bind_options(bed: &Bed) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "content\n").unwrap();
    let source = file.display().to_string();
    let script = "cat /etc/a /etc/b; grep ' /etc/' /proc/self/mountinfo";
    let bundle = Bundle::new(script)
        .mount("/etc/a", "bind", &source, &["rbind", "rprivate", "ro", "nosuid", "nodev", "noexec", "noatime"])
        .mount("/etc/b", "", &source, &["bind", "ro", "rw"]);
    let output = bundle.output(bed);
    assert!(output.starts_with("content\ncontent\n"), "{output}");
    let options = |point: &str| output.lines().find(|line| line.contains(point)).unwrap().split(' ').nth(5).unwrap().to_owned();
    assert_eq!(options(" /etc/a "), "ro,nosuid,nodev,noexec,noatime");
    assert_eq!(options(" /etc/b "), "rw,relatime");
}

fn propagation(bed: &Bed) {
    let nested = Nested::new(MountPropagationFlags::SHARED);
    let all = json!(["CAP_SYS_ADMIN"]);
    // What is mounted inside is the host's only where the root is to be shared, too.
    for (option, of_root, down, up) in [
        ("rprivate", "", false, false),
        ("rslave", "", true, false),
        ("rshared", "", true, false),
        ("shared", "", true, false),
        ("rshared", "rslave", true, false),
        ("rshared", "rprivate", false, false),
        ("rshared", "rshared", true, true),
        ("rslave", "shared", true, false),
        ("shared", "shared", true, true),
    ] {
        for name in ["from-host", "from-inside"] {
            let _ = std::fs::create_dir(nested.0.path().join(name));
        }
        for name in ["first", "second"] {
            let fifo = nested.0.path().join(name);
            let _ = rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0);
        }
        let script = "cat /b/first; mount -t tmpfs inside /b/from-inside; grep -c /b/from-host /proc/self/mountinfo; cat /b/second";
        let bundle = Bundle::new(script)
            .mount("/b", "bind", &nested.source(), &["rbind", option])
            .with("/linux/rootfsPropagation", json!(of_root))
            .with("/process/capabilities", json!({"bounding": all, "effective": all, "permitted": all}));
        let mut running = bundle.start(bed);
        running.ready();
        running.go();
        mount("tmpfs", nested.0.path().join("from-host"), "tmpfs", MountFlags::empty(), None).unwrap();
        // It opens the second fifo once its own mount is made.
        for name in ["first", "second"] {
            drop(std::fs::OpenOptions::new().write(true).open(nested.0.path().join(name)).unwrap());
        }
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert_eq!(table.contains(" inside "), up, "{option}, root {of_root:?}\n{table}");
        let (_, output) = running.end();
        assert_eq!(output, if down { "1\n" } else { "0\n" }, "{option}, root {of_root:?}");
        unmount(nested.0.path().join("from-host"), UnmountFlags::DETACH).unwrap();
        if up {
            unmount(nested.0.path().join("from-inside"), UnmountFlags::DETACH).unwrap();
        }
    }
}

/// The host mounts `late` below both sources after these were opened.
fn with_late_mounts(bed: &Bed, bundle: &Bundle, sources: [&Nested; 2], is_settled: bool) -> String {
    let (mut compiled, report, output) = bundle.compile().unwrap();
    let steps = &mut compiled.launch.plan.steps;
    let first = steps.iter().position(|step| matches!(step, Step::Settle { .. })).unwrap();
    steps.insert(first, Step::PauseForHooks);
    if !is_settled {
        steps.retain(|step| !matches!(step, Step::Settle { .. }));
    }
    let mut running = bed.launch(compiled, report, output);
    assert!(matches!(running.next(), Some(Message::Hooks)));
    for source in sources {
        let late = source.0.path().join("late");
        std::fs::create_dir_all(&late).unwrap();
        mount("late", &late, "tmpfs", MountFlags::empty(), None).unwrap();
    }
    rustix::io::write(&running.report, &[GO]).unwrap();
    let output = running.finish().unwrap();
    for source in sources {
        // As often as it was mounted: peers have lost nothing and got nothing.
        unmount(source.0.path().join("late"), UnmountFlags::DETACH).unwrap();
        unmount(source.0.path().join("below"), UnmountFlags::DETACH).unwrap();
        mount("tmpfs", source.0.path().join("below"), "tmpfs", MountFlags::empty(), None).unwrap();
    }
    output
}

fn late_mounts(bed: &Bed) {
    let [one, other] = [(); 2].map(|()| Nested::new(MountPropagationFlags::SHARED));
    let file = one.0.path().join("file");
    std::fs::write(&file, "").unwrap();
    let of_mountinfo = |point: &str| format!("grep -c ' {point} ' /proc/self/mountinfo");
    let script = ["/b", "/b/below", "/b/late", "/c/inner", "/c/inner/late"].map(of_mountinfo).join("; ");
    let hooks = json!({"createRuntime": [{"path": "/bin/true"}]});
    for (option, hooks) in [("rslave", json!({})), ("rshared", json!({})), ("ro", json!({})), ("rshared", hooks)] {
        let bundle = Bundle::new(&script)
            .with("/hooks", hooks.clone())
            .mount("/f", "bind", &file.display().to_string(), &["rbind", "rslave"])
            .mount("/b", "bind", &one.source(), &["rbind", option])
            .mount("/c", "tmpfs", "tmpfs", &[])
            .mount("/c/inner", "bind", &other.source(), &["rbind", option]);
        let run = |is_settled| with_late_mounts(bed, &bundle, [&one, &other], is_settled);
        assert_eq!(run(true), "1\n1\n1\n1\n1\n", "{option}, hooks {hooks}");
        assert_eq!(run(false), "1\n1\n0\n1\n0\n", "nothing was lost, so nothing was tested");
    }
}

fn not_watched(_: &Bed) {
    let watches = |options: &[&str]| {
        let compiled = Bundle::new("").mount("/b", "bind", "/usr", options).compile().unwrap().0;
        compiled.launch.plan.steps.iter().any(|step| matches!(step, Step::WatchHost { .. } | Step::Settle { .. }))
    };
    assert!(!watches(&["rbind", "rprivate"]) && !watches(&["bind", "private", "ro"]) && !watches(&["rbind", "runbindable"]));
    assert!(watches(&["rbind", "rshared"]) && watches(&["bind", "slave"]));
    // The default is rslave.
    assert!(watches(&["rbind"]));
}

fn root_propagation(bed: &Bed) {
    for (name, field) in [("private", ""), ("rslave", ""), ("shared", "shared:"), ("unbindable", "unbindable")] {
        let bundle = Bundle::new("grep ' / / \\|rootfs / ' /proc/self/mountinfo").with("/linux/rootfsPropagation", json!(name));
        let output = bundle.output(bed);
        assert!(output.contains(field) && (!field.is_empty() || !output.contains("shared:")), "{name}: {output}");
    }
    let error = Bundle::new("").with("/linux/rootfsPropagation", json!("sideways")).failure(bed);
    assert!(error.contains("linux.rootfsPropagation"), "{error}");
}

fn links(bed: &Bed) {
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("token"), "t\n").unwrap();
    let bundle = Bundle::new("cat /run/secrets/token /etc/resolv.conf").without_mount("/run");
    std::fs::create_dir_all(bundle.root().join("var")).unwrap();
    std::fs::create_dir_all(bundle.root().join("etc")).unwrap();
    std::os::unix::fs::symlink("/run", bundle.root().join("var/run")).unwrap();
    std::os::unix::fs::symlink("../run/systemd/resolv.conf", bundle.root().join("etc/resolv.conf")).unwrap();
    let bundle = bundle.mount("/var/run/secrets", "bind", &source.path().display().to_string(), &["rbind", "ro"]).mount(
        "/etc/resolv.conf",
        "bind",
        &source.path().join("token").display().to_string(),
        &["rbind", "ro"],
    );
    assert_eq!(bundle.output(bed), "t\nt\n");
    let made = std::fs::metadata(bundle.root().join("run/systemd/resolv.conf")).unwrap();
    assert!(made.is_file() && made.len() == 0);
}

/// A process in a mount namespace of its own, whose mounts are peers of the host's where these are shared.
struct Elsewhere(std::process::Child);

impl Elsewhere {
    fn new() -> Self {
        let mut unshare = std::process::Command::new("unshare");
        let mut child = unshare.args(["--mount", "--propagation", "unchanged", "sh", "-c", "echo; exec sleep 1000"]);
        child = child.stdout(std::process::Stdio::piped());
        let mut child = child.spawn().unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        Self(child)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/mnt", self.0.id())
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn in_namespace(bundle: Bundle, path: &str) -> Bundle {
    let namespaces = json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}, {"type": "mount", "path": path}]);
    bundle.with("/linux/namespaces", namespaces)
}

fn given_namespace(bed: &Bed) {
    let nested = Nested::new(MountPropagationFlags::SHARED);
    let snapshots = tempfile::tempdir().unwrap();
    // What a container attaches to a shared root would be the host's as well.
    mount_change("/", MountPropagationFlags::SHARED).unwrap();
    for (hooks, one_by_one) in [(json!({}), true), (json!({"createContainer": [{"path": "/bin/true"}]}), true), (json!({}), false)] {
        let elsewhere = Elsewhere::new();
        let script = "readlink /proc/self/ns/mnt; echo /*; cut -d' ' -f5 /proc/self/mountinfo | sort; cat /b/below/x; cat /fifo";
        let mut bundle = in_namespace(Bundle::new(script), &elsewhere.path()).with("/hooks", hooks).with("/linux/maskedPaths", json!([]));
        bundle = bundle.with("/linux/readonlyPaths", json!([])).mount("/b", "bind", &nested.source(), &["rbind", "rslave"]);
        std::fs::write(nested.0.path().join("below/x"), "x\n").unwrap();
        for applet in ["cut", "sort"] {
            std::os::unix::fs::symlink("busybox", bundle.root().join("bin").join(applet)).unwrap();
        }
        let lower = bundle.root().display().to_string();
        bundle.rootfs = vec![overlay(snapshots.path(), &lower)];
        bundle.kernel.layers_one_by_one &= one_by_one;
        let fifo = bundle.root().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let own = std::fs::read_link(elsewhere.path()).unwrap().display().to_string();

        let (compiled, report, output) = bundle.compile().unwrap();
        let mut running = bed.launch(compiled, report, output);
        if !bundle.spec["hooks"].as_object().unwrap().is_empty() {
            assert!(matches!(running.next(), Some(Message::Hooks)));
            rustix::io::write(&running.report, &[GO]).unwrap();
        }
        running.ready();
        running.go();
        assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
        assert_eq!(bundle.join_output(bed, &running, json!({"args": ["readlink", "/proc/self/ns/mnt"]})), format!("{own}\n"));
        drop(std::fs::OpenOptions::new().write(true).open(format!("/proc/{}/root/fifo", running.launched.pid)).unwrap());
        let (status, output) = running.end();
        let points = "/ /b /b/below /dev /dev/mqueue /dev/pts /dev/shm /proc /run /sys".replace(' ', "\n");
        assert_eq!((status, output), (0, format!("{own}\n/b /bin /dev /fifo /proc /run /sys\n{points}\nx\n")));
    }
    mount_change("/", MountPropagationFlags::PRIVATE).unwrap();
}

fn overlay(snapshots: &std::path::Path, lower: &str) -> RootMount {
    let part = |name: &str| {
        let _ = std::fs::remove_dir_all(snapshots.join(name));
        std::fs::create_dir(snapshots.join(name)).unwrap();
        format!("{name}dir={}", snapshots.join(name).display())
    };
    let options = vec![part("upper"), part("work"), format!("lowerdir={lower}")];
    RootMount { fstype: "overlay".into(), source: "overlay".into(), target: String::new(), options }
}

fn hosts_namespace(bed: &Bed) {
    for path in ["/proc/self/ns/mnt", "/proc/1/ns/mnt"] {
        let failure = in_namespace(Bundle::new(""), path).failure(bed);
        assert!(failure.starts_with("linux.namespaces: mount: "), "{failure}");
        // Of the first process it cannot be told everywhere.
        assert!(
            failure.contains("the host's own") || failure == "linux.namespaces: mount: open \"/proc/1/ns/mnt\": permission denied",
            "{failure}"
        );
    }
    let failure = in_namespace(Bundle::new(""), "/proc/self/ns/net").failure(bed);
    assert_eq!(failure, "linux.namespaces: mount: \"/proc/self/ns/net\" is another kind of namespace");
}
