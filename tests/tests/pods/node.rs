//! What happens to a whole node: containerd killed and started again, all pods in one daemon.

use std::os::unix::fs::MetadataExt;

use rustix::process::Signal;
use tests::command::signal;
use tests::containerd::eventually;
use tests::cri::api::{ContainerState, PodSandboxState};
use tests::cri::pod::SOON;
use tests::cri::{Node, PodCase, Style};
use tests::{Result, ensure, ensure_eq, proc};

use crate::basics::daemon_of;

/// Pods live on, what ended meanwhile is told, and all calls work again.
pub fn containerd_killed(node: &mut Node, style: Style) -> Result<()> {
    let case = PodCase::new(node, style)?;
    let pod = case.pod("pod")?;
    let stays = pod.container("stays", &["sh", "-c", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done"])?;
    let ends = pod.container("ends", &["sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done"])?;
    ends.wait_printed("ready")?;
    let (first, ending) = (stays.pid()?, ends.pid()?);
    let (pod, stays, ends) = (pod.saved(), stays.saved(), ends.saved());
    let case = case.suspend();
    node.containerd.kill()?;
    signal(ending, Signal::TERM)?;
    eventually("the container ended without containerd", SOON, || proc::process(ending).is_none_or(|process| process.state == 'Z'))?;
    node.restart()?;
    let case = case.resume(node)?;
    let (pod, stays, ends) = (pod.of(&case), stays.of(&case), ends.of(&case));
    ensure_eq!(pod.status()?.state(), PodSandboxState::SandboxReady, "state of the pod");
    ensure_eq!(ends.wait_exit()?.exit_code, 9, "exit code of what ended meanwhile");
    ensure_eq!((stays.status()?.state(), stays.pid()?), (ContainerState::ContainerRunning, first), "state and process of what did not");
    ensure_eq!(stays.shell("echo works")?, "works", "exec");
    let seen = stays.stdout()?.lines().count();
    eventually("its output goes on", SOON, || stays.stdout().is_ok_and(|text| text.lines().count() > seen + 3))?;
    let again = pod.sleeper("again")?;
    again.stop(0)?;
    pod.stop()?;
    pod.remove()?;
    case.close()
}

/// Pods of a node in node mode have one daemon, which stays while one of them does.
pub fn one_daemon(node: &mut Node, style: Style) -> Result<()> {
    let case = PodCase::new(node, style)?;
    let pods = [case.pod("a")?, case.pod("b")?, case.pod("c")?];
    let apps = [pods[0].sleeper("app")?, pods[1].sleeper("app")?, pods[2].sleeper("app")?];
    let daemon = daemon_of(apps[0].pid()?)?;
    for app in &apps {
        ensure_eq!(daemon_of(app.pid()?)?, daemon, "daemon of {:?}", app.config.metadata);
    }
    // The first, in whose name it was started, goes first.
    for pod in &pods[..2] {
        pod.stop()?;
        pod.remove()?;
        ensure_eq!(pods[2].status()?.state(), PodSandboxState::SandboxReady, "state of the last pod");
    }
    let later = case.pod("later")?;
    ensure_eq!(daemon_of(later.sleeper("app")?.pid()?)?, daemon, "daemon of a later pod");
    signal(daemon, Signal::KILL)?;
    for pod in [&pods[2], &later] {
        eventually("the pod is not ready", SOON, || pod.status().is_ok_and(|status| status.state() == PodSandboxState::SandboxNotready))?;
    }
    apps[2].wait_exit()?;
    eventually("no process of the pods lives", SOON, || !proc::all().iter().any(|p| p.cgroups.contains(case.word())))?;
    pods[2].stop()?;
    pods[2].remove()?;
    ensure_eq!(case.pod("c")?.sleeper("app")?.shell("echo works")?, "works", "a pod of the same name");
    case.close()
}

/// Another program takes the place of the shim's: what runs is served by the old one, what comes by the new one.
pub fn upgraded(node: &mut Node, style: Style) -> Result<()> {
    replaced(node, style, true)
}

/// With a pause container, containerd calls the program for each container, and the new one has a daemon of its own for the node.
pub fn upgraded_in_node_mode(node: &mut Node, style: Style) -> Result<()> {
    replaced(node, style, !style.has_pause())
}

fn replaced(node: &mut Node, style: Style, stays: bool) -> Result<()> {
    let case = PodCase::new(node, style)?;
    let old = case.pod("old")?;
    let before = old.sleeper("before")?;
    node.replace_shim()?;
    let after = old.sleeper("after")?;
    ensure_eq!(daemon_of(after.pid()?)? == daemon_of(before.pid()?)?, stays, "the old daemon serves a new container in the old pod");
    ensure_eq!((after.shell("hostname")?, before.shell("hostname")?), ("old".to_owned(), "old".to_owned()), "exec in both");
    let new = case.pod("new")?.sleeper("app")?;
    let program = |pid| Ok::<_, tests::Failure>(std::fs::metadata(format!("/proc/{}/exe", daemon_of(pid)?))?.ino());
    ensure!(program(new.pid()?)? != program(before.pid()?)?, "the new pod is served by the old program");
    ensure_eq!(new.shell("hostname")?, "new", "exec in the new pod");
    before.stop(0)?;
    after.stop(0)?;
    old.stop()?;
    old.remove()?;
    ensure_eq!(new.shell("echo works")?, "works", "exec in the new pod after the end of the old one");
    case.close()
}
