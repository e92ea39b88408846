//! The calls of CRI, one at a time.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use super::api::image_service_client::ImageServiceClient;
use super::api::runtime_service_client::RuntimeServiceClient;
use super::api::{self};
use crate::{Context, Result};

/// The time limit of one call; the kubelet's is two minutes.
const LIMIT: Duration = Duration::from_secs(90);

/// A connection to containerd's CRI.
pub struct Cri {
    runtime: Runtime,
    client: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// What a call answers: the message or containerd's status.
pub type Reply<T> = std::result::Result<T, Status>;

macro_rules! calls {
    ($($client:ident: $($name:ident($request:ident) -> $response:ident),* $(,)?;)*) => {
        impl Cri {
            $($(
                #[doc = concat!("`", stringify!($name), "` of CRI.")]
                pub fn $name(&self, request: api::$request) -> Reply<api::$response> {
                    let mut client = self.$client.clone();
                    self.call(async move { client.$name(request).await })
                }
            )*)*
        }
    };
}

calls! {
    client: attach(AttachRequest) -> AttachResponse,
        container_stats(ContainerStatsRequest) -> ContainerStatsResponse,
        container_status(ContainerStatusRequest) -> ContainerStatusResponse,
        create_container(CreateContainerRequest) -> CreateContainerResponse,
        exec(ExecRequest) -> ExecResponse,
        exec_sync(ExecSyncRequest) -> ExecSyncResponse,
        list_containers(ListContainersRequest) -> ListContainersResponse,
        list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse,
        pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse,
        pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse,
        port_forward(PortForwardRequest) -> PortForwardResponse,
        remove_container(RemoveContainerRequest) -> RemoveContainerResponse,
        remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse,
        reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse,
        run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse,
        start_container(StartContainerRequest) -> StartContainerResponse,
        status(StatusRequest) -> StatusResponse,
        stop_container(StopContainerRequest) -> StopContainerResponse,
        stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse,
        update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
    images: image_status(ImageStatusRequest) -> ImageStatusResponse;
}

impl Cri {
    /// A client of the containerd at a socket; it connects at the first call.
    pub fn new(socket: &Path) -> Result<Cri> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let endpoint =
            Endpoint::try_from(format!("unix://{}", socket.display())).context(|| "the socket's path as an address".to_owned())?;
        let channel = {
            let _inside = runtime.enter();
            endpoint.connect_lazy()
        };
        let (client, images) = (RuntimeServiceClient::new(channel.clone()), ImageServiceClient::new(channel));
        // Statistics of a hundred pods are more than the default of 4 MiB allows for.
        Ok(Cri { runtime, client: client.max_decoding_message_size(64 << 20), images })
    }

    fn call<T>(&self, call: impl Future<Output = std::result::Result<Response<T>, Status>>) -> Reply<T> {
        let limited = async { tokio::time::timeout(LIMIT, call).await };
        match self.runtime.block_on(limited) {
            Ok(reply) => reply.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded(format!("no answer in {LIMIT:?}"))),
        }
    }
}
