//! What only version 1 has: cpusets that start empty, and a freezer with three states.

use super::dir::Dir;
use super::host::Version;
use super::tree::Tree;
use crate::error::{Context, Error, ErrorKind, Result};

/// A new cpuset has no processors and no memory nodes, and then takes no process (cpuset(7)): gives it those of its parent. Done after the
/// limits, so that a group with processors of its own never holds those of an exclusive sibling.
pub(super) fn inherit_cpuset(tree: &Tree) -> Result<()> {
    if tree.version == Version::V2 || !tree.has("cpuset") {
        return Ok(());
    }
    tree.parent()?.map_or(Ok(()), |(parent, _)| inherit(&parent, &tree.dir))
}

/// Fills what is empty in `child` with what `parent` has.
pub(super) fn inherit(parent: &Dir, child: &Dir) -> Result<()> {
    let read = |dir: &Dir, file| dir.read(file).context(|| format!("read {}/{file}", dir.path()));
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if read(child, file)?.trim().is_empty() {
            child.put(file, read(parent, file)?.trim())?;
        }
    }
    Ok(())
}

/// `freezer.state` (Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FreezerState {
    Thawed,
    /// Not all of them yet: reading the state makes the kernel look again.
    Freezing,
    Frozen,
}

pub(super) fn freezer_state(dir: &Dir) -> Result<FreezerState> {
    let text = dir.read("freezer.state").context(|| format!("read {}/freezer.state", dir.path()))?;
    match text.trim() {
        "THAWED" => Ok(FreezerState::Thawed),
        "FREEZING" => Ok(FreezerState::Freezing),
        "FROZEN" => Ok(FreezerState::Frozen),
        other => Err(Error::new(ErrorKind::Internal, format!("{}/freezer.state: unknown state {other:?}", dir.path()))),
    }
}
