//! Cases by hand for both versions of the task service, and the requests that they need beyond those of [`crate::rpc`].

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use proto::api::{
    CloseIORequest, CreateTaskRequest, Empty, ExecProcessRequest, KillRequest, PidsRequest, ProcessInfo, ResizePtyRequest,
    UpdateTaskRequest,
};
use proto::protobuf::{MessageField, well_known_types::any::Any};
use serde_json::Value;
use ttrpc::Code;

use crate::bundle::Bundle;
use crate::hand::Hand;
use crate::rpc::{Answer, Shim};
use crate::start::Protocol;
use crate::{Context, Result, command, ensure_eq, fail, ledger, paths, proc, suite};

/// A case of a suite by hand.
pub type Entry = (&'static str, fn(&mut Hand) -> Result<()>);

/// Names each function by its identifier.
#[macro_export]
macro_rules! hand_cases {
    ($($name:path),* $(,)?) => { vec![$((stringify!($name), $name as fn(&mut $crate::hand::Hand) -> $crate::Result<()>)),*] };
}

/// The whole `main` of a suite that runs every case on version 2 of the task service, as 1.7 asks for it, and on version 3, as 2.3 does.
///
/// What takes long and does not depend on the version, `once`, is run on 3 only.
pub fn main(name: &'static str, entries: Vec<Entry>, once: Vec<Entry>) -> ExitCode {
    suite::main_of(named(name, entries, once))
}

/// The cases of [`main`] with their full names.
pub fn named(prefix: &str, entries: Vec<Entry>, once: Vec<Entry>) -> Vec<suite::Named> {
    let mut cases: Vec<suite::Named> = Vec::new();
    for &protocol in protocols() {
        let more = if protocol == Protocol::V17 { &[][..] } else { &once };
        for &(case, run) in entries.iter().chain(more) {
            let case = case.replace(' ', "");
            cases.push((format!("{prefix}::{protocol:?}::{case}"), Box::new(move || Hand::run(protocol, run))));
        }
    }
    cases
}

/// The protocols that stand for the two versions of the task service.
pub fn protocols() -> &'static [Protocol] {
    if paths::is_ours() { &[Protocol::V17, Protocol::V23] } else { &[Protocol::V17] }
}

/// What [`ran`] answers.
#[derive(Debug)]
pub struct Ran {
    /// Exit status.
    pub status: u32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// The Create request of a bundle with its overlay and no streams.
pub fn create_request(bundle: &Bundle) -> Result<CreateTaskRequest> {
    let mut request = CreateTaskRequest::new();
    request.id = bundle.id.clone();
    request.bundle = bundle.dir.display().to_string();
    request.rootfs = bundle.overlay()?;
    Ok(request)
}

/// Creates a container with options of this type.
pub fn create_as(shim: &Shim, bundle: &Bundle, type_url: &str, value: Vec<u8>) -> Result<Answer<u32>> {
    let mut request = create_request(bundle)?;
    let mut any = Any::new();
    (any.type_url, any.value) = (type_url.to_owned(), value);
    request.options = MessageField::some(any);
    Ok(shim.create(request).map(|answer| answer.pid))
}

/// The same with options in TOML, as CRI sends them.
pub fn create_with_toml(shim: &Shim, bundle: &Bundle, text: &str) -> Result<Answer<u32>> {
    // `config_body` is field 3, bytes.
    create_as(shim, bundle, "runtimeoptions.v1.Options", [&[0x1a, u8::try_from(text.len())?], text.as_bytes()].concat())
}

/// Runs the bundle's program to its end and deletes it.
pub fn ran(hand: &Hand, shim: &Shim, bundle: &Bundle) -> Result<Ran> {
    let file = |stream: &str| hand.dir().join(format!("{}.{stream}", bundle.id.rsplit('x').next().unwrap_or_default()));
    let (stdout, stderr) = (file("out"), file("err"));
    let mut request = create_request(bundle)?;
    for (path, field) in [(&stdout, &mut request.stdout), (&stderr, &mut request.stderr)] {
        fs::write(path, "")?;
        *field = path.display().to_string();
    }
    shim.create(request)?;
    shim.start(&bundle.id, "")?;
    let status = shim.wait(&bundle.id, "")?.exit_status;
    shim.delete(&bundle.id, "")?;
    let text = |path: &Path| Ok::<_, std::io::Error>(String::from_utf8_lossy(&fs::read(path)?).into_owned());
    let ran = Ran { status, stdout: text(&stdout)?, stderr: text(&stderr)? };
    fs::remove_file(stdout)?;
    fs::remove_file(stderr)?;
    Ok(ran)
}

/// A shim with one running container of `args`.
pub fn running(hand: &mut Hand, args: &[&str]) -> Result<(Bundle, Shim)> {
    let bundle = hand.bundle("a", args)?;
    let shim = hand.shim(&bundle)?;
    shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    Ok((bundle, shim))
}

/// A shim whose `start` is another command around containerd's, or has more to it.
pub fn shim_by(hand: &Hand, bundle: &Bundle, change: impl FnOnce(Command) -> Command) -> Result<Shim> {
    hand.launch(|launch| {
        let input = hand.dir().join("start");
        fs::write(&input, launch.stdin(&bundle.id)?)?;
        let mut command = change(launch.command(&bundle.dir, &bundle.id, &[], "start")?);
        command::output(command.stdin(fs::File::open(input)?))?;
        let address = fs::read_to_string(bundle.dir.join("address"))?;
        Shim::connect(address.trim(), if launch.protocol == Protocol::V23 { 3 } else { 2 })
    })
}

/// `program` with `arguments`, and with the whole of another command after them.
pub fn around(program: &str, arguments: &[&str], inner: &Command) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).arg(inner.get_program()).args(inner.get_args()).process_group(0);
    if let Some(directory) = inner.get_current_dir() {
        command.current_dir(directory);
    }
    command.env_clear().envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
    command
}

/// Puts a tmpfs over `/sys/fs` with the cgroups as they are and a tree of the test's own.
const RESCTRL: &str = "set -e; mkdir -p $0/cgroup; mount --rbind /sys/fs/cgroup $0/cgroup; mount -t tmpfs none /sys/fs; \
                       mkdir /sys/fs/cgroup /sys/fs/resctrl; mount --rbind $0/cgroup /sys/fs/cgroup; umount -l $0/cgroup; \
                       mount --bind $0/resctrl /sys/fs/resctrl; exec \"$@\"";

/// A command in a mount namespace where the directory `resctrl` of `data` stands for resctrl, which few machines have.
pub fn with_resctrl(data: &Path, command: &Command) -> Command {
    around("unshare", &["--mount", "--propagation", "private", "/bin/sh", "-c", RESCTRL, &data.display().to_string()], command)
}

/// Kills a container, deletes it and asks the shim to go.
pub fn finish(shim: &Shim, bundle: &Bundle) -> Result<()> {
    end(shim, bundle)?;
    shim.shutdown(&bundle.id)
}

/// Kills a container if it lives, and deletes it.
pub fn end(shim: &Shim, bundle: &Bundle) -> Result<()> {
    if shim.state(&bundle.id, "")?.status.value() != STOPPED {
        match shim.kill(&bundle.id, "", 9) {
            // It has ended of itself meanwhile.
            Err(status) if status.code == Code::NOT_FOUND => {}
            answer => drop(answer?),
        }
        shim.wait(&bundle.id, "")?;
    }
    shim.delete(&bundle.id, "")?;
    Ok(())
}

/// `Status` of `api/types/task/task.proto`.
pub const CREATED: i32 = 1;
/// The same.
pub const RUNNING: i32 = 2;
/// The same.
pub const STOPPED: i32 = 3;
/// The same.
pub const PAUSED: i32 = 4;

/// Runs a process in a container to its end and deletes it; answers its exit status.
pub fn exec_ran(shim: &Shim, bundle: &Bundle, exec: &str, spec: &Value) -> Result<u32> {
    shim.exec_spec(&bundle.id, exec, spec)?;
    shim.start(&bundle.id, exec)?;
    let status = shim.wait(&bundle.id, exec)?.exit_status;
    ensure_eq!(shim.delete(&bundle.id, exec)?.exit_status, status, "status of Delete and Wait");
    Ok(status)
}

impl Shim {
    /// Exec of a process without streams.
    pub fn exec_spec(&self, id: &str, exec: &str, spec: &Value) -> Answer<Empty> {
        self.exec_process(exec_request(id, exec, spec))
    }

    /// Kill of all processes.
    pub fn kill_all(&self, id: &str, signal: u32) -> Answer<Empty> {
        let mut request = KillRequest::new();
        (request.id, request.signal, request.all) = (id.to_owned(), signal, true);
        self.kill_process(request)
    }

    /// Update with `linux.resources`.
    pub fn update_to(&self, id: &str, resources: &Value) -> Answer<Empty> {
        let mut request = UpdateTaskRequest::new();
        request.id = id.to_owned();
        request.resources =
            MessageField::some(json_any("types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", resources.to_string()));
        self.update(request)
    }

    /// ResizePty.
    pub fn resize(&self, id: &str, exec: &str, width: u32, height: u32) -> Answer<Empty> {
        let mut request = ResizePtyRequest::new();
        (request.id, request.exec_id, request.width, request.height) = (id.to_owned(), exec.to_owned(), width, height);
        self.resize_pty(request)
    }

    /// CloseIO of the input.
    pub fn close_stdin(&self, id: &str, exec: &str) -> Answer<Empty> {
        let mut request = CloseIORequest::new();
        (request.id, request.exec_id, request.stdin) = (id.to_owned(), exec.to_owned(), true);
        self.close_io(request)
    }

    /// Pids with their details.
    pub fn processes(&self, id: &str) -> Answer<Vec<ProcessInfo>> {
        let mut request = PidsRequest::new();
        request.id = id.to_owned();
        self.pids_of(request).map(|answer| answer.processes)
    }

    /// The same connection, with another limit for its calls.
    pub fn limited(&self, limit: Duration) -> Shim {
        let mut shim = self.clone();
        shim.limit = limit;
        shim
    }
}

/// The request of [`Shim::exec_spec`].
pub fn exec_request(id: &str, exec: &str, spec: &Value) -> ExecProcessRequest {
    let mut request = ExecProcessRequest::new();
    (request.id, request.exec_id) = (id.to_owned(), exec.to_owned());
    request.spec = MessageField::some(json_any("types.containerd.io/opencontainers/runtime-spec/1/Process", spec.to_string()));
    request
}

fn json_any(type_url: &str, value: String) -> Any {
    let mut any = Any::new();
    any.type_url = type_url.to_owned();
    any.value = value.into_bytes();
    any
}

/// Expects a call to end by its limit, at the server or, where that is late, here.
pub fn timed_out<T>(answer: Answer<T>) -> Result<()> {
    match answer {
        Ok(_) => fail!("answered in time"),
        Err(status) if status.code == Code::DEADLINE_EXCEEDED || status.message.contains("timed out waiting") => Ok(()),
        Err(status) => fail!("{status}, instead of a timeout"),
    }
}

/// Fails if a container that could not be created left anything: a process, a cgroup, a mount, or a file in its bundle.
pub fn expect_nothing_of(bundle: &Bundle, files: &[String]) -> Result<()> {
    let scope = ledger::Scope { words: vec![bundle.id.clone()], ..ledger::Scope::default() };
    let left: Vec<String> = ledger::read(&scope).into_iter().filter(|line| !line.contains("containerd-shim")).collect();
    if !left.is_empty() {
        fail!("{} left {}", bundle.id, left.join("; "));
    }
    ensure_eq!(files_of(bundle)?, files, "files in the bundle");
    Ok(())
}

/// The names in a bundle, and below its root.
pub fn files_of(bundle: &Bundle) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for dir in [bundle.dir.clone(), bundle.dir.join("rootfs")] {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        names.extend(entries.flatten().map(|entry| entry.path().display().to_string()));
    }
    names.sort();
    Ok(names)
}

/// The value of a line `key:\tvalue` of `/proc/<pid>/status`, or of a text like it.
pub fn status_line<'a>(text: &'a str, key: &str) -> Result<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.map(str::trim).context(|| format!("no {key} in {text:?}"))
}

/// The daemon of a case's shim: the process with the ttrpc socket, which Connect tells.
pub fn daemon(shim: &Shim, id: &str) -> Result<u32> {
    Ok(shim.connected(id)?.shim_pid)
}

/// Waits until a process is gone or a zombie.
pub fn expect_dead(pid: u32, limit: Duration) -> Result<()> {
    let dead = crate::wait::until(limit, || proc::process(pid).is_none_or(|process| process.state == 'Z').then_some(()));
    dead.context(|| format!("process {pid} still lives after {limit:?}"))
}
