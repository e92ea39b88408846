//! Processes that join a container.

use serde_json::json;

use super::bed::{Bed, Bundle, Test};
use super::process::{default_profile, status};

pub const TESTS: &[Test] = &[
    ("a joining process is in all namespaces", namespaces),
    ("a joining process is confined by its own fields", confined),
    ("a joining process that cannot run says why", failures),
    ("a container that is gone cannot be joined", gone),
    ("a container without a pid namespace is joined as well", host_pids),
    ("a container whose program has not been started can be joined", before_start),
];

fn namespaces(bed: &Bed) {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
    let init = bundle.running(bed);
    let script = "for n in cgroup ipc mnt net pid uts; do readlink /proc/self/ns/$n; done; hostname; test $$ -gt 1 && echo pid; ls -l /proc/self/fd | grep -c ' -> '";
    let output = bundle.join_output(bed, &init, json!({"args": ["sh", "-c", script]}));
    let lines: Vec<&str> = output.lines().collect();
    for (line, name) in lines.iter().zip(["cgroup", "ipc", "mnt", "net", "pid", "uts"]) {
        let of = |pid: String| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap().display().to_string();
        assert_eq!(*line, of(init.launched.pid.to_string()), "{name}");
        assert_ne!(*line, of("self".to_owned()), "{name}");
    }
    assert_eq!(&lines[6..8], ["inside", "pid"], "{output}");
    init.kill();
}

fn confined(bed: &Bed) {
    let bundle = Bundle::new("sleep 1000").with("/linux/seccomp", default_profile()).with("/process/noNewPrivileges", json!(false));
    let init = bundle.running(bed);
    let capabilities = json!({"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"]});
    let changes = json!({"args": ["cat", "/proc/self/status"], "user": {"uid": 1000, "gid": 5, "additionalGids": [9]},
        "capabilities": capabilities, "cwd": "/bin", "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 9}]});
    let output = bundle.join_output(bed, &init, changes.clone());
    let found = status(&output);
    assert_eq!((&*found["Uid"], &*found["Gid"], &*found["Groups"]), ("1000 1000 1000 1000", "5 5 5 5", "9"));
    assert_eq!((&*found["CapBnd"], &*found["CapEff"], &*found["CapPrm"]), ("0000000000000020", "0000000000000000", "0000000000000000"));
    assert_eq!((&*found["Seccomp"], &*found["NoNewPrivs"]), ("2", "0"));
    let mut changes = changes;
    changes["args"] = json!(["sh", "-c", "pwd; ulimit -n"]);
    changes["noNewPrivileges"] = json!(true);
    assert_eq!(bundle.join_output(bed, &init, changes), "/bin\n9\n");
    init.kill();
}

fn failures(bed: &Bed) {
    let bundle = Bundle::new("sleep 1000");
    let init = bundle.running(bed);
    let failure = |changes| bundle.join(bed, &init, changes, false).unwrap().failure();
    assert_eq!(failure(json!({"args": ["nosuch"]})), r#"exec: "nosuch": executable file not found in $PATH"#);
    assert_eq!(failure(json!({"cwd": "/nosuch"})), r#"process.cwd: enter working directory "/nosuch": no such file or directory"#);
    init.kill();
}

fn gone(bed: &Bed) {
    let bundle = Bundle::new("true");
    let mut init = bundle.start(bed);
    init.ready();
    init.go();
    super::bed::wait_readable(std::os::fd::AsFd::as_fd(&init.launched.pidfd));
    assert_eq!(bundle.join(bed, &init, json!({}), false).unwrap().failure(), "cannot exec in a stopped container");
    init.end();
}

fn host_pids(bed: &Bed) {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.spec["linux"]["namespaces"].as_array_mut().unwrap().remove(0);
    let init = bundle.running(bed);
    let output = bundle.join_output(bed, &init, json!({"args": ["sh", "-c", "echo $$; hostname"]}));
    let (pid, rest) = output.split_once('\n').unwrap();
    assert!(pid.parse::<i32>().unwrap() > 1 && rest == "inside\n", "{output}");
    init.kill();
}

fn before_start(bed: &Bed) {
    let bundle = Bundle::new("true");
    let mut init = bundle.start(bed);
    init.ready();
    assert_eq!(bundle.join_output(bed, &init, json!({"args": ["hostname"]})), "inside\n");
    init.kill();
}
