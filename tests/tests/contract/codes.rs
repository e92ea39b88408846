//! The codes that containerd, CRI and moby branch on.

use proto::api::{CheckpointTaskRequest, CreateTaskRequest, ExecProcessRequest};
use tests::hand::Hand;
use tests::requests::{create_request, end, finish, running};
use tests::rpc::refused;
use tests::{Result, ensure, ensure_eq};
use ttrpc::Code;

/// What is not there, at every RPC that takes an id.
fn unknown(shim: &tests::rpc::Shim, id: &str) -> Result<()> {
    let not_found = |what: &str, answer: std::result::Result<(), tests::rpc::Status>| {
        refused(answer, Code::NOT_FOUND, "").map_err(|e| tests::Failure(format!("{what} of {id:?}: {e}")))
    };
    not_found("State", shim.state(id, "").map(drop))?;
    not_found("Start", shim.start(id, "").map(drop))?;
    not_found("Delete", shim.delete(id, "").map(drop))?;
    not_found("Pids", shim.pids(id).map(drop))?;
    not_found("Pause", shim.pause(id).map(drop))?;
    not_found("Resume", shim.resume(id).map(drop))?;
    not_found("Kill", shim.kill(id, "", 9).map(drop))?;
    not_found("Kill of all", shim.kill_all(id, 9).map(drop))?;
    not_found("Exec", shim.exec(id, "e", &["true"]).map(drop))?;
    not_found("ResizePty", shim.resize(id, "", 1, 1).map(drop))?;
    not_found("CloseIO", shim.close_stdin(id, "").map(drop))?;
    not_found("Update", shim.update_to(id, &serde_json::json!({"pids": {"limit": 5}})).map(drop))?;
    not_found("Wait", shim.wait(id, "").map(drop))?;
    not_found("Stats", shim.stats(id).map(drop))
}

pub fn of_every_row(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    let id = &bundle.id;
    unknown(&shim, "nobody")?;
    for answer in [
        shim.state(id, "x").map(drop),
        shim.start(id, "x").map(drop),
        shim.delete(id, "x").map(drop),
        shim.kill(id, "x", 9).map(drop),
        shim.wait(id, "x").map(drop),
        shim.resize(id, "x", 1, 1).map(drop),
        shim.close_stdin(id, "x").map(drop),
    ] {
        refused(answer, Code::NOT_FOUND, "\"x\"")?;
    }
    refused(shim.create(create_request(&bundle)?), Code::ALREADY_EXISTS, id)?;
    refused(shim.start(id, ""), Code::FAILED_PRECONDITION, "started already")?;
    refused(shim.delete(id, ""), Code::FAILED_PRECONDITION, "cannot delete a running process")?;
    refused(shim.resume(id), Code::FAILED_PRECONDITION, "not paused")?;
    refused(
        shim.exec_process(ExecProcessRequest { id: id.clone(), exec_id: "e".into(), ..Default::default() }),
        Code::INVALID_ARGUMENT,
        "",
    )?;
    let mut checkpoint = CheckpointTaskRequest::new();
    (checkpoint.id, checkpoint.path) = (id.clone(), "/tmp/none".to_owned());
    refused(shim.checkpoint(checkpoint), Code::UNIMPLEMENTED, "checkpoint")?;
    let other = hand.bundle("b", &["true"])?;
    let restore = CreateTaskRequest { checkpoint: "/tmp/none".into(), ..create_request(&other)? };
    refused(shim.create(restore), Code::UNIMPLEMENTED, "checkpoint")?;
    let relative = CreateTaskRequest { bundle: "bundles/b".into(), ..create_request(&other)? };
    refused(shim.create(relative), Code::INVALID_ARGUMENT, "bundle")?;
    for bad in ["", ".", "..", "../../x", "a/b", "a\nb"] {
        refused(shim.create(CreateTaskRequest { id: bad.into(), ..create_request(&other)? }), Code::INVALID_ARGUMENT, "id")?;
    }
    shim.kill(id, "", 9)?;
    shim.wait(id, "")?;
    refused(shim.kill(id, "", 15), Code::NOT_FOUND, "process already finished")?;
    refused(shim.exec(id, "e", &["true"]), Code::FAILED_PRECONDITION, "stopped")?;
    refused(shim.pause(id), Code::FAILED_PRECONDITION, "stopped")?;
    refused(shim.start(id, ""), Code::FAILED_PRECONDITION, "stopped")?;
    shim.delete(id, "")?;
    unknown(&shim, id)?;
    shim.shutdown(id)
}

/// Exactly what Create got, since containerd attaches to the streams again from it.
pub fn state_answers_what_create_asked(hand: &mut Hand) -> Result<()> {
    let bundle = hand.bundle("a", &["sleep", "1000"])?;
    let shim = hand.shim(&bundle)?;
    let file = hand.dir().join("out");
    std::fs::write(&file, "")?;
    let mut request = create_request(&bundle)?;
    request.stdout = format!("file://{}", file.display());
    request.stderr = file.display().to_string();
    let (stdout, stderr) = (request.stdout.clone(), request.stderr.clone());
    let pid = shim.create(request)?.pid;
    let state = shim.state(&bundle.id, "")?;
    ensure_eq!((&state.stdin, &state.stdout, &state.stderr), (&String::new(), &stdout, &stderr), "streams");
    ensure_eq!((state.id.as_str(), state.pid, state.terminal), (bundle.id.as_str(), pid, false), "id, pid and terminal");
    ensure_eq!(state.bundle, bundle.dir.display().to_string(), "bundle");
    ensure!(state.exited_at.is_none() || state.exited_at.seconds <= 0, "a time of the end: {:?}", state.exited_at);
    shim.start(&bundle.id, "")?;
    finish(&shim, &bundle)
}

pub fn connect_and_shutdown(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    let known = shim.connected(&bundle.id)?;
    ensure_eq!(known.task_pid, shim.state(&bundle.id, "")?.pid, "pid of the task");
    ensure!(hand.shim_pids().contains(&known.shim_pid), "{} is no shim, {:?} are", known.shim_pid, hand.shim_pids());
    ensure!(!known.version.is_empty(), "no version");
    let unknown = shim.connected("nobody")?;
    ensure_eq!((unknown.task_pid, unknown.shim_pid), (0, known.shim_pid), "pids of an unknown task");
    for _ in 0..3 {
        shim.shutdown(&bundle.id)?;
    }
    ensure_eq!(shim.state(&bundle.id, "")?.status.value(), 2, "status after Shutdown");
    let mut now = proto::api::ShutdownRequest::new();
    (now.id, now.now) = (bundle.id.clone(), true);
    shim.shutdown_shim(now)?;
    ensure_eq!(shim.state(&bundle.id, "")?.status.value(), 2, "status after Shutdown with now");
    // The other version of the service has the same containers.
    let other = if shim.service.contains("v2") { "containerd.task.v3.Task" } else { "containerd.task.v2.Task" };
    ensure_eq!(shim.with_service(other).state(&bundle.id, "")?.status.value(), 2, "status by {other}");
    end(&shim, &bundle)?;
    shim.shutdown(&bundle.id)
}
