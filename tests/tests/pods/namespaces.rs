//! Which namespaces a container shares, and with whom.

use tests::containerd::eventually;
use tests::cri::PodCase;
use tests::cri::api::NamespaceMode;
use tests::cri::pod::{SOON, namespaces, security};
use tests::{Context, Result, ensure, ensure_eq};

/// The namespaces of a process of the host, as links.
fn of_host(pid: u32, kind: &str) -> Result<String> {
    let link = format!("/proc/{pid}/ns/{kind}");
    Ok(std::fs::read_link(&link).context(|| link)?.to_string_lossy().into_owned())
}

pub fn containers_share_the_pod(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod("boat")?;
    let (a, b) = (pod.sleeper("a")?, pod.sleeper("b")?);
    let (first, second) = (a.pid()?, b.pid()?);
    for kind in ["net", "ipc", "uts"] {
        ensure_eq!(of_host(first, kind)?, of_host(second, kind)?, "namespace {kind} of both");
        ensure!(of_host(first, kind)? != of_host(case.node.containerd.pid(), kind)?, "namespace {kind} is the host's");
    }
    for kind in ["pid", "mnt"] {
        ensure!(of_host(first, kind)? != of_host(second, kind)?, "namespace {kind} is common");
    }
    ensure_eq!(a.shell("hostname; cat /etc/hostname")?, "boat\nboat", "the pod's name");
    a.shell("echo here > /dev/shm/file")?;
    ensure_eq!(b.shell("cat /dev/shm/file")?, "here", "what the other wrote to /dev/shm");
    ensure!(a.shell("ip -o -4 addr show eth0")?.contains("10.88."), "no address of the pod's network");
    ensure!(a.shell("ip -o link show lo")?.contains("UP"), "the loopback is down");
    Ok(())
}

pub fn shared_pid_namespace(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod_with("pod", |config| namespaces(config).pid = NamespaceMode::Pod.into())?;
    let in_pod = |config: &mut _| pid_mode(config, NamespaceMode::Pod, "");
    let a = pod.container_with("a", &["sh", "-c", "sleep 7777 & exec sleep 8888"], in_pod)?;
    let b = pod.container_with("b", &["sleep", "9999"], in_pod)?;
    eventually("b sees all of a", SOON, || b.shell("ps").is_ok_and(|ps| ps.contains("sleep 7777") && ps.contains("sleep 8888")))?;
    let (first, name) = (b.shell("cat /proc/1/comm")?, if !case.style.has_pause() { "coracle-pod" } else { "pause" });
    ensure_eq!(first, name, "process 1");
    if !case.style.has_pause() {
        // Nothing of the host's is to be seen of it, and orphans do not pile up.
        ensure_eq!(b.shell("tr '\\0' ' ' < /proc/1/cmdline")?.trim(), name, "arguments of process 1");
        ensure_eq!(
            b.shell("grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs):' /proc/1/status | cut -f2")?,
            "65535\n0000000000000000\n0000000000000000\n1",
            "rights of process 1"
        );
        b.shell("(sleep 0 & sleep 0 &) ; sleep 0.2")?;
        eventually("no orphan is left", SOON, || {
            b.shell("grep -l '^State:.*Z' /proc/[0-9]*/status || true").is_ok_and(|left| left.is_empty())
        })?;
    }
    // Without a process 1 of its own, the end of the container's first process ends the others by the cgroup.
    a.stop(0)?;
    let left = b.shell("ps")?;
    ensure!(!left.contains("sleep 7777") && left.contains("sleep 9999"), "after the end of a: {left}");
    Ok(())
}

pub fn targeted_pid_namespace(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod("pod")?;
    let app = pod.container("app", &["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"])?;
    let debugger = pod.container_with("debugger", &["sleep", "9999"], |config| pid_mode(config, NamespaceMode::Target, &app.id))?;
    ensure_eq!(of_host(app.pid()?, "pid")?, of_host(debugger.pid()?, "pid")?, "namespace");
    ensure!(debugger.shell("cat /proc/1/cmdline | tr '\\0' ' '")?.contains("trap"), "process 1 is not the target's");
    debugger.shell("kill -TERM 1")?;
    ensure_eq!(app.wait_exit()?.exit_code, 0, "exit code of the target");
    // The kernel ends the namespace with its process 1.
    ensure_eq!(debugger.wait_exit()?.exit_code, 137, "exit code of the debugger");
    Ok(())
}

fn pid_mode(config: &mut tests::cri::api::ContainerConfig, mode: NamespaceMode, target: &str) {
    let options = security(config).namespace_options.get_or_insert_default();
    options.pid = mode.into();
    options.target_id = target.to_owned();
}

pub fn host_network(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod_with("pod", |config| {
        namespaces(config).network = NamespaceMode::Node.into();
        // The kubelet names only pods that have a network of their own.
        config.hostname.clear();
    })?;
    let app = pod.container_with("app", &["sleep", "9999"], |config| {
        let options = security(config).namespace_options.get_or_insert_default();
        options.network = NamespaceMode::Node.into();
    })?;
    ensure_eq!(of_host(app.pid()?, "net")?, of_host(case.node.containerd.pid(), "net")?, "network namespace");
    ensure!(app.shell("ip link")?.contains("lo"), "no loopback");
    Ok(())
}

pub fn host_pid(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod_with("pod", |config| namespaces(config).pid = NamespaceMode::Node.into())?;
    let app = pod.container_with("app", &["sh", "-c", "sleep 7777 & echo child $!; exec sleep 9999"], |config| {
        pid_mode(config, NamespaceMode::Node, "")
    })?;
    ensure_eq!(of_host(app.pid()?, "pid")?, of_host(case.node.containerd.pid(), "pid")?, "pid namespace");
    app.wait_printed("child ")?;
    let child = app.stdout()?.trim().trim_start_matches("child ").to_owned();
    ensure!(std::path::Path::new("/proc").join(&child).exists(), "no process {child} on the host");
    app.stop(0)?;
    eventually("the container's other process is gone", SOON, || !std::path::Path::new("/proc").join(&child).exists())
}

pub fn host_ipc(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod_with("pod", |config| namespaces(config).ipc = NamespaceMode::Node.into())?;
    let app = pod.container_with("app", &["sleep", "9999"], |config| {
        let options = security(config).namespace_options.get_or_insert_default();
        options.ipc = NamespaceMode::Node.into();
    })?;
    ensure_eq!(of_host(app.pid()?, "ipc")?, of_host(case.node.containerd.pid(), "ipc")?, "ipc namespace");
    Ok(())
}

pub fn pod_sysctls(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod_with("pod", |config| {
        let linux = config.linux.get_or_insert_default();
        let wanted = [("net.ipv4.ip_local_port_range", "1024 2048"), ("kernel.shm_rmid_forced", "1")];
        linux.sysctls = wanted.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    })?;
    let app = pod.sleeper("app")?;
    let seen = app.shell("cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced")?;
    ensure_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["1024", "2048", "1"], "values");
    // What CRI sets for every pod.
    ensure_eq!(app.shell("cat /proc/sys/net/ipv4/ip_unprivileged_port_start")?, "0", "first port for everyone");
    Ok(())
}
