//! Runs a plan in the new process.
//!
//! The process is a copy of the launcher. Nothing here allocates, locks, logs or panics; strings and arrays were made before the clone.
//! Until execve it is not dumpable: what it can see of the host, no process of the container may look at.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, mount_move, move_mount, open_tree, unmount,
};

use super::console;
use super::report::{self, TEXT_MAX};
use super::root::{self, Links, Make, Name};
use super::{Launch, Slot, Step, Target};
use crate::sys::process::{self, StringArray};
use crate::sys::{mount, security, tty};

/// `PROC_SUPER_MAGIC` of linux/magic.h.
const PROC_MAGIC: i64 = 0x9fa0;
const HIGHEST_CAPABILITY: u32 = 63;

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
}

/// Details of [`Step::WorkingDirectory`].
pub(crate) const OUTSIDE: u16 = 1;

/// Everything the new process has, made before the clone.
pub struct Child<'a> {
    /// What to do.
    pub launch: &'a Launch,
    /// The program's arguments.
    pub arguments: &'a StringArray,
    /// The program's environment.
    pub environment: &'a StringArray,
    /// The table of descriptors.
    pub slots: &'a mut [Option<OwnedFd>],
    /// The launcher's nearly empty mount namespace.
    pub stub: BorrowedFd<'a>,
}

/// Runs the plan. Ends in execve or `_exit`; never returns.
pub fn run(mut child: Child<'_>) -> ! {
    let _ = process::forbid_dump();
    process::reset_signals();
    let mut state = State { program: None, entered: false, report: None, text: [0; TEXT_MAX], text_length: 0 };
    for (index, step) in child.launch.plan.steps.iter().enumerate() {
        if let Err(failed) = child.perform(step, &mut state) {
            if let Ok(report) = child.report(&state) {
                report::child::failed(report, index as u16, failed.detail, failed.errno, &state.text[..state.text_length]);
            }
            process::exit(1);
        }
    }
    process::exit(1)
}

/// The little that later steps take from earlier ones.
struct State {
    program: Option<usize>,
    entered: bool,
    report: Option<i32>,
    text: [u8; TEXT_MAX],
    text_length: usize,
}

impl Child<'_> {
    fn fd(&self, slot: Slot) -> Result<BorrowedFd<'_>, Errno> {
        self.slots.get(usize::from(slot.0)).and_then(Option::as_ref).map(AsFd::as_fd).ok_or(Errno::BADF)
    }

    fn fill(&mut self, slot: Slot, fd: OwnedFd) -> Result<(), Failed> {
        *self.slots.get_mut(usize::from(slot.0)).ok_or(Errno::BADF)? = Some(fd);
        Ok(())
    }

    fn report(&self, state: &State) -> Result<BorrowedFd<'_>, Errno> {
        match state.report {
            Some(number) => Ok(process::borrow_number(number)),
            None => self.fd(self.launch.report),
        }
    }

    fn perform(&mut self, step: &Step, state: &mut State) -> Result<(), Failed> {
        match step {
            Step::JoinCgroup { procs } => Ok(rustix::io::write(self.fd(*procs)?, b"0").map(drop)?),
            Step::OomScoreAdj { score } => oom_score_adj(*score),
            Step::NewKeyring { name } => new_keyring(name),
            Step::Join { namespace, flags } => Ok(process::setns(self.fd(*namespace)?, *flags)?),
            Step::Unshare { flags } => Ok(process::unshare(*flags)?),
            Step::Loopback => loopback(),
            Step::Session => Ok(rustix::process::setsid().map(drop)?),

            Step::CloneTree { source, recursive, mount } => self.clone_tree(source, *recursive, *mount),
            Step::NewMount { fstype, options, attributes, mount } => self.new_mount(None, fstype, options, *attributes, *mount, state),
            Step::LoopMount { source, direct_io, fstype, options, attributes, mount } => {
                self.loop_mount(source, *direct_io, fstype, options, *attributes, *mount, state)
            }
            Step::Attributes { mount, recursive, set, clear, propagation } => {
                Ok(mount::set_attributes(self.fd(*mount)?, c"", *recursive, *set, *clear, *propagation)?)
            }
            Step::OverlayByPath { base, target, flags, data, mount } => self.overlay_by_path(base, target, *flags, data, *mount),

            Step::EnterStub => {
                process::setns(self.stub, libc::CLONE_NEWNS)?;
                Ok(process::unshare(libc::CLONE_NEWNS)?)
            }
            Step::Propagation { flags } => Ok(mount_change(c"/", MountPropagationFlags::from_bits_retain(*flags as u32))?),
            Step::AttachRoot { mount, path, root } => self.attach_root(*mount, path, *root),
            Step::Attach { mount, root, target, rule } => self.attach(*mount, *root, target, *rule),
            Step::OpenDirectory { root, path, directory } => {
                let opened = root::ensure(self.fd(*root)?, path, Make::Directory, Links::Follow)?;
                self.fill(*directory, opened)
            }
            Step::MakeDirectory { directory, name, mode } => Ok(root::make_directory(self.fd(*directory)?, name, *mode)?),
            Step::Device { root, path, kind, mode, device, uid, gid } => self.device(*root, path, *kind, *mode, *device, (*uid, *gid)),
            Step::Symlink { directory, name, target } => {
                let directory = self.fd(*directory)?;
                root::remove(directory, name)?;
                Ok(rustix::fs::symlinkat(target.as_c_str(), directory, name.as_c_str())?)
            }
            Step::Console { devpts, devices, uid, size } => {
                let console = console::open(self.fd(*devpts)?, c"ptmx", *uid, *size)?;
                report::child::console(self.report(state)?, console.master.as_fd())?;
                console.cover(self.fd(*devpts)?, self.fd(*devices)?)?;
                console.control()
            }
            Step::JoinedConsole { uid, size } => {
                let console = console::open_joined(*uid, *size)?;
                report::child::console(self.report(state)?, console.master.as_fd())?;
                console.control()
            }

            Step::PauseForHooks => Ok(report::child::hooks(self.report(state)?)?),
            Step::Pivot { root } => self.pivot(*root),
            Step::MoveRoot { root } => self.move_root(*root),
            Step::RootAttributes { recursive, set, propagation } => {
                let slash = slash()?;
                Ok(mount::set_attributes(slash.as_fd(), c"", *recursive, *set, 0, *propagation)?)
            }
            Step::ReadOnly { path } => read_only(path),
            Step::Mask { path, null, empty } => self.mask(path, *null, *empty),

            Step::HostName { name } => Ok(rustix::system::sethostname(name.to_bytes())?),
            Step::DomainName { name } => Ok(security::set_domain_name(name.to_bytes())?),
            Step::Sysctl { proc, path, value } => self.sysctl(*proc, path, value),

            Step::Stream { number, from } => Ok(process::duplicate_onto(self.fd(*from)?, *number, false)?),
            Step::OwnStreams { uid } => own_streams(*uid),
            Step::Rlimit { resource, soft, hard } => Ok(security::set_rlimit(*resource, *soft, *hard)?),
            Step::Umask { mask } => {
                rustix::process::umask(Mode::from_raw_mode(*mask));
                Ok(())
            }
            Step::MakeWorkingDirectory { path } => make_working_directory(path),
            Step::BoundingSet { keep } => bounding_set(*keep),
            Step::Seccomp { program, flags } => Ok(security::load_filter(program, *flags)?),
            Step::NoNewPrivileges => Ok(security::no_new_privileges()?),
            Step::Identity { uid, gid, groups } => identity(*uid, *gid, groups),
            Step::Capabilities { effective, permitted, inheritable, ambient } => {
                capabilities(*effective, *permitted, *inheritable, *ambient)
            }
            Step::WorkingDirectory { path, later } => working_directory(path, *later, state),
            Step::FindProgram => self.find_program(state),
            Step::Relocate { above } => self.relocate(*above),
            Step::CloseOthers { first } => self.close_others(*first, state),
            Step::Ready => Ok(report::child::ready(self.report(state)?)?),
            Step::Exec => self.exec(state),
        }
    }

    fn clone_tree(&mut self, source: &CStr, recursive: bool, mount: Slot) -> Result<(), Failed> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let tree = open_tree(rustix::fs::CWD, source, flags)?;
        self.fill(mount, tree)
    }

    /// `source` is what a loop device was made for; otherwise the options say it.
    fn new_mount(
        &mut self,
        source: Option<&CStr>,
        fstype: &CStr,
        options: &[(CString, Option<CString>)],
        attributes: u64,
        mount: Slot,
        state: &mut State,
    ) -> Result<(), Failed> {
        let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
        let detached = configure(context.as_fd(), source, options, attributes);
        if detached.is_err() {
            // fsopen(2): the context keeps what the filesystem had to say, one "e text" per read.
            state.text_length = rustix::io::read(&context, &mut state.text).unwrap_or(0);
        }
        self.fill(mount, detached?)
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one step")]
    fn loop_mount(
        &mut self,
        source: &CStr,
        direct_io: bool,
        fstype: &CStr,
        options: &[(CString, Option<CString>)],
        attributes: u64,
        mount: Slot,
        state: &mut State,
    ) -> Result<(), Failed> {
        let read_only = attributes & mount::attr::RDONLY != 0;
        let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let file = rustix::fs::open(source, access | OFlags::CLOEXEC, Mode::empty())?;
        let control = rustix::fs::open(c"/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let mut name = Name::default();
        // Between the question for a free device and its use somebody else may take it.
        for _ in 0..64 {
            let number = mount::free_loop_device(control.as_fd())?;
            let path = loop_path(number, &mut name)?;
            let device = rustix::fs::open(path, access | OFlags::CLOEXEC, Mode::empty())?;
            match mount::configure_loop_device(device.as_fd(), file.as_fd(), read_only, direct_io) {
                Err(Errno::BUSY) => {}
                Err(errno) => return Err(errno.into()),
                Ok(()) => return self.new_mount(Some(path), fstype, options, attributes, mount, state),
            }
        }
        Err(Errno::BUSY.into())
    }

    fn overlay_by_path(&mut self, base: &CStr, target: &CStr, flags: u64, data: &CStr, mount: Slot) -> Result<(), Failed> {
        rustix::process::chdir(base).map_err(part(1))?;
        mount::mount_with_data(c"overlay", target, c"overlay", flags, data)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(rustix::fs::CWD, target, flags).map_err(part(2))?;
        unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(part(2))?;
        rustix::process::chdir(c"/").map_err(part(1))?;
        self.fill(mount, tree)
    }

    fn attach_root(&mut self, mount: Slot, path: &CStr, root: Slot) -> Result<(), Failed> {
        move_mount(self.fd(mount)?, c"", rustix::fs::CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(part(1))?;
        self.fill(root, opened)
    }

    fn attach(&mut self, mount: Slot, root: Slot, target: &CStr, rule: Target) -> Result<(), Failed> {
        let mount = self.fd(mount)?;
        let links = if matches!(rule, Target::PlainDirectory | Target::Proc) { Links::Refuse } else { Links::Follow };
        let kind = if is_directory(mount)? { Make::Directory } else { Make::File };
        let target = root::ensure(self.fd(root)?, target, kind, links).map_err(part(attach::LOOKUP))?;
        let allowed = match rule {
            Target::Ordinary => !on_procfs(target.as_fd())?,
            Target::PlainDirectory => !on_procfs(target.as_fd())?,
            Target::Proc => on_procfs(mount)?,
            Target::ProcFile => true,
        };
        if !allowed {
            return Err(Failed { detail: attach::HOSTILE, errno: Errno::PERM });
        }
        attach_to(mount, target.as_fd()).map_err(part(attach::MOVE))
    }

    fn device(&mut self, root: Slot, path: &CStr, kind: u32, mode: u32, device: u64, (uid, gid): (u32, u32)) -> Result<(), Failed> {
        let mut name = Name::default();
        let name = name.set(root::last_component(path.to_bytes()))?;
        let parent = root::parents(self.fd(root)?, path.to_bytes(), Links::Follow).map_err(part(1))?;
        let kind = rustix::fs::FileType::from_raw_mode(kind);
        match rustix::fs::mknodat(&parent, name, kind, Mode::from_raw_mode(mode), device) {
            Ok(()) => {}
            // The image or a mount may hold the very device already; anything else under that name is not ours to trust.
            Err(Errno::EXIST) => {
                let found = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                let same = rustix::fs::FileType::from_raw_mode(found.st_mode) == kind && found.st_rdev == device;
                return if same { Ok(()) } else { Err(Failed { detail: 2, errno: Errno::EXIST }) };
            }
            Err(errno) => return Err(errno.into()),
        }
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        Ok(rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(part(3))?)
    }

    fn pivot(&mut self, root: Slot) -> Result<(), Failed> {
        rustix::process::fchdir(self.fd(root)?)?;
        rustix::process::pivot_root(c".", c".").map_err(part(1))?;
        unmount(c".", UnmountFlags::DETACH).map_err(part(2))?;
        Ok(rustix::process::chdir(c"/")?)
    }

    fn move_root(&mut self, root: Slot) -> Result<(), Failed> {
        rustix::process::fchdir(self.fd(root)?)?;
        mount_move(c".", c"/").map_err(part(1))?;
        rustix::process::chroot(c".").map_err(part(2))?;
        Ok(rustix::process::chdir(c"/")?)
    }

    fn mask(&mut self, path: &CStr, null: Slot, empty: Slot) -> Result<(), Failed> {
        let target = match root::lookup(slash()?.as_fd(), path, Links::Follow, OFlags::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            result => result?,
        };
        let cover = if is_directory(target.as_fd())? { self.fd(empty)? } else { self.fd(null)? };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        match open_tree(cover, c"", flags) {
            Ok(copy) => Ok(attach_to(copy.as_fd(), target.as_fd()).map_err(part(1))?),
            // Only an attached mount can be cloned on most kernels: the first path gets the mount itself.
            Err(Errno::INVAL) => Ok(attach_to(cover, target.as_fd()).map_err(part(1))?),
            Err(errno) => Err(errno.into()),
        }
    }

    fn sysctl(&mut self, proc: Slot, path: &CStr, value: &CStr) -> Result<(), Failed> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let proc = self.fd(proc)?;
        if !on_procfs(proc)? {
            return Err(Errno::PERM.into());
        }
        let file = rustix::fs::openat2(proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)?;
        Ok(rustix::io::write(file, value.to_bytes()).map(drop).map_err(part(1))?)
    }

    fn find_program(&mut self, state: &mut State) -> Result<(), Failed> {
        let mut best = Errno::NOENT;
        for (index, path) in self.launch.program.candidates.iter().enumerate() {
            match executable(path) {
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
        Ok(())
    }

    fn close_others(&mut self, first: i32, state: &mut State) -> Result<(), Failed> {
        let report = usize::from(self.launch.report.0);
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if index != report {
                *slot = None;
            }
        }
        process::duplicate_onto(self.fd(self.launch.report)?, first, true)?;
        state.report = Some(first);
        Ok(process::close_from(first as u32 + 1)?)
    }

    fn exec(&mut self, state: &State) -> Result<(), Failed> {
        let path = state.program.and_then(|index| self.launch.program.candidates.get(index)).ok_or(Errno::NOENT)?;
        Err(process::execve(path, self.arguments, self.environment).into())
    }
}

fn configure(
    context: BorrowedFd<'_>,
    source: Option<&CStr>,
    options: &[(CString, Option<CString>)],
    attributes: u64,
) -> Result<OwnedFd, Failed> {
    if let Some(source) = source {
        fsconfig_set_string(context, c"source", source).map_err(part(1))?;
    }
    for (index, (key, value)) in options.iter().enumerate() {
        let number = 2 + index as u16;
        match value {
            Some(value) => fsconfig_set_string(context, key.as_c_str(), value.as_c_str()).map_err(part(number))?,
            None => fsconfig_set_flag(context, key.as_c_str()).map_err(part(number))?,
        }
    }
    fsconfig_create(context).map_err(part(1))?;
    let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(part(1))
}

fn loop_path(number: u32, name: &mut Name) -> Result<&CStr, Errno> {
    let mut text = *b"/dev/loop0000000000";
    let mut digits = [0u8; 10];
    let (mut rest, mut count) = (number, 0);
    loop {
        digits[count] = b'0' + (rest % 10) as u8;
        rest /= 10;
        count += 1;
        if rest == 0 {
            break;
        }
    }
    for index in 0..count {
        text[9 + index] = digits[count - 1 - index];
    }
    name.set(&text[..9 + count])
}

fn attach_to(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", target, c"", flags)
}

fn is_directory(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode).is_dir())
}

fn on_procfs(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(rustix::fs::fstatfs(fd)?.f_type as i64 == PROC_MAGIC)
}

fn slash() -> Result<OwnedFd, Errno> {
    rustix::fs::open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn read_only(path: &CStr) -> Result<(), Failed> {
    let target = match root::lookup(slash()?.as_fd(), path, Links::Follow, OFlags::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        result => result?,
    };
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE;
    let copy = open_tree(&target, c"", flags)?;
    mount::set_attributes(copy.as_fd(), c"", true, mount::attr::RDONLY, 0, 0).map_err(part(1))?;
    Ok(attach_to(copy.as_fd(), target.as_fd()).map_err(part(2))?)
}

fn oom_score_adj(score: i32) -> Result<(), Failed> {
    let mut text = [0u8; 8];
    let (mut rest, mut at) = (score.unsigned_abs(), text.len());
    loop {
        at -= 1;
        text[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 || at == 1 {
            break;
        }
    }
    if score < 0 {
        at -= 1;
        text[at] = b'-';
    }
    let file = rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::io::write(file, &text[at..]).map(drop)?)
}

fn new_keyring(name: &CStr) -> Result<(), Failed> {
    match security::new_session_keyring(name) {
        Ok(()) | Err(Errno::NOSYS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Router advertisements could re-route a container that has its own addresses (CVE-2020-10749).
fn loopback() -> Result<(), Failed> {
    for path in [c"/proc/sys/net/ipv6/conf/all/accept_ra", c"/proc/sys/net/ipv6/conf/default/accept_ra"] {
        match rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => drop(rustix::io::write(file, b"0").map_err(part(1))?),
            // A kernel without IPv6.
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(Failed { detail: 1, errno }),
        }
    }
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    Ok(tty::set_loopback_up(socket.as_fd())?)
}

fn own_streams(uid: u32) -> Result<(), Failed> {
    let null = rustix::fs::makedev(1, 3);
    for number in 0..3 {
        let stream = process::borrow_number(number);
        let found = rustix::fs::fstat(stream)?;
        let is_null = rustix::fs::FileType::from_raw_mode(found.st_mode).is_char_device() && found.st_rdev == null;
        if is_null || found.st_uid == uid {
            continue;
        }
        match rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), None) {
            // A file of a read-only or foreign filesystem stays whose it is.
            Ok(()) | Err(Errno::ROFS | Errno::PERM | Errno::INVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn make_working_directory(path: &CStr) -> Result<(), Failed> {
    let slash = slash()?;
    let path = path.to_bytes();
    let mut name = Name::default();
    let relative = name.set(path.strip_prefix(b"/").unwrap_or(path))?;
    match root::ensure(slash.as_fd(), relative, Make::Directory, Links::Follow) {
        // A read-only image without the directory: entering it will say so.
        Ok(_) | Err(Errno::ROFS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn bounding_set(keep: u64) -> Result<(), Failed> {
    for capability in 0..=HIGHEST_CAPABILITY {
        if keep & (1 << capability) != 0 {
            continue;
        }
        match security::drop_bounding(capability) {
            Ok(()) => {}
            // Past the last one that this kernel knows.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn identity(uid: u32, gid: u32, groups: &[u32]) -> Result<(), Failed> {
    security::keep_capabilities(true)?;
    security::set_groups(groups).map_err(part(1))?;
    security::set_gid(gid).map_err(part(2))?;
    security::set_uid(uid).map_err(part(3))?;
    // A change of user makes a process undumpable anyway, but not from root to root.
    Ok(process::forbid_dump()?)
}

fn capabilities(effective: u64, permitted: u64, inheritable: u64, ambient: u64) -> Result<(), Failed> {
    security::clear_ambient()?;
    security::set_capabilities(effective, permitted, inheritable)?;
    for capability in 0..=HIGHEST_CAPABILITY {
        if ambient & (1 << capability) != 0 {
            security::raise_ambient(capability).map_err(part(1))?;
        }
    }
    Ok(security::keep_capabilities(false)?)
}

/// As runc: root tries first, since the directory may be closed to the user; then the user, whose network filesystem may be closed to root.
fn working_directory(path: &CStr, later: bool, state: &mut State) -> Result<(), Failed> {
    if !state.entered {
        match rustix::process::chdir(path) {
            Ok(()) => state.entered = true,
            Err(Errno::ACCESS | Errno::PERM) if later => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
    // A path through a descriptor of the host would leave the process outside its root (CVE-2024-21626).
    if process::working_directory_is_reachable()? { Ok(()) } else { Err(Failed { detail: OUTSIDE, errno: Errno::NOENT }) }
}

fn executable(path: &CStr) -> Result<(), Errno> {
    let found = rustix::fs::stat(path)?;
    if rustix::fs::FileType::from_raw_mode(found.st_mode).is_dir() {
        return Err(Errno::ISDIR);
    }
    rustix::fs::accessat(rustix::fs::CWD, path, rustix::fs::Access::EXEC_OK, AtFlags::EACCESS)
}
