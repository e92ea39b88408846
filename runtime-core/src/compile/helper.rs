//! Programs of the host's: hooks and loggers.

use std::os::fd::OwnedFd;
use std::path::Path;

use oci_spec::runtime::Hook;

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

/// A hook that runs in the runtime's namespaces, or in those of a process (`inside`): its arguments are its path if it has none.
///
/// # Errors
/// As [`helper`].
pub fn hook(hook: &Hook, bundle: &Path, streams: [OwnedFd; 3], inside: Option<(OwnedFd, i32)>, report: OwnedFd) -> Result<Compiled> {
    helper(Helper {
        path: hook.path(),
        arguments: &hook_arguments(hook),
        environment: hook.env().as_deref().unwrap_or_default(),
        descriptors: streams.into_iter().zip(0..).collect(),
        directory: if inside.is_some() { Path::new("/") } else { bundle },
        inside,
        report,
    })
}

pub(super) fn hook_arguments(hook: &Hook) -> Vec<String> {
    match hook.args() {
        Some(arguments) if !arguments.is_empty() => arguments.clone(),
        _ => vec![hook.path().to_string_lossy().into_owned()],
    }
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
