//! Where the kernel keeps the daemon: its cgroup, its place in the queue of the OOM killer, its limit of descriptors.

use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use cgroups_rs::fs::hierarchies::is_cgroup2_unified_mode;
use containerd_shim::cgroup::adjust_oom_score;
use runtime_core::cgroup::version1_mount_points;
use runtime_core::error::{Context, Error, ErrorKind, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Where a cgroup v2 is mounted when it is the only hierarchy.
const UNIFIED: &str = "/sys/fs/cgroup";

/// Makes this process a likelier victim of the OOM killer than containerd by one point. To be called while the parent is `start`, which
/// has containerd's score. Without the right to (a user namespace) the score stays.
///
/// # Errors
/// When the scores cannot be read or written for another reason.
pub fn raise_oom_score() -> Result<()> {
    match adjust_oom_score(std::process::id()) {
        Err(containerd_shim::Error::IoError { err, .. }) if err.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(Error::new(ErrorKind::Internal, format!("adjust the OOM score: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// The limits that containerd gave us, before they were raised.
static GIVEN: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit of open descriptors to the hard one: a container holds a score of them here, and systemd's usual soft limit is 1024.
/// Go's runtime does the same for containerd's own shims. To be called after the launcher was forked, so that containers do not inherit it.
///
/// # Errors
/// Those of `setrlimit(2)`.
pub fn raise_descriptor_limit() -> Result<()> {
    let given = GIVEN.get_or_init(|| getrlimit(Resource::Nofile));
    set_descriptor_limit(Rlimit { current: given.maximum, ..*given })
}

/// Runs `start` under the limit that we were given ourselves, for the process that it starts is to inherit that.
///
/// # Errors
/// Those of `setrlimit(2)`, or of `start`.
pub fn with_given_descriptor_limit<T>(start: impl FnOnce() -> Result<T>) -> Result<T> {
    if let Some(given) = GIVEN.get() {
        set_descriptor_limit(*given)?;
    }
    let started = start();
    raise_descriptor_limit()?;
    started
}

fn set_descriptor_limit(limit: Rlimit) -> Result<()> {
    setrlimit(Resource::Nofile, limit).context(|| "set the limit of open descriptors")
}

/// Moves this process into the existing cgroup `path`, in each hierarchy that has it. The way of cgroups-rs to
/// move a process fails when one of them lacks the cgroup, where containerd's passes over it (`cgroup1.Load`).
///
/// # Errors
/// `NotFound` when no hierarchy has the cgroup; the errno when the kernel refuses.
pub fn enter_cgroup(path: &str) -> Result<()> {
    let relative = relative(path)?;
    let mounts: Vec<PathBuf> = if is_cgroup2_unified_mode() { vec![PathBuf::from(UNIFIED)] } else { version1_mount_points()? };
    let mut entered = 0;
    for procs in mounts.iter().map(|mount| mount.join(&relative).join("cgroup.procs")) {
        match std::fs::write(&procs, std::process::id().to_string()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            written => {
                written.context(|| format!("enter the shim cgroup {path:?}: write {procs:?}"))?;
                entered += 1;
            }
        }
    }
    if entered == 0 {
        return Err(Error::new(ErrorKind::NotFound, format!("enter the shim cgroup {path:?}: no such cgroup")));
    }
    Ok(())
}

/// A path below the root of a hierarchy.
fn relative(path: &str) -> Result<PathBuf> {
    let trimmed = Path::new(path.trim_start_matches('/'));
    if trimmed.components().all(|part| matches!(part, Component::Normal(_))) {
        return Ok(trimmed.to_path_buf());
    }
    Err(Error::invalid(format!("shim cgroup {path:?}: not a path below the root")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_named_from_the_root_down() {
        assert_eq!(relative("/a/b").unwrap(), Path::new("a/b"));
        assert_eq!(relative("a").unwrap(), Path::new("a"));
        for path in ["../a", "a/../../b", "/./a/.."] {
            assert_eq!(relative(path).unwrap_err().kind(), ErrorKind::InvalidArgument, "{path}");
        }
    }

    #[test]
    fn a_cgroup_that_does_not_exist_is_named() {
        let error = enter_cgroup("/no-such-cgroup/at-all").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.to_string(), "enter the shim cgroup \"/no-such-cgroup/at-all\": no such cgroup");
    }
}
