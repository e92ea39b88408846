//! Kill, delete, pause and resume.

use std::os::fd::AsFd;
use std::str::FromStr;
use std::time::Duration;

use nix::sys::signal::Signal;
use runtime_core::compile::Joined;
use runtime_core::container::hooks::Point;
use runtime_core::container::record::Record;
use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use runtime_core::rdt::Groups;
use runtime_core::sys::process::send_signal;
use rustix::io::Errno;

use crate::Runtime;
use crate::cgroups;
use crate::hooks::Hooks;
use crate::store::{Entry, State, Status, refused};

const FREEZE: Duration = Duration::from_secs(10);
const SIGNAL_MAX: i32 = 64;

/// The number of a signal that is given by number or name, with or without `SIG`.
///
/// # Errors
/// In runc's words.
pub fn signal(text: &str) -> Result<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=SIGNAL_MAX).contains(&number) { Ok(number) } else { Err(unknown(text)) };
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    Signal::from_str(&format!("SIG{name}")).map(|signal| signal as i32).map_err(|_| unknown(text))
}

fn unknown(text: &str) -> Error {
    Error::invalid(format!("unknown signal {text:?}"))
}

/// Sends a signal to the first process, or to all.
///
/// # Errors
/// It has ended.
pub fn kill(runtime: &Runtime<'_>, id: &str, signal: i32, all: bool) -> Result<()> {
    let (entry, state) = runtime.store.look(id)?;
    let stopped = || refused("container not running");
    let first = state.record.init.map_or(Ok(None), |init| init.open())?;
    if !all && let Some(first) = &first {
        match send_signal(first.as_fd(), signal) {
            Err(Errno::SRCH) => return Err(stopped()),
            result => result.context(|| format!("send signal {signal} to process {}", state.pid()))?,
        }
    }
    // Where the first process is no init of a pid namespace, nothing else ends the processes that it leaves or has left.
    let whole = all || signal == libc::SIGKILL && !Joined::of(&entry.spec(state.crun_annotations)?.linux)?.has_private_pid();
    if !whole && first.is_none() {
        return Err(stopped());
    }
    let (cgroup, found) = state.record.find_cgroup(&runtime.host);
    match (whole, signal) {
        (true, libc::SIGKILL) => cgroup.kill().and(found),
        (true, _) => cgroup.signal(signal).and(found),
        // A frozen process of cgroup v1 does not even die.
        (false, libc::SIGKILL) => cgroup.thaw_all().and(found),
        (false, _) => Ok(()),
    }
}

/// Forgets a container; with `force`, one that runs is killed and a missing one is fine.
///
/// # Errors
/// It runs; something of it cannot be removed.
pub fn delete(runtime: &Runtime<'_>, id: &str, force: bool) -> Result<()> {
    let entry = match runtime.store.lock(id) {
        Err(error) if force && error.kind() == ErrorKind::NotFound => return Ok(()),
        result => result?,
    };
    let state = match runtime.store.look(id) {
        // Its `create` was killed before there was anything else.
        Err(error) if force && error.kind() == ErrorKind::NotFound => return entry.remove(),
        Err(error) if force => {
            runtime.log.warn(&format!("{error}, removing what is known of it"));
            return destroy_remains(runtime, &entry, id);
        }
        result => result?.1,
    };
    if !force {
        let status = state.status(&runtime.host)?;
        if !matches!(status, Status::Stopped | Status::Created) {
            return Err(refused(format!("cannot delete container {id} that is not stopped: {}", status.name())));
        }
    }
    destroy(runtime, &entry, &state)
}

/// Removes all that there is of a container, whatever it does.
///
/// # Errors
/// The first step that failed; what it has left can be tried again.
pub fn destroy(runtime: &Runtime<'_>, entry: &Entry, state: &State) -> Result<()> {
    cgroups::destroy(&runtime.host, &state.record)?;
    poststop(runtime, entry, state);
    entry.remove()
}

/// Runs the hooks of a container that is no more; their failures are only told.
pub fn poststop(runtime: &Runtime<'_>, entry: &Entry, state: &State) {
    if let Ok(spec) = entry.spec(state.crun_annotations)
        && let Err(error) = (Hooks { runtime, spec: &spec, state, filter: None }).run(Point::Poststop, None)
    {
        runtime.log.warn(&format!("{error}, ignoring"));
    }
}

/// The same for one whose state cannot be read: what it says of its cgroup, or what the configuration says of that.
fn destroy_remains(runtime: &Runtime<'_>, entry: &Entry, id: &str) -> Result<()> {
    let record = match entry.remains() {
        Some(record) => record,
        None => match entry.spec(false) {
            Ok(spec) => {
                let cgroup = cgroups::locate(runtime, spec.linux.cgroups_path.as_deref(), id)?;
                Record { resctrl: Groups::here(id, spec.linux.intel_rdt.as_ref()).of_container(), ..Record::new(id, Some(cgroup)) }
            }
            Err(error) => {
                runtime.log.warn(&format!("{error}, its cgroup is not known"));
                Record::new(id, None)
            }
        },
    };
    cgroups::destroy(&runtime.host, &record)?;
    entry.remove()
}

/// Freezes a container.
///
/// # Errors
/// It does not run.
pub fn pause(runtime: &Runtime<'_>, id: &str) -> Result<()> {
    let (_entry, state) = runtime.store.change(id)?;
    match state.status(&runtime.host)? {
        Status::Running | Status::Created => state.cgroup(&runtime.host)?.freeze(FREEZE).context(|| "pause"),
        _ => Err(refused("container not running")),
    }
}

/// Thaws a container.
///
/// # Errors
/// It is not frozen.
pub fn resume(runtime: &Runtime<'_>, id: &str) -> Result<()> {
    let (_entry, state) = runtime.store.change(id)?;
    match state.status(&runtime.host)? {
        Status::Paused => state.cgroup(&runtime.host)?.thaw().context(|| "resume"),
        _ => Err(refused("container not paused")),
    }
}
