//! The Task RPCs (containerd `api/runtime/task/v3/shim.proto`): convert, look up, act, answer.
//!
//! A handler is dropped when its client goes away or its time is up, so whatever changes something runs in a task of its own.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use proto::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse, DeleteRequest,
    DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest,
    ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use proto::events::task::{TaskCreate, TaskIO};
use proto::protobuf::well_known_types::any::Any;
use proto::protobuf::{Message, MessageField};
use proto::shim_async::Task;
use runtime_core::error::{Error, ErrorKind, Result};
use runtime_core::spec::Resources;
use ttrpc::asynchronous::TtrpcContext;
use ttrpc::{Code, get_status};

use super::container::Container;
use super::node::Node;
use super::state::{Action, State};
use super::table::Table;
use super::{create, exec, lifecycle};
use crate::bootstrap::check_identifier;
use crate::clock::timestamp;
use crate::failpoint::{self, Rpc};
use crate::group::Grouping;
use crate::slices::Slices;
use crate::{idle, logger};

/// How long a client may take to leave a daemon that ends.
const LEAVE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Clone)]
pub struct Service {
    /// What the daemon's containers and pods share.
    pub node: Arc<Node>,
    table: Arc<Table>,
}

/// The one place where a failure becomes a status.
fn status(error: &Error) -> ttrpc::Error {
    let code = match error.kind() {
        ErrorKind::InvalidArgument => Code::INVALID_ARGUMENT,
        ErrorKind::NotFound => Code::NOT_FOUND,
        ErrorKind::AlreadyExists => Code::ALREADY_EXISTS,
        ErrorKind::FailedPrecondition => Code::FAILED_PRECONDITION,
        ErrorKind::Unimplemented => Code::UNIMPLEMENTED,
        ErrorKind::Internal => Code::UNKNOWN,
    };
    ttrpc::Error::RpcStatus(get_status(code, error.to_string()))
}

/// What a call answers.
///
/// # Errors
/// The failure as a status.
pub fn answer<T>(result: Result<T>) -> ttrpc::Result<T> {
    result.map_err(|error| status(&error))
}

async fn inside(rpc: Rpc) -> ttrpc::Result<()> {
    answer(failpoint::inside(rpc).await)
}

impl Service {
    /// Serves the containers of a daemon, and ends it when it has had neither containers nor clients for long. To be called in the runtime.
    pub fn new(node: Arc<Node>) -> Self {
        let service = Self { node, table: Arc::default() };
        tokio::spawn(service.clone().leave_when_idle());
        service
    }

    async fn leave_when_idle(self) {
        let context = &self.node.context;
        let mut clients = context.clients.watch();
        let mut dismissal = self.node.dismissed.subscribe();
        loop {
            let count = *clients.borrow_and_update();
            let dismissed = *dismissal.borrow_and_update() && count == 0;
            let limit = if dismissed { idle::LINGER } else { idle::limit(count) };
            // The call that dismisses may be served after its client has given up and gone.
            let changed = async {
                tokio::select! {
                    _ = clients.changed() => {}
                    _ = dismissal.changed() => {}
                }
            };
            let unchanged = tokio::time::timeout(limit, changed).await.is_err();
            self.table.forget_abandoned();
            self.node.pods.forget_abandoned();
            if unchanged && self.idle_for() >= Some(limit) {
                if !dismissed {
                    log::warn!("shutting down: nobody has asked for a container for {} s", limit.as_secs());
                }
                // The end is put off if somebody comes at this moment; then this goes on.
                context.shutdown.request();
            }
        }
    }

    /// For how long there has been neither a container nor a pod that was started.
    fn idle_for(&self) -> Option<Duration> {
        Some(self.table.empty_for()?.min(self.node.pods.idle_for()?))
    }

    /// The containers of a pod.
    pub fn containers_of(&self, pod: &str) -> Vec<Arc<Container>> {
        self.table.of_pod(pod)
    }

    /// Whether there is no container, and none is being made.
    pub fn is_without_containers(&self) -> bool {
        self.table.empty_for().is_some()
    }

    /// A container or a pod comes, with this bundle.
    pub fn came(&self, bundle: &Path) {
        self.node.dismissed.send_replace(false);
        logger::follow(bundle);
    }

    /// Ends the daemon if nothing is left.
    pub fn end_if_empty(&self) {
        if self.table.empty_for().is_some() && self.node.pods.is_empty() {
            match self.node.context.config.grouping {
                Grouping::Pod => self.node.context.shutdown.request(),
                // Another pod may be about to come.
                Grouping::Node => drop(self.node.dismissed.send_replace(true)),
            }
        }
    }

    /// The same, when a client has read its answer and gone, or [`LEAVE`] has passed: that of containerd takes a connection that closes right
    /// after an answer for a lost one, now and then (ttrpc's `client.go`, `dispatch`).
    pub fn end_if_empty_and_left(&self) {
        if self.node.context.config.grouping == Grouping::Node {
            return self.end_if_empty();
        }
        let service = self.clone();
        tokio::spawn(async move {
            let mut clients = service.node.context.clients.watch();
            let before = *clients.borrow();
            let _ = tokio::time::timeout(LEAVE, clients.wait_for(|count| *count < before)).await;
            service.end_if_empty();
        });
    }

    /// Runs `work` to its end, whether or not the client stays.
    ///
    /// # Errors
    /// What the work failed with, as a status.
    pub async fn detached<T: Send + 'static>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> ttrpc::Result<T> {
        let result = match tokio::spawn(work).await {
            Ok(result) => result,
            Err(panic) => Err(Error::new(ErrorKind::Internal, format!("{what}: {panic}"))),
        };
        if let Err(error) = &result {
            log::debug!("{what}: {error}");
        }
        answer(result)
    }

    async fn create_container(self, request: CreateTaskRequest) -> Result<u32> {
        check_identifier("id", &request.id)?;
        let reserved = self.table.reserve(&request.id)?;
        self.came(Path::new(&request.bundle));
        let created = create::create(&self.node, &request, reserved.given_up()).await?;
        let container = created.container;
        let pid = container.init.pid() as u32;
        let io = TaskIO {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            ..Default::default()
        };
        self.node.context.events.publish(&TaskCreate {
            container_id: request.id.clone(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: MessageField::some(io),
            checkpoint: request.checkpoint.clone(),
            pid,
            ..TaskCreate::default()
        });
        container.init.announce();
        container.watch_init(&self.node);
        if let Err(error) = container.watch_oom(&self.node) {
            log::warn!("{}: {error}, ignoring", container.id);
        }
        self.table.insert(container, created.child);
        drop(reserved);
        Ok(pid)
    }

    async fn start_process(self, request: StartRequest) -> Result<u32> {
        let container = self.table.get(&request.id)?;
        let pid = if request.exec_id.is_empty() {
            let _changing = container.changing.lock().await;
            container.init.state().allow(Action::Start)?;
            lifecycle::start(&self.node, &container, self.table.take_child(&request.id)).await?
        } else {
            let process = container.process(&request.exec_id)?;
            process.state().allow(Action::Start)?;
            let started = || Error::new(ErrorKind::FailedPrecondition, "process was started already");
            let pending = self.table.take_pending(&request.id, &request.exec_id).ok_or_else(started)?;
            exec::start(&self.node, &container, pending).await?
        };
        Ok(pid as u32)
    }

    /// Deletes a container that has ended.
    ///
    /// # Errors
    /// As Delete.
    pub async fn delete_container(self, id: &str) -> Result<()> {
        self.delete_process(DeleteRequest { id: id.to_owned(), ..DeleteRequest::default() }).await.map(drop)
    }

    async fn delete_process(self, request: DeleteRequest) -> Result<lifecycle::Deleted> {
        if request.exec_id.is_empty()
            && let Some(creating) = self.table.creating(&request.id)
        {
            // containerd has given up a Create that took too long, and removes the bundle next.
            creating.give_up().await;
        }
        let container = self.table.get(&request.id)?;
        if !request.exec_id.is_empty() {
            let process = container.process(&request.exec_id)?;
            // From here on it cannot be started.
            let unstarted = self.table.take_pending(&request.id, &request.exec_id).is_some();
            return lifecycle::delete_exec(&container, &process, unstarted).await;
        }
        let _changing = container.changing.lock().await;
        // Somebody else may have deleted it while we waited.
        self.table.get(&request.id)?;
        let deleted = lifecycle::delete(&self.node, &container).await?;
        self.table.remove(&request.id);
        Ok(deleted)
    }

    fn state_of(&self, request: &StateRequest) -> Result<StateResponse> {
        let container = self.table.get(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let mut state = process.state();
        if !process.exec_id.is_empty() && state == State::Running && matches!(container.init.state(), State::Paused | State::Pausing) {
            state = container.init.state();
        }
        let exit = process.exit();
        Ok(StateResponse {
            id: if process.exec_id.is_empty() { request.id.clone() } else { process.exec_id.clone() },
            bundle: container.bundle.to_string_lossy().into_owned(),
            pid: process.pid() as u32,
            status: state.status().into(),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| timestamp(exit.at)).into(),
            exec_id: process.exec_id.clone(),
            ..StateResponse::default()
        })
    }

    async fn pids_of(self, request: PidsRequest) -> Result<PidsResponse> {
        let container = self.table.get(&request.id)?;
        let mut pids = container.cgroup.pids_by(&mut Slices::default()).await.unwrap_or_else(|error| {
            log::warn!("{}: {error}", container.id);
            Vec::new()
        });
        // containerd that comes back takes an empty answer for a shim without a task and deletes what it has. So a container that hides its
        // processes from its cgroup has at least this one; and one that has ended keeps its place, and its exit status, until Delete.
        let init = container.init.pid();
        if !pids.contains(&init) {
            pids.push(init);
        }
        let execs = container.execs();
        let info = |pid: i32| execs.iter().find(|exec| exec.pid() == pid).map(|exec| details(&exec.exec_id)).transpose();
        let processes = pids.into_iter().map(|pid| Ok(ProcessInfo { pid: pid as u32, info: info(pid)?.into(), ..ProcessInfo::default() }));
        Ok(PidsResponse { processes: processes.collect::<Result<_>>()?, ..PidsResponse::default() })
    }

    fn connect_to(&self, request: &ConnectRequest) -> ConnectResponse {
        let task_pid = self.table.get(&request.id).map_or(0, |container| container.init.pid() as u32);
        ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ConnectResponse::default()
        }
    }

    fn container_and_process(&self, id: &str, exec_id: &str) -> Result<(Arc<Container>, Arc<super::process::Process>)> {
        let container = self.table.get(id)?;
        let process = container.process(exec_id)?;
        Ok((container, process))
    }
}

fn details(exec_id: &str) -> Result<Any> {
    let details = proto::shim::oci::ProcessDetails { exec_id: exec_id.to_owned(), ..Default::default() };
    let value = details.write_to_bytes().map_err(|error| Error::new(ErrorKind::Internal, format!("encode ProcessDetails: {error}")))?;
    Ok(Any { type_url: "containerd.runc.v1.ProcessDetails".to_owned(), value, ..Any::default() })
}

fn resources(request: &UpdateTaskRequest) -> Result<Resources> {
    let value = request.resources.as_ref().map(|any| any.value.as_slice()).unwrap_or_default();
    if value.is_empty() {
        return Err(Error::invalid("resources: there are none"));
    }
    runtime_core::spec::keys::from_slice(value).map_err(|error| Error::invalid(format!("resources: {error}")))
}

fn size(request: &ResizePtyRequest) -> Result<(u16, u16)> {
    let side = |value: u32| u16::try_from(value).map_err(|_| Error::invalid(format!("resize: {value} is no size")));
    Ok((side(request.width)?, side(request.height)?))
}

#[async_trait]
impl Task for Service {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        inside(Rpc::State).await?;
        answer(self.state_of(&request))
    }

    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        let what = format!("create {}", request.id);
        let pid = self.detached(&what, self.clone().create_container(request)).await?;
        Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let what = format!("start {} {}", request.id, request.exec_id);
        let pid = self.detached(&what, self.clone().start_process(request)).await?;
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let what = format!("delete {} {}", request.id, request.exec_id);
        let deleted = self.detached(&what, self.clone().delete_process(request)).await?;
        Ok(DeleteResponse {
            pid: deleted.pid as u32,
            exit_status: deleted.exit.status,
            exited_at: MessageField::some(timestamp(deleted.exit.at)),
            ..DeleteResponse::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        inside(Rpc::Pids).await?;
        answer(self.clone().pids_of(request).await)
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let container = answer(self.table.get(&request.id))?;
        let node = Arc::clone(&self.node);
        let work = async move {
            let _changing = container.changing.lock().await;
            lifecycle::pause(&node, &container).await
        };
        self.detached(&format!("pause {}", request.id), work).await.map(|()| Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let container = answer(self.table.get(&request.id))?;
        let node = Arc::clone(&self.node);
        let work = async move {
            let _changing = container.changing.lock().await;
            failpoint::inside(Rpc::Resume).await?;
            lifecycle::resume(&node, &container)
        };
        self.detached(&format!("resume {}", request.id), work).await.map(|()| Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        inside(Rpc::Checkpoint).await?;
        answer(Err(Error::new(ErrorKind::Unimplemented, "checkpoint: this version cannot checkpoint containers")))
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let (container, process) = answer(self.container_and_process(&request.id, &request.exec_id))?;
        let signal = i32::try_from(request.signal).unwrap_or(-1);
        inside(Rpc::Kill).await?;
        let work = async move { lifecycle::kill(&container, &process, signal, request.all).await };
        self.detached(&format!("kill {}", request.id), work).await.map(|()| Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let container = answer(self.table.get(&request.id))?;
        inside(Rpc::Exec).await?;
        // From here on in one go: the handler is not dropped half-way.
        let pending = answer(exec::add(&self.node, &container, &request))?;
        self.table.add_pending(&request.id, pending);
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let (_, process) = answer(self.container_and_process(&request.id, &request.exec_id))?;
        let (width, height) = answer(size(&request))?;
        inside(Rpc::ResizePty).await?;
        answer(process.resize(width, height)).map(|()| Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let (_, process) = answer(self.container_and_process(&request.id, &request.exec_id))?;
        inside(Rpc::CloseIo).await?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let container = answer(self.table.get(&request.id))?;
        let resources = answer(resources(&request))?;
        let node = Arc::clone(&self.node);
        let work = async move {
            let _changing = container.changing.lock().await;
            failpoint::inside(Rpc::Update).await?;
            lifecycle::update(&node, &container, &resources).await
        };
        self.detached(&format!("update {}", request.id), work).await.map(|()| Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let (_, process) = answer(self.container_and_process(&request.id, &request.exec_id))?;
        let mut exit = process.subscribe();
        inside(Rpc::Wait).await?;
        drop(process);
        let ended = exit.wait_for(Option::is_some).await.map(|exit| *exit);
        let gone = || Error::new(ErrorKind::NotFound, "process was deleted");
        let exit = answer(ended.ok().flatten().ok_or_else(gone))?;
        Ok(WaitResponse { exit_status: exit.status, exited_at: MessageField::some(timestamp(exit.at)), ..WaitResponse::default() })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let container = answer(self.table.get(&request.id))?;
        inside(Rpc::Stats).await?;
        let stats = answer(container.stats())?;
        Ok(StatsResponse { stats: MessageField::some(stats), ..StatsResponse::default() })
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        inside(Rpc::Connect).await?;
        Ok(self.connect_to(&request))
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        inside(Rpc::Shutdown).await?;
        self.end_if_empty();
        Ok(Empty::new())
    }
}
