//! Start, pause, resume, update and delete of a container.

use std::sync::Arc;
use std::time::Duration;

use proto::events::task::{TaskDelete, TaskPaused, TaskResumed, TaskStart};
use proto::protobuf::MessageField;
use runtime_core::cgroup::FreezeStep;
use runtime_core::container::hooks::Point;
use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use runtime_core::rdt;
use runtime_core::spec::Resources;
use tokio::io::Interest;
use tokio::time::{Instant, timeout};

use super::container::Container;
use super::create::{forget_record, remove};
use super::node::{Child, Node, Progress};
use super::process::{Exit, Process};
use super::scope;
use super::shown;
use super::state::{Action, State};
use crate::clock::timestamp;
use crate::failpoint::{self, Rpc};
use crate::io::Drained;
use crate::io::watched::Watched;
use crate::slices::Slices;

/// How long output may take to be read after the process has ended, as in containerd's runc shim.
const DRAIN: Duration = Duration::from_secs(10);
const FREEZE: Duration = Duration::from_secs(10);
/// How long a cgroup may take to go while Delete is waited for; after that it is tried in the background.
const REMOVAL: Duration = Duration::from_secs(2);
const LATE_REMOVAL: Duration = Duration::from_secs(600);
/// How long a process that was told to die may take.
const DEATH: Duration = Duration::from_secs(5);
/// How long the server of a root filesystem may keep such a process waiting.
const ANSWER: Duration = Duration::from_secs(2);

/// Lets the first process go.
///
/// # Errors
/// The step that failed; the process has ended then.
pub async fn start(node: &Arc<Node>, container: &Arc<Container>, child: Option<Child>) -> Result<i32> {
    let init = &container.init;
    init.state().allow(Action::Start)?;
    let mut child = child.ok_or_else(|| Error::new(ErrorKind::FailedPrecondition, "process was started already"))?;
    if let Err(error) = container.hooks.run_in_container(node, container, &child.pidfd, child.pid).await {
        // runtime.md, "Lifecycle": a hook that fails stops the container.
        let _ = init.signal(libc::SIGKILL);
        init.wait_told().await;
        return Err(error);
    }
    let telling = init.telling.lock().await;
    failpoint::inside(Rpc::Start).await?;
    let started = release(&mut child).await;
    if started.is_ok() {
        init.advance(State::Running);
        let event = TaskStart { container_id: container.id.clone(), pid: child.pid as u32, ..TaskStart::default() };
        node.context.events.publish(&event);
    }
    drop(telling);
    if let Err(error) = started {
        // One that has failed by itself is ending; one that the daemon could not go along with would run on.
        let _ = init.signal(libc::SIGKILL);
        init.wait_told().await;
        return Err(error);
    }
    if let Err(error) = container.hooks.run(node, Point::Poststart, child.pid, None).await {
        let _ = container.cgroup.kill_by(&mut Slices::default()).await;
        return Err(error);
    }
    Ok(child.pid)
}

async fn release(child: &mut Child) -> Result<()> {
    child.go().map_err(|_| Error::new(ErrorKind::FailedPrecondition, "the first process was killed before its start"))?;
    match child.progress().await? {
        Progress::Executed => Ok(()),
        _ => Err(Error::new(ErrorKind::Internal, "an unexpected report of the first process")),
    }
}

/// Freezes the container.
///
/// # Errors
/// Not running, or not frozen in time: it is thawed then.
pub async fn pause(node: &Node, container: &Container) -> Result<()> {
    container.init.state().allow(Action::Pause)?;
    container.init.advance(State::Pausing);
    if let Err(error) = freeze(container).await {
        let _ = container.cgroup.thaw();
        container.init.advance(State::Running);
        return Err(error.context("pause"));
    }
    container.init.advance(State::Paused);
    node.context.events.publish(&TaskPaused { container_id: container.id.clone(), ..TaskPaused::default() });
    Ok(())
}

async fn freeze(container: &Container) -> Result<()> {
    let deadline = Instant::now() + FREEZE;
    let events = container.cgroup.events()?;
    let watched = match &events {
        Some(events) => {
            let fd = std::os::fd::AsFd::as_fd(events).try_clone_to_owned().context(|| "dup")?;
            Some(Watched::new(fd, Interest::PRIORITY)?)
        }
        None => None,
    };
    for step in 0.. {
        let pause = match container.cgroup.freeze_step(step)? {
            FreezeStep::Frozen => return failpoint::inside(Rpc::Pause).await,
            FreezeStep::Pending(pause) => pause,
        };
        if Instant::now() >= deadline {
            break;
        }
        if let (Some(watched), Some(events)) = (&watched, &events) {
            let _ = timeout(pause, watched.ready()).await;
            events.acknowledge()?;
        } else {
            tokio::time::sleep(pause).await;
        }
    }
    Err(Error::new(ErrorKind::Internal, format!("not frozen after {} s", FREEZE.as_secs())))
}

/// Thaws the container.
///
/// # Errors
/// Not paused, or the kernel refuses.
pub fn resume(node: &Node, container: &Container) -> Result<()> {
    // Somebody else may have frozen it.
    let state = container.init.state();
    if state != State::Running || !container.cgroup.is_frozen()? {
        state.allow(Action::Resume)?;
    }
    container.cgroup.thaw().context(|| "resume")?;
    if state == State::Running {
        // No event has said that it was paused.
        return Ok(());
    }
    container.init.advance(State::Running);
    node.context.events.publish(&TaskResumed { container_id: container.id.clone(), ..TaskResumed::default() });
    Ok(())
}

/// Changes limits.
///
/// # Errors
/// The field that could not be changed.
pub async fn update(node: &Node, container: &Container, resources: &Resources) -> Result<()> {
    container.init.state().allow(Action::Update)?;
    let updated = scope::update(node, container.scope.as_ref(), &container.cgroup, resources).await;
    // A limit that the container does not fit into ends it, and systemd removes its cgroup at once.
    if updated.is_err() && container.scope.is_some() && container.cgroup.stats().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        return Err(Error::new(ErrorKind::NotFound, "update: the container has ended meanwhile, its cgroup is gone"));
    }
    updated.context(|| "update")
}

/// Sends a signal to a process, or to all of the container.
///
/// # Errors
/// [`ErrorKind::NotFound`] after the end.
pub async fn kill(container: &Arc<Container>, process: &Process, signal: i32, all: bool) -> Result<()> {
    if !(0..=64).contains(&signal) {
        return Err(Error::invalid(format!("{signal} is no signal")));
    }
    if signal == libc::SIGKILL && process.exec_id.is_empty() {
        container.account.note_kill();
        outlast_servers(container);
    }
    if all && process.exec_id.is_empty() {
        return kill_all(container, signal).await;
    }
    process.signal(signal)?;
    if signal == libc::SIGKILL {
        thaw(container).await;
    }
    Ok(())
}

/// A frozen process of cgroup v1 does not even die, whichever process froze it, and in whichever cgroup below.
async fn thaw(container: &Container) {
    if let Err(error) = container.cgroup.thaw_all_by(&mut Slices::default()).await {
        log::warn!("{}: {error}", container.id);
    }
}

/// A process that waits for an answer of its root filesystem's server cannot be killed, until the server is.
fn outlast_servers(container: &Arc<Container>) {
    if container.servers.is_empty() {
        return;
    }
    let container = Arc::clone(container);
    tokio::spawn(async move {
        if timeout(ANSWER, container.init.wait_told()).await.is_err() {
            log::warn!("{}: a process does not die, killing the servers of its root filesystem", container.id);
            for server in &container.servers {
                server.kill().await;
            }
        }
    });
}

async fn kill_all(container: &Container, signal: i32) -> Result<()> {
    let mut slices = Slices::default();
    let cgroup = &container.cgroup;
    if container.init.state() == State::Stopped && cgroup.pids_by(&mut slices).await?.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, "process already finished"));
    }
    if signal == libc::SIGKILL { cgroup.kill_by(&mut slices).await } else { cgroup.signal_by(signal, &mut slices).await }
}

/// What is told of a deleted process.
pub struct Deleted {
    /// Its process id.
    pub pid: i32,
    /// How it ended.
    pub exit: Exit,
}

/// Forgets a container that has ended, or was never started.
///
/// # Errors
/// [`ErrorKind::FailedPrecondition`] while it runs.
pub async fn delete(node: &Arc<Node>, container: &Arc<Container>) -> Result<Deleted> {
    let init = &container.init;
    init.state().allow(Action::Delete)?;
    if init.state() == State::Created {
        // Its end is told like any other.
        outlast_servers(container);
        let _ = init.signal(libc::SIGKILL);
        thaw(container).await;
        let dead = timeout(DEATH, init.wait_told()).await;
        dead.map_err(|_| Error::new(ErrorKind::FailedPrecondition, "the first process does not die"))?;
    }
    let exit = init.exit().ok_or_else(|| Error::new(ErrorKind::FailedPrecondition, "the first process has not ended"))?;
    for exec in container.execs() {
        drain(&container.id, &exec, Duration::ZERO).await;
    }
    drain(&container.id, init, DRAIN).await;
    remove_cgroup(node, container).await;
    if let Some(network) = &container.network {
        network.release().await;
    }
    if let Err(error) = rdt::remove(&container.groups.of_container()) {
        log::warn!("{}: {error}, ignoring", container.id);
    }
    failpoint::inside(Rpc::Delete).await?;
    node.forget(&container.id).await;
    if let Err(error) = container.hooks.run(node, Point::Poststop, 0, None).await {
        log::warn!("{}: {error}, ignoring", container.id);
    }
    if let Some(path) = &container.shown
        && let Err(error) = shown::hide(node, path).await
    {
        log::warn!("{}: {error}, ignoring", container.id);
    }
    // They end when no process uses the root filesystem any more.
    for server in &container.servers {
        server.end().await;
    }
    if let Err(error) = forget_record(container.pod.as_deref(), &container.bundle) {
        log::warn!("{}: {error}, ignoring", container.id);
    }
    node.context.events.publish(&TaskDelete {
        container_id: container.id.clone(),
        pid: init.pid() as u32,
        exit_status: exit.status,
        exited_at: MessageField::some(timestamp(exit.at)),
        ..TaskDelete::default()
    });
    Ok(Deleted { pid: init.pid(), exit })
}

/// Now, or in the background.
async fn remove_cgroup(node: &Arc<Node>, container: &Arc<Container>) {
    let removed = remove(&container.cgroup, REMOVAL).await;
    if let Err(error) = &removed {
        log::warn!("{}: {error}, trying on", container.id);
        let (node, container) = (Arc::clone(node), Arc::clone(container));
        tokio::spawn(async move {
            let removed = remove(&container.cgroup, LATE_REMOVAL).await;
            if let Err(error) = removed.and(scope::stop(&node, container.scope.as_ref()).await) {
                log::error!("{}: {error}, giving up", container.id);
            }
        });
    } else if let Err(error) = scope::stop(node, container.scope.as_ref()).await {
        log::warn!("{}: {error}, ignoring", container.id);
    }
}

/// Forgets an exec'd process that has ended, or was never started (`unstarted`). One that is being started is ended first.
///
/// # Errors
/// [`ErrorKind::FailedPrecondition`] while it runs.
pub async fn delete_exec(container: &Container, process: &Process, unstarted: bool) -> Result<Deleted> {
    if !unstarted && process.state() == State::Created {
        process.is_unwanted();
        let over = async {
            drop(process.telling.lock().await);
            process.wait_told().await;
        };
        let late = |_| Error::new(ErrorKind::FailedPrecondition, "the process is being started and does not die");
        timeout(DEATH, over).await.map_err(late)?;
    }
    process.state().allow(Action::Delete)?;
    drain(&container.id, process, DRAIN).await;
    container.remove(&process.exec_id);
    let exit = process.exit().unwrap_or(Exit { status: 0, at: std::time::SystemTime::now() });
    Ok(Deleted { pid: process.pid(), exit })
}

async fn drain(id: &str, process: &Process, bound: Duration) {
    let Some(io) = process.io() else { return };
    if let Drained::Truncated(lost) = io.drained(bound).await {
        log::warn!("{id} {}: {lost} bytes of output were not read until the deletion and are lost", process.exec_id);
    }
}
