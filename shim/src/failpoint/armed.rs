//! The points as they are in a build for tests.
//!
//! A test listens on a socket named after the point, in the directory that [`DIRECTORY`] names. Whoever comes to the point connects, waits
//! until the test hangs up, and then does what it wrote: nothing to go on, `error` to fail there, `abort` to die there.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use proto::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse, DeleteRequest,
    DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest,
    WaitResponse,
};
use proto::shim_async::Task;
use runtime_core::error::{Error, ErrorKind, Result};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use ttrpc::asynchronous::TtrpcContext;

use super::Rpc;

/// Where the sockets of the points are.
const DIRECTORY: &str = "CORACLE_FAILPOINTS";

/// Milliseconds without client and container after which the daemon ends.
const IDLE: &str = "CORACLE_IDLE_MS";

/// A test that hangs must not keep the daemon for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// The daemon's limit of idleness, where the test has another one.
pub fn idle() -> Option<Duration> {
    std::env::var(IDLE).ok()?.parse().ok().map(Duration::from_millis)
}

/// In the middle of a call's work.
///
/// # Errors
/// What a test asks for.
pub async fn inside(rpc: Rpc) -> Result<()> {
    let [_, inside, _] = names(rpc);
    hit(inside).await
}

async fn hit(point: &str) -> Result<()> {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return Ok(()) };
    let Ok(mut test) = UnixStream::connect(Path::new(&directory).join(point)).await else { return Ok(()) };
    let mut order = String::new();
    let _ = tokio::time::timeout(PATIENCE, test.read_to_string(&mut order)).await;
    match order.as_str() {
        "error" => Err(Error::new(ErrorKind::Internal, format!("failpoint {point}"))),
        "abort" => std::process::abort(),
        _ => Ok(()),
    }
}

async fn hit_around(point: &str) -> ttrpc::Result<()> {
    hit(point).await.map_err(|error| ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::UNKNOWN, error.to_string())))
}

/// A Task service with a point before and after each of its calls.
pub struct Around(pub Arc<dyn Task + Send + Sync>);

macro_rules! points {
    ($($rpc:ident: $method:ident($request:ty) -> $answer:ty;)*) => {
        const fn names(rpc: Rpc) -> [&'static str; 3] {
            match rpc {
                $(Rpc::$rpc => [
                    concat!(stringify!($method), ".before"),
                    concat!(stringify!($method), ".inside"),
                    concat!(stringify!($method), ".after"),
                ],)*
            }
        }

        #[async_trait]
        impl Task for Around {
            $(async fn $method(&self, context: &TtrpcContext, request: $request) -> ttrpc::Result<$answer> {
                let [before, _, after] = names(Rpc::$rpc);
                hit_around(before).await?;
                let answer = self.0.$method(context, request).await;
                hit_around(after).await?;
                answer
            })*
        }
    };
}

points! {
    State: state(StateRequest) -> StateResponse;
    Create: create(CreateTaskRequest) -> CreateTaskResponse;
    Start: start(StartRequest) -> StartResponse;
    Delete: delete(DeleteRequest) -> DeleteResponse;
    Pids: pids(PidsRequest) -> PidsResponse;
    Pause: pause(PauseRequest) -> Empty;
    Resume: resume(ResumeRequest) -> Empty;
    Checkpoint: checkpoint(CheckpointTaskRequest) -> Empty;
    Kill: kill(KillRequest) -> Empty;
    Exec: exec(ExecProcessRequest) -> Empty;
    ResizePty: resize_pty(ResizePtyRequest) -> Empty;
    CloseIo: close_io(CloseIORequest) -> Empty;
    Update: update(UpdateTaskRequest) -> Empty;
    Wait: wait(WaitRequest) -> WaitResponse;
    Stats: stats(StatsRequest) -> StatsResponse;
    Connect: connect(ConnectRequest) -> ConnectResponse;
    Shutdown: shutdown(ShutdownRequest) -> Empty;
}
