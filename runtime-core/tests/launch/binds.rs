//! Binds and other mounts of the host's, compared with what runc and crun make of them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use runtime_core::kernel::Features;
use runtime_core::plan::Step;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount};
use serde_json::json;

use super::bed::{Bed, Bundle, Test, ways};
use super::users;

pub const TESTS: &[Test] = &[
    ("binds: which flags of the source stay", flags),
    ("binds: flags that a user namespace locks", locked_flags),
    ("binds: what is no option of theirs is refused", unknown_options),
    ("a mount namespace that is mounted below a source is left out", pinned),
    ("a mount namespace that is mounted below the root is left out", pinned_root),
    ("binds of what the container itself has", own),
    ("fifteen hundred mounts with 256 descriptors", many),
    ("more mounts than there are numbers", too_many),
    ("overlay and devices by paths of the host", of_host),
    ("cgroup v2 in a user namespace without a cgroup namespace", hosts_cgroups),
    ("shared binds in a user namespace", shared_in_user_namespace),
    ("a tmpfs says the mode that it has", tmpfs_mode),
];

/// A mount in the tests' own mount namespace, private. It is of a directory on disk: before Linux 6.3 a tmpfs cannot be idmapped.
struct Volume {
    directory: tempfile::TempDir,
    below: Vec<PathBuf>,
}

impl Volume {
    fn new(flags: MountFlags) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(directory.path().join("which"), "host\n").unwrap();
        fs::create_dir(directory.path().join("sub")).unwrap();
        mount_bind(directory.path(), directory.path()).unwrap();
        mount_change(directory.path(), MountPropagationFlags::PRIVATE).unwrap();
        rustix::mount::mount_remount(directory.path(), MountFlags::BIND | flags, c"").unwrap();
        Self { directory, below: Vec::new() }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn source(&self) -> String {
        self.path().display().to_string()
    }

    /// Mounts a mount namespace below, as snapd does. Linux 6.18 refuses that by chance.
    fn pin(&mut self) {
        let file = self.path().join("sub/mnt");
        fs::write(&file, "").unwrap();
        let mut unshare = std::process::Command::new("unshare");
        unshare.args(["--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 1000"]).stdout(std::process::Stdio::piped());
        for _ in 0..1000 {
            let mut child = unshare.spawn().unwrap();
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
            let pinned = mount_bind(format!("/proc/{}/ns/mnt", child.id()), &file);
            child.kill().unwrap();
            child.wait().unwrap();
            if pinned.is_ok() {
                return self.below.push(file);
            }
        }
        panic!("no mount namespace could be mounted");
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.below.iter().for_each(|path| unmount(path, UnmountFlags::DETACH).unwrap());
        unmount(self.path(), UnmountFlags::DETACH).unwrap();
    }
}

/// The options of what is mounted at `/b`.
const OPTIONS: &str = "while read a b c d point options rest; do test $point = /b && echo $options; done < /proc/self/mountinfo; true";

fn flags(bed: &Bed) {
    let all = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let of = |flags, options: &[&str]| {
        let volume = Volume::new(flags);
        let output = Bundle::new(OPTIONS).mount("/b", "bind", &volume.source(), options).output(bed);
        output.trim().to_owned()
    };
    for (source, options, expected) in [
        (all, &["bind"] as &[&str], "rw,nosuid,nodev,noexec,relatime"),
        (all, &["rbind", "rprivate", "remount", "defaults"], "rw,nosuid,nodev,noexec,relatime"),
        (all, &["rbind", "rprivate", "rw"], "rw,relatime"),
        (all, &["bind", "ro"], "ro,relatime"),
        (all, &["bind", "dev"], "rw,relatime"),
        (all, &["bind", "sync"], "rw,relatime"),
        (all, &["bind", "rro"], "ro,nosuid,nodev,noexec,relatime"),
        (MountFlags::RDONLY, &["bind", "nosuid", "nodev"], "rw,nosuid,nodev,relatime"),
        (MountFlags::NOATIME | MountFlags::NODIRATIME, &["bind", "ro"], "ro,noatime,nodiratime"),
        (MountFlags::NOATIME | MountFlags::NODIRATIME, &["bind", "atime"], "rw,noatime,nodiratime"),
        (MountFlags::NOATIME | MountFlags::NODIRATIME, &["bind", "relatime"], "rw,relatime"),
        (MountFlags::empty(), &["bind", "nodiratime"], "rw,nodiratime,relatime"),
        (MountFlags::empty(), &["bind", "strictatime"], "rw"),
    ] {
        assert_eq!(of(source, options), expected, "source {source:?}, {options:?}");
    }
}

fn locked_flags(bed: &Bed) {
    let of = |flags, options: &[&str]| {
        let volume = Volume::new(flags);
        let bundle = users::bundle(OPTIONS).mount("/b", "bind", &volume.source(), options);
        let (compiled, report, output) = bundle.compile().unwrap();
        bed.launch(compiled, report, output).finish().map(|output| output.trim().to_owned())
    };
    let all = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for (source, options, expected) in [
        (all, &["rbind", "rprivate", "rw"] as &[&str], "rw,nosuid,nodev,noexec,relatime"),
        (all, &["bind", "ro"], "ro,nosuid,nodev,noexec,relatime"),
        (MountFlags::RDONLY, &["bind", "nosuid", "nodev"], "ro,nosuid,nodev,relatime"),
        (MountFlags::NODEV | MountFlags::NOATIME, &["bind", "ro", "exec"], "ro,nodev,noatime"),
        (MountFlags::empty(), &["bind", "noexec"], "rw,noexec,relatime"),
    ] {
        assert_eq!(of(source, options).unwrap(), expected, "source {source:?}, {options:?}");
    }
    for (source, options, why) in [
        (all, &["bind", "exec", "dev"], "clear nodev|noexec: the user namespace locks what the source has of it"),
        (MountFlags::RDONLY, &["bind", "rw"], "clear ro: the user namespace locks what the source has of it"),
        (all, &["bind", "strictatime"], "the user namespace locks the source's access times"),
    ] as [(_, &[&str], &str); 3]
    {
        let failure = of(source, options).unwrap_err();
        let sentence = failure.starts_with("flags of bind ") && failure.ends_with(&format!(" at \"/b\": {why}: operation not permitted"));
        assert!(sentence, "{failure}");
    }
}

fn unknown_options(_: &Bed) {
    for option in ["readonly", "nofail", "idmap=uids=0-1-10", "size=5", "mode=755", "RO"] {
        let failure = Bundle::new("").mount("/b", "bind", "/usr", &["rbind", option]).compile().err().unwrap().to_string();
        assert_eq!(failure, format!("mounts[\"/b\"]: option {option:?}: a bind has no options of a filesystem"));
    }
    let failure = Bundle::new("").mount("/x", "ext4", "/x.img", &["loop"]).compile().err().unwrap().to_string();
    assert!(failure.contains("loop/direct-io"), "{failure}");
}

fn pinned(bed: &Bed) {
    let mut volume = Volume::new(MountFlags::empty());
    volume.pin();
    let hooks = json!({"createRuntime": [{"path": "/bin/true"}]});
    let map = json!([{"containerID": 0, "hostID": 5000, "size": 10}]);
    let plain = || Bundle::new("cat /b/which; ls /b/sub; grep -c nsfs /proc/self/mountinfo; true");
    let in_user = || users::bundle("cat /b/which; ls /b/sub; grep -c nsfs /proc/self/mountinfo; true");
    let mut without_pivot = plain();
    without_pivot.no_pivot_root = true;
    let mut idmapped = plain().mount("/b", "bind", &volume.source(), &["rbind", "ridmap"]);
    let last = idmapped.spec["mounts"].as_array().unwrap().len() - 1;
    (idmapped.spec["mounts"][last]["uidMappings"], idmapped.spec["mounts"][last]["gidMappings"]) = (map.clone(), map);
    let bind = |bundle: Bundle, options: &[&str]| bundle.mount("/b", "bind", &volume.source(), options);
    let all = [
        bind(plain(), &["rbind"]),
        bind(plain(), &["rbind", "rprivate", "rro"]),
        bind(plain().with("/linux/rootfsPropagation", json!("rshared")), &["rbind", "rshared"]),
        bind(plain().with("/hooks", hooks.clone()), &["rbind", "rslave"]),
        bind(plain().with("/hooks", hooks), &["rbind", "rprivate"]),
        bind(without_pivot, &["rbind"]),
        bind(in_user(), &["rbind"]),
        bind(in_user(), &["rbind", "rprivate", "ro"]),
        idmapped,
    ];
    // Linux 6.18 refuses by chance.
    for (index, bundle) in all.iter().enumerate().chain(all.iter().enumerate()) {
        let (compiled, report, output) = bundle.compile().unwrap();
        let output = bed.launch(compiled, report, output).finish();
        assert_eq!(output.as_deref(), Ok("host\nmnt\n0\n"), "case {index}");
    }
    // The file itself: what is under it; a namespace of another kind: that.
    let (file, net) = (volume.path().join("sub/mnt").display().to_string(), volume.path().join("sub/net"));
    fs::write(&net, "").unwrap();
    mount_bind("/proc/self/ns/net", &net).unwrap();
    volume.below.push(net.clone());
    for option in ["bind", "rbind"] {
        let bundle = Bundle::new("wc -c < /file; grep -o ' net:.* /net ' /proc/self/mountinfo; grep -c nsfs /proc/self/mountinfo")
            .mount("/file", "bind", &file, &[option, "rprivate"])
            .mount("/net", "bind", &net.display().to_string(), &[option]);
        let own = fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
        assert_eq!(bundle.output(bed), format!("0\n {own} /net \n1\n"));
    }
}

fn pinned_root(bed: &Bed) {
    let mut volume = Volume::new(MountFlags::empty());
    super::bed::fill(volume.path());
    volume.pin();
    let bundle = Bundle::new("cat /which; grep -c nsfs /proc/self/mountinfo; true").with("/root/path", json!(volume.source()));
    assert_eq!(bundle.output(bed), "host\n0\n");
}

fn own(bed: &Bed) {
    let volume = Volume::new(MountFlags::empty());
    fs::write(volume.path().join("sub/inner"), "").unwrap();
    for in_user_namespace in [false, true] {
        let script = "cat /two/which /three/which; ls /three/sub; touch /two/x 2>&1; cat /link/file; ls /tree/deep";
        let bundle = if in_user_namespace { users::bundle(script) } else { Bundle::new(script) };
        let root = bundle.root();
        let at = |path: &str| root.join(path).display().to_string();
        fs::create_dir(root.join("image")).unwrap();
        fs::write(root.join("image/file"), "of the image\n").unwrap();
        std::os::unix::fs::symlink("/image", root.join("to-image")).unwrap();
        let owner = in_user_namespace.then_some(users::FIRST);
        chown(root.join("image"), owner, owner).unwrap();
        let bundle = bundle
            .mount("/one", "bind", &volume.source(), &["bind"])
            .mount("/two", "bind", &at("one"), &["bind", "ro"])
            // The destination is the host's name of one of the container's.
            .mount(&at("three"), "bind", "./rootfs/x/../one/", &["bind"])
            .mount("/link", "bind", &at("to-image"), &["rbind"])
            .mount("/up/deep", "tmpfs", "tmpfs", &[])
            .mount("/up/deep/file", "bind", "/etc/passwd", &["bind"])
            .mount("/tree", "bind", &at("up"), &["rbind", "rprivate"]);
        assert_eq!(bundle.output(bed), "host\nhost\ninner\ntouch: /two/x: Read-only file system\nof the image\nfile\n");
        let failure = bundle.mount("/never", "bind", &at("nosuch"), &["bind"]).failure(bed);
        assert_eq!(failure, "bind \"/nosuch\" of the container at \"/never\": no such file or directory");
    }
}

fn many(bed: &Bed) {
    let volume = Volume::new(MountFlags::empty());
    let map = json!([{"containerID": 0, "hostID": 5000, "size": 10}]);
    let script = "ls /m | wc -l; cat /m/7/which /m/1499/which 2>/dev/null; ulimit -Sn; ulimit -Hn";
    let with = |mut bundle: Bundle, count: usize, fstype: &str, options: &[&str], idmapped: bool| {
        for index in 0..count {
            let mut entry = json!({"destination": format!("/m/{index}"), "type": fstype, "source": volume.source(), "options": options});
            if idmapped {
                (entry["uidMappings"], entry["gidMappings"]) = (map.clone(), map.clone());
            }
            bundle.spec["mounts"].as_array_mut().unwrap().push(entry);
        }
        std::os::unix::fs::symlink("busybox", bundle.root().join("bin/wc")).unwrap();
        bundle
    };
    let run = |bundle: Bundle| {
        let (mut compiled, report, output) = bundle.compile().unwrap();
        compiled.launch.plan.steps.insert(0, Step::Rlimit { resource: libc::RLIMIT_NOFILE, soft: 200, hard: 256 });
        bed.launch(compiled, report, output).finish().unwrap()
    };
    let hosts = "host\nhost\n";
    for (bundle, expected) in [
        (with(Bundle::new(script), 1500, "bind", &["bind", "rprivate"], false), hosts),
        (with(Bundle::new(script), 1500, "bind", &["rbind"], false), hosts),
        (with(Bundle::new(script), 1500, "tmpfs", &[], false), ""),
        (with(Bundle::new(script), 1500, "bind", &["bind", "rprivate"], true), hosts),
        (with(users::bundle(script), 1500, "bind", &["bind", "rprivate", "ro"], false), hosts),
    ] {
        assert_eq!(run(bundle), format!("1500\n{expected}200\n256\n"));
    }
    let limits = json!([{"type": "RLIMIT_NOFILE", "soft": 20, "hard": 30}]);
    let bundle = with(Bundle::new("ulimit -Sn; ulimit -Hn"), 300, "bind", &["bind", "rprivate"], false);
    assert_eq!(run(bundle.with("/process/rlimits", limits)), "20\n30\n");
    // A source that is not there is told of as ever.
    let failure = with(Bundle::new(""), 100, "bind", &["bind"], false).mount("/x", "bind", "/nosuch", &["bind", "rprivate"]).failure(bed);
    assert_eq!(failure, "bind \"/nosuch\" at \"/x\": no such file or directory");
}

fn too_many(_: &Bed) {
    let mut bundle = Bundle::new("");
    let mounts = bundle.spec["mounts"].as_array_mut().unwrap();
    mounts.extend((0..70_000).map(|index| json!({"destination": format!("/m/{index}"), "type": "tmpfs", "source": "tmpfs"})));
    let failure = bundle.compile().err().unwrap().to_string();
    assert!(failure.starts_with("mounts, devices, paths: ") && failure.ends_with("to start, 65535 are the most"), "{failure}");
}

fn of_host(bed: &Bed) {
    let snapshots = tempfile::tempdir().unwrap();
    let deep = snapshots.path().join("d".repeat(200)).join("e".repeat(100));
    for one_by_one in ways(Features::get().layers_one_by_one) {
        for (at, in_user_namespace) in [(snapshots.path(), false), (deep.as_path(), false), (snapshots.path(), true)] {
            let owner = in_user_namespace.then_some(users::FIRST);
            for part in ["l", "u", "w"] {
                let _ = fs::remove_dir_all(at.join(part));
                fs::create_dir_all(at.join(part)).unwrap();
                chown(at.join(part), owner, owner).unwrap();
            }
            fs::write(at.join("l/f"), "low\n").unwrap();
            let options = [
                format!("lowerdir={}", at.join("l").display()),
                format!("upperdir={}", at.join("u").display()),
                format!("workdir={}", at.join("w").display()),
                "private".to_owned(),
                "nodev".to_owned(),
            ];
            let script = "cat /ov/f; echo up > /ov/g; grep -c ' /ov rw,nodev,' /proc/self/mountinfo";
            let mut bundle = if in_user_namespace { users::bundle(script) } else { Bundle::new(script) };
            bundle.kernel.layers_one_by_one &= one_by_one;
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            let bundle = bundle.mount("/ov", "overlay", "overlay", &options);
            assert_eq!(bundle.output(bed), "low\n1\n", "one by one {one_by_one}, user namespace {in_user_namespace}");
            assert_eq!(fs::read_to_string(at.join("u/g")).unwrap(), "up\n");
        }
    }
    let failure = Bundle::new("").mount("/x", "ext4", "/nosuch/device", &[]).failure(bed);
    assert!(failure.starts_with("mount ext4 at \"/x\": create") && failure.contains("nosuch"), "{failure}");
    let failure = Bundle::new("").mount("/x", "tmpfs", "tmpfs", &["nofail"]).failure(bed);
    assert!(failure.starts_with("mount tmpfs at \"/x\": option \"nofail\""), "{failure}");
}

fn hosts_cgroups(bed: &Bed) {
    // Where the host has version 2 alone it is there.
    let covered = !Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if covered {
        mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MountFlags::empty(), None).unwrap();
    }
    let script = "ls -d /sys/fs/cgroup/cgroup.procs; touch /sys/fs/cgroup/x 2>&1; grep -c ' - cgroup2 ' /proc/self/mountinfo";
    let bundle = users::bundle(script).mount("/sys/fs/cgroup", "cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]);
    let (compiled, report, output) = bundle.compile().unwrap();
    let output = bed.launch(compiled, report, output).finish();
    if covered {
        unmount("/sys/fs/cgroup", UnmountFlags::DETACH).unwrap();
    }
    assert_eq!(output.as_deref(), Ok("/sys/fs/cgroup/cgroup.procs\ntouch: /sys/fs/cgroup/x: Read-only file system\n1\n"));
}

fn shared_in_user_namespace(bed: &Bed) {
    let volume = Volume::new(MountFlags::empty());
    mount_change(volume.path(), MountPropagationFlags::SHARED).unwrap();
    let field = "while read a b c d point options rest; do test $point = /b && echo $rest; done < /proc/self/mountinfo; true";
    for (option, shared, follows) in [("rshared", true, true), ("rslave", false, true), ("rprivate", false, false)] {
        let bundle = users::bundle(field).mount("/b", "bind", &volume.source(), &["rbind", option]);
        let output = bundle.output(bed);
        assert_eq!((output.contains("shared:"), output.contains("master:")), (shared, follows), "{option}: {output}");
    }
}

fn tmpfs_mode(bed: &Bed) {
    let script = "stat -c %a /closed; grep ' /closed ' /proc/self/mountinfo | grep -c mode=710; stat -c %a /set; grep -c mode=1777 /proc/self/mountinfo; true";
    let bundle = Bundle::new(script)
        .mount("/closed", "tmpfs", "tmpfs", &["nodev"])
        .mount("/set", "tmpfs", "tmpfs", &["mode=1500"])
        .without_mount("/dev");
    for name in ["closed", "set"] {
        fs::create_dir(bundle.root().join(name)).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o710);
        fs::set_permissions(bundle.root().join(name), mode).unwrap();
    }
    assert_eq!(bundle.output(bed), "710\n1\n1500\n0\n");
}
