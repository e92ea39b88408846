//! On the running kernel, in a mount namespace in which `/sys/fs/cgroup` is a cgroup2 filesystem.

use super::*;

const INSIDE: &str = "CORACLE_TEST_CGROUP2";

#[test]
fn all_of_it_in_a_mount_namespace_with_cgroup2() {
    let program = std::env::current_exe().unwrap();
    let script = "[ -e /sys/fs/cgroup/cgroup.controllers ] || mount -t cgroup2 none /sys/fs/cgroup || exit; \
                  exec \"$0\" --exact --nocapture --test-threads 1 \"$@\"";
    let tests = ["lifecycle", "forking", "devices", "watch", "statistics", "clone_into", "joining", "occupied", "adverse"];
    let names = tests.map(|name| format!("cgroup::tests::version2::inside_{name}"));
    let mut unshare = Command::new("unshare");
    unshare.args(["-m", "sh", "-c", script]).arg(program).args(&names).env(INSIDE, "1");
    let output = unshare.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(&format!("{} passed", names.len())), "{text}");
}

/// Outside of that namespace there is nothing to do: the test above has done it.
fn inside() -> bool {
    let inside = std::env::var_os(INSIDE).is_some();
    assert!(!inside || Host::detect().unwrap().mode() == Mode::V2);
    inside
}

#[test]
fn inside_lifecycle() {
    if inside() {
        lifecycle("v2-lifecycle");
    }
}

#[test]
fn inside_forking() {
    if inside() {
        forking("v2-forking");
    }
}

#[test]
fn inside_devices() {
    if inside() {
        devices("v2-devices");
        // More than one program, as an older tool may leave them: all are replaced.
        let scratch = Scratch::new("v2-programs", "{}");
        let dir = scratch.cgroup().dir_fd().unwrap();
        let policy = Policy::of_container(&[]).unwrap();
        let extra = crate::sys::bpf::DeviceProgram::load(&device_filter::compile(&policy)).unwrap();
        extra.attach(dir, None).unwrap();
        assert_eq!(crate::sys::bpf::DeviceProgram::attached(dir).unwrap().len(), 2);
        scratch.cgroup().apply_devices(&policy).unwrap();
        assert_eq!(crate::sys::bpf::DeviceProgram::attached(dir).unwrap().len(), 1);
        scratch.cgroup().apply_devices(&policy).unwrap();
        assert_eq!(crate::sys::bpf::DeviceProgram::attached(dir).unwrap().len(), 1);
    }
}

#[test]
fn inside_watch() {
    if inside() {
        let scratch = Scratch::new("v2-watch", "{}");
        let events = scratch.cgroup().events().unwrap().unwrap();
        assert_eq!(events.trigger(), Trigger::Priority);
        events.acknowledge().unwrap();
        let mut child = scratch.run("read stop");
        child.kill().unwrap();
        child.wait().unwrap();
        let reported = |timeout| {
            let mut fds = [rustix::event::PollFd::new(&events, rustix::event::PollFlags::PRI)];
            let timeout = rustix::event::Timespec { tv_sec: timeout, tv_nsec: 0 };
            rustix::event::poll(&mut fds, Some(&timeout)).unwrap() == 1
        };
        eventually("reported and empty", || {
            let was = reported(10);
            events.acknowledge().unwrap();
            was && !scratch.cgroup().populated().unwrap()
        });
        assert!(!reported(0), "reported again after it was acknowledged");
    }
}

#[test]
fn inside_statistics() {
    if inside() {
        let scratch = Scratch::new("v2-stats", "{}");
        let mut child = scratch.run("while :; do :; done");
        let stats = || match scratch.cgroup().stats().unwrap() {
            Stats::V2(stats) => *stats,
            Stats::V1(_) => panic!("not version 2"),
        };
        // The cpu controller is not on this tree everywhere; cpu.stat and the hugetlb files are. The modes are told apart at ticks.
        eventually("processor time", || stats().cpu.is_some_and(|cpu| cpu.usage_usec > 1000 && cpu.user_usec > 0));
        let got = stats();
        assert_eq!(got.memory.is_some(), scratch.cgroup().home("memory").is_some());
        assert_eq!(got.hugetlb.is_empty(), scratch.cgroup().home("hugetlb").is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        scratch.cgroup().remove(LONG).unwrap();
        assert_eq!(scratch.cgroup().stats().unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[test]
fn inside_clone_into() {
    if inside() {
        let scratch = Scratch::new("v2-clone", "{}");
        assert!(scratch.cgroup().procs_fds().unwrap().is_empty());
        let kept = rustix::fs::fstatfs(scratch.cgroup().dir_fd().unwrap()).unwrap();
        assert_eq!(kept.f_type as u64, dir::CGROUP2_MAGIC);
    }
}

#[test]
fn inside_joining() {
    if inside() {
        let scratch = Scratch::new("v2-joining", "{}");
        let (cgroup, tree) = (scratch.cgroup(), scratch.cgroup().unified().unwrap());
        let mut init = scratch.run("read stop");
        let id = init.id().try_into().unwrap();
        let place = || rustix::fs::fstat(cgroup.entrance(id).unwrap().directory.unwrap()).unwrap().st_ino;
        let of = |name: &str| rustix::fs::fstat(tree.dir.open(name).unwrap()).unwrap().st_ino;
        assert_eq!(place(), of(""));
        // As an init that manages cgroups does: out of the way first.
        tree.dir.make("init").unwrap();
        tree.dir.write("init/cgroup.procs", &init.id().to_string()).unwrap();
        assert_eq!(place(), of(""));
        let controllers = v2::controllers(&tree.dir).unwrap();
        tree.dir.write("cgroup.subtree_control", &format!("+{}", controllers[0])).unwrap();
        assert_eq!(tree.dir.write("cgroup.procs", &std::process::id().to_string()), Err(Errno::BUSY));
        assert_eq!(place(), of("init"));
        init.kill().unwrap();
        init.wait().unwrap();
    }
}

#[test]
fn inside_adverse() {
    if inside() {
        adverse::deep_and_odd("v2-deep");
        adverse::elsewhere("v2-elsewhere");
        adverse::refused("v2-refused");
    }
}

#[test]
fn inside_occupied() {
    if inside() {
        let parent = Scratch::new("v2-occupied", "{}");
        let mut child = parent.run("read stop");
        let path = CgroupPath::new(&parent.host, Some(&format!("/coracle-test-{}-v2-occupied/web", std::process::id())), "web").unwrap();
        let cgroup = Cgroup::create(&parent.host, &path, &Resources::default()).unwrap();
        let tree = cgroup.unified().unwrap();
        assert_eq!((tree.dir.read("cgroup.type").unwrap().trim(), tree.dir.read("cgroup.controllers").unwrap().trim()), ("domain", ""));
        cgroup.remove(LONG).unwrap();
        let error = Cgroup::create(&parent.host, &path, &resources(r#"{"memory": {"limit": 33554432}}"#)).unwrap_err();
        assert_eq!(error.to_string(), "resources.memory.limit: the cgroup controller \"memory\" is not available here");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
