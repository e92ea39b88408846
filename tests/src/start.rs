//! The shim's `start`, `delete` and `-info`, called as each generation of containerd calls them.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use proto::api::DeleteResponse;
use proto::bootstrap_api::{BootstrapParams, BootstrapResult, Extension};
use proto::protobuf::{Message, well_known_types::any::Any};

use crate::command::{self, wait_for};
use crate::containerd::Version;
use crate::rpc::Shim;
use crate::{Context, Result, ensure, ensure_eq, fail, paths};

/// How containerd talks to `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// 1.6: the event address in the environment, a bare address as the answer.
    V16,
    /// 1.7: options as an Any on stdin, a bare address or JSON as the answer, and version 2 at most.
    V17,
    /// 2.0 to 2.2: the same, but version 3 is allowed.
    V20,
    /// 2.3 and later: BootstrapParams on stdin, BootstrapResult as the answer.
    V23,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 4] = [Protocol::V16, Protocol::V17, Protocol::V20, Protocol::V23];

    /// Those that the runtime under test can be asked by: Debian's shims end before 2.3.
    pub fn known() -> &'static [Protocol] {
        if paths::is_ours() { &Protocol::ALL } else { &Protocol::ALL[..3] }
    }

    /// What a containerd of this generation speaks.
    pub fn of(version: Version) -> Protocol {
        match version {
            Version::V16 => Protocol::V16,
            Version::V17 => Protocol::V17,
            Version::V2 => Protocol::V20,
        }
    }

    /// The release whose containerd, or whose shim when a peer is under test, speaks it.
    pub fn suite(self) -> &'static str {
        match self {
            Protocol::V16 => "bookworm",
            Protocol::V17 => "trixie",
            Protocol::V20 | Protocol::V23 => "sid",
        }
    }
}

/// What a shim needs from its containerd.
pub struct Launch<'a> {
    /// The shim binary.
    pub binary: PathBuf,
    /// The containerd that is played.
    pub protocol: Protocol,
    /// The event service.
    pub ttrpc_address: &'a Path,
    /// The address that is hashed into the socket's name; nobody serves it.
    pub grpc_address: &'a Path,
    /// Runtime options of the container.
    pub options: Option<Any>,
    /// Where 2.3 and later want the shim's socket.
    pub socket_dir: Option<PathBuf>,
}

/// The answer of `start`.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// `unix:///...`
    pub address: String,
    /// The version of the task API.
    pub version: i32,
}

/// Time for `start`, `delete` and `-info`.
const LIMIT: Duration = Duration::from_secs(10);

impl Launch<'_> {
    /// The command of an action with containerd's flags and environment, in a process group of its own.
    pub fn command(&self, bundle: &Path, id: &str, flags: &[&str], action: &str) -> Result<Command> {
        let suite = self.protocol.suite();
        let containerd = paths::cache(suite)?.join("usr/bin/containerd");
        let mut command = Command::new(&self.binary);
        command.args(["-namespace", paths::tag(), "-address"]).arg(self.grpc_address);
        command.arg("-publish-binary").arg(containerd).args(["-id", id]).args(flags).arg(action);
        command.current_dir(bundle).process_group(0).env_clear().env("PATH", paths::search_path(suite)?).env("GOMAXPROCS", "2");
        command.env("TTRPC_ADDRESS", self.ttrpc_address);
        if self.protocol != Protocol::V16 {
            command.env("GRPC_ADDRESS", self.grpc_address).env("NAMESPACE", paths::tag()).env("MAX_SHIM_VERSION", "2");
        }
        Ok(command)
    }

    /// Runs `start` and reads its answer; stdout and stderr are one pipe, as containerd's CombinedOutput has them.
    pub fn start(&self, bundle: &Path, id: &str) -> Result<Answer> {
        let (code, bytes) = self.combined(self.command(bundle, id, &[], "start")?, &self.stdin(id)?)?;
        ensure!(code == 0, "start of {id}: exit code {code}, {:?}", String::from_utf8_lossy(&bytes));
        self.parse(&bytes)
    }

    /// Runs `start`, expects it to fail, and answers what it said.
    pub fn start_refused(&self, bundle: &Path, id: &str) -> Result<String> {
        let (code, bytes) = self.combined(self.command(bundle, id, &[], "start")?, &self.stdin(id)?)?;
        ensure!(code != 0, "start of {id} succeeded: {:?}", String::from_utf8_lossy(&bytes));
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Starts a shim and connects to it.
    pub fn connect(&self, bundle: &Path, id: &str) -> Result<Shim> {
        let answer = self.start(bundle, id)?;
        Shim::connect(&answer.address, answer.version)
    }

    /// Runs `delete`.
    pub fn delete(&self, bundle: &Path, id: &str) -> Result<DeleteResponse> {
        let path = bundle.display().to_string();
        let mut command = self.command(bundle, id, &["-bundle", &path], "delete")?;
        let (reader, writer) = std::io::pipe()?;
        let mut child = command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).spawn()?;
        drop(command);
        let ended = wait_for(&mut child, LIMIT)?.context(|| format!("delete of {id} is not done after {LIMIT:?}"))?;
        let mut said = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            stderr.read_to_string(&mut said)?;
        }
        ensure!(ended.success(), "delete of {id}: {ended}, {said:?}");
        Ok(DeleteResponse::parse_from_bytes(&read_all(reader)?)?)
    }

    /// What this generation writes to the stdin of `start`.
    pub fn stdin(&self, id: &str) -> Result<Vec<u8>> {
        match (self.protocol, &self.options) {
            (Protocol::V23, options) => {
                let mut params = BootstrapParams::new();
                params.instance_id = id.to_owned();
                params.namespace = paths::tag().to_owned();
                params.containerd_version = "2.3.4".to_owned();
                params.containerd_ttrpc_address = self.ttrpc_address.display().to_string();
                params.containerd_grpc_address = self.grpc_address.display().to_string();
                params.containerd_binary = "/usr/bin/containerd".to_owned();
                params.socket_dir = self.socket_dir.as_ref().map(|dir| dir.display().to_string());
                if let Some(options) = options {
                    let mut extension = Extension::new();
                    extension.value = Some(options.clone()).into();
                    params.extensions.push(extension);
                }
                Ok(params.write_to_bytes()?)
            }
            (_, None) => Ok(Vec::new()),
            (_, Some(options)) => Ok(options.write_to_bytes()?),
        }
    }

    /// Both streams up to their end, which comes only when no process holds them any more: a daemon that does would hang containerd.
    fn combined(&self, mut command: Command, stdin: &[u8]) -> Result<(i32, Vec<u8>)> {
        let (reader, writer) = std::io::pipe()?;
        command.stdout(writer.try_clone()?).stderr(writer);
        command.stdin(if stdin.is_empty() { Stdio::null() } else { Stdio::piped() });
        let mut child = command.spawn().context(|| self.binary.display().to_string())?;
        drop(command);
        if let Some(mut pipe) = child.stdin.take() {
            // A shim that fails early need not read.
            let _ = pipe.write_all(stdin);
        }
        let Some(status) = wait_for(&mut child, LIMIT)? else {
            child.kill()?;
            child.wait()?;
            fail!("start is not done after {LIMIT:?}");
        };
        Ok((command::code(status), read_all(reader)?))
    }

    fn parse(&self, bytes: &[u8]) -> Result<Answer> {
        let text = String::from_utf8_lossy(bytes).trim().to_owned();
        ensure!(!bytes.is_empty(), "start answered nothing");
        if self.protocol == Protocol::V23
            && let Ok(result) = BootstrapResult::parse_from_bytes(bytes)
        {
            ensure_eq!(result.protocol, "ttrpc", "protocol of {result:?}");
            return Ok(Answer { address: result.address, version: result.version });
        }
        if self.protocol != Protocol::V16
            && let Ok(json) = serde_json::from_str::<serde_json::Value>(&text)
        {
            let version = json["version"].as_i64().and_then(|v| i32::try_from(v).ok()).unwrap_or_default();
            ensure_eq!(json["protocol"], "ttrpc", "protocol of {text}");
            ensure!(version == 2 || self.protocol != Protocol::V17, "1.7 refuses version {version}");
            return Ok(Answer { address: json["address"].as_str().unwrap_or_default().to_owned(), version });
        }
        ensure!(text.starts_with("unix:///") && !text.contains(char::is_whitespace), "start answered {text:?}");
        Ok(Answer { address: text, version: 2 })
    }
}

/// Reads to the end of the pipe within the limit.
fn read_all(mut from: std::io::PipeReader) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut part = [0; 4096];
    loop {
        ensure!(
            command::readable(&from, LIMIT)?,
            "a process left behind keeps the shim's output open; it said {:?}",
            String::from_utf8_lossy(&all)
        );
        match from.read(&mut part)? {
            0 => return Ok(all),
            n => all.extend_from_slice(&part[..n]),
        }
    }
}

/// Makes the log fifo of a bundle, which containerd opens for reading before `start`; the reader lives as long as the answer.
pub fn log_fifo(bundle: &Path) -> Result<fs::File> {
    let path = bundle.join("log");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU)?;
    use std::os::unix::fs::OpenOptionsExt;
    Ok(fs::File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?)
}
