//! On plain directories: what is written where. On the kernel: that it has effect. The v2 half of the latter runs in a mount namespace of its own,
//! in which `/sys/fs/cgroup` is a cgroup2 filesystem.

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use super::*;

const LONG: Duration = Duration::from_secs(10);

fn resources(json: &str) -> Resources {
    serde_json::from_str(json).unwrap()
}

mod plain {
    use super::*;

    /// A v2 tree on a plain directory, with a leaf `pod/web` whose files exist and are empty.
    fn v2_tree(files: &[&str]) -> (tempfile::TempDir, Host) {
        let tree = tempfile::tempdir().unwrap();
        let leaf = tree.path().join("pod/web");
        std::fs::create_dir_all(&leaf).unwrap();
        let controllers = "cpuset cpu io memory hugetlb pids\n";
        for (dir, name, text) in [(".", "cgroup.controllers", controllers), (".", "cgroup.subtree_control", "cpu memory\n")] {
            std::fs::write(tree.path().join(dir).join(name), text).unwrap();
        }
        std::fs::write(tree.path().join("pod/cgroup.controllers"), controllers).unwrap();
        std::fs::write(tree.path().join("pod/cgroup.subtree_control"), controllers).unwrap();
        std::fs::write(leaf.join("cgroup.controllers"), "cpu io memory pids\n").unwrap();
        for file in files {
            std::fs::write(leaf.join(file), "").unwrap();
        }
        let host = Host::plain_v2(tree.path());
        (tree, host)
    }

    fn make(host: &Host) -> Cgroup {
        let path = CgroupPath::new(host, Some("/pod/web"), "web").unwrap();
        let mut made = Made::default();
        let cgroup = Cgroup::make(host, &path, &Resources::default(), &mut made).unwrap();
        made.keep();
        cgroup
    }

    fn text(root: &Path, file: &str) -> String {
        std::fs::read_to_string(root.join(file)).unwrap()
    }

    #[test]
    fn controllers_are_handed_down_in_one_write_and_only_where_missing() {
        let (tree, host) = v2_tree(&[]);
        make(&host);
        assert_eq!(text(tree.path(), "cgroup.subtree_control"), "+cpuset +io +hugetlb +pids");
        assert_eq!(text(tree.path(), "pod/cgroup.subtree_control"), "cpuset cpu io memory hugetlb pids\n");
    }

    #[test]
    fn v2_limits_arrive_in_their_files() {
        let files = ["memory.max", "memory.low", "memory.high", "memory.swap.max", "cpu.weight", "cpu.max", "pids.max", "io.weight"];
        let (tree, host) = v2_tree(&files);
        let json = r#"{"memory": {"limit": 1000, "swap": 1500, "reservation": 500}, "cpu": {"shares": 512, "quota": 20000, "period": 50000},
                       "pids": {"limit": 9}, "blockIO": {"weight": 500}, "unified": {"memory.high": "900"}}"#;
        make(&host).apply(&resources(json)).unwrap();
        let got = files.map(|file| text(&tree.path().join("pod/web"), file));
        assert_eq!(got, ["1000", "500", "900", "500", "59", "20000 50000", "9", "4950"]);
    }

    #[test]
    fn a_limit_without_its_controller_is_an_error_only_if_it_limits() {
        let (_tree, host) = v2_tree(&[]);
        let cgroup = make(&host);
        let refused = |json| cgroup.apply(&resources(json)).unwrap_err().to_string();
        let error = refused(r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}"#);
        assert_eq!(error, "resources.hugepageLimits: the cgroup controller \"hugetlb\" is not available here");
        assert!(refused(r#"{"cpu": {"cpus": "0"}}"#).contains("resources.cpu.cpus: the cgroup controller \"cpuset\""));
        assert!(refused(r#"{"unified": {"rdma.max": "x"}}"#).contains("\"rdma.max\": the cgroup controller \"rdma\""));
        assert!(refused(r#"{"memory": {"limit": 5}}"#).contains("resources.memory.limit: write \"5\" to "));
        cgroup
            .apply(&resources(r#"{"cpu": {"shares": 1024, "quota": -1}, "memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1}}"#))
            .unwrap();
    }

    #[test]
    fn v1_writes_go_to_the_hierarchy_of_their_controller() {
        let tree = tempfile::tempdir().unwrap();
        let files =
            [("memory", "memory.limit_in_bytes"), ("memory", "memory.memsw.limit_in_bytes"), ("cpu", "cpu.shares"), ("pids", "pids.max")];
        for (controller, file) in files {
            let leaf = tree.path().join(controller).join("pod/web");
            std::fs::create_dir_all(&leaf).unwrap();
            std::fs::write(leaf.join(file), "").unwrap();
        }
        let cgroup = make(&Host::plain_v1(tree.path(), &["memory", "cpu", "pids"]));
        let json = r#"{"memory": {"limit": 1000, "swap": 1500}, "cpu": {"shares": 512}, "pids": {"limit": 9}}"#;
        cgroup.apply(&resources(json)).unwrap();
        assert_eq!(files.map(|(controller, file)| text(&tree.path().join(controller).join("pod/web"), file)), ["1000", "1500", "512", "9"]);
        let error = cgroup.apply(&resources(r#"{"unified": {"memory.high": "1"}}"#)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn a_failed_create_takes_back_what_it_made_and_nothing_else() {
        let tree = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tree.path().join("pod")).unwrap();
        let host = Host::plain_v2(tree.path());
        let path = CgroupPath::new(&host, Some("/pod/a/b/web"), "web").unwrap();
        // A plain directory has no controllers: the limit cannot be set.
        let error = Cgroup::create(&host, &path, &resources(r#"{"memory": {"limit": 5}}"#)).unwrap_err();
        assert!(error.to_string().contains("\"memory\" is not available"), "{error}");
        assert!(tree.path().join("pod").exists() && !tree.path().join("pod/a").exists());
    }

    #[test]
    fn an_occupied_frozen_or_threaded_cgroup_is_refused() {
        for (file, content, why) in [
            ("cgroup.procs", "1\n2\n", "is not empty: 2 process(es) found"),
            ("cgroup.freeze", "1\n", "is frozen"),
            ("cgroup.type", "domain invalid\n", "is of type \"domain invalid\""),
        ] {
            let (tree, host) = v2_tree(&[]);
            std::fs::write(tree.path().join("pod/web").join(file), content).unwrap();
            let path = CgroupPath::new(&host, Some("/pod/web"), "web").unwrap();
            let error = Cgroup::create(&host, &path, &Resources::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
            assert!(error.to_string().contains(why), "{error}");
            assert!(tree.path().join("pod/web").exists());
        }
    }

    #[test]
    fn kills_for_want_of_memory_are_counted_once() {
        let (tree, host) = v2_tree(&[]);
        let cgroup = make(&host);
        assert!(cgroup.oom_watch().unwrap().is_none(), "there is no memory.events");
        let events = tree.path().join("pod/web/memory.events");
        std::fs::write(&events, "low 0\noom 3\noom_kill 3\n").unwrap();
        let mut watch = cgroup.oom_watch().unwrap().unwrap();
        assert_eq!((watch.take().unwrap(), watch.watch().trigger()), (0, Trigger::Priority));
        std::fs::write(&events, "low 0\noom 9\noom_kill 5\n").unwrap();
        assert_eq!((watch.take().unwrap(), watch.take().unwrap()), (2, 0));
    }

    #[test]
    fn a_path_survives_the_record() {
        let host = Host::with_own(&[("", "outer")]);
        let path = CgroupPath::new(&host, None, "web").unwrap();
        let text = serde_json::to_string(&path).unwrap();
        assert_eq!(serde_json::from_str::<CgroupPath>(&text).unwrap(), path);
    }
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

mod kernel {
    use super::*;

    #[test]
    fn processes_are_listed_frozen_killed_and_the_cgroup_removed_with_what_is_nested() {
        lifecycle("lifecycle");
    }

    #[test]
    fn processes_that_keep_forking_are_killed() {
        forking("forking");
    }

    #[test]
    fn limits_and_device_rules_of_version_1() {
        let scratch = Scratch::new(
            "limits",
            r#"{"memory": {"limit": 33554432, "swap": 67108864}, "cpu": {"shares": 512, "quota": 20000, "period": 50000, "cpus": "0"},
                "pids": {"limit": 9}, "devices": [{"allow": false}, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}]}"#,
        );
        assert_eq!(scratch.read("memory", "memory.limit_in_bytes"), "33554432");
        assert_eq!(scratch.read("cpu", "cpu.shares"), "512");
        assert_eq!(scratch.read("cpu", "cpu.cfs_quota_us"), "20000");
        assert_eq!(scratch.read("cpuset", "cpuset.cpus"), "0");
        assert!(!scratch.read("cpuset", "cpuset.mems").is_empty());
        assert_eq!(scratch.read("pids", "pids.max"), "9");
        let list = scratch.read("devices", "devices.list");
        assert!(list.contains("c 10:229 rw") && list.contains("c 1:3 rwm") && !list.contains("a *:*"), "{list}");

        // Both limits grow past each other and shrink back, whatever the order has to be.
        for (limit, swap) in [(134_217_728, 201_326_592), (16_777_216, 33_554_432), (-1, 0), (33_554_432, 33_554_432)] {
            let json = format!(r#"{{"memory": {{"limit": {limit}, "swap": {swap}}}}}"#);
            for _ in 0..2 {
                scratch.cgroup().update(&resources(&json)).unwrap();
            }
            let read = scratch.read("memory", "memory.limit_in_bytes");
            assert!(limit < 0 || read == limit.to_string(), "{read}");
        }
        scratch.cgroup().update(&resources(r#"{"cpu": {"period": 10000, "quota": 4000}}"#)).unwrap();
        assert_eq!((scratch.read("cpu", "cpu.cfs_quota_us"), scratch.read("cpu", "cpu.shares")), ("4000".into(), "512".into()));
        assert_eq!(scratch.read("devices", "devices.list"), list, "an update without rules leaves them");
        scratch
            .cgroup()
            .update(&resources(r#"{"devices": [{"allow": true, "type": "b", "major": 7, "minor": 0, "access": "r"}]}"#))
            .unwrap();
        let list = scratch.read("devices", "devices.list");
        assert!(list.contains("b 7:0 r") && !list.contains("10:229"), "{list}");
    }

    #[test]
    fn a_denied_device_cannot_be_opened() {
        devices("devices");
    }

    #[test]
    fn an_allocator_is_killed_and_reported() {
        let scratch = Scratch::new("oom", r#"{"memory": {"limit": 16777216, "swap": 16777216}}"#);
        let mut watch = scratch.cgroup().oom_watch().unwrap().unwrap();
        assert_eq!(watch.take().unwrap(), 0);
        assert_eq!(watch.watch().trigger(), Trigger::Readable);
        let mut child = scratch.run("x=$(head -c 200000000 /dev/zero | tr '\\0' x)");
        assert!(watch::wait_exit(watch.watch().as_fd(), LONG).unwrap(), "no report");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(libc::SIGKILL));
        assert_eq!(watch.take().unwrap(), 1);
        let Stats::V1(stats) = scratch.cgroup().stats().unwrap() else { panic!("not version 1") };
        assert_eq!(stats.memory_oom_control.unwrap().oom_kill, 1);
    }

    #[test]
    fn statistics_of_version_1() {
        let scratch =
            Scratch::new("stats", r#"{"memory": {"limit": 67108864}, "cpu": {"quota": 10000, "period": 20000}, "pids": {"limit": 50}}"#);
        let mut child =
            scratch.run("x=$(head -c 5000000 /dev/zero | tr '\\0' x); i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; read stop");
        let stats = || match scratch.cgroup().stats().unwrap() {
            Stats::V1(stats) => *stats,
            Stats::V2(_) => panic!("not version 1"),
        };
        // Processor time is counted in ticks and memory.stat summed up every two seconds, so wait until the script is done and all of it shows.
        eventually("all counters", || {
            let stats = stats();
            let (cpu, memory) = (stats.cpu.unwrap(), stats.memory.unwrap());
            let (usage, throttling) = (cpu.usage.unwrap(), cpu.throttling.unwrap());
            usage.user + usage.kernel > 0
                && usage.total > 10_000_000
                && usage.per_cpu.iter().sum::<u64>() > 10_000_000
                && throttling.throttled_periods > 0
                && throttling.throttled_time > 0
                && memory.total_rss > 1_000_000
                && memory.total_pg_fault > 0
                && stats.pids == Some(stats::PidsStat { current: 1, limit: 50 })
        });
        let got = stats();
        let memory = got.memory.unwrap();
        assert_eq!(memory.hierarchical_memory_limit, 67_108_864);
        let entry = memory.usage.unwrap();
        assert!(entry.limit == 67_108_864 && entry.usage > 1_000_000 && entry.max >= entry.usage, "{entry:?}");
        assert!(got.blkio.is_some() && got.memory_oom_control.is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        scratch.cgroup().remove(LONG).unwrap();
        assert_eq!(scratch.cgroup().stats().unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_limit_below_what_is_in_use_is_refused_by_name() {
        let scratch = Scratch::new("busy", r#"{"memory": {"limit": 67108864}}"#);
        let mut child = scratch.run("x=$(head -c 20000000 /dev/zero | tr '\\0' x); read stop");
        let used = || scratch.read("memory", "memory.usage_in_bytes").parse::<u64>().unwrap();
        eventually("memory is used", || used() > 20_000_000);
        let asked = scratch.cgroup().update(&resources(r#"{"memory": {"limit": 4194304, "checkBeforeUpdate": true}}"#)).unwrap_err();
        assert_eq!(asked.kind(), ErrorKind::FailedPrecondition);
        assert!(asked.to_string().contains("resources.memory.limit: 4194304 is not above"), "{asked}");
        // Unasked the kernel tries; it succeeds only where there is swap to move the memory to.
        if std::fs::read_to_string("/proc/swaps").unwrap().lines().count() == 1 {
            let tried = scratch.cgroup().update(&resources(r#"{"memory": {"limit": 4194304}}"#)).unwrap_err();
            assert_eq!(tried.kind(), ErrorKind::FailedPrecondition);
            assert!(tried.to_string().contains("resources.memory.limit: 4194304 is below what is in use"), "{tried}");
            assert_eq!(scratch.read("memory", "memory.limit_in_bytes"), "67108864");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn huge_pages_are_limited_wherever_the_controller_is() {
        let json = r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#;
        let available = std::fs::read_to_string("/proc/cgroups").unwrap().contains("hugetlb");
        if available && Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists() {
            let scratch = Scratch::new("huge", json);
            let tree = scratch.cgroup().home("hugetlb").unwrap();
            let file = if tree.version == Version::V1 { "hugetlb.2MB.limit_in_bytes" } else { "hugetlb.2MB.max" };
            assert_eq!(scratch.read("hugetlb", file), "4194304");
            let Stats::V1(stats) = scratch.cgroup().stats().unwrap() else { panic!("not version 1") };
            assert!(stats.hugetlb.iter().any(|stat| stat.pagesize == "2MB"));
        } else {
            let host = Host::detect().unwrap();
            let path = CgroupPath::new(&host, Some("/coracle-test-huge"), "huge").unwrap();
            let error = Cgroup::create(&host, &path, &resources(json)).unwrap_err();
            assert!(error.to_string().starts_with("resources.hugepageLimits"), "{error}");
        }
    }

    #[test]
    fn an_occupied_cgroup_is_refused_and_an_empty_one_used() {
        let scratch = Scratch::new("reuse", "{}");
        drop(Cgroup::create(&scratch.host, &scratch.path, &Resources::default()).unwrap());
        let mut child = scratch.run("read stop");
        let error = Cgroup::create(&scratch.host, &scratch.path, &Resources::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(error.to_string().contains("is not empty: 1 process(es) found"), "{error}");
        assert_eq!(scratch.cgroup().pids().unwrap(), [child.id() as i32], "the one that was there is untouched");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_failed_create_leaves_nothing() {
        let host = Host::detect().unwrap();
        let parent = format!("/coracle-test-{}-undo", std::process::id());
        let path = CgroupPath::new(&host, Some(&format!("{parent}/deep/web")), "web").unwrap();
        let error = Cgroup::create(&host, &path, &resources(r#"{"cpu": {"cpus": "900"}}"#)).unwrap_err();
        assert!(error.to_string().starts_with("resources.cpu.cpus: write \"900\" to "), "{error}");
        let above = CgroupPath::new(&host, Some(&parent), "web").unwrap();
        assert!(Cgroup::open(&host, &above).unwrap().trees.is_empty());
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
        if tree.has("cpuset") && tree.version == Version::V1 {
            v1::inherit(&tree.dir, &tree.dir.open("nested").unwrap()).unwrap();
        }
        tree.dir.write("nested/cgroup.procs", &child.id().to_string()).unwrap();
    }
    assert_eq!(cgroup.pids().unwrap().len(), 3);

    for _ in 0..20 {
        cgroup.freeze(LONG).unwrap();
        assert!(cgroup.is_frozen().unwrap());
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
    assert!(!cgroup.populated().unwrap() && !cgroup.is_frozen().unwrap());
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
    eventually("forking", || scratch.cgroup().pids().unwrap().last().is_some_and(|pid| pid.unsigned_abs() > child.id() + 100));
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

/// The same on version 2: this test runs the ones below again, in a mount namespace where that is what the host has.
mod version2 {
    use super::*;

    const INSIDE: &str = "CORACLE_TEST_CGROUP2";

    #[test]
    fn all_of_it_in_a_mount_namespace_with_cgroup2() {
        let program = std::env::current_exe().unwrap();
        let script = "mount -t cgroup2 none /sys/fs/cgroup && exec \"$0\" --exact --nocapture --test-threads 1 \"$@\"";
        let tests = ["lifecycle", "forking", "devices", "watch", "statistics", "clone_into"];
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
            let mut child = scratch.run("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; read stop");
            let stats = || match scratch.cgroup().stats().unwrap() {
                Stats::V2(stats) => *stats,
                Stats::V1(_) => panic!("not version 2"),
            };
            eventually("processor time", || stats().cpu.unwrap().usage_usec > 1000);
            let got = stats();
            // The cpu controller is not on this tree everywhere; cpu.stat and the hugetlb files are.
            assert!(got.cpu.unwrap().user_usec > 0);
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
}
