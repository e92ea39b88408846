//! Bundles as containerd lays them out, for the shim driven by hand.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use proto::api::Mount;
use serde_json::{Value, json};

use crate::{Context, Result, image, paths};

/// A directory with `config.json` and an empty `rootfs`, over a system that all bundles share.
pub struct Bundle {
    /// The container's id.
    pub id: String,
    /// Where it lies.
    pub dir: PathBuf,
    base: PathBuf,
    filled: bool,
    /// The specification, written by [`Bundle::write`].
    pub spec: Value,
}

impl Bundle {
    /// A bundle in `parent` that runs `args`; its overlay directories lie beside it.
    pub fn new(parent: &Path, id: &str, args: &[&str]) -> Result<Bundle> {
        let dir = parent.join("bundles").join(id);
        for path in [dir.join("rootfs"), parent.join("upper").join(id), parent.join("work").join(id)] {
            fs::create_dir_all(path)?;
        }
        let bundle = Bundle { id: id.to_owned(), dir, base: parent.to_owned(), filled: false, spec: spec(id, args) };
        bundle.write()?;
        Ok(bundle)
    }

    /// Changes the specification and writes it.
    pub fn edit(&mut self, change: impl FnOnce(&mut Value)) -> Result<()> {
        change(&mut self.spec);
        self.write()
    }

    /// Writes `config.json`.
    pub fn write(&self) -> Result<()> {
        Ok(fs::write(self.dir.join("config.json"), self.spec.to_string())?)
    }

    /// Gives the container a user namespace whose ids are the host's from `first` on, and its root directory to root there.
    pub fn map_users(&mut self, first: u32) -> Result<()> {
        chown(self.written(""), Some(first), Some(first))?;
        self.edit(|spec| user_namespace(spec, first))
    }

    /// The mounts of Create: an overlay over the shared system, as the overlayfs snapshotter gives it.
    pub fn overlay(&self) -> Result<Vec<Mount>> {
        let mut mount = Mount::new();
        mount.type_ = "overlay".to_owned();
        mount.source = "overlay".to_owned();
        let path = |name: &str| self.base.join(name).join(&self.id).display().to_string();
        mount.options = vec![
            "index=off".to_owned(),
            format!("workdir={}", path("work")),
            format!("upperdir={}", path("upper")),
            format!("lowerdir={}", system()?.display()),
        ];
        Ok(vec![mount])
    }

    /// The mounts of Create: a writable bind of a copy of the system, as the native snapshotter gives it.
    pub fn bind(&self) -> Result<Vec<Mount>> {
        let copy = self.base.join("upper").join(&self.id);
        image::unpack(&copy)?;
        let mut mount = Mount::new();
        mount.type_ = "bind".to_owned();
        mount.source = copy.display().to_string();
        mount.options = vec!["rbind".to_owned(), "rw".to_owned()];
        Ok(vec![mount])
    }

    /// Fills `rootfs` itself, for a Create without mounts.
    pub fn fill(&mut self) -> Result<()> {
        image::unpack(&self.dir.join("rootfs"))?;
        self.filled = true;
        Ok(())
    }

    /// A path on the host of a file that the container wrote to its overlay, or to the root that [`Bundle::fill`] has made.
    pub fn written(&self, path: &str) -> PathBuf {
        if self.filled {
            return self.dir.join("rootfs").join(path);
        }
        self.base.join("upper").join(&self.id).join(path)
    }
}

/// The system that all bundles of this run share, unpacked once.
pub fn system() -> Result<PathBuf> {
    static ONCE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let dir = paths::data_dir()?.join("system");
    let _one = ONCE.lock().ok().context(|| "an earlier unpacking panicked".to_owned())?;
    if !dir.join("bin/sh").exists() {
        image::unpack(&dir)?;
    }
    Ok(dir)
}

/// The capabilities that containerd gives by default (oci/spec.go, defaultUnixCaps).
pub const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// containerd's default specification (oci/spec.go, populateDefaultUnixSpec), with this run's cgroup and the image's PATH.
fn spec(id: &str, args: &[&str]) -> Value {
    let mount =
        |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    json!({
        "ociVersion": "1.0.2-dev",
        "process": process(args),
        "root": {"path": "rootfs"},
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/run", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ],
        "linux": {
            "cgroupsPath": format!("/{}/{id}", paths::tag()),
            "resources": {"devices": device_rules()},
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}],
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// Deny all, then the default devices (oci/spec_opts.go, WithDefaultUnixDevices).
fn device_rules() -> Value {
    let numbers =
        [(1, Some(3)), (1, Some(8)), (1, Some(7)), (5, Some(0)), (1, Some(5)), (1, Some(9)), (5, Some(1)), (136, None), (5, Some(2))];
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    for (major, minor) in numbers {
        let mut rule = json!({"allow": true, "type": "c", "major": major, "access": "rwm"});
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        rules.push(rule);
    }
    Value::Array(rules)
}

/// Puts a user namespace into a specification: its ids are the host's from `first` on.
pub fn user_namespace(spec: &mut Value, first: u32) {
    let map = json!([{"containerID": 0, "hostID": first, "size": 65536}]);
    (spec["linux"]["uidMappings"], spec["linux"]["gidMappings"]) = (map.clone(), map);
    if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.push(json!({"type": "user"}));
    }
}

/// containerd's default process, for the init and for Exec.
pub fn process(args: &[&str]) -> Value {
    json!({
        "user": {"uid": 0, "gid": 0},
        "args": args,
        "env": ["PATH=/bin:/sbin"],
        "cwd": "/",
        "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spec_is_one_to_the_oci_types() {
        let parsed: oci_spec::runtime::Spec = serde_json::from_value(spec("a", &["true"])).unwrap();
        assert_eq!(parsed.mounts().as_ref().unwrap().len(), 7);
        assert_eq!(parsed.linux().as_ref().unwrap().resources().as_ref().unwrap().devices().as_ref().unwrap().len(), 10);
    }
}
