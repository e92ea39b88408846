//! What cgroup hierarchies this host has and where they are mounted.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

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

    /// The path below the mount point, with a slash before it, of what has `path` in a `/proc/<pid>/cgroup`; `None` if it is outside.
    pub fn below<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        let below = path.strip_prefix(self.mount_root.trim_end_matches('/').as_bytes())?;
        ((below.is_empty() || below.starts_with(b"/")) && !below.starts_with(b"/..")).then_some(below)
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
        let table = own_mounts()?;
        let mut found = version1(&table);
        if found.is_empty() {
            return Err(Error::new(ErrorKind::FailedPrecondition, "no cgroup hierarchy is mounted on this host"));
        }
        let Some(mount_point) = hybrid_mount_point(&table) else { return Ok(Self::new(Mode::V1, found)) };
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
        let text = std::fs::read("/proc/self/cgroup").context(|| "read /proc/self/cgroup")?;
        self.hierarchies.iter().map(|hierarchy| Ok((hierarchy.name().to_owned(), self.own_cgroup(hierarchy, &text)?))).collect()
    }

    fn own_cgroup(&self, hierarchy: &Hierarchy, proc_self_cgroup: &[u8]) -> Result<String> {
        let refused = |message: String| Error::new(ErrorKind::FailedPrecondition, message);
        let name = if hierarchy.name().is_empty() { "cgroup v2" } else { hierarchy.name() };
        let own = path_in(hierarchy, proc_self_cgroup)
            .ok_or_else(|| refused(format!("/proc/self/cgroup has no line for the hierarchy of {name}")))?;
        let shown = String::from_utf8_lossy(own);
        let outside =
            || refused(format!("this process's own cgroup of {name}, {shown:?}, is not below the mount point {}", hierarchy.mount_point));
        let below = hierarchy.below(own).ok_or_else(outside)?;
        let odd = |_| refused(format!("the name of this process's own cgroup of {name}, {shown:?}, is not UTF-8"));
        let below = std::str::from_utf8(below).map_err(odd)?;
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
fn version1(table: &[u8]) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for mount in mounts(table).filter(|mount| mount.filesystem == b"cgroup") {
        let options = mount.options.split(|byte| *byte == b',').filter_map(|option| std::str::from_utf8(option).ok());
        let controllers: Vec<String> = options.filter(|option| CONTROLLERS.contains(option)).map(str::to_owned).collect();
        let (Some(mount_point), Some(mount_root)) = (text(mount.point), text(mount.root)) else { continue };
        if controllers.is_empty() || found.iter().any(|other| other.controllers == controllers) {
            continue;
        }
        found.push(Hierarchy { version: Version::V1, controllers, mount_point, mount_root, checked: true });
    }
    found
}

/// Where the v2 tree of a hybrid host is: systemd's place, or wherever the mount table says.
fn hybrid_mount_point(table: &[u8]) -> Option<String> {
    const SYSTEMD: &str = "/sys/fs/cgroup/unified";
    if Dir::mount_point(SYSTEMD, Some(CGROUP2_MAGIC)).is_ok() {
        return Some(SYSTEMD.to_owned());
    }
    mounts(table).find(|mount| mount.filesystem == b"cgroup2" && mount.root == b"/").and_then(|mount| text(mount.point))
}

/// The mount points of all version 1 hierarchies, those that are not used here included.
///
/// # Errors
/// `/proc/self/mountinfo` cannot be read.
pub fn version1_mount_points() -> Result<Vec<PathBuf>> {
    let table = own_mounts()?;
    let of_version1 = mounts(&table).filter(|mount| mount.filesystem == b"cgroup");
    Ok(of_version1.map(|mount| PathBuf::from(OsString::from_vec(unescape(mount.point)))).collect())
}

fn own_mounts() -> Result<Vec<u8>> {
    std::fs::read("/proc/self/mountinfo").context(|| "read /proc/self/mountinfo")
}

/// What is of interest here in a line of mountinfo (proc_pid_mountinfo(5)), as it stands there.
struct Mount<'a> {
    root: &'a [u8],
    point: &'a [u8],
    filesystem: &'a [u8],
    options: &'a [u8],
}

/// Names of mounts are bytes, and one that has another form than expected hides none of the others.
fn mounts(table: &[u8]) -> impl Iterator<Item = Mount<'_>> {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let (root, point) = (fields.nth(3)?, fields.next()?);
        fields.by_ref().find(|field| *field == b"-")?;
        let filesystem = fields.next()?;
        Some(Mount { root, point, filesystem, options: fields.nth(1)? })
    })
}

/// A cgroup filesystem at a place that is no text is not the host's own.
fn text(escaped: &[u8]) -> Option<String> {
    String::from_utf8(unescape(escaped)).ok()
}

/// Undoes the octal escapes of mountinfo (proc_pid_mountinfo(5)): blank, tab, line feed and backslash.
fn unescape(bytes: &[u8]) -> Vec<u8> {
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
    plain
}

/// The path of a hierarchy in a `/proc/<pid>/cgroup`, whose names are bytes.
pub(super) fn path_in<'a>(hierarchy: &Hierarchy, proc_pid_cgroup: &'a [u8]) -> Option<&'a [u8]> {
    let colon = |bytes: &'a [u8]| -> Option<(&'a [u8], &'a [u8])> {
        let at = bytes.iter().position(|byte| *byte == b':')?;
        Some((&bytes[..at], &bytes[at + 1..]))
    };
    proc_pid_cgroup.split(|byte| *byte == b'\n').find_map(|line| {
        let (controllers, path) = colon(colon(line)?.1)?;
        controllers.split(|byte| *byte == b',').any(|name| name == hierarchy.name().as_bytes()).then_some(path)
    })
}

#[cfg(test)]
impl Host {
    /// A host whose own cgroups are as given.
    pub(super) fn with_own(own: &[(&str, &str)]) -> Self {
        let own = own.iter().map(|(name, path)| ((*name).to_owned(), (*path).to_owned())).collect();
        Self { own, ..Self::new(Mode::V2, Vec::new()) }
    }

    /// A v2 host whose tree is a plain directory.
    pub(crate) fn plain_v2(root: &std::path::Path) -> Self {
        Self::new(Mode::V2, vec![Hierarchy { checked: false, ..unified(root.to_str().unwrap()) }])
    }

    /// A v1 host with one hierarchy per name, each a plain directory of that name.
    pub(super) fn plain_v1(root: &std::path::Path, controllers: &[&str]) -> Self {
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
            assert_eq!(unescape(escaped.as_bytes()), plain.as_bytes());
        }
    }

    #[test]
    fn only_a_whole_cgroup2_filesystem_counts_as_the_v2_tree() {
        let line = |root: &str, kind: &str| format!("42 26 0:27 {root} /x/uni\\040fied rw,nosuid shared:9 - {kind} cgroup2 rw\n");
        let found = |table: &str| mounts(table.as_bytes()).find(|mount| mount.filesystem == b"cgroup2" && mount.root == b"/").is_some();
        assert!(found(&line("/", "cgroup2")));
        assert!(!found(&line("/pod", "cgroup2")) && !found(&line("/", "cgroup")) && !found("junk"));
    }

    #[test]
    fn a_mount_with_an_odd_name_hides_no_other() {
        let table = b"41 26 0:3 / /mnt/x\xff\x01 rw - tmpfs tmpfs rw\n42 26 0:4 / /mnt/\xff rw - cgroup cgroup rw,pids\n\
                      43 26 0:4 / /sys/fs/cgroup/pi\\040ds rw shared:1 master:2 - cgroup cgroup rw,pids\n";
        let found = version1(table);
        assert_eq!(found.iter().map(|it| (it.mount_point.as_str(), it.name())).collect::<Vec<_>>(), [("/sys/fs/cgroup/pi ds", "pids")]);
    }

    #[test]
    fn the_own_cgroup_is_seen_from_the_mount_point() {
        let text = b"4:memory:/outer/own\n3:cpu,cpuacct:/\n2:pids:/o\xff\n1:name=systemd:/\n0::/outer/own\n";
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
        assert!(host(Mode::V1).own_cgroup(&hierarchy("pids", "/"), text).unwrap_err().to_string().contains("not UTF-8"));
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
