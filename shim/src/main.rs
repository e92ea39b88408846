//! The shim binary: `start`, `delete`, `-info` and `-v`, as containerd calls them.

use std::process::ExitCode;

use containerd_shim::Flags;
use runtime_core::error::{Error, Result};
use runtime_core::plan::launcher::launch_from_stdin;
use runtime_core::sys::process::keep_children;
use runtime_core::{hold, sealed};
use rustix::fs::Mode;
use rustix::process::umask;
use shim::{daemon, delete, info, start};

fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| name == hold::NAME) {
        hold::hold();
    }
    keep_children();
    // Modes of files are what the code says, and not what a service manager's umask leaves of them.
    umask(Mode::from_raw_mode(0o022));
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let outcome = containerd_shim::parse(&arguments).map_err(|error| Error::invalid(error.to_string())).and_then(|flags| run(&flags));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("containerd-shim-coracle-v2: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<()> {
    match flags.action.as_str() {
        _ if flags.version => {
            print!("{}", info::version());
            Ok(())
        }
        _ if flags.info => info::info().map_err(|error| error.context("info")),
        // What it forks enters containers: nothing there may lead back to the file on disk.
        "start" => sealed::ensure().and_then(|()| start::start(flags)).map_err(|error| error.context("start")),
        "delete" => delete::delete(flags).map_err(|error| error.context("delete")),
        // The daemon's, never containerd's; what it executes is the sealed program already.
        daemon::LAUNCHER => launch_from_stdin().map_err(|error| error.context(daemon::LAUNCHER)),
        "" => Err(Error::invalid("no action: want start, delete, -info or -v")),
        other => Err(Error::invalid(format!("unknown action {other:?}: want start, delete, -info or -v"))),
    }
}
