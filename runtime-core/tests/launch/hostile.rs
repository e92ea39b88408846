//! Root filesystems that were made to deceive: every published trick that needs no race. A tree of canaries beside the root, and the
//! host's own files, must not change, and nothing of them may be seen inside.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::bed::{Bed, Bundle, Test};

pub const TESTS: &[Test] = &[
    ("/proc and /sys must be directories", system_directories),
    ("/dev as a link stays inside", dev_link),
    ("/dev/null, /dev/console and /dev/ptmx as links or directories", dev_entries),
    ("/dev/console as a link, with a terminal", console_link),
    ("mount points through links stay inside", destinations),
    ("nothing may be mounted inside /proc", over_proc),
    ("what is masked is the path of the container", masked_links),
    ("working directories outside the root", working_directories),
    ("programs outside the root", programs),
    ("device nodes through links stay inside", devices),
];

/// A bundle, and a tree beside it that nobody may touch.
struct Canary {
    directory: tempfile::TempDir,
    before: BTreeMap<PathBuf, (u32, u64, u32, i64, Vec<u8>)>,
}

impl Canary {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["dev", "proc", "sys", "empty"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        for name in ["file", "dev/ptmx", "dev/null", "proc/keys", "secret"] {
            std::fs::write(directory.path().join(name), "canary\n").unwrap();
        }
        let before = snapshot(directory.path());
        Self { directory, before }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn assert_untouched(&self, what: &str) {
        assert_eq!(self.before, snapshot(self.directory.path()), "{what}");
    }
}

/// Type and mode, size, owner, time of change and content of everything below.
fn snapshot(directory: &Path) -> BTreeMap<PathBuf, (u32, u64, u32, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let about = std::fs::symlink_metadata(&path).unwrap();
        let content = if about.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
        if about.is_dir() {
            found.extend(snapshot(&path));
        }
        found.insert(path, (about.mode(), about.size(), about.uid(), about.ctime_nsec(), content));
    }
    found
}

/// Runs it, whatever comes of it: the sentence of the failure, or the output.
fn attempt(bed: &Bed, bundle: &Bundle) -> Result<String, String> {
    let (compiled, report, output) = bundle.compile().map_err(|error| error.to_string())?;
    let running = bed.launch(compiled, report, output);
    running.finish()
}

fn link(bundle: &Bundle, target: &Path, name: &str) {
    symlink(target, bundle.root().join(name)).unwrap();
}

/// The same place by different roads: absolute, relative, through procfs.
fn roads(target: &Path) -> Vec<PathBuf> {
    let up = "../".repeat(20);
    let plain = target.strip_prefix("/").unwrap();
    vec![
        target.to_owned(),
        Path::new(&up).join(plain),
        Path::new("/proc/self/root").join(plain),
        Path::new("/proc/1/root").join(plain),
        Path::new("/proc/self/cwd").join(&up).join(plain),
    ]
}

fn system_directories(bed: &Bed) {
    let canary = Canary::new();
    for name in ["proc", "sys"] {
        for road in roads(&canary.path(name)).into_iter().chain(["bin".into()]) {
            let bundle = Bundle::new("echo ran");
            link(&bundle, &road, name);
            let sentence = attempt(bed, &bundle).unwrap_err();
            assert!(sentence.contains(&format!("at \"/{name}\"")), "{road:?}: {sentence}");
            canary.assert_untouched(&sentence);
        }
        let bundle = Bundle::new("echo ran");
        std::fs::write(bundle.root().join(name), "").unwrap();
        assert!(attempt(bed, &bundle).unwrap_err().contains(&format!("at \"/{name}\"")));
    }
}

fn dev_link(bed: &Bed) {
    let canary = Canary::new();
    for road in roads(&canary.path("dev")) {
        for mounted in [true, false] {
            let bundle = Bundle::new("test -f /dev/ptmx && cat /dev/ptmx; echo end");
            let bundle = if mounted { bundle } else { bundle.without_mount("/dev") };
            link(&bundle, &road, "dev");
            let outcome = attempt(bed, &bundle);
            assert!(!outcome.clone().unwrap_or_default().contains("canary"), "{road:?}: {outcome:?}");
            canary.assert_untouched(&format!("{road:?} {outcome:?}"));
        }
    }
}

fn dev_entries(bed: &Bed) {
    let canary = Canary::new();
    for name in ["null", "console", "ptmx", "fd", "stdout", "zero"] {
        for road in roads(&canary.path("file")).into_iter().chain(roads(&canary.path("new"))) {
            let bundle = Bundle::new("echo x > /dev/null; echo ran; cat /proc/keys").without_mount("/dev");
            std::fs::create_dir(bundle.root().join("dev")).unwrap();
            link(&bundle, &road, &format!("dev/{name}"));
            let outcome = attempt(bed, &bundle);
            assert!(!outcome.clone().unwrap_or_default().contains("canary"), "{name} -> {road:?}: {outcome:?}");
            if matches!(name, "null" | "zero") {
                // What is there stays, and only the container's own processes follow it.
                assert!(std::fs::symlink_metadata(bundle.root().join("dev").join(name)).unwrap().is_symlink(), "{name} -> {road:?}");
            }
            canary.assert_untouched(name);
        }
        let bundle = Bundle::new("echo ran").without_mount("/dev");
        std::fs::create_dir_all(bundle.root().join("dev").join(name)).unwrap();
        assert_eq!(attempt(bed, &bundle).is_ok(), matches!(name, "console" | "null" | "zero"), "{name} as a directory");
    }
}

fn console_link(bed: &Bed) {
    let canary = Canary::new();
    for target in ["file", "new"] {
        for road in roads(&canary.path(target)) {
            let mut bundle = Bundle::new("echo ran").with("/process/terminal", json!(true));
            bundle = bundle.without_mount("/dev").mount("/dev/pts", "devpts", "devpts", &["newinstance", "ptmxmode=0666"]);
            bundle.terminal = true;
            std::fs::create_dir(bundle.root().join("dev")).unwrap();
            link(&bundle, &road, "dev/console");
            let sentence = attempt(bed, &bundle).unwrap_err();
            assert!(sentence.contains("/dev/console"), "{sentence}");
            canary.assert_untouched(&sentence);
        }
    }
}

fn destinations(bed: &Bed) {
    let canary = Canary::new();
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("token"), "t").unwrap();
    let source = source.path().display().to_string();
    for road in roads(&canary.path("empty")) {
        for destination in ["/vol", "/vol/a/b", "/a/../vol/x", "/../../vol/y"] {
            let bundle = Bundle::new("echo ran").mount(destination, "bind", &source, &["rbind"]);
            link(&bundle, &road, "vol");
            let outcome = attempt(bed, &bundle);
            canary.assert_untouched(&format!("{road:?} {destination} {outcome:?}"));
            assert!(outcome.is_ok() || road.starts_with("/proc"), "{road:?} {destination} {outcome:?}");
        }
    }
    for destination in ["/proc/self/root/x", "/proc/self/cwd/x", "/proc/1/root/canary", "/dev/fd/7"] {
        let bundle = Bundle::new("echo ran").mount(destination, "bind", &source, &["rbind"]);
        let outcome = attempt(bed, &bundle);
        canary.assert_untouched(destination);
        assert!(outcome.is_err() || destination == "/dev/fd/7", "{destination}: {outcome:?}");
    }
}

fn over_proc(bed: &Bed) {
    let fake = tempfile::tempdir().unwrap();
    let source = fake.path().display().to_string();
    for destination in ["/proc", "/proc/self/attr", "/proc/1", "/proc/sys", "/proc/./sys/../sys/kernel", "/x/../proc/sys", "//proc//sys"] {
        for (fstype, options) in [("bind", &["rbind"][..]), ("tmpfs", &[])] {
            let bundle = Bundle::new("echo ran").mount(destination, fstype, &source, options);
            let sentence = attempt(bed, &bundle).unwrap_err();
            assert!(sentence.contains("proc"), "{destination}: {sentence}");
        }
    }
    // By a link of the image's: what is seen there is procfs all the same.
    let bundle = Bundle::new("echo ran").mount("/innocent", "bind", &source, &["rbind"]);
    link(&bundle, Path::new("/proc/sys"), "innocent");
    let sentence = attempt(bed, &bundle).unwrap_err();
    assert!(sentence.contains("not what it should be"), "{sentence}");
    // Single files may be covered, as LXCFS does.
    std::fs::write(fake.path().join("uptime"), "covered\n").unwrap();
    let file = fake.path().join("uptime").display().to_string();
    assert_eq!(Bundle::new("cat /proc/uptime").mount("/proc/uptime", "bind", &file, &["rbind"]).output(bed), "covered\n");
}

fn masked_links(bed: &Bed) {
    let canary = Canary::new();
    let bundle = Bundle::new("cat /secret/x /keys 2>&1 | head -c 100; cat /real; echo end; cat /proc/sys/kernel/core_pattern > /dev/null")
        .with("/linux/maskedPaths", json!(["/secret", "/keys", "/loop", "/up"]))
        .with("/linux/readonlyPaths", json!(["/loop2", "/up"]));
    std::fs::create_dir(bundle.root().join("kept")).unwrap();
    std::fs::write(bundle.root().join("kept/x"), "hidden\n").unwrap();
    std::fs::write(bundle.root().join("real"), "shown\n").unwrap();
    link(&bundle, Path::new("/kept"), "secret");
    link(&bundle, Path::new("nosuch"), "keys");
    link(&bundle, &Path::new("../../../../..").join(canary.path("secret").strip_prefix("/").unwrap()), "up");
    let output = attempt(bed, &bundle).unwrap();
    assert!(!output.contains("hidden") && output.contains("shown\nend"), "{output}");
    // A mask that cannot be laid is fatal.
    link(&bundle, Path::new("loop"), "loop");
    let sentence = attempt(bed, &bundle).unwrap_err();
    assert!(sentence.starts_with("linux.maskedPaths: mask \"/loop\""), "{sentence}");
    canary.assert_untouched("masks");
}

fn working_directories(bed: &Bed) {
    let numbers = (3..40).flat_map(|n| [format!("/proc/self/fd/{n}"), format!("/proc/self/fd/{n}/../.."), format!("/proc/1/fd/{n}")]);
    for directory in numbers.chain(["/link".to_owned()]) {
        let bundle = Bundle::new("pwd; ls .").with("/process/cwd", json!(directory));
        link(&bundle, Path::new("/proc/self/fd/9"), "link");
        let outcome = attempt(bed, &bundle);
        assert!(outcome.is_err(), "{directory}: {outcome:?}");
    }
    let inside = Bundle::new("sleep 1000");
    let mut init = inside.start(bed);
    init.ready();
    init.go();
    for number in 3..12 {
        for directory in [format!("/proc/self/fd/{number}"), format!("/proc/self/fd/{number}/..")] {
            let joined = inside.join(bed, &init, json!({"cwd": directory}), false).unwrap().finish();
            assert!(joined.is_err(), "{directory}: {joined:?}");
        }
    }
    init.kill();
    for directory in ["/proc/self/cwd", "/proc/self/root"] {
        assert!(attempt(bed, &Bundle::new("pwd").with("/process/cwd", json!(directory))).is_err(), "{directory}");
    }
    assert_eq!(attempt(bed, &Bundle::new("pwd").with("/process/cwd", json!("/../../.."))), Ok("/\n".to_owned()));
}

fn programs(bed: &Bed) {
    for number in 3..20 {
        let program = format!("/proc/self/fd/{number}/../../../bin/busybox");
        assert!(attempt(bed, &Bundle::new("").with("/process/args", json!([program, "echo", "ran"]))).is_err(), "{program}");
    }
    // The shim's own program must not be what is run.
    let bundle = Bundle::new("").with("/process/args", json!(["/proc/self/exe", "--list"]));
    let outcome = attempt(bed, &bundle);
    assert!(!outcome.clone().unwrap_or_default().contains("passed"), "{outcome:?}");
}

fn devices(bed: &Bed) {
    let canary = Canary::new();
    for road in roads(&canary.path("empty")) {
        let device =
            json!([{"path": "/vol/x", "type": "c", "major": 1, "minor": 3}, {"path": "/vol/d/y", "type": "p", "major": 0, "minor": 0}]);
        let bundle = Bundle::new("echo ran").with("/linux/devices", device);
        link(&bundle, &road, "vol");
        let outcome = attempt(bed, &bundle);
        canary.assert_untouched(&format!("{road:?} {outcome:?}"));
    }
}
