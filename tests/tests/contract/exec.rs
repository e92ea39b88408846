//! Processes that join a container.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::bundle::process;
use tests::events::Kind;
use tests::hand::Hand;
use tests::requests::{self, CREATED, PAUSED, STOPPED, daemon, exec_ran, finish, running};
use tests::rpc::refused;
use tests::{Context, Result, ensure, ensure_eq, proc};
use ttrpc::Code;

use crate::SOON;

pub fn id_again_after_delete(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    shim.exec(&bundle.id, "e", &["sh", "-c", "exit 1"])?;
    refused(shim.exec(&bundle.id, "e", &["true"]), Code::ALREADY_EXISTS, "e")?;
    shim.start(&bundle.id, "e")?;
    ensure_eq!(shim.wait(&bundle.id, "e")?.exit_status, 1, "status");
    // Ended is not deleted.
    refused(shim.exec(&bundle.id, "e", &["true"]), Code::ALREADY_EXISTS, "e")?;
    refused(shim.start(&bundle.id, "e"), Code::FAILED_PRECONDITION, "")?;
    shim.delete(&bundle.id, "e")?;
    refused(shim.delete(&bundle.id, "e"), Code::NOT_FOUND, "e")?;
    ensure_eq!(exec_ran(&shim, &bundle, "e", &process(&["sh", "-c", "exit 2"]))?, 2, "status of the second");
    // No id is the init's, and some are no ids.
    for bad in ["", "..", "a/b", "a\nb"] {
        let answer = shim.exec(&bundle.id, bad, &["true"]);
        refused(answer, Code::INVALID_ARGUMENT, "exec").map_err(|e| tests::Failure(format!("{bad:?}: {e}")))?;
    }
    finish(&shim, &bundle)
}

pub fn two_at_once_of_one_id(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    for round in 0..10 {
        let exec = format!("e{round}");
        let answers: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| shim.exec(&bundle.id, &exec, &["true"]))).collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
        });
        ensure_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "successes among {answers:?}");
        let exist = answers.iter().filter(|answer| answer.as_ref().is_err_and(|status| status.code == Code::ALREADY_EXISTS)).count();
        ensure_eq!(exist, 3, "refusals among {answers:?}");
        // Two starts of one: one of them runs it.
        let starts: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..2).map(|_| scope.spawn(|| shim.start(&bundle.id, &exec))).collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
        });
        ensure_eq!(starts.iter().filter(|answer| answer.is_ok()).count(), 1, "successes among {starts:?}");
        let late = starts.into_iter().find(std::result::Result::is_err).context(|| "none was refused".to_owned())?;
        refused(late, Code::FAILED_PRECONDITION, "")?;
        shim.wait(&bundle.id, &exec)?;
        shim.delete(&bundle.id, &exec)?;
    }
    finish(&shim, &bundle)
}

/// What is wrong with a process, the text that says so, and the status that it ends with.
fn failures() -> Vec<(Value, Code, &'static str, u32)> {
    let changed = |args: &[&str], change: &dyn Fn(&mut Value)| {
        let mut spec = process(args);
        change(&mut spec);
        spec
    };
    vec![
        (process(&["nothing-of-this-name"]), Code::NOT_FOUND, "exec: \"nothing-of-this-name\": executable file not found in $PATH", 127),
        (process(&["/no/such/program"]), Code::NOT_FOUND, "stat /no/such/program: no such file or directory", 127),
        (process(&["/etc/passwd"]), Code::INVALID_ARGUMENT, "permission denied", 126),
        (process(&["/bin"]), Code::INVALID_ARGUMENT, "is a directory", 126),
        (changed(&["true"], &|spec| spec["cwd"] = json!("/etc/passwd")), Code::UNKNOWN, "/etc/passwd", 127),
        (changed(&["true"], &|spec| spec["cwd"] = json!("/no/where")), Code::UNKNOWN, "/no/where", 127),
        (
            changed(&["true"], &|spec| {
                spec["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 4_000_000_000u64, "hard": 4_000_000_000u64}])
            }),
            Code::UNKNOWN,
            "NOFILE",
            126,
        ),
    ]
}

pub fn that_cannot_start(hand: &mut Hand) -> Result<()> {
    let bundle = hand.bundle("a", &["sleep", "1000"])?;
    let shim = hand.shim(&bundle)?;
    shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    std::fs::create_dir_all(bundle.written("etc"))?;
    std::fs::write(bundle.written("etc/passwd"), "root:x:0:0::/:/bin/sh\n")?;
    let before = proc::usage(daemon(&shim, &bundle.id)?);
    for (number, (spec, code, text, status)) in failures().into_iter().enumerate() {
        let exec = format!("e{number}");
        let named = |e: tests::Failure| tests::Failure(format!("{text}: {e}"));
        shim.exec_spec(&bundle.id, &exec, &spec)?;
        thread::scope(|scope| -> Result<()> {
            let waiter = scope.spawn(|| shim.wait(&bundle.id, &exec));
            refused(shim.start(&bundle.id, &exec), code, text).map_err(named)?;
            let waited = waiter.join().ok().context(|| "the waiter panicked".to_owned())??;
            ensure_eq!(waited.exit_status, status, "Wait of {text:?}");
            Ok(())
        })?;
        let state = shim.state(&bundle.id, &exec)?;
        ensure_eq!((state.status.value(), state.exit_status), (STOPPED, status), "State of {text:?}");
        refused(shim.kill(&bundle.id, &exec, 9), Code::NOT_FOUND, "").map_err(named)?;
        refused(shim.start(&bundle.id, &exec), Code::FAILED_PRECONDITION, "").map_err(named)?;
        ensure_eq!(shim.delete(&bundle.id, &exec)?.exit_status, status, "Delete of {text:?}");
        let kinds: Vec<Kind> =
            hand.stub.record.of(&bundle.id).into_iter().filter(|event| event.exec == exec).map(|event| event.kind).collect();
        ensure!(kinds.iter().all(|kind| *kind == Kind::ExecAdded), "events of {text:?}: {kinds:?}");
    }
    // What can be seen at once is refused at once, and takes no id.
    let mut nobody = process(&["true"]);
    nobody["user"]["uid"] = json!(u32::MAX);
    for bad in [nobody, process(&[]), json!({"args": "true"}), json!([])] {
        refused(shim.exec_spec(&bundle.id, "bad", &bad), Code::INVALID_ARGUMENT, "process")?;
        refused(shim.state(&bundle.id, "bad"), Code::NOT_FOUND, "bad")?;
    }
    let after = tests::wait::until(SOON, || Some(proc::usage(shim.connected(&bundle.id).ok()?.shim_pid)).filter(|usage| *usage == before));
    ensure!(after.is_some(), "the daemon held {before:?} and now {:?}", proc::usage(daemon(&shim, &bundle.id)?));
    finish(&shim, &bundle)
}

pub fn in_a_created_container(hand: &mut Hand) -> Result<()> {
    let bundle = hand.bundle("a", &["sleep", "1000"])?;
    let shim = hand.shim(&bundle)?;
    shim.create_quiet(&bundle)?;
    ensure_eq!(exec_ran(&shim, &bundle, "e", &process(&["sh", "-c", "exit 8"]))?, 8, "status");
    ensure_eq!(shim.state(&bundle.id, "")?.status.value(), CREATED, "status of the init");
    shim.start(&bundle.id, "")?;
    finish(&shim, &bundle)
}

pub fn in_a_paused_container(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    shim.exec(&bundle.id, "e", &["sleep", "1000"])?;
    shim.exec(&bundle.id, "f", &["true"])?;
    shim.start(&bundle.id, "e")?;
    shim.pause(&bundle.id)?;
    refused(shim.exec(&bundle.id, "g", &["true"]), Code::FAILED_PRECONDITION, "paused")?;
    ensure_eq!(shim.state(&bundle.id, "e")?.status.value(), PAUSED, "State of a running exec");
    ensure_eq!(shim.state(&bundle.id, "f")?.status.value(), CREATED, "State of an exec not started");
    refused(shim.pause(&bundle.id), Code::FAILED_PRECONDITION, "paused")?;
    refused(shim.delete(&bundle.id, ""), Code::FAILED_PRECONDITION, "running")?;
    shim.resume(&bundle.id)?;
    refused(shim.resume(&bundle.id), Code::FAILED_PRECONDITION, "not paused")?;
    ensure_eq!(exec_ran(&shim, &bundle, "g", &process(&["true"]))?, 0, "an exec after the resume");
    finish(&shim, &bundle)
}

pub fn not_started_is_deleted(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    shim.exec(&bundle.id, "e", &["true"])?;
    let state = shim.state(&bundle.id, "e")?;
    ensure_eq!((state.status.value(), state.pid, state.exec_id.as_str()), (CREATED, 0, "e"), "State");
    shim.delete(&bundle.id, "e")?;
    refused(shim.start(&bundle.id, "e"), Code::NOT_FOUND, "e")?;
    // One that nobody deletes goes with its container.
    shim.exec(&bundle.id, "e", &["true"])?;
    finish(&shim, &bundle)
}

pub fn thirty_at_once(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    exec_ran(&shim, &bundle, "warm", &process(&["true"]))?;
    let daemon = daemon(&shim, &bundle.id)?;
    let before = proc::usage(daemon);
    let began = Instant::now();
    thread::scope(|scope| -> Result<()> {
        let (shim, bundle) = (&shim, &bundle);
        let threads: Vec<_> =
            (0..30).map(|n| scope.spawn(move || requests::exec_ran(shim, bundle, &format!("e{n}"), &process(&["true"])))).collect();
        for thread in threads {
            ensure_eq!(thread.join().ok().context(|| "a thread panicked".to_owned())??, 0, "status");
        }
        Ok(())
    })?;
    ensure!(began.elapsed() < Duration::from_secs(2), "30 execs took {:?}", began.elapsed());
    let after = tests::wait::until(SOON, || Some(proc::usage(daemon)).filter(|usage| *usage == before));
    ensure!(after.is_some(), "the daemon held {before:?} and now {:?}", proc::usage(daemon));
    ensure_eq!(before.threads, 1, "threads of the daemon");
    finish(&shim, &bundle)
}

/// A request near ttrpc's 4 MiB, of which execve(2) takes no more than 128 KiB in one string and a quarter of the stack limit in all.
pub fn large_spec(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    let long = "x".repeat(100_000);
    let many = |count: usize| {
        let mut args = vec!["sh", "-c", "[ $# = $1 ]", "sh"];
        let number = (count + 1).to_string();
        args.push(&number);
        args.extend(std::iter::repeat_n(long.as_str(), count));
        process(&args)
    };
    ensure_eq!(exec_ran(&shim, &bundle, "e", &many(15))?, 0, "status with 1.5 MB of arguments");
    shim.exec_spec(&bundle.id, "f", &many(40))?;
    shim.start(&bundle.id, "f")?;
    ensure_eq!(shim.wait(&bundle.id, "f")?.exit_status, 126, "status with 4 MB of arguments");
    shim.delete(&bundle.id, "f")?;
    finish(&shim, &bundle)
}
