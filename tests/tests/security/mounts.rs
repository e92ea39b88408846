//! Mounts from inside the container and from the host: what binds get of their source's flags and send back, and what is no plain bind.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proto::api::Mount;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount};
use serde_json::{Value, json};
use tests::bed::{Bed, refused};
use tests::bundle::{self, Bundle, process};
use tests::command;
use tests::hand::Hand;
use tests::requests::create_request;
use tests::{Context, Result, ensure, ensure_eq, proc};

/// Where the host's root of a user namespace is.
const FIRST: u32 = 1_000_000;
/// The options of the mount at `/v`, then its optional fields.
const OPTIONS: &str = "while read a b c d point options rest; do test $point = /v && echo $options; done </proc/self/mountinfo; true";
const PROPAGATION: &str =
    "while read a b c d point options rest; do test $point = /v && echo ${rest%%- *}; done </proc/self/mountinfo; true";
const HARDENED: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// What is done to a bundle before its container runs.
type Change<'a> = &'a dyn Fn(&mut Bundle) -> Result<()>;

/// A filesystem of the host's with a file `which` and a directory `sub`, gone at the end with what is mounted below.
struct Volume(PathBuf);

impl Volume {
    fn new(bed: &Bed<'_>, name: &str, flags: MountFlags) -> Result<Volume> {
        let path = bed.data().join(name);
        fs::create_dir_all(&path)?;
        mount("volume", &path, "tmpfs", flags - MountFlags::RDONLY, c"mode=755")?;
        let volume = Volume(path);
        mount_change(&volume.0, MountPropagationFlags::PRIVATE)?;
        fs::create_dir(volume.0.join("sub"))?;
        fs::write(volume.0.join("which"), "host\n")?;
        if flags.contains(MountFlags::RDONLY) {
            mount_remount(&volume.0, MountFlags::BIND | flags, c"")?;
        }
        Ok(volume)
    }

    fn source(&self) -> String {
        self.0.display().to_string()
    }

    /// What is mounted on it and below, in the host's own table.
    fn mounted(&self) -> Vec<String> {
        proc::mounts().into_iter().map(|mount| mount.target.display().to_string()).filter(|path| path.starts_with(&self.source())).collect()
    }

    /// Mounts a mount namespace below, as snapd does. The kernel refuses that by chance: its number must be above the reader's own.
    fn pin(&self) -> Result<()> {
        let file = self.0.join("sub/mnt");
        fs::write(&file, "")?;
        for _ in 0..1000 {
            let mut unshare = Command::new("unshare");
            unshare.args(["--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 1000"]).stdout(Stdio::piped());
            let mut child = unshare.spawn()?;
            let up = child.stdout.take().context(|| "no stdout".to_owned())?.read_exact(&mut [0]);
            let pinned = mount_bind(format!("/proc/{}/ns/mnt", child.id()), &file);
            child.kill()?;
            child.wait()?;
            up?;
            if pinned.is_ok() {
                return Ok(());
            }
        }
        tests::fail!("no mount namespace could be mounted")
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        for path in self.mounted().iter().rev() {
            let _ = unmount(path, UnmountFlags::DETACH);
        }
    }
}

fn add(spec: &mut Value, destination: &str, fstype: &str, source: &str, options: &[&str]) {
    let entry = json!({"destination": destination, "type": fstype, "source": source, "options": options});
    spec["mounts"].as_array_mut().into_iter().for_each(|mounts| mounts.push(entry.clone()));
}

/// What a script prints in a container with this one mount at `/v`.
fn with_bind(
    bed: &mut Bed<'_>,
    name: &str,
    script: &str,
    source: &str,
    options: &[&str],
    change: impl Fn(&mut Bundle) -> Result<()>,
) -> Result<String> {
    let mut bundle = bed.bundle(name, &["sh", "-c", script])?;
    change(&mut bundle)?;
    bundle.edit(|spec| add(spec, "/v", "bind", source, options))?;
    let ran = bed.ran(&bundle)?;
    ensure!(ran.status == 0, "{options:?}: {ran:?}");
    Ok(ran.stdout.trim_end().to_owned())
}

fn unchanged(_: &mut Bundle) -> Result<()> {
    Ok(())
}

fn mapped(bundle: &mut Bundle) -> Result<()> {
    bundle.map_users(FIRST)
}

/// runc#4855: only where the root is to be shared does the host get what a container mounts.
pub fn the_host_gets_no_mounts(bed: &mut Bed<'_>) -> Result<()> {
    let rows: [(&str, Option<&str>, bool, bool); 6] = [
        ("rshared", None, false, false),
        ("rshared", Some("rslave"), false, false),
        ("rshared", Some("rprivate"), false, false),
        ("rshared", Some("rshared"), false, true),
        ("rslave", Some("rshared"), false, false),
        ("rshared", None, true, false),
    ];
    for (number, (option, root, in_user_namespace, expected)) in rows.into_iter().enumerate() {
        let volume = Volume::new(bed, &format!("v{number}"), MountFlags::empty())?;
        mount_change(&volume.0, MountPropagationFlags::SHARED)?;
        let mut bundle =
            bed.bundle(&format!("c{number}"), &["sh", "-c", "mount -t tmpfs inner /v/sub && echo mounted && exec sleep 1000"])?;
        if in_user_namespace {
            bundle.map_users(FIRST)?;
        }
        bundle.edit(|spec| {
            add(spec, "/v", "bind", &volume.source(), &["rbind", option]);
            spec["linux"]["rootfsPropagation"] = json!(root);
            for set in spec["process"]["capabilities"].as_object_mut().into_iter().flat_map(|sets| sets.values_mut()) {
                set.as_array_mut().into_iter().for_each(|set| set.push(json!("CAP_SYS_ADMIN")));
            }
        })?;
        bed.running(&bundle)?;
        let up = || bed.output(&bundle).is_ok_and(|(out, _)| out == "mounted\n");
        tests::containerd::eventually("it has mounted", crate::SOON, up)?;
        let seen = volume.mounted().len() > 1;
        bed.end(&bundle)?;
        ensure_eq!(seen, expected, "{option}, root {root:?}, user namespace {in_user_namespace}: the host has the container's mount");
    }
    Ok(())
}

/// crun#2262: a mount namespace is pinned below what is bound.
pub fn a_pinned_mount_namespace_is_left_out(bed: &mut Bed<'_>) -> Result<()> {
    let volume = Volume::new(bed, "v", MountFlags::empty())?;
    volume.pin()?;
    let hook = json!({"createRuntime": [{"path": "/bin/true"}]});
    let hooked = |bundle: &mut Bundle| bundle.edit(|spec| spec["hooks"] = hook.clone());
    let both = |bundle: &mut Bundle| mapped(bundle).and_then(|()| hooked(bundle));
    let changes: [(&str, Change<'_>); 4] =
        [("plain", &unchanged), ("hooks", &hooked), ("user namespace", &mapped), ("user namespace and hooks", &both)];
    let mut number = 0;
    for (name, change) in changes {
        for options in [&["rbind"] as &[&str], &["rbind", "rprivate"], &["rbind", "rslave", "rro"]] {
            number += 1;
            let script = "cat /v/which; ls /v/sub; grep -c nsfs /proc/self/mountinfo; true";
            let seen = with_bind(bed, &format!("c{number}"), script, &volume.source(), options, change)?;
            ensure_eq!(seen, "host\nmnt\n0", "{name}, {options:?}");
        }
    }
    Ok(())
}

/// runc#5177: more binds than the caller may have descriptors, and the program has its own limit.
pub fn fifteen_hundred_binds(bed: &mut Bed<'_>) -> Result<()> {
    let volume = Volume::new(bed, "v", MountFlags::empty())?;
    bed.call_by(|command| {
        let mut limited = Command::new("prlimit");
        limited.arg("--nofile=1024:20000").arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => limited.env(key, value),
                None => limited.env_remove(key),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            limited.current_dir(dir);
        }
        limited
    });
    for (name, in_user_namespace, options) in
        [("a", false, &["bind", "rprivate"] as &[&str]), ("b", false, &["rbind"]), ("c", true, &["rbind", "rprivate", "ro"])]
    {
        let mut bundle = bed.bundle(name, &["sh", "-c", "ls /m | wc -l; cat /m/1499/which; ulimit -Sn; ulimit -Hn"])?;
        if in_user_namespace {
            bundle.map_users(FIRST)?;
        }
        bundle.edit(|spec| {
            (0..1500).for_each(|index| add(spec, &format!("/m/{index}"), "bind", &volume.source(), options));
            spec["process"]["rlimits"] = json!([]);
        })?;
        let ran = bed.ran(&bundle)?;
        ensure_eq!(ran.stdout, "1500\nhost\n1024\n20000\n", "{options:?}, user namespace {in_user_namespace}: {ran:?}");
    }
    let mut bundle = bed.bundle("d", &["sh", "-c", "ulimit -Sn; ulimit -Hn"])?;
    bundle.edit(|spec| {
        (0..1500).for_each(|index| add(spec, &format!("/m/{index}"), "bind", &volume.source(), &["bind"]));
        spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 20, "hard": 30}]);
    })?;
    ensure_eq!(bed.ran(&bundle)?.stdout, "20\n30\n", "limits of the specification");
    Ok(())
}

/// runc#3990: what is no option of a bind is no typing error to pass by.
pub fn unknown_options_of_binds(bed: &mut Bed<'_>) -> Result<()> {
    let volume = Volume::new(bed, "v", MountFlags::empty())?;
    for (number, option) in
        ["readonly", "RO", "idmap=uids=0-1-10", "size=5", "mode=755", "nofail", "ro,nosuid", "ro "].into_iter().enumerate()
    {
        let ran = with_bind(bed, &format!("c{number}"), "touch /v/written", &volume.source(), &["rbind", option], unchanged);
        refused(ran, option.trim())?;
        ensure!(!volume.0.join("written").exists(), "{option:?} was written through");
    }
    Ok(())
}

pub fn flags_of_the_source(bed: &mut Bed<'_>) -> Result<()> {
    let rows: [(MountFlags, &[&str], &str); 11] = [
        (HARDENED, &["bind"], "rw,nosuid,nodev,noexec,relatime"),
        (HARDENED, &["rbind", "rprivate"], "rw,nosuid,nodev,noexec,relatime"),
        (HARDENED, &["bind", "rw"], "rw,relatime"),
        (HARDENED, &["rbind", "rprivate", "rw"], "rw,relatime"),
        (HARDENED, &["bind", "ro"], "ro,relatime"),
        (HARDENED, &["bind", "exec"], "rw,relatime"),
        (HARDENED, &["bind", "nosuid", "nodev"], "rw,nosuid,nodev,relatime"),
        (MountFlags::RDONLY, &["bind"], "ro,relatime"),
        (MountFlags::RDONLY, &["bind", "nosuid", "nodev"], "rw,nosuid,nodev,relatime"),
        (MountFlags::RDONLY, &["bind", "rw"], "rw,relatime"),
        (MountFlags::NOATIME, &["bind", "ro"], "ro,noatime"),
    ];
    for (number, (flags, options, expected)) in rows.into_iter().enumerate() {
        let volume = Volume::new(bed, &format!("v{number}"), flags)?;
        let seen = with_bind(bed, &format!("c{number}"), OPTIONS, &volume.source(), options, unchanged)?;
        ensure_eq!(seen, expected, "source {flags:?}, {options:?}");
    }
    Ok(())
}

/// What a user namespace locks stays, and to ask for its end by name is refused.
pub fn flags_that_a_user_namespace_locks(bed: &mut Bed<'_>) -> Result<()> {
    let rows: [(MountFlags, &[&str], Option<&str>); 8] = [
        (HARDENED, &["bind"], Some("rw,nosuid,nodev,noexec,relatime")),
        (HARDENED, &["rbind", "rprivate", "rw"], Some("rw,nosuid,nodev,noexec,relatime")),
        (HARDENED, &["bind", "ro"], Some("ro,nosuid,nodev,noexec,relatime")),
        (HARDENED, &["bind", "exec"], None),
        (HARDENED, &["bind", "suid"], None),
        (MountFlags::RDONLY, &["bind", "rw"], None),
        (MountFlags::RDONLY, &["bind", "nosuid", "nodev"], Some("ro,nosuid,nodev,relatime")),
        (MountFlags::empty(), &["bind", "noexec"], Some("rw,noexec,relatime")),
    ];
    for (number, (flags, options, expected)) in rows.into_iter().enumerate() {
        let volume = Volume::new(bed, &format!("v{number}"), flags)?;
        let seen = with_bind(bed, &format!("c{number}"), OPTIONS, &volume.source(), options, mapped);
        match expected {
            Some(expected) => ensure_eq!(seen?, expected, "source {flags:?}, {options:?}"),
            None => refused(seen, "operation not permitted").context(|| format!("source {flags:?}, {options:?}"))?,
        }
    }
    Ok(())
}

/// Podman's `:O` volumes and containerd's image volumes.
pub fn overlays_of_the_host(bed: &mut Bed<'_>) -> Result<()> {
    for (name, in_user_namespace) in [("a", false), ("b", true)] {
        let at = bed.data().join(format!("layers-{name}"));
        let owner = in_user_namespace.then_some(FIRST);
        for part in ["l", "u", "w"] {
            fs::create_dir_all(at.join(part))?;
            std::os::unix::fs::chown(at.join(part), owner, owner)?;
        }
        fs::write(at.join("l/f"), "low\n")?;
        let options = ["lowerdir", "upperdir", "workdir"].map(|key| format!("{key}={}", at.join(&key[..1]).display()));
        let mut bundle = bed.bundle(name, &["sh", "-c", "cat /ov/f; echo up >/ov/g; rm /ov/f; ls /ov"])?;
        if in_user_namespace {
            bundle.map_users(FIRST)?;
        }
        bundle.edit(|spec| add(spec, "/ov", "overlay", "overlay", &options.each_ref().map(String::as_str)))?;
        let ran = bed.ran(&bundle)?;
        ensure_eq!(ran.stdout, "low\ng\n", "{ran:?}");
        ensure_eq!(
            (fs::read_to_string(at.join("u/g"))?, fs::read_to_string(at.join("l/f"))?),
            ("up\n".to_owned(), "low\n".to_owned()),
            "layers"
        );
    }
    Ok(())
}

/// A loop device that is free again at the end.
struct Loop(String);

impl Loop {
    fn new(image: &Path) -> Result<Loop> {
        Ok(Loop(command::output(Command::new("losetup").args(["--find", "--show"]).arg(image))?.trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = command::run(Command::new("losetup").args(["--detach", &self.0]));
    }
}

pub fn a_filesystem_of_a_block_device(bed: &mut Bed<'_>) -> Result<()> {
    let image = bed.data().join("image");
    fs::File::create(&image)?.set_len(4 << 20)?;
    command::output(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
    let device = Loop::new(&image)?;
    for (number, options) in [&["rw"] as &[&str], &["ro", "noatime"]].into_iter().enumerate() {
        let script = "touch /disk/file 2>/dev/null; ls -d /disk/lost+found /disk/file; grep ' /disk ' /proc/self/mountinfo | cut -d' ' -f6";
        let mut bundle = bed.bundle(&format!("c{number}"), &["sh", "-c", script])?;
        bundle.edit(|spec| add(spec, "/disk", "ext4", &device.0, options))?;
        let expected = ["rw,relatime", "ro,noatime"][number];
        let ran = bed.ran(&bundle)?;
        ensure_eq!(ran.stdout, format!("/disk/file\n/disk/lost+found\n{expected}\n"), "{ran:?}");
    }
    Ok(())
}

/// The devmapper and blockfile snapshotters' roots: what the container may open is no matter of its own root.
pub fn a_root_of_a_block_device(hand: &mut Hand) -> Result<()> {
    let image = hand.data().join("image");
    fs::File::create(&image)?.set_len(16 << 20)?;
    command::output(Command::new("mkfs.ext4").arg("-q").arg("-d").arg(bundle::system()?).arg(&image))?;
    let mut bundle = hand.bundle("a", &["sh", "-c", "touch /x && stat -f -c %t /; cat /proc/self/cgroup"])?;
    bundle.edit(|spec| spec["linux"]["resources"]["devices"] = json!([{"allow": false, "access": "rwm"}]))?;
    let shim = hand.shim(&bundle)?;
    for by_loop_option in [true, false] {
        let device = if by_loop_option { None } else { Some(Loop::new(&image)?) };
        let mut mount = Mount::new();
        mount.type_ = "ext4".to_owned();
        mount.source = device.as_ref().map_or_else(|| image.display().to_string(), |device| device.0.clone());
        mount.options = if by_loop_option { vec!["loop".to_owned()] } else { Vec::new() };
        let mut request = create_request(&bundle)?;
        request.rootfs = vec![mount];
        let out = hand.data().join("out");
        fs::write(&out, "")?;
        request.stdout = out.display().to_string();
        shim.create(request)?;
        shim.start(&bundle.id, "")?;
        shim.wait(&bundle.id, "")?;
        shim.delete(&bundle.id, "")?;
        let seen = fs::read_to_string(&out)?;
        let own = seen.lines().skip(1).filter(|line| line.contains(&bundle.id)).count();
        ensure!(seen.starts_with("ef53\n") && own > 0, "loop {by_loop_option}: {seen}");
    }
    shim.shutdown(&bundle.id)
}

/// A source in the root filesystem is the container's own, an earlier mount there included.
pub fn binds_of_an_earlier_mount(bed: &mut Bed<'_>) -> Result<()> {
    let volume = Volume::new(bed, "v", MountFlags::empty())?;
    for (name, in_user_namespace) in [("a", false), ("b", true)] {
        let mut bundle = bed.bundle(name, &["sh", "-c", "cat /two/which; touch /two/x 2>&1; cat /three"])?;
        if in_user_namespace {
            bundle.map_users(FIRST)?;
        }
        let root = bundle.dir.join("rootfs").display().to_string();
        bundle.edit(|spec| {
            add(spec, "/one", "bind", &volume.source(), &["bind"]);
            add(spec, "/two", "bind", &format!("{root}/one"), &["rbind", "ro"]);
            add(spec, "/three", "bind", &format!("{root}/two/which"), &["bind"]);
        })?;
        let ran = bed.ran(&bundle)?;
        ensure_eq!(ran.stdout, "host\ntouch: /two/x: Read-only file system\nhost\n", "{ran:?}");
    }
    Ok(())
}

/// A user namespace that is joined has its maps already.
pub fn a_user_namespace_by_a_file(bed: &mut Bed<'_>) -> Result<()> {
    let mut first = bed.bundle("a", &["sleep", "1000"])?;
    first.map_users(FIRST)?;
    let pid = bed.running(&first)?;
    let file = bed.data().join("user");
    fs::write(&file, "")?;
    mount_bind(format!("/proc/{pid}/ns/user"), &file)?;
    let joined = joins(bed, &file);
    unmount(&file, UnmountFlags::DETACH)?;
    bed.end(&first)?;
    joined
}

fn joins(bed: &mut Bed<'_>, file: &Path) -> Result<()> {
    let mut second = bed.bundle("b", &["sh", "-c", "grep . /proc/self/uid_map; id -u; touch /made"])?;
    std::os::unix::fs::chown(second.written(""), Some(FIRST), Some(FIRST))?;
    second.edit(|spec| {
        spec["linux"]["namespaces"].as_array_mut().into_iter().for_each(|list| list.push(json!({"type": "user", "path": file})));
    })?;
    let ran = bed.ran(&second)?;
    ensure_eq!(ran.stdout.split_whitespace().collect::<Vec<_>>(), ["0", "1000000", "65536", "0"], "{ran:?}");
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(second.written("made"))?);
    ensure_eq!(owner, FIRST, "owner of what it made");
    Ok(())
}

pub fn an_empty_namespace_path_is_none(bed: &mut Bed<'_>) -> Result<()> {
    let mut bundle = bed.bundle("a", &["sh", "-c", "for n in pid ipc uts mnt net; do readlink /proc/self/ns/$n; done; exec sleep 1000"])?;
    bundle.edit(|spec| {
        for namespace in spec["linux"]["namespaces"].as_array_mut().into_iter().flatten() {
            namespace["path"] = json!("");
        }
    })?;
    bed.running(&bundle)?;
    tests::containerd::eventually("it has told", crate::SOON, || bed.output(&bundle).is_ok_and(|(out, _)| out.lines().count() == 5))?;
    let (out, _) = bed.output(&bundle)?;
    bed.end(&bundle)?;
    for (kind, inside) in ["pid", "ipc", "uts", "mnt", "net"].into_iter().zip(out.lines()) {
        ensure!(fs::read_link(format!("/proc/self/ns/{kind}"))? != Path::new(inside), "{kind} is the host's");
    }
    Ok(())
}

/// Where links lead, a bind goes, but only inside; and a mount may not cover procfs.
pub fn odd_destinations(bed: &mut Bed<'_>) -> Result<()> {
    let volume = Volume::new(bed, "v", MountFlags::empty())?;
    let outside = bed.data().join("outside");
    fs::create_dir(&outside)?;
    let file = format!("{}/which", volume.source());
    // The link, where it leads, the destination, the source, and what is read there.
    for (number, (link, target, destination, source, read)) in [
        ("l", "/tmp/deep", "/l", volume.source(), "/tmp/deep/which"),
        ("l", "tmp", "/l/sub", volume.source(), "/tmp/sub/which"),
        ("l", &*format!("../../../../..{}", outside.display()), "/l", volume.source(), &*format!("{}/which", outside.display())),
        ("f", "/etc/made", "/f", file.clone(), "/etc/made"),
        ("none", "x", "//etc/./x/../which/", file.clone(), "/etc/which"),
        ("none", "x", "relative/which", file, "/relative/which"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut bundle = bed.bundle(&format!("c{number}"), &["cat", read])?;
        symlink(target, bundle.written(link))?;
        bundle.edit(|spec| add(spec, destination, "bind", &source, &["bind"]))?;
        let ran = bed.ran(&bundle)?;
        ensure_eq!(ran.stdout, "host\n", "{destination} with {link} -> {target}: {ran:?}");
    }
    ensure_eq!(fs::read_dir(&outside)?.count(), 0, "what is in the host's directory");
    for (number, destination) in ["/proc/self", "/proc/self/fd", "/proc/1/attr", "/proc/sys", "/proc/./sys/../self"].into_iter().enumerate()
    {
        let mut bundle = bed.bundle(&format!("p{number}"), &["true"])?;
        bundle.edit(|spec| add(spec, destination, "bind", &volume.source(), &["bind"]))?;
        refused(bed.ran(&bundle), "/proc")?;
    }
    Ok(())
}

/// Masked and read-only paths cover what is mounted in their place and below, however often they are named.
pub fn masks_over_mounts(bed: &mut Bed<'_>) -> Result<()> {
    let volume = Volume::new(bed, "v", MountFlags::empty())?;
    let inner = volume.0.join("sub");
    mount("inner", &inner, "tmpfs", MountFlags::empty(), c"mode=755")?;
    fs::write(inner.join("secret"), "secret")?;
    let script = "cat /v/which /v/sub/secret 2>/dev/null; ls /v/sub; touch /v/x /r/x 2>&1; grep -c ' /v/sub ' /proc/self/mountinfo";
    let mut bundle = bed.bundle("a", &["sh", "-c", script])?;
    bundle.edit(|spec| {
        add(spec, "/v", "bind", &volume.source(), &["rbind", "rprivate"]);
        add(spec, "/r", "bind", &volume.source(), &["rbind", "rprivate", "rw"]);
        spec["linux"]["maskedPaths"] = json!(["/v/which", "/v/which", "/v/sub", "/v/sub/", "/nowhere", "/v/sub"]);
        spec["linux"]["readonlyPaths"] = json!(["/r", "/r", "/nowhere"]);
    })?;
    let ran = bed.ran(&bundle)?;
    ensure_eq!(ran.stdout, "touch: /r/x: Read-only file system\n2\n", "{ran:?}");
    ensure!(volume.0.join("x").exists(), "what is no mask can be written to");
    bundle.edit(|spec| spec["process"]["args"] = json!(["sleep", "1000"]))?;
    bed.running(&bundle)?;
    let exec = bed.exec(&bundle, &process(&["sh", "-c", "cat /v/which; ls /v/sub; touch /r/x"]))?;
    ensure!(exec.status != 0 && exec.stdout.is_empty(), "an exec: {exec:?}");
    bed.end(&bundle)
}

pub fn a_tmpfs_with_what_it_covers(bed: &mut Bed<'_>) -> Result<()> {
    let mut bundle =
        bed.bundle("a", &["sh", "-c", "cat /data/deep/file /data/link; stat -c %a:%u /data /data/deep; echo more >/data/new"])?;
    let data = bundle.written("data");
    fs::create_dir_all(data.join("deep"))?;
    fs::write(data.join("deep/file"), "image\n")?;
    symlink("deep/file", data.join("link"))?;
    fs::set_permissions(data.join("deep"), std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
    fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o750))?;
    std::os::unix::fs::chown(data.join("deep"), Some(7), Some(8))?;
    bundle.edit(|spec| add(spec, "/data", "tmpfs", "tmpfs", &["tmpcopyup", "nosuid"]))?;
    let ran = bed.ran(&bundle)?;
    ensure_eq!(ran.stdout, "image\nimage\n750:0\n711:7\n", "{ran:?}");
    ensure!(!data.join("new").exists(), "written to the image");
    Ok(())
}

/// A file over a file, a directory over a directory, one in the other; the later one over the earlier.
pub fn mounts_over_mounts(bed: &mut Bed<'_>) -> Result<()> {
    let volume = Volume::new(bed, "v", MountFlags::empty())?;
    let other = bed.data().join("other");
    fs::write(&other, "other\n")?;
    let other = other.display().to_string();
    let script = "cat /v/which /f; grep -c ' /v/which \\| /f ' /proc/self/mountinfo; stat -c %s /v/sub/made; touch /f /v/which 2>&1; true";
    let mut bundle = bed.bundle("a", &["sh", "-c", script])?;
    bundle.edit(|spec| {
        add(spec, "/v", "bind", &volume.source(), &["bind"]);
        add(spec, "/v/which", "bind", &other, &["bind", "ro"]);
        add(spec, "/f", "bind", &format!("{}/which", volume.source()), &["bind"]);
        add(spec, "/f", "bind", &other, &["bind", "ro"]);
        add(spec, "/v/sub/made", "bind", &other, &["bind", "ro"]);
    })?;
    let ran = bed.ran(&bundle)?;
    let read_only = "touch: /f: Read-only file system\ntouch: /v/which: Read-only file system\n";
    ensure_eq!(ran.stdout, format!("other\nother\n3\n6\n{read_only}"), "{ran:?}");
    // The mount points are the volume's; the file was made there.
    ensure_eq!(fs::metadata(volume.0.join("sub/made"))?.len(), 0, "the mount point that was made");
    // A file over a directory, and the reverse.
    for (number, (destination, source)) in [("/bin", other), ("/bin/busybox", volume.source())].into_iter().enumerate() {
        let mut bundle = bed.bundle(&format!("w{number}"), &["true"])?;
        bundle.edit(|spec| add(spec, destination, "bind", &source, &["bind"]))?;
        refused(bed.ran(&bundle), destination)?;
    }
    Ok(())
}

/// What `propagation` words, and their absence, make of a bind.
pub fn propagation_of_binds(bed: &mut Bed<'_>) -> Result<()> {
    let volume = Volume::new(bed, "v", MountFlags::empty())?;
    mount_change(&volume.0, MountPropagationFlags::SHARED)?;
    let rows: [(&[&str], Option<&str>, bool, bool); 8] = [
        (&["rbind"], None, false, true),
        (&["rbind", "rprivate"], None, false, false),
        (&["rbind", "rslave"], None, false, true),
        (&["rbind", "rshared"], None, true, true),
        (&["rbind", "rprivate", "rslave"], None, false, false),
        (&["rbind", "rprivate"], Some("rshared"), true, false),
        (&["rbind", "rslave"], Some("rshared"), true, true),
        (&["rbind", "unbindable"], None, false, false),
    ];
    for (number, (options, root, shared, slave)) in rows.into_iter().enumerate() {
        let with_root = |bundle: &mut Bundle| bundle.edit(|spec| spec["linux"]["rootfsPropagation"] = json!(root));
        let seen = with_bind(bed, &format!("c{number}"), PROPAGATION, &volume.source(), options, with_root)?;
        ensure_eq!((seen.contains("shared:"), seen.contains("master:")), (shared, slave), "{options:?}, root {root:?}: {seen}");
    }
    Ok(())
}

/// Filesystems' own options: what the filesystem refuses is named, and what mount(8) alone knows is not dropped.
pub fn options_of_filesystems(bed: &mut Bed<'_>) -> Result<()> {
    let rows: [(&[&str], &str); 4] = [
        (&["size=64k", "mode=1750", "uid=7", "noatime"], "rw,noatime"),
        (&["nosuid", "suid", "nodev", "dev", "noexec", "exec"], "rw,relatime"),
        (&["ro", "rw", "ro"], "ro,relatime"),
        (&["sync", "async", "dirsync", "rw"], "rw,relatime"),
    ];
    for (number, (options, expected)) in rows.into_iter().enumerate() {
        let mut bundle = bed.bundle(&format!("c{number}"), &["sh", "-c", OPTIONS])?;
        bundle.edit(|spec| add(spec, "/v", "tmpfs", "tmpfs", options))?;
        let ran = bed.ran(&bundle)?;
        ensure_eq!(ran.stdout.trim_end(), expected, "{options:?}: {ran:?}");
    }
    for (number, option) in ["size=much", "nofail", "_netdev", "silly=1", "mode=9", "RW"].into_iter().enumerate() {
        let mut bundle = bed.bundle(&format!("r{number}"), &["true"])?;
        bundle.edit(|spec| add(spec, "/v", "tmpfs", "tmpfs", &[option]))?;
        refused(bed.ran(&bundle), option.split('=').next().unwrap_or_default())?;
    }
    Ok(())
}
