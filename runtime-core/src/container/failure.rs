//! A child's failure as a sentence: the step as the plan prints it, the part that failed, the errno.

use rustix::io::Errno;

use crate::error::{Error, ErrorKind};
use crate::plan::child::{OUTSIDE, attach};
use crate::plan::report::Failure;
use crate::plan::{Launch, Step};

/// The failure of a child that ran `launch`.
pub fn explain(launch: &Launch, failure: &Failure) -> Error {
    let Some(step) = launch.plan.steps.get(usize::from(failure.step)) else {
        return Error::new(ErrorKind::Internal, format!("child: step {} does not exist", failure.step));
    };
    match step {
        Step::FindProgram => no_program(launch, failure.errno),
        Step::Exec => exec_failed(launch, failure.errno),
        Step::WorkingDirectory { path, .. } if failure.detail == OUTSIDE => {
            Error::invalid(format!("process.cwd: {:?} is outside of the container's root", path.to_string_lossy()))
        }
        _ => {
            let what = match part(step, failure.detail) {
                Some(part) => format!("{step}: {part}"),
                None => step.to_string(),
            };
            // The kernel's own words come as "e overlay: …".
            let text = failure.text.strip_prefix("e ").unwrap_or(&failure.text);
            let what = if text.is_empty() { what } else { format!("{what}: {text}") };
            Error::from_errno(what, failure.errno)
        }
    }
}

fn part(step: &Step, detail: u16) -> Option<String> {
    let name = |text: &str| Some(text.to_owned());
    match (step, detail) {
        (Step::Attach { .. }, attach::LOOKUP) => name("find or make the mount point"),
        (Step::Attach { .. }, attach::HOSTILE) => name("the mount point is not what it should be"),
        (Step::Attach { .. }, attach::MOVE) => name("move the mount there"),
        (Step::NewMount { .. } | Step::LoopMount { .. }, 1) => name("create"),
        (Step::NewMount { filesystem, .. } | Step::LoopMount { filesystem, .. }, detail) if detail >= 2 => {
            let (key, _) = filesystem.options.get(usize::from(detail) - 2)?;
            Some(format!("option {:?}", key.to_string_lossy()))
        }
        (Step::Pivot { .. }, 1) => name("pivot_root"),
        (Step::Pivot { .. }, 2) => name("detach the old root"),
        (Step::Console { .. } | Step::JoinedConsole { .. }, 1) => name("not a terminal multiplexer"),
        (Step::Console { .. } | Step::JoinedConsole { .. }, 3) => name("chown"),
        (Step::Console { .. }, 4 | 5) => name("/dev/console"),
        (Step::Device { .. }, 1) => name("parent directory"),
        (Step::Device { .. }, 2) => name("something else is there"),
        (Step::Identity { .. }, 1) => name("setgroups"),
        (Step::Identity { .. }, 2) => name("setgid"),
        (Step::Identity { .. }, 3) => name("setuid"),
        (Step::Loopback, 1) => name("accept_ra"),
        (Step::Mask { .. } | Step::ReadOnly { .. }, detail) if detail > 0 => name("mount over it"),
        (Step::OverlayByPath { .. }, 1) => name("chdir"),
        _ => None,
    }
}

/// The words that ctr, Docker and kubelet users know from runc, and that Docker derives exit codes 126 and 127 from.
fn no_program(launch: &Launch, errno: i32) -> Error {
    let name = launch.program.arguments.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let found_nothing = errno == Errno::NOENT.raw_os_error();
    if !name.contains('/') && found_nothing {
        return Error::new(ErrorKind::NotFound, format!("exec: {name:?}: executable file not found in $PATH"));
    }
    let what = if found_nothing { format!("exec: {name:?}: stat {name}") } else { format!("exec: {name:?}") };
    program_error(what, errno)
}

fn exec_failed(launch: &Launch, errno: i32) -> Error {
    let name = launch.program.arguments.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    program_error(format!("exec {name}"), errno)
}

fn program_error(what: String, errno: i32) -> Error {
    let kind = match Errno::from_raw_os_error(errno) {
        Errno::NOENT | Errno::NOTDIR => ErrorKind::NotFound,
        Errno::ACCESS | Errno::ISDIR | Errno::NOEXEC | Errno::PERM => ErrorKind::InvalidArgument,
        _ => ErrorKind::Internal,
    };
    Error::from_errno(what, errno).with_kind(kind)
}
