//! User namespaces and idmapped mounts.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use runtime_core::compile;
use serde_json::{Value, json};

use super::bed::{Bed, Bundle, Test};

pub const TESTS: &[Test] = &[
    ("a user namespace: ids, owners, devices, exec", whole),
    ("a user namespace with several ranges", ranges),
    ("a given user namespace, with maps and without", given),
    ("a given user namespace of no process", of_no_process),
    ("namespaces whose path is empty are new", empty_paths),
    ("limits above the runtime's are no matter of the user namespace", limits),
    ("idmapped binds, with and without a user namespace", idmapped),
    ("a time namespace and a user namespace", time),
];

pub const FIRST: u32 = 1_000_000;

fn map(first: u32) -> Value {
    json!([{"containerID": 0, "hostID": first, "size": 65536}])
}

/// With the root's files owned by the mapped root.
pub fn bundle(script: &str) -> Bundle {
    let bundle = Bundle::new(script).with("/linux/uidMappings", map(FIRST)).with("/linux/gidMappings", map(FIRST));
    let bundle = in_namespace(bundle, json!({"type": "user"}));
    // Its programs are links to the host's and stay whose they are.
    for directory in [bundle.root(), bundle.root().join("bin"), bundle.root().join("open")] {
        fs::create_dir_all(&directory).unwrap();
        chown(&directory, Some(FIRST), Some(FIRST)).unwrap();
    }
    fs::set_permissions(bundle.root().join("open"), fs::Permissions::from_mode(0o1777)).unwrap();
    bundle
}

fn in_namespace(bundle: Bundle, user: Value) -> Bundle {
    let kinds = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({"type": kind}));
    bundle.with("/linux/namespaces", kinds.into_iter().chain([user]).collect())
}

fn whole(bed: &Bed) {
    let script = "cat /proc/self/uid_map; stat -c '%u:%g %t:%T' /dev/null /; echo x >/dev/null && echo written; \
                  mknod /open/node c 1 3 2>&1; echo done";
    let output = bundle(script).output(bed);
    let words: Vec<&str> = output.split_whitespace().collect();
    assert_eq!(&words[..3], ["0", "1000000", "65536"], "{output}");
    for line in ["0:0 1:3", "0:0 0:0", "written", "Operation not permitted", "done"] {
        assert!(output.contains(line), "no {line:?} in {output}");
    }
    let bundle = bundle("exec sleep 1000");
    let mut running = bundle.start(bed);
    running.ready();
    running.go();
    let joined =
        bundle.join_output(bed, &running, json!({"args": ["/bin/sh", "-c", "id -u; cat /proc/self/gid_map; echo again >/proc/self/fd/1"]}));
    assert_eq!(joined.split_whitespace().collect::<Vec<_>>(), ["0", "0", "1000000", "65536", "again"], "{joined}");
    running.kill();
}

fn ranges(bed: &Bed) {
    let ranges = json!([
        {"containerID": 0, "hostID": FIRST, "size": 10}, {"containerID": 10, "hostID": 2_000_000, "size": 100}, {"containerID": 65534, "hostID": 7, "size": 1}
    ]);
    let bundle = bundle("id -u; cat /proc/self/uid_map | wc -l; touch /open/file && stat -c %u /open/file")
        .with("/linux/uidMappings", ranges.clone())
        .with("/linux/gidMappings", ranges)
        .with("/process/user", json!({"uid": 12, "gid": 12}));
    std::os::unix::fs::symlink("busybox", bundle.root().join("bin/wc")).unwrap();
    assert_eq!(bundle.output(bed), "12\n3\n12\n");
    assert_eq!(fs::metadata(bundle.root().join("open/file")).unwrap().uid(), 2_000_002);
}

fn given(bed: &Bed) {
    let first = bundle("exec sleep 1000");
    let mut running = first.start(bed);
    running.ready();
    running.go();
    let path = format!("/proc/{}/ns/user", running.launched.pid);
    let script = "readlink /proc/self/ns/user; id -u";
    let own = fs::read_link(&path).unwrap();
    let with_maps = in_namespace(bundle(script), json!({"type": "user", "path": path}));
    assert_eq!(with_maps.output(bed), format!("{}\n0\n", own.display()));
    let without = with_maps.with("/linux/uidMappings", json!([])).with("/linux/gidMappings", json!([]));
    assert_eq!(without.output(bed), format!("{}\n0\n", own.display()));
    let other = without.with("/linux/uidMappings", map(FIRST + 1)).with("/linux/gidMappings", map(FIRST));
    assert!(other.failure(bed).starts_with("linux.uidMappings/gidMappings: not those"), "{}", other.failure(bed));
    running.kill();
}

/// As `podman` and `unshare --user=FILE` keep one: mounted somewhere, with nobody inside.
fn of_no_process(bed: &Bed) {
    let first = bundle("exec sleep 1000").running(bed);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("user");
    fs::write(&file, "").unwrap();
    rustix::mount::mount_bind(format!("/proc/{}/ns/user", first.launched.pid), &file).unwrap();
    let own = fs::read_link(format!("/proc/{}/ns/user", first.launched.pid)).unwrap();
    first.kill();
    let without = in_namespace(bundle("exec sleep 1000"), json!({"type": "user", "path": file}));
    let without = without.with("/linux/uidMappings", json!([])).with("/linux/gidMappings", json!([]));
    let init = without.running(bed);
    rustix::mount::unmount(&file, rustix::mount::UnmountFlags::empty()).unwrap();
    // What joins needs the file no more.
    let script = "readlink /proc/self/ns/user; id -u; cat /proc/self/uid_map; stat -c %u /";
    let output = without.join_output(bed, &init, json!({"args": ["/bin/sh", "-c", script]}));
    let words: Vec<&str> = output.split_whitespace().collect();
    assert_eq!(words, [own.to_str().unwrap(), "0", "0", "1000000", "65536", "0"]);
    init.kill();
}

fn empty_paths(bed: &Bed) {
    let mut bundle = bundle("for kind in user pid ipc uts mnt net; do readlink /proc/self/ns/$kind; done");
    for namespace in bundle.spec["linux"]["namespaces"].as_array_mut().unwrap() {
        namespace["path"] = json!("");
    }
    let output = bundle.output(bed);
    for (kind, inside) in ["user", "pid", "ipc", "uts", "mnt", "net"].iter().zip(output.lines()) {
        assert_ne!(inside, fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().to_str().unwrap());
    }
    assert_eq!(output.lines().count(), 6);
    assert!(compile::Joined::of(&bundle.parse().linux).unwrap().has_private_pid());
}

fn limits(bed: &Bed) {
    let bundle = bundle("ulimit -Hn; ulimit -Sn").with("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "hard": 700, "soft": 600}]));
    assert_eq!(bundle.output(bed), "700\n600\n");
}

fn idmapped(bed: &Bed) {
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("file"), "").unwrap();
    chown(volume.path(), Some(0), Some(0)).unwrap();
    let source = volume.path().to_str().unwrap();
    let script = "stat -c %u:%g /data/file; touch /data/new";
    let inside = bundle(script).mount("/data", "bind", source, &["bind", "idmap"]);
    assert_eq!(inside.output(bed), "0:0\n");
    assert_eq!(fs::metadata(volume.path().join("new")).unwrap().uid(), 0);
    // What the container has mounted itself is mapped by the parent, who alone may.
    for (option, below) in [("idmap", "65534:65534"), ("ridmap", "0:0")] {
        let script = "stat -c %u:%g /one/file /two/file /two/below/file; touch /two/own";
        let inside = bundle(script);
        let one = inside.root().join("one").display().to_string();
        fs::create_dir_all(volume.path().join("below")).unwrap();
        let inside = inside.mount("/one", "bind", source, &["bind"]).mount("/one/below", "bind", source, &["bind"]);
        let inside = inside.mount("/two", "bind", &one, &["rbind", option]);
        assert_eq!(inside.output(bed), format!("65534:65534\n0:0\n{below}\n"));
        assert_eq!(fs::metadata(volume.path().join("own")).unwrap().uid(), 0);
        // The kernel maps a mount once.
        let two = inside.root().join("two").display().to_string();
        let failure = inside.mount("/three", "bind", &two, &["bind", "idmap"]).failure(bed);
        assert_eq!(failure, "map owners of bind \"/two\" of the container at \"/three\": operation not permitted");
        fs::remove_file(volume.path().join("own")).unwrap();
    }
    // Without a user namespace: what is root's on the host is somebody else's here.
    let maps = json!([{"containerID": 0, "hostID": 5000, "size": 10}]);
    let outside = Bundle::new("stat -c %u:%g /data/file").mount("/data", "bind", source, &["rbind", "ridmap"]);
    let last = outside.parse().mounts.len() - 1;
    let outside = outside.with(&format!("/mounts/{last}/uidMappings"), maps.clone()).with(&format!("/mounts/{last}/gidMappings"), maps);
    assert_eq!(outside.output(bed), "5000:5000\n");
}

fn time(bed: &Bed) {
    let script = "cat /proc/self/timens_offsets; readlink /proc/self/ns/time";
    let mut bundle = bundle(script).with("/linux/timeOffsets", json!({"monotonic": {"secs": 3}}));
    bundle.spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
    let output = bundle.output(bed);
    assert_eq!(output.split_whitespace().take(3).collect::<Vec<_>>(), ["monotonic", "3", "0"], "{output}");
    assert_ne!(output.lines().last().unwrap(), fs::read_link("/proc/self/ns/time").unwrap().to_str().unwrap());
}
