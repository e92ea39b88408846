//! Every step of a start fails once.

use runtime_core::cgroup::{Cgroup, CgroupPath, Host};
use runtime_core::compile::RootMount;
use runtime_core::failpoints::{FailStep, STRINGS};
use runtime_core::plan::Step;
use runtime_core::spec::Resources;
use runtime_core::sys::process;
use rustix::io::Errno;
use serde_json::json;
use std::process::Command;
use std::time::Duration;

use super::bed::{Bed, Bundle, Running, Test, null};
use super::fuse;
use super::process::default_profile;

pub const TESTS: &[Test] = &[
    ("each step of a start fails once and leaves nothing", container),
    ("each step of a join fails once", joining),
    ("each step of a mount helper's fails once", helper),
    ("faults are asked for in the environment", environment),
];

/// The argument that makes this program say what the kernel can do.
pub const FEATURES: &str = "print-features";

fn environment(bed: &Bed) {
    let output = |name: &str, value: &str, argument: &str| {
        Command::new(std::env::current_exe().unwrap()).env(name, value).arg(argument).output().unwrap()
    };
    let old = output(STRINGS[1], "1", FEATURES);
    assert!(String::from_utf8_lossy(&old.stdout).contains("layers_one_by_one: false, layers_by_descriptor: false"), "{old:?}");
    let failed = output(STRINGS[0], "1:13", "names and sysctls");
    assert!(String::from_utf8_lossy(&failed.stderr).contains(": permission denied"), "{failed:?}");
    // What it leaves when it panics becomes a child of this process, and ends by itself.
    while bed.traces()[3] > 1 {
        if let Some(ended) = process::peek_any().unwrap() {
            process::reap(ended.pid).unwrap();
        }
    }
}

fn bundle() -> Bundle {
    let mut bundle = Bundle::new("sleep 1000");
    let options = ["rbind", "uidmap=0:0:65536", "gidmap=0:0:65536"].map(str::to_owned).into();
    let source = bundle.root().display().to_string();
    bundle.rootfs = vec![RootMount { fstype: "bind".into(), source, target: String::new(), options }];
    bundle
        .mount("/b", "bind", "/usr", &["rbind", "rslave"])
        .mount("/bin", "tmpfs", "tmpfs", &["tmpcopyup"])
        .with("/process/scheduler", json!({"policy": "SCHED_BATCH"}))
        .with("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 7}))
        .with("/linux/personality", json!({"domain": "LINUX"}))
        .with("/linux/memoryPolicy", json!({"mode": "MPOL_PREFERRED", "nodes": "0"}))
        .with("/linux/seccomp", default_profile())
        .with("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}))
        .with("/process/noNewPrivileges", json!(false))
        .with("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 99}]))
        .with("/root/readonly", json!(true))
}

/// Errors in which the kernel or the spec has the word name the program, mounts their source and target, limits and sysctls their name, and
/// sets that the plan prints as numbers their field; all others say the step as the plan prints it, after the field that it comes from.
fn names(sentence: &str, step: &Step) -> bool {
    match step {
        Step::FindProgram | Step::Exec { .. } => sentence.starts_with("exec"),
        Step::CloneTree { source, .. } => sentence.starts_with(&format!("bind {source:?}")),
        Step::NewMount { filesystem, .. } => sentence.starts_with(&format!("mount {}", filesystem.fstype.to_string_lossy())),
        Step::Attach { target, .. } => sentence.starts_with("attach ") && sentence.contains(&*target.to_string_lossy()),
        Step::AttachRoot { .. } => sentence.starts_with("attach ") && sentence.contains("as the root"),
        Step::IdMap { .. } => sentence.starts_with("map owners of bind") && sentence.contains("as the root"),
        Step::CopyUp { .. } => sentence.starts_with("copy \"/bin\" to the tmpfs at \"/bin\""),
        Step::Settle { .. } => sentence.starts_with("follow the host's mounts with bind \"/usr\" at \"/b\""),
        Step::Rlimit { .. } => sentence.starts_with("process.rlimits: set rlimit RLIMIT_NOFILE to 99:99"),
        Step::JoinCgroup { .. } => sentence.starts_with("join the container's cgroup: "),
        Step::BindFlags { .. } => sentence.starts_with("flags of bind "),
        Step::Sysctl { .. } => sentence.starts_with("linux.sysctl: set \"net.ipv4.ip_forward\" to \"1\""),
        Step::Symlink { name, .. } => sentence.starts_with(&format!("make link \"/dev/{}\" -> ", name.to_string_lossy())),
        Step::Affinity { .. } => sentence.contains("keep to processors "),
        Step::MemoryPolicy { .. } => sentence.starts_with("linux.memoryPolicy: set the policy for nodes 0: "),
        Step::BoundingSet { .. } => sentence.starts_with("process.capabilities.bounding: drop all others: "),
        Step::Capabilities { .. } => sentence.starts_with("process.capabilities: set them: "),
        _ => sentence.contains(&step.to_string()),
    }
}

fn container(bed: &Bed) {
    let host = Host::detect().unwrap();
    let path = CgroupPath::new(&host, Some(&format!("/coracle-fail-{}", std::process::id())), "t").unwrap();
    let mut bundle = bundle();
    let mut step = 0;
    loop {
        bundle.cgroup = Some(Cgroup::create(&host, &path, &Resources::default()).unwrap());
        let before = bed.traces();
        let (mut compiled, report, output) = bundle.compile().unwrap();
        let Some(failing) = compiled.launch.plan.steps.get(usize::from(step)).cloned() else { break };
        compiled.launch.plan.fail = Some(FailStep { step, errno: Errno::XFULL.raw_os_error() });
        let sentence = bed.launch(compiled, report, output).failure();
        assert!(names(&sentence, &failing), "step {step}, {failing}: {sentence}");
        assert!(sentence.ends_with("exchange full"), "{sentence}");
        bed.assert_no_trace(before, &format!("step {step}, {failing}"));
        // It can be removed at once only if no process is in it.
        bundle.cgroup.take().unwrap().remove(Duration::ZERO).unwrap();
        step += 1;
    }
    bundle.cgroup.take().unwrap().remove(Duration::ZERO).unwrap();
    assert!(step > 50, "{step} steps");
}

fn helper(bed: &Bed) {
    let _helpers = fuse::real();
    let target = tempfile::tempdir().unwrap();
    for step in 0.. {
        let before = bed.traces();
        let (mut compiled, report) = fuse::compile(target.path());
        let Some(failing) = compiled.launch.plan.steps.get(step).cloned() else { break };
        compiled.launch.plan.fail = Some(FailStep { step: step as u16, errno: Errno::XFULL.raw_os_error() });
        let sentence = bed.launch(compiled, report, null()).failure();
        assert!(names(&sentence, &failing), "step {step}, {failing}: {sentence}");
        bed.assert_no_trace(before, &format!("step {step}, {failing}"));
    }
}

fn joining(bed: &Bed) {
    let bundle = bundle();
    let mut init: Running = bundle.start(bed);
    init.ready();
    init.go();
    for step in 0.. {
        let before = bed.traces();
        let (mut compiled, report, output) = bundle.compile_joining(&init, json!({}), false).unwrap();
        let Some(failing) = compiled.launch.plan.steps.get(step).cloned() else { break };
        compiled.launch.plan.fail = Some(FailStep { step: step as u16, errno: Errno::XFULL.raw_os_error() });
        let sentence = bed.launch(compiled, report, output).failure();
        assert!(names(&sentence, &failing), "step {step}, {failing}: {sentence}");
        bed.assert_no_trace(before, &format!("step {step}, {failing}"));
    }
    init.kill();
}
