//! What containerd tells the shim at `start`, and how it wants to be answered.
//!
//! Since 2.3 containerd writes a protobuf `BootstrapParams` to the shim's standard input and reads a `BootstrapResult`; before, it
//! wrote the runtime's options as a protobuf `Any`, or nothing, and read an address. The two messages parse as each other, so they
//! are told apart by what they say (containerd's `core/runtime/v2/binary.go` and `pkg/shim`).

use std::io::{IsTerminal, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;

use containerd_shim::Flags;
use containerd_shim::bootstrap::{LogLevel, nearest_log_level};
use log::LevelFilter;
use proto::bootstrap_api::{BootstrapParams, BootstrapResult};
use proto::protobuf::Message;
use proto::protobuf::well_known_types::any::Any;
use runtime_core::error::{Context, Error, Result};
use runtime_core::net::node;

use crate::group::Grouping;

/// The most that is read from standard input, as in containerd.
const MAX_INPUT_BYTES: u64 = 10 << 20;

/// Where sockets are put unless containerd says otherwise (`defaultSocketDir` in containerd's `core/runtime/v2/shim_unix.go`).
const SOCKET_DIR: &str = "/run/containerd/s";

/// The operator's wish for the task API that is announced: `2` (the default) or `3`.
const TASK_API: &str = "CORACLE_TASK_API";

/// The operator's wish for who shares a daemon: `pod` (the default) or `node`.
const GROUPING: &str = "CORACLE_GROUPING";

/// The operator's wish for who makes cgroups, `cgroupfs` or `systemd`: containerd does not hand the option for it to every runtime.
const CGROUP_DRIVER: &str = "CORACLE_CGROUP_DRIVER";

/// Where the node's networks are said, if not in [`node::PATH`].
const NETWORK_FILE: &str = "CORACLE_NETWORK_FILE";

/// The environment of `start`, as far as the contract names it.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `TTRPC_ADDRESS`: where events go.
    pub ttrpc_address: String,
    /// `GRPC_ADDRESS`: part of the socket's name, when `-address` is not given.
    pub grpc_address: String,
    /// `CORACLE_TASK_API`.
    pub task_api: String,
    /// `CORACLE_GROUPING`.
    pub grouping: String,
    /// `CORACLE_CGROUP_DRIVER`.
    pub cgroup_driver: String,
    /// `CORACLE_NETWORK_FILE`.
    pub network_file: String,
    /// `SCHED_CORE` is set and not empty.
    pub sched_core: bool,
}

impl Environment {
    /// The environment of this process.
    pub fn read() -> Self {
        let get = |name| std::env::var(name).unwrap_or_default();
        Self {
            ttrpc_address: get("TTRPC_ADDRESS"),
            grpc_address: get("GRPC_ADDRESS"),
            task_api: get(TASK_API),
            grouping: get(GROUPING),
            cgroup_driver: get(CGROUP_DRIVER),
            network_file: get(NETWORK_FILE),
            sched_core: std::env::var_os("SCHED_CORE").is_some_and(|value| !value.is_empty()),
        }
    }
}

/// Where the node's networks are said, for this process's environment.
pub fn network_file() -> PathBuf {
    named_or_default(&std::env::var(NETWORK_FILE).unwrap_or_default())
}

fn named_or_default(file: &str) -> PathBuf {
    PathBuf::from(non_empty(file).unwrap_or(node::PATH))
}

/// What standard input held.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// containerd 2.3 or later.
    Params(BootstrapParams),
    /// The runtime's options, from an earlier containerd.
    Options(Any),
    /// Nothing: an earlier containerd without options.
    Nothing,
}

/// How the answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A protobuf `BootstrapResult`.
    Bootstrap,
    /// The bare address, which every containerd reads as version 2; JSON when version 3 was asked for.
    Legacy,
}

/// The version of the task API that containerd is told to speak. Both are served on the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskApi {
    /// `start`, `delete` and `Shutdown` per container: a killed daemon is cleaned up for each.
    V2,
    /// One shim per sandbox: needed for `sandboxer = "shim"` and for streaming IO.
    V3,
}

impl TaskApi {
    fn number(self) -> i32 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }
}

/// Everything that `start` was told, whoever told it.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    /// The container, or the sandbox.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's gRPC socket.
    pub grpc_address: String,
    /// containerd's ttrpc socket, where events go; empty when unknown.
    pub ttrpc_address: String,
    /// containerd's version, where it says so.
    pub containerd_version: String,
    /// What is worth a line in the log.
    pub log_level: LevelFilter,
    /// The directory of the shim's socket.
    pub socket_dir: PathBuf,
    /// Runtime options and whatever else containerd sent along.
    pub extensions: Vec<Any>,
    /// The task API to announce.
    pub task_api: TaskApi,
    /// Who shares the daemon, unless the runtime's options say otherwise.
    pub grouping: Grouping,
    /// systemd makes cgroups, whatever the runtime's options say, or does not, unless they say so.
    pub systemd_cgroup: Option<bool>,
    /// The node's networks, and what annotations may ask for (`runtime_core::net::node`).
    pub network_file: PathBuf,
    /// The form of the answer.
    pub protocol: Protocol,
    /// Whether the shim and its containers get a core scheduling cookie of their own.
    pub sched_core: bool,
}

/// Reads standard input to its end; a terminal counts as empty.
///
/// # Errors
/// When reading fails, or there are more than 10 MiB.
pub fn read_stdin() -> Result<Vec<u8>> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Ok(Vec::new());
    }
    let mut input = Vec::new();
    // A copy of the descriptor: what std reads through has a buffer that would stay with the daemon.
    let stdin = std::fs::File::from(stdin.as_fd().try_clone_to_owned().context(|| "copy standard input")?);
    stdin.take(MAX_INPUT_BYTES + 1).read_to_end(&mut input).context(|| "read standard input")?;
    if input.len() as u64 > MAX_INPUT_BYTES {
        return Err(Error::invalid("read standard input: more than 10 MiB"));
    }
    Ok(input)
}

/// Tells the two protocols apart.
///
/// `BootstrapParams{1: instance_id, 2: namespace, …}` and `Any{1: type_url, 2: value}` overlap on the wire. A message that names this
/// shim's id and namespace is the first; one with nothing but the two shared fields is the second.
///
/// # Errors
/// `InvalidArgument` for parameters that name another shim, and for bytes that are neither message.
pub fn classify(input: &[u8], id: &str, namespace: &str) -> Result<Input> {
    if input.is_empty() {
        return Ok(Input::Nothing);
    }
    if let Ok(params) = BootstrapParams::parse_from_bytes(input) {
        if params.instance_id == id && params.namespace == namespace {
            return Ok(Input::Params(params));
        }
        let shared =
            BootstrapParams { instance_id: params.instance_id.clone(), namespace: params.namespace.clone(), ..BootstrapParams::default() };
        if params != shared {
            let (theirs, ours) = (format!("{}/{}", params.namespace, params.instance_id), format!("{namespace}/{id}"));
            return Err(Error::invalid(format!("bootstrap parameters are for {theirs:?}, the command line says {ours:?}")));
        }
    }
    match Any::parse_from_bytes(input) {
        Ok(any) if any.special_fields.unknown_fields().iter().next().is_none() && !any.type_url.is_empty() => Ok(Input::Options(any)),
        _ => Err(Error::invalid("standard input is neither BootstrapParams nor an Any with options")),
    }
}

fn by_systemd(driver: &str) -> Result<Option<bool>> {
    match driver {
        "" => Ok(None),
        "cgroupfs" => Ok(Some(false)),
        "systemd" => Ok(Some(true)),
        _ => Err(Error::invalid(format!("{CGROUP_DRIVER}={driver:?}: want cgroupfs or systemd"))),
    }
}

impl Bootstrap {
    /// Puts together what came by `flags`, standard input and environment.
    ///
    /// # Errors
    /// `InvalidArgument` for an unusable id or namespace and for what [`classify`] refuses.
    pub fn resolve(flags: &Flags, input: &[u8], environment: &Environment) -> Result<Self> {
        check_identifier("-id", &flags.id)?;
        check_identifier("-namespace", &flags.namespace)?;
        let bootstrap = match classify(input, &flags.id, &flags.namespace)? {
            Input::Params(params) => Self::from_params(params, flags, environment)?,
            Input::Options(any) => Self::from_flags(flags, environment, vec![any])?,
            Input::Nothing => Self::from_flags(flags, environment, Vec::new())?,
        };
        Ok(bootstrap)
    }

    fn from_flags(flags: &Flags, environment: &Environment, extensions: Vec<Any>) -> Result<Self> {
        Ok(Self {
            id: flags.id.clone(),
            namespace: flags.namespace.clone(),
            grpc_address: non_empty(&flags.address).unwrap_or(&environment.grpc_address).to_owned(),
            ttrpc_address: environment.ttrpc_address.clone(),
            containerd_version: String::new(),
            log_level: if flags.debug { LevelFilter::Debug } else { LevelFilter::Info },
            socket_dir: PathBuf::from(SOCKET_DIR),
            extensions,
            task_api: task_api(&environment.task_api)?,
            grouping: Grouping::parse(GROUPING, &environment.grouping)?,
            systemd_cgroup: by_systemd(&environment.cgroup_driver)?,
            network_file: named_or_default(&environment.network_file),
            protocol: Protocol::Legacy,
            sched_core: environment.sched_core,
        })
    }

    fn from_params(params: BootstrapParams, flags: &Flags, environment: &Environment) -> Result<Self> {
        let legacy = Self::from_flags(flags, environment, Vec::new())?;
        let level = level_filter(nearest_log_level(params.log_level.value()));
        Ok(Self {
            grpc_address: non_empty(&params.containerd_grpc_address).unwrap_or(&legacy.grpc_address).to_owned(),
            ttrpc_address: non_empty(&params.containerd_ttrpc_address).unwrap_or(&legacy.ttrpc_address).to_owned(),
            log_level: if flags.debug { level.max(LevelFilter::Debug) } else { level },
            socket_dir: params.socket_dir.filter(|dir| !dir.is_empty()).map_or(legacy.socket_dir, PathBuf::from),
            extensions: params.extensions.into_iter().filter_map(|extension| extension.value.into_option()).collect(),
            containerd_version: params.containerd_version,
            protocol: Protocol::Bootstrap,
            ..legacy
        })
    }

    /// What goes to standard output once the shim answers at `address`.
    ///
    /// # Errors
    /// When the message cannot be encoded.
    pub fn reply(&self, address: &str) -> Result<Vec<u8>> {
        match (self.protocol, self.task_api) {
            // containerd 2.3.0-2.3.3 trims white space off the message: it must begin and end with other bytes. It begins with the
            // tag of `version` (0x08) and ends with the last letter of the protocol.
            (Protocol::Bootstrap, api) => {
                let result = BootstrapResult {
                    version: api.number(),
                    address: address.to_owned(),
                    protocol: "ttrpc".to_owned(),
                    ..BootstrapResult::default()
                };
                result.write_to_bytes().map_err(|error| Error::invalid(format!("encode BootstrapResult: {error}")))
            }
            (Protocol::Legacy, TaskApi::V2) => Ok(address.as_bytes().to_vec()),
            (Protocol::Legacy, api) => {
                Ok(serde_json::json!({ "version": api.number(), "address": address, "protocol": "ttrpc" }).to_string().into_bytes())
            }
        }
    }
}

/// An identifier becomes part of file names, log lines and cgroup names; containerd's own rule (`pkg/identifiers`) is stricter.
pub(crate) fn check_identifier(flag: &str, value: &str) -> Result<()> {
    if value.is_empty() {
        return Err(Error::invalid(format!("{flag} is missing")));
    }
    if value == "." || value == ".." || value.len() > 255 || value.chars().any(|c| c == '/' || c.is_control()) {
        return Err(Error::invalid(format!("{flag} {value:?} is not an identifier")));
    }
    Ok(())
}

fn task_api(wish: &str) -> Result<TaskApi> {
    match wish {
        "" | "2" => Ok(TaskApi::V2),
        "3" => Ok(TaskApi::V3),
        other => Err(Error::invalid(format!("{TASK_API}={other:?}: want 2 or 3"))),
    }
}

fn non_empty(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn level_filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::LOG_LEVEL_TRACE => LevelFilter::Trace,
        LogLevel::LOG_LEVEL_DEBUG => LevelFilter::Debug,
        LogLevel::LOG_LEVEL_INFO => LevelFilter::Info,
        LogLevel::LOG_LEVEL_WARN => LevelFilter::Warn,
        LogLevel::LOG_LEVEL_ERROR | LogLevel::LOG_LEVEL_FATAL | LogLevel::LOG_LEVEL_PANIC => LevelFilter::Error,
    }
}

#[cfg(test)]
mod tests;
