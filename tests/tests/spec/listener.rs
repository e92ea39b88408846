//! `linux.seccomp` with the action NOTIFY: the listener's descriptor goes to `listenerPath`, with the state of the process and its container.

use std::os::unix::net::UnixListener;

use serde_json::{Value, json};
use tests::agent::Agent;
use tests::bed::Bed;
use tests::bundle::{self, Bundle};
use tests::hand::Hand;
use tests::requests::{create_request, end, exec_ran, expect_nothing_of, files_of, ran};
use tests::rpc::refused;
use tests::{Result, ensure, ensure_eq};
use ttrpc::Code;

/// No call of the programs' own fails with it.
const ERRNO: i32 = libc::EXDEV;
const WORDS: &str = "Invalid cross-device link";

/// Everything is allowed but making directories, about which a program at `socket` decides.
fn profile(socket: &std::path::Path) -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
        "listenerPath": socket,
        "listenerMetadata": "for the listener",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }],
    })
}

fn restrict(bundle: &mut Bundle, socket: &std::path::Path, no_new_privileges: bool) -> Result<()> {
    bundle.edit(|spec| {
        spec["linux"]["seccomp"] = profile(socket);
        spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        spec["annotations"] = json!({ "org.example.key": "value" });
    })
}

fn expect_told(told: &Value, bundle: &Bundle, status: &str) -> Result<()> {
    ensure_eq!(told["fds"], json!(["seccompFd"]), "fds");
    ensure_eq!(told["metadata"], "for the listener", "metadata");
    ensure_eq!(told["state"]["id"], json!(bundle.id), "id");
    ensure_eq!(told["state"]["bundle"], json!(bundle.dir), "bundle");
    ensure_eq!(told["state"]["status"], status, "status");
    ensure_eq!(told["state"]["annotations"], json!({ "org.example.key": "value" }), "annotations");
    ensure!(told["ociVersion"].is_string() && told["ociVersion"] == told["state"]["ociVersion"], "versions: {told}");
    Ok(())
}

/// As with runc and crun, so that whoever creates a container may wait for the listener before the start.
pub fn sent_at_create(bed: &mut Bed<'_>) -> Result<()> {
    let socket = bed.dir().join("agent");
    let agent = Agent::start(&socket, ERRNO)?;
    let mut bundle = bed.bundle("a", &["mkdir", "/new"])?;
    for no_new_privileges in [false, true] {
        restrict(&mut bundle, &socket, no_new_privileges)?;
        let pid = bed.create(&bundle)?;
        let told = agent.told()?;
        expect_told(&told, &bundle, "creating")?;
        ensure_eq!([&told["pid"], &told["state"]["pid"]], [&json!(pid); 2], "process ids");
        bed.start(&bundle)?;
        ensure_eq!(agent.call()?, pid, "the process whose call it was");
        bed.end(&bundle)?;
        ensure!(!bundle.written("new").exists(), "a directory was made");
    }
    Ok(())
}

pub fn of_the_first_process(hand: &mut Hand) -> Result<()> {
    let socket = hand.dir().join("agent");
    let agent = Agent::start(&socket, ERRNO)?;
    let mut bundle = hand.bundle("a", &["mkdir", "/new"])?;
    restrict(&mut bundle, &socket, true)?;
    let shim = hand.shim(&bundle)?;
    let ran = ran(hand, &shim, &bundle)?;
    let told = agent.told()?;
    // As with runc and crun, it is sent at create, so that whoever creates a container may wait for it before the start.
    expect_told(&told, &bundle, "creating")?;
    ensure_eq!(told["pid"], told["state"]["pid"], "process ids");
    ensure_eq!(json!(agent.call()?), told["pid"], "the process whose call it was");
    ensure!(ran.status == 1 && ran.stderr.contains(WORDS), "mkdir: {ran:?}");
    shim.shutdown(&bundle.id)
}

/// Without no_new_privs the filter is loaded with the runtime's rights, while the container is created. A hook in the container has it, too.
pub fn early_and_of_hooks(hand: &mut Hand) -> Result<()> {
    let socket = hand.dir().join("agent");
    let agent = Agent::start(&socket, ERRNO)?;
    let mut bundle = hand.bundle("a", &["mkdir", "/new"])?;
    restrict(&mut bundle, &socket, false)?;
    let script = "mkdir /hook 2>/said; echo done >>/said";
    bundle.edit(|spec| spec["hooks"] = json!({ "startContainer": [{ "path": "/bin/busybox", "args": ["sh", "-c", script] }] }))?;
    let shim = hand.shim(&bundle)?;
    let ran = ran(hand, &shim, &bundle)?;
    ensure!(ran.status == 1 && ran.stderr.contains(WORDS), "mkdir: {ran:?}");
    let told = agent.told()?;
    expect_told(&told, &bundle, "creating")?;
    let of_hook = agent.told()?;
    expect_told(&of_hook, &bundle, "created")?;
    ensure_eq!(of_hook["state"]["pid"], told["pid"], "the first process");
    ensure!(of_hook["pid"] != told["pid"], "the hook is another process than the first one");
    let said = std::fs::read_to_string(bundle.written("said"))?;
    ensure!(said.contains(WORDS) && said.ends_with("done\n"), "the hook said {said:?}");
    shim.shutdown(&bundle.id)
}

pub fn of_execs(hand: &mut Hand) -> Result<()> {
    let socket = hand.dir().join("agent");
    let agent = Agent::start(&socket, ERRNO)?;
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    restrict(&mut bundle, &socket, true)?;
    let shim = hand.shim(&bundle)?;
    let init = shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    expect_told(&agent.told()?, &bundle, "creating")?;
    for exec in ["x", "y"] {
        ensure_eq!(exec_ran(&shim, &bundle, exec, &bundle::process(&["mkdir", "/new"]))?, 1, "exit status of mkdir");
        let told = agent.told()?;
        expect_told(&told, &bundle, "running")?;
        ensure_eq!(told["state"]["pid"], json!(init), "the first process");
        ensure_eq!(json!(agent.call()?), told["pid"], "the process whose call it was");
    }
    ensure!(!bundle.written("new").exists(), "a directory was made");
    end(&shim, &bundle)?;
    shim.shutdown(&bundle.id)
}

/// Neither a socket that is not there nor one that nobody accepts at lets a process run unwatched.
pub fn nobody_listens(hand: &mut Hand) -> Result<()> {
    let words = ["linux.seccomp.listenerPath", "agent"];
    let socket = hand.dir().join("agent");
    let mut bundle = hand.bundle("a", &["touch", "/ran"])?;
    restrict(&mut bundle, &socket, false)?;
    let shim = hand.shim(&bundle)?;
    let request = create_request(&bundle)?;
    let files = files_of(&bundle)?;
    for no_new_privileges in [false, true] {
        restrict(&mut bundle, &socket, no_new_privileges)?;
        for word in words {
            refused(shim.create(request.clone()), Code::UNKNOWN, word)?;
        }
        expect_nothing_of(&bundle, &files)?;
    }

    // What is not accepted waits in the queue: the listener may take it later.
    let late = UnixListener::bind(&socket)?;
    shim.create(request)?;
    shim.start(&bundle.id, "")?;
    shim.wait(&bundle.id, "")?;
    drop(late);
    shim.delete(&bundle.id, "")?;
    ensure!(bundle.written("ran").exists(), "the program did not run");
    shim.shutdown(&bundle.id)
}
