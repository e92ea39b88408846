//! One case with a shim driven by hand: bundles, an event service of its own, and a ledger that must balance.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::bundle::Bundle;
use crate::command::signal;
use crate::events::Stub;
use crate::ledger::{self, Entries, Scope};
use crate::rpc::Shim;
use crate::start::{Launch, Protocol, log_fifo};
use crate::{Context, Result, both, order, paths, proc, wait};

/// What a case works with.
pub struct Hand {
    /// The containerd that is played.
    pub protocol: Protocol,
    /// The event service.
    pub stub: Stub,
    word: String,
    dir: PathBuf,
    data: PathBuf,
    scope: Scope,
    before: Entries,
    logs: Vec<File>,
}

impl Hand {
    /// Opens the books, runs the case and closes them, whichever way it ended.
    pub fn run(protocol: Protocol, case: impl FnOnce(&mut Hand) -> Result<()>) -> Result<()> {
        let mut hand = Hand::new(protocol)?;
        let result = case(&mut hand);
        both(result, hand.close())
    }

    fn new(protocol: Protocol) -> Result<Hand> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let word = format!("{}-h{number}x", paths::tag());
        let (dir, data) = (paths::run_dir().join(format!("h{number}")), paths::data_dir()?.join(format!("h{number}")));
        fs::create_dir_all(&dir)?;
        fs::create_dir_all(&data)?;
        let scope = Scope { words: vec![word.clone()], ..Scope::default() };
        let before = ledger::read(&scope);
        let stub = Stub::start(&dir.join("ttrpc.sock"))?;
        Ok(Hand { protocol, stub, word, dir, data, scope, before, logs: Vec::new() })
    }

    /// A short directory below `/run`, for fifos and sockets.
    pub fn dir(&self) -> &PathBuf {
        &self.dir
    }

    /// A directory on disk: below `/run`, programs may not be executed.
    pub fn data(&self) -> &PathBuf {
        &self.data
    }

    /// A bundle whose container runs `args`, with its log fifo; the ledger watches its id.
    pub fn bundle(&mut self, name: &str, args: &[&str]) -> Result<Bundle> {
        let id = self.watch(name);
        let bundle = Bundle::new(&self.data, &id, args)?;
        self.logs.push(log_fifo(&bundle.dir)?);
        Ok(bundle)
    }

    /// A bundle for a shim that runs already, so without a log.
    pub fn member(&self, name: &str, args: &[&str]) -> Result<Bundle> {
        Bundle::new(&self.data, &format!("{}{name}", self.word), args)
    }

    /// A name of this case's own, for a container or a group, whose socket the ledger watches.
    pub fn watch(&mut self, name: &str) -> String {
        let id = format!("{}{name}", self.word);
        self.scope.add(&self.dir.join("grpc.sock"), paths::tag(), &id);
        id
    }

    /// Removes the sockets that a peer's `delete` leaves.
    pub fn remove_sockets(&self) {
        for socket in &self.scope.sockets {
            let _ = fs::remove_file(socket);
        }
    }

    /// Runs `then` with the launch parameters of this case's containerd.
    pub fn launch<T>(&self, then: impl FnOnce(&Launch<'_>) -> Result<T>) -> Result<T> {
        let launch = Launch {
            binary: paths::shim_binary(self.protocol.suite())?,
            protocol: self.protocol,
            ttrpc_address: self.stub.path(),
            grpc_address: &self.dir.join("grpc.sock"),
            options: None,
            socket_dir: (self.protocol == Protocol::V23).then(|| self.dir.join("s")),
        };
        then(&launch)
    }

    /// Starts the bundle's shim and connects to it.
    pub fn shim(&self, bundle: &Bundle) -> Result<Shim> {
        self.launch(|launch| launch.connect(&bundle.dir, &bundle.id))
    }

    /// The processes that name this case's containers in their arguments: the shims.
    pub fn shim_pids(&self) -> Vec<u32> {
        let all = proc::all().into_iter();
        all.filter(|p| p.command_line.contains(&self.word) && p.command_line.contains("containerd-shim")).map(|p| p.pid).collect()
    }

    /// Kills the daemon and the launcher of every shim of this case, and waits for their end.
    pub fn kill_shims(&self) -> Result<()> {
        self.shim_pids().into_iter().try_for_each(|pid| signal(pid, Signal::KILL))?;
        wait::until(Duration::from_secs(15), || self.shim_pids().is_empty().then_some(()))
            .context(|| "a killed shim is still there".to_owned())
    }

    /// Kills what a failed case left, and checks the ledger and the order of all events.
    fn close(mut self) -> Result<()> {
        let gone = wait::until(Duration::from_secs(2), || self.shim_pids().is_empty().then_some(()));
        let clean = ledger::expect_clean(&self.scope, &self.before);
        if gone.is_none() || clean.is_err() {
            self.shim_pids().into_iter().try_for_each(|pid| signal(pid, Signal::KILL))?;
            let ours = |p: &proc::Process| p.cgroups.contains(&self.word);
            proc::all().into_iter().filter(ours).try_for_each(|p| signal(p.pid, Signal::KILL))?;
        }
        let check = if paths::is_ours() { order::check } else { order::check_peer };
        let order = check(&self.stub.record.all());
        self.stub.stop();
        self.logs.clear();
        for mount in proc::mounts().into_iter().rev().filter(|mount| mount.target.starts_with(&self.data)) {
            // Already in the ledger's list.
            let _ = rustix::mount::unmount(&mount.target, rustix::mount::UnmountFlags::DETACH);
        }
        fs::remove_dir_all(&self.dir)?;
        fs::remove_dir_all(&self.data)?;
        // Shared with cases that run at the same time, so only the last one can. The namespace's cgroup is no one container's either.
        let _ = fs::remove_dir(paths::run_dir());
        let _ = fs::remove_dir(paths::data_dir()?);
        for root in proc::cgroup_roots() {
            let _ = fs::remove_dir(root.join(paths::tag()));
        }
        clean.and(order)
    }
}
