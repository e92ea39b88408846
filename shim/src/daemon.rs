//! From a fork of `start` to a daemon of its own, in the order that its children need.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::OnceLock;

use nix::sys::prctl;
use runtime_core::error::{Context, Error, Result};
use runtime_core::plan::launcher::Launcher;
use rustix::fs::{Mode, OFlags};

use crate::bootstrap::Bootstrap;
use crate::group::Grouping;
use crate::idle::Clients;
use crate::options::Options;
use crate::ready::Ready;
use crate::socket::Bound;
use crate::{logger, place, serve};

/// The action by which the daemon executes another launcher.
pub const LAUNCHER: &str = "launcher";

/// Whether transparent huge pages were off before the daemon turned them off for itself.
static NO_HUGE_PAGES: OnceLock<bool> = OnceLock::new();

/// What the daemon was started with.
#[derive(Debug)]
pub struct Config {
    /// The bundle of the first container.
    pub bundle: PathBuf,
    /// The options that came with `start`; each Create may bring its own.
    pub options: Options,
    /// Who shares this daemon.
    pub grouping: Grouping,
    /// The name of the group that shares it, where there is one.
    pub group: Option<String>,
    /// What containerd said.
    pub bootstrap: Bootstrap,
}

/// Serves the group until it is shut down. To be called in a fresh fork with one thread.
///
/// A failure before `ready` is told to `start`; after that the caller logs it.
///
/// # Errors
/// The step that failed.
pub fn daemon(config: Config, bound: Bound, mut ready: Ready) -> Result<()> {
    let served = prepare(&config).and_then(|()| Launcher::spawn()).and_then(|launcher| run(config, bound, &mut ready, launcher));
    if let Err(error) = &served {
        ready.fail(error);
    }
    served
}

/// What every process of the shim has in common, and what its children inherit.
fn prepare(config: &Config) -> Result<()> {
    // Before anything is logged or printed by chance: containerd waits for the end of both pipes.
    silence()?;
    rustix::process::setsid().context(|| "setsid")?;
    rustix::process::chdir("/").context(|| "chdir to /")?;
    let id = if config.grouping == Grouping::Node { "node" } else { &config.bootstrap.id };
    logger::init(&config.bundle, config.bootstrap.log_level, id, &config.bootstrap.namespace)?;
    // Here and not in `start`, so that whatever the daemon forks is born in the right cgroup with the right score.
    if !config.options.shim_cgroup.is_empty() {
        place::enter_cgroup(&config.options.shim_cgroup)?;
    }
    place::raise_oom_score()
}

fn run(config: Config, bound: Bound, ready: &mut Ready, launcher: Launcher) -> Result<()> {
    keep_to_itself()?;
    place::raise_descriptor_limit()?;
    let clients = Clients::default();
    let quiet = clients.quiet();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().on_thread_park(move || quiet.before_wait()).build().context(|| "make the async runtime")?;
    runtime.block_on(serve::serve(config, bound, ready, launcher, clients))
}

/// What only the daemon is: the reaper of what its containers leave behind, and closed to ptrace(2) and `/proc/<pid>/{fd,mem}` of others.
///
/// A process that forks containers is best forked before this and after [`prepare`]: PR_SET_THP_DISABLE passes to children and through execve(2), so a container would
/// have to clear it: the shim's own heap is far below one huge page, the container's need not be.
fn keep_to_itself() -> Result<()> {
    let what = |name: &'static str| move |errno: nix::Error| Error::from_errno(format!("prctl {name}"), errno as i32);
    prctl::set_child_subreaper(true).map_err(what("PR_SET_CHILD_SUBREAPER"))?;
    prctl::set_dumpable(false).map_err(what("PR_SET_DUMPABLE"))?;
    let _ = NO_HUGE_PAGES.set(prctl::get_thp_disable().map_err(what("PR_GET_THP_DISABLE"))?);
    prctl::set_thp_disable(true).map_err(what("PR_SET_THP_DISABLE"))
}

/// Another launcher in place of one that was killed. It is executed and not forked, for the daemon may have threads by now: what takes long, such
/// as the kernel's lock of all networks, is waited for on one. What it hands on to containers is what the first one had.
///
/// # Errors
/// Those of [`Launcher::execute`], or of the limits that cannot be set.
pub fn new_launcher() -> Result<Launcher> {
    let huge_pages = |off| prctl::set_thp_disable(off).map_err(|errno| Error::from_errno("prctl PR_SET_THP_DISABLE", errno as i32));
    // The action stands last, and the others say whose launcher it is to who lists processes.
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    arguments.pop();
    arguments.push(LAUNCHER.into());
    huge_pages(*NO_HUGE_PAGES.get().unwrap_or(&false))?;
    let launcher = place::with_given_descriptor_limit(|| Launcher::execute(arguments));
    huge_pages(true)?;
    launcher
}

/// Points descriptors 0, 1 and 2 to `/dev/null`.
fn silence() -> Result<()> {
    let what = || "open /dev/null";
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).context(what)?;
    rustix::stdio::dup2_stdin(&null).context(what)?;
    rustix::stdio::dup2_stdout(&null).context(what)?;
    rustix::stdio::dup2_stderr(&null).context(what)
}
