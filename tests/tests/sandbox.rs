//! The Sandbox service by hand: pods without a pause container, as containerd 2.x asks for them.

use std::fs;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use proto::any::POD_SANDBOX_CONFIG;
use proto::cri::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig};
use proto::protobuf::{MessageField, well_known_types::any::Any};
use proto::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest, PlatformResponse, SandboxMetricsRequest,
    SandboxMetricsResponse, SandboxStatusRequest, SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse,
    StartSandboxRequest, StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest, WaitSandboxResponse,
};
use rustix::process::Signal;
use serde_json::json;
use tests::bundle::Bundle;
use tests::command::signal;
use tests::containerd::eventually;
use tests::events::Kind;
use tests::footprint::Shims;
use tests::hand::Hand;
use tests::rpc::{Answer, Shim, refused};
use tests::start::Protocol;
use tests::suite::{Named, main_of};
use tests::{Context, Result, ensure, ensure_eq, hand_cases, paths, proc};
use ttrpc::Code;

const SOON: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let cases = hand_cases![
        life_of_a_pod,
        namespaces_and_files,
        without_a_network_of_others,
        shared_processes,
        stopped_with_its_containers,
        shut_down_with_its_containers,
        unknown_pod,
        what_cannot_be_a_pod,
        what_cannot_be_started,
        container_of_a_stopped_pod,
        daemon_killed,
        daemon_and_launcher_killed,
        left_pods_are_found_by_the_next,
        launcher_killed_beside_a_thread,
        ended_pod_goes_by_itself,
    ];
    // 2.0 to 2.2, and 2.3: only the form of the first answer differs.
    let named = [Protocol::V20, Protocol::V23].into_iter().flat_map(|protocol| {
        cases
            .clone()
            .into_iter()
            .map(move |(name, run)| -> Named { (format!("sandbox::{protocol:?}::{name}"), Box::new(move || Hand::run(protocol, run))) })
    });
    main_of(named.collect())
}

/// A pod in a shim of its own.
struct Pod {
    id: String,
    bundle: Bundle,
    shim: Shim,
}

macro_rules! calls {
    ($($name:ident = $method:literal ($request:ident) -> $response:ty;)*) => {
        impl Pod {
            $(fn $name(&self, set: impl FnOnce(&mut $request)) -> Answer<$response> {
                let mut request = $request::new();
                request.sandbox_id = self.id.clone();
                set(&mut request);
                self.shim.with_service("containerd.runtime.sandbox.v1.Sandbox").call($method, &request)
            })*
        }
    };
}

calls! {
    create = "CreateSandbox"(CreateSandboxRequest) -> CreateSandboxResponse;
    start = "StartSandbox"(StartSandboxRequest) -> StartSandboxResponse;
    platform = "Platform"(PlatformRequest) -> PlatformResponse;
    stop = "StopSandbox"(StopSandboxRequest) -> StopSandboxResponse;
    wait = "WaitSandbox"(WaitSandboxRequest) -> WaitSandboxResponse;
    status = "SandboxStatus"(SandboxStatusRequest) -> SandboxStatusResponse;
    ping = "PingSandbox"(PingRequest) -> PingResponse;
    shut_down = "ShutdownSandbox"(ShutdownSandboxRequest) -> ShutdownSandboxResponse;
    metrics = "SandboxMetrics"(SandboxMetricsRequest) -> SandboxMetricsResponse;
}

impl Pod {
    /// The shim of a pod that is not created.
    fn shim(hand: &mut Hand, name: &str) -> Result<Pod> {
        let bundle = hand.bundle(name, &[])?;
        fs::remove_file(bundle.dir.join("config.json"))?;
        let answer = hand.launch(|launch| launch.start(&bundle.dir, &bundle.id))?;
        ensure_eq!(answer.version, 3, "version of the task API");
        Ok(Pod { id: bundle.id.clone(), shim: Shim::connect(&answer.address, answer.version)?, bundle })
    }

    fn created(hand: &mut Hand, name: &str, config: &PodSandboxConfig, network: &str) -> Result<Pod> {
        let pod = Pod::shim(hand, name)?;
        pod.create_with(config, network)?;
        Ok(pod)
    }

    fn started(hand: &mut Hand, name: &str, config: &PodSandboxConfig) -> Result<Pod> {
        let pod = Pod::created(hand, name, config, "")?;
        pod.start(|_| {})?;
        Ok(pod)
    }

    fn create_with(&self, config: &PodSandboxConfig, network: &str) -> Answer<CreateSandboxResponse> {
        self.create(|request| {
            request.bundle_path = self.bundle.dir.display().to_string();
            request.netns_path = network.to_owned();
            request.options = MessageField::some(options(config));
        })
    }

    fn state(&self) -> Result<(u32, String)> {
        let status = self.status(|_| {})?;
        Ok((status.pid, status.state))
    }

    /// A running container with the namespaces that CRI would write into its spec.
    fn container(&self, hand: &Hand, name: &str, args: &[&str], pid_namespace: bool) -> Result<Bundle> {
        let bundle = self.container_bundle(hand, name, args, pid_namespace)?;
        self.shim.create_quiet(&bundle)?;
        self.shim.start(&bundle.id, "")?;
        Ok(bundle)
    }

    fn container_bundle(&self, hand: &Hand, name: &str, args: &[&str], pid_namespace: bool) -> Result<Bundle> {
        let mut bundle = hand.member(name, args)?;
        let pid = self.status(|_| {})?.pid;
        bundle.edit(|spec| {
            let of_pod = |kind: &str, link: &str| json!({"type": kind, "path": format!("/proc/{pid}/ns/{link}")});
            let own = if pid_namespace { of_pod("pid", "pid") } else { json!({"type": "pid"}) };
            spec["linux"]["namespaces"] =
                json!([own, of_pod("network", "net"), of_pod("ipc", "ipc"), of_pod("uts", "uts"), {"type": "mount"}]);
            spec["annotations"] = json!({"io.kubernetes.cri.sandbox-id": self.id});
        })?;
        Ok(bundle)
    }

    fn end(&self) -> Result<()> {
        self.stop(|_| {})?;
        self.shut_down(|_| {})?;
        Ok(())
    }
}

fn options(config: &PodSandboxConfig) -> Any {
    Any { type_url: POD_SANDBOX_CONFIG.to_owned(), value: prost::Message::encode_to_vec(config), ..Any::default() }
}

/// A pod on the host's network, for which nobody has to make one.
fn config(pid: NamespaceMode) -> PodSandboxConfig {
    let namespaces = NamespaceOption { network: NamespaceMode::Node.into(), pid: pid.into(), ..NamespaceOption::default() };
    let security_context = Some(LinuxSandboxSecurityContext { namespace_options: Some(namespaces) });
    let linux = LinuxPodSandboxConfig { cgroup_parent: format!("/{}", paths::tag()), security_context, ..LinuxPodSandboxConfig::default() };
    PodSandboxConfig { linux: Some(linux), ..PodSandboxConfig::default() }
}

fn plain() -> PodSandboxConfig {
    config(NamespaceMode::Container)
}

/// A process with a network namespace.
struct Network(Child);

impl Network {
    fn new() -> Result<Network> {
        let child = Command::new("unshare").args(["--net", "sleep", "1000"]).stdin(Stdio::null()).spawn()?;
        let network = Network(child);
        let own = fs::read_link("/proc/self/ns/net")?;
        eventually("a network namespace", SOON, || fs::read_link(network.path()).is_ok_and(|link| link != own))?;
        Ok(network)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn link(pid: u32, kind: &str) -> Result<String> {
    Ok(fs::read_link(format!("/proc/{pid}/ns/{kind}"))?.to_string_lossy().into_owned())
}

/// The processes in the cgroup of a container.
fn processes(id: &str) -> Vec<u32> {
    proc::all().into_iter().filter(|process| process.cgroups.contains(id) && process.state != 'Z').map(|process| process.pid).collect()
}

fn life_of_a_pod(hand: &mut Hand) -> Result<()> {
    let pod = Pod::created(hand, "pod", &plain(), "")?;
    ensure_eq!(pod.state()?, (0, "SANDBOX_NOTREADY".to_owned()), "before the start");
    let platform = pod.platform(|_| {})?.platform.unwrap_or_default();
    ensure_eq!(platform.os, "linux", "system");
    let started = pod.start(|_| {})?;
    ensure!(started.pid == 0 && started.created_at.seconds > 0, "answer of the start: {started}");
    // What NRI plugins are shown of a pod.
    ensure_eq!(started.spec.type_url, "types.containerd.io/opencontainers/runtime-spec/1/Spec", "type of the spec");
    let spec: serde_json::Value = serde_json::from_slice(&started.spec.value)?;
    ensure_eq!(spec["linux"]["cgroupsPath"], json!(format!("/{}/{}", paths::tag(), pod.id)), "cgroup in {spec}");
    let kinds: Vec<_> = spec["linux"]["namespaces"].as_array().into_iter().flatten().filter_map(|it| it["type"].as_str()).collect();
    ensure_eq!(kinds, ["ipc", "mount"], "namespaces of a pod on the host's network");
    ensure_eq!(pod.state()?, (0, "SANDBOX_READY".to_owned()), "after the start");
    refused(pod.start(|_| {}), Code::FAILED_PRECONDITION, "was started already")?;
    pod.ping(|_| {})?;
    let verbose = pod.status(|request| request.verbose = true)?;
    ensure!(verbose.info.get("info").is_some_and(|info| info.contains("\"ipc\":")), "verbose: {:?}", verbose.info);

    let app = pod.container(hand, "app", &["sleep", "1000"], false)?;
    let metrics = pod.metrics(|_| {})?.metrics.unwrap_or_default();
    ensure!(metrics.id == pod.id && metrics.data.type_url.contains("Metrics"), "metrics: {metrics}");
    // containerd's task is asked to go before the pod is.
    pod.shim.kill(&app.id, "", 9)?;
    pod.shim.wait(&app.id, "")?;
    pod.shim.delete(&app.id, "")?;
    pod.shim.shutdown(&app.id)?;
    ensure_eq!(pod.state()?.1, "SANDBOX_READY", "state without a container, after its Shutdown");
    for _ in 0..2 {
        pod.stop(|_| {})?;
    }
    let end = pod.wait(|_| {})?;
    ensure!(end.exit_status == 0 && end.exited_at.seconds > 0, "end: {end}");
    ensure_eq!(pod.state()?, (0, "SANDBOX_NOTREADY".to_owned()), "after the end");
    refused(pod.start(|_| {}), Code::FAILED_PRECONDITION, "was started already")?;
    pod.shut_down(|_| {})?;
    Ok(())
}

fn namespaces_and_files(hand: &mut Hand) -> Result<()> {
    let network = Network::new()?;
    let mut config = plain();
    config.hostname = "boat".to_owned();
    let linux = config.linux.get_or_insert_default();
    linux.sysctls = [("net.ipv4.ip_local_port_range".to_owned(), "1024 2048".to_owned())].into();
    linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default().network = NamespaceMode::Pod.into();
    config.dns_config = Some(proto::cri::DnsConfig { servers: vec!["10.0.0.9".to_owned()], ..Default::default() });
    let pod = Pod::created(hand, "pod", &config, &network.path())?;
    pod.start(|_| {})?;
    let show = "exec > /out; hostname; cat /etc/hostname /etc/resolv.conf; cat /proc/sys/net/ipv4/ip_local_port_range; \
                cat /proc/sys/net/ipv4/ip_unprivileged_port_start; grep -c '' /etc/hosts >/dev/null && echo hosts; echo one > /dev/shm/file; \
                grep -c shm /proc/mounts; touch /done; sleep 1000";
    let a = pod.container(hand, "a", &["sh", "-c", show], false)?;
    // With a hook that looks for the root, its mount namespace begins as a copy of the host's.
    let mut b = pod.container_bundle(hand, "b", &["sleep", "1000"], false)?;
    b.edit(|spec| spec["hooks"] = json!({"createContainer": [{"path": "/bin/true"}]}))?;
    pod.shim.create_quiet(&b)?;
    pod.shim.start(&b.id, "")?;
    eventually("a has shown all", SOON, || a.written("done").exists())?;
    let seen = fs::read_to_string(a.written("out"))?;
    ensure_eq!(
        seen.split_whitespace().collect::<Vec<_>>(),
        ["boat", "boat", "nameserver", "10.0.0.9", "1024", "2048", "0", "hosts", "1"],
        "in a"
    );
    let (first, second) = (pod.shim.state(&a.id, "")?.pid, pod.shim.state(&b.id, "")?.pid);
    for kind in ["net", "ipc", "uts"] {
        ensure_eq!(link(first, kind)?, link(second, kind)?, "namespace {kind} of both");
        ensure!(link(first, kind)? != link(std::process::id(), kind)?, "namespace {kind} is the host's");
    }
    ensure_eq!(link(first, "net")?, fs::read_link(network.path())?.to_string_lossy(), "network namespace");
    ensure_eq!(fs::read_to_string(format!("/proc/{second}/root/dev/shm/file"))?, "one\n", "what a has left in /dev/shm");
    let mounts = proc::mounts().into_iter().filter(|mount| mount.target.starts_with(&pod.bundle.dir)).count();
    ensure_eq!(mounts, 0, "mounts of the host in the pod's bundle");
    pod.stop(|_| {})?;
    for container in [&a, &b] {
        pod.shim.delete(&container.id, "")?;
    }
    pod.end()
}

/// A client that brings no network, as `ctr sandboxes run`, gets a pod that has but a loopback interface.
fn without_a_network_of_others(hand: &mut Hand) -> Result<()> {
    let mut config = plain();
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default().network = NamespaceMode::Pod.into();
    config.hostname = "boat".to_owned();
    let pod = Pod::created(hand, "pod", &config, "")?;
    pod.start(|_| {})?;
    let show = "exec > /out; ip -o link | cut -d: -f2; ip -o link show lo | grep -c LOOPBACK,UP; hostname; touch /done; sleep 1000";
    let (a, b) = (pod.container(hand, "a", &["sh", "-c", show], false)?, pod.container(hand, "b", &["sleep", "1000"], false)?);
    eventually("a has shown all", SOON, || a.written("done").exists())?;
    let seen = fs::read_to_string(a.written("out"))?;
    ensure_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["lo", "1", "boat"], "in a");
    let (first, second) = (pod.shim.state(&a.id, "")?.pid, pod.shim.state(&b.id, "")?.pid);
    ensure_eq!(link(first, "net")?, link(second, "net")?, "network namespace of both");
    ensure!(link(first, "net")? != link(std::process::id(), "net")?, "the network is the host's");
    pod.stop(|_| {})?;
    for container in [&a, &b] {
        pod.shim.delete(&container.id, "")?;
    }
    pod.end()
}

fn shared_processes(hand: &mut Hand) -> Result<()> {
    let pod = Pod::started(hand, "pod", &config(NamespaceMode::Pod))?;
    let (pid, state) = pod.state()?;
    ensure!(pid > 0 && state == "SANDBOX_READY", "pid {pid}, {state}");
    eventually("it has its name", SOON, || proc::process(pid).is_some_and(|holder| holder.name == "coracle-pod"))?;
    let holder = proc::process(pid).context(|| "the pod's process is gone".to_owned())?;
    ensure_eq!(holder.command_line.trim(), "coracle-pod", "arguments");
    eventually("it has no descriptor", SOON, || fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|all| all.count() == 0))?;
    ensure!(fs::read(format!("/proc/{pid}/environ"))?.is_empty(), "it has an environment");
    let app = pod.container(hand, "app", &["sh", "-c", "sleep 1000 & exec sleep 1000"], true)?;
    let init = pod.shim.state(&app.id, "")?.pid;
    ensure_eq!(link(init, "pid")?, link(pid, "pid")?, "pid namespace");
    // The kernel ends all that live in the namespace with its init.
    signal(pid, Signal::KILL)?;
    ensure_eq!(pod.wait(|_| {})?.exit_status, 137, "end of the pod");
    ensure_eq!(pod.shim.wait(&app.id, "")?.exit_status, 137, "end of the container");
    ensure_eq!(pod.state()?, (0, "SANDBOX_NOTREADY".to_owned()), "after the end");
    pod.shim.delete(&app.id, "")?;
    pod.end()
}

fn stopped_with_its_containers(hand: &mut Hand) -> Result<()> {
    let pod = Pod::started(hand, "pod", &config(NamespaceMode::Pod))?;
    let polite = pod.container(hand, "polite", &["sh", "-c", "trap 'exit 3' TERM; touch /ready; while :; do sleep 0.05; done"], true)?;
    let deaf = pod.container(hand, "deaf", &["sh", "-c", "trap '' TERM; touch /ready; while :; do sleep 0.05; done"], true)?;
    eventually("both are ready", SOON, || [&polite, &deaf].iter().all(|app| app.written("ready").exists()))?;
    pod.stop(|request| request.timeout_secs = 1)?;
    ensure_eq!(pod.shim.wait(&polite.id, "")?.exit_status, 3, "end of what listens");
    ensure_eq!(pod.shim.wait(&deaf.id, "")?.exit_status, 137, "end of what does not");
    ensure_eq!(pod.wait(|_| {})?.exit_status, 0, "end of the pod");
    for app in [&polite, &deaf] {
        hand.stub.record.wait(&app.id, Kind::Exit, SOON)?;
        pod.shim.delete(&app.id, "")?;
    }
    pod.end()
}

/// Nobody has stopped it, and nobody deletes its containers.
fn shut_down_with_its_containers(hand: &mut Hand) -> Result<()> {
    let pod = Pod::started(hand, "pod", &config(NamespaceMode::Pod))?;
    let running = pod.container(hand, "running", &["sleep", "1000"], true)?;
    let created = pod.container_bundle(hand, "created", &["sleep", "1000"], false)?;
    pod.shim.create_quiet(&created)?;
    let daemon = daemon_of(&pod)?;
    pod.shut_down(|_| {})?;
    for app in [&running, &created] {
        let exit = hand.stub.record.wait(&app.id, Kind::Exit, SOON)?;
        ensure_eq!(exit.status, 137, "exit status of {}", app.id);
        hand.stub.record.wait(&app.id, Kind::Delete, SOON)?;
    }
    eventually("the daemon has ended", SOON, || proc::process(daemon).is_none_or(|process| process.state == 'Z'))
}

fn unknown_pod(hand: &mut Hand) -> Result<()> {
    let pod = Pod::started(hand, "pod", &plain())?;
    let other = Pod { id: "nobody".to_owned(), bundle: hand.member("other", &[])?, shim: pod.shim.clone() };
    let text = "sandbox \"nobody\" does not exist";
    refused(other.start(|_| {}), Code::NOT_FOUND, text)?;
    refused(other.platform(|_| {}), Code::NOT_FOUND, text)?;
    refused(other.stop(|_| {}), Code::NOT_FOUND, text)?;
    refused(other.wait(|_| {}), Code::NOT_FOUND, text)?;
    refused(other.status(|_| {}), Code::NOT_FOUND, text)?;
    refused(other.ping(|_| {}), Code::NOT_FOUND, text)?;
    refused(other.metrics(|_| {}), Code::NOT_FOUND, text)?;
    refused(other.shut_down(|_| {}), Code::NOT_FOUND, text)?;
    ensure_eq!(pod.state()?.1, "SANDBOX_READY", "state of the pod that is there");
    pod.end()
}

fn what_cannot_be_a_pod(hand: &mut Hand) -> Result<()> {
    let pod = Pod::shim(hand, "pod")?;
    let bundle = pod.bundle.dir.display().to_string();
    let bad = |set: &dyn Fn(&mut CreateSandboxRequest), text: &str| {
        let answer = pod.create(|request| {
            request.bundle_path.clone_from(&bundle);
            request.options = MessageField::some(options(&plain()));
            set(request);
        });
        refused(answer, Code::INVALID_ARGUMENT, text)
    };
    bad(&|request| request.sandbox_id.clear(), "sandbox_id")?;
    bad(&|request| request.sandbox_id = "../x".to_owned(), "sandbox_id")?;
    bad(&|request| request.bundle_path = "b".to_owned(), "bundle_path: \"b\"")?;
    bad(&|request| request.rootfs.push(Default::default()), "rootfs")?;
    bad(&|request| request.netns_path = "ns".to_owned(), "netns_path: \"ns\" is not absolute")?;
    bad(&|request| request.netns_path = "/proc/1/ns/net".to_owned(), "netns_path: given")?;
    bad(&|request| request.options.mut_or_insert_default().type_url = "x.Y".to_owned(), "options: \"x.Y\"")?;
    bad(&|request| request.options.mut_or_insert_default().value = vec![0xff], "parse options")?;
    pod.create_with(&plain(), "")?;
    refused(pod.create_with(&plain(), ""), Code::ALREADY_EXISTS, &pod.id)?;
    // One that never ran goes as well.
    pod.shut_down(|_| {})?;
    Ok(())
}

fn what_cannot_be_started(hand: &mut Hand) -> Result<()> {
    let network = Network::new()?;
    let cases: [(&str, &str, Code); 4] = [
        ("vm.swappiness", "", Code::INVALID_ARGUMENT),
        ("kernel.shm_rmid_forced", "", Code::UNKNOWN),
        ("", "/proc/self/status", Code::INVALID_ARGUMENT),
        ("", "/no/such/namespace", Code::UNKNOWN),
    ];
    for (number, (sysctl, path, code)) in cases.into_iter().enumerate() {
        let mut config = config(NamespaceMode::Pod);
        let linux = config.linux.get_or_insert_default();
        if !sysctl.is_empty() {
            linux.sysctls = [(sysctl.to_owned(), "no number".to_owned())].into();
        }
        linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default().network = NamespaceMode::Pod.into();
        let path = if path.is_empty() { network.path() } else { path.to_owned() };
        let pod = Pod::created(hand, &format!("pod{number}"), &config, &path)?;
        let wanted = if sysctl.is_empty() { path.as_str() } else { sysctl.rsplit('.').next().unwrap_or_default() };
        refused(pod.start(|_| {}), code, wanted)?;
        ensure_eq!(pod.state()?, (0, "SANDBOX_NOTREADY".to_owned()), "state");
        ensure!(processes(&pod.id).is_empty(), "a process is left");
        pod.shut_down(|_| {})?;
    }
    Ok(())
}

fn container_of_a_stopped_pod(hand: &mut Hand) -> Result<()> {
    let pod = Pod::created(hand, "pod", &plain(), "")?;
    let early = pod.container_bundle(hand, "early", &["true"], false)?;
    let message = pod.shim.create_quiet(&early).err().map(|e| e.0).unwrap_or_default();
    ensure!(message.contains("FAILED_PRECONDITION") && message.contains("does not run"), "before the start: {message}");
    pod.start(|_| {})?;
    pod.shim.create_quiet(&early)?;
    pod.stop(|_| {})?;
    pod.shim.delete(&early.id, "")?;
    let late = pod.container_bundle(hand, "late", &["true"], false)?;
    let message = pod.shim.create_quiet(&late).err().map(|e| e.0).unwrap_or_default();
    ensure!(message.contains("FAILED_PRECONDITION") && message.contains("does not run"), "after the end: {message}");
    pod.end()
}

/// A pod with a container of its own pid namespace and one of the pod's.
fn to_be_killed(hand: &mut Hand, name: &str) -> Result<(Pod, Vec<Bundle>)> {
    let pod = Pod::started(hand, name, &config(NamespaceMode::Pod))?;
    let command = ["sh", "-c", "setsid sleep 1000 & exec sleep 1000"];
    let apps =
        vec![pod.container(hand, &format!("{name}-a"), &command, false)?, pod.container(hand, &format!("{name}-b"), &command, true)?];
    for app in &apps {
        eventually("both processes run", SOON, || processes(&app.id).len() == 2)?;
    }
    Ok((pod, apps))
}

fn daemon_of(pod: &Pod) -> Result<u32> {
    proc::parent(pod.status(|_| {})?.pid)
}

/// Cgroups go, too, which the ledger sees.
fn all_gone(pod: &Pod, apps: &[Bundle]) -> Result<()> {
    let ids: Vec<&String> = apps.iter().map(|app| &app.id).chain([&pod.id]).collect();
    eventually("no process of the pod lives", SOON, || ids.iter().all(|id| processes(id).is_empty()))
}

fn daemon_killed(hand: &mut Hand) -> Result<()> {
    let (pod, apps) = to_be_killed(hand, "pod")?;
    signal(daemon_of(&pod)?, Signal::KILL)?;
    // Nobody has been asked for anything: it is the launcher that does this.
    all_gone(&pod, &apps)?;
    delete_all(hand, &pod, &apps)
}

/// What containerd does for a shim that has died.
fn delete_all(hand: &mut Hand, pod: &Pod, apps: &[Bundle]) -> Result<()> {
    apps.iter().chain([&pod.bundle]).try_for_each(|bundle| hand.launch(|launch| launch.delete(&bundle.dir, &bundle.id)).map(drop))
}

fn kill_both(pod: &Pod) -> Result<()> {
    let daemon = daemon_of(pod)?;
    let launcher = proc::all().into_iter().find(|process| process.parent == daemon && process.name == "coracle-launch");
    signal(launcher.context(|| "no launcher".to_owned())?.pid, Signal::KILL)?;
    signal(daemon, Signal::KILL)?;
    eventually("the daemon has ended", SOON, || proc::process(daemon).is_none_or(|process| process.state == 'Z'))
}

fn daemon_and_launcher_killed(hand: &mut Hand) -> Result<()> {
    let (pod, apps) = to_be_killed(hand, "pod")?;
    kill_both(&pod)?;
    // What has the pod's pid namespace ends with its init, which ends with the daemon.
    eventually("the second container has ended", SOON, || processes(&apps[1].id).is_empty())?;
    ensure_eq!(processes(&apps[0].id).len(), 2, "processes of the first container");
    hand.launch(|launch| launch.delete(&pod.bundle.dir, &pod.id))?;
    all_gone(&pod, &apps)
}

fn left_pods_are_found_by_the_next(hand: &mut Hand) -> Result<()> {
    let (pod, apps) = to_be_killed(hand, "pod")?;
    kill_both(&pod)?;
    let next = Pod::started(hand, "next", &plain())?;
    all_gone(&pod, &apps)?;
    ensure_eq!(next.state()?.1, "SANDBOX_READY", "state of the next one");
    next.end()?;
    hand.launch(|launch| launch.delete(&pod.bundle.dir, &pod.id))?;
    Ok(())
}

/// The daemon has a thread of its runtime's for ten seconds after it has looked for what other pods have left.
fn launcher_killed_beside_a_thread(hand: &mut Hand) -> Result<()> {
    let pod = Pod::created(hand, "pod", &plain(), "")?;
    let daemon = pod.shim.connected(&pod.id)?.shim_pid;
    eventually("the daemon has a second thread", SOON, || proc::usage(daemon).threads > 1)?;
    let shims = Shims::of_daemon(daemon)?;
    signal(shims.launcher, Signal::KILL)?;
    eventually("the launcher is gone", SOON, || proc::process(shims.launcher).is_none_or(|process| process.state == 'Z'))?;
    pod.start(|_| {})?;
    let app = pod.container(hand, "app", &["sleep", "1000"], false)?;
    ensure!(proc::usage(daemon).threads > 1, "the second thread has ended before it mattered");
    pod.shim.exec(&app.id, "e", &["sh", "-c", "exit 3"])?;
    pod.shim.start(&app.id, "e")?;
    ensure_eq!(pod.shim.wait(&app.id, "e")?.exit_status, 3, "status of an exec");
    // The new one is as good as the first: it ends what the daemon leaves.
    let next = Shims::of_daemon(daemon)?;
    ensure!(next.launcher != shims.launcher && next.read()?[1].threads == 1, "the new launcher: {next:?}");
    ensure_eq!(link(next.launcher, "mnt")?, link(std::process::id(), "mnt")?, "its mount namespace");
    let exe = fs::read_link(format!("/proc/{}/exe", next.launcher))?;
    ensure_eq!(exe.to_string_lossy(), "/", "its program, which is sealed");
    signal(daemon, Signal::KILL)?;
    let apps = [app];
    all_gone(&pod, &apps)?;
    delete_all(hand, &pod, &apps)
}

/// A finished Job stays for days: its shim has nothing to do any more, and `delete` tells containerd how the pod ended.
fn ended_pod_goes_by_itself(hand: &mut Hand) -> Result<()> {
    let pod = Pod::started(hand, "pod", &plain())?;
    let app = pod.container(hand, "app", &["sleep", "1000"], false)?;
    pod.stop(|_| {})?;
    ensure_eq!(pod.wait(|_| {})?.exit_status, 0, "end of the pod");
    tests::wait::pause_for(Duration::from_secs(12));
    ensure_eq!(pod.state()?.1, "SANDBOX_NOTREADY", "state while a container is not deleted");
    pod.shim.delete(&app.id, "")?;
    ensure_eq!(pod.state()?.1, "SANDBOX_NOTREADY", "state right after the last deletion");
    eventually("the shim has ended", Duration::from_secs(25), || hand.shim_pids().is_empty())?;
    let answer = hand.launch(|launch| launch.delete(&pod.bundle.dir, &pod.id))?;
    ensure_eq!((answer.pid, answer.exit_status), (0, 0), "answer of delete");
    Ok(())
}
