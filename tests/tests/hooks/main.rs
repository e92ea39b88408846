//! Hooks: six kinds, their order, what they are told and given, and what their failures do.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::both::Suite;
use tests::bundle::Bundle;
use tests::command::signal;
use tests::containerd::eventually;
use tests::hand::Hand;
use tests::requests::{self, RUNNING, STOPPED, create_request, expect_nothing_of, files_of, finish};
use tests::rpc::refused;
use tests::{Context, Result, both_cases, ensure, ensure_eq, hand_cases, proc};
use ttrpc::Code;

mod both;

fn main() -> ExitCode {
    let shim = hand_cases![
        six_kinds_in_order,
        state_on_stdin,
        nothing_but_what_the_spec_gives,
        the_root_in_its_place,
        no_root_without_hooks,
        those_before_the_start_undo_the_create,
        start_container_stops_the_start,
        poststart_stops_the_container,
        poststop_only_warns,
        a_timeout_kills,
        one_that_leaves_a_process_behind,
        one_that_does_not_read,
        poststop_after_a_dead_daemon,
    ];
    let both = both_cases![
        both::without_an_environment,
        both::in_the_containers_root,
        both::in_a_user_namespace,
        both::a_failure_tells_which_and_how,
        both::poststop_after_a_failure,
        both::whose_caller_ignores_its_children,
        both::poststop_hooks_run_whatever_the_others_do,
        both::the_longest_timeout,
    ];
    Suite { name: "hooks", both, both_once: Vec::new(), shim, shim_once: Vec::new() }.main()
}

const SOON: Duration = Duration::from_secs(10);
const KINDS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Where a hook writes: those of the runtime into the case's directory, startContainer into its container.
fn place(hand: &Hand, bundle: &Bundle, kind: &str, name: &str) -> PathBuf {
    if kind == "startContainer" { bundle.written(&format!("{kind}{name}")) } else { hand.dir().join(format!("{kind}{name}")) }
}

/// What the hook itself calls that place.
fn seen(hand: &Hand, kind: &str, name: &str) -> String {
    if kind == "startContainer" { format!("/{kind}{name}") } else { hand.dir().join(format!("{kind}{name}")).display().to_string() }
}

/// A hook that runs a script of busybox; `$0` is where it may write.
fn hook(hand: &Hand, kind: &str, name: &str, script: &str) -> Value {
    json!({"path": "/bin/busybox", "args": ["sh", "-c", script, seen(hand, kind, name)], "env": ["MARK=1"]})
}

/// The script's own environment, directory, descriptors and input, each in a file.
///
/// In a pid namespace of its own it has another number in the host's procfs.
const DUMP: &str = "read p rest </proc/self/stat; cat /proc/$p/environ >$0.env; (ls -l /proc/$p/fd >$0.fds); pwd >$0.cwd; cat >$0.state";

fn six_kinds_in_order(hand: &mut Hand) -> Result<()> {
    let program = "[ -e /startContainer2 ] && [ ! -e /poststart1 ] && echo yes >/program; exec sleep 1000";
    let mut bundle = hand.bundle("a", &["sh", "-c", program])?;
    let order = hand.dir().join("order");
    let entry = |kind: &str, name: &str| {
        let to = if kind == "startContainer" { "/order".to_owned() } else { order.display().to_string() };
        hook(hand, kind, name, &format!("echo {kind}{name} >>{to}; echo >$0"))
    };
    let hooks: BTreeMap<&str, Vec<Value>> = KINDS.iter().map(|kind| (*kind, vec![entry(kind, "1"), entry(kind, "2")])).collect();
    bundle.edit(|spec| spec["hooks"] = json!(hooks))?;
    let shim = hand.shim(&bundle)?;
    let lines = || fs::read_to_string(&order).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    shim.create_quiet(&bundle)?;
    let created = ["prestart1", "prestart2", "createRuntime1", "createRuntime2", "createContainer1", "createContainer2"];
    ensure_eq!(lines(), created, "hooks when Create has answered");
    ensure!(!bundle.written("startContainer1").exists(), "startContainer ran before Start");
    shim.start(&bundle.id, "")?;
    ensure_eq!(lines()[6..], ["poststart1", "poststart2"], "hooks when Start has answered");
    ensure_eq!(fs::read_to_string(bundle.written("order"))?, "startContainer1\nstartContainer2\n", "startContainer hooks");
    eventually("the program saw them done", SOON, || bundle.written("program").exists())?;
    requests::end(&shim, &bundle)?;
    ensure_eq!(lines()[8..], ["poststop1", "poststop2"], "hooks when Delete has answered");
    shim.shutdown(&bundle.id)
}

fn state_on_stdin(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    let hooks: BTreeMap<&str, Vec<Value>> = KINDS.iter().map(|kind| (*kind, vec![hook(hand, kind, "", DUMP)])).collect();
    bundle.edit(|spec| {
        spec["hooks"] = json!(hooks);
        spec["annotations"] = json!({"org.example.key": "a \"value\"\n"});
    })?;
    let shim = hand.shim(&bundle)?;
    let pid = shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    finish(&shim, &bundle)?;
    for (kind, status) in KINDS.iter().zip(["creating", "creating", "creating", "created", "running", "stopped"]) {
        let text = fs::read_to_string(place(hand, &bundle, kind, ".state")).context(|| format!("state of {kind}"))?;
        let state: Value = serde_json::from_str(&text).context(|| format!("state of {kind}"))?;
        ensure_eq!(state["status"], status, "status of {kind}");
        ensure_eq!(state["id"], json!(bundle.id), "id of {kind}");
        ensure_eq!(state["bundle"], json!(bundle.dir), "bundle of {kind}");
        ensure_eq!(state["ociVersion"], json!("1.0.2-dev"), "version of {kind}");
        ensure_eq!(state["annotations"], json!({"org.example.key": "a \"value\"\n"}), "annotations of {kind}");
        let told = state.get("pid").and_then(Value::as_u64).unwrap_or_default();
        // As its own pid namespace counts.
        let inside = ["createContainer", "startContainer"].contains(kind);
        let right = told
            == if *kind == "poststop" {
                0
            } else if inside {
                1
            } else {
                u64::from(pid)
            };
        ensure!(right, "pid of {kind}: {told} instead of {pid}");
    }
    Ok(())
}

/// NVIDIAScape (CVE-2025-23266): the environment of the container and its directory are no business of a hook.
fn nothing_but_what_the_spec_gives(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    let hooks: BTreeMap<&str, Vec<Value>> = KINDS.iter().map(|kind| (*kind, vec![hook(hand, kind, "", DUMP)])).collect();
    bundle.edit(|spec| {
        spec["hooks"] = json!(hooks);
        spec["process"]["env"] = json!(["PATH=/bin", "LD_PRELOAD=./x.so", "SECRET=2"]);
        spec["process"]["cwd"] = json!("/tmp");
    })?;
    let shim = hand.shim(&bundle)?;
    shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    finish(&shim, &bundle)?;
    for kind in KINDS {
        let read = |name: &str| fs::read_to_string(place(hand, &bundle, kind, name)).context(|| format!("{kind}{name}"));
        ensure_eq!(read(".env")?, "MARK=1\0", "environment of {kind}");
        let descriptors = read(".fds")?;
        let numbers: Vec<&str> = descriptors.lines().filter_map(|line| line.split(" -> ").next()?.rsplit(' ').next()).collect();
        let numbers: Vec<&str> = numbers.into_iter().filter(|number| number.parse::<u32>().is_ok()).collect();
        ensure!(numbers.iter().all(|number| ["0", "1", "2"].contains(number)), "descriptors of {kind}: {descriptors}");
        let directory = read(".cwd")?.trim().to_owned();
        let expected = match kind {
            "createContainer" => bundle.dir.join("rootfs").display().to_string(),
            // It has all that the first process has, but for the environment.
            "startContainer" => "/tmp".to_owned(),
            _ => bundle.dir.display().to_string(),
        };
        ensure_eq!(directory, expected, "directory of {kind}");
    }
    Ok(())
}

fn mounts_of(bundle: &Bundle) -> Vec<PathBuf> {
    proc::mounts().into_iter().map(|mount| mount.target).filter(|target| target.starts_with(&bundle.dir)).collect()
}

/// Reads and writes in the root filesystem through the bundle, which is the working directory.
const VISIT: &str = "[ -x rootfs/bin/busybox ] && echo >rootfs/$0 && read line <rootfs/program";

/// Hooks in the runtime's namespaces find the root filesystem in the bundle, from the first one to the last, and so does everybody else.
fn the_root_in_its_place(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sh", "-c", "[ -e /prestart ] && echo >/started; exec sleep 1000"])?;
    let visit = |kind: &str| json!([{"path": "/bin/busybox", "args": ["sh", "-c", VISIT, kind]}]);
    let outside = ["prestart", "createRuntime", "poststart", "poststop"];
    bundle.edit(|spec| {
        spec["hooks"] = outside.iter().map(|kind| ((*kind).to_owned(), visit(kind))).collect::<serde_json::Map<_, _>>().into();
        let script = "mkdir -p ./lib && echo made >./lib/x && mount -t tmpfs hook ./mnt && readlink /proc/self/ns/pid >./pidns";
        spec["hooks"]["createContainer"] = json!([{"path": "/bin/busybox", "args": ["sh", "-c", script]}]);
    })?;
    fs::create_dir_all(bundle.written("mnt"))?;
    fs::write(bundle.written("program"), "line\n")?;
    let rootfs = bundle.dir.join("rootfs");
    let shim = hand.shim(&bundle)?;
    let pid = shim.create_quiet(&bundle)?;
    ensure_eq!(mounts_of(&bundle), std::slice::from_ref(&rootfs), "mounts of the host in the bundle");
    ensure!(rootfs.join("lib/x").exists() && bundle.written("lib/x").exists(), "what the createContainer hook made is not in the root");
    shim.start(&bundle.id, "")?;
    eventually("the program saw what the hook has written", SOON, || bundle.written("started").exists())?;
    let inside = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    ensure!(inside.lines().any(|line| line.contains(" /mnt ") && line.contains(" tmpfs hook ")), "mounts of the container:\n{inside}");
    ensure!(inside.lines().count() < 30, "mounts of the host are left in the container:\n{inside}");
    ensure_eq!(mounts_of(&bundle), std::slice::from_ref(&rootfs), "mounts of the host in the bundle");
    finish(&shim, &bundle)?;
    ensure_eq!(mounts_of(&bundle), Vec::<PathBuf>::new(), "mounts of the host after Delete");
    for kind in outside {
        ensure!(bundle.written(kind).exists(), "what the {kind} hook has written is not in the root filesystem");
    }
    fs::remove_dir(&rootfs).context(|| "remove the bundle's rootfs".to_owned())?;
    fs::create_dir(&rootfs)?;
    // A create that fails leaves none.
    let mut failing = hand.bundle("b", &["true"])?;
    failing.edit(|spec| {
        spec["hooks"] = json!({"createRuntime": [{"path": "/bin/busybox", "args": ["sh", "-c", "[ -e rootfs/bin ] && exit 9"]}]})
    })?;
    let shim = hand.shim(&failing)?;
    refused(shim.create(create_request(&failing)?), Code::UNKNOWN, "exit status 9")?;
    ensure_eq!(mounts_of(&failing), Vec::<PathBuf>::new(), "mounts of the host after a failure");
    shim.shutdown(&failing.id)
}

/// The host's mount table has nothing of a container which has no hooks there.
fn no_root_without_hooks(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    let nothing = |path: &str| json!([{"path": path, "args": ["true"]}]);
    bundle.edit(|spec| spec["hooks"] = json!({"createContainer": nothing("/bin/busybox"), "startContainer": nothing("/bin/busybox")}))?;
    let shim = hand.shim(&bundle)?;
    shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    ensure_eq!(mounts_of(&bundle), Vec::<PathBuf>::new(), "mounts of the host in the bundle");
    finish(&shim, &bundle)
}

fn failing(hand: &Hand, kind: &str) -> Value {
    json!({kind: [hook(hand, kind, "", "echo it broke >&2; exit 3"), hook(hand, kind, "late", "echo >$0")]})
}

fn those_before_the_start_undo_the_create(hand: &mut Hand) -> Result<()> {
    let first = hand.bundle("first", &["true"])?;
    let shim = hand.shim(&first)?;
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let mut bundle = hand.bundle(kind, &["sleep", "1000"])?;
        bundle.edit(|spec| spec["hooks"] = failing(hand, kind))?;
        let files = files_of(&bundle)?;
        let answer = shim.create(create_request(&bundle)?);
        refused(answer, Code::UNKNOWN, &format!("error running {kind} hook #0: \"/bin/busybox\": exit status 3: it broke"))?;
        refused(shim.state(&bundle.id, ""), Code::NOT_FOUND, "")?;
        expect_nothing_of(&bundle, &files)?;
        ensure!(!place(hand, &bundle, kind, "late").exists(), "{kind}: the next one ran");
    }
    shim.shutdown(&first.id)
}

fn start_container_stops_the_start(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sh", "-c", "echo >/ran; exec sleep 1000"])?;
    bundle.edit(|spec| spec["hooks"] = failing(hand, "startContainer"))?;
    let shim = hand.shim(&bundle)?;
    shim.create_quiet(&bundle)?;
    refused(shim.start(&bundle.id, ""), Code::UNKNOWN, "startContainer")?;
    ensure_eq!(shim.state(&bundle.id, "")?.status.value(), STOPPED, "status");
    shim.wait(&bundle.id, "")?;
    ensure!(!bundle.written("ran").exists(), "the program ran");
    shim.delete(&bundle.id, "")?;
    shim.shutdown(&bundle.id)
}

fn poststart_stops_the_container(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    bundle.edit(|spec| spec["hooks"] = failing(hand, "poststart"))?;
    let shim = hand.shim(&bundle)?;
    shim.create_quiet(&bundle)?;
    refused(shim.start(&bundle.id, ""), Code::UNKNOWN, "error running poststart hook #0: \"/bin/busybox\": exit status 3: it broke")?;
    ensure_eq!(shim.wait(&bundle.id, "")?.exit_status, 137, "status");
    shim.delete(&bundle.id, "")?;
    shim.shutdown(&bundle.id)
}

fn poststop_only_warns(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    bundle.edit(|spec| spec["hooks"] = failing(hand, "poststop"))?;
    let shim = hand.shim(&bundle)?;
    shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    finish(&shim, &bundle)
}

fn a_timeout_kills(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    let files = files_of(&bundle)?;
    let mark = format!("{}7", 100_000 + std::process::id());
    bundle.edit(|spec| {
        spec["hooks"] = json!({"createRuntime": [{"path": "/bin/busybox", "args": ["sleep", mark], "timeout": 1}]});
    })?;
    let shim = hand.shim(&bundle)?;
    let began = Instant::now();
    refused(shim.create(create_request(&bundle)?), Code::UNKNOWN, "killed after its timeout of 1 s")?;
    let took = began.elapsed();
    ensure!((Duration::from_millis(900)..Duration::from_secs(4)).contains(&took), "it took {took:?}");
    ensure!(proc::all().iter().all(|process| !process.command_line.contains(&mark)), "the hook still runs");
    let files_now: Vec<String> = files_of(&bundle)?.into_iter().filter(|name| !name.ends_with("/address")).collect();
    ensure_eq!(files_now, files, "files in the bundle");
    // One that is done in time is not waited for.
    bundle.edit(|spec| spec["hooks"] = json!({"createRuntime": [{"path": "/bin/busybox", "args": ["true"], "timeout": 60}]}))?;
    shim.create_quiet(&bundle)?;
    shim.delete(&bundle.id, "")?;
    shim.shutdown(&bundle.id)
}

/// Its streams stay open in the process that it left; the hook has ended all the same.
fn one_that_leaves_a_process_behind(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    bundle.edit(|spec| {
        spec["hooks"] = json!({"createRuntime": [hook(hand, "createRuntime", "", "/bin/busybox sleep 1000 & echo $! >$0; exit 0")]});
    })?;
    let shim = hand.shim(&bundle)?;
    let began = Instant::now();
    shim.create_quiet(&bundle)?;
    let took = began.elapsed();
    let left: u32 = fs::read_to_string(place(hand, &bundle, "createRuntime", ""))?.trim().parse()?;
    signal(left, Signal::KILL)?;
    ensure!(took < Duration::from_secs(5), "Create took {took:?}");
    shim.delete(&bundle.id, "")?;
    shim.shutdown(&bundle.id)
}

/// A state larger than a pipe, for a hook that does not read it; and complaints larger than a pipe.
fn one_that_does_not_read(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    bundle.edit(|spec| {
        spec["annotations"] = json!({"org.example.large": "x".repeat(300_000)});
        spec["hooks"] = json!({"createRuntime": [
            {"path": "/bin/busybox", "args": ["true"]},
            {"path": "/bin/busybox", "args": ["sh", "-c", "/bin/busybox head -c 300000 /dev/zero >&2"]},
            {"path": "/bin/busybox", "args": ["sh", "-c", "[ $(/bin/busybox wc -c) -gt 300000 ]"]},
        ]});
    })?;
    let shim = hand.shim(&bundle)?;
    shim.create_quiet(&bundle)?;
    ensure_eq!(shim.state(&bundle.id, "")?.status.value(), 1, "status");
    shim.start(&bundle.id, "")?;
    ensure_eq!(shim.state(&bundle.id, "")?.status.value(), RUNNING, "status");
    finish(&shim, &bundle)
}

fn poststop_after_a_dead_daemon(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    bundle.edit(|spec| {
        spec["hooks"] = json!({"poststop": [
            hook(hand, "poststop", "", &format!("echo once >>$0.runs; {DUMP}; /bin/busybox touch rootfs/visited")),
            hook(hand, "poststop", "", "echo it broke >&2; exit 3"),
        ]});
    })?;
    let shim = hand.shim(&bundle)?;
    let pid = shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    hand.kill_shims()?;
    // A second `delete` has nothing left to do.
    for _ in 0..2 {
        let answer = hand.launch(|launch| launch.delete(&bundle.dir, &bundle.id))?;
        ensure_eq!((answer.pid, answer.exit_status), (pid, 137), "answer of delete");
    }
    ensure_eq!(fs::read_to_string(place(hand, &bundle, "poststop", ".runs"))?, "once\n", "runs");
    let state: Value = serde_json::from_str(&fs::read_to_string(place(hand, &bundle, "poststop", ".state"))?)?;
    ensure_eq!((&state["id"], &state["status"]), (&json!(bundle.id), &json!("stopped")), "state");
    ensure_eq!(fs::read_to_string(place(hand, &bundle, "poststop", ".env"))?, "MARK=1\0", "environment");
    ensure!(bundle.written("visited").exists(), "the hook did not find the root filesystem");
    ensure_eq!(mounts_of(&bundle), Vec::<PathBuf>::new(), "mounts of the host after delete");
    // One that hangs does not keep containerd waiting.
    let mut bundle = hand.bundle("b", &["sleep", "1000"])?;
    bundle.edit(|spec| spec["hooks"] = json!({"poststop": [{"path": "/bin/busybox", "args": ["sleep", "1000"]}]}))?;
    let shim = hand.shim(&bundle)?;
    shim.create_quiet(&bundle)?;
    hand.kill_shims()?;
    let began = Instant::now();
    hand.launch(|launch| launch.delete(&bundle.dir, &bundle.id))?;
    ensure!(began.elapsed() < Duration::from_secs(5), "delete took {:?}", began.elapsed());
    Ok(())
}
