//! A walk over a cgroup and all below it.
//!
//! Each directory is opened by its one name from the one above, and left by `..`, so that two descriptors do for any depth, and neither the
//! depth nor the length of the names matters. What cannot be read is skipped, and is the error at the end.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};

use rustix::io::Errno;

use super::dir::Dir;
use super::pace::Pace;
use crate::error::{Error, ErrorKind, Result};

/// How many entries of a directory are read in one step.
const ENTRIES: usize = 256;
/// The link count of a directory without subdirectories: those of kernfs are counted as on any Unix filesystem.
const LEAF: u64 = 2;

/// What has just been done.
#[derive(Debug)]
pub(super) enum Step {
    /// [`Walk::dir`] is one that was not seen before.
    Entered,
    /// [`Walk::dir`] is the parent of this one, which is done with, and all below it.
    Left(CString),
    /// Some names were read.
    Looked,
}

/// See the module.
pub(super) struct Walk {
    root: String,
    here: Dir,
    /// One below `here` that has none below itself.
    leaf: Option<(CString, Dir)>,
    levels: Vec<Level>,
    listing: Option<rustix::fs::Dir>,
    entered: bool,
    failure: Option<Error>,
}

/// A directory between the root of the walk and where it stands.
struct Level {
    name: CString,
    inode: u64,
    below: Vec<CString>,
}

impl Walk {
    /// Starts above the first step.
    ///
    /// # Errors
    /// The root is gone.
    pub fn of(root: &Dir) -> Result<Self, Errno> {
        let here = root.open("")?;
        let mut walk =
            Self { root: root.path().to_owned(), here, leaf: None, levels: Vec::new(), listing: None, entered: false, failure: None };
        let stat = rustix::fs::fstat(&walk.here)?;
        walk.go_down(CString::default(), stat.st_ino, stat.st_nlink == LEAF)?;
        Ok(walk)
    }

    /// Where the walk stands.
    pub fn dir(&self) -> &Dir {
        self.leaf.as_ref().map_or(&self.here, |(_, dir)| dir)
    }

    /// The next step; `None` at the end.
    pub fn next(&mut self) -> Option<Step> {
        if !std::mem::replace(&mut self.entered, true) {
            return Some(Step::Entered);
        }
        if let Some((name, _)) = self.leaf.take() {
            return Some(Step::Left(name));
        }
        if self.listing.is_some() {
            self.list();
            return Some(Step::Looked);
        }
        while let Some(name) = self.levels.last_mut()?.below.pop() {
            if self.enter(name) {
                return Some(Step::Entered);
            }
        }
        self.go_up()
    }

    /// What could not be looked at, the first of it.
    ///
    /// # Errors
    /// That failure.
    pub fn end(self) -> Result<()> {
        self.failure.map_or(Ok(()), Err)
    }

    /// Notes a failure that must not stop the walk.
    pub fn note(&mut self, failure: Error) {
        self.failure.get_or_insert(failure);
    }

    /// Whether there is anything to see: it may be gone by now.
    fn enter(&mut self, name: CString) -> bool {
        let path = self.label(&name);
        let opened = self.here.child(&name, path.clone()).and_then(|dir| Ok((rustix::fs::fstat(&dir)?, dir)));
        match opened {
            Ok((stat, dir)) if stat.st_nlink == LEAF => self.leaf = Some((name, dir)),
            Ok((stat, dir)) => {
                let above = std::mem::replace(&mut self.here, dir);
                if let Err(errno) = self.go_down(name, stat.st_ino, false) {
                    self.here = above;
                    self.note_unless_gone(errno, &path);
                    return false;
                }
            }
            Err(errno) => {
                self.note_unless_gone(errno, &path);
                return false;
            }
        }
        true
    }

    fn go_down(&mut self, name: CString, inode: u64, is_leaf: bool) -> Result<(), Errno> {
        self.listing = if is_leaf { None } else { Some(rustix::fs::Dir::read_from(&self.here)?) };
        self.levels.push(Level { name, inode, below: Vec::new() });
        Ok(())
    }

    fn go_up(&mut self) -> Option<Step> {
        let left = self.levels.pop()?;
        let (name, inode) = self.levels.last().map(|level| (level.name.clone(), level.inode))?;
        let path = if self.levels.len() == 1 { self.root.clone() } else { self.label(&name) };
        let above = self.here.above(path).and_then(|dir| Ok((rustix::fs::fstat(&dir)?.st_ino, dir)));
        match above {
            Ok((found, dir)) if found == inode => self.here = dir,
            Ok(_) => {
                self.note(Error::new(ErrorKind::Internal, format!("cgroup {} has another parent than before", self.here.path())));
                self.levels.clear();
                return None;
            }
            Err(errno) => {
                self.note(Error::kernel(format!("open the parent of cgroup {}", self.here.path()), errno));
                self.levels.clear();
                return None;
            }
        }
        Some(Step::Left(left.name))
    }

    fn list(&mut self) {
        let (Some(listing), Some(level)) = (&mut self.listing, self.levels.last_mut()) else { return };
        for _ in 0..ENTRIES {
            match listing.next() {
                Some(Ok(entry)) => {
                    let name = entry.file_name();
                    if entry.file_type().is_dir() && name != c"." && name != c".." {
                        level.below.push(name.to_owned());
                    }
                }
                Some(Err(errno)) => {
                    self.listing = None;
                    let path = self.here.path().to_owned();
                    return self.note_unless_gone(errno, &path);
                }
                None => {
                    self.listing = None;
                    return;
                }
            }
        }
    }

    fn note_unless_gone(&mut self, errno: Errno, path: &str) {
        if !matches!(errno, Errno::NOENT | Errno::NODEV) {
            self.note(Error::kernel(format!("look into cgroup {path}"), errno));
        }
    }

    /// The whole path may be longer than any message.
    fn label(&self, name: &CStr) -> String {
        let between = if self.levels.len() > 1 { "/..." } else { "" };
        format!("{}{between}/{}", self.root, name.to_string_lossy())
    }
}

/// Does `visit` in the cgroup and in all below it, parents first. What is gone, or vanishes meanwhile, is left out.
///
/// # Errors
/// The first failure; it stops nothing.
pub(super) async fn each(root: &Dir, pace: &mut impl Pace, mut visit: impl FnMut(&Dir) -> Result<()> + Send) -> Result<()> {
    let mut walk = match Walk::of(root) {
        Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
        result => result.map_err(|errno| Error::kernel(format!("look into cgroup {}", root.path()), errno))?,
    };
    while let Some(step) = walk.next() {
        if matches!(step, Step::Entered)
            && let Err(error) = visit(walk.dir())
        {
            walk.note(error);
        }
        pace.rest().await;
    }
    walk.end()
}

/// Adds the process ids in the cgroup and in all below it to `pids`.
///
/// # Errors
/// The first failure; what can be seen is added.
pub(super) async fn pids(root: &Dir, pids: &mut BTreeSet<i32>, pace: &mut impl Pace) -> Result<()> {
    each(root, pace, |dir| {
        pids.extend(dir.own_pids()?);
        Ok(())
    })
    .await
}
