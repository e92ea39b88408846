//! The nine RPCs: convert, look up, act, answer.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use proto::protobuf::MessageField;
use proto::protobuf::well_known_types::any::Any;
use proto::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest, PlatformResponse, SandboxMetricsRequest,
    SandboxMetricsResponse, SandboxStatusRequest, SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse,
    StartSandboxRequest, StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest, WaitSandboxResponse,
};
use proto::sandbox_async::Sandbox;
use proto::types::platform::Platform;
use runtime_core::container::record::Record;
use runtime_core::error::{Error, ErrorKind, Result};
use serde_json::json;
use ttrpc::asynchronous::TtrpcContext;

use super::run;
use crate::bootstrap::check_identifier;
use crate::clock::timestamp;
use crate::group::{Grouping, SANDBOX_ID};
use crate::pod::Pod;
use crate::pod::settings::{Network, Settings};
use crate::task::node::Node;
use crate::task::service::{Service as Tasks, answer};
use crate::task::stats;
use crate::{bundle, cleanup};

/// What containerd's CRI plugin takes for a pod that works (`internal/cri/server/sandbox_status.go`), and for any other.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// How long after its end a pod is likely to be removed, as kubelet does with one that was deleted.
const REMOVED_SOON: Duration = Duration::from_secs(10);

/// The type of an OCI spec as JSON, by containerd's typeurl.
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// The version of the OCI spec that has all that is in it.
const VERSION: &str = "1.1.0";
/// The annotation by which CRI tells a pod from its containers.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

/// The names of architectures as Go, and with it containerd's platforms, has them.
const ARCHITECTURE: &str = match std::env::consts::ARCH.as_bytes() {
    b"x86_64" => "amd64",
    b"aarch64" => "arm64",
    b"riscv64" => "riscv64",
    _ => std::env::consts::ARCH,
};

/// See the module.
#[derive(Clone)]
pub struct Service {
    tasks: Tasks,
}

impl Service {
    /// Serves the pods of the daemon whose containers `tasks` serves.
    pub fn new(tasks: Tasks) -> Self {
        Self { tasks }
    }

    fn pod(&self, id: &str) -> Result<Arc<Pod>> {
        self.tasks.node.pods.get(id)
    }

    fn create_pod(&self, request: &CreateSandboxRequest) -> Result<()> {
        check_identifier("sandbox_id", &request.sandbox_id)?;
        let bundle = bundle::absolute("bundle_path", &request.bundle_path)?;
        if !request.rootfs.is_empty() {
            return Err(Error::invalid("rootfs: a sandbox of this runtime has no root filesystem"));
        }
        let settings = Settings::new(request.options.as_ref(), &request.netns_path)?;
        let pod = Arc::new(Pod::new(&request.sandbox_id, &bundle, settings));
        self.tasks.node.pods.add(Arc::clone(&pod))?;
        // Only now the record is ours to write.
        pod.note(|_| {}).inspect_err(|_| self.tasks.node.pods.remove(&request.sandbox_id))?;
        self.tasks.came(&bundle);
        tokio::task::spawn_blocking(move || cleanup::reconcile(&bundle));
        Ok(())
    }

    async fn stop_pod(self, id: String, grace: Duration) -> Result<()> {
        let pod = self.pod(&id)?;
        run::stop(&pod, self.tasks.containers_of(&id), grace).await?;
        self.leave_later(&pod);
        Ok(())
    }

    /// Ends the daemon of a pod that has ended and is not removed, when its last container has been deleted: there is nothing left to do, maybe for
    /// days. containerd takes a shim that is gone for a sandbox that has stopped (its `plugins/sandbox/controller.go`), and calls `delete`.
    fn leave_later(&self, pod: &Arc<Pod>) {
        if self.tasks.node.context.config.grouping == Grouping::Node || !pod.leaves() {
            return;
        }
        let (service, pod) = (self.clone(), Arc::clone(pod));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(REMOVED_SOON).await;
                if service.pod(&pod.id).is_err() {
                    return;
                }
                if service.tasks.is_without_containers() && service.tasks.node.pods.has_only(&pod.id) {
                    return service.tasks.node.context.shutdown.request();
                }
            }
        });
    }

    async fn shut_down(self, id: String) -> Result<()> {
        let known = self.pod(&id);
        if let Ok(pod) = &known {
            run::stop(pod, self.tasks.containers_of(&id), Duration::ZERO).await?;
            for container in self.tasks.containers_of(&id) {
                // Whoever deletes it at this moment has the same in mind.
                if let Err(error) = self.tasks.clone().delete_container(&container.id).await
                    && error.kind() != ErrorKind::NotFound
                {
                    log::warn!("{}: {error}, ignoring", container.id);
                }
            }
            if let Err(error) = Record::remove(&pod.bundle) {
                log::warn!("{id}: {error}, ignoring");
            }
            self.tasks.node.pods.remove(&id);
        }
        // One that could not be created is shut down, too.
        self.tasks.end_if_empty_and_left();
        known.map(drop)
    }

    fn status_of(&self, request: &SandboxStatusRequest) -> Result<SandboxStatusResponse> {
        let pod = self.pod(&request.sandbox_id)?;
        let end = *pod.end().borrow();
        let ready = pod.started_at().is_some() && end.is_none();
        Ok(SandboxStatusResponse {
            sandbox_id: pod.id.clone(),
            pid: pod.pid() as u32,
            state: if ready { READY } else { NOT_READY }.to_owned(),
            info: if request.verbose { info(&pod) } else { HashMap::new() },
            created_at: MessageField::from_option(pod.started_at().map(timestamp)),
            exited_at: MessageField::from_option(end.map(|end| timestamp(end.at))),
            ..SandboxStatusResponse::default()
        })
    }

    fn metrics_of(&self, id: &str) -> Result<SandboxMetricsResponse> {
        let pod = self.pod(id)?;
        let stats = stats::encode(&run::cgroup(&self.tasks.node, &pod)?.stats()?, None)?;
        let mut response = SandboxMetricsResponse::default();
        let metrics = response.metrics.mut_or_insert_default();
        metrics.id = pod.id.clone();
        metrics.timestamp = MessageField::some(timestamp(SystemTime::now()));
        metrics.data = MessageField::some(stats);
        Ok(response)
    }

    async fn detached<T: Send + 'static>(
        &self,
        what: &str,
        id: &str,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> ttrpc::Result<T> {
        self.tasks.detached(&format!("{what} {id}"), work).await
    }
}

/// The pod as the spec of a container that does nothing: containerd keeps it and shows it to NRI plugins, which read namespaces and cgroups of it.
fn spec(node: &Node, pod: &Pod) -> Any {
    let settings = &pod.settings;
    let held = settings.namespaces();
    let namespaces: Vec<_> = held.iter().map(|it| json!(it)).chain([json!({"type": "mount"})]).collect();
    let spec = json!({
        "ociVersion": VERSION,
        "hostname": settings.hostname,
        "annotations": {SANDBOX_ID: pod.id, CONTAINER_TYPE: "sandbox"},
        "linux": {
            "namespaces": namespaces.into_iter().chain(settings.user.then(|| json!({"type": "user"}))).collect::<Vec<_>>(),
            "cgroupsPath": run::cgroups_path(node, pod),
            "sysctl": settings.sysctl,
        },
    });
    Any { type_url: SPEC.to_owned(), value: spec.to_string().into_bytes(), ..Any::default() }
}

/// What people see who ask for more than the state.
fn info(pod: &Pod) -> HashMap<String, String> {
    let held = pod.held();
    let namespace = |fd: Option<&std::os::fd::OwnedFd>| fd.and_then(|fd| rustix::fs::fstat(fd).ok()).map(|found| found.st_ino);
    let network = match &pod.settings.network {
        Network::Host => None,
        Network::At(path) => Some(json!(path)),
        Network::Own => namespace(held.as_ref().and_then(|held| held.network.as_ref())).map(|number| json!(number)),
    };
    let told = json!({
        "pid": pod.pid(),
        "bundle": pod.bundle,
        "cgroupParent": pod.settings.cgroup_parent,
        "namespaces": {
            "network": network,
            "ipc": namespace(held.as_ref().and_then(|held| held.ipc.as_ref())),
            "uts": namespace(held.as_ref().and_then(|held| held.uts.as_ref())),
            "user": namespace(held.as_ref().and_then(|held| held.user.as_ref())),
        },
    });
    HashMap::from([("info".to_owned(), told.to_string())])
}

#[async_trait]
impl Sandbox for Service {
    async fn create_sandbox(&self, _: &TtrpcContext, request: CreateSandboxRequest) -> ttrpc::Result<CreateSandboxResponse> {
        answer(self.create_pod(&request)).map(|()| CreateSandboxResponse::default())
    }

    async fn start_sandbox(&self, _: &TtrpcContext, request: StartSandboxRequest) -> ttrpc::Result<StartSandboxResponse> {
        let pod = answer(self.pod(&request.sandbox_id))?;
        let (node, started) = (Arc::clone(&self.tasks.node), Arc::clone(&pod));
        let at = self.detached("start sandbox", &request.sandbox_id, async move { run::start(&node, &started).await }).await?;
        Ok(StartSandboxResponse {
            pid: pod.pid() as u32,
            created_at: MessageField::some(timestamp(at)),
            spec: MessageField::some(spec(&self.tasks.node, &pod)),
            ..StartSandboxResponse::default()
        })
    }

    async fn platform(&self, _: &TtrpcContext, request: PlatformRequest) -> ttrpc::Result<PlatformResponse> {
        answer(self.pod(&request.sandbox_id))?;
        let platform = Platform { os: "linux".to_owned(), architecture: ARCHITECTURE.to_owned(), ..Platform::default() };
        Ok(PlatformResponse { platform: MessageField::some(platform), ..PlatformResponse::default() })
    }

    async fn stop_sandbox(&self, _: &TtrpcContext, request: StopSandboxRequest) -> ttrpc::Result<StopSandboxResponse> {
        let grace = Duration::from_secs(request.timeout_secs.into());
        let work = self.clone().stop_pod(request.sandbox_id.clone(), grace);
        self.detached("stop sandbox", &request.sandbox_id, work).await.map(|()| StopSandboxResponse::default())
    }

    async fn wait_sandbox(&self, _: &TtrpcContext, request: WaitSandboxRequest) -> ttrpc::Result<WaitSandboxResponse> {
        let mut end = answer(self.pod(&request.sandbox_id))?.end();
        let ended = end.wait_for(Option::is_some).await.map(|end| *end);
        let gone = || Error::new(ErrorKind::NotFound, format!("sandbox {:?} was shut down", request.sandbox_id));
        let end = answer(ended.ok().flatten().ok_or_else(gone))?;
        Ok(WaitSandboxResponse {
            exit_status: end.status,
            exited_at: MessageField::some(timestamp(end.at)),
            ..WaitSandboxResponse::default()
        })
    }

    async fn sandbox_status(&self, _: &TtrpcContext, request: SandboxStatusRequest) -> ttrpc::Result<SandboxStatusResponse> {
        answer(self.status_of(&request))
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: PingRequest) -> ttrpc::Result<PingResponse> {
        answer(self.pod(&request.sandbox_id)).map(|_| PingResponse::default())
    }

    async fn shutdown_sandbox(&self, _: &TtrpcContext, request: ShutdownSandboxRequest) -> ttrpc::Result<ShutdownSandboxResponse> {
        let work = self.clone().shut_down(request.sandbox_id.clone());
        self.detached("shut down sandbox", &request.sandbox_id, work).await.map(|()| ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(&self, _: &TtrpcContext, request: SandboxMetricsRequest) -> ttrpc::Result<SandboxMetricsResponse> {
        answer(self.metrics_of(&request.sandbox_id))
    }
}
