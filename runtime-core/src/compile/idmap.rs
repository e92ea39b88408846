//! `uidmap=` and `gidmap=` of a root filesystem's mount, as containerd's snapshotters write them
//! (containerd `core/mount/mount_idmapped_linux.go`): `container-id:host-id:size[,…]`.

use std::ffi::CString;

use super::cstring;
use super::options::Options;
use crate::error::{Context, Error, Result};
use crate::plan::{Builder, Slot, Step};

/// The maps of a user namespace, as the kernel takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maps {
    uid: CString,
    gid: CString,
}

impl Maps {
    /// Takes the maps out of the options, which then go to the filesystem without them.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) for what is no map, or for one of the two alone.
    pub fn take(options: &mut Options) -> Result<Option<Self>> {
        match (options.take("uidmap"), options.take("gidmap")) {
            (None, None) => Ok(None),
            (Some(uid), Some(gid)) => Ok(Some(Self { uid: map("uidmap", &uid)?, gid: map("gidmap", &gid)? })),
            _ => Err(Error::invalid("uidmap/gidmap: one without the other")),
        }
    }
}

/// Lines as in `/proc/<pid>/uid_map` (user_namespaces(7)).
fn map(key: &str, text: &str) -> Result<CString> {
    let lines = text.split(',').map(|range| line(range).context(|| format!("{key}: {range:?}"))).collect::<Result<String>>()?;
    cstring(key, &lines)
}

fn line(range: &str) -> Result<String> {
    let shape = || Error::invalid("not container-id:host-id:size");
    let numbers = range.split(':').map(|number| number.parse().map_err(|_| shape())).collect::<Result<Vec<u32>>>()?;
    let [inside, outside, size] = numbers[..] else { return Err(shape()) };
    let fits = |first: u32| first.checked_add(size).is_some();
    if size == 0 || !fits(inside) || !fits(outside) {
        return Err(Error::invalid("not a range of ids"));
    }
    Ok(format!("{inside} {outside} {size}\n"))
}

/// The user namespaces of a plan: mounts with the same maps share one.
#[derive(Default)]
pub struct Namespaces(Vec<(Maps, Slot)>);

impl Namespaces {
    /// Where the namespace with these maps is, made if it is the first of its kind.
    pub fn slot(&mut self, plan: &mut Builder, maps: Maps) -> Slot {
        if let Some((_, slot)) = self.0.iter().find(|(known, _)| *known == maps) {
            return *slot;
        }
        let namespace = plan.slot();
        plan.step(Step::UserNamespace { uid_map: maps.uid.clone(), gid_map: maps.gid.clone(), namespace });
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
        assert_eq!((maps.uid.to_str().unwrap(), maps.gid.to_str().unwrap()), ("0 100000 65536\n65536 7 1\n", "0 5 4294967290\n"));
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
