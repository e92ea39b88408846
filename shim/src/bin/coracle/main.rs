//! For operators and tools: OCI bundles run without containerd, by the same code (`create`, `start` and the other commands of runc's), and
//! `coracle check` says what this host has of what the shim needs.

mod args;
mod cgroups;
mod check;
mod create;
mod events;
mod figures;
mod foreground;
mod hooks;
mod launch;
mod lifecycle;
mod log;
mod network;
mod notify;
mod ps;
mod rdt;
mod relay;
mod run;
mod show;
mod spec;
mod store;
mod update;

use std::os::fd::AsFd;
use std::process::ExitCode;

use runtime_core::cgroup::Host;
use runtime_core::error::{Error, ErrorKind, Result};
use runtime_core::kernel::in_user_namespace;
use runtime_core::sealed;
use runtime_core::sys::process::keep_children;

use args::{Command, CommandLine, Globals, Rootless};
use clap::error::{ContextKind, ErrorKind as UsageKind};
use create::Foreground;
use launch::Launching;
use log::{Log, print};
use store::Store;

/// What all commands need.
pub struct Runtime<'a> {
    /// The containers.
    pub store: Store,
    /// The host's cgroup hierarchies.
    pub host: Host,
    /// Starts processes.
    pub launching: Launching,
    /// Whether systemd makes the cgroups.
    pub systemd: bool,
    /// Whether annotations of crun's count.
    pub crun_annotations: bool,
    /// For what goes wrong.
    pub log: &'a Log,
}

/// What runc exits with.
const FAILED: u8 = 1;
/// What runc exits with where a process could not be started in a container.
const EXEC_FAILED: u8 = 255;
/// What runc exits with for a command that it does not have.
const NO_SUCH_COMMAND: u8 = 3;

fn main() -> ExitCode {
    keep_children();
    let line = match CommandLine::read(std::env::args_os()) {
        Ok(line) => line,
        Err(error) => return not_read(&error),
    };
    if let Command::Check { json } = line.command {
        return check::report(json);
    }
    let mut log = Log { file: line.globals.log.clone(), format: line.globals.log_format, debug: line.globals.debug };
    if let Err(error) = log.ready() {
        log.file = None;
        log.error(&error.to_string());
        return ExitCode::from(FAILED);
    }
    let sealed = if line.command.starts_processes() { sealed::ensure() } else { Ok(()) };
    let done = match &line.command {
        _ if sealed.is_err() => sealed.map(|()| ExitCode::SUCCESS),
        Command::Network { file, command } => network::run(file.as_deref(), command).map(|()| ExitCode::SUCCESS),
        _ => runtime(&line.globals, &log).and_then(|runtime| run(&runtime, line.command)),
    };
    done.unwrap_or_else(|error| {
        log.error(&error.to_string());
        ExitCode::from(FAILED)
    })
}

/// Help, which is no failure and is what a line without a command gets, or wrong usage.
fn not_read(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == UsageKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let printed = print(&error.render().to_string());
        return if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) };
    }
    let log = Log::of_arguments(std::env::args_os());
    if let (UsageKind::InvalidSubcommand, Some(name)) = (error.kind(), error.get(ContextKind::InvalidSubcommand)) {
        log.error(&format!("No help topic for '{name}'"));
        return ExitCode::from(NO_SUCH_COMMAND);
    }
    // Its reader may have gone.
    let _ = error.print();
    log.note(&error.to_string());
    ExitCode::from(FAILED)
}

fn runtime<'a>(globals: &Globals, log: &'a Log) -> Result<Runtime<'a>> {
    if globals.rootless == Rootless::True && !in_user_namespace() {
        return Err(unsupported("--rootless true: this is not a user namespace"));
    }
    let (store, host) = (Store::new(globals.root.as_deref())?, Host::detect()?);
    let (systemd, crun_annotations) = (globals.systemd_cgroup, globals.crun_annotations);
    Ok(Runtime { store, host, launching: Launching::default(), systemd, crun_annotations, log })
}

/// A failure has a status of its own, to be told from the process's.
fn exec(runtime: &Runtime<'_>, options: &args::Exec) -> Result<ExitCode> {
    run::exec(runtime, options).or_else(|error| {
        runtime.log.error(&format!("exec failed: {error}"));
        Ok(ExitCode::from(EXEC_FAILED))
    })
}

fn unsupported(what: &str) -> Error {
    Error::new(ErrorKind::Unimplemented, format!("{what}: not supported"))
}

fn run(runtime: &Runtime<'_>, command: Command) -> Result<ExitCode> {
    match command {
        Command::Check { .. } | Command::Network { .. } => return Err(launch::unexpected()),
        Command::Create { options, id } => drop(create::create(runtime, &options, &id, Foreground::No)?),
        Command::Start { id } => {
            let (entry, mut state) = runtime.store.change(&id)?;
            let notify = create::start(runtime, &entry, &mut state)?;
            // Others may change the container while it makes itself ready.
            drop(entry);
            if let (Some(notify), Some(init)) = (notify, state.record.init)
                && let Some(pidfd) = init.open()?
            {
                notify.wait(init.pid, pidfd.as_fd(), runtime.log);
            }
        }
        Command::State { id } => show::state(runtime, &id)?,
        Command::Kill { all, id, signal } => lifecycle::kill(runtime, &id, lifecycle::signal(&signal)?, all)?,
        Command::Delete { force, id } => lifecycle::delete(runtime, &id, force)?,
        Command::List { format, quiet } => show::list(runtime, format, quiet)?,
        Command::Ps { format, id, options } => ps::ps(runtime, format, &id, &options)?,
        Command::Pause { id } => lifecycle::pause(runtime, &id)?,
        Command::Resume { id } => lifecycle::resume(runtime, &id)?,
        Command::Features => print(&format!("{:#}\n", shim::features::features()))?,
        Command::Checkpoint { .. } => return Err(unsupported("checkpoint")),
        Command::Restore { .. } => return Err(unsupported("restore")),
        Command::Run { options, detach, keep, id, .. } => return run::run(runtime, &options, &id, detach, keep),
        Command::Exec(options) => return exec(runtime, &options),
        Command::Update(options) => update::update(runtime, &options)?,
        Command::Events { stats, interval, id } => events::events(runtime, &id, stats, &interval)?,
        Command::Spec { bundle, rootless } => spec::write(&runtime.host, bundle.as_deref(), rootless)?,
    }
    Ok(ExitCode::SUCCESS)
}
