//! Pods and containers, configured as the kubelet does it.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::api::{self, ContainerState, LinuxContainerSecurityContext, NamespaceMode, NamespaceOption};
use super::case::PodCase;
use crate::containerd::eventually;
use crate::suite::by_systemd;
use crate::{Context, Result, ensure, ensure_eq, fail, image};

/// Time for a container to come to a state.
pub const SOON: Duration = Duration::from_secs(20);

/// A pod that was run.
pub struct Pod<'c> {
    /// Its case.
    pub case: &'c PodCase<'c>,
    /// Its id.
    pub id: String,
    /// What it was run with.
    pub config: api::PodSandboxConfig,
}

impl<'c> Pod<'c> {
    /// RunPodSandbox of a pod in the style of a case.
    pub fn run(case: &'c PodCase<'c>, handler: &str, name: &str, change: impl FnOnce(&mut api::PodSandboxConfig)) -> Result<Pod<'c>> {
        let mut config = config(case, name)?;
        change(&mut config);
        let request = api::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        let id = case.cri.run_pod_sandbox(request).context(|| format!("pod {name}"))?.pod_sandbox_id;
        case.watch(&id);
        Ok(Pod { case, id, config })
    }

    /// Creates and starts a container.
    pub fn container(&self, name: &str, command: &[&str]) -> Result<Container<'c>> {
        self.container_with(name, command, |_| {})
    }

    /// A container that does nothing until it is stopped.
    pub fn sleeper(&self, name: &str) -> Result<Container<'c>> {
        self.container(name, &["sleep", "1000000"])
    }

    /// As [`Pod::container`], with a changed configuration.
    pub fn container_with(&self, name: &str, command: &[&str], change: impl FnOnce(&mut api::ContainerConfig)) -> Result<Container<'c>> {
        let container = self.create_with(name, command, change)?;
        container.start()?;
        Ok(container)
    }

    /// Only creates it.
    pub fn create_with(&self, name: &str, command: &[&str], change: impl FnOnce(&mut api::ContainerConfig)) -> Result<Container<'c>> {
        let mut config = container_config(name, command);
        change(&mut config);
        let request = api::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(self.config.clone()),
        };
        let id = self.case.cri.create_container(request).context(|| format!("container {name}"))?.container_id;
        self.case.watch(&id);
        let log = PathBuf::from(&self.config.log_directory).join(&config.log_path);
        Ok(Container { case: self.case, id, log, config })
    }

    /// Runs a container to its end and answers what it printed to stdout; its exit code must be 0.
    pub fn output(&self, name: &str, command: &[&str], change: impl FnOnce(&mut api::ContainerConfig)) -> Result<String> {
        let container = self.container_with(name, command, change)?;
        let status = container.wait_exit()?;
        ensure_eq!(status.exit_code, 0, "exit code of {command:?}, which printed {:?}", container.printed()?);
        container.stdout()
    }

    /// Leaves the case.
    pub fn saved(self) -> SavedPod {
        Saved((self.id, self.config))
    }

    /// PodSandboxStatus.
    pub fn status(&self) -> Result<api::PodSandboxStatus> {
        let request = api::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        self.case.cri.pod_sandbox_status(request)?.status.context(|| "no status of the pod".to_owned())
    }

    /// The pid of what holds its namespaces, on the host.
    pub fn pid(&self) -> Result<u32> {
        let request = api::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: true };
        pid_in(self.case.cri.pod_sandbox_status(request)?.info)
    }

    /// StopPodSandbox.
    pub fn stop(&self) -> Result<()> {
        self.case.cri.stop_pod_sandbox(api::StopPodSandboxRequest { pod_sandbox_id: self.id.clone() })?;
        Ok(())
    }

    /// RemovePodSandbox.
    pub fn remove(&self) -> Result<()> {
        self.case.cri.remove_pod_sandbox(api::RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() })?;
        Ok(())
    }
}

/// A pod or a container without its case, while containerd is away.
pub struct Saved<T>(T);

/// What there is of a pod.
pub type SavedPod = Saved<(String, api::PodSandboxConfig)>;

/// What there is of a container.
pub type SavedContainer = Saved<(String, PathBuf, api::ContainerConfig)>;

impl SavedPod {
    /// The pod in the case that was resumed.
    pub fn of<'c>(self, case: &'c PodCase<'c>) -> Pod<'c> {
        let (id, config) = self.0;
        Pod { case, id, config }
    }
}

impl SavedContainer {
    /// The container in the case that was resumed.
    pub fn of<'c>(self, case: &'c PodCase<'c>) -> Container<'c> {
        let (id, log, config) = self.0;
        Container { case, id, log, config }
    }
}

/// A container of a pod.
pub struct Container<'c> {
    case: &'c PodCase<'c>,
    /// Its id.
    pub id: String,
    /// Its log, in CRI's format.
    pub log: PathBuf,
    /// What it was created with.
    pub config: api::ContainerConfig,
}

impl Container<'_> {
    /// Leaves the case.
    pub fn saved(self) -> SavedContainer {
        Saved((self.id, self.log, self.config))
    }

    /// StartContainer.
    pub fn start(&self) -> Result<()> {
        let request = api::StartContainerRequest { container_id: self.id.clone() };
        self.case.cri.start_container(request).context(|| format!("start of {}", self.name()))?;
        Ok(())
    }

    /// ContainerStatus.
    pub fn status(&self) -> Result<api::ContainerStatus> {
        let request = api::ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        self.case.cri.container_status(request)?.status.context(|| "no status of the container".to_owned())
    }

    /// The pid of its first process on the host.
    pub fn pid(&self) -> Result<u32> {
        let request = api::ContainerStatusRequest { container_id: self.id.clone(), verbose: true };
        pid_in(self.case.cri.container_status(request)?.info)
    }

    /// Waits for its end and answers the last status.
    pub fn wait_exit(&self) -> Result<api::ContainerStatus> {
        eventually(&format!("{} exited", self.name()), SOON, || {
            self.status().is_ok_and(|status| status.state() == ContainerState::ContainerExited)
        })?;
        self.status()
    }

    /// ExecSync without a time limit.
    pub fn exec(&self, command: &[&str]) -> Result<api::ExecSyncResponse> {
        let request = api::ExecSyncRequest { container_id: self.id.clone(), cmd: strings(command), timeout: 0 };
        self.case.cri.exec_sync(request).context(|| format!("exec of {command:?} in {}", self.name()))
    }

    /// ExecSync of a shell's text, which must end with 0; answers stdout without its last newline.
    pub fn shell(&self, text: &str) -> Result<String> {
        let done = self.exec(&["sh", "-c", text])?;
        let (stdout, stderr) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        ensure!(done.exit_code == 0, "{text:?} in {}: exit code {}, stdout {stdout:?}, stderr {stderr:?}", self.name(), done.exit_code);
        Ok(stdout.trim_end().to_owned())
    }

    /// StopContainer with a grace period in seconds.
    pub fn stop(&self, grace: i64) -> Result<()> {
        self.case.cri.stop_container(api::StopContainerRequest { container_id: self.id.clone(), timeout: grace })?;
        Ok(())
    }

    /// RemoveContainer.
    pub fn remove(&self) -> Result<()> {
        self.case.cri.remove_container(api::RemoveContainerRequest { container_id: self.id.clone() })?;
        Ok(())
    }

    /// Stdout in its log.
    pub fn stdout(&self) -> Result<String> {
        Ok(log_text(&fs::read_to_string(&self.log).context(|| self.log.display().to_string())?, "stdout"))
    }

    /// Both streams in its log, for a message.
    pub fn printed(&self) -> Result<String> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        Ok(log_text(&log, "stdout") + &log_text(&log, "stderr"))
    }

    /// Waits until its stdout has a text.
    pub fn wait_printed(&self, text: &str) -> Result<()> {
        match eventually(&format!("{} printed {text:?}", self.name()), SOON, || self.stdout().is_ok_and(|log| log.contains(text))) {
            Ok(()) => Ok(()),
            Err(e) => fail!("{e}; it printed {:?}", self.printed()?),
        }
    }

    fn name(&self) -> &str {
        self.config.metadata.as_ref().map_or("", |metadata| metadata.name.as_str())
    }
}

/// The pid in the JSON that containerd adds to a verbose status.
fn pid_in(mut info: HashMap<String, String>) -> Result<u32> {
    let info = info.remove("info").context(|| "no verbose information".to_owned())?;
    let info: serde_json::Value = serde_json::from_str(&info)?;
    let pid = info["pid"].as_u64().context(|| format!("no pid in {info}"))?;
    Ok(u32::try_from(pid)?)
}

/// The content of one stream of a log: each line has time, stream, `F` or `P` (whole or partial) and text.
pub fn log_text(log: &str, stream: &str) -> String {
    let mut text = String::new();
    for line in log.lines() {
        let mut fields = line.splitn(4, ' ');
        if let (Some(_), Some(name), Some(tag), Some(content)) = (fields.next(), fields.next(), fields.next(), fields.next())
            && name == stream
        {
            text += content;
            text += if tag.starts_with('F') { "\n" } else { "" };
        }
    }
    text
}

/// Strings of words.
pub fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The security context of a container, made if there is none.
pub fn security(config: &mut api::ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// The resources of a container, made if there are none.
pub fn resources(config: &mut api::ContainerConfig) -> &mut api::LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

/// The namespaces of a pod, made if there are none.
pub fn namespaces(config: &mut api::PodSandboxConfig) -> &mut NamespaceOption {
    config.linux.get_or_insert_default().security_context.get_or_insert_default().namespace_options.get_or_insert_default()
}

/// What the kubelet sends of a pod with nothing in its manifest but a name.
fn config(case: &PodCase<'_>, name: &str) -> Result<api::PodSandboxConfig> {
    let logs = case.dir()?.join(name);
    fs::create_dir_all(&logs)?;
    let metadata = api::PodSandboxMetadata {
        name: name.to_owned(),
        uid: format!("{}-{name}", case.word()),
        namespace: "default".to_owned(),
        attempt: 0,
    };
    let options = NamespaceOption { pid: NamespaceMode::Container.into(), ..NamespaceOption::default() };
    let security_context = api::LinuxSandboxSecurityContext {
        namespace_options: Some(options),
        seccomp: Some(api::SecurityProfile::default()),
        ..api::LinuxSandboxSecurityContext::default()
    };
    Ok(api::PodSandboxConfig {
        metadata: Some(metadata),
        hostname: name.to_owned(),
        log_directory: logs.display().to_string(),
        labels: [("case".to_owned(), case.word().to_owned())].into(),
        linux: Some(api::LinuxPodSandboxConfig {
            cgroup_parent: cgroup_parent(case.word(), name),
            security_context: Some(security_context),
            ..api::LinuxPodSandboxConfig::default()
        }),
        ..api::PodSandboxConfig::default()
    })
}

/// As kubelet names a pod's cgroup, by the driver that it has.
fn cgroup_parent(word: &str, name: &str) -> String {
    if !by_systemd() {
        return format!("/{word}/{name}");
    }
    // A slice is in those whose names its own begins with.
    let names = word.split('-').map(str::to_owned).chain([name.replace('-', "_")]);
    let slices = names.scan(String::new(), |stem, part| {
        let dash = if stem.is_empty() { "" } else { "-" };
        *stem = format!("{stem}{dash}{part}");
        Some(format!("/{stem}.slice"))
    });
    slices.collect()
}

fn container_config(name: &str, command: &[&str]) -> api::ContainerConfig {
    let options = NamespaceOption { pid: NamespaceMode::Container.into(), ..NamespaceOption::default() };
    let security_context = LinuxContainerSecurityContext { namespace_options: Some(options), ..LinuxContainerSecurityContext::default() };
    api::ContainerConfig {
        metadata: Some(api::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(api::ImageSpec { image: image::name(1), ..api::ImageSpec::default() }),
        command: strings(command),
        log_path: format!("{name}.log"),
        linux: Some(api::LinuxContainerConfig { security_context: Some(security_context), ..api::LinuxContainerConfig::default() }),
        ..api::ContainerConfig::default()
    }
}
