//! Exec and its start: a process that joins a container.

use std::os::fd::AsFd;
use std::sync::Arc;

use oci_spec::runtime::ContainerState;
use proto::api::ExecProcessRequest;
use proto::events::task::{TaskExecAdded, TaskExecStarted};
use runtime_core::compile::{self, CgroupView, Joining};
use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use runtime_core::plan::report;
use runtime_core::spec::{Process as Spec, Spec as Config};
use runtime_core::sys::process::send_signal;

use super::container::Container;
use super::create::{stdio, streams};
use super::node::{Child, Node, Progress};
use super::process::{Exit, Process};
use super::spawner::Loggers;
use super::state::{Action, State};
use crate::bootstrap::check_identifier;
use crate::io::{ChildEnds, Io, Origin};

/// Exit statuses that shells and runc's users know.
const NOT_FOUND: u32 = 127;
const NOT_EXECUTABLE: u32 = 126;
const FAILED: u32 = 255;

/// An exec'd process that waits for its start.
pub struct Pending {
    /// What the world sees of it.
    pub process: Arc<Process>,
    /// What it will run.
    pub spec: Spec,
}

/// Registers a process.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`], [`ErrorKind::FailedPrecondition`], or what is wrong with the spec.
pub fn add(node: &Node, container: &Container, request: &ExecProcessRequest) -> Result<Pending> {
    check_identifier("exec_id", &request.exec_id)?;
    container.init.state().allow(Action::Exec)?;
    let mut spec = Spec::parse_request(&request.spec.value)?;
    if spec.is_unconfined()
        && let Some(first) = Config::load(&container.bundle)?.process
    {
        spec.confine_as(&first);
    }
    // The request says what its client is prepared for.
    spec.terminal = request.terminal;
    let process = Arc::new(Process::new(&request.exec_id, stdio(&request.stdin, &request.stdout, &request.stderr, request.terminal)));
    container.add(Arc::clone(&process))?;
    let event = TaskExecAdded { container_id: container.id.clone(), exec_id: request.exec_id.clone(), ..TaskExecAdded::default() };
    node.context.events.publish(&event);
    Ok(Pending { process, spec })
}

/// Starts a registered process.
///
/// # Errors
/// The step that failed; the process has ended then.
pub async fn start(node: &Arc<Node>, container: &Arc<Container>, pending: Pending) -> Result<i32> {
    let Pending { process, spec } = pending;
    let telling = process.telling.lock().await;
    let started = match launch(node, container, &process, &spec).await {
        Ok((mut child, io)) => {
            let executed = accompany(&mut child, &io, container, &process).await;
            if executed.is_err() {
                // One that has failed by itself is ending; one that the daemon could not go along with would run on.
                let _ = send_signal(child.pidfd.as_fd(), libc::SIGKILL);
            }
            // Not before: the process whose end is to be told may only be born on the way.
            container.watch_exec(node, &process);
            executed.map(|()| child.pid)
        }
        Err(error) => {
            // There is no process whose end could be waited for.
            process.ended(Exit { status: status(&error), at: std::time::SystemTime::now() });
            process.told();
            Err(error)
        }
    };
    match &started {
        Ok(pid) => {
            process.advance(State::Running);
            process.announce();
            node.context.events.publish(&TaskExecStarted {
                container_id: container.id.clone(),
                exec_id: process.exec_id.clone(),
                pid: *pid as u32,
                ..TaskExecStarted::default()
            });
        }
        Err(error) => process.failed(status(error)),
    }
    drop(telling);
    if started.is_err() {
        // Its child reports and ends: what follows finds a stopped process.
        process.wait_told().await;
        if let Some(io) = process.io() {
            io.end_input();
        }
    }
    started
}

async fn launch(node: &Arc<Node>, container: &Arc<Container>, process: &Arc<Process>, spec: &Spec) -> Result<(Child, Arc<Io>)> {
    let loggers = Loggers(Arc::clone(node));
    let namespace = &node.context.config.bootstrap.namespace;
    let origin = Origin { id: &process.exec_id, namespace, spawner: Some(&loggers), streams: Some(&node.streams) };
    let (io, ends) = Io::open(&process.stdio, &origin, container.owner).await?;
    let io = Arc::new(io);
    match join(node, container, process, spec, ends, &io).await {
        Ok(child) => {
            io.start();
            Ok((child, io))
        }
        Err(error) => {
            // The other ends of its streams hear of their end as they do of any other.
            io.end_input();
            io.start();
            process.has_only(io);
            Err(error)
        }
    }
}

async fn join(node: &Node, container: &Container, process: &Process, spec: &Spec, ends: Option<ChildEnds>, io: &Arc<Io>) -> Result<Child> {
    let ended = || Error::new(ErrorKind::FailedPrecondition, "cannot exec in a stopped container");
    let ending = container.ending.read().await;
    if *ending {
        return Err(ended());
    }
    container.init.state().allow(Action::Exec)?;
    // By somebody else: a process that joins would stand still before it has begun.
    if container.cgroup.is_frozen()? {
        State::Paused.allow(Action::Exec)?;
    }
    let init = container.init.pidfd().ok_or_else(ended)?;
    let (report, child_report) = report::pair().context(|| "socketpair")?;
    let compiled = compile::joining(Joining {
        id: &container.id,
        namespaces: &container.namespaces,
        process: spec,
        init: init.try_clone().context(|| "dup")?,
        cgroup: CgroupView::joining(&container.cgroup, container.init.pid(), &container.groups)?,
        streams: streams(ends),
        filter: container.filter.as_deref(),
        report: child_report,
        preserved: Vec::new(),
        no_new_keyring: container.no_new_keyring,
    })?;
    let child = node.launch(compiled, report).await?;
    process.launched(child.pid, Arc::clone(&child.pidfd), Arc::clone(io));
    Ok(child)
}

async fn accompany(child: &mut Child, io: &Arc<Io>, container: &Container, process: &Process) -> Result<()> {
    let unexpected = || Error::new(ErrorKind::Internal, "an unexpected report of a joining process");
    loop {
        match child.progress().await? {
            Progress::Executed => return Ok(()),
            Progress::Born(born) => process.launched(born.pid, born.pidfd, Arc::clone(io)),
            Progress::Console(master) => io.attach_console(master)?,
            Progress::Listener(descriptor) => {
                let listener = container.listener.as_ref().ok_or_else(unexpected)?;
                listener.take(child, descriptor, ContainerState::Running, container.init.pid()).await?;
            }
            Progress::Ready | Progress::Hooks | Progress::Handed(_) => return Err(unexpected()),
        }
    }
}

fn status(error: &Error) -> u32 {
    match error.errno() {
        Some(libc::ENOENT | libc::ENOTDIR) => NOT_FOUND,
        Some(libc::EACCES | libc::EISDIR | libc::ENOEXEC | libc::EPERM) => NOT_EXECUTABLE,
        None if error.kind() == ErrorKind::NotFound => NOT_FOUND,
        _ => FAILED,
    }
}
