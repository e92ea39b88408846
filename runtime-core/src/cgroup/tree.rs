//! One hierarchy's directory of a container.

use std::rc::Rc;

use rustix::io::Errno;

use super::dir::Dir;
use super::host::{Hierarchy, Version};
use super::path::CgroupPath;
use super::walk::{Step, Walk};
use super::{v1, v2};
use crate::error::{Error, ErrorKind, Result};

/// The directory, what is in force in it, and how to reach its parent again.
#[derive(Debug)]
pub(super) struct Tree {
    pub version: Version,
    /// Controllers in force here, by the names of this version.
    controllers: Vec<String>,
    pub dir: Dir,
    hierarchy: Hierarchy,
    path: String,
}

/// The directories made so far; dropping it removes them again, unless kept.
#[derive(Debug, Default)]
pub(super) struct Made(Vec<(Rc<Dir>, String)>);

impl Made {
    /// All went well: nothing is removed.
    pub fn keep(mut self) {
        self.0.clear();
    }

    /// Whether the directory of `tree` was made and not found.
    pub fn is_new(&self, tree: &Tree) -> bool {
        self.0
            .iter()
            .any(|(parent, name)| tree.dir.path().strip_prefix(parent.path()).is_some_and(|rest| rest.strip_prefix('/') == Some(name)))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for (parent, name) in self.0.drain(..).rev() {
            // A parent that somebody else has begun to use is EBUSY and stays.
            let _ = parent.remove(&name);
        }
    }
}

impl Tree {
    /// The hierarchy that the directory is in.
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// Makes the directory and what is missing above it. `wanted`: which v2 controllers to hand down, `None` for all.
    pub fn create(hierarchy: &Hierarchy, path: &CgroupPath, wanted: Option<&[&'static str]>, made: &mut Made) -> Result<Self> {
        let path = path.in_hierarchy(hierarchy.name())?;
        let mut dir = Rc::new(hierarchy.open()?);
        let mut names = path.split('/').peekable();
        while let Some(name) = names.next() {
            if hierarchy.version == Version::V2 {
                v2::hand_down(&dir, wanted)?;
            }
            if dir.make(name)? {
                made.0.push((Rc::clone(&dir), name.to_owned()));
            }
            let child = dir.open(name).map_err(|errno| Error::kernel(format!("open cgroup {}/{name}", dir.path()), errno))?;
            if names.peek().is_some() && hierarchy.controllers.iter().any(|controller| controller == "cpuset") {
                v1::inherit(&dir, &child)?;
            }
            dir = Rc::new(child);
        }
        let dir = Rc::into_inner(dir).ok_or_else(|| Error::new(ErrorKind::Internal, "cgroup directory is held twice"))?;
        if hierarchy.version == Version::V2 {
            v2::refuse_unless_domain(&dir)?;
        }
        Self::new(hierarchy, path, dir)
    }

    /// Opens the directory if it exists.
    pub fn open(hierarchy: &Hierarchy, path: &CgroupPath) -> Result<Option<Self>> {
        let path = path.in_hierarchy(hierarchy.name())?;
        let root = hierarchy.open()?;
        match root.open(&path) {
            Ok(dir) => Self::new(hierarchy, path, dir).map(Some),
            Err(Errno::NOENT | Errno::NODEV) => Ok(None),
            Err(errno) => Err(Error::kernel(format!("open cgroup {}/{path}", root.path()), errno)),
        }
    }

    /// A directory below this one, which must exist.
    pub fn open_below(&self, path: &str) -> Result<Self> {
        let dir = self.dir.open(path).map_err(|errno| Error::kernel(format!("open cgroup {}/{path}", self.dir.path()), errno))?;
        Self::new(&self.hierarchy, format!("{}/{path}", self.path), dir)
    }

    fn new(hierarchy: &Hierarchy, path: String, dir: Dir) -> Result<Self> {
        let controllers = match hierarchy.version {
            Version::V1 => hierarchy.controllers.clone(),
            Version::V2 => v2::controllers(&dir)?,
        };
        Ok(Self { version: hierarchy.version, controllers, dir, hierarchy: hierarchy.clone(), path })
    }

    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    /// What follows this directory in a path from the hierarchy's mount point, if it is inside.
    pub fn below<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        let rest = path.strip_prefix(b"/")?.strip_prefix(self.path.as_bytes())?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b"/") }
    }

    /// The parent directory, opened anew, and the name of this one in it. `None` when the parent is gone, and this one with it.
    pub fn parent(&self) -> Result<Option<(Dir, &str)>> {
        let (parent, name) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        match self.hierarchy.open()?.open(parent) {
            Ok(dir) => Ok(Some((dir, name))),
            Err(Errno::NOENT | Errno::NODEV) => Ok(None),
            Err(errno) => Err(Error::kernel(format!("open the parent of cgroup {}", self.dir.path()), errno)),
        }
    }

    /// A directory that was there before may be used only if nobody is in it and it would let processes run.
    pub fn refuse_if_used(&self) -> Result<()> {
        let refuse = |why: String| Err(Error::new(ErrorKind::FailedPrecondition, format!("cgroup {} {why}", self.dir.path())));
        let count = self.first_processes()?;
        if count > 0 {
            return refuse(format!("is not empty: {count} process(es) found"));
        }
        let frozen = match self.version {
            Version::V1 => self.has("freezer") && v1::freezer_state(&self.dir)? != v1::FreezerState::Thawed,
            Version::V2 => v2::freeze_wanted(&self.dir)?,
        };
        if frozen { refuse("is frozen".to_owned()) } else { Ok(()) }
    }

    /// How many processes are in the first cgroup that has any, of this one and all below it.
    fn first_processes(&self) -> Result<usize> {
        let what = |errno| Error::kernel(format!("look into cgroup {}", self.dir.path()), errno);
        let mut walk = Walk::of(&self.dir).map_err(what)?;
        while let Some(step) = walk.next() {
            let count = if matches!(step, Step::Entered) { walk.dir().own_pids()?.len() } else { 0 };
            if count > 0 {
                return Ok(count);
            }
        }
        walk.end().map(|()| 0)
    }
}
