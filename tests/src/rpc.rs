//! The task service of a shim, called without containerd.

use std::time::Duration;

use proto::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse, DeleteRequest,
    DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest,
    WaitResponse,
};
use proto::protobuf::{Message, MessageField, well_known_types::any::Any};
use ttrpc::{Client, Code, Error, Request};

use crate::bundle::{Bundle, process};
use crate::{Context, Failure, Result, fail};

/// A connection to a shim. Clones share it, and calls from several threads go on at once.
#[derive(Clone)]
pub struct Shim {
    client: Client,
    /// `containerd.task.v2.Task` or `containerd.task.v3.Task`.
    pub service: &'static str,
    /// How long a call may take.
    pub limit: Duration,
}

/// The streams of a process, as Create and Exec name them.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Empty, or a fifo.
    pub stdin: String,
    /// Empty, a fifo or a URI.
    pub stdout: String,
    /// As `stdout`.
    pub stderr: String,
}

/// What an RPC answers: a message, or the code and text of its status.
pub type Answer<T> = std::result::Result<T, Status>;

/// A ttrpc status that is not OK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The code that containerd maps to its own errors.
    pub code: Code,
    /// The text that users see.
    pub message: String,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure(format!("{:?}: {}", status.code, status.message))
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)
    }
}

/// Expects a call to fail with one code and a text in its message.
pub fn refused<T>(answer: Answer<T>, code: Code, text: &str) -> Result<()> {
    match answer {
        Ok(_) => fail!("succeeded instead of {code:?}"),
        Err(status) if status.code == code && status.message.contains(text) => Ok(()),
        Err(status) => fail!("{status}, instead of {code:?} with {text:?}"),
    }
}

macro_rules! rpcs {
    ($($(#[$doc:meta])* $name:ident = $method:literal ($request:ty) -> $response:ty;)*) => {
        /// The seventeen RPCs.
        impl Shim {
            $($(#[$doc])* pub fn $name(&self, request: $request) -> Answer<$response> { self.call($method, &request) })*
        }
    };
}

rpcs! {
    /// State.
    state_of = "State"(StateRequest) -> StateResponse;
    /// Create.
    create = "Create"(CreateTaskRequest) -> CreateTaskResponse;
    /// Start.
    start_process = "Start"(StartRequest) -> StartResponse;
    /// Delete.
    delete_process = "Delete"(DeleteRequest) -> DeleteResponse;
    /// Pids.
    pids_of = "Pids"(PidsRequest) -> PidsResponse;
    /// Pause.
    pause_task = "Pause"(PauseRequest) -> Empty;
    /// Resume.
    resume_task = "Resume"(ResumeRequest) -> Empty;
    /// Checkpoint.
    checkpoint = "Checkpoint"(CheckpointTaskRequest) -> Empty;
    /// Kill.
    kill_process = "Kill"(KillRequest) -> Empty;
    /// Exec.
    exec_process = "Exec"(ExecProcessRequest) -> Empty;
    /// ResizePty.
    resize_pty = "ResizePty"(ResizePtyRequest) -> Empty;
    /// CloseIO.
    close_io = "CloseIO"(CloseIORequest) -> Empty;
    /// Update.
    update = "Update"(UpdateTaskRequest) -> Empty;
    /// Wait.
    wait_process = "Wait"(WaitRequest) -> WaitResponse;
    /// Stats.
    stats_of = "Stats"(StatsRequest) -> StatsResponse;
    /// Connect.
    connect_task = "Connect"(ConnectRequest) -> ConnectResponse;
    /// Shutdown.
    shutdown_shim = "Shutdown"(ShutdownRequest) -> Empty;
}

/// Sets fields of a new message.
fn with<M: Message>(set: impl FnOnce(&mut M)) -> M {
    let mut message = M::new();
    set(&mut message);
    message
}

/// The same by the arguments that most tests need; an empty exec id means the init.
impl Shim {
    /// Connects to an address that `start` answered.
    pub fn connect(address: &str, version: i32) -> Result<Shim> {
        let service = if version >= 3 { "containerd.task.v3.Task" } else { "containerd.task.v2.Task" };
        let client = Client::connect(address).context(|| address.to_owned())?;
        Ok(Shim { client, service, limit: Duration::from_secs(20) })
    }

    /// The same connection with the other version of the service.
    pub fn with_service(&self, service: &'static str) -> Shim {
        Shim { service, ..self.clone() }
    }

    /// Any method of any service.
    pub fn call<Q: Message, A: Message>(&self, method: &str, request: &Q) -> Answer<A> {
        let lost = |message: String| Status { code: Code::UNAVAILABLE, message };
        let mut envelope = Request::new();
        envelope.service = self.service.to_owned();
        envelope.method = method.to_owned();
        envelope.timeout_nano = i64::try_from(self.limit.as_nanos()).unwrap_or(i64::MAX);
        envelope.payload = request.write_to_bytes().map_err(|e| lost(e.to_string()))?;
        match self.client.request(envelope) {
            Ok(response) => A::parse_from_bytes(&response.payload).map_err(|e| lost(e.to_string())),
            Err(Error::RpcStatus(status)) => Err(Status { code: status.code.enum_value_or(Code::UNKNOWN), message: status.message }),
            Err(e) => Err(lost(e.to_string())),
        }
    }

    /// Create with the bundle's overlay and no streams; answers the pid.
    pub fn create_quiet(&self, bundle: &Bundle) -> Result<u32> {
        self.create_with(bundle, Streams::default())
    }

    /// Create with the bundle's overlay; answers the pid.
    pub fn create_with(&self, bundle: &Bundle, streams: Streams) -> Result<u32> {
        let rootfs = bundle.overlay()?;
        let request = with(|r: &mut CreateTaskRequest| {
            r.id = bundle.id.clone();
            r.bundle = bundle.dir.display().to_string();
            r.rootfs = rootfs;
            (r.terminal, r.stdin, r.stdout, r.stderr) = (streams.terminal, streams.stdin, streams.stdout, streams.stderr);
        });
        Ok(self.create(request)?.pid)
    }

    /// Start; answers the pid.
    pub fn start(&self, id: &str, exec: &str) -> Answer<u32> {
        self.start_process(with(|r: &mut StartRequest| (r.id, r.exec_id) = (id.into(), exec.into()))).map(|answer| answer.pid)
    }

    /// State.
    pub fn state(&self, id: &str, exec: &str) -> Answer<StateResponse> {
        self.state_of(with(|r: &mut StateRequest| (r.id, r.exec_id) = (id.into(), exec.into())))
    }

    /// Exec of a command without streams.
    pub fn exec(&self, id: &str, exec: &str, args: &[&str]) -> Answer<Empty> {
        self.exec_with(id, exec, args, Streams::default())
    }

    /// Exec of a command.
    pub fn exec_with(&self, id: &str, exec: &str, args: &[&str], streams: Streams) -> Answer<Empty> {
        let spec = with(|any: &mut Any| {
            any.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned();
            any.value = process(args).to_string().into_bytes();
        });
        self.exec_process(with(|r: &mut ExecProcessRequest| {
            (r.id, r.exec_id, r.spec) = (id.into(), exec.into(), MessageField::some(spec));
            (r.terminal, r.stdin, r.stdout, r.stderr) = (streams.terminal, streams.stdin, streams.stdout, streams.stderr);
        }))
    }

    /// Kill.
    pub fn kill(&self, id: &str, exec: &str, signal: u32) -> Answer<Empty> {
        self.kill_process(with(|r: &mut KillRequest| (r.id, r.exec_id, r.signal) = (id.into(), exec.into(), signal)))
    }

    /// Wait.
    pub fn wait(&self, id: &str, exec: &str) -> Answer<WaitResponse> {
        self.wait_process(with(|r: &mut WaitRequest| (r.id, r.exec_id) = (id.into(), exec.into())))
    }

    /// Delete.
    pub fn delete(&self, id: &str, exec: &str) -> Answer<DeleteResponse> {
        self.delete_process(with(|r: &mut DeleteRequest| (r.id, r.exec_id) = (id.into(), exec.into())))
    }

    /// Pids.
    pub fn pids(&self, id: &str) -> Answer<Vec<u32>> {
        let answer = self.pids_of(with(|r: &mut PidsRequest| r.id = id.into()))?;
        Ok(answer.processes.iter().map(|process| process.pid).collect())
    }

    /// Pause.
    pub fn pause(&self, id: &str) -> Answer<Empty> {
        self.pause_task(with(|r: &mut PauseRequest| r.id = id.into()))
    }

    /// Resume.
    pub fn resume(&self, id: &str) -> Answer<Empty> {
        self.resume_task(with(|r: &mut ResumeRequest| r.id = id.into()))
    }

    /// Stats.
    pub fn stats(&self, id: &str) -> Answer<Any> {
        self.stats_of(with(|r: &mut StatsRequest| r.id = id.into())).map(|answer| answer.stats.unwrap_or_default())
    }

    /// Connect.
    pub fn connected(&self, id: &str) -> Answer<ConnectResponse> {
        self.connect_task(with(|r: &mut ConnectRequest| r.id = id.into()))
    }

    /// Shutdown. The connection may close before the answer, which is as good.
    pub fn shutdown(&self, id: &str) -> Result<()> {
        match self.shutdown_shim(with(|r: &mut ShutdownRequest| r.id = id.into())) {
            Err(status) if status.code != Code::UNAVAILABLE => Err(status.into()),
            _ => Ok(()),
        }
    }
}
