//! Two hundred containers at once: not one line in the host's mount table, no processor time while nothing happens, little memory for each.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::json;
use tests::bundle::Bundle;
use tests::case::words;
use tests::command::signal;
use tests::containerd::eventually;
use tests::footprint::Shims;
use tests::hand::Hand;
use tests::rpc::Shim;
use tests::start::Protocol;
use tests::suite::Suite;
use tests::{Case, Context, Result, cases, ensure, ensure_eq, image, proc, wait};

fn main() -> ExitCode {
    // A copy of the host's table, which takes the host's place for all that is started here: nobody else changes it meanwhile, so it can be
    // compared line by line. (One thread exists yet, as unshare(2) asks for.)
    let copied = unshare(CloneFlags::CLONE_NEWNS).map_err(std::io::Error::from).and_then(|()| {
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        Ok(())
    });
    if let Err(e) = copied {
        println!("density: a private mount table: {e}");
        return ExitCode::FAILURE;
    }
    Suite { name: "density", parallel: 1, cases: cases![two_hundred_at_once, descriptor_limit_is_the_daemons_own, polled_each_second] }
        .main()
}

/// Containers of one pod, at the socket.
const POD: usize = 44;
const PODS: usize = 4;
/// Containers by `ctr`: half share a pod, half have a shim each.
const BY_CTR: usize = 24;

/// The processor time that one shim may use in [`QUIET`] while nothing happens, in nanoseconds: reading procfs does not wake it.
const IDLE: u64 = 1_000_000;
const QUIET: Duration = Duration::from_secs(5);

const SOON: Duration = Duration::from_secs(10);

/// A bound on the daemon's memory for each further container, in KiB.
const EACH: u64 = 32;

fn two_hundred_at_once(case: &Case<'_>) -> Result<()> {
    Hand::run(Protocol::of(case.version()), |hand| {
        let before = mounts();
        let mut pods = Vec::new();
        for pod in 0..PODS {
            pods.push(Pod::start(hand, pod)?);
        }
        let (ids, mut shims) = by_ctr(case)?;
        shims.extend(pods.iter().map(|pod| pod.shims));
        ensure_eq!(ids.len() + PODS * POD, 200, "containers");
        let running = pods.iter().flat_map(|pod| &pod.pids).filter(|pid| proc::process(**pid).is_some()).count();
        ensure_eq!(running, PODS * POD, "running containers at the socket");
        let added: Vec<String> = mounts().difference(&before).cloned().collect();
        ensure!(added.is_empty(), "the host's mount table has {} lines more: {added:?}", added.len());
        let idle = expect_idle(&shims)?;
        let slope: Vec<u64> = pods.iter().map(|pod| pod.slope).collect();
        println!(
            "containerd {}: 200 containers in {} pods: 0 mounts; {idle}; each further container costs its daemon {slope:?} bytes",
            case.version().name(),
            shims.len()
        );
        ensure!(slope.iter().all(|bytes| *bytes <= EACH << 10), "more than {EACH} KiB for each further container: {slope:?}");
        pods.iter().try_for_each(Pod::end)?;
        for id in &ids {
            case.ctr().ok(&["task", "rm", "-f", id])?;
        }
        let left: Vec<String> = mounts().difference(&before).cloned().collect();
        ensure!(left.is_empty(), "mounts are left: {left:?}");
        Ok(())
    })
}

/// The lines of the mount table.
fn mounts() -> BTreeSet<String> {
    proc::mounts().into_iter().map(|mount| mount.line).collect()
}

/// All processes of the shims sleep, and nothing wakes them.
fn expect_idle(shims: &[Shims]) -> Result<String> {
    // What the last start left to be done, and what is given back when no call has followed it for a while.
    wait::pause_for(Duration::from_secs(3));
    let read = || shims.iter().map(Shims::read).collect::<Result<Vec<_>>>();
    let (before, began) = (read()?, Instant::now());
    wait::pause_for(QUIET);
    let after = read()?;
    let (mut cpu, mut wakes) = (0, 0);
    for (shim, (before, after)) in shims.iter().zip(before.iter().zip(&after)) {
        for (before, after) in before.iter().zip(after) {
            ensure_eq!(after.threads, 1, "threads of {shim:?}");
            ensure!(after.cpu - before.cpu <= IDLE, "{shim:?} works while nothing happens: {before:?}, then {after:?}");
            ensure!(after.sleeps - before.sleeps <= 1, "{shim:?} is woken while nothing happens: {before:?}, then {after:?}");
            cpu += after.cpu - before.cpu;
            wakes += after.sleeps - before.sleeps;
        }
    }
    Ok(format!("{} processes of shims used {cpu} ns and woke {wakes} times in {:.1?}", 2 * shims.len(), began.elapsed()))
}

/// Half of them in one pod.
fn by_ctr(case: &Case<'_>) -> Result<(Vec<String>, Vec<Shims>)> {
    let group = format!("io.containerd.runc.v2.group={}", case.id("pod"));
    let (mut ids, mut shims) = (Vec::new(), Vec::<Shims>::new());
    for number in 0..BY_CTR {
        let id = case.id("c");
        let flags: &[&str] = if number % 2 == 0 { &["--annotation", &group] } else { &[] };
        let args = case.run_args(&["--detach", "--null-io"], flags, &image::name(1), &id, &["sleep", "100000"]);
        case.ctr().ok(&words(&args))?;
        let its = Shims::of(case.ctr().pid(&id)?)?;
        if !shims.contains(&its) {
            shims.push(its);
        }
        ids.push(id);
    }
    ensure_eq!(shims.len(), BY_CTR / 2 + 1, "shims of {BY_CTR} containers, half of them in one pod");
    Ok((ids, shims))
}

/// A container holds a score of descriptors in its daemon, which is not to be stopped by the soft limit that systemd gives to everybody; but
/// containers inherit that limit, from a launcher that was replaced as well.
fn descriptor_limit_is_the_daemons_own(case: &Case<'_>) -> Result<()> {
    const SOFT: u64 = 160;
    Hand::run(Protocol::of(case.version()), |hand| {
        let mut bundles = Vec::new();
        for name in ["first", "second"] {
            let mut bundle = hand.bundle(name, &["sh", "-c", "ulimit -Sn >/limit; exec sleep 100000"])?;
            bundle.edit(|spec| spec["process"]["rlimits"] = json!([]))?;
            bundles.push(bundle);
        }
        let given = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(SOFT), ..given })?;
        let started = hand.shim(&bundles[0]);
        setrlimit(Resource::Nofile, given)?;
        let shim = started?;
        for bundle in &bundles {
            let shims = Shims::of(shim.create_quiet(bundle)?)?;
            shim.start(&bundle.id, "")?;
            eventually("the container wrote its limit", SOON, || {
                std::fs::read_to_string(bundle.written("limit")).is_ok_and(|t| !t.is_empty())
            })?;
            ensure_eq!(std::fs::read_to_string(bundle.written("limit"))?.trim(), SOFT.to_string(), "soft limit in {}", bundle.id);
            ensure_eq!(soft_limit(shims.daemon)?, given.maximum, "soft limit of the daemon");
            signal(shims.launcher, Signal::KILL)?;
            eventually("the launcher is gone", SOON, || proc::process(shims.launcher).is_none_or(|process| process.state == 'Z'))?;
        }
        // More descriptors than the limit allows.
        for number in 0..SOFT / 2 {
            shim.exec(&bundles[0].id, &format!("e{number}"), &["sleep", "100000"])?;
            shim.start(&bundles[0].id, &format!("e{number}"))?;
        }
        for bundle in &bundles {
            shim.kill(&bundle.id, "", 9)?;
            shim.wait(&bundle.id, "")?;
            shim.delete(&bundle.id, "")?;
        }
        shim.shutdown(&bundles[0].id)
    })
}

/// What a daemon may keep more when it is asked for statistics each second, as containerd 2.3 does, than when nobody asks, in KiB.
const POLLED: u64 = 64;

/// Half a second after each answer it has given back what the answer needed.
fn polled_each_second(case: &Case<'_>) -> Result<()> {
    Hand::run(Protocol::of(case.version()), |hand| {
        let bundle = hand.bundle("a", &["sleep", "100000"])?;
        let shim = hand.shim(&bundle)?;
        let shims = Shims::of(shim.create_quiet(&bundle)?)?;
        shim.start(&bundle.id, "")?;
        wait::pause_for(Duration::from_secs(4));
        let idle = shims.read()?[0].private;
        let mut polled = Vec::new();
        for _ in 0..6 {
            shim.stats(&bundle.id)?;
            shim.state(&bundle.id, "")?;
            shim.pids(&bundle.id)?;
            wait::pause_for(Duration::from_millis(500));
            polled.push(shims.read()?[0].private);
            wait::pause_for(Duration::from_millis(500));
        }
        println!("containerd {}: private KiB idle {idle}, polled each second {polled:?}", case.version().name());
        let most = polled.iter().max().copied().unwrap_or_default();
        ensure!(most <= idle + POLLED, "{idle} KiB without polls, and with them {polled:?}");
        shim.kill(&bundle.id, "", 9)?;
        shim.wait(&bundle.id, "")?;
        shim.delete(&bundle.id, "")?;
        shim.shutdown(&bundle.id)
    })
}

/// `None` is no limit.
fn soft_limit(pid: u32) -> Result<Option<u64>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files")).context(|| format!("no limit of files in {text}"))?;
    Ok(line.split_whitespace().next().and_then(|word| word.parse().ok()))
}

/// Many containers of one shim.
struct Pod {
    shim: Shim,
    shims: Shims,
    bundles: Vec<Bundle>,
    pids: Vec<u32>,
    /// Bytes of the daemon for each container of the second half.
    slope: u64,
}

impl Pod {
    fn start(hand: &mut Hand, number: usize) -> Result<Pod> {
        let group = hand.watch(&format!("g{number}"));
        let annotate = |bundle: &mut Bundle| bundle.edit(|spec| spec["annotations"] = json!({"io.containerd.runc.v2.group": group}));
        let mut first = hand.bundle(&format!("p{number}"), &["sleep", "100000"])?;
        annotate(&mut first)?;
        let shim = hand.shim(&first)?;
        let pid = shim.create_quiet(&first)?;
        shim.start(&first.id, "")?;
        let shims = Shims::of(pid)?;
        let mut pod = Pod { shim, shims, bundles: vec![first], pids: vec![pid], slope: 0 };
        let mut half = 0;
        for member in 1..POD {
            if member == POD / 2 {
                half = shims.read()?[0].private;
            }
            let mut bundle = hand.member(&format!("p{number}-{member}"), &["sleep", "100000"])?;
            annotate(&mut bundle)?;
            pod.pids.push(pod.shim.create_quiet(&bundle)?);
            pod.shim.start(&bundle.id, "")?;
            pod.bundles.push(bundle);
        }
        pod.slope = (shims.read()?[0].private.saturating_sub(half) << 10) / (POD - POD / 2) as u64;
        Ok(pod)
    }

    fn end(&self) -> Result<()> {
        for bundle in &self.bundles {
            self.shim.kill(&bundle.id, "", 9)?;
            self.shim.wait(&bundle.id, "")?;
            self.shim.delete(&bundle.id, "")?;
        }
        self.shims.expect_one_thread("after the last Delete")?;
        self.shim.shutdown(&self.bundles[0].id)
    }
}
