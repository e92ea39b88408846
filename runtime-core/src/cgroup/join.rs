//! Where a process that joins a running container is born: in the container's cgroup, or in that of its first process.
//!
//! Never in the caller's, and in no hierarchy by accident: a process without the container's limits and device rules is not in the container.

use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::dir::Dir;
use super::host::{Hierarchy, Version, path_in};
use super::tree::Tree;
use super::{Cgroup, Missing, v2};
use crate::error::{Context, Error, ErrorKind, Result};

/// What a process enters the cgroups of a container by.
#[derive(Debug)]
pub struct Entrance {
    /// `cgroup.procs` of each v1 hierarchy, open for writing.
    pub procs: Vec<OwnedFd>,
    /// The v2 directory, for `CLONE_INTO_CGROUP`.
    pub directory: Option<OwnedFd>,
}

/// `/proc/<pid>/cgroup` of the first process, or why it cannot be read.
type Places = Result<Vec<u8>>;

impl Cgroup {
    /// How a process joins the container whose first process is `init`.
    ///
    /// On version 1 it enters the container's own cgroup. On version 2 it is born there unless the first process has moved elsewhere, or has
    /// handed controllers to cgroups of its own (systemd or a container engine inside): then no process may be in the cgroup itself (cgroups(7),
    /// "no internal processes"), and as with runc the cgroup of `init` is taken. It is taken as well where the own one is gone.
    ///
    /// # Errors
    /// Neither can be entered in some hierarchy.
    pub fn entrance(&self, init: i32) -> Result<Entrance> {
        let file = format!("/proc/{init}/cgroup");
        let places: Places = std::fs::read(&file).context(|| format!("read {file}"));
        let mut procs = Vec::new();
        let mut directory = None;
        for tree in &self.trees {
            match tree.version {
                Version::V1 => procs.push(own_procs(tree, &places)?),
                Version::V2 => directory = Some(own_directory(tree, &places)?.into()),
            }
        }
        for Missing { hierarchy, place: own } in &self.missing {
            let place = place(hierarchy, &places).map_err(|error| without(own, &error))?;
            match hierarchy.version {
                Version::V1 => procs.push(procs_of(&place).context(|| format!("open {}/cgroup.procs", place.path()))?),
                Version::V2 => directory = Some(place.into()),
            }
        }
        Ok(Entrance { procs, directory })
    }
}

fn procs_of(dir: &Dir) -> Result<OwnedFd, Errno> {
    dir.open_file("cgroup.procs", OFlags::WRONLY)
}

fn own_procs(tree: &Tree, places: &Places) -> Result<OwnedFd> {
    let what = || format!("open {}/cgroup.procs", tree.dir.path());
    match procs_of(&tree.dir) {
        Err(Errno::NOENT | Errno::NODEV) => {
            let place = place(tree.hierarchy(), places).map_err(|error| without(tree.dir.path(), &error))?;
            procs_of(&place).context(what)
        }
        result => result.context(what),
    }
}

fn own_directory(tree: &Tree, places: &Places) -> Result<Dir> {
    let path = places.as_ref().ok().and_then(|places| path_in(tree.hierarchy(), places));
    let is_inside = path.and_then(|path| tree.hierarchy().below(path)).map(|path| tree.below(path).is_some());
    let is_gone = tree.dir.is_gone();
    // A place that cannot be read is taken for one inside, whose path is longer than the kernel tells.
    if !is_gone && is_inside != Some(false) && !v2::hands_down(&tree.dir)? {
        return tree.dir.open("").context(|| format!("open cgroup {}", tree.dir.path()));
    }
    place(tree.hierarchy(), places).map_err(|error| if is_gone { without(tree.dir.path(), &error) } else { error })
}

/// The cgroup of the first process.
fn place(hierarchy: &Hierarchy, places: &Places) -> Result<Dir> {
    let places = places.as_ref().map_err(|error| Error::new(error.kind(), error.to_string()))?;
    let nowhere = |why: &str| Error::new(ErrorKind::FailedPrecondition, format!("the first process's cgroup {why}"));
    let path = path_in(hierarchy, places).ok_or_else(|| nowhere("is not known"))?;
    let shown = String::from_utf8_lossy(path);
    let below = hierarchy.below(path).ok_or_else(|| nowhere(&format!("{shown:?} is outside of {}", hierarchy.mount_point)))?;
    hierarchy.open()?.descend(below).context(|| format!("open the first process's cgroup {shown:?}"))
}

fn without(place: &str, why: &Error) -> Error {
    Error::new(ErrorKind::FailedPrecondition, format!("cannot join the container: its cgroup {place} is gone, and {why}"))
}
