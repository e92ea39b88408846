//! Runs a plan in the new process.
//!
//! The process is a copy of the launcher. Nothing here allocates, locks, logs or panics; strings and arrays were made before the clone.
//! Until execve it is not dumpable, but that does not stop a process with CAP_SYS_PTRACE, and some files of procfs ask for no right at all. So in
//! a pid namespace that others share nothing of the host's may be seen through it: see [`Step::Birth`] and `compile::process::confine`.

mod birth;
mod copy_up;
mod helper;
pub(crate) mod idmap;
mod mounts;
mod pod;
mod process;
mod settle;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};

use super::report::{self, TEXT_MAX};
use super::root;
use super::{Host, Launch, Slot, Step, console};
use crate::sys::process::{self as calls, StringArray};
use crate::sys::security::Insn;
use crate::sys::tuning::{self, SchedulerAttributes};
use crate::sys::{mount, security, tty};

/// Which part of a step failed, beside the errno.
pub(super) struct Failed {
    pub(super) detail: u16,
    pub(super) errno: Errno,
}

impl From<Errno> for Failed {
    fn from(errno: Errno) -> Self {
        Self { detail: 0, errno }
    }
}

/// Names the part of a step that an errno belongs to.
pub(super) fn part(detail: u16) -> impl FnOnce(Errno) -> Failed {
    move |errno| Failed { detail, errno }
}

/// Details of [`Step::Attach`].
pub(crate) mod attach {
    /// The mount point could not be found or made.
    pub const LOOKUP: u16 = 1;
    /// The mount point is on procfs, or is reached through a link.
    pub const HOSTILE: u16 = 2;
    /// The mount could not be moved there.
    pub const MOVE: u16 = 3;
    /// The link could not be made.
    pub const LINK: u16 = 4;
    /// A mount namespace is mounted in what is to be attached, also by the other steps that attach something.
    pub const PINNED: u16 = 5;
}

/// Details of [`Step::BindFlags`].
pub(crate) const LOCKED: u16 = 1;

/// Details of [`Step::MountByHelper`].
pub(crate) mod helper_failed {
    /// Ended with a status, which is there in place of an errno.
    pub const STATUS: u16 = 1;
    /// Ended well without having mounted anything.
    pub const NOTHING: u16 = 2;
}

/// Details of [`Step::Settle`].
pub(crate) const UNSETTLED: u16 = 1;

/// Details of [`Step::Label`].
pub(crate) const OTHER_LABEL: u16 = 1;

/// Details of [`Step::CheckMaps`].
pub(crate) const OTHER_MAPS: u16 = 1;

/// With so few there is no limit that matters.
const FEW_SLOTS: u16 = 200;

/// What [`Step::Home`] adds begins with this.
pub(super) const HOME: &[u8] = b"HOME=";

/// NR_CPUS at most, of any architecture.
const PROCESSORS_MAX: usize = 8192;

/// Details of [`Step::WorkingDirectory`].
pub(crate) const OUTSIDE: u16 = 1;

/// Everything the new process has, made before the clone.
pub struct Child<'a> {
    /// What to do.
    pub launch: &'a Launch,
    /// The program's arguments.
    pub arguments: &'a StringArray,
    /// The program's environment.
    pub environment: &'a mut StringArray,
    /// The table of descriptors.
    pub slots: &'a mut [Option<OwnedFd>],
    /// The launcher's nearly empty mount namespace.
    pub stub: BorrowedFd<'a>,
    /// Its root directory, if it has a `dev/null`.
    pub null: Option<BorrowedFd<'a>>,
}

/// Runs the plan. Ends in execve or `_exit`; never returns.
pub fn run(mut child: Child<'_>) -> ! {
    let _ = calls::forbid_dump();
    calls::reset_signals();
    // Since Linux 6.2 a cpuset narrows the caller's own mask instead of replacing it: every processor is asked for, and what the cpuset
    // leaves of them counts, now and after each change of it. It cannot fail but for a caller of the deadline policy, which keeps its mask.
    let _ = tuning::set_affinity(&[u64::MAX; PROCESSORS_MAX / 64]);
    // Modes of what is made in the root are the spec's; the program's mask is a step of its own.
    rustix::process::umask(Mode::empty());
    let mut state = State::new();
    state.raise_descriptor_limit(child.launch.plan.slots);
    for (index, step) in child.launch.plan.steps.iter().enumerate() {
        if let Err(failed) = child.attempt(index, step, &mut state) {
            if let Ok(report) = child.report(&state) {
                report::child::failed(report, index as u16, failed.detail, failed.errno, &state.text[..state.text_length]);
            }
            calls::exit(1);
        }
    }
    calls::exit(1)
}

/// The little that later steps take from earlier ones.
struct State {
    program: Option<usize>,
    entered: bool,
    host: Option<Host>,
    host_changed: bool,
    /// Binds are made in a copy of the host's mount namespace, which has no mount namespaces in it.
    host_copied: bool,
    /// Of the next filesystem.
    mode: Option<u32>,
    /// The limit of descriptors that is the program's.
    descriptors: Option<(u64, u64)>,
    report: Option<i32>,
    text: [u8; TEXT_MAX],
    text_length: usize,
}

impl State {
    fn new() -> Self {
        Self {
            program: None,
            entered: false,
            host: None,
            host_changed: false,
            host_copied: false,
            mode: None,
            descriptors: None,
            report: None,
            text: [0; TEXT_MAX],
            text_length: 0,
        }
    }

    /// What the plan holds open at once may be more than the program is to have.
    fn raise_descriptor_limit(&mut self, slots: u16) {
        if slots <= FEW_SLOTS {
            return;
        }
        if let Ok((soft, hard)) = security::rlimit(libc::RLIMIT_NOFILE)
            && security::set_rlimit(libc::RLIMIT_NOFILE, hard, hard).is_ok()
        {
            self.descriptors = Some((soft, hard));
        }
    }

    /// As long as the plan runs, only the hard limit is set.
    fn limit(&mut self, resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
        if resource != libc::RLIMIT_NOFILE || self.descriptors.is_none() {
            return security::set_rlimit(resource, soft, hard);
        }
        security::set_rlimit(resource, hard, hard)?;
        self.descriptors = Some((soft, hard));
        Ok(())
    }

    fn give_descriptor_limit(&self) -> Result<(), Errno> {
        self.descriptors.map_or(Ok(()), |(soft, hard)| security::set_rlimit(libc::RLIMIT_NOFILE, soft, hard))
    }
}

impl Child<'_> {
    fn fd(&self, slot: Slot) -> Result<BorrowedFd<'_>, Errno> {
        self.slots.get(usize::from(slot.0)).and_then(Option::as_ref).map(AsFd::as_fd).ok_or(Errno::BADF)
    }

    fn fill(&mut self, slot: Slot, fd: OwnedFd) -> Result<(), Failed> {
        *self.slots.get_mut(usize::from(slot.0)).ok_or(Errno::BADF)? = Some(fd);
        Ok(())
    }

    fn close(&mut self, slot: Slot) -> Result<(), Failed> {
        *self.slots.get_mut(usize::from(slot.0)).ok_or(Errno::BADF)? = None;
        Ok(())
    }

    fn report(&self, state: &State) -> Result<BorrowedFd<'_>, Errno> {
        match state.report {
            Some(number) => Ok(calls::borrow_number(number)),
            None => self.fd(self.launch.report),
        }
    }

    #[cfg(not(feature = "failpoints"))]
    fn attempt(&mut self, _: usize, step: &Step, state: &mut State) -> Result<(), Failed> {
        self.perform(step, state)
    }

    #[cfg(feature = "failpoints")]
    fn attempt(&mut self, index: usize, step: &Step, state: &mut State) -> Result<(), Failed> {
        match self.launch.plan.fail {
            Some(fail) if usize::from(fail.step) == index => Err(Errno::from_raw_os_error(fail.errno).into()),
            _ => self.perform(step, state),
        }
    }

    fn perform(&mut self, step: &Step, state: &mut State) -> Result<(), Failed> {
        match step {
            Step::JoinCgroup { procs } => Ok(rustix::io::write(self.fd(*procs)?, b"0").map(drop)?),
            Step::OomScoreAdj { score } => process::oom_score_adj(*score),
            Step::Label { label } => process::label(label),
            Step::NewKeyring { name } => process::new_keyring(name),
            Step::Join { namespace, flags } => Ok(calls::setns(self.fd(*namespace)?, *flags)?),
            Step::EnterPid { namespace } => Ok(calls::setns(self.fd(*namespace)?, libc::CLONE_NEWPID)?),
            Step::Birth => self.birth(state),
            Step::CheckMaps { uid_map, gid_map } => idmap::check(uid_map, gid_map),
            Step::Unshare { flags } => Ok(calls::unshare(*flags)?),
            Step::TimeOffsets { offsets } => process::time_offsets(offsets),
            Step::EnterTime => process::enter_time(),
            Step::Loopback => process::loopback(),
            Step::Session => Ok(rustix::process::setsid().map(drop)?),

            Step::OpenHost { host } => self.open_host(host, state),
            Step::WatchHost { host } => self.watch_host(host),
            Step::AtHost { host, steps, .. } => self.at_host(host, steps, state),
            Step::Settle { host, mount, again } => self.settle(host, *mount, again, state),
            Step::ReturnToHost { host } => self.return_to_host(host),
            Step::Unmount { path } => Ok(mount::detach_all(path)?),
            Step::SourceDirectory { path } => Ok(rustix::process::chdir(path)?),
            Step::CloneTree { source, recursive, follow, mount } => self.clone_tree(source, *recursive, *follow, *mount),
            Step::NewMount { filesystem, mount } => self.new_mount(None, filesystem, *mount, state),
            Step::ProcOf { namespace, isolate, filesystem, mount } => self.proc_of(*namespace, *isolate, filesystem, *mount, state),
            Step::LoopMount { source, direct_io, filesystem, mount } => self.loop_mount(source, *direct_io, filesystem, *mount, state),
            Step::UserNamespace { uid_map, gid_map, namespace } => {
                let made = idmap::user_namespace(uid_map, gid_map)?;
                self.fill(*namespace, made)
            }
            Step::IdMap { mount, namespace, recursive } => self.map_owners(*mount, *namespace, *recursive, state),
            Step::IdMapByParent { mount, namespace, recursive } => {
                Ok(report::child::map(self.report(state)?, self.fd(*mount)?, self.fd(*namespace)?, *recursive)?)
            }
            Step::Attributes { mount, recursive, set, clear, propagation } => {
                Ok(mount::set_attributes(self.fd(*mount)?, c"", *recursive, *set, *clear, *propagation)?)
            }
            Step::BindFlags { mount, flags } => self.bind_flags(*mount, flags),
            Step::OverlayByPath { base, target, flags, data, mount } => self.overlay_by_path(base, target, *flags, data, *mount),

            Step::MountByHelper { target, mount } => self.mount_by_helper(target, *mount, state),
            Step::TakeFrom { namespace, path, mount } => self.take_from(*namespace, path, *mount),
            Step::OpenNamespace { proc, path, namespace } => self.open_namespace(*proc, path, *namespace),
            Step::HandOver { descriptor } => Ok(report::child::descriptor(self.report(state)?, self.fd(*descriptor)?)?),
            Step::Keep => self.keep(),

            Step::EnterStub => self.enter_stub(),
            Step::Propagation { flags } => Ok(mount_change(c"/", MountPropagationFlags::from_bits_retain(*flags as u32))?),
            Step::AttachRoot { mount, path, root } => self.attach_root(*mount, path, *root, state),
            Step::TakeMode { root, target } => self.take_mode(*root, target, state),
            Step::CloneOwn { root, path, recursive, follow, mount } => self.clone_own(*root, path, *recursive, *follow, *mount),
            Step::CopyUp { mount, root, target, owner } => self.copy_up(*mount, *root, target, *owner),
            Step::FileLabel { mount, label } => self.file_label(*mount, label),
            Step::Attach { mount, root, target, rule } => self.attach(*mount, *root, target, *rule, state),
            Step::Close { slot } => self.close(*slot),
            Step::OpenDirectory { root, path, directory } => self.open_directory(*root, path, *directory),
            Step::MakeDirectory { directory, name, mode } => Ok(root::make_directory(self.fd(*directory)?, name, *mode)?),
            Step::Device { root, path, node } => self.device(*root, path, node),
            Step::Symlink { directory, name, target } => self.symlink(*directory, name, target),
            &Step::Console { devpts, devices, cover, uid, size, onlcr } => {
                self.console(devpts, devices, cover, console::Settings { uid, size, onlcr }, state)
            }
            &Step::JoinedConsole { uid, size, onlcr } => {
                let console = console::open_joined(console::Settings { uid, size, onlcr })?;
                report::child::console(self.report(state)?, console.master.as_fd())?;
                console.become_streams()
            }
            Step::ControlTerminal => Ok(tty::set_controlling(calls::borrow_number(0))?),

            Step::PauseForHooks => Ok(report::child::hooks(self.report(state)?)?),
            Step::Pivot { root } => self.pivot(*root),
            Step::MoveRoot { root } => self.move_root(*root),
            Step::RootAttributes { recursive, set, propagation } => mounts::root_attributes(*recursive, *set, *propagation),
            Step::ReadOnly { path } => mounts::read_only(path),
            Step::Mask { path, null, empty } => self.mask(path, *null, *empty),

            Step::HostName { name } => Ok(rustix::system::sethostname(name.to_bytes())?),
            Step::DomainName { name } => Ok(security::set_domain_name(name.to_bytes())?),
            Step::Sysctl { proc, path, value } => self.sysctl(*proc, path, value),

            Step::Stream { number, from } => Ok(process::stream(self.fd(*from)?, *number, self.null)?),
            Step::OwnStreams { uid } => process::own_streams(*uid),
            Step::Rlimit { resource, soft, hard } => Ok(state.limit(*resource, *soft, *hard)?),
            Step::Affinity { mask } => Ok(tuning::set_affinity(mask)?),
            &Step::Scheduler { policy, flags, nice, priority, runtime, deadline, period } => {
                let attributes = SchedulerAttributes { policy, flags, nice, priority, runtime, deadline, period, ..Default::default() };
                Ok(tuning::set_scheduler(attributes)?)
            }
            Step::IoPriority { value } => Ok(tuning::set_io_priority(*value)?),
            Step::Personality { value } => Ok(tuning::set_personality(*value)?),
            Step::MemoryPolicy { mode, nodes } => Ok(tuning::set_memory_policy(*mode, nodes)?),
            Step::Umask { mask } => process::umask(*mask),
            Step::Home { uid } => process::home(*uid, self.environment),
            Step::MakeWorkingDirectory { path } => process::make_working_directory(path),
            Step::BoundingSet { keep } => process::bounding_set(*keep),
            Step::Seccomp { program, flags } => self.seccomp(program, *flags, state),
            Step::NoNewPrivileges => Ok(security::no_new_privileges()?),
            Step::Identity { uid, gid, groups } => process::identity(*uid, *gid, groups.as_deref()),
            Step::Capabilities { effective, permitted, inheritable, ambient } => {
                process::capabilities(*effective, *permitted, *inheritable, *ambient)
            }
            Step::WorkingDirectory { path, later } => process::working_directory(path, *later, state),
            Step::FindProgram => self.find_program(state),
            Step::Relocate { above } => self.relocate(*above),
            Step::CloseOthers { first, parents_end } => self.close_others(*first, *parents_end, state),
            Step::Ready => {
                calls::wait_with_signals();
                Ok(report::child::ready(self.report(state)?)?)
            }
            Step::Exec { own } => self.exec(*own, state),
            Step::ExecFile { file } => Err(calls::execve_file(self.fd(*file)?, self.arguments, self.environment).into()),
        }
    }

    fn find_program(&mut self, state: &mut State) -> Result<(), Failed> {
        let mut best = Errno::NOENT;
        for (index, path) in self.launch.program.candidates.iter().enumerate() {
            match process::executable(path) {
                Ok(()) => {
                    state.program = Some(index);
                    return Ok(());
                }
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => best = errno,
            }
        }
        Err(best.into())
    }

    fn relocate(&mut self, above: i32) -> Result<(), Failed> {
        for slot in self.slots.iter_mut().flatten() {
            if slot.as_raw_fd() < above {
                *slot = rustix::io::fcntl_dupfd_cloexec(&*slot, above)?;
            }
        }
        // The launcher's, which this process has inherited with its number.
        if let Some(null) = self.null.filter(|null| null.as_raw_fd() < above) {
            self.null = Some(calls::borrow_number(rustix::io::fcntl_dupfd_cloexec(null, above)?.into_raw_fd()));
        }
        Ok(())
    }

    fn close_others(&mut self, first: i32, parents_end: Option<Slot>, state: &mut State) -> Result<(), Failed> {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if index != usize::from(self.launch.report.0) && parents_end.is_none_or(|end| index != usize::from(end.0)) {
                *slot = None;
            }
        }
        calls::duplicate_onto(self.fd(self.launch.report)?, first, true)?;
        state.report = Some(first);
        let mut next = first + 1;
        if let Some(end) = parents_end {
            calls::duplicate_onto(self.fd(end)?, next, true)?;
            next += 1;
        }
        Ok(calls::close_from(next as u32)?)
    }

    fn seccomp(&self, program: &[Insn], flags: u32, state: &State) -> Result<(), Failed> {
        match security::load_filter(program, flags)? {
            0 => Ok(()),
            listener => Ok(report::child::listener(self.report(state)?, listener)?),
        }
    }

    fn exec(&mut self, own: bool, state: &State) -> Result<(), Failed> {
        state.give_descriptor_limit()?;
        let path = state.program.and_then(|index| self.launch.program.candidates.get(index)).ok_or(Errno::NOENT)?;
        let errno = calls::execve(path, self.arguments, self.environment);
        if own { process::last_words(path, errno) } else { Err(errno.into()) }
    }
}
