//! Hooks and other programs of the host's.

use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

use oci_spec::runtime::HookBuilder;
use runtime_core::compile::{self, Environment, Helper, Inside, Joined, StartContainerHook, root_path};
use runtime_core::container::hooks::{Point, state};
use runtime_core::plan::report::{self, Message};
use runtime_core::seccomp;
use serde_json::{Value, json};

use super::bed::{Bed, Bundle, Running, Test, cgroup_view, null, pipe};
use super::process::{default_profile, status};
use super::users;

pub const TESTS: &[Test] = &[
    ("a helper has what it is given and nothing else", helper),
    ("a helper that cannot run says why", missing_helper),
    ("a container waits for its hooks with the root in view", pause),
    ("a createContainer hook runs inside, before the pivot", create_container),
    ("hooks of a container in a user namespace", user_namespace),
    ("a startContainer hook runs as the program would", start_container),
    ("a startContainer hook cannot be of the host's", start_container_missing),
];

struct Given<'a> {
    arguments: &'a [&'a str],
    descriptors: Vec<i32>,
    inside: Option<(&'a Running, &'a Bundle)>,
    input: Vec<u8>,
}

fn run_helper(bed: &Bed, given: Given<'_>) -> Running {
    let (read, write) = pipe();
    let (input, feed) = pipe();
    std::fs::File::from(feed).write_all(&given.input).unwrap();
    let mut descriptors = vec![(input, 0), (write.try_clone().unwrap(), 1), (write.try_clone().unwrap(), 2)];
    descriptors.extend(given.descriptors.iter().map(|number| (write.try_clone().unwrap(), *number)));
    let (parent, child) = report::pair().unwrap();
    let container = given.inside.map(|(init, bundle)| {
        let spec = bundle.parse();
        (init, Joined::of(&spec.linux).unwrap(), root_path(&spec, bundle.directory.path(), &bundle.rootfs))
    });
    let compiled = compile::helper(Helper {
        path: Path::new("/bin/busybox"),
        arguments: &given.arguments.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(),
        environment: Environment::Given(&["ONLY=this".into()]),
        descriptors,
        inside: container.as_ref().map(|(init, namespaces, root)| Inside {
            init: init.launched.pidfd.try_clone().unwrap(),
            namespaces,
            cgroup: cgroup_view(None),
            root,
        }),
        directory: Path::new("/"),
        report: child,
    })
    .unwrap();
    let mut running = bed.launch(compiled, parent, read);
    running.executed();
    running
}

fn helper(bed: &Bed) {
    let script = "cat; for f in /proc/self/fd/*; do echo ${f##*/}; done; echo $$ $(cut -d' ' -f6 /proc/self/stat); umask; pwd";
    let given = Given { arguments: &["sh", "-c", script], descriptors: vec![3, 4, 5], inside: None, input: b"state\n".to_vec() };
    let (status, output) = run_helper(bed, given).end();
    let lines: Vec<&str> = output.lines().collect();
    // The shell itself holds the directory that it lists for a moment, with the lowest free number.
    assert_eq!((status, &lines[..7]), (0, &["state", "0", "1", "2", "3", "4", "5"][..]), "{output}");
    let rest = lines.iter().skip_while(|line| !line.contains(' ')).collect::<Vec<_>>();
    let (own, session) = rest[0].split_once(' ').unwrap();
    assert_eq!(own, session, "{output}");
    assert_eq!(rest[1..3], [&"0022", &"/"], "{output}");
    let given = Given { arguments: &["cat", "/proc/self/environ"], descriptors: Vec::new(), inside: None, input: Vec::new() };
    assert_eq!(run_helper(bed, given).end(), (0, "ONLY=this\0".to_owned()));
}

fn missing_helper(bed: &Bed) {
    let (parent, child) = report::pair().unwrap();
    let compiled = compile::helper(Helper {
        path: Path::new("/nosuch/hook"),
        arguments: &["hook".into()],
        environment: Environment::Given(&[]),
        descriptors: Vec::new(),
        inside: None,
        directory: Path::new("/"),
        report: child,
    });
    let sentence = bed.launch(compiled.unwrap(), parent, null()).failure();
    assert_eq!(sentence, r#"exec: "/nosuch/hook": stat /nosuch/hook: no such file or directory"#);
}

fn with_hook(bundle: Bundle, point: &str) -> Bundle {
    bundle.with("/hooks", json!({point: [{"path": "/bin/true"}]}))
}

fn paused(bed: &Bed, bundle: &Bundle) -> Running {
    let mut running = bundle.start(bed);
    match running.next() {
        Some(Message::Hooks) => running,
        other => panic!("{other:?}"),
    }
}

fn proceed(mut running: Running) -> String {
    rustix::io::write(&running.report, &[report::GO]).unwrap();
    running.ready();
    running.go();
    let (status, output) = running.end();
    assert_eq!(status, 0, "{output}");
    output
}

fn pause(bed: &Bed) {
    let bundle = with_hook(Bundle::new("cat /from-hook; grep -c . /proc/self/mountinfo"), "createRuntime");
    let running = paused(bed, &bundle);
    // From the host, as hooks of GPU toolkits do: by the root of the process.
    let inside = format!("/proc/{}/root{}", running.launched.pid, bundle.root().display());
    assert!(Path::new(&inside).join("proc/uptime").exists(), "the mounts are not in view");
    std::fs::write(Path::new(&inside).join("from-hook"), "hook\n").unwrap();
    let output = proceed(running);
    let (line, mounts) = output.split_once('\n').unwrap();
    assert_eq!(line, "hook");
    // The copy of the host's table is gone with the pivot.
    assert!(mounts.trim().parse::<usize>().unwrap() < 20, "{output}");
}

fn create_container(bed: &Bed) {
    let bundle = with_hook(Bundle::new("cat /made /mnt/x; hostname"), "createContainer");
    std::fs::create_dir(bundle.root().join("mnt")).unwrap();
    let running = paused(bed, &bundle);
    let script = "cat > made; busybox mount -t tmpfs hook ./mnt && echo mounted > ./mnt/x; busybox ifconfig lo | busybox grep -c UP";
    let none = std::collections::HashMap::new();
    let json = state(Point::CreateContainer, "t", running.launched.pid, bundle.directory.path(), "1.2.0", &none).unwrap();
    let given = Given { arguments: &["sh", "-c", script], descriptors: Vec::new(), inside: Some((&running, &bundle)), input: json };
    let (status, output) = run_helper(bed, given).end();
    assert_eq!((status, output.trim()), (0, "1"), "{output}");
    let pid = running.launched.pid;
    let output = proceed(running);
    let (told, rest) = output.split_once("mounted\n").unwrap();
    let told: Value = serde_json::from_str(told).unwrap();
    assert_eq!((told["status"].as_str(), told["pid"].as_i64()), (Some("creating"), Some(i64::from(pid))));
    assert_eq!(rest, "inside\n");
}

/// The bundle's directory is closed to everybody but the host's root.
fn user_namespace(bed: &Bed) {
    let bundle =
        with_hook(users::bundle("cat /from-hook /open/made; grep -c . /proc/self/mountinfo; stat -c %u /open/made"), "createContainer");
    let running = paused(bed, &bundle);
    let pid = running.launched.pid;
    let inside = format!("/proc/{pid}/root{}", bundle.root().display());
    assert!(Path::new(&inside).join("proc/uptime").exists(), "the mounts are not in view");
    std::fs::write(Path::new(&inside).join("from-hook"), "hook\n").unwrap();
    let script = "busybox mkdir mnt && busybox mount -t tmpfs hook mnt && echo mounted > mnt/x; busybox cat mnt/x; busybox pwd > open/made; \
                  cat /proc/self/uid_map; for n in user mnt pid net uts ipc; do busybox readlink /proc/self/ns/$n; done";
    let given = Given { arguments: &["sh", "-c", script], descriptors: Vec::new(), inside: Some((&running, &bundle)), input: Vec::new() };
    let (status, output) = run_helper(bed, given).end();
    let own = |name| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap().display().to_string();
    let words: Vec<&str> = output.split_whitespace().collect();
    assert_eq!((status, &words[..4]), (0, &["mounted", "0", "1000000", "65536"][..]), "{output}");
    assert_eq!(words[4..], ["user", "mnt", "pid", "net", "uts", "ipc"].map(own), "{output}");
    let output = proceed(running);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!((lines[0], lines[1], lines[3]), ("hook", &*bundle.root().display().to_string(), "0"), "{output}");
    // But for what the hook has mounted, it has what it has without hooks.
    let without = users::bundle("grep -c . /proc/self/mountinfo").output(bed);
    assert_eq!(lines[2].parse::<usize>().unwrap(), without.trim().parse::<usize>().unwrap() + 1, "{output}");
}

fn start_hook(bed: &Bed, bundle: &Bundle, init: &Running, hook: Value) -> Running {
    let spec = bundle.parse();
    let (parent, child) = report::pair().unwrap();
    let (read, write) = pipe();
    let mut hook_builder = HookBuilder::default().path(hook["path"].as_str().unwrap());
    if let Some(args) = hook["args"].as_array() {
        hook_builder = hook_builder.args(args.iter().map(|text| text.as_str().unwrap().to_owned()).collect::<Vec<_>>());
    }
    let hook = hook_builder.env(vec!["HOOK=1".to_owned()]).build().unwrap();
    let filter = spec.linux.seccomp.as_ref().map(|profile| seccomp::compile(profile).unwrap());
    let compiled = compile::start_container_hook(StartContainerHook {
        id: "t",
        namespaces: &Joined::of(&spec.linux).unwrap(),
        process: spec.process.as_ref().unwrap(),
        hook: &hook,
        init: init.launched.pidfd.as_fd().try_clone_to_owned().unwrap(),
        cgroup: cgroup_view(None),
        streams: [null(), write.try_clone().unwrap(), write],
        filter: filter.as_ref(),
        report: child,
        no_new_keyring: false,
    });
    bed.launch(compiled.unwrap(), parent, read)
}

fn start_container(bed: &Bed) {
    let bundle = Bundle::new("cat /run/from-hook")
        .with("/linux/seccomp", default_profile())
        .with("/process/user", json!({"uid": 1000, "gid": 7}))
        .with("/process/cwd", json!("/bin"));
    let bundle = bundle.without_mount("/run").mount("/run", "tmpfs", "tmpfs", &["mode=1777"]);
    let mut init = bundle.start(bed);
    init.ready();
    let script = "echo hook > /run/from-hook; pwd; echo $HOOK$PATH; cat /proc/self/status";
    let mut hook = start_hook(bed, &bundle, &init, json!({"path": "/bin/sh", "args": ["sh", "-c", script]}));
    hook.executed();
    let (code, output) = hook.end();
    let (head, rest) = output.split_once("Name:").unwrap();
    assert!(code == 0 && head.starts_with("/bin\n1"), "{output}");
    let found = status(rest);
    assert_eq!((&*found["Uid"], &*found["Gid"]), ("1000 1000 1000 1000", "7 7 7 7"));
    assert_eq!((&*found["CapEff"], &*found["Seccomp"], &*found["NoNewPrivs"]), ("0000000000000000", "2", "1"));
    init.go();
    assert_eq!(init.end(), (0, "hook\n".to_owned()));
}

fn start_container_missing(bed: &Bed) {
    let bundle = Bundle::new("true");
    let mut init = bundle.start(bed);
    init.ready();
    let only_of_host = std::env::current_exe().unwrap().display().to_string();
    let sentence = start_hook(bed, &bundle, &init, json!({"path": only_of_host})).failure();
    assert!(sentence.contains(&only_of_host) && sentence.ends_with("no such file or directory"), "{sentence}");
    init.kill();
}
