//! Where things are: the checkout, the cache of peers, the shim under test, and the names that mark this run.

use std::path::{Path, PathBuf};
use std::process;
use std::sync::OnceLock;

use crate::{Result, fail};

/// The runtime under test: `TEST_RUNTIME`, by default ours.
pub fn runtime() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| std::env::var("TEST_RUNTIME").unwrap_or_else(|_| OURS.to_owned()))
}

/// Our runtime type.
pub const OURS: &str = "io.containerd.coracle.v2";

/// Whether our own shim is under test, and not a peer that proves the tests themselves.
pub fn is_ours() -> bool {
    runtime() == OURS
}

/// The binary that containerd finds for a runtime type: the last two words of its name.
pub fn binary_name(runtime: &str) -> String {
    let mut words = runtime.rsplit('.');
    let version = words.next().unwrap_or_default();
    format!("containerd-shim-{}-{version}", words.next().unwrap_or_default())
}

/// The top of the checkout.
pub fn checkout() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// `target/cache/<suite>`, which `deploy/setup/peers.sh` fills.
pub fn cache(suite: &str) -> Result<PathBuf> {
    let dir = std::fs::canonicalize(checkout())?.join("target/cache").join(suite);
    if !dir.join("fetched").exists() {
        fail!("{} is missing: run deploy/setup/peers.sh", dir.display());
    }
    Ok(dir)
}

/// The directory of our shim: `CORACLE_BIN`, else the newest of the release and debug builds.
pub fn shim_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("CORACLE_BIN") {
        return Ok(dir.into());
    }
    let target = std::fs::canonicalize(checkout())?.join("target");
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let built = |dir: &PathBuf| dir.join(binary_name(OURS)).metadata().and_then(|m| m.modified()).ok();
    let dirs = [target.join(triple).join("release"), target.join("release"), target.join("debug")];
    match dirs.into_iter().filter(|dir| built(dir).is_some()).max_by_key(|dir| built(dir)) {
        Some(dir) => Ok(dir),
        None => fail!("{} is not built: run make build", binary_name(OURS)),
    }
}

/// The command line under test: `coracle` beside the shim, or a peer that proves the tests themselves, `TEST_COMMAND`.
pub fn command_line() -> Result<PathBuf> {
    match std::env::var_os("TEST_COMMAND") {
        Some(path) => Ok(path.into()),
        None => Ok(shim_dir()?.join("coracle")),
    }
}

/// The directory of our shim with failpoints, which `make test` builds beside the other.
pub fn failpoint_dir() -> Result<PathBuf> {
    let dir = std::fs::canonicalize(checkout())?.join("target/failpoints/debug");
    if !dir.join(binary_name(OURS)).exists() {
        fail!("{} with failpoints is not built: run make failpoints", binary_name(OURS));
    }
    Ok(dir)
}

/// The shim binary of the runtime under test; a peer's comes from `suite`.
pub fn shim_binary(suite: &str) -> Result<PathBuf> {
    let dir = if is_ours() { shim_dir()? } else { cache(suite)?.join("usr/bin") };
    Ok(dir.join(binary_name(runtime())))
}

/// `PATH` of a containerd and its shims: our shim alone, or a peer with bookworm's runc, the only one that this libc runs.
pub fn search_path(suite: &str) -> Result<String> {
    let runtimes = if is_ours() { shim_dir()? } else { cache("bookworm")?.join("usr/sbin") };
    let daemon = cache(suite)?.join("usr/bin");
    Ok(format!("{}:{}:/usr/sbin:/usr/bin:/sbin:/bin", runtimes.display(), daemon.display()))
}

/// The word in every name that this run makes, by which the ledger knows what is ours.
pub fn tag() -> &'static str {
    static TAG: OnceLock<String> = OnceLock::new();
    TAG.get_or_init(|| tag_of(process::id()))
}

/// The [`tag`] of a process that runs a suite.
pub fn tag_of(pid: u32) -> String {
    format!("cor{pid}")
}

/// Sockets, state and fifos of this run; short, since a socket's path ends at 107 bytes.
pub fn run_dir() -> PathBuf {
    PathBuf::from(format!("/run/coracle-test-{}", process::id()))
}

/// Content and snapshots of this run, on the checkout's disk.
pub fn data_dir() -> Result<PathBuf> {
    Ok(std::fs::canonicalize(checkout())?.join("target/run").join(tag()))
}

/// Removes both directories at the end of a run.
pub fn tidy() {
    // What cannot be removed is swept by the next run.
    let _ = std::fs::remove_dir_all(run_dir());
    let _ = data_dir().map(std::fs::remove_dir_all);
}

/// Logs of failed cases.
pub fn log_dir() -> Result<PathBuf> {
    let dir = std::fs::canonicalize(checkout())?.join("target/test-logs");
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_type_names_its_binary() {
        assert_eq!(binary_name("io.containerd.coracle.v2"), "containerd-shim-coracle-v2");
        assert_eq!(binary_name("io.containerd.runc.v2"), "containerd-shim-runc-v2");
    }
}
