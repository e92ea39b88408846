//! What cgroup hierarchies this host has and where they are mounted.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use cgroups_rs::fs::hierarchies;

use super::dir::{CGROUP1_MAGIC, CGROUP2_MAGIC, Dir};
use crate::error::{Context, Error, ErrorKind, Result};

/// How the host's cgroups are set up (systemd's words).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Version 1 hierarchies only.
    V1,
    /// Controllers on version 1 hierarchies, and a version 2 tree beside them.
    Hybrid,
    /// One version 2 tree.
    V2,
}

/// Which interface a hierarchy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// One mounted hierarchy.
#[derive(Clone, Debug)]
pub(super) struct Hierarchy {
    pub version: Version,
    /// v1: what is attached, `name=systemd` included. v2: empty, each directory says itself what it has.
    pub controllers: Vec<String>,
    pub mount_point: String,
    /// The directory of the hierarchy that is mounted there: "/" but for a host that is a container itself.
    mount_root: String,
    checked: bool,
}

impl Hierarchy {
    /// What [`super::CgroupPath`] knows it by: the first controller, "" for v2.
    pub fn name(&self) -> &str {
        self.controllers.first().map_or("", String::as_str)
    }

    /// Opens the mount point, if a cgroup filesystem of this version is there.
    pub fn open(&self) -> Result<Dir> {
        let magic = match self.version {
            Version::V1 => CGROUP1_MAGIC,
            Version::V2 => CGROUP2_MAGIC,
        };
        Dir::mount_point(&self.mount_point, self.checked.then_some(magic))
    }
}

/// The hierarchies of this host. Read once per daemon: mounts of controllers do not change under running containers.
#[derive(Clone, Debug)]
pub struct Host {
    mode: Mode,
    pub(super) hierarchies: Vec<Hierarchy>,
    #[cfg(test)]
    own: Vec<(String, String)>,
}

impl Host {
    /// Finds the hierarchies as mounted in the caller's mount namespace.
    ///
    /// # Errors
    /// `FailedPrecondition` when there is none.
    pub fn detect() -> Result<Self> {
        if hierarchies::is_cgroup2_unified_mode() {
            return Ok(Self::new(Mode::V2, vec![unified(hierarchies::UNIFIED_MOUNTPOINT)]));
        }
        let mut found = version1();
        if found.is_empty() {
            return Err(Error::new(ErrorKind::FailedPrecondition, "no cgroup hierarchy is mounted on this host"));
        }
        let Some(mount_point) = hybrid_mount_point() else { return Ok(Self::new(Mode::V1, found)) };
        found.push(unified(&mount_point));
        Ok(Self::new(Mode::Hybrid, found))
    }

    fn new(mode: Mode, hierarchies: Vec<Hierarchy>) -> Self {
        Self {
            mode,
            hierarchies,
            #[cfg(test)]
            own: Vec::new(),
        }
    }

    /// How the host is set up: it decides the type of the statistics, and nothing else outside this module.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// For each hierarchy the directory, below its mount point, that a relative cgroupsPath counts from.
    pub(super) fn own_cgroups(&self) -> Result<Vec<(String, String)>> {
        #[cfg(test)]
        if !self.own.is_empty() {
            return Ok(self.own.clone());
        }
        let text = std::fs::read_to_string("/proc/self/cgroup").context(|| "read /proc/self/cgroup")?;
        self.hierarchies.iter().map(|hierarchy| Ok((hierarchy.name().to_owned(), self.own_cgroup(hierarchy, &text)?))).collect()
    }

    fn own_cgroup(&self, hierarchy: &Hierarchy, proc_self_cgroup: &str) -> Result<String> {
        let found = proc_self_cgroup.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|name| name == hierarchy.name()).then_some(path)
        });
        let refused = |message: String| Error::new(ErrorKind::FailedPrecondition, message);
        let name = if hierarchy.name().is_empty() { "cgroup v2" } else { hierarchy.name() };
        let own = found.ok_or_else(|| refused(format!("/proc/self/cgroup has no line for the hierarchy of {name}")))?;
        let outside =
            || refused(format!("this process's own cgroup of {name}, {own:?}, is not below the mount point {}", hierarchy.mount_point));
        let root = hierarchy.mount_root.trim_end_matches('/');
        let below = own.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with('/')).ok_or_else(outside)?;
        if below.starts_with("/..") {
            return Err(outside());
        }
        // A cgroup with processes cannot hand controllers to children (cgroups(7), "no internal processes"), so the parent it is on v2.
        let base = if self.mode == Mode::V2 { below.rsplit_once('/').map_or("", |(parent, _)| parent) } else { below };
        Ok(base.trim_start_matches('/').to_owned())
    }
}

fn unified(mount_point: &str) -> Hierarchy {
    Hierarchy {
        version: Version::V2,
        controllers: Vec::new(),
        mount_point: mount_point.to_owned(),
        mount_root: "/".to_owned(),
        checked: true,
    }
}

/// The controllers a container joins on version 1. A hierarchy with none of them (`name=openrc` and the like) is not ours.
const CONTROLLERS: [&str; 15] = [
    "cpuset",
    "cpu",
    "cpuacct",
    "blkio",
    "memory",
    "devices",
    "freezer",
    "net_cls",
    "perf_event",
    "net_prio",
    "hugetlb",
    "pids",
    "rdma",
    "misc",
    "name=systemd",
];

/// The version 1 hierarchies, each once: containers' mounts of the same hierarchy come later in the table and are passed over.
fn version1() -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for mount in hierarchies::mountinfo_self() {
        let options = mount.super_opts.iter().map(|option| option.trim());
        let controllers: Vec<String> = options.filter(|option| CONTROLLERS.contains(option)).map(str::to_owned).collect();
        if controllers.is_empty() || found.iter().any(|other| other.controllers == controllers) {
            continue;
        }
        found.push(Hierarchy {
            version: Version::V1,
            controllers,
            mount_point: unescape(&mount.mount_point),
            mount_root: unescape(&mount.mount_root),
            checked: true,
        });
    }
    found
}

/// Where the v2 tree of a hybrid host is: systemd's place, or wherever the mount table says.
fn hybrid_mount_point() -> Option<String> {
    const SYSTEMD: &str = "/sys/fs/cgroup/unified";
    if Dir::mount_point(SYSTEMD, Some(CGROUP2_MAGIC)).is_ok() {
        return Some(SYSTEMD.to_owned());
    }
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    table.lines().find_map(cgroup2_mount)
}

/// The mount point, if this line of mountinfo is a cgroup2 filesystem's root.
fn cgroup2_mount(line: &str) -> Option<String> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    (filesystem.starts_with("cgroup2 ") && root == "/").then(|| unescape(Path::new(point)))
}

/// Undoes the octal escapes of mountinfo (proc_pid_mountinfo(5)): blank, tab, line feed and backslash.
fn unescape(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        let octal = |digits: &[u8]| {
            digits.iter().try_fold(0u8, |value, digit| {
                matches!(digit, b'0'..=b'7').then(|| value.checked_mul(8)?.checked_add(digit - b'0')).flatten()
            })
        };
        match (first, tail.get(..3).and_then(octal)) {
            (b'\\', Some(byte)) => {
                plain.push(byte);
                rest = &tail[3..];
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
impl Host {
    /// A host whose own cgroups are as given.
    pub(super) fn with_own(own: &[(&str, &str)]) -> Self {
        let own = own.iter().map(|(name, path)| ((*name).to_owned(), (*path).to_owned())).collect();
        Self { own, ..Self::new(Mode::V2, Vec::new()) }
    }

    /// A v2 host whose tree is a plain directory.
    pub(crate) fn plain_v2(root: &Path) -> Self {
        Self::new(Mode::V2, vec![Hierarchy { checked: false, ..unified(root.to_str().unwrap()) }])
    }

    /// A v1 host with one hierarchy per name, each a plain directory of that name.
    pub(super) fn plain_v1(root: &Path, controllers: &[&str]) -> Self {
        let plain = |name: &&str| Hierarchy {
            version: Version::V1,
            controllers: vec![(*name).to_owned()],
            mount_point: root.join(name).to_str().unwrap().to_owned(),
            mount_root: "/".to_owned(),
            checked: false,
        };
        Self::new(Mode::V1, controllers.iter().map(plain).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        for (escaped, plain) in [("/a\\040b", "/a b"), ("\\134", "\\"), ("/x\\", "/x\\"), ("/x\\09", "/x\\09"), ("/x\\777", "/x\\777")] {
            assert_eq!(unescape(Path::new(escaped)), plain);
        }
    }

    #[test]
    fn only_a_whole_cgroup2_filesystem_counts_as_the_v2_tree() {
        let line = |root: &str, kind: &str| format!("42 26 0:27 {root} /sys/fs/cgroup/uni\\040fied rw,nosuid shared:9 - {kind} cgroup2 rw");
        assert_eq!(cgroup2_mount(&line("/", "cgroup2")).as_deref(), Some("/sys/fs/cgroup/uni fied"));
        assert_eq!(cgroup2_mount(&line("/pod", "cgroup2")), None);
        assert_eq!(cgroup2_mount(&line("/", "cgroup")), None);
        assert_eq!(cgroup2_mount("junk"), None);
    }

    #[test]
    fn the_own_cgroup_is_seen_from_the_mount_point() {
        let text = "4:memory:/outer/own\n3:cpu,cpuacct:/\n1:name=systemd:/\n0::/outer/own\n";
        let host = |mode| Host::new(mode, Vec::new());
        let hierarchy = |name: &str, mount_root: &str| Hierarchy {
            controllers: if name.is_empty() { Vec::new() } else { vec![name.to_owned()] },
            mount_root: mount_root.to_owned(),
            ..unified("/x")
        };
        assert_eq!(host(Mode::V1).own_cgroup(&hierarchy("memory", "/"), text).unwrap(), "outer/own");
        assert_eq!(host(Mode::V1).own_cgroup(&hierarchy("memory", "/outer"), text).unwrap(), "own");
        assert_eq!(host(Mode::V1).own_cgroup(&hierarchy("cpuacct", "/"), text).unwrap(), "");
        assert_eq!(host(Mode::V2).own_cgroup(&hierarchy("", "/"), text).unwrap(), "outer");
        assert_eq!(host(Mode::Hybrid).own_cgroup(&hierarchy("", "/"), text).unwrap(), "outer/own");
        assert!(host(Mode::V1).own_cgroup(&hierarchy("memory", "/out"), text).is_err());
        assert!(host(Mode::V1).own_cgroup(&hierarchy("blkio", "/"), text).is_err());
    }

    #[test]
    fn this_host_has_cgroups() {
        let host = Host::detect().unwrap();
        assert!(!host.hierarchies.is_empty());
        for hierarchy in &host.hierarchies {
            hierarchy.open().unwrap();
        }
    }
}
