//! What fails between the opening of the streams and the running process releases what was opened: whoever is at the other end hears of it, and the
//! daemon keeps nothing.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;
use tests::bundle::{Bundle, process};
use tests::containerd::eventually;
use tests::hand::Hand;
use tests::requests::{STOPPED, create_request, daemon, exec_ran, exec_request, expect_nothing_of, files_of, finish, running};
use tests::rpc::refused;
use tests::stream::{Reader, fifo};
use tests::{Context, Result, ensure, ensure_eq, proc};
use ttrpc::Code;

use crate::SOON;

/// The fifos of one process, and a client that reads its output.
struct Streams {
    paths: [PathBuf; 3],
    outputs: Vec<File>,
}

impl Streams {
    fn new(hand: &Hand, name: &str, terminal: bool) -> Result<Self> {
        let [stdin, stdout, stderr] = ["in", "out", "err"].map(|stream| fifo(hand.dir(), &format!("{name}.{stream}")));
        let paths = [stdin?, stdout?, stderr?];
        let outputs = if terminal { &paths[1..2] } else { &paths[1..] };
        let open = |path: &PathBuf| Ok(File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?);
        Ok(Self { outputs: outputs.iter().map(open).collect::<Result<_>>()?, paths })
    }

    fn names(&self) -> [String; 3] {
        self.paths.each_ref().map(|path| path.display().to_string())
    }

    fn ended(&mut self) -> Result<()> {
        for output in &mut self.outputs {
            // A read without a writer is the end, also where there has never been one.
            eventually("nobody holds the other end", Duration::from_secs(3), || output.read(&mut [0]).is_ok_and(|count| count == 0))?;
        }
        self.paths.iter().try_for_each(|path| Ok(std::fs::remove_file(path)?))
    }
}

fn limit(daemon: u32, current: u64) -> Result<()> {
    let pid = Pid::from_raw(daemon.cast_signed());
    let before = prlimit(pid, Resource::Nofile, Rlimit { current: Some(current), maximum: hard(daemon)? })?;
    ensure!(before.maximum.is_some(), "the hard limit of the daemon is {before:?}");
    Ok(())
}

fn hard(pid: u32) -> Result<Option<u64>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files")).context(|| format!("no limit of files in {text}"))?;
    Ok(line.split_whitespace().nth(1).and_then(|word| word.parse().ok()))
}

/// The first number that the daemon has not given to a descriptor.
fn first_free(daemon: u32) -> Result<u64> {
    let mut number = 0;
    while std::fs::symlink_metadata(format!("/proc/{daemon}/fd/{number}")).is_ok() {
        number += 1;
    }
    Ok(number)
}

fn keeps(daemon: u32, before: usize, when: &str) -> Result<()> {
    let now = tests::wait::until(SOON, || Some(proc::usage(daemon).descriptors).filter(|now| *now <= before));
    ensure!(
        now.is_some(),
        "{when}: the daemon had {before} descriptors and now {}: {:?}",
        proc::usage(daemon).descriptors,
        open_files(daemon)
    );
    Ok(())
}

fn open_files(daemon: u32) -> Vec<String> {
    let links = std::fs::read_dir(format!("/proc/{daemon}/fd")).into_iter().flatten().flatten();
    links.filter_map(|link| Some(std::fs::read_link(link.path()).ok()?.display().to_string())).collect()
}

/// A privileged container has unmounted its `/dev/pts`.
pub fn terminal_that_cannot_be_made(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    let without = |bundle: &mut Bundle| {
        bundle.edit(|spec| {
            if let Some(mounts) = spec["mounts"].as_array_mut() {
                mounts.retain(|mount| mount["type"] != "devpts");
            }
        })
    };
    without(&mut bundle)?;
    let shim = hand.shim(&bundle)?;
    shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    let daemon = daemon(&shim, &bundle.id)?;
    exec_ran(&shim, &bundle, "warm", &process(&["true"]))?;
    let before = proc::usage(daemon).descriptors;
    let mut streams = Streams::new(hand, "e", true)?;
    let mut request = exec_request(&bundle.id, "e", &process(&["sh"]));
    request.terminal = true;
    [request.stdin, request.stdout, request.stderr] = streams.names();
    shim.exec_process(request)?;
    refused(shim.start(&bundle.id, "e"), Code::UNKNOWN, "ptmx")?;
    // Before anybody deletes it: containerd's client waits for this.
    streams.ended()?;
    ensure_eq!(shim.state(&bundle.id, "e")?.status.value(), STOPPED, "state");
    shim.delete(&bundle.id, "e")?;
    keeps(daemon, before, "after the failed Start")?;

    let mut second = hand.member("b", &["sleep", "1000"])?;
    without(&mut second)?;
    second.edit(|spec| spec["process"]["terminal"] = true.into())?;
    let files = files_of(&second)?;
    let mut streams = Streams::new(hand, "b", true)?;
    let mut request = create_request(&second)?;
    request.terminal = true;
    [request.stdin, request.stdout, request.stderr] = streams.names();
    refused(shim.create(request), Code::INVALID_ARGUMENT, "devpts")?;
    streams.ended()?;
    expect_nothing_of(&second, &files)?;
    keeps(daemon, before, "after the failed Create")?;
    finish(&shim, &bundle)
}

/// Every step of the daemon's own that takes a descriptor fails once.
pub fn exec_at_each_limit_of_descriptors(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    let daemon = daemon(&shim, &bundle.id)?;
    exec_ran(&shim, &bundle, "warm", &process(&["true"]))?;
    let (before, hard) = (proc::usage(daemon).descriptors, hard(daemon)?.unwrap_or(1 << 20));
    let logger = hand.data().join("logger");
    std::fs::write(&logger, "#!/bin/sh\nexec 5>&-\nexec cat <&3 >/dev/null\n")?;
    std::fs::set_permissions(&logger, PermissionsExt::from_mode(0o755))?;
    for kind in ["pipes", "terminal", "logger"] {
        let first = first_free(daemon)?;
        let mut failed = 0;
        for room in 0.. {
            ensure!(room < 64, "{kind}: still fails with {room} descriptors");
            let exec = format!("{kind}{room}");
            let mut streams = Streams::new(hand, &exec, kind == "terminal")?;
            let mut request = exec_request(&bundle.id, &exec, &process(&["true"]));
            request.terminal = kind == "terminal";
            [request.stdin, request.stdout, request.stderr] = streams.names();
            if kind == "logger" {
                (request.stdout, request.stderr) = (format!("binary://{}", logger.display()), String::new());
                streams.outputs.clear();
            }
            shim.exec_process(request)?;
            limit(daemon, first + room)?;
            let started = shim.start(&bundle.id, &exec);
            limit(daemon, hard)?;
            let when = format!("{kind} with {room} descriptors, {started:?}");
            if started.is_ok() {
                shim.wait(&bundle.id, &exec)?;
            }
            streams.ended().map_err(|e| tests::Failure(format!("{when}: {e}")))?;
            shim.delete(&bundle.id, &exec)?;
            keeps(daemon, before, &when)?;
            if started.is_ok() {
                break;
            }
            failed += 1;
        }
        ensure!(failed > 5, "{kind}: only {failed} starts failed");
    }
    ensure_eq!(shim.pids(&bundle.id)?.len(), 1, "processes of the container");
    finish(&shim, &bundle)
}

/// The same for a container.
pub fn create_at_each_limit_of_descriptors(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    let daemon = daemon(&shim, &bundle.id)?;
    let (before, hard) = (proc::usage(daemon).descriptors, hard(daemon)?.unwrap_or(1 << 20));
    for terminal in [false, true] {
        let mut second = hand.member(&format!("b{terminal}"), &["true"])?;
        second.edit(|spec| spec["process"]["terminal"] = terminal.into())?;
        let files = files_of(&second)?;
        let first = first_free(daemon)?;
        for room in 0.. {
            ensure!(room < 96, "still fails with {room} descriptors");
            let mut streams = Streams::new(hand, &format!("{terminal}{room}"), terminal)?;
            let mut request = create_request(&second)?;
            request.terminal = terminal;
            [request.stdin, request.stdout, request.stderr] = streams.names();
            limit(daemon, first + room)?;
            let created = shim.create(request);
            limit(daemon, hard)?;
            let when = format!("terminal {terminal}, with {room} descriptors, {created:?}");
            if created.is_ok() {
                shim.start(&second.id, "")?;
                shim.wait(&second.id, "")?;
                streams.ended()?;
                shim.delete(&second.id, "")?;
                keeps(daemon, before, &when)?;
                break;
            }
            streams.ended().map_err(|e| tests::Failure(format!("{when}: {e}")))?;
            expect_nothing_of(&second, &files).map_err(|e| tests::Failure(format!("{when}: {e}")))?;
            keeps(daemon, before, &when)?;
        }
    }
    finish(&shim, &bundle)
}

/// A seccomp listener that gives no answer holds an exec in its execve(2).
pub fn exec_that_hangs_is_deleted(hand: &mut Hand) -> Result<()> {
    let socket = hand.dir().join("agent");
    let listener = UnixListener::bind(&socket)?;
    // The first connection is that of the container, the second one that of the exec.
    let agent = thread::spawn(move || listener.incoming().take(2).collect::<std::io::Result<Vec<_>>>());
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    bundle.edit(|spec| {
        spec["process"]["noNewPrivileges"] = json!(true);
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": socket,
            "syscalls": [{ "names": ["execve"], "action": "SCMP_ACT_NOTIFY" }],
        });
    })?;
    let shim = hand.shim(&bundle)?;
    shim.create_quiet(&bundle)?;
    shim.exec(&bundle.id, "e", &["true"])?;
    thread::scope(|scope| -> Result<()> {
        let starting = scope.spawn(|| shim.start(&bundle.id, "e"));
        eventually("the exec is there", SOON, || shim.state(&bundle.id, "e").is_ok_and(|state| state.pid != 0))?;
        let pid = shim.state(&bundle.id, "e")?.pid;
        let held = agent.join().ok().context(|| "the agent panicked".to_owned())??;
        ensure!(!starting.is_finished(), "Start is over");
        shim.delete(&bundle.id, "e")?;
        ensure!(proc::process(pid).is_none(), "the process lives after its deletion");
        let _ = starting.join();
        drop(held);
        Ok(())
    })?;
    refused(shim.state(&bundle.id, "e"), Code::NOT_FOUND, "e")?;
    finish(&shim, &bundle)
}

/// A logger that is never ready holds an exec before there is a process.
pub fn exec_that_is_not_there_yet_is_not_deleted(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    let logger = hand.data().join("logger");
    std::fs::write(&logger, "#!/bin/sh\ntouch \"${0%/*}/entered\"\nsleep 7\n")?;
    std::fs::set_permissions(&logger, PermissionsExt::from_mode(0o755))?;
    let mut request = exec_request(&bundle.id, "e", &process(&["sh", "-c", "touch /ran; sleep 1000"]));
    request.stdout = format!("binary://{}", logger.display());
    shim.exec_process(request)?;
    thread::scope(|scope| -> Result<()> {
        let starting = scope.spawn(|| shim.start(&bundle.id, "e"));
        eventually("the logger runs", SOON, || hand.data().join("entered").exists())?;
        refused(shim.delete(&bundle.id, "e"), Code::FAILED_PRECONDITION, "being started")?;
        let _ = starting.join();
        Ok(())
    })?;
    eventually("it can be deleted", SOON, || shim.delete(&bundle.id, "e").is_ok())?;
    ensure_eq!(shim.pids(&bundle.id)?.len(), 1, "processes of the container");
    finish(&shim, &bundle)
}

/// Programs that execve(2) refuses, and what the process says and ends with.
const REFUSED: [(&str, u32, &str); 4] = [
    ("/script", 126, "exec /script: exec format error\n"),
    ("/empty", 126, "exec /empty: exec format error\n"),
    ("/other", 126, "exec /other: exec format error\n"),
    ("/dangling", 127, "exec /dangling: no such file or directory\n"),
];

/// As with runc the container runs and ends: its log says why, and restart policies act.
pub fn program_that_cannot_be_executed(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    let mut other = std::fs::read(tests::bundle::system()?.join("bin/busybox"))?;
    // `e_machine` of elf(5): EM_68K.
    other.splice(18..20, [4, 0]);
    let programs: [(&str, &[u8]); 4] = [("script", b"echo\n"), ("empty", b""), ("other", &other), ("dangling", b"#!/no/such\n")];
    let write = |bundle: &Bundle| -> Result<()> {
        for (name, content) in programs {
            std::fs::write(bundle.written(name), content)?;
            std::fs::set_permissions(bundle.written(name), PermissionsExt::from_mode(0o755))?;
        }
        Ok(())
    };
    write(&bundle)?;
    for (number, (program, status, said)) in REFUSED.into_iter().enumerate() {
        let errors = fifo(hand.dir(), &format!("e{number}"))?;
        let mut reader = Reader::open(&errors)?;
        let mut request = exec_request(&bundle.id, "e", &process(&[program]));
        request.stderr = errors.display().to_string();
        shim.exec_process(request)?;
        shim.start(&bundle.id, "e")?;
        ensure_eq!(reader.text(SOON)?, said, "exec of {program}");
        ensure_eq!(shim.wait(&bundle.id, "e")?.exit_status, status, "exec of {program}");
        shim.delete(&bundle.id, "e")?;

        let second = hand.member(&format!("c{number}"), &[program])?;
        write(&second)?;
        let ran = tests::requests::ran(hand, &shim, &second)?;
        ensure_eq!((ran.status, ran.stderr.as_str()), (status, said), "container of {program}");
    }
    finish(&shim, &bundle)
}
