//! Run and exec.

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;

use oci_spec::runtime::ContainerState;
use runtime_core::compile::{self, CgroupView, Joined, Joining};
use runtime_core::error::{Context as _, Error, Result};
use runtime_core::plan::report;
use runtime_core::rdt::Groups;
use runtime_core::seccomp;
use runtime_core::spec::{Capabilities, Process, Spec};
use runtime_core::sys::process::send_signal;
use std::os::fd::{AsFd, OwnedFd};

use crate::Runtime;
use crate::args::{CreateFlags, Exec};
use crate::create::{Created, Foreground, check_console, create, hand_out, preserved, start, write_pid};
use crate::foreground::{attend, hold_signals};
use crate::hooks::{Hooks, send};
use crate::launch::{Child, Progress, unexpected};
use crate::lifecycle::destroy;
use crate::store::{Status, refused};

/// Create and start; then wait for the end, and delete, unless told otherwise.
///
/// # Errors
/// The step that failed; the container is no more then.
pub fn run(runtime: &Runtime<'_>, options: &CreateFlags, id: &str, detach: bool, keep: bool) -> Result<ExitCode> {
    let foreground = if detach { Foreground::No } else { Foreground::Yes };
    let signals = (!detach).then(hold_signals).transpose()?;
    let Created { entry, mut state, child, master } = create(runtime, options, id, foreground)?;
    let notify = match start(runtime, &entry, &mut state) {
        Ok(notify) => notify,
        Err(error) => {
            if let Err(left) = destroy(runtime, &entry, &state) {
                runtime.log.warn(&left.to_string());
            }
            return Err(error);
        }
    };
    // Others may change the container while it runs.
    drop(entry);
    let Some(signals) = signals else {
        if let Some(notify) = notify {
            notify.wait(child.pid, child.pidfd.as_fd(), runtime.log);
        }
        return Ok(ExitCode::SUCCESS);
    };
    if let Some(notify) = notify {
        notify.forward_in_background();
    }
    let status = attend(runtime.log, signals, &child, master)?;
    if !keep {
        let ours = state.record.init;
        // Somebody may have deleted it already, and made another of that name.
        if let Ok((entry, state)) = runtime.store.change(id)
            && state.record.init == ours
        {
            destroy(runtime, &entry, &state)?;
        }
    }
    Ok(ExitCode::from(status))
}

/// A process that joins a container.
///
/// # Errors
/// The step that failed.
pub fn exec(runtime: &Runtime<'_>, options: &Exec) -> Result<ExitCode> {
    let preserved = preserved(options.preserve_fds)?;
    let (entry, state) = runtime.store.look(&options.id)?;
    match state.status(&runtime.host)? {
        Status::Stopped => return Err(refused("cannot exec in a stopped container")),
        Status::Creating => return Err(refused("cannot exec in a container that is being created")),
        Status::Paused if !options.ignore_paused => {
            return Err(refused("cannot exec in a paused container (use --ignore-paused to override)"));
        }
        Status::Created | Status::Running | Status::Paused => {}
    }
    let spec = entry.spec(state.crun_annotations)?;
    let mut process = process(options, &spec)?;
    let foreground = if options.detach { Foreground::No } else { Foreground::Yes };
    foreground.size(&mut process);
    check_console(process.terminal, options.console_socket.as_deref(), foreground)?;
    let filter = spec.linux.seccomp.as_ref().map(seccomp::compile).transpose()?;
    let hooks = Hooks { runtime, spec: &spec, state: &state, filter: filter.as_ref() };
    let signals = (!options.detach).then(hold_signals).transpose()?;
    let mut child = join(&hooks, &process, foreground, &options.cgroup, preserved)?;
    let master = accompany(&hooks, &mut child, options, foreground).inspect_err(|_| child.kill())?;
    match signals {
        Some(signals) => attend(runtime.log, signals, &child, master).map(ExitCode::from),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn join(hooks: &Hooks<'_>, process: &Process, foreground: Foreground, below: &[String], preserved: Vec<OwnedFd>) -> Result<Child> {
    let Hooks { runtime, spec, state, .. } = *hooks;
    let stopped = || refused("cannot exec in a stopped container");
    let id = state.record.init.ok_or_else(stopped)?;
    let init = id.open()?.ok_or_else(stopped)?;
    let cgroup = state.cgroup(&runtime.host)?;
    let groups = Groups::here(&state.record.id, spec.linux.intel_rdt.as_ref());
    let view = if below.is_empty() {
        CgroupView::joining(&cgroup, id.pid, &groups)?
    } else {
        CgroupView::of(&cgroup.below(&paths_by_controller(below)?).context(|| "--cgroup")?, &groups)?
    };
    let (report, child_report) = report::pair().context(|| "socketpair")?;
    let compiled = compile::joining(Joining {
        id: &state.record.id,
        namespaces: &Joined::of(&spec.linux)?,
        process,
        init,
        cgroup: view,
        streams: foreground.streams(process.terminal)?,
        filter: hooks.filter,
        report: child_report,
        preserved,
        no_new_keyring: state.no_new_keyring,
    })?;
    runtime.log.plan(&format!("{} exec", state.record.id), &compiled.launch.plan);
    runtime.launching.launch(compiled, report)
}

/// `[controllers:]path`, as runc takes it: one path for all, or some for controllers separated by commas.
fn paths_by_controller(given: &[String]) -> Result<HashMap<String, String>> {
    let wrong = |text: &str, why: &str| Error::invalid(format!("--cgroup {text:?}: {why}"));
    let mut paths = HashMap::new();
    for text in given {
        let Some((controllers, path)) = text.split_once(':') else {
            if given.len() > 1 {
                return Err(wrong(text, "one of several needs controllers before it"));
            }
            return Ok([(String::new(), text.clone())].into());
        };
        if path.contains(':') {
            return Err(wrong(text, "want [controllers:]path"));
        }
        for controller in controllers.split(',') {
            if controller.is_empty() {
                return Err(wrong(text, "a controller is empty"));
            }
            if paths.insert(controller.to_owned(), path.to_owned()).is_some() {
                return Err(wrong(text, "a controller is given twice"));
            }
        }
    }
    Ok(paths)
}

fn accompany(hooks: &Hooks<'_>, child: &mut Child, options: &Exec, foreground: Foreground) -> Result<Option<OwnedFd>> {
    let mut master = None;
    loop {
        match child.progress()? {
            Progress::Executed => break,
            Progress::Born(_) => {}
            Progress::Console(served) => master = hand_out(options.console_socket.as_deref(), foreground, served)?,
            Progress::Listener(descriptor) => hooks.give_listener(child, descriptor, ContainerState::Running, hooks.state.pid())?,
            Progress::Hooks | Progress::Handed(_) | Progress::Ready => return Err(unexpected()),
        }
    }
    if let Some(socket) = &options.pidfd_socket {
        send(socket, b"pidfd", child.pidfd.as_fd()).context(|| format!("--pidfd-socket {socket:?}"))?;
    }
    if let Some(file) = &options.pid_file
        && let Err(error) = write_pid(file, child.pid)
    {
        let _ = send_signal(child.pidfd.as_fd(), libc::SIGKILL);
        return Err(error);
    }
    Ok(master)
}

/// What runs: a file's process as it is, or the container's own with changes.
fn process(options: &Exec, spec: &Spec) -> Result<Process> {
    if let Some(file) = &options.process {
        let mut process = Process::parse(&read(file)?).context(|| format!("{file:?}"))?;
        spec.process.iter().for_each(|first| process.confine_as(first));
        return Ok(process);
    }
    if options.command.is_empty() {
        return Err(Error::invalid("process args cannot be empty"));
    }
    let mut process = spec.process.clone().unwrap_or_default();
    process.args.clone_from(&options.command);
    process.terminal = options.tty;
    process.console_size = None;
    process.env.extend(options.env.iter().cloned());
    if let Some(cwd) = &options.cwd {
        process.cwd.clone_from(cwd);
    }
    if let Some(user) = &options.user {
        let (uid, gid) = user.split_once(':').map_or((user.as_str(), None), |(uid, gid)| (uid, Some(gid)));
        let number = |text: &str| text.parse::<u32>().map_err(|_| Error::invalid(format!("--user {user:?}: {text:?} is no number")));
        process.user.uid = number(uid)?;
        if let Some(gid) = gid {
            process.user.gid = number(gid)?;
        }
    }
    process.user.additional_gids.extend(&options.additional_gids);
    if let Some(label) = &options.process_label {
        process.selinux_label = Some(label.clone());
    }
    if let Some(profile) = &options.apparmor {
        process.apparmor_profile = Some(profile.clone());
    }
    process.no_new_privileges |= options.no_new_privs;
    if !options.cap.is_empty() {
        let sets = process.capabilities.get_or_insert_with(Capabilities::default);
        // Only what may be inherited can be ambient (capabilities(7)), and nothing is made inheritable here.
        let ambient = if sets.inheritable.is_empty() { None } else { Some(&mut sets.ambient) };
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted].into_iter().chain(ambient) {
            set.extend(options.cap.iter().cloned());
        }
    }
    Ok(process)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).context(|| format!("read {file:?}"))
}
