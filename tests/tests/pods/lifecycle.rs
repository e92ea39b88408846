//! The order of a pod's life, ends and restarts.

use std::thread;
use std::time::Duration;

use tests::containerd::eventually;
use tests::cri::PodCase;
use tests::cri::api::{ContainerState, ListContainersRequest, PodSandboxState};
use tests::cri::pod::SOON;
use tests::{Failure, Result, ensure, ensure_eq, proc};

pub fn created_and_removed(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod("pod")?;
    let app = pod.create_with("app", &["sleep", "9999"], |_| {})?;
    ensure_eq!(app.status()?.state(), ContainerState::ContainerCreated, "state");
    app.remove()?;
    let other = pod.create_with("other", &["sleep", "9999"], |_| {})?;
    other.stop(1)?;
    other.remove()
}

pub fn stopped_and_removed_twice(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod("pod")?;
    let app = pod.sleeper("app")?;
    for _ in 0..2 {
        app.stop(0)?;
    }
    for _ in 0..2 {
        app.remove()?;
    }
    for _ in 0..2 {
        pod.stop()?;
    }
    for _ in 0..2 {
        pod.remove()?;
    }
    Ok(())
}

/// A pod of a finished Job stays until somebody removes it; nothing of it runs meanwhile.
pub fn stopped_and_kept(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod("pod")?;
    let app = pod.container("app", &["true"])?;
    app.wait_exit()?;
    pod.stop()?;
    let ids = case.watched();
    let shims = || {
        let of_case = |process: &proc::Process| ids.iter().any(|id| process.command_line.contains(id.as_str()));
        proc::all().into_iter().filter(of_case).map(|process| process.command_line).collect::<Vec<_>>()
    };
    eventually("nothing of the pod runs", Duration::from_secs(30), || shims().is_empty())?;
    // While containerd cleans up after the shim it answers that the connection is closed.
    let stopped = || pod.status().is_ok_and(|status| status.state() == PodSandboxState::SandboxNotready);
    eventually("the pod is not ready", SOON, stopped)?;
    ensure_eq!(app.status()?.state(), ContainerState::ContainerExited, "state of the container");
    pod.stop()?;
    app.remove()?;
    pod.remove()
}

pub fn termination(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod("pod")?;
    let polite = pod.container("polite", &["sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done"])?;
    let deaf = pod.container("deaf", &["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"])?;
    polite.wait_printed("ready")?;
    deaf.wait_printed("ready")?;
    polite.stop(20)?;
    ensure_eq!(polite.status()?.exit_code, 3, "exit code of what ends by itself");
    deaf.stop(1)?;
    ensure_eq!(deaf.status()?.exit_code, 137, "exit code of what does not");
    Ok(())
}

pub fn init_containers_and_sidecars(case: &PodCase<'_>) -> Result<()> {
    let dir = case.dir()?.join("volume");
    std::fs::create_dir_all(&dir)?;
    let volume = |config: &mut tests::cri::api::ContainerConfig| {
        config.mounts =
            vec![tests::cri::api::Mount { container_path: "/work".into(), host_path: dir.display().to_string(), ..Default::default() }];
    };
    let pod = case.pod("pod")?;
    let sidecar = pod.container_with("sidecar", &["sh", "-c", "echo up > /work/sidecar; exec sleep 9999"], volume)?;
    for name in ["init-1", "init-2"] {
        pod.output(name, &["sh", "-c", &format!("echo {name} >> /work/order")], volume)?;
    }
    let app = pod.container_with("app", &["sleep", "9999"], volume)?;
    ensure_eq!(app.shell("cat /work/order /work/sidecar")?, "init-1\ninit-2\nup", "what was done before");
    app.stop(0)?;
    ensure_eq!(sidecar.status()?.state(), ContainerState::ContainerRunning, "state of the sidecar");
    Ok(())
}

pub fn probes_and_restarts(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod("pod")?;
    for attempt in 0..3 {
        let app = pod.container_with("app", &["sh", "-c", "touch /tmp/live; sleep 9999"], |config| {
            config.metadata.get_or_insert_default().attempt = attempt;
            config.log_path = format!("app-{attempt}.log");
        })?;
        eventually("the probe passes", SOON, || app.exec(&["cat", "/tmp/live"]).is_ok_and(|done| done.exit_code == 0))?;
        app.shell("rm /tmp/live")?;
        ensure_eq!(app.exec(&["cat", "/tmp/live"])?.exit_code, 1, "exit code of the failed probe");
        app.stop(0)?;
        ensure_eq!(app.status()?.metadata.unwrap_or_default().attempt, attempt, "attempt");
        app.remove()?;
    }
    Ok(())
}

pub fn second_of_the_same_name(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod("pod")?;
    pod.sleeper("app")?;
    let again = pod.sleeper("app").err().map(|e| e.0).unwrap_or_default();
    ensure!(again.contains("reserved"), "a second container of the same name: {again:?}");
    let again = case.pod("pod").err().map(|e| e.0).unwrap_or_default();
    ensure!(again.contains("reserved"), "a second pod of the same name: {again:?}");
    Ok(())
}

pub fn no_such_command(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod("pod")?;
    let app = pod.create_with("app", &["/bin/nothing"], |_| {})?;
    let message = app.start().err().map(|e| e.0).unwrap_or_default();
    ensure!(message.contains("/bin/nothing"), "the message does not name the program: {message:?}");
    let status = app.status()?;
    ensure_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"), "end");
    Ok(())
}

pub fn pods_at_once(case: &PodCase<'_>) -> Result<()> {
    let results: Vec<Result<()>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..10).map(|number| scope.spawn(move || one_of_many(case, number))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err(Failure("panicked".to_owned())))).collect()
    });
    results.into_iter().collect::<Result<Vec<()>>>()?;
    let filter = tests::cri::api::ContainerFilter { label_selector: Default::default(), ..Default::default() };
    case.cri.list_containers(ListContainersRequest { filter: Some(filter) })?;
    Ok(())
}

/// Three pods one after the other, each by a client of its own.
fn one_of_many(case: &PodCase<'_>, number: usize) -> Result<()> {
    let mine = case.again()?;
    for round in 0..3 {
        let pod = mine.pod(&format!("pod-{number}-{round}"))?;
        let app = pod.sleeper("app")?;
        ensure_eq!(app.shell("hostname")?, format!("pod-{number}-{round}"), "name");
        pod.stop()?;
        pod.remove()?;
    }
    mine.close()
}

pub fn daemon_killed(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod("pod")?;
    let apps = [pod.sleeper("a")?, pod.sleeper("b")?, pod.sleeper("c")?];
    tests::command::signal(crate::basics::daemon_of(apps[0].pid()?)?, rustix::process::Signal::KILL)?;
    for app in &apps {
        // 255 where CRI's own call for the end broke before the answer of `delete` came.
        let code = app.wait_exit()?.exit_code;
        ensure!([137, 255].contains(&code), "exit code {code}");
    }
    eventually("the pod is not ready", SOON, || {
        pod.status().is_ok_and(|status| status.state() == tests::cri::api::PodSandboxState::SandboxNotready)
    })?;
    // Whoever adopted them may take a moment to wait for them.
    eventually("no process of the pod lives", SOON, || !tests::proc::all().iter().any(|p| p.cgroups.contains(case.word())))?;
    pod.stop()?;
    pod.remove()?;
    let again = case.pod("pod")?;
    ensure_eq!(again.sleeper("a")?.shell("echo works")?, "works", "a pod of the same name");
    Ok(())
}
