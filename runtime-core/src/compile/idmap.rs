//! `uidmap=` and `gidmap=` of a root filesystem's mount, as containerd's snapshotters write them
//! (containerd `core/mount/mount_idmapped_linux.go`): `container-id:host-id:size[,…]`.

use std::ffi::CString;
use std::os::fd::BorrowedFd;

use oci_spec::runtime::LinuxIdMapping;

use super::options::Options;
use crate::error::{Context, Error, Result};
use crate::plan::child::idmap;
use crate::plan::{Builder, Slot, Step};

/// The maps of a user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maps {
    uid: Vec<Range>,
    gid: Vec<Range>,
}

/// As in a line of `/proc/<pid>/uid_map` (user_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    inside: u32,
    outside: u32,
    size: u32,
}

impl Range {
    fn new(inside: u32, outside: u32, size: u32) -> Result<Self> {
        let fits = |first: u32| first.checked_add(size).is_some();
        if size == 0 || !fits(inside) || !fits(outside) {
            return Err(Error::invalid("not a range of ids"));
        }
        Ok(Self { inside, outside, size })
    }
}

impl Maps {
    /// Takes the maps out of the options, which then go to the filesystem without them.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) for what is no map, or for one of the two alone.
    pub fn take(options: &mut Options) -> Result<Option<Self>> {
        match (options.take("uidmap"), options.take("gidmap")) {
            (None, None) => Ok(None),
            (Some(uid), Some(gid)) => Ok(Some(Self { uid: ranges("uidmap", &uid)?, gid: ranges("gidmap", &gid)? })),
            _ => Err(Error::invalid("uidmap/gidmap: one without the other")),
        }
    }

    /// Those of the spec.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) for what is no range.
    pub fn of(uid: &[LinuxIdMapping], gid: &[LinuxIdMapping]) -> Result<Self> {
        let range = |mapping: &LinuxIdMapping| Range::new(mapping.container_id(), mapping.host_id(), mapping.size());
        let all =
            |field: &str, mappings: &[LinuxIdMapping]| mappings.iter().map(range).collect::<Result<Vec<_>>>().context(|| field.to_owned());
        Ok(Self { uid: all("uidMappings", uid)?, gid: all("gidMappings", gid)? })
    }

    /// Those of a user namespace.
    ///
    /// # Errors
    /// The errno of joining it.
    pub fn of_namespace(namespace: BorrowedFd<'_>) -> Result<Self> {
        Self::shown(&idmap::maps_of(namespace).context(|| "maps of the user namespace")?)
    }

    /// Those of the user namespace that a process is in.
    ///
    /// # Errors
    /// The errno for a process that is gone.
    pub fn of_process(pidfd: BorrowedFd<'_>) -> Result<Self> {
        Self::shown(&idmap::maps_of_process(pidfd).context(|| "maps of the user namespace")?)
    }

    fn shown([uid, gid]: &[String; 2]) -> Result<Self> {
        let ranges = |text: &str| text.lines().map(|line| numbers(line.split_whitespace())).collect::<Result<Vec<_>>>();
        Ok(Self { uid: ranges(uid)?, gid: ranges(gid)? })
    }

    /// Both as the kernel takes them.
    pub fn lines(&self) -> (CString, CString) {
        let lines = |ranges: &[Range]| {
            let text: String = ranges.iter().map(|range| format!("{} {} {}\n", range.inside, range.outside, range.size)).collect();
            // Digits and spaces hold no NUL.
            CString::new(text).unwrap_or_default()
        };
        (lines(&self.uid), lines(&self.gid))
    }

    /// What a user of the container is on the host.
    pub fn host_uid(&self, uid: u32) -> Option<u32> {
        host_id(&self.uid, uid)
    }

    /// What a group of the container is on the host.
    pub fn host_gid(&self, gid: u32) -> Option<u32> {
        host_id(&self.gid, gid)
    }
}

fn host_id(ranges: &[Range], id: u32) -> Option<u32> {
    let range = ranges.iter().find(|range| id >= range.inside && id - range.inside < range.size)?;
    Some(range.outside + (id - range.inside))
}

fn ranges(key: &str, text: &str) -> Result<Vec<Range>> {
    text.split(',').map(|range| numbers(range.split(':')).context(|| format!("{key}: {range:?}"))).collect()
}

fn numbers<'a>(words: impl Iterator<Item = &'a str>) -> Result<Range> {
    let shape = || Error::invalid("not container-id:host-id:size");
    let numbers = words.map(|number| number.parse().map_err(|_| shape())).collect::<Result<Vec<u32>>>()?;
    let [inside, outside, size] = numbers[..] else { return Err(shape()) };
    Range::new(inside, outside, size)
}

/// The user namespaces of a plan: mounts with the same maps share one.
#[derive(Default)]
pub struct Namespaces(Vec<(Maps, Slot)>);

impl Namespaces {
    /// One that is there already.
    pub fn know(&mut self, maps: Maps, slot: Slot) {
        self.0.push((maps, slot));
    }

    /// Where the namespace with these maps is, made if it is the first of its kind.
    pub fn slot(&mut self, plan: &mut Builder, maps: Maps) -> Slot {
        if let Some((_, slot)) = self.0.iter().find(|(known, _)| *known == maps) {
            return *slot;
        }
        let namespace = plan.slot();
        let (uid_map, gid_map) = maps.lines();
        plan.step(Step::UserNamespace { uid_map, gid_map, namespace });
        self.0.push((maps, namespace));
        namespace
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(options: &[&str]) -> Result<Option<Maps>> {
        Maps::take(&mut Options::parse(options.iter().copied()).unwrap())
    }

    #[test]
    fn all_ranges_are_read() {
        let maps = take(&["uidmap=0:100000:65536,65536:7:1", "gidmap=0:5:4294967290"]).unwrap().unwrap();
        let (uid, gid) = maps.lines();
        assert_eq!((uid.to_str().unwrap(), gid.to_str().unwrap()), ("0 100000 65536\n65536 7 1\n", "0 5 4294967290\n"));
        assert_eq!(
            (maps.host_uid(0), maps.host_uid(65535), maps.host_uid(65536), maps.host_uid(65537)),
            (Some(100_000), Some(165_535), Some(7), None)
        );
        assert_eq!(take(&["ro", "index=off"]).unwrap(), None);
    }

    #[test]
    fn what_is_no_map_is_refused() {
        for bad in ["", "0:1", "0:1:2:3", "a:1:2", "0:-1:2", "0:1:0", "0:4294967295:2", "0:1:2,", "4294967296:0:1"] {
            let error = take(&[&format!("uidmap={bad}"), "gidmap=0:0:1"]).unwrap_err().to_string();
            assert!(error.starts_with("uidmap: "), "{bad}: {error}");
        }
        assert!(take(&["gidmap=0:0:1"]).unwrap_err().to_string().contains("one without the other"));
    }
}
