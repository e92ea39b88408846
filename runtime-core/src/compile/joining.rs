//! Processes that join a running container.

use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::Hook;

use super::helper::hook_arguments;
use super::{CgroupView, Compiled, Joined, Streams, cstring, cstrings, give_streams, process, user};
use crate::error::{Error, Result};
use crate::plan::{Builder, Launch, Program, Slot, Step};
use crate::seccomp::Filter;
use crate::spec::Process;
use crate::spec::tuning::CpuAffinity;

/// Everything a joining process's plan is compiled from.
pub struct Joining<'a> {
    /// The container's id.
    pub id: &'a str,
    /// The container's namespaces.
    pub namespaces: &'a Joined,
    /// The process.
    pub process: &'a Process,
    /// The container's first process.
    pub init: OwnedFd,
    /// The container's cgroup.
    pub cgroup: CgroupView,
    /// The standard streams.
    pub streams: Streams,
    /// The container's filter.
    pub filter: Option<&'a Filter>,
    /// Where the child reports.
    pub report: OwnedFd,
    /// What the program gets as descriptors from 3 on.
    pub preserved: Vec<OwnedFd>,
    /// Leave the caller's session keyring in place.
    pub no_new_keyring: bool,
}

/// A process that joins a running container.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) by the field's name.
pub fn joining(inputs: Joining<'_>) -> Result<Compiled> {
    let program = process::program(inputs.process)?;
    join(inputs, program, process::Home::LookedUp)
}

/// A `startContainer` hook: the program is the hook's, everything else is as for the container's first process, which is ready and waits.
pub struct StartContainerHook<'a> {
    /// The container's id.
    pub id: &'a str,
    /// The container's namespaces.
    pub namespaces: &'a Joined,
    /// The container's first process, as the spec has it.
    pub process: &'a Process,
    /// The hook. Its path is one of the container's. Without an environment of its own it has that of the process, as with runc.
    pub hook: &'a Hook,
    /// The container's first process, running.
    pub init: OwnedFd,
    /// The container's cgroup.
    pub cgroup: CgroupView,
    /// The state as JSON, and where the output goes.
    pub streams: [OwnedFd; 3],
    /// The container's filter.
    pub filter: Option<&'a Filter>,
    /// Where the child reports.
    pub report: OwnedFd,
    /// Leave the caller's session keyring in place.
    pub no_new_keyring: bool,
}

/// A `startContainer` hook (OCI config.md, "startContainer Hooks"): it runs inside, as the user, with the program's limits, capabilities,
/// filter and working directory, before the program itself is executed.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) for a relative path or strings with NUL.
pub fn start_container_hook(inputs: StartContainerHook<'_>) -> Result<Compiled> {
    let StartContainerHook { hook, .. } = inputs;
    let path = hook.path().to_string_lossy();
    if !path.starts_with('/') {
        return Err(Error::invalid(format!("hooks.startContainer: {path:?} is not absolute")));
    }
    let (environment, home) = match hook.env().as_deref() {
        None | Some([]) => (process::program(inputs.process)?.environment, process::Home::LookedUp),
        Some(own) => (cstrings("hooks.startContainer", process::environment(own))?, process::Home::AsGiven),
    };
    let program = Program {
        name: path.clone().into_owned(),
        candidates: vec![cstring("hooks.startContainer", &path)?],
        arguments: cstrings("hooks.startContainer", &hook_arguments(hook))?,
        environment,
    };
    // That is for what joins a container that runs, and not for what its first process would do itself.
    let process = Process { exec_cpu_affinity: None, ..inputs.process.clone() };
    let joining = Joining {
        id: inputs.id,
        namespaces: inputs.namespaces,
        process: &process,
        init: inputs.init,
        cgroup: inputs.cgroup,
        streams: Streams::Given(inputs.streams),
        filter: inputs.filter,
        report: inputs.report,
        preserved: Vec::new(),
        no_new_keyring: inputs.no_new_keyring,
    };
    join(joining, program, home)
}

fn join(inputs: Joining<'_>, program: Program, home: process::Home) -> Result<Compiled> {
    let process = inputs.process;
    let mut plan = Builder::default();
    let report = plan.give(inputs.report);
    let kept = process::Kept::give(&mut plan, inputs.preserved, None);
    let streams = give_streams(&mut plan, inputs.streams);
    let procs: Vec<Slot> = inputs.cgroup.procs.into_iter().map(|fd| plan.give(fd)).collect();
    let cgroup = inputs.cgroup.directory.map(|fd| plan.give(fd));
    let user = inputs.namespaces.user(inputs.init.as_fd())?;
    let init = plan.give(inputs.init);

    let [early, late] = process.exec_cpu_affinity.as_ref().map(CpuAffinity::masks).transpose()?.unwrap_or_default();
    early.into_iter().for_each(|mask| plan.step(Step::Affinity { mask }));
    procs.iter().for_each(|&procs| plan.step(Step::JoinCgroup { procs }));
    late.into_iter().for_each(|mask| plan.step(Step::Affinity { mask }));
    process::host_side(&mut plan, process)?;
    match &user {
        None => {
            process::raise_limits(&mut plan, process);
            process::keyring(&mut plan, inputs.id, inputs.no_new_keyring)?;
        }
        Some(maps) => process::with_host_rights(&mut plan, &streams, process, maps),
    }
    let birth = inputs.namespaces.has_pid();
    if birth {
        // While the process has the host's rights: the pid namespace may belong to the host's user namespace.
        plan.step(Step::EnterPid { namespace: init });
    }
    plan.step(Step::Join { namespace: init, flags: inputs.namespaces.flags() });
    if user.is_some() {
        user::become_root(&mut plan);
        process::keyring(&mut plan, inputs.id, inputs.no_new_keyring)?;
    }
    process::joined_streams(&mut plan, &streams, process, user.is_some())?;
    let how = process::Confinement {
        common: inputs.namespaces,
        home,
        filter: inputs.filter,
        terminal: streams.is_terminal(),
        birth,
        until: process::Until::Executed,
    };
    process::confine(&mut plan, process, &kept, how)?;

    let (plan, descriptors) = plan.finish()?;
    let launch = Launch { plan, program, clone_flags: 0, cgroup, report };
    Ok(Compiled { launch, descriptors })
}
