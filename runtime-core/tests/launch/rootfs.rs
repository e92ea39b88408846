//! Root filesystems from a snapshotter's mounts.

use std::path::{Path, PathBuf};
use std::process::Command;

use runtime_core::compile::{self, RootMount};
use runtime_core::kernel::Features;
use runtime_core::plan::Step;
use runtime_core::plan::report::{self, GO, Message};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change};
use serde_json::json;

use super::bed::{Bed, Bundle, Running, Test, fill, ways};

pub const TESTS: &[Test] = &[
    ("overlay, layer by layer and by mount(2)", writes_go_up),
    ("120 layers with long paths, both ways", long_paths),
    ("300 layers", many_layers),
    ("data-only layers", data_only),
    ("a read-only overlay of two layers", read_only_overlay),
    ("an ext4 image behind a loop device", loop_device),
    ("many that want a loop device at once", many_loop_devices),
    ("a bind of a directory, read-only", bind),
    ("idmapped layers, both ways", idmapped_overlay),
    ("300 idmapped layers", many_idmapped_layers),
    ("an idmapped bind and an idmapped image", idmapped_others),
    ("maps that the kernel does not take", bad_maps),
    ("mounts below the root, in order", sub_paths),
    ("a root that the host sees, with each way to an overlay", in_its_place),
];

/// Layers whose top one has a shell and each of the others a file of its own.
fn layers(directory: &Path, count: usize, name: impl Fn(usize) -> String) -> Vec<PathBuf> {
    let make = |index| {
        let layer = directory.join(name(index));
        std::fs::create_dir_all(&layer).unwrap();
        if index == 0 {
            fill(&layer);
        }
        std::fs::write(layer.join(format!("f{index}")), "").unwrap();
        layer
    };
    (0..count).map(make).collect()
}

fn overlay(bundle: &mut Bundle, lower: &[PathBuf], extra: &[&str]) {
    let below = lower[0].parent().unwrap();
    let (upper, work) = (below.join("upper"), below.join("work"));
    std::fs::create_dir_all(&upper).unwrap();
    std::fs::create_dir_all(&work).unwrap();
    let lower: Vec<String> = lower.iter().map(|path| path.display().to_string()).collect();
    let mut options =
        vec![format!("workdir={}", work.display()), format!("upperdir={}", upper.display()), format!("lowerdir={}", lower.join(":"))];
    options.extend(extra.iter().map(|option| (*option).to_owned()));
    bundle.rootfs = vec![RootMount { fstype: "overlay".into(), source: "overlay".into(), target: String::new(), options }];
}

fn writes_go_up(bed: &Bed) {
    for one_by_one in ways(Features::get().layers_one_by_one) {
        let snapshots = tempfile::tempdir().unwrap();
        let mut bundle = Bundle::new("echo /f*; echo hello > /new; stat -f -c %t /");
        let lower = layers(snapshots.path(), 3, |index| index.to_string());
        overlay(&mut bundle, &lower, &["index=off"]);
        bundle.kernel.layers_one_by_one = one_by_one;
        assert_eq!(bundle.output(bed), "/f0 /f1 /f2\n794c7630\n", "one by one: {one_by_one}");
        assert_eq!(std::fs::read_to_string(snapshots.path().join("upper/new")).unwrap(), "hello\n");
        assert!(!lower[0].join("new").exists());
    }
}

/// What the host mounts below it comes into the container, as with runc, and what the container mounts does not come out.
fn in_its_place(bed: &Bed) {
    for (point, one_by_one) in
        ["createRuntime", "poststop"].into_iter().flat_map(|point| ways(Features::get().layers_one_by_one).map(move |way| (point, way)))
    {
        let snapshots = tempfile::tempdir().unwrap();
        let mut bundle = Bundle::new("cat /from-host /below/x; grep -c . /proc/self/mountinfo");
        bundle = bundle.with("/hooks", json!({point: [{"path": "/bin/true"}]}));
        overlay(&mut bundle, &layers(snapshots.path(), 3, |index| index.to_string()), &["index=off"]);
        bundle.kernel.layers_one_by_one = one_by_one;
        std::fs::create_dir(snapshots.path().join("upper/below")).unwrap();
        let (directory, place) = (bundle.directory.path(), bundle.root());
        mount_bind(directory, directory).unwrap();
        mount_change(directory, MountPropagationFlags::SHARED).unwrap();

        let mut running = bundle.start(bed);
        let waits = running.next();
        assert!(matches!(waits, Some(Message::Hooks | Message::Ready)), "{waits:?}");
        assert!(place.join("f2").exists() && !place.join("proc/self").exists(), "{point}, one by one: {one_by_one}");
        std::fs::write(place.join("from-host"), "host\n").unwrap();
        mount("hook", place.join("below"), "tmpfs", MountFlags::empty(), None).unwrap();
        std::fs::write(place.join("below/x"), "below\n").unwrap();
        if matches!(waits, Some(Message::Hooks)) {
            rustix::io::write(&running.report, &[GO]).unwrap();
            running.ready();
        }
        running.go();
        let (status, output) = running.end();
        let mounts = output.strip_prefix("host\nbelow\n").and_then(|count| count.trim().parse::<usize>().ok());
        assert!(status == 0 && mounts.is_some_and(|count| count < 20), "{output}");
        assert_eq!(std::fs::read_to_string(snapshots.path().join("upper/from-host")).unwrap(), "host\n");

        let (parent, child) = report::pair().unwrap();
        let mut unmount = bed.launch(compile::unmount(&place, child).unwrap(), parent, super::bed::null());
        unmount.executed();
        assert_eq!(unmount.end().0, 0);
        assert!(!place.join("f2").exists());
        rustix::mount::unmount(directory, UnmountFlags::DETACH).unwrap();
    }
}

fn long_paths(bed: &Bed) {
    let snapshots = tempfile::tempdir().unwrap();
    let deep = snapshots.path().join("a".repeat(200)).join("b".repeat(100));
    let lower = layers(&deep, 120, |index| format!("{index}-{}", "c".repeat(20)));
    assert!(lower[0].as_os_str().len() > 255 && lower.len() * 255 > 4096);
    for one_by_one in ways(Features::get().layers_one_by_one) {
        let mut bundle = Bundle::new("ls / | grep -c ^f");
        overlay(&mut bundle, &lower, &[]);
        bundle.kernel.layers_one_by_one = one_by_one;
        assert_eq!(bundle.output(bed), "120\n", "one by one: {one_by_one}");
    }
}

fn many_layers(bed: &Bed) {
    let snapshots = tempfile::tempdir().unwrap();
    let mut bundle = Bundle::new("ls / | grep -c ^f");
    overlay(&mut bundle, &layers(snapshots.path(), 300, |index| format!("layer-number-{index}")), &[]);
    if bundle.kernel.layers_one_by_one {
        assert_eq!(bundle.output(bed), "300\n");
    }
    // What does not fit a page is refused before anything is done, in words.
    bundle.kernel.layers_one_by_one = false;
    assert!(bundle.failure(bed).contains("300 layers need"), "{}", bundle.failure(bed));
}

fn data_only(bed: &Bed) {
    let snapshots = tempfile::tempdir().unwrap();
    let lower = layers(snapshots.path(), 3, |index| index.to_string());
    let mut bundle = Bundle::new("echo /f*");
    overlay(&mut bundle, &lower[..1], &["metacopy=on", "redirect_dir=on"]);
    let list = format!("lowerdir={}::{}::{}", lower[0].display(), lower[1].display(), lower[2].display());
    bundle.rootfs[0].options[2] = list;
    if bundle.kernel.layers_one_by_one {
        // The contents of data-only layers are reached through other layers alone.
        assert_eq!(bundle.output(bed), "/f0\n");
    }
    bundle.kernel.layers_one_by_one = false;
    assert!(bundle.failure(bed).contains("data-only layers need"), "{}", bundle.failure(bed));
}

fn read_only_overlay(bed: &Bed) {
    let snapshots = tempfile::tempdir().unwrap();
    let lower = layers(snapshots.path(), 2, |index| index.to_string());
    for directory in ["proc", "sys", "dev", "run"] {
        std::fs::create_dir(lower[0].join(directory)).unwrap();
    }
    for one_by_one in ways(Features::get().layers_one_by_one) {
        let mut bundle = Bundle::new("echo /f*; touch /x 2>&1 || true");
        overlay(&mut bundle, &lower, &[]);
        let options = vec![format!("lowerdir={}:{}", lower[0].display(), lower[1].display())];
        bundle.rootfs[0].options = options;
        bundle.kernel.layers_one_by_one = one_by_one;
        assert!(bundle.output(bed).contains("Read-only file system"));
    }
}

fn loop_device(bed: &Bed) {
    let directory = tempfile::tempdir().unwrap();
    let source = image(directory.path()).display().to_string();
    let mut bundle = Bundle::new("stat -f -c %t /; touch /x && echo written");
    bundle.rootfs = vec![RootMount { fstype: "ext4".into(), source, target: String::new(), options: vec!["loop".into()] }];
    assert_eq!(bundle.output(bed), "ef53\nwritten\n");
}

/// Each asks which device is free, and all but one find it taken.
fn many_loop_devices(bed: &Bed) {
    let directory = tempfile::tempdir().unwrap();
    let source = image(directory.path()).display().to_string();
    let script =
        format!("for device in /sys/block/loop*; do grep -q {source} $device/loop/backing_file && cat $device/ro; done 2>/dev/null; true");
    let start = |_| {
        let mut bundle = Bundle::new(&script);
        let options = ["loop", "ro", "direct-io"].map(str::to_owned).into();
        bundle.rootfs = vec![RootMount { fstype: "ext4".into(), source: source.clone(), target: String::new(), options }];
        let (mut compiled, report, output) = bundle.compile().unwrap();
        compiled.launch.plan.steps.insert(0, Step::PauseForHooks);
        bed.launch(compiled, report, output)
    };
    let mut all: Vec<Running> = (0..24).map(start).collect();
    for running in &mut all {
        assert!(matches!(running.next(), Some(Message::Hooks)));
    }
    for running in &all {
        rustix::io::write(&running.report, &[GO]).unwrap();
    }
    for running in all {
        let output = running.finish().unwrap();
        assert!(output.starts_with("1\n") && !output.contains('0'), "{output}");
    }
}

fn bind(bed: &Bed) {
    let mut bundle = Bundle::new("touch /x 2>&1 || true").without_mount("/").with("/linux/maskedPaths", json!([]));
    bundle.spec["linux"]["readonlyPaths"] = json!([]);
    std::fs::create_dir(bundle.root().join("dev")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    fill(&directory.path().join("fs"));
    let source = directory.path().join("fs").display().to_string();
    let options = vec!["rbind".into(), "ro".into()];
    bundle.rootfs = vec![RootMount { fstype: "bind".into(), source, target: String::new(), options }];
    std::fs::create_dir(directory.path().join("fs/dev")).unwrap();
    let failure = bundle.failure(bed);
    assert!(failure.starts_with("make device \"/dev/null\"") && failure.ends_with("read-only file system"), "{failure}");
}

/// Two ranges, of which the second one is not where the first would put it.
const MAPS: [&str; 2] = ["uidmap=0:100000:1000,1000:7000:10", "gidmap=0:200000:1000,1000:8000:10"];

/// The root is everybody's, since its owner is not the container's user.
fn open_to_all(root: &Path) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(root, mode).unwrap();
}

fn idmapped_overlay(bed: &Bed) {
    for by_descriptor in ways(Features::get().layers_by_descriptor) {
        let snapshots = tempfile::tempdir().unwrap();
        let script = "stat -c '%n %u:%g' /f0 /f1 /f2; echo x > /f1; stat -c '%n %u:%g' /f1; grep -c ' / / ' /proc/self/mountinfo";
        let mut bundle = Bundle::new(script);
        let lower = layers(snapshots.path(), 3, |index| index.to_string());
        std::os::unix::fs::chown(lower[1].join("f1"), Some(1), Some(2)).unwrap();
        std::os::unix::fs::chown(lower[2].join("f2"), Some(1005), Some(1006)).unwrap();
        open_to_all(&lower[1].join("f1"));
        overlay(&mut bundle, &lower, &MAPS);
        bundle.kernel.layers_by_descriptor = by_descriptor;
        let output = bundle.output(bed);
        // A copy in the upper directory has the owner that the layer shows; what is on disk below stays.
        assert_eq!(output, "/f0 100000:200000\n/f1 100001:200002\n/f2 7005:8006\n/f1 100001:200002\n1\n", "{by_descriptor}");
        let upper = std::fs::metadata(snapshots.path().join("upper/f1")).unwrap();
        let below = std::fs::metadata(lower[1].join("f1")).unwrap();
        let owner = std::os::unix::fs::MetadataExt::uid;
        assert_eq!((owner(&upper), owner(&below), below.len()), (100_001, 1, 0));
    }
}

fn many_idmapped_layers(bed: &Bed) {
    let snapshots = tempfile::tempdir().unwrap();
    let mut bundle = Bundle::new("ls / | grep -c ^f; stat -c %u /f299");
    overlay(&mut bundle, &layers(snapshots.path(), 300, |index| format!("layer-number-{index}")), &MAPS);
    for by_descriptor in ways(Features::get().layers_by_descriptor) {
        bundle.kernel.layers_by_descriptor = by_descriptor;
        assert_eq!(bundle.output(bed), "300\n100000\n", "{by_descriptor}");
    }
}

/// The filesystem of the given kind in a file, with a shell in it.
fn image(directory: &Path) -> PathBuf {
    let image = directory.join("image");
    std::fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let tree = directory.join("tree");
    fill(&tree);
    for name in ["proc", "dev", "sys", "run"] {
        std::fs::create_dir(tree.join(name)).unwrap();
    }
    open_to_all(&tree);
    let made = Command::new("mkfs.ext4").args(["-q", "-d"]).arg(&tree).arg(&image).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    image
}

fn idmapped_others(bed: &Bed) {
    let directory = tempfile::tempdir().unwrap();
    let image = image(directory.path());
    for (fstype, source, option) in [("bind", directory.path().join("tree"), "rbind"), ("ext4", image, "loop")] {
        let mut bundle = Bundle::new("stat -c %u:%g /bin/busybox; touch /x 2>&1 || stat -c %u:%g /");
        let options = MAPS.iter().copied().chain([option]).map(str::to_owned).collect();
        bundle.rootfs = vec![RootMount { fstype: fstype.into(), source: source.display().to_string(), target: String::new(), options }];
        // The maps have no id on disk for the container's root.
        let refused = "touch: /x: Value too large for defined data type\n";
        assert_eq!(bundle.output(bed), format!("100000:200000\n{refused}100000:200000\n"), "{fstype}");
    }
}

fn bad_maps(bed: &Bed) {
    let snapshots = tempfile::tempdir().unwrap();
    let mut bundle = Bundle::new("");
    overlay(&mut bundle, &layers(snapshots.path(), 2, |index| index.to_string()), &["uidmap=0:100000:10,5:200000:10", "gidmap=0:0:1"]);
    let failure = bundle.failure(bed);
    assert!(
        failure.contains("user namespace, users 0 100000 10, 5 200000 10") && failure.ends_with("uid_map: invalid argument"),
        "{failure}"
    );
    bundle.rootfs[0].options[3] = "uidmap=0:100000".into();
    assert_eq!(bundle.failure(bed), "rootfs overlay: uidmap: \"0:100000\": not container-id:host-id:size");
}

fn sub_paths(bed: &Bed) {
    let directory = tempfile::tempdir().unwrap();
    let part = |name: &str| {
        let part = directory.path().join(name);
        std::fs::create_dir_all(&part).unwrap();
        std::fs::write(part.join(name), "").unwrap();
        part.display().to_string()
    };
    let mut bundle = Bundle::new("echo /opt/* /opt/b/*");
    let bind = |source: String, target: &str| RootMount {
        fstype: "bind".into(),
        source,
        target: target.into(),
        options: vec!["rbind".into(), "ro".into()],
    };
    // A link of the image does not lead a later mount out of the root.
    std::os::unix::fs::symlink("/opt", bundle.root().join("link")).unwrap();
    std::fs::create_dir_all(directory.path().join("a/b")).unwrap();
    let root = RootMount { options: vec!["rbind".into()], ..bind(bundle.root().display().to_string(), "") };
    bundle.rootfs = vec![root, bind(part("a"), "/opt"), bind(part("b"), "/link/b")];
    assert_eq!(bundle.output(bed), "/opt/a /opt/b /opt/b/b\n");
}
