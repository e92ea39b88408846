//! What this host has of what the shim needs or uses, found by trying and not by version numbers; and what each missing thing costs.

use std::ffi::CStr;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use runtime_core::cgroup::{Host, Mode};
use runtime_core::kernel::Features;
use runtime_core::sys::mount::{attr, set_attributes, set_idmap};
use runtime_core::sys::{probe, process};
use rustix::fs::{Mode as FileMode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsmount, fsopen, open_tree};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use serde::Serialize;

/// One thing that was looked for.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What.
    pub name: &'static str,
    /// Whether it is there.
    pub present: bool,
    /// Whether containers cannot be run without it.
    pub needed: bool,
    /// What is different without it, or what else there is to say.
    pub note: String,
}

/// A probe with the price of its failure.
struct Probe {
    name: &'static str,
    needed: bool,
    present: fn() -> bool,
    without: &'static str,
}

const fn needed(name: &'static str, present: fn() -> bool) -> Probe {
    Probe { name, needed: true, present, without: "no container starts" }
}

const fn used(name: &'static str, present: fn() -> bool, without: &'static str) -> Probe {
    Probe { name, needed: false, present, without }
}

const PROBES: &[Probe] = &[
    needed("root's rights (CAP_SYS_ADMIN)", is_administrator),
    needed("fsopen, fsmount (Linux 5.2)", || detached(c"tmpfs").is_ok()),
    needed("open_tree (5.2)", || {
        open_tree(rustix::fs::CWD, "/", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC).is_ok()
    }),
    needed("mount_setattr (5.12)", || {
        detached(c"tmpfs").and_then(|mount| set_attributes(mount.as_fd(), c"", false, attr::RDONLY, 0, 0)).is_ok()
    }),
    needed("openat2 (5.6)", has_openat2),
    needed("clone3 (5.3)", probe::clone3),
    needed("close_range (5.9)", probe::close_range),
    needed("pidfd_open, setns with a pidfd (5.8)", has_pidfd_setns),
    needed("a cgroup hierarchy", || Host::detect().is_ok()),
    used("overlay filesystem", || filesystem("overlay"), "containerd's default snapshotter does not work; another one is needed"),
    used(
        "overlay: layers one by one (6.8)",
        || Features::get().layers_one_by_one,
        "layers are mounted by mount(2) in a copy of the host's mounts: slower where there are many, and all paths together below 4096 bytes",
    ),
    used(
        "overlay: detached mounts as layers (6.15)",
        || Features::get().layers_by_descriptor,
        "idmapped layers take one mount namespace more",
    ),
    used(
        "idmapped mounts (5.12; on tmpfs 6.3)",
        has_idmapped_tmpfs,
        "volumes and layers of pods with hostUsers: false may fail, by filesystem",
    ),
    used("user namespaces", || positive("/proc/sys/user/max_user_namespaces"), "pods with hostUsers: false fail"),
    used(
        "seccomp filters",
        || Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
        "containers with a seccomp profile fail, which are nearly all in Kubernetes and Docker",
    ),
    used("cgroup.kill (5.14)", || in_own_cgroup("cgroup.kill"), "a container's processes are frozen and killed one by one"),
    used("cgroup.freeze (5.2)", || in_own_cgroup("cgroup.freeze") || v1("freezer"), "pause fails"),
    used("pressure (PSI)", || Path::new("/proc/pressure/memory").exists(), "statistics have no pressure"),
    used("core scheduling", has_core_scheduling, "containerd's SCHED_CORE makes pods fail"),
    used("session keyrings", || Path::new("/proc/keys").exists(), "containers have none to protect"),
    used("FUSE", || Path::new("/dev/fuse").exists(), "root filesystems of type fuse.* fail"),
    used("loop devices", || Path::new("/dev/loop-control").exists(), "layers in files (erofs, ext4) fail"),
];

/// Looks for everything.
pub fn findings() -> Vec<Finding> {
    let mut findings: Vec<Finding> = PROBES.iter().map(Probe::look).collect();
    findings.extend(CONTROLLERS.iter().map(controller));
    findings.extend(in_force());
    findings
}

/// Whether containers can be run.
pub fn is_enough(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.present || !finding.needed)
}

/// One line about the host's cgroups.
pub fn cgroups() -> String {
    match Host::detect().map(|host| host.mode()) {
        Ok(Mode::V1) => "cgroups: version 1".to_owned(),
        Ok(Mode::Hybrid) => "cgroups: version 1, with a version 2 tree beside it (hybrid)".to_owned(),
        Ok(Mode::V2) => "cgroups: version 2".to_owned(),
        Err(error) => format!("cgroups: {error}"),
    }
}

impl Probe {
    fn look(&self) -> Finding {
        let present = (self.present)();
        Finding { name: self.name, present, needed: self.needed, note: if present { String::new() } else { self.without.to_owned() } }
    }
}

/// Name, and what a limit of it is called.
const CONTROLLERS: [(&str, &str); 6] = [
    ("controller memory", "limits and statistics of memory"),
    ("controller cpu", "limits of processor time"),
    ("controller pids", "limits of processes"),
    ("controller cpuset", "binding to processors"),
    ("controller io", "limits of input and output"),
    ("controller hugetlb", "limits of huge pages"),
];

fn controller((name, what): &(&'static str, &str)) -> Finding {
    let short = name.trim_start_matches("controller ");
    let present = v2_controllers().contains(&short.to_owned()) || v1(if short == "io" { "blkio" } else { short });
    Finding { name, present, needed: false, note: if present { String::new() } else { format!("{what} fail, if asked for") } }
}

/// What is in force here, and matters to those containers only that ask for it.
fn in_force() -> Option<Finding> {
    runtime_core::systemd::is_running().then(|| Finding {
        name: "systemd cgroup driver",
        present: ["/run/dbus/system_bus_socket", "/run/systemd/private"].iter().any(|socket| Path::new(socket).exists()),
        needed: false,
        note: "used where the option SystemdCgroup is set, or a path has the form slice:prefix:name".to_owned(),
    })
}

fn is_administrator() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    effective.is_some_and(|set| set & (1 << 21) != 0)
}

fn detached(fstype: &CStr) -> Result<OwnedFd, Errno> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// The two rules exclude each other, which only a kernel that knows the call says.
fn has_openat2() -> bool {
    let rules = ResolveFlags::BENEATH | ResolveFlags::IN_ROOT;
    matches!(rustix::fs::openat2(rustix::fs::CWD, "/", OFlags::PATH | OFlags::CLOEXEC, FileMode::empty(), rules), Err(Errno::INVAL))
}

/// Joining one's own namespace changes nothing.
fn has_pidfd_setns() -> bool {
    pidfd_open(getpid(), PidfdFlags::empty()).is_ok_and(|pidfd| process::setns(pidfd.as_fd(), libc::CLONE_NEWUTS).is_ok())
}

/// The host's own user namespace is refused as one to map by, once the mount as such could be mapped (fs/namespace.c, `build_mount_idmapped`).
fn has_idmapped_tmpfs() -> bool {
    let Ok(own) = fs::File::open("/proc/self/ns/user") else { return false };
    detached(c"tmpfs").is_ok_and(|mount| set_idmap(mount.as_fd(), own.as_fd(), false) == Err(Errno::PERM))
}

fn has_core_scheduling() -> bool {
    rustix::thread::core_scheduling_cookie(getpid(), rustix::thread::CoreSchedulingScope::Thread).is_ok()
}

fn filesystem(name: &str) -> bool {
    let registered =
        || fs::read_to_string("/proc/filesystems").unwrap_or_default().lines().any(|line| line.ends_with(&format!("\t{name}")));
    // Asking for a filesystem loads its module.
    registered() || (std::ffi::CString::new(name).is_ok_and(|name| fsopen(name.as_c_str(), FsOpenFlags::FSOPEN_CLOEXEC).is_ok()))
}

fn positive(path: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim().parse::<u64>().is_ok_and(|number| number > 0))
}

/// The mount point of the version 2 tree.
fn unified() -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = table.lines().find(|line| line.split_once(" - ").is_some_and(|(_, tail)| tail.starts_with("cgroup2 ")))?;
    line.split(' ').nth(4).map(str::to_owned)
}

/// Whether some cgroup has a file: the root has not all of them, so it is looked for in a child.
fn in_own_cgroup(file: &str) -> bool {
    let Some(root) = unified() else { return false };
    let below = fs::read_dir(&root).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    let mut places = below.chain([Path::new(&root).to_owned()]);
    places.any(|place| place.join(file).exists()) || made_for_a_moment(Path::new(&root), file)
}

fn made_for_a_moment(root: &Path, file: &str) -> bool {
    let place = root.join(format!("coracle-check-{}", std::process::id()));
    if fs::create_dir(&place).is_err() {
        return false;
    }
    let there = place.join(file).exists();
    // An empty cgroup can always be removed.
    let _ = fs::remove_dir(&place);
    there
}

fn v2_controllers() -> Vec<String> {
    let text = unified().and_then(|root| fs::read_to_string(format!("{root}/cgroup.controllers")).ok()).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

fn v1(controller: &str) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let of = |line: &str| line.split_once(" - cgroup ").is_some_and(|(_, tail)| tail.split([' ', ',']).any(|word| word == controller));
    table.lines().any(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_enough_and_nothing_is_changed_by_looking() {
        let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let findings = findings();
        assert!(is_enough(&findings), "{findings:?}");
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
        assert!(findings.iter().all(|finding| finding.present || !finding.note.is_empty()), "{findings:?}");
    }

    #[test]
    fn what_is_missing_is_told_with_its_price() {
        let missing = needed("nothing", || false).look();
        assert!(!missing.present && missing.note == "no container starts");
        assert!(!is_enough(&[missing]));
        assert!(is_enough(&[used("nothing", || false, "it is slower").look()]));
        assert!(!filesystem("nosuchfs") && !v1("nosuchcontroller"));
    }
}
