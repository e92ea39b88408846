//! How the kernel treats the program, and what its clocks show.

use serde_json::{Value, json};

use super::bed::{Bed, Bundle, Test};

pub const TESTS: &[Test] = &[
    ("the scheduler is the spec's", scheduler),
    ("the I/O priority is the spec's", io_priority),
    ("the personality is the spec's, for a joining process too", personality),
    ("the memory policy is the spec's, for a joining process too", memory_policy),
    ("a time namespace has the spec's offsets, and is joined", time),
    ("a time namespace that is given is entered", given_time),
    ("a joining process keeps to its processors", affinity),
];

fn sh(script: &str) -> Value {
    json!({"args": ["sh", "-c", script]})
}

/// Nice value, priority of real time and policy (proc_pid_stat(5)).
const STAT: &str = "read line < /proc/self/stat; set -- ${line##*)}; echo ${17} ${38} ${39}";

fn scheduler(bed: &Bed) {
    for (scheduler, seen) in [
        (json!({"policy": "SCHED_BATCH", "nice": 7}), "7 0 3"),
        (json!({"policy": "SCHED_IDLE"}), "0 0 5"),
        (json!({"policy": "SCHED_OTHER", "nice": -3, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}), "-3 0 0"),
        (json!({"policy": "SCHED_RR", "priority": 9}), "0 9 2"),
        (json!({"policy": "SCHED_FIFO", "priority": 1}), "0 1 1"),
    ] {
        let output = Bundle::new(STAT).with("/process/scheduler", scheduler.clone()).output(bed);
        assert_eq!(output.trim(), seen, "{scheduler}");
    }
    let init = Bundle::new("sleep 1000");
    let running = init.running(bed);
    let mut process = sh(STAT);
    process["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 4});
    assert_eq!(init.join_output(bed, &running, process).trim(), "4 0 3");
    running.kill();
}

fn io_priority(bed: &Bed) {
    let bundle = Bundle::new("ionice -p $$").with("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 6}));
    std::os::unix::fs::symlink("busybox", bundle.root().join("bin/ionice")).unwrap();
    assert_eq!(bundle.output(bed), "best-effort: prio 6\n");
    let idle = bundle.with("/process/ioPriority", json!({"class": "IOPRIO_CLASS_IDLE"}));
    assert_eq!(idle.output(bed), "idle\n");
}

fn personality(bed: &Bed) {
    let bundle = Bundle::new("uname -m; sleep 1000").with("/linux/personality", json!({"domain": "LINUX32"}));
    std::os::unix::fs::symlink("busybox", bundle.root().join("bin/uname")).unwrap();
    let running = bundle.running(bed);
    assert_eq!(bundle.join_output(bed, &running, sh("uname -m")), if cfg!(target_arch = "x86_64") { "i686\n" } else { "armv8l\n" });
    running.kill();
    let plain = bundle.with("/linux/personality", json!({"domain": "LINUX"})).with("/process/args", json!(["sh", "-c", "uname -m"]));
    assert_eq!(plain.output(bed).trim(), std::env::consts::ARCH);
}

fn memory_policy(bed: &Bed) {
    let show = "head -n 1 /proc/self/numa_maps | cut -d' ' -f2";
    let bundle =
        Bundle::new("sleep 1000").with("/linux/memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}));
    for name in ["head", "cut"] {
        let _ = std::os::unix::fs::symlink("busybox", bundle.root().join("bin").join(name));
    }
    let running = bundle.running(bed);
    assert_eq!(bundle.join_output(bed, &running, sh(show)), "bind=static:0\n");
    running.kill();
    let interleave = bundle
        .with("/linux/memoryPolicy", json!({"mode": "MPOL_INTERLEAVE", "nodes": "0"}))
        .with("/process/args", sh(show)["args"].clone());
    assert_eq!(interleave.output(bed), "interleave:0\n");
    let bad = interleave.with("/linux/memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "900"}));
    assert!(bad.failure(bed).contains("linux.memoryPolicy: set the policy"), "{}", bad.failure(bed));
}

fn with_time(bundle: Bundle, namespace: Value) -> Bundle {
    let mut bundle = bundle;
    bundle.spec["linux"]["namespaces"].as_array_mut().unwrap().push(namespace);
    bundle
}

fn time(bed: &Bed) {
    let day = 86_400;
    let offsets = json!({"boottime": {"secs": 1000 * day}, "monotonic": {"secs": 7, "nanosecs": 5}});
    let bundle = with_time(Bundle::new("sleep 1000"), json!({"type": "time"})).with("/linux/timeOffsets", offsets);
    let running = bundle.running(bed);
    let script = "cut -d. -f1 /proc/uptime; readlink /proc/self/ns/time; cat /proc/self/timens_offsets";
    let _ = std::os::unix::fs::symlink("busybox", bundle.root().join("bin/cut"));
    let output = bundle.join_output(bed, &running, sh(script));
    let lines: Vec<&str> = output.lines().collect();
    assert!(lines[0].parse::<i64>().unwrap() > 1000 * day, "{output}");
    let link = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/time")).unwrap().display().to_string();
    assert_eq!(lines[1], link(&running.launched.pid.to_string()));
    assert_ne!(lines[1], link("self"));
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!([words(lines[2]), words(lines[3])], ["monotonic 7 5".to_owned(), format!("boottime {} 0", 1000 * day)]);
    running.kill();
    // Without offsets it is a namespace all the same.
    let plain = with_time(Bundle::new("readlink /proc/self/ns/time"), json!({"type": "time"}));
    assert_ne!(plain.output(bed).trim(), link("self"));
    let early =
        with_time(Bundle::new("true"), json!({"type": "time"})).with("/linux/timeOffsets", json!({"boottime": {"secs": -1_000_000_000}}));
    assert!(early.failure(bed).contains("set clocks"), "{}", early.failure(bed));
}

fn given_time(bed: &Bed) {
    let first = with_time(Bundle::new("sleep 1000"), json!({"type": "time"}));
    let running = first.running(bed);
    let path = format!("/proc/{}/ns/time", running.launched.pid);
    let own = std::fs::read_link(&path).unwrap();
    let second = with_time(Bundle::new("readlink /proc/self/ns/time"), json!({"type": "time", "path": path}));
    assert_eq!(second.output(bed).trim(), own.display().to_string());
    running.kill();
}

fn affinity(bed: &Bed) {
    let bundle = Bundle::new("sleep 1000");
    let running = bundle.running(bed);
    let with = |affinity: Value| {
        let mut process = sh("grep Cpus_allowed_list /proc/self/status");
        process["execCPUAffinity"] = affinity;
        bundle.join_output(bed, &running, process).split_whitespace().last().unwrap().to_owned()
    };
    let _ = std::os::unix::fs::symlink("busybox", bundle.root().join("bin/grep"));
    assert_eq!(with(json!({"initial": "0", "final": "1"})), "1");
    assert_eq!(with(json!({"final": "0"})), "0");
    running.kill();
}
