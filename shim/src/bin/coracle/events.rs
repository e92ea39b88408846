//! Events: what a container uses, in runc's format, one JSON text a line.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use runtime_core::cgroup::{OOM_COUNTED, OomWatch, Trigger};
use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use runtime_core::rdt::Groups;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;

use crate::Runtime;
use crate::figures::{self, Figures};
use crate::launch::timespec;
use crate::log::print;
use crate::store::{Status, refused};

/// `coracle events`: once, or until the container has ended.
///
/// # Errors
/// It does not run.
pub fn events(runtime: &Runtime<'_>, id: &str, once: bool, interval: &str) -> Result<()> {
    let interval = duration(interval)?;
    let (entry, state) = runtime.store.look(id)?;
    if state.status(&runtime.host)? == Status::Stopped {
        return Err(refused(format!("container with id {id} is not running")));
    }
    let cgroup = state.cgroup(&runtime.host)?;
    // An update may have given it a class of its own.
    let class = entry.spec(state.crun_annotations)?.linux.intel_rdt.unwrap_or_default();
    let groups = Groups::here(id, Some(&class));
    let init = Pid::from_raw(state.pid()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let mut oom = if once { None } else { cgroup.oom_watch()? };
    loop {
        let stats = match cgroup.stats() {
            // It has ended, and was deleted.
            Err(error) if !once && error.kind() == ErrorKind::NotFound => return Ok(()),
            result => result?,
        };
        let figures = figures::of(&stats, cgroup.details()?, &groups);
        tell(&Event { kind: "stats", id, data: Some(figures) })?;
        let Some(init) = init.as_ref().filter(|_| !once) else { return Ok(()) };
        if wait(id, init, oom.as_mut(), interval)? {
            return Ok(());
        }
    }
}

/// runc's form, fields in its order.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Figures>,
}

fn tell(event: &Event<'_>) -> Result<()> {
    let text = serde_json::to_string(event).map_err(|error| Error::new(ErrorKind::Internal, format!("encode: {error}")))?;
    print(&format!("{text}\n"))
}

/// Waits until the next figures are due, and tells of kills for lack of memory meanwhile; whether the first process has ended.
fn wait(id: &str, init: &OwnedFd, mut oom: Option<&mut OomWatch>, interval: Duration) -> Result<bool> {
    let due = Instant::now() + interval;
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = timespec(left);
        let mut polled = vec![PollFd::new(init, PollFlags::IN)];
        if let Some(oom) = &oom {
            let flags = if oom.watch().trigger() == Trigger::Priority { PollFlags::PRI } else { PollFlags::IN };
            polled.push(PollFd::from_borrowed_fd(oom.watch().as_fd(), flags));
        }
        let ready = retry_on_intr(|| poll(&mut polled, Some(&timeout))).context(|| "poll")?;
        let ended = polled.first().is_some_and(|init| !init.revents().is_empty());
        if let Some(oom) = &mut oom
            && has_killed(oom, ready > usize::from(ended), init)?
        {
            tell(&Event { kind: "oom", id, data: None })?;
        }
        if ended {
            return Ok(true);
        }
    }
}

/// Whether a process was killed since; `reported`: memory has run out, and the kill is to be counted soon.
fn has_killed(oom: &mut OomWatch, reported: bool, init: &OwnedFd) -> Result<bool> {
    for pause in OOM_COUNTED {
        if oom.take()? > 0 {
            return Ok(true);
        }
        if !reported {
            break;
        }
        // At the end of the first process all is counted.
        retry_on_intr(|| poll(&mut [PollFd::new(init, PollFlags::IN)], Some(&timespec(pause)))).context(|| "poll")?;
    }
    Ok(false)
}

/// As Go's time.ParseDuration reads it: numbers with units, one after the other.
fn duration(text: &str) -> Result<Duration> {
    let wrong = || Error::invalid(format!("--interval {text:?}: want a time above zero, such as 5s, 1m30s or 500ms"));
    let of_number = |c: char| c.is_ascii_digit() || c == '.';
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let (number, unit) = rest.split_at(rest.find(|c: char| !of_number(c)).ok_or_else(wrong)?);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let (unit, next) = unit.split_at(unit.find(of_number).unwrap_or(unit.len()));
        seconds += number
            * match unit {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(wrong()),
            };
        rest = next;
    }
    Duration::try_from_secs_f64(seconds).ok().filter(|total| !total.is_zero()).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_has_a_unit() {
        for (text, milliseconds) in [
            ("5s", 5000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("1h", 3_600_000),
            ("1.5s", 1500),
            (".5m", 30_000),
            ("2000us", 2),
            ("3µs997000ns", 1),
        ] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(milliseconds), "{text}");
        }
        for wrong in ["", "5", "0s", "s", "-1s", "1é", "5s1", "1..5s", ".s", "99999999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
