//! Cgroups: entered before anything else, and seen inside as the spec asks.

use std::time::Duration;

use runtime_core::cgroup::{Cgroup, CgroupPath, Host, Mode, default_rules};
use runtime_core::spec::Resources;
use serde_json::json;

use super::bed::{Bed, Bundle, Test};

pub const TESTS: &[Test] = &[
    ("first and joining processes are in the cgroup", entered),
    ("cgroup mounts with a cgroup namespace", mounted_in_namespace),
    ("cgroup mounts without a cgroup namespace", mounted_without_namespace),
    ("device rules hold", device_rules),
];

/// A cgroup that is removed at the end.
struct Own(CgroupPath, Host);

impl Own {
    fn new(name: &str, resources: &Resources) -> (Self, Cgroup) {
        let host = Host::detect().unwrap();
        let path = CgroupPath::new(&host, Some(&format!("/coracle-launch-{}/{name}", std::process::id())), "t").unwrap();
        let cgroup = Cgroup::create(&host, &path, resources).unwrap();
        (Self(path, host), cgroup)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let cgroup = Cgroup::open(&self.1, &self.0).unwrap();
        cgroup.kill_and_wait(Duration::from_secs(5)).unwrap();
        cgroup.remove(Duration::from_secs(5)).unwrap();
        let parent = CgroupPath::new(&self.1, Some(&format!("/coracle-launch-{}", std::process::id())), "t").unwrap();
        Cgroup::open(&self.1, &parent).unwrap().remove(Duration::from_secs(5)).unwrap();
    }
}

fn with_namespace(mut bundle: Bundle) -> Bundle {
    bundle.spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
    bundle
}

fn entered(bed: &Bed) {
    let (own, cgroup) = Own::new("entered", &Resources::default());
    let mut bundle = Bundle::new("cat /proc/self/cgroup; echo end; sleep 1000");
    bundle.cgroup = Some(cgroup);
    let mut init = bundle.start(bed);
    init.ready();
    // Before the program runs it is inside already.
    let inside = bundle.cgroup.as_ref().unwrap().pids().unwrap();
    assert_eq!(inside, [init.launched.pid]);
    init.go();
    let output = bundle.join_output(bed, &init, json!({"args": ["cat", "/proc/self/cgroup"]}));
    let place = format!("/coracle-launch-{}/entered", std::process::id());
    let expected = if own.1.mode() == Mode::V2 { 1 } else { own_lines() };
    assert_eq!(output.lines().filter(|line| line.ends_with(&place)).count(), expected, "{output}");
    init.kill();
}

/// How many hierarchies a process of this host is in.
fn own_lines() -> usize {
    std::fs::read_to_string("/proc/self/cgroup").unwrap().lines().count()
}

const SCRIPT: &str = "ls /sys/fs/cgroup; cat /sys/fs/cgroup/pids/cgroup.procs /sys/fs/cgroup/cgroup.procs 2>/dev/null | head -1; \
                      cat /proc/self/cgroup; touch /sys/fs/cgroup/x 2>&1; mkdir /sys/fs/cgroup/pids/x /sys/fs/cgroup/x 2>&1; echo end";

/// The id of the program, which is the first one of its cgroup.
const INSIDE: &str = "\n1\n";

fn mounted(bed: &Bed, bundle: Bundle) -> String {
    let bundle = bundle.mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]);
    let output = bundle.output(bed);
    let refused = output.lines().filter(|line| line.contains("Read-only file system")).count();
    assert!(refused >= 2, "{output}");
    output
}

fn mounted_in_namespace(bed: &Bed) {
    let (_own, cgroup) = Own::new("mounted", &Resources::default());
    let mut bundle = with_namespace(Bundle::new(SCRIPT));
    bundle.cgroup = Some(cgroup);
    let output = mounted(bed, bundle);
    assert!(output.contains(INSIDE), "the program is not in the cgroup it sees: {output}");
    assert!(output.lines().filter(|line| line.contains(':')).all(|line| !line.contains("coracle-launch")), "{output}");
}

fn mounted_without_namespace(bed: &Bed) {
    let (own, cgroup) = Own::new("bound", &Resources::default());
    let mut bundle = Bundle::new(SCRIPT);
    bundle.cgroup = Some(cgroup);
    let output = mounted(bed, bundle);
    // Version 1 is bound from the container's own directories on; of version 2 the whole tree is seen, as with runc.
    assert_eq!(output.contains(INSIDE), own.1.mode() != Mode::V2, "{output}");
    assert!(output.contains("coracle-launch"), "{output}");
}

fn device_rules(bed: &Bed) {
    let resources = Resources { devices: default_rules(), ..Resources::default() };
    let (_own, cgroup) = Own::new("devices", &resources);
    let script = "head -c 1 /dev/zero | wc -c; mknod /dev/mem c 1 1 && head -c 1 /dev/mem 2>&1; mknod /dev/loop c 7 0; \
                  head -c 1 /dev/loop 2>&1; echo end";
    let mut bundle = Bundle::new(script);
    std::os::unix::fs::symlink("busybox", bundle.root().join("bin/wc")).unwrap();
    bundle.cgroup = Some(cgroup);
    let output = bundle.output(bed);
    assert!(output.starts_with("1\n") && output.matches("Operation not permitted").count() >= 2, "{output}");
}
