//! The `start` verb: finds the group's daemon or makes one, and prints its address.
//!
//! containerd reads standard output and standard error as one text, so nothing but the answer is printed. The daemon is forked, not
//! exec'ed: this process has one thread, so the copy may go on as it is. The socket listens before the fork; clients that come early
//! wait in its queue.

use std::io::Write;
use std::path::{Path, PathBuf};

use containerd_shim::Flags;
use runtime_core::error::{Context, Error, Result};
use runtime_core::sys::fork::{Fork, fork};
use rustix::process::Pid;
use rustix::thread::{CoreSchedulingScope, create_core_scheduling_cookie};

use crate::bootstrap::{Bootstrap, Environment, TaskApi, read_stdin};
use crate::bundle;
use crate::daemon::{Config, daemon};
use crate::group::Grouping;
use crate::options::Options;
use crate::ready::{self, Outcome, Ready};
use crate::socket::{self, Bound, Claim};

/// The file in the bundle that tells containerd before 2.0 where the shim is after a restart; later ones fall back to it.
const ADDRESS_FILE: &str = "address";

/// Runs `start` with what the command line gave.
///
/// # Errors
/// The step that failed; then there is no daemon, no socket and no address file.
pub fn start(flags: &Flags) -> Result<()> {
    let bundle = bundle::dir(&flags.bundle)?;
    let mut bootstrap = Bootstrap::resolve(flags, &read_stdin()?, &Environment::read())?;
    if bundle::is_of_sandbox(&bundle)? {
        // containerd asks only a shim of this version for a sandbox.
        bootstrap.task_api = TaskApi::V3;
    }
    let options = Options::from_extensions(&bootstrap.extensions)?;
    let grouping = grouping(&bootstrap, &options)?;
    let group = grouping.group(&bundle)?;
    let name = group.as_deref().unwrap_or(&bootstrap.id);
    let path = socket::path(&bootstrap.socket_dir, &bootstrap.grpc_address, &bootstrap.namespace, name)?;
    let address = socket::address(&path);
    let reply = bootstrap.reply(&address)?;
    match socket::claim(&path)? {
        Claim::Live => {
            bundle::write_atomic(&bundle, ADDRESS_FILE, address.as_bytes())?;
            print(&reply)
        }
        Claim::Bound(bound) => Start { config: Config { bundle, options, grouping, group, bootstrap }, bound, address, reply }.run(),
    }
}

/// What the runtime's options say, else the environment.
fn grouping(bootstrap: &Bootstrap, options: &Options) -> Result<Grouping> {
    let grouping = if options.grouping.is_empty() { bootstrap.grouping } else { Grouping::parse("option grouping", &options.grouping)? };
    if grouping == Grouping::Node && bootstrap.sched_core {
        return Err(Error::invalid("SCHED_CORE with one daemon for the whole node: all pods would share a core scheduling cookie"));
    }
    Ok(grouping)
}

/// A start that has to make the daemon.
struct Start {
    config: Config,
    bound: Bound,
    address: String,
    reply: Vec<u8>,
}

impl Start {
    fn run(self) -> Result<()> {
        let bundle = self.config.bundle.clone();
        let outcome = self.launch_and_print();
        if outcome.is_err() {
            // The first failure is the one to tell.
            let _ = std::fs::remove_file(address_file(&bundle));
        }
        outcome
    }

    fn launch_and_print(self) -> Result<()> {
        let pid = launch(self.config, self.bound, &self.address)?;
        print(&self.reply).inspect_err(|_| {
            // Nobody will ever call this daemon; it removes the socket as it goes.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        })
    }
}

/// Forks the daemon and waits until it serves. Without a daemon there is no socket either.
fn launch(config: Config, bound: Bound, address: &str) -> Result<Pid> {
    let launched = match fork_daemon(&config, address) {
        Ok((Fork::Child, outcome, ready)) => become_daemon(config, bound, ready, outcome),
        Ok((Fork::Parent(pid), outcome, ready)) => {
            drop(ready);
            outcome.wait(pid).map(|()| pid)
        }
        Err(error) => Err(error),
    };
    if launched.is_err() {
        // Our copy of the listener is still open, so the name is still ours.
        let _ = bound.file.remove();
    }
    launched
}

fn fork_daemon(config: &Config, address: &str) -> Result<(Fork, Outcome, Ready)> {
    bundle::write_atomic(&config.bundle, ADDRESS_FILE, address.as_bytes())?;
    if config.bootstrap.sched_core {
        enable_core_scheduling()?;
    }
    let (outcome, ready) = ready::pair()?;
    Ok((fork()?, outcome, ready))
}

fn become_daemon(config: Config, bound: Bound, ready: Ready, outcome: Outcome) -> ! {
    drop(outcome);
    let status = match daemon(config, bound, ready) {
        Ok(()) => 0,
        Err(error) => {
            log::error!("{error}");
            1
        }
    };
    std::process::exit(status)
}

/// Gives this process group, and with it the daemon and its containers, a core scheduling cookie of its own
/// (Documentation/admin-guide/hw-vuln/core-scheduling.rst).
fn enable_core_scheduling() -> Result<()> {
    let own_group = rustix::process::getpid();
    create_core_scheduling_cookie(own_group, CoreSchedulingScope::ProcessGroup)
        .map_err(|errno| Error::kernel("SCHED_CORE: create a core scheduling cookie (needs CONFIG_SCHED_CORE and SMT)", errno))
}

fn print(reply: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(reply).and_then(|()| stdout.flush()).context(|| "write the address to standard output")
}

/// The path of the file in `bundle` that holds the address.
pub fn address_file(bundle: &Path) -> PathBuf {
    bundle.join(ADDRESS_FILE)
}
