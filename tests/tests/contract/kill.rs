//! Signals in every state.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::bundle::process;
use tests::command::signal;
use tests::containerd::eventually;
use tests::events::Kind;
use tests::hand::Hand;
use tests::requests::{CREATED, RUNNING, end, exec_ran, expect_dead, finish, running, timed_out};
use tests::rpc::refused;
use tests::{Result, ensure, ensure_eq};
use ttrpc::Code;

use crate::SOON;

pub fn created(hand: &mut Hand) -> Result<()> {
    let bundle = hand.bundle("a", &["sleep", "1000"])?;
    let shim = hand.shim(&bundle)?;
    shim.create_quiet(&bundle)?;
    ensure_eq!(shim.state(&bundle.id, "")?.status.value(), CREATED, "status");
    // The first process of a pid namespace ignores what it does not handle; as with runc, the waiting process ends all the same.
    shim.kill(&bundle.id, "", 15)?;
    ensure_eq!(shim.wait(&bundle.id, "")?.exit_status, 143, "status");
    refused(shim.start(&bundle.id, ""), Code::FAILED_PRECONDITION, "stopped")?;
    shim.delete(&bundle.id, "")?;
    hand.stub.record.wait(&bundle.id, Kind::Delete, SOON)?;
    let kinds: Vec<Kind> = hand.stub.record.of(&bundle.id).iter().map(|event| event.kind).collect();
    ensure_eq!(kinds, [Kind::Create, Kind::Exit, Kind::Delete], "events");
    shim.shutdown(&bundle.id)
}

pub fn paused(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sh", "-c", "trap 'exit 3' TERM; echo >/ready; while :; do sleep 0.05; done"])?;
    eventually("it handles TERM", SOON, || bundle.written("ready").exists())?;
    shim.pause(&bundle.id)?;
    // Kept until the resume.
    let began = Instant::now();
    shim.kill(&bundle.id, "", 15)?;
    ensure!(began.elapsed() < Duration::from_secs(1), "Kill took {:?}", began.elapsed());
    timed_out(shim.limited(Duration::from_millis(200)).wait(&bundle.id, ""))?;
    shim.resume(&bundle.id)?;
    ensure_eq!(shim.wait(&bundle.id, "")?.exit_status, 3, "status after TERM");
    shim.delete(&bundle.id, "")?;
    for all in [false, true] {
        shim.create_quiet(&bundle)?;
        shim.start(&bundle.id, "")?;
        shim.pause(&bundle.id)?;
        let began = Instant::now();
        if all {
            shim.kill_all(&bundle.id, 9)?
        } else {
            shim.kill(&bundle.id, "", 9)?
        };
        ensure!(began.elapsed() < Duration::from_secs(1), "Kill took {:?}", began.elapsed());
        ensure_eq!(shim.wait(&bundle.id, "")?.exit_status, 137, "status after KILL, all: {all}");
        shim.delete(&bundle.id, "")?;
    }
    // An exec of a paused container, too.
    shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    shim.exec(&bundle.id, "e", &["sleep", "1000"])?;
    shim.start(&bundle.id, "e")?;
    shim.pause(&bundle.id)?;
    shim.kill(&bundle.id, "e", 9)?;
    shim.resume(&bundle.id)
        .or_else(|status| if status.code == Code::FAILED_PRECONDITION { Ok(proto::api::Empty::new()) } else { Err(status) })?;
    ensure_eq!(shim.wait(&bundle.id, "e")?.exit_status, 137, "status of the exec");
    finish(&shim, &bundle)
}

/// A stopped process, in the sense of SIGSTOP.
pub fn standing_still(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    let pid = shim.state(&bundle.id, "")?.pid;
    signal(pid, Signal::STOP)?;
    eventually("it stands still", SOON, || tests::proc::process(pid).is_some_and(|process| process.state == 'T'))?;
    ensure_eq!(shim.state(&bundle.id, "")?.status.value(), RUNNING, "status");
    finish(&shim, &bundle)
}

pub fn pid_one_without_a_handler(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    shim.kill(&bundle.id, "", 15)?;
    timed_out(shim.limited(Duration::from_millis(200)).wait(&bundle.id, ""))?;
    shim.kill(&bundle.id, "", 9)?;
    ensure_eq!(shim.wait(&bundle.id, "")?.exit_status, 137, "status");
    refused(shim.kill(&bundle.id, "", 9), Code::NOT_FOUND, "process already finished")?;
    refused(shim.kill_all(&bundle.id, 9), Code::NOT_FOUND, "process already finished")?;
    end(&shim, &bundle)?;
    refused(shim.kill(&bundle.id, "", 9), Code::NOT_FOUND, "")?;
    shim.shutdown(&bundle.id)
}

pub fn of_execs(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    refused(shim.kill(&bundle.id, "nobody", 9), Code::NOT_FOUND, "nobody")?;
    shim.exec(&bundle.id, "e", &["sh", "-c", "trap 'exit 3' TERM; echo >/ready; while :; do sleep 0.05; done"])?;
    refused(shim.kill(&bundle.id, "e", 9), Code::FAILED_PRECONDITION, "process not created")?;
    shim.start(&bundle.id, "e")?;
    eventually("it handles TERM", SOON, || bundle.written("ready").exists())?;
    refused(shim.delete(&bundle.id, "e"), Code::FAILED_PRECONDITION, "running")?;
    shim.kill(&bundle.id, "e", 15)?;
    ensure_eq!(shim.wait(&bundle.id, "e")?.exit_status, 3, "status");
    refused(shim.kill(&bundle.id, "e", 9), Code::NOT_FOUND, "process already finished")?;
    ensure_eq!(shim.state(&bundle.id, "")?.status.value(), RUNNING, "status of the init");
    shim.delete(&bundle.id, "e")?;
    finish(&shim, &bundle)
}

/// `all` reaches what is not the init's child, and leaves an init that handles the signal.
pub fn all(hand: &mut Hand) -> Result<()> {
    let script = "trap 'echo >/usr1' USR1; setsid sleep 1000 & echo >/ready; while :; do sleep 0.05; done";
    let (bundle, shim) = running(hand, &["sh", "-c", script])?;
    eventually("it handles USR1", SOON, || bundle.written("ready").exists())?;
    shim.exec(&bundle.id, "e", &["sleep", "1000"])?;
    let exec = shim.start(&bundle.id, "e")?;
    // 10 ends those that do not handle it.
    shim.kill_all(&bundle.id, 10)?;
    ensure_eq!(shim.wait(&bundle.id, "e")?.exit_status, 138, "status of the exec");
    expect_dead(exec, SOON)?;
    eventually("the init got the signal", SOON, || bundle.written("usr1").exists())?;
    ensure_eq!(shim.state(&bundle.id, "")?.status.value(), RUNNING, "status of the init");
    shim.kill_all(&bundle.id, 9)?;
    ensure_eq!(shim.wait(&bundle.id, "")?.exit_status, 137, "status of the init");
    shim.delete(&bundle.id, "")?;
    shim.shutdown(&bundle.id)
}

pub fn numbers(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    // As kill(2): 0 only asks.
    shim.kill(&bundle.id, "", 0)?;
    for number in [65, 1000, u32::MAX] {
        refused(shim.kill(&bundle.id, "", number), Code::INVALID_ARGUMENT, "no signal")?;
        refused(shim.kill_all(&bundle.id, number), Code::INVALID_ARGUMENT, "no signal")?;
    }
    shim.exec(&bundle.id, "e", &["sleep", "1000"])?;
    shim.start(&bundle.id, "e")?;
    shim.kill(&bundle.id, "e", 64)?;
    ensure_eq!(shim.wait(&bundle.id, "e")?.exit_status, 192, "status after signal 64");
    ensure_eq!(exec_ran(&shim, &bundle, "f", &process(&["true"]))?, 0, "another exec");
    finish(&shim, &bundle)
}
