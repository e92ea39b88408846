//! The OCI command line: runc's commands, flags, formats and words, on real bundles.

mod cgroups;
mod inherited;
mod killed;
mod limits;
mod notify;
mod sealed;
mod streams;
mod words;

use std::fs;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::command::{self, output, signal};
use tests::containerd::eventually;
use tests::oci::{self, Entry, Oci};
use tests::pty::Pty;
use tests::{Context, Result, ensure, ensure_eq, paths, suite};

const SOON: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    const CASES: &[Entry] = &[
        ("a_life", a_life),
        ("formats_are_runcs", formats_are_runcs),
        ("failures_of_create_and_start", failures_of_create_and_start),
        ("hooks_read_the_state", hooks_read_the_state),
        ("exec_flags", exec_flags),
        ("run_in_the_foreground", run_in_the_foreground),
        ("terminals", terminals),
        ("preserved_descriptors", preserved_descriptors),
        ("signals", signals),
        ("pause_update_and_figures", cgroups::pause_update_and_figures),
        ("what_is_refused", what_is_refused),
        ("a_killed_create_is_removed", killed::a_killed_create_is_removed),
        ("creates_killed_at_any_time", killed::creates_killed_at_any_time),
        ("one_of_two_starts", killed::one_of_two_starts),
        ("a_start_that_was_killed", killed::a_start_that_was_killed),
        ("a_create_killed_with_its_launcher", killed::a_create_killed_with_its_launcher),
        ("a_key_ends_a_create", killed::a_key_ends_a_create),
        ("a_signal_for_a_run_that_has_no_process_yet", killed::a_signal_for_a_run_that_has_no_process_yet),
        ("a_spoilt_state", killed::a_spoilt_state),
        ("an_exec_in_a_cgroup_below", cgroups::an_exec_in_a_cgroup_below),
        ("events_tell_of_a_lack_of_memory", cgroups::events_tell_of_a_lack_of_memory),
        ("classes_of_service", cgroups::classes_of_service),
        ("sockets_of_systemd", sockets_of_systemd),
        ("words_of_older_callers", words_of_older_callers),
        ("strict_filter", strict_filter),
        ("annotations_of_crun", annotations_of_crun),
        ("sizes_with_units", limits::sizes_with_units),
        ("figures_are_in_runcs_order", limits::figures_are_in_runcs_order),
        ("whose_lines_ps_shows", limits::whose_lines_ps_shows),
        ("a_user_namespace_that_maps_all", limits::a_user_namespace_that_maps_all),
        ("a_service_manager_is_told", notify::a_service_manager_is_told),
        ("a_foreground_run_is_the_main_process", notify::a_foreground_run_is_the_main_process),
        ("from_a_user_namespace", notify::from_a_user_namespace),
        ("a_manager_that_is_not_there", notify::a_manager_that_is_not_there),
        ("the_program_cannot_be_overwritten", sealed::the_program_cannot_be_overwritten),
        ("started_by_a_descriptor", sealed::started_by_a_descriptor),
        ("a_terminal_that_is_read_late", streams::a_terminal_that_is_read_late),
        ("input_that_does_not_wait", streams::input_that_does_not_wait),
        ("a_reader_that_goes_away", streams::a_reader_that_goes_away),
        ("newlines_of_terminals", streams::newlines_of_terminals),
        ("null_devices_that_are_preserved", streams::null_devices_that_are_preserved),
        ("sigchld_ignored_by_the_caller", inherited::sigchld_ignored_by_the_caller),
        ("what_engines_ask", words::what_engines_ask),
        ("exit_codes_of_usage", words::exit_codes_of_usage),
        ("what_debug_tells", words::what_debug_tells),
        ("a_log_that_cannot_be_opened", words::a_log_that_cannot_be_opened),
        ("capabilities_of_exec", words::capabilities_of_exec),
        ("pid_files_clobber_nothing", words::pid_files_clobber_nothing),
        ("sockets_with_long_paths", words::sockets_with_long_paths),
        ("absent_fields", words::absent_fields),
        ("signals_before_the_start", inherited::signals_before_the_start),
    ];
    suite::main_of(oci::named("cli", CASES))
}

fn a_life(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["sh", "-c", "echo up; exec sleep 1000"])?;
    let (id, pid_file) = (bundle.id.as_str(), oci.data().join("pid"));
    let out = oci.create(&bundle, &["--pid-file", &pid_file.display().to_string()])?;
    let created = oci.state(id)?;
    ensure_eq!(created["status"], "created", "after create");
    ensure_eq!(fs::read_to_string(&pid_file)?, created["pid"].to_string(), "pid file");
    ensure_eq!(fs::read_to_string(&out)?, "", "the program ran before start");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(oci.dir().join("state").join(id))?.permissions());
    ensure_eq!(mode & 0o777, 0o700, "mode of the state directory");
    oci.ok(&["start", id])?;
    eventually("the program runs", SOON, || fs::read_to_string(&out).is_ok_and(|text| text == "up\n"))?;
    ensure_eq!(oci.state(id)?["status"], "running", "after start");
    oci.fails(&["start", id], 1, "cannot start an already running container")?;
    oci.fails(&["delete", id], 1, "that is not stopped: running")?;
    oci.ok(&["kill", id, "KILL"])?;
    oci.expect_status(id, "stopped")?;
    ensure_eq!(oci.state(id)?["pid"], 0, "pid of a stopped container");
    oci.ok(&["delete", id])?;
    oci.fails(&["state", id], 1, "container does not exist")?;
    // One that was never started goes without force.
    oci.create(&bundle, &[])?;
    oci.ok(&["delete", id]).map(drop)
}

/// Both runtimes on one bundle: the same fields, the same head, the same JSON of a failure.
fn formats_are_runcs(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["sleep", "1000"])?;
    let (id, dir) = (bundle.id.as_str(), bundle.dir.display().to_string());
    let root = oci.dir().join("runc").display().to_string();
    let program = paths::cache("bookworm")?.join("usr/sbin/runc");
    let runc = |args: &[&str]| -> Result<Command> {
        let mut command = Command::new(&program);
        command.args(["--root", &root]).args(args).stdin(Stdio::null());
        Ok(command)
    };
    let mut created = runc(&["create", "-b", &dir, id])?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    ensure!(created.wait()?.success(), "runc create");
    let theirs = (output(&mut runc(&["state", id])?)?, output(&mut runc(&["list"])?)?, output(&mut runc(&["list", "-f", "json"])?)?);
    output(&mut runc(&["delete", "--force", id])?)?;
    oci.create(&bundle, &[])?;
    let ours = (oci.ok(&["state", id])?, oci.ok(&["list"])?, oci.ok(&["list", "-f", "json"])?);
    ensure_eq!(oci.ok(&["list", "-q"])?, format!("{id}\n"), "list -q");
    oci.ok(&["delete", "--force", id])?;
    let lines = |text: &str| text.lines().map(|line| line.split(':').next().unwrap_or_default().to_owned()).collect::<Vec<_>>();
    ensure_eq!(lines(&ours.0), lines(&theirs.0), "lines of state");
    let head = |text: &str| text.lines().next().unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    ensure_eq!(head(&ours.1), head(&theirs.1), "head of list");
    let fields = |text: &str| -> Result<Vec<String>> {
        let list: Value = serde_json::from_str(text)?;
        Ok(list[0].as_object().context(|| format!("no object in {text}"))?.keys().cloned().collect())
    };
    ensure_eq!(fields(&ours.2)?, fields(&theirs.2)?, "fields of list -f json");

    let log = oci.data().join("log");
    let done = command::run(&mut oci.command(&["--log", &log.display().to_string(), "--log-format", "json", "state", "none"])?)?;
    let line: Value = serde_json::from_str(&fs::read_to_string(&log)?)?;
    ensure_eq!((done.code, &line["level"], &line["msg"]), (1, &json!("error"), &json!("container does not exist")), "the log");
    let features: Value = serde_json::from_str(&oci.ok(&["features"])?)?;
    ensure_eq!(features["ociVersionMax"], "1.3.0", "features");
    let spec = oci.data().join("spec");
    fs::create_dir(&spec)?;
    let spec = spec.display().to_string();
    oci.ok(&["spec", "-b", &spec])?;
    oci.fails(&["spec", "-b", &spec], 1, "File config.json exists. Remove it first")
}

fn failures_of_create_and_start(oci: &Oci) -> Result<()> {
    let missing = oci.bundle("a", &["nope"])?;
    let dir = missing.dir.display().to_string();
    oci.fails(&["create", "-b", &dir, &missing.id], 1, "exec: \"nope\": executable file not found in $PATH")?;
    oci.fails(&["state", &missing.id], 1, "container does not exist")?;
    oci.fails(&["run", "-b", &dir, &missing.id], 1, "executable file not found in $PATH")?;
    // execve(2) itself fails only at the start.
    let script = oci.bundle("b", &["/bad"])?;
    let bad = script.dir.join("rootfs/bad");
    fs::write(&bad, "no program")?;
    fs::set_permissions(&bad, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    oci.create(&script, &[])?;
    // As with runc it is the process that says so and ends.
    oci.ok(&["start", &script.id])?;
    oci.expect_status(&script.id, "stopped")?;
    oci.fails(&["start", &script.id], 1, "cannot start a container that has stopped")?;
    oci.ok(&["delete", &script.id]).map(drop)
}

fn hooks_read_the_state(oci: &Oci) -> Result<()> {
    let mut bundle = oci.bundle("a", &["sleep", "1000"])?;
    let dir = oci.data().display().to_string();
    let hook =
        |kind: &str| json!([{"path": "/bin/busybox", "args": ["sh", "-c", format!("cat >{dir}/{kind}; echo {kind} >>{dir}/order")]}]);
    let kinds = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
    let mut hooks: Value = kinds.iter().map(|kind| ((*kind).to_owned(), hook(kind))).collect::<serde_json::Map<_, _>>().into();
    hooks["startContainer"] = json!([{"path": "/bin/sh", "args": ["sh", "-c", "cat >/startContainer"]}]);
    bundle.edit(|spec| spec["hooks"] = hooks)?;
    let id = &bundle.id.clone();
    oci.create(&bundle, &[])?;
    let started = bundle.dir.join("rootfs/startContainer");
    ensure!(!started.exists(), "startContainer ran before start");
    oci.ok(&["start", id])?;
    oci.ok(&["delete", "--force", id])?;
    ensure_eq!(fs::read_to_string(oci.data().join("order"))?.lines().collect::<Vec<_>>(), kinds, "order");
    let status = |path: std::path::PathBuf| -> Result<String> {
        let state: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
        ensure_eq!(state["id"], *id, "id for a hook");
        Ok(state["status"].as_str().unwrap_or_default().to_owned())
    };
    let told = kinds.iter().map(|kind| status(oci.data().join(kind))).collect::<Result<Vec<_>>>()?;
    ensure_eq!(told, ["creating", "creating", "creating", "running", "stopped"], "status for hooks");
    ensure_eq!(status(started)?, "created", "status for startContainer");
    // One that fails undoes the create, and says what the hook said.
    bundle.edit(|spec| spec["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "echo why >&2; exit 3"]}]}))?;
    let dir = bundle.dir.display().to_string();
    oci.fails(&["create", "-b", &dir, id], 1, "exit status 3: why")?;
    oci.fails(&["state", id], 1, "container does not exist")
}

fn exec_flags(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["sleep", "1000"])?;
    let id = bundle.id.as_str();
    oci.create(&bundle, &[])?;
    oci.ok(&["start", id])?;
    let script = "echo $A; pwd; id -u; id -g; exit 7";
    let done = oci.coracle(&["exec", "-e", "A=b", "--cwd", "/tmp", "-u", "5:6", id, "sh", "-c", script])?;
    ensure_eq!((done.code, done.stdout.as_str()), (7, "b\n/tmp\n5\n6\n"), "exec: {}", done.stderr);
    oci.fails(&["exec", id, "nope"], 255, "exec failed: exec: \"nope\": executable file not found in $PATH")?;
    oci.fails(&["exec", id], 255, "process args cannot be empty")?;
    let caps = oci.ok(&["exec", "--cap", "CAP_SYS_PTRACE", id, "grep", "CapEff", "/proc/self/status"])?;
    let mask = u64::from_str_radix(caps.trim().rsplit('\t').next().unwrap_or_default(), 16).unwrap_or_default();
    ensure!(mask & (1 << 19) != 0, "--cap: {caps}");
    let (file, pid_file) = (oci.data().join("process"), oci.data().join("pid"));
    fs::write(&file, tests::bundle::process(&["sleep", "999"]).to_string())?;
    let mut detached =
        oci.command(&["exec", "-d", "-p", &file.display().to_string(), "--pid-file", &pid_file.display().to_string(), id])?;
    ensure!(detached.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success(), "exec -d");
    let pid: i64 = fs::read_to_string(&pid_file)?.parse().context(|| "pid file".to_owned())?;
    let inside: Value = serde_json::from_str(&oci.ok(&["ps", "-f", "json", id])?)?;
    ensure!(inside.as_array().is_some_and(|pids| pids.contains(&json!(pid))), "{pid} is not in {inside}");
    let table = oci.ok(&["ps", id])?;
    ensure!(table.starts_with("UID") && table.contains("sleep 999"), "ps: {table}");
    oci.ok(&["kill", id, "9"])?;
    oci.expect_status(id, "stopped")?;
    oci.fails(&["exec", id, "true"], 255, "cannot exec in a stopped container")?;
    oci.ok(&["delete", id]).map(drop)
}

fn run_in_the_foreground(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["sh", "-c", "echo out; echo err >&2; exit 3"])?;
    let (id, dir) = (bundle.id.as_str(), bundle.dir.display().to_string());
    let done = oci.coracle(&["run", "-b", &dir, id])?;
    ensure_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (3, "out\n", "err\n"), "run");
    oci.fails(&["state", id], 1, "container does not exist")?;
    oci.coracle(&["run", "--keep", "-b", &dir, id])?;
    ensure_eq!(oci.state(id)?["status"], "stopped", "after run --keep");
    oci.fails(&["run", "-b", &dir, id], 1, "container with given ID already exists")?;
    oci.ok(&["delete", id])?;
    // Signals are passed on.
    let trap = oci.bundle("b", &["sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done"])?;
    let mut child = oci.command(&["run", "-b", &trap.dir.display().to_string(), &trap.id])?.stdout(Stdio::piped()).spawn()?;
    let mut up = [0; 3];
    child.stdout.take().context(|| "no stdout".to_owned())?.read_exact(&mut up)?;
    signal(child.id(), Signal::TERM)?;
    let status = command::wait_for(&mut child, SOON)?.context(|| "run did not end after SIGTERM".to_owned())?;
    ensure_eq!(command::code(status), 9, "status after SIGTERM");
    Ok(())
}

/// The descriptor that comes over a console socket.
fn receive(listener: &UnixListener) -> Result<OwnedFd> {
    ensure!(command::readable(listener, SOON)?, "nobody connects to the console socket");
    let (socket, _) = listener.accept()?;
    let (mut bytes, mut space) = ([0; 64], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    rights.next().context(|| "no descriptor came over the console socket".to_owned())
}

fn terminals(oci: &Oci) -> Result<()> {
    let mut bundle = oci.bundle("a", &["sh", "-c", "tty; exec sleep 1000"])?;
    bundle.edit(|spec| spec["process"]["terminal"] = json!(true))?;
    let (id, dir) = (&bundle.id.clone(), bundle.dir.display().to_string());
    oci.fails(&["create", "-b", &dir, id], 1, "cannot allocate tty if runc will detach without setting console socket")?;
    let socket = oci.dir().join("s");
    let listener = UnixListener::bind(&socket)?;
    let socket = socket.display().to_string();
    oci.create(&bundle, &["--console-socket", &socket])?;
    let mut master = fs::File::from(receive(&listener)?);
    oci.ok(&["start", id])?;
    let mut text = [0; 10];
    master.read_exact(&mut text)?;
    ensure_eq!(text, *b"/dev/pts/0", "the terminal");
    let mut exec = oci.command(&["exec", "-d", "-t", "--console-socket", &socket, id, "sh", "-c", "[ -t 0 ] && echo yes"])?;
    ensure!(exec.status()?.success(), "exec -t --console-socket");
    let mut master = fs::File::from(receive(&listener)?);
    let mut text = [0; 3];
    master.read_exact(&mut text)?;
    ensure_eq!(text, *b"yes", "the terminal of exec");
    oci.ok(&["delete", "-f", id])?;
    // In the foreground the command serves the terminal.
    bundle.edit(|spec| spec["process"]["args"] = json!(["sh", "-c", "stty size; read word; echo got $word; exit 4"]))?;
    let mut pty = Pty::spawn(&mut oci.command(&["run", "-b", &dir, id])?, 33, 77)?;
    pty.expect("33 77", SOON)?;
    pty.send("this\n")?;
    pty.expect("got this", SOON)?;
    ensure_eq!(pty.finish(SOON)?.1, 4, "status of run on a terminal");
    Ok(())
}

fn preserved_descriptors(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["sh", "-c", "echo three >&3; echo four >&4; ls /proc/self/fd"])?;
    let data = oci.data().display().to_string();
    let coracle = paths::shim_dir()?.join("coracle").display().to_string();
    let root = oci.dir().join("state").display().to_string();
    let line = format!(
        "exec {coracle} --root {root} run --preserve-fds 2 -b {} {} 3>{data}/three 4>{data}/four 5>/dev/null",
        bundle.dir.display(),
        bundle.id
    );
    let listed = output(Command::new("sh").args(["-c", &line]).stdin(Stdio::null()))?;
    ensure_eq!(fs::read_to_string(oci.data().join("three"))?, "three\n", "descriptor 3");
    ensure_eq!(fs::read_to_string(oci.data().join("four"))?, "four\n", "descriptor 4");
    // 5 is the directory that ls has open.
    ensure_eq!(listed.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3", "4", "5"], "descriptors of the container");
    oci.fails(&["run", "--preserve-fds", "200", "-b", &bundle.dir.display().to_string(), &bundle.id], 1, "--preserve-fds: descriptor")
}

fn signals(oci: &Oci) -> Result<()> {
    let script = "for s in USR1 USR2 HUP; do trap \"echo $s\" $s; done; echo up; while :; do sleep 0.05; done";
    let bundle = oci.bundle("a", &["sh", "-c", script])?;
    let id = bundle.id.as_str();
    let out = oci.create(&bundle, &[])?;
    oci.ok(&["start", id])?;
    for (word, shown) in [("", "up\n"), ("SIGUSR1", "up\nUSR1\n"), ("usr2", "up\nUSR1\nUSR2\n"), ("1", "up\nUSR1\nUSR2\nHUP\n")] {
        if !word.is_empty() {
            oci.ok(&["kill", id, word])?;
        }
        eventually(shown, SOON, || fs::read_to_string(&out).is_ok_and(|text| text == shown))?;
    }
    for word in ["NOPE", "65", "-1x"] {
        oci.fails(&["kill", "--", id, word], 1, "unknown signal")?;
    }
    oci.ok(&["kill", "-a", id, "KILL"])?;
    oci.expect_status(id, "stopped")?;
    oci.fails(&["kill", id], 1, "container not running")?;
    oci.ok(&["delete", id]).map(drop)
}

fn what_is_refused(oci: &Oci) -> Result<()> {
    for command in ["state", "start", "pause", "resume", "ps", "delete", "kill", "update", "events"] {
        oci.fails(&[command, "none"], 1, "container does not exist")?;
    }
    oci.fails(&["exec", "none", "true"], 255, "container does not exist")?;
    oci.ok(&["delete", "--force", "none"])?;
    for id in ["", ".", "..", "a/b", "a b", "a\nb"] {
        oci.fails(&["state", id], 1, "invalid container ID format")?;
    }
    let empty = oci.data().display().to_string();
    oci.fails(&["create", "-b", &empty, &oci.id("e")], 1, "config.json")?;
    oci.fails(&["create", "-b", "/nowhere", &oci.id("e")], 1, "bundle \"/nowhere\": no such file or directory")?;
    oci.fails(&["checkpoint", "x"], 1, "checkpoint: not supported")?;
    oci.fails(&["restore", "x"], 1, "restore: not supported")?;
    oci.fails(&["--rootless", "true", "list"], 1, "not supported")?;
    oci.fails(&["nonsense"], 3, "nonsense")?;
    oci.fails(&["create"], 1, "<ID>")
}

/// A profile that allows little more than the program itself needs, loaded before the wait since the process may gain rights.
fn strict_filter(oci: &Oci) -> Result<()> {
    let mut bundle = oci.bundle("a", &["sh", "-c", "echo ran"])?;
    let denied = ["accept", "accept4", "socket", "connect", "bind", "listen", "recvmsg", "sendmsg", "open_by_handle_at", "poll", "ppoll"];
    bundle.edit(|spec| {
        spec["process"]["noNewPrivileges"] = json!(false);
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": denied, "action": "SCMP_ACT_KILL_PROCESS"}]});
    })?;
    let out = oci.create(&bundle, &[])?;
    oci.ok(&["start", &bundle.id])?;
    eventually("the program runs", SOON, || fs::read_to_string(&out).is_ok_and(|text| text == "ran\n"))?;
    oci.expect_status(&bundle.id, "stopped")?;
    oci.ok(&["delete", &bundle.id]).map(drop)
}

/// sd_listen_fds(3): the container's program gets them as if systemd had started it.
fn sockets_of_systemd(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["sh", "-c", "echo $LISTEN_FDS $LISTEN_PID; ls -l /proc/self/fd/3 | grep -o 'socket'; echo x >&4"])?;
    let data = oci.data().display().to_string();
    let coracle = paths::shim_dir()?.join("coracle").display().to_string();
    let root = oci.dir().join("state").display().to_string();
    let run = format!("exec {coracle} --root {root} run --preserve-fds 1 -b {} {}", bundle.dir.display(), bundle.id);
    let given = format!("export LISTEN_FDS=1 LISTEN_PID=$$; {run} 4>{data}/four");
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair()?;
    let done = Command::new("sh").args(["-c", &format!("exec 3<&0 </dev/null; {given}")]).stdin(OwnedFd::from(ours)).output()?;
    ensure_eq!(String::from_utf8_lossy(&done.stdout), "1 1\nsocket\n", "{}", String::from_utf8_lossy(&done.stderr));
    ensure_eq!(fs::read_to_string(oci.data().join("four"))?, "x\n", "what is preserved comes after them");
    Ok(())
}

fn words_of_older_callers(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["sleep", "1000"])?;
    let (id, dir) = (bundle.id.as_str(), bundle.dir.display().to_string());
    let socket = oci.dir().join("s");
    let listener = UnixListener::bind(&socket)?;
    let socket = socket.display().to_string();
    oci.fails(
        &["run", "-b", &dir, "--console-socket", &socket, id],
        1,
        "cannot use console socket if runc will not detach or allocate tty",
    )?;
    let flags = ["--criu", "/none", "create", "-bundle", &dir, "-pidfd-socket", &socket, id];
    ensure!(oci.command(&flags)?.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success(), "create -bundle -pidfd-socket");
    let pidfd = receive(&listener)?;
    let link = fs::read_to_string(format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&pidfd)))?;
    ensure!(link.contains(&format!("Pid:\t{}\n", oci.state(id)?["pid"])), "the descriptor is of another process: {link}");
    oci.ok(&["delete", "-force", id])?;
    let log = oci.data().join("usage");
    let done = command::run(&mut oci.command(&["--log", &log.display().to_string(), "--log-format=json", "create", "--nonsense"])?)?;
    let line: Value = serde_json::from_str(&fs::read_to_string(&log)?)?;
    ensure!(done.code == 1 && line["msg"].as_str().is_some_and(|text| text.contains("--nonsense")), "usage in the log: {line}");
    Ok(())
}

fn annotations_of_crun(oci: &Oci) -> Result<()> {
    let mut bundle = oci.bundle("a", &["true"])?;
    let out = oci.data().join("out");
    let hook = json!([{"path": "/bin/busybox", "args": ["echo", "said"]}]);
    bundle.edit(|spec| {
        spec["hooks"] = json!({"prestart": hook, "poststop": hook});
        spec["annotations"] = json!({"run.oci.hooks.stdout": out.display().to_string()});
    })?;
    let dir = bundle.dir.display().to_string();
    oci.ok(&["run", "-b", &dir, &bundle.id])?;
    ensure!(!out.exists(), "they count without the flag");
    let mut create = oci.command(&["--crun-annotations", "create", "-b", &dir, &bundle.id])?;
    ensure!(create.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success(), "create");
    // The container has been made so.
    oci.ok(&["delete", &bundle.id])?;
    ensure_eq!(fs::read_to_string(&out)?, "said\nsaid\n", "what hooks have written");
    Ok(())
}
