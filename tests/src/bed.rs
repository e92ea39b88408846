//! One case over both ways into the runtime: the shim, driven by hand, and the command line `coracle`.
//!
//! A case is a function of a [`Bed`] and a line of [`both_cases!`](crate::both_cases) in its suite:
//!
//! ```ignore
//! pub fn a_mask_hides_a_file(bed: &mut Bed<'_>) -> Result<()> {
//!     let mut bundle = bed.bundle("a", &["cat", "/etc/secret"])?;
//!     fs::create_dir_all(bundle.written("etc"))?;
//!     fs::write(bundle.written("etc/secret"), "x")?;
//!     bundle.edit(|spec| spec["linux"]["maskedPaths"] = json!(["/etc/secret"]))?;
//!     ensure_eq!(bed.ran(&bundle)?.stdout, "", "what can be read of it");
//!     bundle.edit(|spec| spec["process"]["args"] = json!(["sleep", "1000"]))?;
//!     let pid = bed.running(&bundle)?;
//!     ensure!(bed.exec(&bundle, &process(&["test", "-s", "/etc/secret"]))?.status != 0, "an exec reads it");
//!     refused(bed.exec(&bundle, &process(&["nope"])), "not found")?;
//!     bed.end(&bundle)
//! }
//! ```
//!
//! It runs as `SUITE::shim::V17::…`, `SUITE::shim::V23::…` and `SUITE::command_line::…`. What differs between the two is asked of
//! [`Bed::hand`], [`Bed::shim`] and [`Bed::oci`]. Every method that runs something answers the runtime's own message as the failure. At the
//! end the ledger must balance, so a case ends or deletes its containers.
//!
//! `TEST_COMMAND=/usr/sbin/runc` runs the cases of the command line on a peer, which tests the tests.

use std::cell::Cell;
use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::bundle::Bundle;
use crate::command::{self, LIMIT, signal};
use crate::hand::Hand;
use crate::oci::Oci;
use crate::requests::{self, Ran, create_request, exec_request};
use crate::rpc::Shim;
use crate::{Context, Failure, Result, ensure, fail, proc, wait};

enum Way<'a> {
    /// The shim once it runs, with the id it was started for.
    Shim(&'a mut Hand, Option<(Shim, String)>),
    CommandLine(&'a Oci),
}

/// A command around another.
type Around = Box<dyn Fn(Command) -> Command>;

/// What a case works with.
pub struct Bed<'a> {
    way: Way<'a>,
    around: Option<Around>,
    quiet: bool,
    count: Cell<u32>,
}

/// A process beside the first one, until [`Bed::exec_wait`] or [`Bed::exec_end`].
pub struct Exec {
    /// Its id on the host.
    pub pid: u32,
    name: String,
    files: [PathBuf; 2],
    /// The waiting command and its log.
    child: Option<(Child, PathBuf)>,
}

/// Expects a failure whose message has these words.
pub fn refused<T>(result: Result<T>, words: &str) -> Result<()> {
    match result {
        Ok(_) => fail!("succeeded, and should have failed with {words:?}"),
        Err(Failure(text)) if text.contains(words) => Ok(()),
        Err(Failure(text)) => fail!("{text:?} in place of {words:?}"),
    }
}

impl<'a> Bed<'a> {
    fn new(way: Way<'a>) -> Bed<'a> {
        Bed { way, around: None, quiet: false, count: Cell::new(0) }
    }

    /// A case of the command line's.
    pub fn with_command(oci: &'a Oci) -> Bed<'a> {
        Bed::new(Way::CommandLine(oci))
    }

    /// A case of the shim's in the words of both.
    pub fn with_shim(hand: &mut Hand, run: impl FnOnce(&mut Bed<'_>) -> Result<()>) -> Result<()> {
        let mut bed = Bed::new(Way::Shim(hand, None));
        run(&mut bed)?;
        match &bed.way {
            Way::Shim(_, Some((shim, id))) => shim.shutdown(id),
            _ => Ok(()),
        }
    }

    /// Puts a command around whatever starts the runtime: the shim's `start`, or each command. To be called before the first create.
    pub fn call_by(&mut self, around: impl Fn(Command) -> Command + 'static) {
        self.around = Some(Box::new(around));
    }

    /// Gives the null device to all processes from now on, in place of files for their output.
    pub fn quiet(&mut self) {
        self.quiet = true;
    }

    /// The case of the shim, where it is one.
    pub fn hand(&mut self) -> Option<&mut Hand> {
        match &mut self.way {
            Way::Shim(hand, _) => Some(hand),
            Way::CommandLine(_) => None,
        }
    }

    /// The shim once it has been started.
    pub fn shim(&self) -> Option<&Shim> {
        match &self.way {
            Way::Shim(_, Some((shim, _))) => Some(shim),
            _ => None,
        }
    }

    /// The case of the command line, where it is one.
    pub fn oci(&self) -> Option<&Oci> {
        match &self.way {
            Way::Shim(..) => None,
            Way::CommandLine(oci) => Some(oci),
        }
    }

    /// A short directory below `/run`.
    pub fn dir(&self) -> &PathBuf {
        match &self.way {
            Way::Shim(hand, _) => hand.dir(),
            Way::CommandLine(oci) => oci.dir(),
        }
    }

    /// A directory on disk.
    pub fn data(&self) -> &PathBuf {
        match &self.way {
            Way::Shim(hand, _) => hand.data(),
            Way::CommandLine(oci) => oci.data(),
        }
    }

    /// A bundle whose container runs `args`. Its root is the image, and what is written to it is at [`Bundle::written`].
    pub fn bundle(&mut self, name: &str, args: &[&str]) -> Result<Bundle> {
        match &mut self.way {
            Way::Shim(hand, _) => hand.bundle(name, args),
            Way::CommandLine(oci) => oci.bundle(name, args),
        }
    }

    /// Starts the shim if this is its first container.
    fn ready(&mut self, bundle: &Bundle) -> Result<()> {
        let Way::Shim(hand, shim @ None) = &mut self.way else { return Ok(()) };
        let started = match &self.around {
            Some(around) => requests::shim_by(hand, bundle, around)?,
            None => hand.shim(bundle)?,
        };
        *shim = Some((started, bundle.id.clone()));
        Ok(())
    }

    /// Creates a container and answers its first process. Its output goes to [`Bed::output`], unless it has a terminal.
    pub fn create(&mut self, bundle: &Bundle) -> Result<u32> {
        self.ready(bundle)?;
        let terminal = bundle.spec["process"]["terminal"] == true;
        let files = self.files(&bundle.id);
        match &self.way {
            Way::Shim(..) => {
                let mut request = create_request(bundle)?;
                request.terminal = terminal;
                if !terminal && !self.quiet {
                    [request.stdout, request.stderr] = emptied(&files)?;
                }
                Ok(self.task()?.create(request)?.pid)
            }
            Way::CommandLine(oci) => {
                let (dir, socket) = (bundle.dir.display().to_string(), oci.dir().join(format!("{}.tty", self.next())));
                let _listener = if terminal { Some(UnixListener::bind(&socket)?) } else { None };
                let socket = socket.display().to_string();
                let flags = if terminal { vec!["--console-socket", &socket] } else { Vec::new() };
                self.coracle(&[&["create", "-b", &dir], &flags[..], &[&bundle.id]].concat(), Some(&files))?;
                self.pid(bundle)
            }
        }
    }

    /// Starts the first process.
    pub fn start(&self, bundle: &Bundle) -> Result<()> {
        match &self.way {
            Way::Shim(..) => Ok(self.task()?.start(&bundle.id, "").map(drop)?),
            Way::CommandLine(_) => self.coracle(&["start", &bundle.id], None).map(drop),
        }
    }

    /// Creates and starts a container; answers its first process.
    pub fn running(&mut self, bundle: &Bundle) -> Result<u32> {
        let pid = self.create(bundle)?;
        self.start(bundle)?;
        Ok(pid)
    }

    /// Runs a container to its end and deletes it: `run` of the command line.
    pub fn ran(&mut self, bundle: &Bundle) -> Result<Ran> {
        self.ready(bundle)?;
        match &self.way {
            Way::Shim(hand, Some((shim, _))) => requests::ran(hand, shim, bundle),
            _ => self.coracle(&["run", "-b", &bundle.dir.display().to_string(), &bundle.id], None),
        }
    }

    /// What the first process has written so far: to standard output, and to standard error.
    pub fn output(&self, bundle: &Bundle) -> Result<(String, String)> {
        let [stdout, stderr] = self.files(&bundle.id);
        Ok((text(&stdout)?, text(&stderr)?))
    }

    /// Runs a process (its JSON, see [`crate::bundle::process`]) in a container to its end.
    pub fn exec(&self, bundle: &Bundle, process: &Value) -> Result<Ran> {
        let exec = self.exec_start(bundle, process)?;
        self.exec_wait(bundle, exec)
    }

    /// Starts a process in a container.
    pub fn exec_start(&self, bundle: &Bundle, process: &Value) -> Result<Exec> {
        let name = format!("e{}", self.next());
        let files = self.files(&name);
        let streams = emptied(&files)?;
        let Way::CommandLine(oci) = &self.way else {
            let (shim, mut request) = (self.task()?, exec_request(&bundle.id, &name, process));
            if !self.quiet {
                [request.stdout, request.stderr] = streams;
            }
            shim.exec_process(request)?;
            return match shim.start(&bundle.id, &name) {
                Ok(pid) => Ok(Exec { pid, name, files, child: None }),
                Err(status) => {
                    shim.delete(&bundle.id, &name)?;
                    Err(status.into())
                }
            };
        };
        let [spec, pid, log] = ["json", "pid", "log"].map(|kind| oci.data().join(format!("{name}.{kind}")));
        fs::write(&spec, process.to_string())?;
        let [spec_path, pid_path] = [&spec, &pid].map(|path| path.display().to_string());
        let mut command = self.command(oci, &log, &["exec", "-p", &spec_path, "--pid-file", &pid_path, &bundle.id])?;
        let child = self.writing_to(&files, &mut command)?.spawn()?;
        self.exec_started(Exec { pid: 0, name, files, child: Some((child, log)) }, &pid)
    }

    /// Waits until the command has told the process, or has ended.
    fn exec_started(&self, mut exec: Exec, pid_file: &Path) -> Result<Exec> {
        let told = wait::until(LIMIT, || {
            let ended = exec.child.as_mut().is_some_and(|(child, _)| child.try_wait().is_ok_and(|status| status.is_some()));
            match fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok()) {
                Some(pid) => Some(Some(pid)),
                None => ended.then_some(None),
            }
        });
        match told.context(|| format!("exec does not start after {LIMIT:?}"))? {
            Some(pid) => exec.pid = pid,
            None => fail!("{}", exec.child.map(|(_, log)| error_of(&log)).unwrap_or_default().unwrap_or_default()),
        }
        Ok(exec)
    }

    /// Waits for the end of a process.
    pub fn exec_wait(&self, bundle: &Bundle, exec: Exec) -> Result<Ran> {
        let status = match exec.child {
            None => {
                let shim = self.task()?;
                let status = shim.wait(&bundle.id, &exec.name)?.exit_status;
                shim.delete(&bundle.id, &exec.name)?;
                status
            }
            Some((mut child, log)) => {
                let status = command::wait_for(&mut child, LIMIT)?.context(|| "exec does not end".to_owned())?;
                if let Some(message) = error_of(&log) {
                    return Err(Failure(message));
                }
                command::code(status).cast_unsigned()
            }
        };
        Ok(Ran { status, stdout: text(&exec.files[0])?, stderr: text(&exec.files[1])? })
    }

    /// Kills a process and waits for its end.
    pub fn exec_end(&self, bundle: &Bundle, exec: Exec) -> Result<Ran> {
        signal(exec.pid, Signal::KILL)?;
        self.exec_wait(bundle, exec)
    }

    /// `created`, `running`, `paused` or `stopped`.
    pub fn status(&self, bundle: &Bundle) -> Result<String> {
        let Way::CommandLine(_) = &self.way else {
            let status = self.task()?.state(&bundle.id, "")?.status.value();
            return Ok(match status {
                requests::CREATED => "created",
                requests::RUNNING => "running",
                requests::STOPPED => "stopped",
                requests::PAUSED => "paused",
                other => fail!("status {other}"),
            }
            .to_owned());
        };
        Ok(self.state(bundle)?["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until the container has this status.
    pub fn expect_status(&self, bundle: &Bundle, status: &str) -> Result<()> {
        let mut last = String::new();
        let reached = wait::until(Duration::from_secs(10), || {
            last = self.status(bundle).unwrap_or_else(|e| e.0);
            (last == status).then_some(())
        });
        reached.context(|| format!("status of {}: {last:?} in place of {status:?}", bundle.id))
    }

    /// The first process.
    pub fn pid(&self, bundle: &Bundle) -> Result<u32> {
        match &self.way {
            Way::Shim(..) => Ok(self.task()?.state(&bundle.id, "")?.pid),
            Way::CommandLine(_) => {
                let state = self.state(bundle)?;
                state["pid"].as_u64().and_then(|pid| pid.try_into().ok()).context(|| format!("no pid in {state}"))
            }
        }
    }

    /// Signals the first process, or all.
    pub fn kill(&self, bundle: &Bundle, signal: u32, all: bool) -> Result<()> {
        match &self.way {
            Way::Shim(..) if all => Ok(self.task()?.kill_all(&bundle.id, signal).map(drop)?),
            Way::Shim(..) => Ok(self.task()?.kill(&bundle.id, "", signal).map(drop)?),
            Way::CommandLine(_) => {
                let (signal, flags) = (signal.to_string(), if all { &["-a"][..] } else { &[] });
                self.coracle(&[&["kill"], flags, &[&bundle.id, &signal]].concat(), None).map(drop)
            }
        }
    }

    /// Deletes a container that has ended.
    pub fn delete(&self, bundle: &Bundle) -> Result<()> {
        match &self.way {
            Way::Shim(..) => Ok(self.task()?.delete(&bundle.id, "").map(drop)?),
            Way::CommandLine(_) => self.coracle(&["delete", &bundle.id], None).map(drop),
        }
    }

    /// Kills a container if it lives, and deletes it: `delete --force`.
    pub fn end(&self, bundle: &Bundle) -> Result<()> {
        match &self.way {
            Way::Shim(..) => requests::end(self.task()?, bundle),
            Way::CommandLine(_) => self.coracle(&["delete", "--force", &bundle.id], None).map(drop),
        }
    }

    /// The processes of a container.
    pub fn pids(&self, bundle: &Bundle) -> Result<Vec<u32>> {
        match &self.way {
            Way::Shim(..) => Ok(self.task()?.pids(&bundle.id)?),
            Way::CommandLine(_) => Ok(serde_json::from_str(&self.coracle(&["ps", "-f", "json", &bundle.id], None)?.stdout)?),
        }
    }

    /// Changes limits to these `linux.resources`.
    pub fn update(&self, bundle: &Bundle, resources: &Value) -> Result<()> {
        match &self.way {
            Way::Shim(..) => Ok(self.task()?.update_to(&bundle.id, resources).map(drop)?),
            Way::CommandLine(oci) => {
                let file = oci.data().join(format!("{}.resources", self.next()));
                fs::write(&file, resources.to_string())?;
                self.coracle(&["update", "-r", &file.display().to_string(), &bundle.id], None).map(drop)
            }
        }
    }

    /// Freezes a container.
    pub fn pause(&self, bundle: &Bundle) -> Result<()> {
        match &self.way {
            Way::Shim(..) => Ok(self.task()?.pause(&bundle.id).map(drop)?),
            Way::CommandLine(_) => self.coracle(&["pause", &bundle.id], None).map(drop),
        }
    }

    /// Thaws a container.
    pub fn resume(&self, bundle: &Bundle) -> Result<()> {
        match &self.way {
            Way::Shim(..) => Ok(self.task()?.resume(&bundle.id).map(drop)?),
            Way::CommandLine(_) => self.coracle(&["resume", &bundle.id], None).map(drop),
        }
    }

    /// The directories of a container's cgroups, in every hierarchy.
    pub fn cgroups(&self, bundle: &Bundle) -> Vec<PathBuf> {
        let below = proc::cgroup_roots().into_iter().flat_map(|root| proc::cgroups_below(&root));
        below.filter(|dir| dir.to_string_lossy().contains(&bundle.id)).collect()
    }

    /// Runs a command to its end, `files` being its output; its failure is what it logs.
    fn coracle(&self, args: &[&str], files: Option<&[PathBuf; 2]>) -> Result<Ran> {
        let Way::CommandLine(oci) = &self.way else { fail!("the shim has no command {args:?}") };
        let log = oci.data().join(format!("{}.log", self.next()));
        let mut command = self.command(oci, &log, args)?;
        let (code, stdout, stderr) = match files {
            None => {
                let done = command::run(&mut command)?;
                (done.code, done.stdout, done.stderr)
            }
            // The container would hold a pipe open.
            Some(files) => {
                let mut child = self.writing_to(files, &mut command)?.spawn()?;
                let status = command::wait_for(&mut child, LIMIT)?.context(|| format!("{args:?} does not end"))?;
                (command::code(status), String::new(), text(&files[1]).unwrap_or_default())
            }
        };
        if let Some(message) = error_of(&log) {
            return Err(Failure(message));
        }
        ensure!(code == 0 || args[0] == "run", "{args:?}: exit code {code}, stderr {stderr:?}");
        Ok(Ran { status: code.cast_unsigned(), stdout, stderr })
    }

    fn command(&self, oci: &Oci, log: &Path, args: &[&str]) -> Result<Command> {
        let log = log.display().to_string();
        let command = oci.command(&[&["--log", &log, "--log-format", "json"], args].concat())?;
        let mut command = match &self.around {
            Some(around) => around(command),
            None => command,
        };
        command.stdin(Stdio::null());
        Ok(command)
    }

    fn writing_to<'c>(&self, files: &[PathBuf; 2], command: &'c mut Command) -> Result<&'c mut Command> {
        if self.quiet {
            return Ok(command.stdout(Stdio::null()).stderr(Stdio::null()));
        }
        Ok(command.stdout(File::create(&files[0])?).stderr(File::create(&files[1])?))
    }

    fn state(&self, bundle: &Bundle) -> Result<Value> {
        Ok(serde_json::from_str(&self.coracle(&["state", &bundle.id], None)?.stdout)?)
    }

    fn task(&self) -> Result<&Shim> {
        self.shim().context(|| "no shim has been started".to_owned())
    }

    fn files(&self, name: &str) -> [PathBuf; 2] {
        ["stdout", "stderr"].map(|kind| self.data().join(format!("{name}.{kind}")))
    }

    fn next(&self) -> u32 {
        self.count.replace(self.count.get() + 1)
    }
}

/// The paths of two files that are empty now.
fn emptied(files: &[PathBuf; 2]) -> Result<[String; 2]> {
    for file in files {
        fs::write(file, "")?;
    }
    Ok([&files[0], &files[1]].map(|file| file.display().to_string()))
}

fn text(path: &Path) -> Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
}

/// The last error of a log in JSON.
fn error_of(log: &Path) -> Option<String> {
    let text = fs::read_to_string(log).ok()?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["level"] == "error").filter_map(|line| Some(line["msg"].as_str()?.to_owned())).next_back()
}
