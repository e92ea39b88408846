//! Compiles a spec into a plan: the order of a start, on one page.
//!
//! Everything that can be decided is decided here, in the parent; what is emitted is run as it stands.

mod by_helper;
mod devices;
mod guest;
mod helper;
mod idmap;
mod joining;
mod mounts;
mod namespaces;
pub mod options;
mod overlay;
pub mod pod;
mod process;
mod rootfs;
mod sysctl;
mod unmount;
mod user;

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::cgroup::{self, Cgroup, Entrance};
use crate::error::{Context, Error, Result};
use crate::kernel::Features;
use crate::plan::{Builder, Launch, Slot, Step};
use crate::rdt::Groups;
use crate::seccomp::Filter;
use crate::spec::{Spec, tuning};
use user::{Shelf, User};

pub use by_helper::{ByHelper, by_helper};
pub use guest::guest;
pub use helper::{Environment, Helper, Inside, helper, hook};
pub use joining::{Joining, StartContainerHook, joining, start_container_hook};
pub use namespaces::{Joined, ids as namespace_ids};
pub use process::{capability_names, parents_end, unknown_capabilities};
pub use rootfs::{RootMount, is_shown};
pub(crate) use sysctl::other_spelling;
pub use unmount::unmount;

/// Where the first process's standard streams come from.
pub enum Streams {
    /// Standard input, output and error.
    Given([OwnedFd; 3]),
    /// A pseudoterminal that the process makes; its master comes back in a report.
    Terminal {
        /// Whether the output goes on to a terminal of the caller's, which makes of newlines what it likes.
        served: bool,
    },
}

/// How a process enters its cgroup, and what a container sees of it.
pub struct CgroupView {
    /// `cgroup.procs` of each v1 hierarchy.
    pub procs: Vec<OwnedFd>,
    /// The v2 directory to be born in.
    pub directory: Option<OwnedFd>,
    /// For mounts of type cgroup.
    pub mounts: cgroup::Mounts,
}

impl CgroupView {
    /// What a process enters a cgroup by, and groups of resctrl, which are entered in the same way.
    ///
    /// # Errors
    /// One of them is gone.
    pub fn of(cgroup: &Cgroup, groups: &Groups) -> Result<Self> {
        let directory = cgroup.dir_fd().map(|fd| fd.try_clone_to_owned().context(|| "dup")).transpose()?;
        let procs = cgroup.procs_fds()?.into_iter().chain(groups.tasks()?).collect();
        Ok(Self { procs, directory, mounts: cgroup.mounts() })
    }

    /// The same for a process that joins a running container, whose first process is `init`.
    ///
    /// # Errors
    /// There is a hierarchy in which neither the container's cgroup nor that of its first process can be entered.
    pub fn joining(cgroup: &Cgroup, init: i32, groups: &Groups) -> Result<Self> {
        let Entrance { procs, directory } = cgroup.entrance(init)?;
        let procs = procs.into_iter().chain(groups.tasks()?).collect();
        Ok(Self { procs, directory, mounts: cgroup.mounts() })
    }
}

/// Everything a container's plan is compiled from. `spec` has passed [`crate::spec::check`].
pub struct Container<'a> {
    /// The container's id.
    pub id: &'a str,
    /// Absolute.
    pub bundle: &'a Path,
    /// The configuration.
    pub spec: &'a Spec,
    /// The snapshot's mounts; if there are none, the spec's root path is used as it is.
    pub rootfs: &'a [RootMount],
    /// Of these, in their order, those that need a helper: made already ([`by_helper`]).
    pub by_helper: Vec<OwnedFd>,
    /// The mount namespace of the pod, whose [`pod::SHM`] takes the place of a tmpfs of the container's own at `/dev/shm`.
    pub pod: Option<OwnedFd>,
    /// The cgroup.
    pub cgroup: CgroupView,
    /// The standard streams.
    pub streams: Streams,
    /// The compiled `linux.seccomp`.
    pub filter: Option<&'a Filter>,
    /// Where the child reports.
    pub report: OwnedFd,
    /// The parent's end of that, for a child that must outlive its parent while it waits for its start: it holds both ends, so that the
    /// connection stays when the parent goes, and whoever starts it takes this one out of it (pidfd_getfd(2), number [`parents_end`]).
    pub parents_end: Option<OwnedFd>,
    /// What the program gets as descriptors from 3 on.
    pub preserved: Vec<OwnedFd>,
    /// Move the root instead of pivoting, for roots that cannot be pivoted (an initramfs).
    pub no_pivot_root: bool,
    /// Somebody outside gives it a network before it leaves the host's filesystem.
    pub networked: bool,
    /// Leave the caller's session keyring in place.
    pub no_new_keyring: bool,
    /// What the kernel has.
    pub kernel: Features,
}

/// What the launcher gets.
pub struct Compiled {
    /// The request.
    pub launch: Launch,
    /// The descriptors of its first slots.
    pub descriptors: Vec<OwnedFd>,
}

/// A process of a container that waits for its start: the first one.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) by the field's name.
pub fn container(inputs: Container<'_>) -> Result<Compiled> {
    let Container { spec, bundle, .. } = inputs;
    let process = spec.process.as_ref().ok_or_else(|| Error::invalid("process: there is none"))?;
    let mut plan = Builder::default();

    // What the parent hands over.
    let report = plan.give(inputs.report);
    let kept = process::Kept::give(&mut plan, inputs.preserved, inputs.parents_end);
    let streams = give_streams(&mut plan, inputs.streams);
    let target = root_path(spec, bundle, inputs.rootfs);
    let whole = [whole_root(spec, bundle)];
    let roots = if inputs.rootfs.is_empty() { &whole } else { inputs.rootfs };
    let (mut procs, mut directory) = (inputs.cgroup.procs, inputs.cgroup.directory);
    let opens_devices = mounts::open_devices(spec, roots);
    if opens_devices && let Some(directory) = directory.take() {
        procs.push(procs_of(&directory)?);
    }
    let procs: Vec<Slot> = procs.into_iter().map(|fd| plan.give(fd)).collect();
    let cgroup = directory.map(|fd| plan.give(fd));
    let helped: Vec<Slot> = inputs.by_helper.into_iter().map(|fd| plan.give(fd)).collect();
    let pod = inputs.pod.map(|fd| plan.give(fd));
    let mut joined = namespaces::open(&mut plan, &spec.linux.namespaces)?;
    joined.time_offsets = tuning::time_offsets(&spec.linux.time_offsets)?;
    let user = User::open(&mut plan, spec, process)?;
    sysctl::check(&spec.linux.sysctl, &joined, user.is_some())?;
    if inputs.no_pivot_root && joined.mount().is_some() {
        return Err(Error::invalid("linux.namespaces: mount: a given one can only be pivoted, which the option NoPivotRoot forbids"));
    }

    // Limits hold before anything else happens.
    let outside_the_cgroup = plan.length();
    procs.iter().for_each(|&procs| plan.step(Step::JoinCgroup { procs }));
    process::host_side(&mut plan, process)?;
    match &user {
        None => {
            if joined.pid().is_some() {
                process::raise_limits(&mut plan, process);
            }
            process::keyring(&mut plan, inputs.id, inputs.no_new_keyring)?;
            joined.emit(&mut plan);
        }
        Some(user) => {
            process::with_host_rights(&mut plan, &streams, process, &user.maps);
            joined.join(&mut plan);
            joined.make_time(&mut plan);
        }
    }

    // Sources belong to the host: they are opened before the host is left, where they may block without blocking anybody else.
    let place = rootfs::Place { target: &target, kernel: inputs.kernel };
    let mut namespaces = idmap::Namespaces::default();
    let namespace = user.as_ref().map(|user| user.namespace(&mut plan, &mut namespaces));
    let (mut layers, mut by_path) = rootfs::assemble(&mut plan, roots, helped, &mut namespaces, place)?;
    if is_shown(spec, inputs.rootfs) {
        layers = vec![rootfs::show(&mut plan, &layers, std::mem::take(&mut by_path), &target)?];
    }
    let owners = mounts::Owners { namespaces: &mut namespaces, own: user.as_ref().map(|user| &user.maps) };
    let proc = match (joined.pid(), &user) {
        (Some(namespace), Some(_)) => mounts::ProcBy::InNamespace { namespace, isolate: joined.unborn() },
        (Some(namespace), None) => mounts::ProcBy::InNamespace { namespace, isolate: 0 },
        (None, Some(_)) if joined.new_pid() == 0 => mounts::ProcBy::Host,
        (None, _) => mounts::ProcBy::Itself,
    };
    let root_is_bound = roots.iter().any(RootMount::is_bind);
    let (hierarchies, kernel) = (&inputs.cgroup.mounts, inputs.kernel);
    let places = mounts::Places { bundle, root: &target, root_is_bound, by_path: &mut by_path, kernel, hierarchies, pod, proc };
    let mut mounts = mounts::sources(&mut plan, spec, places, owners)?;
    if opens_devices {
        // The device rules say what the container may open, and its mounts are not its own doing.
        plan.bring_forward(outside_the_cgroup, mounts::opens_device);
    }
    let masks = mounts.mask_sources(&mut plan, spec)?;
    let mut given_devices = if inputs.kernel.in_user_namespace { devices::of_host(&mut plan, spec)? } else { Vec::new() };

    let hooks = has_early_hooks(spec);
    let attached_at = leave_host(&mut plan, by_path, hooks.then_some(target.as_path()), joined.mount())?;
    let root = if let (Some(user), Some(namespace)) = (&user, namespace) {
        let mut shelf = Shelf::new(&mut plan, &layers, &attached_at, hooks, inputs.kernel);
        mounts.shelve(&mut plan, &mut shelf);
        if inputs.kernel.in_user_namespace {
            given_devices.iter().for_each(|(_, mount)| shelf.put(&mut plan, *mount));
        } else {
            given_devices = devices::shelve(&mut plan, spec, &mut shelf, &user.maps)?;
        }
        shelf.close(&mut plan);
        joined.enter_pid(&mut plan);
        user.enter(&mut plan, namespace, joined.unborn() | joined.new_pid());
        joined.prepare(&mut plan);
        process::keyring(&mut plan, inputs.id, inputs.no_new_keyring)?;
        shelf.take_down(&mut plan)
    } else {
        rootfs::attach(&mut plan, &layers, &attached_at)
    };
    mounts::prepare_root(&mut plan, spec, root)?;
    let sealed_later = mounts::attach_all(&mut plan, &mounts, root)?;
    let devices = devices::make(&mut plan, spec, root, &given_devices, inputs.kernel)?;
    process::streams(&mut plan, &streams, process, mounts.devpts, &devices, user.is_some())?;
    if hooks || inputs.networked || !spec.linux.net_devices.is_empty() {
        plan.step(Step::PauseForHooks);
    }
    plan.step(if inputs.no_pivot_root { Step::MoveRoot { root } } else { Step::Pivot { root } });

    // From here on absolute paths are the container's own.
    sysctl::write(&mut plan, &spec.linux.sysctl, mounts.proc)?;
    process::names(&mut plan, spec)?;
    process::make_working_directory(&mut plan, process)?;
    mounts::seal(&mut plan, spec, masks, &sealed_later)?;
    let common = &Joined::of(&spec.linux)?;
    if user.is_none() {
        joined.enter_pid(&mut plan);
    }
    let how = process::Confinement {
        common,
        home: process::Home::LookedUp,
        filter: inputs.filter,
        terminal: streams.is_terminal(),
        birth: joined.pid().is_some(),
        until: process::Until::Started,
    };
    process::confine(&mut plan, process, &kept, how)?;

    let (plan, descriptors) = plan.finish()?;
    // In a user namespace it is made there, and belongs to it.
    let clone_flags = if user.is_none() { joined.new_pid() as u64 } else { 0 };
    let launch = Launch { plan, program: process::program(process)?, clone_flags, cgroup, report };
    Ok(Compiled { launch, descriptors })
}

/// Enters a mount namespace of nothing but the root, and says where the root goes in it. A copy of the host's takes its place where hooks
/// must find their way from there: they look for the root at `visible`. One that is given is taken over, as runc does: once pivoted to, the
/// root is all that is left there, for every process in it.
fn leave_host(plan: &mut Builder, by_path: rootfs::ByPath, visible: Option<&Path>, given: Option<Slot>) -> Result<CString> {
    let slave = Step::Propagation { flags: libc::MS_SLAVE | libc::MS_REC };
    if (visible.is_some() && given.is_none()) || !by_path.is_empty() {
        plan.step(Step::Unshare { flags: libc::CLONE_NEWNS });
        plan.step(slave.clone());
        by_path.emit(plan);
    }
    if let Some(namespace) = given {
        plan.step(Step::Join { namespace, flags: libc::CLONE_NEWNS });
        // What is mounted in it from here on is nobody else's.
        plan.step(slave);
    } else if visible.is_none() {
        plan.step(Step::EnterStub);
    }
    match (visible, given) {
        (Some(path), _) => cstring("bundle", &path.to_string_lossy()),
        (None, Some(_)) => Ok(c"/".to_owned()),
        (None, None) => Ok(c"/r".to_owned()),
    }
}

/// What a process enters a cgroup of version 2 by that it is not born in.
fn procs_of(directory: &OwnedFd) -> Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(directory, c"cgroup.procs", flags, Mode::empty()).context(|| "open cgroup.procs of the container")
}

enum GivenStreams {
    Terminal { served: bool },
    Given([Slot; 3]),
}

impl GivenStreams {
    fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }
}

fn give_streams(plan: &mut Builder, streams: Streams) -> GivenStreams {
    match streams {
        Streams::Terminal { served } => GivenStreams::Terminal { served },
        Streams::Given(streams) => GivenStreams::Given(streams.map(|fd| plan.give(fd))),
    }
}

/// Where the root filesystem is on the host, or where it comes to be in its place in the bundle.
pub fn root_path(spec: &Spec, bundle: &Path, rootfs: &[RootMount]) -> PathBuf {
    if rootfs.is_empty() { spec.root_path(bundle) } else { bundle.join("rootfs") }
}

/// The spec's root as it is, with what is mounted below it.
fn whole_root(spec: &Spec, bundle: &Path) -> RootMount {
    RootMount {
        fstype: "bind".to_owned(),
        source: spec.root_path(bundle).to_string_lossy().into_owned(),
        target: String::new(),
        options: vec!["rbind".to_owned()],
    }
}

/// Hooks that run between the making of the namespaces and the pivot.
pub fn has_early_hooks(spec: &Spec) -> bool {
    let Some(hooks) = &spec.hooks else { return false };
    #[allow(deprecated, reason = "prestart hooks are deprecated, and in use")]
    let prestart = hooks.prestart();
    [prestart, hooks.create_runtime(), hooks.create_container()].into_iter().any(|list| list.as_ref().is_some_and(|list| !list.is_empty()))
}

/// A C string, or the field that holds a NUL.
pub(crate) fn cstring(field: &str, text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid(format!("{field}: {text:?} holds a NUL")))
}

fn cstrings<'a>(field: &str, texts: impl IntoIterator<Item = &'a String>) -> Result<Vec<CString>> {
    texts.into_iter().map(|text| cstring(field, text)).collect()
}

/// `path` without its leading slash, its `.` and `..` resolved as text, as runc cleans destinations: beneath the root in any case.
fn relative(path: &str) -> Result<CString> {
    cstring("path", &clean(Path::new(path)).to_string_lossy())
}

/// The same for any path.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

#[cfg(test)]
mod tests;
