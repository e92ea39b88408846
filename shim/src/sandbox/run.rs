//! The start and the end of a pod.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use runtime_core::cgroup::{Cgroup, CgroupPath};
use runtime_core::compile::CgroupView;
use runtime_core::compile::pod::{self, CompiledPod};
use runtime_core::container::record::ProcessId;
use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use runtime_core::hold;
use runtime_core::plan::report;
use runtime_core::rdt::Groups;
use runtime_core::spec::Resources;
use runtime_core::sys::namespace;
use runtime_core::sys::process::send_signal;
use rustix::fs::{Mode, OFlags};
use tokio::time::timeout;

use crate::pod::settings::Network;
use crate::pod::{Held, Holder, Pod, files};
use crate::task::container::Container;
use crate::task::node::{Child, Node, Progress};
use crate::task::{lifecycle, scope};

/// How long processes that were killed may take to die.
const DEATH: Duration = Duration::from_secs(5);
/// The OOM killer takes it after everything else of the pod, as kubelet wants it of what holds one.
const OOM_SCORE: &str = "-998";

/// What is undone if a start fails half-way, and when a pod ends.
#[derive(Default)]
struct Made {
    making: scope::Making,
    child: Option<Child>,
}

/// Makes what the pod's containers share.
///
/// # Errors
/// The step that failed; nothing is left then.
pub async fn start(node: &Arc<Node>, pod: &Arc<Pod>) -> Result<SystemTime> {
    let _changing = pod.changing.lock().await;
    if pod.started_at().is_some() || pod.end().borrow().is_some() {
        return Err(Error::new(ErrorKind::FailedPrecondition, format!("sandbox {:?} was started already", pod.id)));
    }
    let mut made = Made::default();
    match make(node, pod, &mut made).await {
        Ok(held) => {
            let at = pod.started(held);
            if let Some(child) = made.child {
                watch(node, pod, child, made.making);
            }
            Ok(at)
        }
        Err(error) => {
            if let Some(child) = &made.child {
                node.kill(child.pid, &child.pidfd).await;
            }
            release(node, pod, made.making).await;
            Err(error)
        }
    }
}

async fn make(node: &Arc<Node>, pod: &Arc<Pod>, made: &mut Made) -> Result<Held> {
    let settings = &pod.settings;
    if settings.files {
        files::write(&pod.bundle, settings)?;
    }
    if settings.pid {
        let path = cgroup_path(node, pod).await?;
        pod.note(|record| record.cgroup = Some(path.clone()))?;
        node.watch(&watched(pod), &path).await?;
        made.making.make(node, &path, &pod.id, &Resources::default(), &[]).await?;
    }
    let (report, child_report) = report::pair().context(|| "socketpair")?;
    let user = user_namespace(pod)?;
    let CompiledPod { compiled, gives } = pod::pod(pod::Pod {
        namespaces: &settings.namespaces(),
        user: user.as_ref().map(|fd| fd.try_clone().context(|| "dup")).transpose()?,
        hostname: &settings.hostname,
        sysctl: &settings.sysctl,
        holder: made.making.cgroup.as_ref().map(holder).transpose()?,
        report: child_report,
    })?;
    let child = made.child.insert(node.launch(compiled, report).await?);
    made.making.settle(node, &Resources::default()).await?;
    let mut held = Held { user, ..Held::default() };
    for kind in gives {
        let given = Some(handed(child).await?);
        match kind {
            libc::CLONE_NEWNS => held.mounts = given,
            libc::CLONE_NEWNET => held.network = given,
            libc::CLONE_NEWIPC => held.ipc = given,
            _ => held.uts = given,
        }
    }
    let Progress::Executed = child.progress().await? else { return Err(killed()) };
    let (pid, pidfd) = (child.pid, Arc::clone(&child.pidfd));
    if made.making.cgroup.is_none() {
        node.wait(pid, &pidfd).await;
        made.child = None;
        return Ok(held);
    }
    let first = ProcessId::of(pid);
    pod.note(|record| record.init = first)?;
    node.watch_first(&watched(pod), first).await?;
    // Not everybody may lower it.
    if let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE) {
        log::debug!("{}: oom_score_adj {OOM_SCORE}: {error}, ignoring", pod.id);
    }
    held.holder = Some(Holder { pid, pidfd });
    Ok(held)
}

fn killed() -> Error {
    Error::new(ErrorKind::Internal, "the process that makes the pod's namespaces was killed")
}

fn holder(cgroup: &Cgroup) -> Result<pod::Holder> {
    Ok(pod::Holder { cgroup: CgroupView::of(cgroup, &Groups::default())?, program: hold::program()? })
}

async fn handed(child: &mut Child) -> Result<OwnedFd> {
    loop {
        match child.progress().await? {
            Progress::Handed(given) => return Ok(given),
            Progress::Born(_) => {}
            _ => return Err(killed()),
        }
    }
}

/// Waits for the end of the process that holds a pod.
fn watch(node: &Arc<Node>, pod: &Arc<Pod>, child: Child, making: scope::Making) {
    let (node, pod) = (Arc::clone(node), Arc::clone(pod));
    tokio::spawn(async move {
        let status = node.wait(child.pid, &child.pidfd).await.status;
        release(&node, &pod, making).await;
        pod.ended(status);
    });
}

async fn release(node: &Node, pod: &Pod, mut making: scope::Making) {
    making.undo(node, &pod.id).await;
    node.forget(&watched(pod)).await;
    if let Err(error) = pod.note(|record| (record.cgroup, record.init) = (None, None)) {
        log::warn!("{}: {error}, ignoring", pod.id);
    }
}

/// No container can have this name.
fn watched(pod: &Pod) -> String {
    format!("pod/{}", pod.id)
}

/// Where CRI puts the pause container of a pod, as a spec says it.
pub fn cgroups_path(node: &Node, pod: &Pod) -> String {
    let parent = &pod.settings.cgroup_parent;
    let directory = || Path::new(if parent.is_empty() { "/" } else { parent }).join(&pod.id).to_string_lossy().into_owned();
    scope_path(node, pod).unwrap_or_else(directory)
}

/// In a slice of kubelet's it is a scope.
fn scope_path(node: &Node, pod: &Pod) -> Option<String> {
    let name = Path::new(&pod.settings.cgroup_parent).file_name().and_then(|name| name.to_str());
    let path = format!("{}:cri-containerd:{}", name.filter(|name| name.ends_with(".slice"))?, pod.id);
    let config = &node.context.config;
    scope::by_systemd(config.options.systemd_cgroup, config.bootstrap.systemd_cgroup, Some(&path)).then_some(path)
}

async fn cgroup_path(node: &Node, pod: &Pod) -> Result<CgroupPath> {
    match scope_path(node, pod) {
        Some(path) => scope::place(node, true, Some(&path), &pod.id).await,
        None => CgroupPath::new(&node.host, Some(&cgroups_path(node, pod)), &pod.id),
    }
    .context(|| "cgroup_parent")
}

/// containerd makes the network namespace of such a pod in a user namespace that nobody else has.
fn user_namespace(pod: &Pod) -> Result<Option<OwnedFd>> {
    if !pod.settings.user {
        return Ok(None);
    }
    let Network::At(path) = &pod.settings.network else {
        let message = "userns_options: without a network namespace in it a pod has no user namespace";
        return Err(Error::invalid(message));
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let network = rustix::fs::open(path, flags, Mode::empty()).context(|| format!("netns_path: open {path:?}"))?;
    namespace::owner(network.as_fd()).context(|| format!("netns_path: user namespace of {path:?}")).map(Some)
}

/// Ends a pod: its containers first, which get `grace` after SIGTERM.
///
/// # Errors
/// [`ErrorKind::FailedPrecondition`] if a process does not die.
pub async fn stop(pod: &Arc<Pod>, containers: Vec<Arc<Container>>, grace: Duration) -> Result<()> {
    let _changing = pod.changing.lock().await;
    end_all(containers, grace).await?;
    pod.stopping();
    if let Some(Holder { pidfd, .. }) = pod.held().and_then(|held| held.holder.clone()) {
        let _ = send_signal(pidfd.as_fd(), libc::SIGKILL);
        let dead = async { pod.end().wait_for(Option::is_some).await.map(drop) };
        let late = |_| Error::new(ErrorKind::FailedPrecondition, format!("sandbox {:?}: its first process does not die", pod.id));
        let _ = timeout(DEATH, dead).await.map_err(late)?;
    }
    pod.ended(0);
    note_end(pod);
    Ok(())
}

/// For `delete`, should the daemon be gone by then.
fn note_end(pod: &Pod) {
    let Some(end) = *pod.end().borrow() else { return };
    let at = end.at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64);
    if let Err(error) = pod.note(|record| record.exited = Some((end.status, at))) {
        log::warn!("{}: {error}, ignoring", pod.id);
    }
}

async fn end_all(containers: Vec<Arc<Container>>, grace: Duration) -> Result<()> {
    let running: Vec<_> = containers.into_iter().filter(|container| container.init.exit().is_none()).collect();
    let all_told = async {
        for container in &running {
            container.init.wait_told().await;
        }
    };
    if !grace.is_zero() {
        running.iter().for_each(|container| drop(container.init.signal(libc::SIGTERM)));
        if timeout(grace, all_told).await.is_ok() {
            return Ok(());
        }
    }
    for container in running.iter().filter(|container| container.init.exit().is_none()) {
        match lifecycle::kill(container, &container.init, libc::SIGKILL, true).await {
            // It has ended meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result.context(|| format!("container {:?}", container.id))?,
        }
    }
    for container in &running {
        let late = |_| Error::new(ErrorKind::FailedPrecondition, format!("container {:?} does not die", container.id));
        timeout(DEATH, container.init.wait_told()).await.map_err(late)?;
    }
    Ok(())
}

/// The statistics of a pod: those of its cgroup, which holds the cgroups of its containers.
///
/// # Errors
/// [`ErrorKind::FailedPrecondition`] where it has none.
pub fn cgroup(node: &Node, pod: &Pod) -> Result<Cgroup> {
    let parent = Some(pod.settings.cgroup_parent.as_str()).filter(|parent| !parent.is_empty());
    let none = || Error::new(ErrorKind::FailedPrecondition, format!("sandbox {:?} has no cgroup of its own", pod.id));
    let parent = parent.ok_or_else(none)?;
    CgroupPath::new(&node.host, Some(parent), &pod.id).and_then(|path| Cgroup::open(&node.host, &path)).context(|| "cgroup_parent")
}
