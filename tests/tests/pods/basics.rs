//! Pods and containers from nothing to gone, and what runs in them.

use tests::cri::PodCase;
use tests::cri::api::{ContainerState, ExecSyncRequest, PodSandboxState, StatusRequest};
use tests::cri::pod::strings;
use tests::{Context, Result, ensure, ensure_eq, proc};

pub fn pod_and_container(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod("pod")?;
    ensure_eq!(pod.status()?.state(), PodSandboxState::SandboxReady, "state of the pod");
    let first = pod.sleeper("first")?;
    ensure_eq!(first.status()?.state(), ContainerState::ContainerRunning, "state");
    let second = pod.container("second", &["sh", "-c", "exit 7"])?;
    let status = second.wait_exit()?;
    ensure_eq!((status.exit_code, status.reason.as_str()), (7, "Error"), "end of the second");
    let daemon = daemon_of(first.pid()?)?;
    ensure_eq!(daemon_of(pod.sleeper("third")?.pid()?)?, daemon, "daemon of another container");
    let of_pod = proc::all().into_iter().filter(|process| process.cgroups.contains(case.word()));
    let names: Vec<String> = of_pod.map(|process| process.name).collect();
    if !case.style.has_pause() {
        ensure_eq!(
            (names.as_slice(), pod.pid()?),
            (["sleep", "sleep"].map(str::to_owned).as_slice(), 0),
            "processes of the pod, and its own"
        );
    } else {
        ensure_eq!((names.len(), daemon_of(pod.pid()?)?), (3, daemon), "processes {names:?} of the pod, and the daemon of its own");
    }
    first.stop(0)?;
    ensure_eq!(first.status()?.exit_code, 137, "exit code after SIGKILL");
    first.remove()?;
    pod.stop()?;
    ensure_eq!(pod.status()?.state(), PodSandboxState::SandboxNotready, "state of the stopped pod");
    pod.remove()
}

/// The parent of a container's first process.
pub fn daemon_of(pid: u32) -> Result<u32> {
    proc::parent(pid)
}

pub fn exec_sync(case: &PodCase<'_>) -> Result<()> {
    let container = case.pod("pod")?.sleeper("app")?;
    let done = container.exec(&["sh", "-c", "echo out; echo err >&2; exit 3"])?;
    ensure_eq!((done.exit_code, done.stdout.as_slice(), done.stderr.as_slice()), (3, &b"out\n"[..], &b"err\n"[..]), "answer");
    let request = ExecSyncRequest { container_id: container.id.clone(), cmd: strings(&["sleep", "1000"]), timeout: 1 };
    let late = case.cri.exec_sync(request).err().map(|status| status.code());
    ensure_eq!(late, Some(tonic::Code::DeadlineExceeded), "answer after the time limit");
    ensure!(!container.shell("ps")?.contains("sleep 1000\n"), "the process lives on after its time limit");
    Ok(())
}

pub fn logs(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod("pod")?;
    let container = pod.container("app", &["sh", "-c", "echo one; echo two >&2; printf three"])?;
    container.wait_exit()?;
    container.wait_printed("three")?;
    let log = std::fs::read_to_string(&container.log)?;
    let kinds: Vec<&str> = log.lines().filter_map(|line| line.split_once(' ').map(|(_, rest)| rest)).collect();
    for wanted in ["stdout F one", "stderr F two", "stdout P three"] {
        ensure!(kinds.contains(&wanted), "no {wanted:?} in {log:?}");
    }
    Ok(())
}

pub fn options(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod_of(&case.style.with_options(), "pod")?;
    let app = pod.sleeper("app")?;
    ensure_eq!(app.shell("echo works")?, "works", "exec");
    let bundle = case.node.containerd.dir().join("state/io.containerd.runtime.v2.task/k8s.io").join(&app.id);
    let options = std::fs::read_to_string(bundle.join("options.json"))?;
    ensure!(options.contains("\"no_new_keyring\":true"), "options: {options}");
    Ok(())
}

pub fn unknown_option(case: &PodCase<'_>) -> Result<()> {
    let refused = case.pod_of(&case.style.with_bad_options(), "pod").err().map(|e| e.0).unwrap_or_default();
    ensure!(refused.contains("unknown key") && refused.contains("Nope"), "the pod with an unknown option: {refused:?}");
    Ok(())
}

pub fn handler_features(case: &PodCase<'_>) -> Result<()> {
    let handlers = case.cri.status(StatusRequest { verbose: false })?.runtime_handlers;
    let handler = handlers.into_iter().find(|handler| handler.name == case.style.name());
    let features = handler.context(|| "CRI knows no such handler".to_owned())?.features.context(|| "it has no features".to_owned())?;
    ensure!(features.recursive_read_only_mounts && features.user_namespaces, "features: {features:?}");
    Ok(())
}
