//! What only version 2 has: controllers handed down level by level, and events.

use super::dir::Dir;
use crate::error::{Error, ErrorKind, Result};

/// Makes controllers available to the children of `parent`: those of `wanted`, or all, that it has and does not hand down yet, in one write.
///
/// A controller that cannot be handed down (realtime tasks) is no failure here: a limit that needs it will say so. Of a parent with processes
/// the kernel would still take some (cpu, cpuset, pids), but its children could then be threaded cgroups only, so none is handed down.
pub(super) fn hand_down(parent: &Dir, wanted: Option<&[&'static str]>) -> Result<()> {
    if wanted.is_some_and(<[_]>::is_empty) {
        return Ok(());
    }
    let enabled = parent.read_if_any("cgroup.subtree_control")?.unwrap_or_default();
    let available = controllers(parent)?;
    let is_wanted = |name: &&String| wanted.is_none_or(|wanted| wanted.contains(&name.as_str()));
    let missing = available.iter().filter(is_wanted).filter(|name| !enabled.split_whitespace().any(|other| other == *name));
    let missing: Vec<String> = missing.map(|name| format!("+{name}")).collect();
    if missing.is_empty() || is_occupied(parent)? || parent.write("cgroup.subtree_control", &missing.join(" ")).is_ok() {
        return Ok(());
    }
    for one in &missing {
        let _ = parent.write("cgroup.subtree_control", one);
    }
    Ok(())
}

/// Whether processes are in `dir` itself. They may be in the root, which alone has no type, whatever it hands down.
fn is_occupied(dir: &Dir) -> Result<bool> {
    let is_root = dir.read_if_any("cgroup.type")?.is_none();
    Ok(!is_root && dir.read_if_any("cgroup.procs")?.is_some_and(|pids| !pids.trim().is_empty()))
}

pub(super) fn controllers(dir: &Dir) -> Result<Vec<String>> {
    Ok(dir.read_if_any("cgroup.controllers")?.unwrap_or_default().split_whitespace().map(str::to_owned).collect())
}

/// Whether a controller is enabled for the children of `dir`: processes may then be in these only.
pub(super) fn hands_down(dir: &Dir) -> Result<bool> {
    Ok(dir.read_if_any("cgroup.subtree_control")?.is_some_and(|enabled| !enabled.trim().is_empty()))
}

/// A cgroup below a threaded one takes no process until it is made threaded itself, and then has no memory or io controller (cgroups(7)).
pub(super) fn refuse_unless_domain(dir: &Dir) -> Result<()> {
    let kind = dir.read_if_any("cgroup.type")?.unwrap_or_default();
    match kind.trim() {
        "" | "domain" => Ok(()),
        other => {
            let message = format!("cgroup {} is of type {other:?}: a container needs a domain", dir.path());
            Err(Error::new(ErrorKind::FailedPrecondition, message))
        }
    }
}

/// `cgroup.events`. Of a cgroup that is gone: neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Events {
    pub populated: bool,
    pub frozen: bool,
}

pub(super) fn events(dir: &Dir) -> Result<Events> {
    let text = dir.read_if_any("cgroup.events")?.unwrap_or_default();
    let is_set = |line| text.lines().any(|other| other == line);
    Ok(Events { populated: is_set("populated 1"), frozen: is_set("frozen 1") })
}

/// Whether the cgroup itself, not an ancestor, is to be frozen.
pub(super) fn freeze_wanted(dir: &Dir) -> Result<bool> {
    Ok(dir.read_if_any("cgroup.freeze")?.is_some_and(|text| text.trim() == "1"))
}
