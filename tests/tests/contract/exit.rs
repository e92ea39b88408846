//! Ends of processes: their order, their status, and who is told.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tests::bundle::Bundle;
use tests::command::readable;
use tests::events::Kind;
use tests::hand::Hand;
use tests::requests::{self, STOPPED, end, exec_request, expect_dead, finish, running, timed_out};
use tests::rpc::{Shim, refused};
use tests::{Context, Result, bundle, ensure, ensure_eq, proc};
use ttrpc::Code;

use crate::SOON;

/// The kinds of a container's events in their order.
fn kinds(hand: &Hand, id: &str) -> Vec<Kind> {
    hand.stub.record.of(id).iter().map(|event| event.kind).collect()
}

pub fn early_exit(hand: &mut Hand) -> Result<()> {
    let bundles = (0..8).map(|n| hand.bundle(&format!("e{n}"), &["sh", "-c", &format!("exit {}", n + 1)])).collect::<Result<Vec<_>>>()?;
    let shim = hand.shim(&bundles[0])?;
    for (number, bundle) in (1..).zip(&bundles) {
        let pid = shim.create_quiet(bundle)?;
        ensure_eq!(shim.start(&bundle.id, "")?, pid, "pid of Start");
        let event = hand.stub.record.wait(&bundle.id, Kind::Exit, SOON)?;
        ensure_eq!((event.status, event.pid), (number, pid), "exit event");
        shim.delete(&bundle.id, "")?;
        hand.stub.record.wait(&bundle.id, Kind::Delete, SOON)?;
        ensure_eq!(kinds(hand, &bundle.id), [Kind::Create, Kind::Start, Kind::Exit, Kind::Delete], "events");
    }
    shim.shutdown(&bundles[0].id)
}

/// Many ends while other processes are being started: none is lost, none is another's.
pub fn exit_before_the_pid_is_known(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    thread::scope(|scope| {
        let threads: Vec<_> = (1..=24u32)
            .map(|number| {
                let (shim, bundle) = (&shim, &bundle);
                scope.spawn(move || -> Result<()> {
                    let exec = format!("e{number}");
                    shim.exec(&bundle.id, &exec, &["sh", "-c", &format!("exit {number}")])?;
                    shim.start(&bundle.id, &exec)?;
                    ensure_eq!(shim.wait(&bundle.id, &exec)?.exit_status, number, "status of {exec}");
                    ensure_eq!(shim.delete(&bundle.id, &exec)?.exit_status, number, "status of {exec} by Delete");
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().ok().context(|| "a thread panicked".to_owned())?)
    })?;
    for number in 1..=24 {
        let event = hand.stub.record.wait_exec(&bundle.id, &format!("e{number}"), Kind::Exit, SOON)?;
        ensure_eq!(event.status, number, "status in the event");
    }
    finish(&shim, &bundle)
}

pub fn statuses(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    for (script, status) in
        [("exit 0", 0), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$", 143), ("kill -6 $$", 134), ("kill -64 $$", 192)]
    {
        ensure_eq!(requests::exec_ran(&shim, &bundle, "e", &bundle::process(&["sh", "-c", script]))?, status, "{script}");
    }
    finish(&shim, &bundle)
}

pub fn init_ends_while_execs_run(hand: &mut Hand) -> Result<()> {
    // The first process of a pid namespace: the kernel kills all others at its end.
    let (bundle, shim) = running(hand, &["sh", "-c", "trap 'exit 5' USR1; echo >/ready; while :; do sleep 0.05; done"])?;
    for exec in ["e", "f", "g"] {
        shim.exec(&bundle.id, exec, &["sleep", "1000"])?;
        shim.start(&bundle.id, exec)?;
    }
    tests::containerd::eventually("it handles USR1", SOON, || bundle.written("ready").exists())?;
    shim.kill(&bundle.id, "", 10)?;
    ensure_eq!(shim.wait(&bundle.id, "")?.exit_status, 5, "status of the init");
    expect_execs_before_init(hand, &shim, &bundle, &["e", "f", "g"])?;
    shim.delete(&bundle.id, "")?;
    shim.shutdown(&bundle.id)
}

/// Every exec was killed, and its end was told before that of the init.
fn expect_execs_before_init(hand: &Hand, shim: &Shim, bundle: &Bundle, execs: &[&str]) -> Result<()> {
    hand.stub.record.wait(&bundle.id, Kind::Exit, SOON)?;
    for exec in execs {
        ensure_eq!(shim.state(&bundle.id, exec)?.status.value(), STOPPED, "status of {exec} when the init has ended");
        ensure_eq!(shim.wait(&bundle.id, exec)?.exit_status, 137, "exit status of {exec}");
    }
    let exits: Vec<String> =
        hand.stub.record.of(&bundle.id).into_iter().filter(|event| event.kind == Kind::Exit).map(|event| event.exec).collect();
    ensure_eq!(exits.len(), execs.len() + 1, "exits: {exits:?}");
    ensure_eq!(exits.last().map(String::as_str), Some(""), "the init's exit is the last of {exits:?}");
    Ok(())
}

/// A container whose init leaves a process of another session behind.
const LEAVES_ONE: &str = "setsid sleep 1000 & trap 'exit 5' USR1; echo >/ready; while :; do sleep 0.05; done";

fn init_ends_in_a_shared_pid_namespace(hand: &mut Hand, shim: &Shim, bundle: &Bundle) -> Result<()> {
    shim.create_quiet(bundle)?;
    shim.start(&bundle.id, "")?;
    shim.exec(&bundle.id, "e", &["sleep", "1000"])?;
    let exec = shim.start(&bundle.id, "e")?;
    tests::containerd::eventually("three processes", SOON, || shim.pids(&bundle.id).is_ok_and(|pids| pids.len() >= 3))?;
    let all = shim.pids(&bundle.id)?;
    ensure!(all.contains(&exec), "{exec} is not in {all:?}");
    tests::containerd::eventually("it handles USR1", SOON, || bundle.written("ready").exists())?;
    shim.kill(&bundle.id, "", 10)?;
    ensure_eq!(shim.wait(&bundle.id, "")?.exit_status, 5, "status of the init");
    expect_execs_before_init(hand, shim, bundle, &["e"])?;
    for pid in all {
        expect_dead(pid, SOON)?;
    }
    shim.delete(&bundle.id, "")?;
    Ok(())
}

pub fn init_ends_in_the_hosts_pid_namespace(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sh", "-c", LEAVES_ONE])?;
    bundle.edit(|spec| {
        spec["linux"]["namespaces"] = json!([{"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}]);
    })?;
    let shim = hand.shim(&bundle)?;
    init_ends_in_a_shared_pid_namespace(hand, &shim, &bundle)?;
    shim.shutdown(&bundle.id)
}

pub fn init_ends_in_a_joined_pid_namespace(hand: &mut Hand) -> Result<()> {
    let (sandbox, shim) = running(hand, &["sleep", "1000"])?;
    let pid = shim.state(&sandbox.id, "")?.pid;
    let mut bundle = hand.bundle("b", &["sh", "-c", LEAVES_ONE])?;
    bundle.edit(|spec| {
        spec["linux"]["namespaces"] =
            json!([{"type": "pid", "path": format!("/proc/{pid}/ns/pid")}, {"type": "ipc"}, {"type": "mount"}, {"type": "network"}]);
    })?;
    init_ends_in_a_shared_pid_namespace(hand, &shim, &bundle)?;
    ensure!(proc::process(pid).is_some(), "the namespace's own init was killed");
    finish(&shim, &sandbox)
}

pub fn many_waiters(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sh", "-c", "sleep 1000 & wait; exit 4"])?;
    let first = thread::scope(|scope| {
        let waiters: Vec<_> = (0..50).map(|_| scope.spawn(|| shim.wait(&bundle.id, ""))).collect();
        // Those that give up must not take the others' answer with them.
        let hasty = shim.limited(Duration::from_millis(50));
        timed_out(hasty.wait(&bundle.id, ""))?;
        shim.kill(&bundle.id, "", 9)?;
        let mut answers = Vec::new();
        for waiter in waiters {
            answers.push(waiter.join().ok().context(|| "a waiter panicked".to_owned())??);
        }
        ensure!(answers.iter().all(|answer| *answer == answers[0]), "the answers differ: {answers:?}");
        Ok(answers.remove(0))
    })?;
    ensure_eq!(first.exit_status, 137, "status");
    ensure_eq!(shim.wait(&bundle.id, "")?, first, "a late Wait");
    let state = shim.state(&bundle.id, "")?;
    ensure_eq!((state.exit_status, &state.exited_at), (137, &first.exited_at), "State after the end");
    ensure_eq!(shim.delete(&bundle.id, "")?.exited_at, first.exited_at, "Delete's time of the end");
    shim.shutdown(&bundle.id)
}

pub fn wait_after_delete(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    requests::exec_ran(&shim, &bundle, "e", &bundle::process(&["true"]))?;
    refused(shim.wait(&bundle.id, "e"), Code::NOT_FOUND, "e")?;
    end(&shim, &bundle)?;
    refused(shim.wait(&bundle.id, ""), Code::NOT_FOUND, "")?;
    shim.shutdown(&bundle.id)
}

pub fn delete_while_waited_for(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    for round in 0..20 {
        let exec = format!("e{round}");
        shim.exec(&bundle.id, &exec, &["sh", "-c", "exit 6"])?;
        thread::scope(|scope| -> Result<()> {
            let waiter = scope.spawn(|| shim.wait(&bundle.id, &exec));
            shim.start(&bundle.id, &exec)?;
            // Whoever comes too early is told so.
            let deleted = tests::wait::until(SOON, || shim.delete(&bundle.id, &exec).ok());
            ensure_eq!(deleted.map(|answer| answer.exit_status), Some(6), "Delete");
            match waiter.join().ok().context(|| "the waiter panicked".to_owned())? {
                Ok(answer) => ensure_eq!(answer.exit_status, 6, "Wait"),
                Err(status) => ensure_eq!(status.code, Code::NOT_FOUND, "a Wait that came after Delete"),
            }
            Ok(())
        })?;
    }
    // One that waits for what is never started.
    shim.exec(&bundle.id, "never", &["true"])?;
    thread::scope(|scope| -> Result<()> {
        let waiter = scope.spawn(|| shim.wait(&bundle.id, "never"));
        tests::wait::pause_for(Duration::from_millis(50));
        shim.delete(&bundle.id, "never")?;
        refused(waiter.join().ok().context(|| "the waiter panicked".to_owned())?, Code::NOT_FOUND, "")
    })?;
    finish(&shim, &bundle)
}

/// The pipe of an exec'd process stays open in its grandchild: the process has ended all the same, and Delete ends within its bound.
pub fn delete_while_a_grandchild_holds_the_output(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    let fifo = hand.dir().join("out");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
    let mut request = exec_request(&bundle.id, "e", &bundle::process(&["sh", "-c", "echo before; sleep 1000 & exit 3"]));
    request.stdout = fifo.display().to_string();
    shim.exec_process(request)?;
    use std::os::unix::fs::OpenOptionsExt;
    let mut reader = std::fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&fifo)?;
    shim.start(&bundle.id, "e")?;
    let began = Instant::now();
    ensure_eq!(shim.wait(&bundle.id, "e")?.exit_status, 3, "status");
    ensure!(began.elapsed() < Duration::from_secs(5), "Wait took {:?}", began.elapsed());
    ensure!(readable(&reader, SOON)?, "no output");
    let mut text = [0; 64];
    let length = std::io::Read::read(&mut reader, &mut text)?;
    ensure_eq!(&text[..length], b"before\n", "output");
    shim.delete(&bundle.id, "e")?;
    ensure!(began.elapsed() < Duration::from_secs(11), "Delete took {:?}", began.elapsed());
    finish(&shim, &bundle)
}
