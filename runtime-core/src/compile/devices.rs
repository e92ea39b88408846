//! Device nodes, links and the directory they are in.

use std::ffi::CString;
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Mount};

use super::idmap::Maps;
use super::options::Options;
use super::user::Shelf;
use super::{cstring, relative};
use crate::error::{Error, ErrorKind, Result};
use crate::kernel::Features;
use crate::plan::{Builder, Node, Slot, Step, Target};
use crate::spec::Spec;

/// The devices that every container has (OCI config-linux.md, "Default Devices"): name, minor and major number.
const DEFAULT: [(&str, u32, u32); 6] = [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// The links that every container has (config-linux.md and config.md, "/dev symlinks").
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// The link that runc's and crun's containers have besides, where the kernel has its target.
const CORE: (&str, &str) = ("core", "/proc/kcore");

const MODE: u32 = 0o666;

/// The container's `/dev`.
pub struct Devices {
    /// Opened.
    pub directory: Slot,
    /// It is somebody else's.
    pub bound: bool,
    /// What is mounted in it appears at the other's place, too.
    pub shared: bool,
}

/// Emits the nodes and links; nothing is made in a `/dev` that is bound from elsewhere.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) for a device that makes no sense.
pub fn make(plan: &mut Builder, spec: &Spec, root: Slot, given: &[(CString, Slot)], kernel: Features) -> Result<Devices> {
    let directory = plan.slot();
    plan.step(Step::OpenDirectory { root, path: c"dev".to_owned(), directory });
    if let Some(mount) = bound_dev(spec) {
        let options = Options::parse(mount.options().iter().flatten().map(String::as_str))?;
        let shared = options.propagation.iter().any(|(propagation, _)| *propagation == libc::MS_SHARED);
        return Ok(Devices { directory, bound: true, shared });
    }
    for (path, node) in nodes(spec)? {
        plan.step(match given.iter().find(|(known, _)| *known == path) {
            Some((_, mount)) => Step::Attach { mount: *mount, root, target: path, rule: Target::Ordinary },
            None => Step::Device { root, path, node },
        });
    }
    let has_core = kernel.has_kcore && !spec.linux.devices.iter().any(|device| device.path().as_path() == Path::new("/dev/core"));
    for (name, target) in LINKS.into_iter().chain(has_core.then_some(CORE)) {
        let (name, target) = (cstring("link", name)?, cstring("link", target)?);
        plan.step(Step::Symlink { directory, name, target });
    }
    Ok(Devices { directory, bound: false, shared: false })
}

/// Emits the cloning of the host's own nodes, where none can be made (mknod(2) in a user namespace): they are to be bound to their places.
///
/// # Errors
/// [`ErrorKind::FailedPrecondition`](crate::ErrorKind::FailedPrecondition) for a device that the host has not, or not under this name.
pub fn of_host(plan: &mut Builder, spec: &Spec) -> Result<Vec<(CString, Slot)>> {
    let mut found = Vec::new();
    for (path, node) in to_be_bound(spec)? {
        let source = [b"/", path.as_bytes()].concat();
        let source = CString::new(source).unwrap_or_default();
        let same = rustix::fs::stat(&source).is_ok_and(|host| host.st_mode & libc::S_IFMT == node.kind && host.st_rdev == node.device);
        if !same {
            let message = format!("linux.devices: {source:?}: a user namespace can make no device, and the host has no such one there");
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        }
        let mount = plan.slot();
        plan.step(Step::CloneTree { source, recursive: false, follow: true, mount });
        found.push((path, mount));
    }
    Ok(found)
}

/// Emits the making of the nodes on a shelf, for a container that may not make any: they are to be bound to their places.
///
/// # Errors
/// A device whose owner is not mapped.
pub fn shelve(plan: &mut Builder, spec: &Spec, shelf: &mut Shelf, maps: &Maps) -> Result<Vec<(CString, Slot)>> {
    let mut shelved = Vec::new();
    for (path, node) in to_be_bound(spec)? {
        let unmapped = || Error::invalid(format!("linux.devices: {:?}: its owner is not mapped", path.to_string_lossy()));
        let uid = maps.host_uid(node.uid).ok_or_else(unmapped)?;
        let gid = maps.host_gid(node.gid).ok_or_else(unmapped)?;
        let mount = plan.slot();
        let name = shelf.reserve(mount);
        plan.step(Step::Device { root: shelf.root, path: name, node: Node { uid, gid, ..node } });
        shelved.push((path, mount));
    }
    Ok(shelved)
}

/// The devices of a container that can make none itself.
fn to_be_bound(spec: &Spec) -> Result<Vec<(CString, Node)>> {
    if bound_dev(spec).is_some() {
        return Ok(Vec::new());
    }
    Ok(nodes(spec)?.into_iter().filter(|(_, node)| node.kind != libc::S_IFIFO).collect())
}

/// What is to be below the root.
fn nodes(spec: &Spec) -> Result<Vec<(CString, Node)>> {
    let given = spec.linux.devices.iter().map(node).collect::<Result<Vec<_>>>()?;
    let mut nodes = Vec::new();
    for (name, major, minor) in DEFAULT {
        let path = relative(&format!("/dev/{name}"))?;
        if !given.iter().any(|(known, _)| *known == path) {
            let device = rustix::fs::makedev(major, minor);
            nodes.push((path, Node { kind: libc::S_IFCHR, mode: MODE, device, uid: 0, gid: 0 }));
        }
    }
    // Engines list a device once for each reason that a container has it, and runc and crun take the first.
    for (path, node) in given {
        if !nodes.iter().any(|(known, _)| *known == path) {
            nodes.push((path, node));
        }
    }
    // A link would take its place.
    nodes.retain(|(path, _)| !LINKS.iter().any(|(name, _)| path.to_bytes().strip_prefix(b"dev/") == Some(name.as_bytes())));
    Ok(nodes)
}

fn bound_dev(spec: &Spec) -> Option<&Mount> {
    spec.mounts.iter().find(|mount| {
        let bound =
            mount.typ().as_deref() == Some("bind") || mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind");
        bound && mount.destination().components().eq(std::path::Path::new("/dev").components())
    })
}

fn node(device: &LinuxDevice) -> Result<(CString, Node)> {
    let path = device.path().to_string_lossy();
    let wrong = |what: &str| Error::invalid(format!("linux.devices: {path:?}: {what}"));
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::P => libc::S_IFIFO,
        LinuxDeviceType::A => return Err(wrong("type \"a\" is for rules only")),
    };
    let number = |n: i64| u32::try_from(n).map_err(|_| wrong("no device number"));
    let numbers = if kind == libc::S_IFIFO { 0 } else { rustix::fs::makedev(number(device.major())?, number(device.minor())?) };
    let clean = relative(&path)?;
    if clean.is_empty() || !path.starts_with('/') {
        return Err(wrong("not a path of a device"));
    }
    let node = Node {
        kind,
        mode: device.file_mode().unwrap_or(MODE) & 0o7777,
        device: numbers,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    };
    Ok((clean, node))
}
