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

fn lane(version: Version) -> Lane<Rig> {
    let mut cases: Vec<(String, LaneCase<Rig>)> = Vec::new();
    for rpc in RPCS {
        for moment in MOMENTS {
            let point = format!("{rpc}.{moment}");
            cases.push((format!("kill::{}::{point}", version.name()), Box::new(move |rig| rig.cell(rpc, moment))));
        }
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
            Setup { shim: Some(shim), environment }
        })?;
        let points = containerd.dir().join("fp");
        std::fs::create_dir_all(&points)?;
        containerd.import(&[1])?;
        let mut bystander = Victim::new(&containerd, &format!("{}-b{}", paths::tag(), version.name()), Sink::File)?;
        bystander.run(&containerd, &[])?;
        Ok(Rig { containerd, points, bystander, count: 0 })
    }

    /// One cell; after a failure the next one finds a running containerd.
    fn cell(&mut self, rpc: &str, moment: &str) -> Result<()> {
        self.count += 1;
        // A ctr that fails removes the fifos that it has made.
        let sink = if self.count % 2 == 0 || CREATING.contains(&rpc) { Sink::File } else { Sink::Fifo };
        let id = format!("{}-k{}n{}x", paths::tag(), self.containerd.version.name().replace('.', "_"), self.count);
        let mut victim = Victim::new(&self.containerd, &id, sink)?;
        let result = self.attack(rpc, moment, &mut victim).and_then(|()| self.check(rpc, moment, &mut victim));
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

    /// What containerd and the container are after the restart, and the container's end.
    fn check(&self, rpc: &str, moment: &str, victim: &mut Victim) -> Result<()> {
        let ctr = self.containerd.ctr();
        let id = victim.id.clone();
        let status = ctr.status(&id)?;
        let expected = expected(rpc, moment);
        ensure_eq!(status.as_deref(), expected, "status after the restart");
        if let (Some(pid), Some(_)) = (victim.pid(), &status) {
            ensure_eq!(ctr.pid(&id)?, pid, "pid after the restart");
        }
        match status.as_deref() {
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
