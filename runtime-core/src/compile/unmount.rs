//! A process that unmounts something of the host's: the last user of a filesystem may have to wait until it is written back.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::{Compiled, cstring};
use crate::error::Result;
use crate::plan::{Builder, Launch, Program, Step};

/// Unmounts what is at a path, and ends.
///
/// # Errors
/// A path with a NUL.
pub fn unmount(path: &Path, report: OwnedFd) -> Result<Compiled> {
    let mut plan = Builder::default();
    let report = plan.give(report);
    plan.step(Step::Session);
    plan.step(Step::Unmount { path: cstring("path", &path.to_string_lossy())? });
    plan.step(Step::Keep);
    let (plan, descriptors) = plan.finish()?;
    let launch = Launch { plan, program: Program::default(), clone_flags: 0, cgroup: None, report };
    Ok(Compiled { launch, descriptors })
}
