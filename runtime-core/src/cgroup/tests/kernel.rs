//! On the running kernel, whose controllers are on version 1.

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
    scratch.cgroup().update(&resources(r#"{"devices": [{"allow": true, "type": "b", "major": 7, "minor": 0, "access": "r"}]}"#)).unwrap();
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
fn nested_empty_cgroups_go_in_one_attempt() {
    let scratch = Scratch::new("nested", "{}");
    for tree in &scratch.cgroup().trees {
        tree.dir.make("a").unwrap();
        tree.dir.open("a").unwrap().make("b").unwrap();
        tree.dir.open("a/b").unwrap().make("c").unwrap();
    }
    assert!(scratch.cgroup().try_remove().unwrap());
    assert!(scratch.gone());
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
