//! containerd is killed before, inside and after each call of the Task service, and started again: no container notices.

use std::path::PathBuf;
use std::process::{Child, ChildStdin, ExitCode, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use proto::api::UpdateTaskRequest;
use tests::case::words;
use tests::command::wait_for;
use tests::containerd::{Containerd, Setup, Version};
use tests::failpoint::{DIRECTORY, Failpoint, IDLE, MOMENTS, RPCS};
use tests::ledger::{self, Entries, Scope};
use tests::pty::Pty;
use tests::suite::{Lane, LaneCase, main_of_lanes, versions};
use tests::victim::{EXIT, Sink, Victim};
use tests::{Context, Failure, Result, ensure, ensure_eq, fail, paths, proc};

/// Long enough for a loaded machine, short enough to notice a hang.
const SOON: Duration = Duration::from_secs(10);
/// How long a Create may take to go on that containerd no longer waits for.
const LATE_CREATE: Duration = Duration::from_secs(2);

/// Shims of this suite that have lost everybody go after this time.
const IDLE_MS: &str = "700";

/// What `ctr run` itself calls, in this order.
const CREATING: [&str; 3] = ["create", "connect", "start"];

fn main() -> ExitCode {
    println!(
        "{} cells: {} calls x {} moments x {} versions",
        RPCS.len() * MOMENTS.len() * versions().len(),
        RPCS.len(),
        MOMENTS.len(),
        versions().len()
    );
    main_of_lanes(versions().into_iter().map(lane).collect())
}

type Other = (&'static str, fn(&mut Rig) -> Result<()>);

/// What has no place in the matrix.
const OTHERS: [Other; 4] =
    [("create_under_way", create_under_way), ("nobody_comes_back", nobody_comes_back), ("orders", orders), ("churn", churn)];

fn lane(version: Version) -> Lane<Rig> {
    let mut cases: Vec<(String, LaneCase<Rig>)> = Vec::new();
    for rpc in RPCS {
        for moment in MOMENTS {
            let point = format!("{rpc}.{moment}");
            cases.push((format!("kill::{}::{point}", version.name()), Box::new(move |rig| rig.cell(rpc, moment))));
        }
    }
    for (name, case) in OTHERS {
        cases.push((format!("kill::{}::{name}", version.name()), Box::new(case)));
    }
    Lane { prepare: Box::new(move || Rig::new(version)), cases, end: (format!("kill::{}::bystander", version.name()), Rig::end) }
}

/// One containerd that is killed again and again, and a container that runs through all of it.
struct Rig {
    containerd: Containerd,
    points: PathBuf,
    bystander: Victim,
    count: usize,
}

/// Who makes the call.
enum Caller {
    Ctr(Child, Option<ChildStdin>),
    Terminal(Pty),
    Socket(JoinHandle<()>),
}

impl Caller {
    /// Its containerd is gone.
    fn finish(self) -> Result<()> {
        match self {
            Caller::Ctr(mut child, stdin) => {
                drop(stdin);
                if wait_for(&mut child, Duration::from_secs(1))?.is_none() {
                    // It waits for the output of a process that lives on.
                    child.kill()?;
                    child.wait()?;
                }
            }
            Caller::Terminal(terminal) => drop(terminal),
            Caller::Socket(thread) => drop(thread.join()),
        }
        Ok(())
    }
}

impl Rig {
    fn new(version: Version) -> Result<Rig> {
        let shim = paths::failpoint_dir()?;
        let containerd = Containerd::start_with(version, |dir| {
            let environment = vec![(DIRECTORY.to_owned(), dir.join("fp").display().to_string()), (IDLE.to_owned(), IDLE_MS.to_owned())];
            Setup { shim: Some(shim), environment, ..Setup::default() }
        })?;
        let points = containerd.dir().join("fp");
        std::fs::create_dir_all(&points)?;
        containerd.import(&[1])?;
        let mut bystander = Victim::new(&containerd, &format!("{}-b{}", paths::tag(), version.name()), Sink::File)?;
        bystander.run(&containerd, &[])?;
        Ok(Rig { containerd, points, bystander, count: 0 })
    }

    /// One cell of the matrix.
    fn cell(&mut self, rpc: &str, moment: &str) -> Result<()> {
        self.with_victim(rpc, |rig, victim| {
            rig.attack(rpc, moment, victim)?;
            let mut status = rig.containerd.ctr().status(&victim.id)?;
            // A Create that is slower than containerd's return is cleaned up by it; 1.6 finds it later.
            let slow_create = (rpc, moment) == ("create", "inside") && status.is_none();
            if slow_create {
                status = tests::wait::until(LATE_CREATE, || rig.containerd.ctr().status(&victim.id).ok().flatten());
            }
            if !slow_create || status.is_some() {
                ensure_eq!(status.as_deref(), expected(rpc, moment), "status after the restart");
            }
            rig.check(rpc, status.as_deref(), victim)
        })
    }

    /// A new container for one case, and nothing left of it; after a failure the next one finds a running containerd.
    fn with_victim(&mut self, rpc: &str, case: impl FnOnce(&mut Rig, &mut Victim) -> Result<()>) -> Result<()> {
        self.count += 1;
        // A ctr that fails removes the fifos that it has made.
        let sink = if self.count.is_multiple_of(2) || CREATING.contains(&rpc) { Sink::File } else { Sink::Fifo };
        let id = format!("{}-k{}n{}x", paths::tag(), self.containerd.version.name().replace('.', "_"), self.count);
        let mut victim = Victim::new(&self.containerd, &id, sink)?;
        let result = case(self, &mut victim);
        if result.is_err() {
            self.recover(&id);
        }
        victim.tidy()?;
        let mut scope = Scope::default();
        scope.add(&self.containerd.address(), paths::tag(), &id);
        let clean = ledger::expect_clean(&scope, &Entries::new());
        match (result, clean) {
            (Ok(()), clean) => clean,
            (Err(e), Ok(())) => Err(e),
            (Err(e), Err(left)) => Err(Failure(format!("{e}\n    and: {left}"))),
        }
    }

    /// Kills containerd while the call is held at the point, lets the call go on, and starts containerd again.
    fn attack(&mut self, rpc: &str, moment: &str, victim: &mut Victim) -> Result<()> {
        self.prepare(rpc, victim)?;
        let mut point = Failpoint::arm(&self.points, &format!("{rpc}.{moment}"))?;
        let caller = self.call(rpc, victim)?;
        let reached = point.reached(SOON);
        let killed = self.containerd.kill();
        // Only the socket's client is still there.
        let dropped = if moment == "before" && rpc != "update" { point.abandoned(SOON) } else { Ok(()) };
        drop(point);
        caller.finish()?;
        reached.and(killed).and(dropped)?;
        self.containerd.restart()
    }

    /// What has to be there before the call.
    fn prepare(&self, rpc: &str, victim: &mut Victim) -> Result<()> {
        if CREATING.contains(&rpc) {
            return Ok(());
        }
        victim.run(&self.containerd, &[])?;
        match rpc {
            "resume" => self.containerd.ctr().ok(&["task", "pause", &victim.id]).map(drop),
            "delete" | "shutdown" => {
                victim.stop(SOON)?;
                victim.check_output(SOON)?;
                self.containerd.ctr().wait_status(&victim.id, "STOPPED", SOON)
            }
            _ => Ok(()),
        }
    }

    /// Makes the call, by `ctr` where it has a word for it.
    fn call(&self, rpc: &str, victim: &Victim) -> Result<Caller> {
        let id = victim.id.as_str();
        let fifos = self.containerd.dir().join("fifo").join(id).display().to_string();
        let exec = |flags: &[&str], command: &[&str]| -> Vec<String> {
            let head = ["task", "exec", "--exec-id", "e", "--fifo-dir", &fifos];
            [&head[..], flags, &[id], command].concat().into_iter().map(str::to_owned).collect()
        };
        let plain = |args: &[&str]| self.ctr(args);
        match rpc {
            _ if CREATING.contains(&rpc) => plain(&words(&victim.run_args(&[]))),
            "state" => plain(&["task", "ls"]),
            "delete" | "shutdown" => plain(&["task", "rm", id]),
            "pids" => plain(&["task", "ps", id]),
            "pause" | "resume" => plain(&["task", rpc, id]),
            "checkpoint" => plain(&["task", "checkpoint", id]),
            "kill" => plain(&["task", "kill", "-s", "SIGWINCH", id]),
            "stats" => plain(&["task", "metrics", id]),
            "exec" => plain(&words(&exec(&["--detach"], &["sleep", "1000"]))),
            "wait" => plain(&words(&exec(&[], &["true"]))),
            "close_io" => self.closing(&words(&exec(&[], &["sh", "-c", "echo up; exec sleep 1000"]))),
            "resize_pty" => {
                Ok(Caller::Terminal(self.containerd.ctr().on_terminal(&words(&exec(&["--tty"], &["sleep", "1000"])), 30, 90)?))
            }
            "update" => self.update(victim),
            _ => fail!("no way to call {rpc}"),
        }
    }

    fn ctr(&self, args: &[&str]) -> Result<Caller> {
        let mut command = self.containerd.ctr().command(args)?;
        Ok(Caller::Ctr(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?, None))
    }

    /// `ctr` closes the input of a process when its own ends.
    fn closing(&self, args: &[&str]) -> Result<Caller> {
        let mut command = self.containerd.ctr().command(args)?;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let up = child.stdout.take().context(|| "no stdout".to_owned())?;
        ensure!(tests::command::readable(&up, SOON)?, "the exec'd process says nothing");
        drop(child.stdin.take());
        Ok(Caller::Ctr(child, None))
    }

    fn update(&self, victim: &Victim) -> Result<Caller> {
        let shim = victim.shim(&self.containerd)?;
        let mut request = UpdateTaskRequest::new();
        request.id = victim.id.clone();
        request.resources.mut_or_insert_default().value = br#"{"cpu":{"shares":512}}"#.to_vec();
        Ok(Caller::Socket(std::thread::spawn(move || drop(shim.update(request)))))
    }

    /// What the container is after the restart, how it goes on, and its end.
    fn check(&self, rpc: &str, status: Option<&str>, victim: &mut Victim) -> Result<()> {
        let ctr = self.containerd.ctr();
        let id = victim.id.clone();
        if let (Some(pid), Some(_)) = (victim.pid(), status) {
            ensure_eq!(ctr.pid(&id)?, pid, "pid after the restart");
        }
        match status {
            None if victim.pid().is_some() => {}
            None => {
                // 1.6 keeps a shim without a task, until that ends by itself.
                let args = victim.start_args();
                let started = tests::wait::until(SOON, || ctr.ok(&words(&args)).ok());
                started.context(|| format!("{id} cannot be started again"))?;
                victim.go(&self.containerd, ctr.pid(&id)?)?;
            }
            Some("CREATED") => {
                let pid = victim.shim(&self.containerd)?.start(&id, "")?;
                victim.go(&self.containerd, pid)?;
            }
            Some("PAUSED") => drop(ctr.ok(&["task", "resume", &id])?),
            Some("RUNNING") if victim.pid().is_none() => victim.go(&self.containerd, ctr.pid(&id)?)?,
            Some(_) => {}
        }
        if matches!(rpc, "delete" | "shutdown") {
            if status.is_some() {
                self.delete(&id)?;
            }
        } else {
            victim.stop(SOON)?;
            victim.check_output(SOON)?;
            ctr.wait_status(&id, "STOPPED", SOON)?;
            self.delete(&id)?;
        }
        ctr.ok(&["container", "rm", &id])?;
        ensure!(self.bystander.pid().and_then(proc::process).is_some(), "the bystander is gone");
        Ok(())
    }

    /// `ctr task rm` and the exit code that it tells.
    fn delete(&self, id: &str) -> Result<()> {
        let deleted = self.containerd.ctr().run(&["task", "rm", id])?;
        let told = deleted.stderr.contains(&format!("exit code {EXIT}")) || deleted.code == EXIT;
        ensure!(told, "ctr task rm does not tell the exit code: {deleted:?}");
        Ok(())
    }

    /// Best effort: what cannot be undone is in the ledger's list.
    fn recover(&mut self, id: &str) {
        if let Ok(log) = self.containerd.keep_log(&format!("kill-{}-{id}", self.containerd.version.name())) {
            println!("containerd's log: {}", log.display());
        }
        let _ = self.containerd.kill();
        let _ = self.containerd.restart();
        for args in [["task", "rm", "-f"], ["container", "rm", ""]] {
            let args: Vec<&str> = args.into_iter().filter(|word| !word.is_empty()).chain([id]).collect();
            let _ = self.containerd.ctr().run(&args);
        }
    }

    /// The bystander has seen nothing of it all.
    fn end(mut self) -> Result<()> {
        ensure_eq!(self.containerd.ctr().status(&self.bystander.id)?.as_deref(), Some("RUNNING"), "status of the bystander");
        ensure_eq!(Some(self.containerd.ctr().pid(&self.bystander.id)?), self.bystander.pid(), "its pid");
        self.bystander.stop(SOON)?;
        let lines = self.bystander.check_output(SOON)?;
        ensure!(lines > self.count, "the bystander said only {lines} lines");
        self.containerd.ctr().wait_status(&self.bystander.id, "STOPPED", SOON)?;
        self.delete(&self.bystander.id)?;
        self.containerd.ctr().ok(&["container", "rm", &self.bystander.id])?;
        self.containerd.stop()
    }
}

/// What became of the container. A call that is held before its work is dropped with its client; one that is inside goes on.
fn expected(rpc: &str, moment: &str) -> Option<&'static str> {
    match (rpc, moment) {
        ("create", "before") | ("delete", "inside" | "after") | ("shutdown", _) => None,
        ("create" | "connect", _) | ("start", "before") => Some("CREATED"),
        ("delete", _) => Some("STOPPED"),
        ("pause", "inside" | "after") | ("resume", "before") => Some("PAUSED"),
        // ctr pauses the container itself.
        ("checkpoint", _) => Some("PAUSED"),
        _ => Some("RUNNING"),
    }
}

/// containerd comes back while the shim still creates: it finds a shim without a task and cleans up, or finds the container.
fn create_under_way(rig: &mut Rig) -> Result<()> {
    rig.with_victim("create", |rig, victim| {
        let mut point = Failpoint::arm(&rig.points, "create.inside")?;
        let caller = rig.call("create", victim)?;
        let reached = point.reached(SOON);
        rig.containerd.kill()?;
        caller.finish()?;
        reached?;
        let release = std::thread::spawn(move || {
            tests::wait::pause_for(Duration::from_millis(600));
            drop(point);
        });
        rig.containerd.restart()?;
        release.join().map_err(|_| Failure("the release panicked".to_owned()))?;
        let status = rig.containerd.ctr().status(&victim.id)?;
        rig.check("create", status.as_deref(), victim)
    })
}

/// containerd dies between the shim's start and Create, and stays away: the shim goes by itself.
fn nobody_comes_back(rig: &mut Rig) -> Result<()> {
    rig.with_victim("create", |rig, victim| {
        let mut point = Failpoint::arm(&rig.points, "create.before")?;
        let caller = rig.call("create", victim)?;
        let reached = point.reached(SOON);
        let id = victim.id.clone();
        let shims = || proc::all().into_iter().filter(|p| p.command_line.contains(&id) && p.name != "ctr").count();
        let there = shims();
        rig.containerd.kill()?;
        let dropped = point.abandoned(SOON);
        drop(point);
        caller.finish()?;
        let gone = tests::wait::until(SOON, || (shims() == 0).then_some(()));
        rig.containerd.restart()?;
        reached.and(dropped)?;
        ensure!(there > 0, "there was no shim");
        gone.context(|| "the shim stays though nobody needs it".to_owned())?;
        rig.check("create", None, victim)
    })
}

/// A call that fails or kills the shim in its middle leaves nothing, and says so.
fn orders(rig: &mut Rig) -> Result<()> {
    for (rpc, order) in [("create", "error"), ("start", "error"), ("create", "abort"), ("start", "abort")] {
        rig.with_victim(rpc, |rig, victim| {
            let mut point = Failpoint::arm(&rig.points, &format!("{rpc}.inside"))?;
            let mut command = rig.containerd.ctr().command(&words(&victim.run_args(&[])))?;
            let ctr = std::thread::spawn(move || tests::command::run(&mut command));
            point.reached(SOON).and_then(|()| point.order(order))?;
            let failed = ctr.join().map_err(|_| Failure("ctr panicked".to_owned()))??;
            let says = if order == "error" { format!("failpoint {rpc}.inside") } else { "closed".to_owned() };
            ensure!(failed.code != 0 && failed.stderr.contains(&says), "ctr after {order} in {rpc}: {failed:?}");
            rig.remove(&victim.id)
        })?;
    }
    Ok(())
}

/// containerd dies at random moments of short lives.
fn churn(rig: &mut Rig) -> Result<()> {
    let (cycles, kills) = if std::env::var_os("CORACLE_LONG").is_some() { (500, 20) } else { (200, 20) };
    let mut random = Random::new();
    println!("{}: seed {}", rig.containerd.version.name(), random.0);
    let word = format!("{}-c{}x", paths::tag(), rig.containerd.version.name().replace('.', "_"));
    let mut scope = Scope::default();
    for cycle in 0..cycles {
        let id = format!("{word}{cycle}");
        scope.add(&rig.containerd.address(), paths::tag(), &id);
        let image = tests::image::name(1);
        let steps: [&[&str]; 3] = [
            &["run", "--detach", "--null-io", "--runtime", paths::runtime(), &image, &id, "sleep", "1000"],
            &["task", "rm", "-f", &id],
            &["container", "rm", &id],
        ];
        let unlucky = (cycle % (cycles / kills) == 0).then(|| random.below(2));
        for (number, step) in steps.into_iter().enumerate() {
            if unlucky == Some(number as u64) {
                rig.interrupt(step, Duration::from_millis(random.below(200)))?;
                break;
            }
            rig.step(step)?;
        }
        if unlucky.is_some() {
            rig.remove(&id)?;
        }
    }
    ledger::expect_clean(&scope, &Entries::new())
}

/// Marsaglia's xorshift; what it began with is printed.
struct Random(u64);

impl Random {
    fn new() -> Random {
        let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        Random(std::env::var("TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(since.as_nanos() as u64 | 1))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

impl Rig {
    /// Kills containerd some time after `ctr` has begun, and starts it again.
    fn interrupt(&mut self, step: &[&str], after: Duration) -> Result<()> {
        let caller = self.ctr(step)?;
        tests::wait::pause_for(after);
        self.containerd.kill()?;
        caller.finish()?;
        self.containerd.restart()
    }

    /// Runs a command. A containerd that was killed while it made a snapshot leaves a directory in the next one's way, which its collection of
    /// garbage removes a moment after it has come back.
    fn step(&self, step: &[&str]) -> Result<()> {
        let mut last = self.containerd.ctr().ok(step).map(drop);
        let in_the_way =
            |result: &Result<()>| result.as_ref().is_err_and(|e| e.0.contains("failed to rename") && e.0.contains("snapshotter"));
        tests::wait::until(SOON, || {
            if in_the_way(&last) {
                last = self.containerd.ctr().ok(step).map(drop);
            }
            (!in_the_way(&last)).then_some(())
        });
        last
    }

    /// Removes what there is of a container: its task may be known or not, and so may the container.
    fn remove(&self, id: &str) -> Result<()> {
        let ctr = self.containerd.ctr();
        let mut said = String::new();
        let gone = tests::wait::until(SOON, || {
            let task = ctr.run(&["task", "rm", "-f", id]).ok()?;
            let container = ctr.run(&["container", "rm", id]).ok()?;
            said = format!("{}{}", task.stderr, container.stderr);
            let known = ctr.ok(&["container", "ls", "-q"]).ok()?;
            (!known.lines().any(|line| line == id)).then_some(())
        });
        gone.context(|| format!("{id} cannot be removed: {said}"))?;
        // containerd renames a bundle before it removes it; killed in between, it passes over the hidden directory when it comes back
        // (`atomicDelete` of its `runtime/v2/bundle.go`, `loadShims`).
        let hidden = self.containerd.bundle(&format!(".{id}"));
        ensure!(!hidden.join("coracle.json").exists(), "{} is there, with the record of a container that nobody knows", hidden.display());
        let _ = std::fs::remove_dir_all(hidden);
        Ok(())
    }
}
