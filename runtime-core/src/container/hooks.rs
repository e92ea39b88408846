//! Hooks: which, in what order, and what they read on standard input (OCI config.md, "POSIX-platform Hooks"; runtime.md, "Lifecycle").

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::{ContainerProcessStateBuilder, ContainerState, Hook, Hooks, SECCOMP_FD_NAME, State, StateBuilder};

use crate::error::{Error, ErrorKind, Result};
use crate::sys::process::Exited;

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Deprecated: with the namespaces made, before the root is pivoted, in the runtime's namespaces.
    Prestart,
    /// The same.
    CreateRuntime,
    /// In the container's namespaces, before the root is pivoted.
    CreateContainer,
    /// In the container, as its first process would, before the program.
    StartContainer,
    /// After the program was started, in the runtime's namespaces.
    Poststart,
    /// After the container was deleted, in the runtime's namespaces; failures are only warned about.
    Poststop,
}

impl Point {
    /// The field's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// The status that the hook is told.
    fn status(self) -> ContainerState {
        match self {
            Self::Prestart | Self::CreateRuntime | Self::CreateContainer => ContainerState::Creating,
            Self::StartContainer => ContainerState::Created,
            Self::Poststart => ContainerState::Running,
            Self::Poststop => ContainerState::Stopped,
        }
    }

    /// The hooks of this point, in order.
    pub fn of(self, hooks: Option<&Hooks>) -> &[Hook] {
        #[allow(deprecated, reason = "prestart hooks are deprecated, and in use")]
        let list = hooks.and_then(|hooks| match self {
            Self::Prestart => hooks.prestart().as_ref(),
            Self::CreateRuntime => hooks.create_runtime().as_ref(),
            Self::CreateContainer => hooks.create_container().as_ref(),
            Self::StartContainer => hooks.start_container().as_ref(),
            Self::Poststart => hooks.poststart().as_ref(),
            Self::Poststop => hooks.poststop().as_ref(),
        });
        list.map_or(&[], Vec::as_slice)
    }
}

/// The state that a hook reads (OCI runtime.md, "State").
///
/// # Errors
/// [`ErrorKind::Internal`] if it cannot be encoded.
pub fn state(point: Point, id: &str, pid: i32, bundle: &Path, version: &str, annotations: &HashMap<String, String>) -> Result<Vec<u8>> {
    let pid = Some(pid).filter(|_| point != Point::Poststop);
    let state = described(point.status(), id, pid, bundle, version, annotations)?;
    serde_json::to_vec(&state).map_err(|error| Error::new(ErrorKind::Internal, format!("state for hooks: {error}")))
}

/// The number that a container's first process has in its own pid namespace (proc_pid_status(5), `NSpid`): hooks that run there are told that one.
pub fn pid_inside(pid: i32) -> i32 {
    let status = std::fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(b"NSpid:"));
    let last = line.and_then(|numbers| numbers.rsplit(|b| b.is_ascii_whitespace()).find(|number| !number.is_empty()));
    last.and_then(|number| std::str::from_utf8(number).ok()?.parse().ok()).unwrap_or(pid)
}

/// Which hook it is that an error is about, as runc says it.
pub fn which(point: Point, index: usize, hook: &Hook) -> String {
    format!("error running {} hook #{index}: {:?}", point.name(), hook.path())
}

/// How the hooks of a point end: after a poststop hook that failed the remaining ones run (OCI runtime.md, "Lifecycle"), else none.
#[derive(Debug)]
pub struct Ending {
    point: Point,
    failed: Option<Error>,
}

impl Ending {
    /// Of this point, before the first one.
    pub fn of(point: Point) -> Self {
        Self { point, failed: None }
    }

    /// Takes note of how one has ended.
    ///
    /// # Errors
    /// It has failed, and so no other may run.
    pub fn note(&mut self, done: Result<()>) -> Result<()> {
        match (done, self.failed.take()) {
            (Err(error), _) if self.point != Point::Poststop => return Err(error),
            (Err(error), Some(earlier)) => self.failed = Some(error.context(format!("{earlier}; then"))),
            (done, earlier) => self.failed = earlier.or(done.err()),
        }
        Ok(())
    }

    /// After the last one.
    ///
    /// # Errors
    /// All that have failed.
    pub fn all(self) -> Result<()> {
        self.failed.map_or(Ok(()), Err)
    }
}

/// What the end of a hook comes to, which has complained of something meanwhile.
///
/// # Errors
/// It did not end with the status 0.
pub fn outcome(exited: Exited, complaints: &str) -> Result<()> {
    match (exited.status, complaints.trim()) {
        (0, _) => Ok(()),
        (_, "") => Err(Error::new(ErrorKind::Internal, exited.to_string())),
        (_, said) => Err(Error::new(ErrorKind::Internal, format!("{exited}: {said}"))),
    }
}

/// How long a hook may take; `None` has no end.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] unless it is above zero.
pub fn timeout(hook: &Hook) -> Result<Option<Duration>> {
    match hook.timeout() {
        None => Ok(None),
        Some(seconds @ 1..) => Ok(Some(Duration::from_secs(seconds.unsigned_abs()))),
        Some(seconds) => Err(Error::invalid(format!("timeout: {seconds} is not above zero"))),
    }
}

/// What a listener of a seccomp filter is told, with the filter's descriptor, of the process that has loaded it and its container (OCI
/// config-linux.md, "The Container Process State").
///
/// # Errors
/// [`ErrorKind::Internal`] if it cannot be encoded.
pub fn process_state(pid: i32, metadata: &str, state: State) -> Result<Vec<u8>> {
    let failed = |error: &dyn std::fmt::Display| Error::new(ErrorKind::Internal, format!("state for the seccomp listener: {error}"));
    let told = ContainerProcessStateBuilder::default()
        .version(state.version().clone())
        .fds(vec![SECCOMP_FD_NAME.to_owned()])
        .pid(pid)
        .metadata(metadata)
        .state(state)
        .build()
        .map_err(|error| failed(&error))?;
    serde_json::to_vec(&told).map_err(|error| failed(&error))
}

/// The state of a container (OCI runtime.md, "State").
///
/// # Errors
/// [`ErrorKind::Internal`] if it cannot be built.
pub fn described(
    status: ContainerState,
    id: &str,
    pid: Option<i32>,
    bundle: &Path,
    version: &str,
    annotations: &HashMap<String, String>,
) -> Result<State> {
    let mut builder = StateBuilder::default().version(version).id(id).status(status).bundle(bundle);
    if let Some(pid) = pid {
        builder = builder.pid(pid);
    }
    if !annotations.is_empty() {
        builder = builder.annotations(annotations.clone());
    }
    builder.build().map_err(|error| Error::new(ErrorKind::Internal, format!("state of {id}: {error}")))
}
