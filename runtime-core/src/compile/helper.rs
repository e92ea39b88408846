//! Programs of the host's: hooks and loggers.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::process::UMASK;
use super::{Compiled, cstring, cstrings};
use crate::error::{Error, Result};
use crate::plan::{Builder, Launch, Program, Slot, Step};

/// Everything a helper of the host's is compiled from: a hook or a logger.
pub struct Helper<'a> {
    /// Absolute path.
    pub path: &'a Path,
    /// With the program's name first.
    pub arguments: &'a [String],
    /// Exactly this.
    pub environment: &'a [String],
    /// Descriptors and the numbers that they get.
    pub descriptors: Vec<(OwnedFd, i32)>,
    /// Run in the namespaces of this process.
    pub inside: Option<(OwnedFd, i32)>,
    /// Where it starts.
    pub directory: &'a Path,
    /// Where the child reports.
    pub report: OwnedFd,
}

/// A program of the host's, with nothing but what it is given.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) for strings with NUL or a relative path.
pub fn helper(inputs: Helper<'_>) -> Result<Compiled> {
    if !inputs.path.is_absolute() {
        return Err(Error::invalid(format!("path {:?} is not absolute", inputs.path)));
    }
    let mut plan = Builder::default();
    let report = plan.give(inputs.report);
    let streams: Vec<(Slot, i32)> = inputs.descriptors.into_iter().map(|(fd, number)| (plan.give(fd), number)).collect();
    let inside = inputs.inside.map(|(fd, flags)| (plan.give(fd), flags));
    let last = streams.iter().map(|(_, number)| *number).max().unwrap_or(2);
    plan.step(Step::Umask { mask: UMASK });
    plan.step(Step::Relocate { above: last + 2 });
    plan.step(Step::Session);
    if let Some((namespace, flags)) = inside {
        plan.step(Step::Join { namespace, flags });
    }
    let directory = cstring("directory", &inputs.directory.to_string_lossy())?;
    plan.step(Step::WorkingDirectory { path: directory, later: false });
    plan.step(Step::FindProgram);
    for (from, number) in streams {
        plan.step(Step::Stream { number, from });
    }
    plan.step(Step::CloseOthers { first: last + 1, parents_end: None });
    plan.step(Step::Exec);
    let (plan, descriptors) = plan.finish();
    let program = Program {
        name: inputs.path.to_string_lossy().into_owned(),
        candidates: vec![cstring("path", &inputs.path.to_string_lossy())?],
        arguments: cstrings("args", inputs.arguments)?,
        environment: cstrings("env", inputs.environment)?,
    };
    let launch = Launch { plan, program, clone_flags: 0, cgroup: None, pid_namespace: None, report };
    Ok(Compiled { launch, descriptors })
}
