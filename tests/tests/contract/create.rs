//! Creates that race, hang, are given up, or are undone.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tests::bundle::Bundle;
use tests::containerd::eventually;
use tests::events::Kind;
use tests::hand::Hand;
use tests::requests::{CREATED, create_request, end, expect_nothing_of, files_of, finish, running, timed_out};
use tests::rpc::{Shim, refused};
use tests::{Context, Result, ensure, ensure_eq, proc};
use ttrpc::Code;

use crate::SOON;

pub fn two_at_once_of_one_id(hand: &mut Hand) -> Result<()> {
    let bundle = hand.bundle("a", &["sleep", "1000"])?;
    let shim = hand.shim(&bundle)?;
    for _ in 0..5 {
        let request = create_request(&bundle)?;
        let answers: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| shim.create(request.clone()))).collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
        });
        ensure_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "successes among {answers:?}");
        for late in answers.into_iter().filter(std::result::Result::is_err) {
            refused(late, Code::ALREADY_EXISTS, &bundle.id)?;
        }
        refused(shim.create(request), Code::ALREADY_EXISTS, &bundle.id)?;
        shim.start(&bundle.id, "")?;
        end(&shim, &bundle)?;
    }
    shim.shutdown(&bundle.id)
}

/// A bundle whose Create waits in a createRuntime hook until [`Gate::open`], or for half a minute.
struct Gate {
    bundle: Bundle,
    entered: PathBuf,
    open: PathBuf,
}

impl Gate {
    fn new(hand: &mut Hand, name: &str) -> Result<Gate> {
        let mut bundle = hand.bundle(name, &["sleep", "1000"])?;
        let (entered, open) = (hand.dir().join(format!("{name}-entered")), hand.dir().join(format!("{name}-open")));
        let script = format!(
            "echo >{}; n=0; while [ ! -e {} ] && [ $n -lt 600 ]; do n=$((n+1)); /bin/busybox sleep 0.05; done",
            entered.display(),
            open.display()
        );
        bundle.edit(|spec| {
            spec["hooks"] = json!({"createRuntime": [{"path": "/bin/busybox", "args": ["sh", "-c", script]}]});
        })?;
        Ok(Gate { bundle, entered, open })
    }

    fn await_entry(&self) -> Result<()> {
        eventually("the hook runs", SOON, || self.entered.exists())
    }

    fn open(&self) -> Result<()> {
        Ok(fs::write(&self.open, "")?)
    }
}

/// What its client does not wait for goes on, and is there to be deleted.
fn goes_on(shim: &Shim, gate: &Gate) -> Result<()> {
    let id = &gate.bundle.id;
    refused(shim.create(create_request(&gate.bundle)?), Code::ALREADY_EXISTS, id)?;
    gate.open()?;
    eventually("the container is there", SOON, || shim.state(id, "").is_ok_and(|state| state.status.value() == CREATED))?;
    shim.delete(id, "")?;
    refused(shim.state(id, ""), Code::NOT_FOUND, id)?;
    Ok(())
}

pub fn given_up_by_its_client(hand: &mut Hand) -> Result<()> {
    let gate = Gate::new(hand, "a")?;
    let shim = hand.shim(&gate.bundle)?;
    let hasty = shim.limited(Duration::from_millis(300));
    timed_out(hasty.create(create_request(&gate.bundle)?))?;
    gate.await_entry()?;
    goes_on(&shim, &gate)?;
    shim.shutdown(&gate.bundle.id)
}

pub fn whose_client_hangs_up(hand: &mut Hand) -> Result<()> {
    let gate = Gate::new(hand, "a")?;
    let answer = hand.launch(|launch| launch.start(&gate.bundle.dir, &gate.bundle.id))?;
    let shim = Shim::connect(&answer.address, answer.version)?;
    let mut stream = crate::wire::Raw::connect(&answer.address)?;
    stream.request(1, shim.service, "Create", &create_request(&gate.bundle)?)?;
    gate.await_entry()?;
    drop(stream);
    goes_on(&shim, &gate)?;
    shim.shutdown(&gate.bundle.id)
}

/// What containerd does when a Create takes too long: Delete, Shutdown, and the bundle is removed.
pub fn deleted_on_its_way(hand: &mut Hand) -> Result<()> {
    let gate = Gate::new(hand, "a")?;
    let files = files_of(&gate.bundle)?;
    let shim = hand.shim(&gate.bundle)?;
    let id = &gate.bundle.id;
    thread::scope(|scope| -> Result<()> {
        let request = create_request(&gate.bundle)?;
        let creating = scope.spawn(|| shim.create(request));
        gate.await_entry()?;
        let began = Instant::now();
        refused(shim.delete(id, ""), Code::NOT_FOUND, id)?;
        ensure!(began.elapsed() < Duration::from_secs(3), "Delete took {:?}", began.elapsed());
        let answer = creating.join().ok().context(|| "Create panicked".to_owned())?;
        refused(answer, Code::UNKNOWN, "deleted")
    })?;
    // A child that the hook had just forked still has its command line for a moment.
    let runs = |process: &proc::Process| process.command_line.contains(&gate.entered.display().to_string());
    eventually("no hook runs", SOON, || !proc::all().iter().any(runs))?;
    let own: Vec<String> = files_of(&gate.bundle)?.into_iter().filter(|name| !name.ends_with("/address")).collect();
    ensure_eq!(own, files, "files in the bundle");
    ensure!(hand.stub.record.of(id).is_empty(), "events of a container that never was");
    shim.shutdown(id)
}

pub fn stuck_blocks_nobody(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    let gate = Gate::new(hand, "b")?;
    thread::scope(|scope| -> Result<()> {
        let request = create_request(&gate.bundle)?;
        let creating = scope.spawn(|| shim.create(request));
        gate.await_entry()?;
        let quick = shim.limited(Duration::from_secs(2));
        ensure_eq!(quick.state(&bundle.id, "")?.status.value(), 2, "State");
        ensure_eq!(quick.pids(&bundle.id)?.len(), 1, "Pids");
        quick.connected(&bundle.id)?;
        quick.stats(&bundle.id)?;
        refused(quick.state(&gate.bundle.id, ""), Code::NOT_FOUND, "")?;
        refused(quick.kill(&gate.bundle.id, "", 9), Code::NOT_FOUND, "")?;
        ensure_eq!(tests::requests::exec_ran(&quick, &bundle, "e", &tests::bundle::process(&["true"]))?, 0, "an exec");
        // A third container lives its whole life meanwhile.
        let third = hand.bundle("c", &["true"])?;
        quick.create_quiet(&third)?;
        quick.start(&third.id, "")?;
        quick.wait(&third.id, "")?;
        quick.delete(&third.id, "")?;
        end(&quick, &bundle)?;
        // One that is being made keeps the shim.
        shim.shutdown(&bundle.id)?;
        gate.open()?;
        creating.join().ok().context(|| "Create panicked".to_owned())??;
        Ok(())
    })?;
    finish(&shim, &gate.bundle)
}

pub fn deleted_without_a_start(hand: &mut Hand) -> Result<()> {
    let bundle = hand.bundle("a", &["sleep", "1000"])?;
    let files = files_of(&bundle)?;
    let shim = hand.shim(&bundle)?;
    let pid = shim.create_quiet(&bundle)?;
    shim.exec(&bundle.id, "e", &["true"])?;
    let gone = shim.delete(&bundle.id, "")?;
    ensure_eq!((gone.pid, gone.exit_status), (pid, 137), "answer of Delete");
    refused(shim.delete(&bundle.id, ""), Code::NOT_FOUND, &bundle.id)?;
    hand.stub.record.wait(&bundle.id, Kind::Delete, SOON)?;
    shim.shutdown(&bundle.id)?;
    eventually("the shim is gone", SOON, || hand.shim_pids().is_empty())?;
    let kept = ["address", "init.pid", "options.json"];
    let own: Vec<String> =
        files_of(&bundle)?.into_iter().filter(|name| !kept.iter().any(|kept| name.ends_with(&format!("/{kept}")))).collect();
    ensure_eq!(own, files, "files in the bundle");
    expect_nothing_of(&bundle, &files_of(&bundle)?)
}
