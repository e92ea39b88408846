//! On the running kernel, with its controllers on whichever version they are.

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
fn limits_arrive_and_can_be_changed() {
    let scratch = Scratch::new(
        "limits",
        r#"{"memory": {"limit": 33554432, "swap": 67108864}, "cpu": {"shares": 512, "quota": 20000, "period": 50000, "cpus": "0"},
            "pids": {"limit": 9}, "devices": [{"allow": false}, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}]}"#,
    );
    assert_eq!(scratch.read_either("memory", "memory.limit_in_bytes", "memory.max"), "33554432");
    assert_eq!(scratch.read_either("cpu", "cpu.shares", "cpu.weight"), if scratch.is_v2("cpu") { "59" } else { "512" });
    assert_eq!(scratch.read_either("cpu", "cpu.cfs_quota_us", "cpu.max"), if scratch.is_v2("cpu") { "20000 50000" } else { "20000" });
    assert_eq!(scratch.read("cpuset", "cpuset.cpus"), "0");
    assert!(!scratch.read_either("cpuset", "cpuset.mems", "cpuset.mems.effective").is_empty());
    assert_eq!(scratch.read("pids", "pids.max"), "9");
    // Version 2 has a program in place of a list.
    let devices = || scratch.cgroup().home("devices").map(|tree| tree.dir.read("devices.list").unwrap());
    let list = devices();
    let holds = |list: &String| list.contains("c 10:229 rw") && list.contains("c 1:3 rwm") && !list.contains("a *:*");
    assert!(list.as_ref().is_none_or(holds), "{list:?}");

    // Both limits grow past each other and shrink back, whatever the order has to be.
    for (limit, swap) in [(134_217_728, 201_326_592), (16_777_216, 33_554_432), (-1, 0), (33_554_432, 33_554_432)] {
        let json = format!(r#"{{"memory": {{"limit": {limit}, "swap": {swap}}}}}"#);
        for _ in 0..2 {
            scratch.cgroup().update(&resources(&json)).unwrap();
        }
        let read = scratch.read_either("memory", "memory.limit_in_bytes", "memory.max");
        assert!(limit < 0 || read == limit.to_string(), "{read}");
    }
    scratch.cgroup().update(&resources(r#"{"cpu": {"period": 10000, "quota": 4000}}"#)).unwrap();
    assert!(scratch.read_either("cpu", "cpu.cfs_quota_us", "cpu.max").starts_with("4000"));
    // On version 2 a period has no file of its own.
    scratch.cgroup().update(&resources(r#"{"cpu": {"period": 20000}}"#)).unwrap();
    assert!(scratch.read_either("cpu", "cpu.cfs_quota_us", "cpu.max").starts_with("4000"));
    assert!(scratch.read_either("cpu", "cpu.cfs_period_us", "cpu.max").ends_with("20000"));
    assert!(
        ["512", "59"].contains(&scratch.read_either("cpu", "cpu.shares", "cpu.weight").as_str()),
        "an update without shares leaves them"
    );
    assert_eq!(devices(), list, "an update without rules leaves them");
    scratch.cgroup().update(&resources(r#"{"devices": [{"allow": true, "type": "b", "major": 7, "minor": 0, "access": "r"}]}"#)).unwrap();
    let list = devices();
    assert!(list.as_ref().is_none_or(|list| list.contains("b 7:0 r") && !list.contains("10:229")), "{list:?}");
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
    let mut child = scratch.run("x=$(head -c 200000000 /dev/zero | tr '\\0' x)");
    let reported = match watch.watch().trigger() {
        Trigger::Readable => watch::wait_exit(watch.watch().as_fd(), LONG).unwrap(),
        // The first report is of the limit that was reached.
        Trigger::Priority => (0..1000).any(|_| {
            watch::wait(Some(watch.watch().as_fd()), Duration::from_millis(10)).unwrap();
            scratch.read("memory", "memory.events").contains("oom_kill 1")
        }),
    };
    assert!(reported, "no report");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(libc::SIGKILL));
    assert_eq!((watch.take().unwrap(), watch.take().unwrap()), (1, 0));
    assert_eq!(scratch.cgroup().out_of_memory_kills().unwrap(), 1);
}

/// What both versions count: ns of processor time in all and in user or kernel mode, periods and ns without, bytes, faults, processes.
struct Counted {
    time: u64,
    by_mode: u64,
    throttled: [u64; 2],
    memory: u64,
    faults: u64,
    usage: [u64; 3],
    pids: Option<stats::PidsStat>,
}

impl Counted {
    fn of(cgroup: &Cgroup) -> Self {
        match cgroup.stats().unwrap() {
            Stats::V1(stats) => {
                let (cpu, memory) = (stats.cpu.unwrap(), stats.memory.unwrap());
                let (usage, throttling, entry) = (cpu.usage.unwrap(), cpu.throttling.unwrap(), memory.usage.unwrap());
                assert!(memory.hierarchical_memory_limit == entry.limit && stats.blkio.is_some() && stats.memory_oom_control.is_some());
                Self {
                    time: usage.total.min(usage.per_cpu.iter().sum()),
                    by_mode: usage.user + usage.kernel,
                    throttled: [throttling.throttled_periods, throttling.throttled_time],
                    memory: memory.total_rss,
                    faults: memory.total_pg_fault,
                    usage: [entry.limit, entry.usage, entry.max],
                    pids: stats.pids,
                }
            }
            Stats::V2(stats) => {
                let (cpu, memory) = (stats.cpu.unwrap(), stats.memory.unwrap());
                assert!(stats.io.is_some() && stats.memory_events.is_some());
                Self {
                    time: cpu.usage_usec * 1000,
                    by_mode: (cpu.user_usec + cpu.system_usec) * 1000,
                    throttled: [cpu.nr_throttled, cpu.throttled_usec * 1000],
                    memory: memory.anon,
                    faults: memory.pgfault,
                    // The highest use is told since Linux 5.19.
                    usage: [memory.usage_limit, memory.usage, memory.max_usage.max(memory.usage)],
                    pids: stats.pids,
                }
            }
        }
    }
}

#[test]
fn statistics_of_what_was_used() {
    let scratch =
        Scratch::new("stats", r#"{"memory": {"limit": 67108864}, "cpu": {"quota": 10000, "period": 33000}, "pids": {"limit": 50}}"#);
    let mut child = scratch.run("x=$(head -c 5000000 /dev/zero | tr '\\0' x); while :; do :; done");
    // Processor time is counted in ticks, with which the period must not keep in step, and memory.stat is summed up every two seconds.
    eventually("all counters", || {
        let got = Counted::of(scratch.cgroup());
        got.by_mode > 0
            && got.time > 10_000_000
            && got.throttled.iter().all(|count| *count > 0)
            && got.memory > 1_000_000
            && got.faults > 0
            && got.pids == Some(stats::PidsStat { current: 1, limit: 50 })
    });
    let [limit, usage, max] = Counted::of(scratch.cgroup()).usage;
    assert!(limit == 67_108_864 && usage > 1_000_000 && max >= usage, "{limit} {usage} {max}");
    child.kill().unwrap();
    child.wait().unwrap();
    scratch.cgroup().remove(LONG).unwrap();
    assert_eq!(scratch.cgroup().stats().unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_limit_below_what_is_in_use_is_refused_by_name() {
    let scratch = Scratch::new("busy", r#"{"memory": {"limit": 67108864}}"#);
    let mut child = scratch.run("x=$(head -c 20000000 /dev/zero | tr '\\0' x); read stop");
    let used = || scratch.read_either("memory", "memory.usage_in_bytes", "memory.current").parse::<u64>().unwrap();
    eventually("memory is used", || used() > 20_000_000);
    let asked = scratch.cgroup().update(&resources(r#"{"memory": {"limit": 4194304, "checkBeforeUpdate": true}}"#)).unwrap_err();
    assert_eq!(asked.kind(), ErrorKind::FailedPrecondition);
    assert!(asked.to_string().contains("resources.memory.limit: 4194304 is not above"), "{asked}");
    // Unasked the kernel tries; where there is swap to move the memory to, it succeeds.
    if std::fs::read_to_string("/proc/swaps").unwrap().lines().count() == 1 {
        let tried = scratch.cgroup().update(&resources(r#"{"memory": {"limit": 4194304}}"#));
        if scratch.is_v2("memory") {
            // Version 2 sets the limit whatever it costs (cgroup-v2.rst, "memory.max").
            tried.unwrap();
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(libc::SIGKILL));
            return;
        }
        let tried = tried.unwrap_err();
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
        assert_eq!(scratch.read_either("hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"), "4194304");
        let told = match scratch.cgroup().stats().unwrap() {
            Stats::V1(stats) => stats.hugetlb.iter().any(|stat| stat.pagesize == "2MB"),
            Stats::V2(stats) => stats.hugetlb.iter().any(|stat| stat.pagesize == "2MB" && stat.max == 4_194_304),
        };
        assert!(told);
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
