//! Programs of the host's: hooks and loggers.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use oci_spec::runtime::Hook;
use rustix::fs::{FileType, Gid, Uid};

use super::idmap::Maps;
use super::process::{UMASK, environment};
use super::user::become_root;
use super::{CgroupView, Compiled, Joined, cstring, cstrings};
use crate::error::{Context, Error, Result};
use crate::plan::{Builder, Launch, Program, Slot, Step};

/// Everything a helper of the host's is compiled from: a hook or a logger.
pub struct Helper<'a> {
    /// Absolute path.
    pub path: &'a Path,
    /// With the program's name first.
    pub arguments: &'a [String],
    /// What it finds in its environment.
    pub environment: Environment<'a>,
    /// Descriptors and the numbers that they get.
    pub descriptors: Vec<(OwnedFd, i32)>,
    /// Run in a container.
    pub inside: Option<Inside<'a>>,
    /// Where it starts, unless that is the container's root.
    pub directory: &'a Path,
    /// Where the child reports.
    pub report: OwnedFd,
}

/// A container whose first process has not left the host's tree yet.
pub struct Inside<'a> {
    /// The first process.
    pub init: OwnedFd,
    /// The container's namespaces.
    pub namespaces: &'a Joined,
    /// The container's cgroup.
    pub cgroup: CgroupView,
    /// Where the root is in the first process's mount namespace: there the helper starts.
    pub root: &'a Path,
}

/// The environment of a helper.
pub enum Environment<'a> {
    /// Exactly this.
    Given(&'a [String]),
    /// That of the runtime.
    Own,
}

impl Environment<'_> {
    fn strings(&self) -> Result<Vec<CString>> {
        match self {
            Self::Given(strings) => cstrings("env", environment(strings)),
            // What the kernel gave as C strings holds no NUL.
            Self::Own => Ok(std::env::vars_os()
                .filter_map(|(name, value)| CString::new([name.into_vec(), value.into_vec()].join(&b'=')).ok())
                .collect()),
        }
    }
}

/// A hook that runs in the runtime's namespaces, or in a container (`inside`): its arguments are its path if it has none, its
/// environment is the runtime's if it has none, as with runc and crun. That of the container's process never gets there: the program is one of
/// the host's, and an image could make it load a library (CVE-2025-23266).
///
/// # Errors
/// As [`helper`].
pub fn hook(hook: &Hook, bundle: &Path, streams: [OwnedFd; 3], inside: Option<Inside<'_>>, report: OwnedFd) -> Result<Compiled> {
    let maps = inside.as_ref().map(|inside| inside.namespaces.user(inside.init.as_fd())).transpose()?.flatten();
    if let Some(maps) = maps {
        streams.iter().try_for_each(|stream| give_to_root(stream, &maps))?;
    }
    helper(Helper {
        path: hook.path(),
        arguments: &hook_arguments(hook),
        environment: hook.env().as_deref().map_or(Environment::Own, Environment::Given),
        descriptors: streams.into_iter().zip(0..).collect(),
        directory: bundle,
        inside,
        report,
    })
}

/// What has no name elsewhere, as a pipe, becomes the user namespace's root's, who may open it again as `/dev/stderr`.
fn give_to_root(stream: &OwnedFd, maps: &Maps) -> Result<()> {
    let found = rustix::fs::fstat(stream).context(|| "fstat of a stream")?;
    let nameless = FileType::from_raw_mode(found.st_mode) == FileType::Fifo || found.st_nlink == 0;
    let (uid, gid) = (maps.host_uid(0).map(Uid::from_raw), maps.host_gid(0).map(Gid::from_raw));
    if nameless { rustix::fs::fchown(stream, uid, gid).context(|| "fchown of a stream") } else { Ok(()) }
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
    let inside = inputs.inside.map(|inside| Entry::give(&mut plan, inside));
    let last = streams.iter().map(|(_, number)| *number).max().unwrap_or(2);
    plan.step(Step::Umask { mask: UMASK });
    plan.step(Step::Relocate { above: last + 2 });
    for (from, number) in streams {
        plan.step(Step::Stream { number, from });
    }
    plan.step(Step::Session);
    let start = |directory: &Path| {
        let path = cstring("directory", &directory.to_string_lossy())?;
        Ok::<_, Error>(Step::WorkingDirectory { path, later: false })
    };
    match &inside {
        Some(entry) => entry.emit(&mut plan, start(entry.root)?),
        None => plan.step(start(inputs.directory)?),
    }
    plan.step(Step::FindProgram);
    plan.step(Step::CloseOthers { first: last + 1, parents_end: None });
    if inside.as_ref().is_some_and(Entry::is_born_inside) {
        plan.step(Step::Birth);
    }
    plan.step(Step::Exec { own: false });
    let (plan, descriptors) = plan.finish()?;
    let program = Program {
        name: inputs.path.to_string_lossy().into_owned(),
        candidates: vec![cstring("path", &inputs.path.to_string_lossy())?],
        arguments: cstrings("args", inputs.arguments)?,
        environment: inputs.environment.strings()?,
    };
    let cgroup = inside.and_then(|entry| entry.cgroup);
    let launch = Launch { plan, program, clone_flags: 0, cgroup, report };
    Ok(Compiled { launch, descriptors })
}

/// What is given of a container.
struct Entry<'a> {
    init: Slot,
    procs: Vec<Slot>,
    cgroup: Option<Slot>,
    namespaces: &'a Joined,
    root: &'a Path,
}

impl<'a> Entry<'a> {
    fn give(plan: &mut Builder, inside: Inside<'a>) -> Self {
        Self {
            init: plan.give(inside.init),
            procs: inside.cgroup.procs.into_iter().map(|fd| plan.give(fd)).collect(),
            cgroup: inside.cgroup.directory.map(|fd| plan.give(fd)),
            namespaces: inside.namespaces,
            root: inside.root,
        }
    }

    /// In a pid namespace of the container's own there is no process yet but its first one. One that others live in is left alone: they would see
    /// the hook, which has the host's tree as its root and all rights there, and could take it over.
    fn is_born_inside(&self) -> bool {
        self.namespaces.has_private_pid()
    }

    /// The root's path may lead through directories that only the host's root may pass, so it is entered before the user namespace.
    fn emit(&self, plan: &mut Builder, start: Step) {
        let Self { init, namespaces, .. } = *self;
        self.procs.iter().for_each(|&procs| plan.step(Step::JoinCgroup { procs }));
        if self.is_born_inside() {
            plan.step(Step::EnterPid { namespace: init });
        }
        plan.step(Step::Join { namespace: init, flags: libc::CLONE_NEWNS });
        plan.step(start);
        let others = namespaces.flags() & !libc::CLONE_NEWNS;
        if others != 0 {
            plan.step(Step::Join { namespace: init, flags: others });
        }
        if namespaces.has_user() {
            become_root(plan);
        }
    }
}
