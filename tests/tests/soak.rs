//! Thousands of containers and execs: nothing fails, nothing grows, and each end is told exactly once and in order.
//!
//! Half of everything goes through `ctr`, half through the shim's socket. `CORACLE_LONG=1` asks for the full numbers.

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tests::bundle::Bundle;
use tests::case::words;
use tests::containerd::eventually;
use tests::events::{Event, Kind, Record};
use tests::footprint::Shims;
use tests::hand::Hand;
use tests::rpc::{Shim, Streams};
use tests::start::Protocol;
use tests::suite::{Suite, is_long};
use tests::{Case, Context, Failure, Result, cases, ensure_eq, image, order};

fn main() -> ExitCode {
    Suite {
        name: "soak",
        parallel: 2,
        cases: cases![containers_by_ctr, containers_at_the_socket, execs_by_ctr, execs_at_the_socket, one_thread_in_every_state],
    }
    .main()
}

/// One half of the numbers: `ctr`'s or the socket's.
struct Half {
    sequential: usize,
    parallel: usize,
    execs: usize,
}

fn half() -> Half {
    if is_long() { Half { sequential: 500, parallel: 100, execs: 5000 } } else { Half { sequential: 50, parallel: 20, execs: 200 } }
}

/// How many run at once where they are many.
const AT_ONCE: usize = 8;

/// How many go before the first measurement, so that every table and every buffer has its size.
const WARM_UP: usize = 24;

/// Events may be late, on a machine that is busy with what comes next.
const SOON: Duration = Duration::from_secs(20);

fn containers_by_ctr(case: &Case<'_>) -> Result<()> {
    let half = half();
    let group = format!("io.containerd.runc.v2.group={}", case.id("pod"));
    // It keeps the pod's shim, which is the one that is measured.
    let holder = case.detached(&["--annotation", &group], &["sleep", "100000"])?;
    let shims = Shims::of(case.ctr().pid(&holder)?)?;
    let word = case.id("s");
    let run = |number: usize, flags: &[&str]| run_short(case, &format!("{word}-{number}"), number, flags);
    let in_pod = ["--annotation", &group];
    at_once(0..WARM_UP, |number| run(number, &in_pod))?;
    let before = shims.read()?;
    let began = Instant::now();
    for number in 0..half.sequential {
        // Every other one has a shim of its own.
        run(WARM_UP + number, if number % 2 == 0 { &in_pod } else { &[] })?;
    }
    let sequential = began.elapsed();
    let first = WARM_UP + half.sequential;
    at_once(first..first + half.parallel, |number| run(number, if number % 2 == 0 { &in_pod } else { &[] }))?;
    let line = shims.expect_no_growth(&before)?;
    report(case, &format!("{} ctr run in turn, {sequential:.1?}, {} at {AT_ONCE}", half.sequential, half.parallel), began, &line);
    expect_exits(case.events, first + half.parallel, |event| event.container.starts_with(&format!("{word}-")))
}

/// `ctr run --rm` of a container that says its number, and ends with it.
fn run_short(case: &Case<'_>, id: &str, number: usize, flags: &[&str]) -> Result<()> {
    let status = number % 100;
    let args = case.run_args(&["--rm"], flags, &image::name(1), id, &["sh", "-c", &format!("echo {number}; exit {status}")]);
    let done = case.ctr().run(&words(&args))?;
    ensure_eq!((done.code, done.stdout.as_str()), (i32::try_from(status)?, format!("{number}\n").as_str()), "{id}: {}", done.stderr);
    Ok(())
}

fn containers_at_the_socket(case: &Case<'_>) -> Result<()> {
    let half = half();
    Hand::run(Protocol::of(case.version()), |hand| {
        let (holder, shim, shims) = holder(hand)?;
        let run =
            |number: usize| live(&shim, &hand.member(&format!("m{number}"), &["sh", "-c", &format!("exit {}", number % 100)])?, number);
        at_once(0..WARM_UP, run)?;
        let before = shims.read()?;
        let began = Instant::now();
        (WARM_UP..WARM_UP + half.sequential).step_by(2).try_for_each(run)?;
        let first = WARM_UP + half.sequential;
        at_once(first..first + half.parallel, run)?;
        let line = shims.expect_no_growth(&before)?;
        report(case, &format!("{} at the socket in turn, {} at {AT_ONCE}", half.sequential / 2, half.parallel), began, &line);
        let in_pod = WARM_UP + half.sequential / 2 + half.parallel;
        let began = Instant::now();
        for number in 0..half.sequential / 2 {
            let bundle = hand.bundle(&format!("o{number}"), &["sh", "-c", &format!("exit {}", number % 100)])?;
            let own = hand.shim(&bundle)?;
            live(&own, &bundle, number)?;
            own.shutdown(&bundle.id)?;
        }
        report(case, &format!("{} at the socket, each with its shim", half.sequential / 2), began, "");
        expect_exits(&hand.stub.record, in_pod + half.sequential / 2, |event| event.container != holder.id)?;
        end(&holder, &shim)
    })
}

/// Create, Start, Wait and Delete of a container that ends with its number.
fn live(shim: &Shim, bundle: &Bundle, number: usize) -> Result<()> {
    let status = u32::try_from(number % 100)?;
    shim.create_quiet(bundle)?;
    shim.start(&bundle.id, "")?;
    ensure_eq!(shim.wait(&bundle.id, "")?.exit_status, status, "status of {}", bundle.id);
    ensure_eq!(shim.delete(&bundle.id, "")?.exit_status, status, "status of {}'s Delete", bundle.id);
    Ok(())
}

fn execs_by_ctr(case: &Case<'_>) -> Result<()> {
    let half = half();
    let id = case.detached(&[], &["sleep", "100000"])?;
    let shims = Shims::of(case.ctr().pid(&id)?)?;
    let run = |number: usize| -> Result<()> {
        let status = number % 100;
        let args = case.exec_args(&id, &[], &["sh", "-c", &format!("echo {number}; exit {status}")]);
        let done = case.ctr().run(&words(&args))?;
        ensure_eq!((done.code, done.stdout.as_str()), (i32::try_from(status)?, format!("{number}\n").as_str()), "{id}: {}", done.stderr);
        Ok(())
    };
    at_once(0..WARM_UP, run)?;
    let before = shims.read()?;
    let began = Instant::now();
    (WARM_UP..WARM_UP + half.execs).try_for_each(run)?;
    let line = shims.expect_no_growth(&before)?;
    report(case, &format!("{} ctr task exec", half.execs), began, &line);
    expect_exits(case.events, WARM_UP + half.execs, |event| event.container == id && !event.exec.is_empty())
}

fn execs_at_the_socket(case: &Case<'_>) -> Result<()> {
    let half = half();
    Hand::run(Protocol::of(case.version()), |hand| {
        let (holder, shim, shims) = holder(hand)?;
        let run = |number: usize| -> Result<()> {
            let (exec, status) = (format!("e{number}"), u32::try_from(number % 100)?);
            shim.exec(&holder.id, &exec, &["sh", "-c", &format!("exit {status}")])?;
            shim.start(&holder.id, &exec)?;
            ensure_eq!(shim.wait(&holder.id, &exec)?.exit_status, status, "status of {exec}");
            ensure_eq!(shim.delete(&holder.id, &exec)?.exit_status, status, "status of {exec}'s Delete");
            Ok(())
        };
        at_once(0..WARM_UP, run)?;
        let before = shims.read()?;
        let began = Instant::now();
        (WARM_UP..WARM_UP + half.execs).try_for_each(run)?;
        let line = shims.expect_no_growth(&before)?;
        report(case, &format!("{} execs at the socket", half.execs), began, &line);
        expect_exits(&hand.stub.record, WARM_UP + half.execs, |event| !event.exec.is_empty())?;
        end(&holder, &shim)
    })
}

/// Whatever happens, and whichever way the daemon waits for it.
fn one_thread_in_every_state(case: &Case<'_>) -> Result<()> {
    Hand::run(Protocol::of(case.version()), |hand| {
        let bundle = hand.bundle("t", &["sleep", "100000"])?;
        let shim = hand.shim(&bundle)?;
        let daemon = hand.shim_pids().into_iter().min().context(|| "there is no shim".to_owned())?;
        let shims = Shims::of_daemon(daemon)?;
        shims.expect_one_thread("before the first container")?;
        let pid = shim.create_quiet(&bundle)?;
        ensure_eq!(Shims::of(pid)?, shims, "the container's shim");
        shims.expect_one_thread("with a created container")?;
        shim.start(&bundle.id, "")?;
        shims.expect_one_thread("with a running container")?;
        shim.exec_with(&bundle.id, "tty", &["sleep", "100000"], Streams { terminal: true, ..Streams::default() })?;
        shim.start(&bundle.id, "tty")?;
        let log = format!("file://{}", hand.dir().join("log").display());
        shim.exec_with(&bundle.id, "log", &["sh", "-c", "while :; do echo line; done"], Streams { stdout: log, ..Streams::default() })?;
        shim.start(&bundle.id, "log")?;
        shims.expect_one_thread("with a terminal and a log file")?;
        shim.kill(&bundle.id, "log", 9)?;
        shim.wait(&bundle.id, "log")?;
        shim.pause(&bundle.id)?;
        shims.expect_one_thread("with a paused container")?;
        shim.resume(&bundle.id)?;
        hand.stub.stop();
        for number in 0..AT_ONCE {
            shim.exec(&bundle.id, &format!("e{number}"), &["true"])?;
        }
        at_once(0..AT_ONCE, |number| {
            shim.start(&bundle.id, &format!("e{number}"))?;
            shims.expect_one_thread("with containerd away")?;
            shim.wait(&bundle.id, &format!("e{number}"))?;
            Ok(())
        })?;
        hand.stub.resume()?;
        shim.stats(&bundle.id)?;
        shim.kill(&bundle.id, "", 9)?;
        shim.wait(&bundle.id, "")?;
        shims.expect_one_thread("with a stopped container")?;
        shim.delete(&bundle.id, "")?;
        shims.expect_one_thread("after the last Delete")?;
        shim.shutdown(&bundle.id)
    })
}

/// A container that keeps the shim which is measured.
fn holder(hand: &mut Hand) -> Result<(Bundle, Shim, Shims)> {
    let bundle = hand.bundle("holder", &["sleep", "100000"])?;
    let shim = hand.shim(&bundle)?;
    let shims = Shims::of(shim.create_quiet(&bundle)?)?;
    shim.start(&bundle.id, "")?;
    Ok((bundle, shim, shims))
}

fn end(holder: &Bundle, shim: &Shim) -> Result<()> {
    shim.kill(&holder.id, "", 9)?;
    shim.wait(&holder.id, "")?;
    shim.delete(&holder.id, "")?;
    shim.shutdown(&holder.id)
}

/// Runs `each` for all numbers on [`AT_ONCE`] threads; the first failure is the answer.
fn at_once(numbers: std::ops::Range<usize>, each: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(numbers.start);
    let work = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= numbers.end {
                return Ok(());
            }
            each(number)?;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(Failure("a thread panicked".to_owned()))))
    })
}

/// Every process ended once, and everything came in order.
fn expect_exits(record: &Record, expected: usize, of: impl Fn(&Event) -> bool) -> Result<()> {
    let exits = || record.count(|event| event.kind == Kind::Exit && of(event));
    eventually(&format!("{expected} exits were told"), SOON, || exits() >= expected)?;
    ensure_eq!(exits(), expected, "exits that were told");
    order::check(&record.all())
}

fn report(case: &Case<'_>, what: &str, began: Instant, growth: &str) {
    println!("containerd {}: {what}: {:.1} s in all; {growth}", case.version().name(), began.elapsed().as_secs_f32());
}
