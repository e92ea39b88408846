//! A process that does nothing: systemd makes a cgroup for a process only, and the container's own one is to be born in it.

use std::os::fd::OwnedFd;

use super::Compiled;
use crate::error::Result;
use crate::plan::{Builder, Launch, Program, Step};

/// Reports that it is ready, and stays until it is killed or nobody listens to it any more.
///
/// # Errors
/// None that input decides.
pub fn guest(report: OwnedFd) -> Result<Compiled> {
    let mut plan = Builder::default();
    let report = plan.give(report);
    plan.step(Step::Session);
    plan.step(Step::Ready);
    let (plan, descriptors) = plan.finish()?;
    Ok(Compiled { launch: Launch { plan, program: Program::default(), clone_flags: 0, cgroup: None, report }, descriptors })
}
