//! Steps that make mounts, attach them and fill the root.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_move, move_mount, open_tree, unmount,
};

use super::{Child, Failed, LOCKED, State, attach, part};
use crate::compile::options::BindFlags;
use crate::plan::root::{self, Links, Make, Name, on_procfs};
use crate::plan::{Cover, Filesystem, Node, Slot, Target, console, report};
use crate::sys::{mount, process};

/// How often another process may take the loop device that was just found free.
const LOOP_TRIES: u32 = 64;

/// The details of [`super::Step::NewMount`] from here on are options by their index.
const FIRST_OPTION: u16 = 2;

impl Child<'_> {
    pub(super) fn clone_tree(&mut self, source: &CStr, recursive: bool, follow: bool, mount: Slot) -> Result<(), Failed> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        if !follow {
            flags |= OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        }
        let tree = open_tree(rustix::fs::CWD, source, flags)?;
        self.fill(mount, tree)
    }

    /// `source` is what a loop device was made for; otherwise the options say it.
    pub(super) fn new_mount(
        &mut self,
        source: Option<&CStr>,
        filesystem: &Filesystem,
        mount: Slot,
        state: &mut State,
    ) -> Result<(), Failed> {
        let made = self.make_filesystem(source, filesystem, state)?;
        self.fill(mount, made)
    }

    /// A detached mount of a new filesystem.
    pub(super) fn make_filesystem(&self, source: Option<&CStr>, filesystem: &Filesystem, state: &mut State) -> Result<OwnedFd, Failed> {
        let context = fsopen(filesystem.fstype.as_c_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
        let detached = self.configure(context.as_fd(), source, filesystem, state.mode.take());
        if detached.is_err() {
            // fsopen(2): the context keeps what the filesystem had to say, one "e text" per read.
            state.text_length = rustix::io::read(&context, &mut state.text).unwrap_or(0);
        }
        detached
    }

    fn configure(
        &self,
        context: BorrowedFd<'_>,
        source: Option<&CStr>,
        filesystem: &Filesystem,
        mode: Option<u32>,
    ) -> Result<OwnedFd, Failed> {
        if let Some(mode) = mode {
            let mut text = Name::default();
            fsconfig_set_string(context, c"mode", text.octal(mode)?).map_err(part(1))?;
        }
        if let Some(source) = source {
            fsconfig_set_string(context, c"source", source).map_err(part(1))?;
        }
        for (index, (key, value)) in filesystem.options.iter().enumerate() {
            let number = FIRST_OPTION + index as u16;
            match value {
                Some(value) => fsconfig_set_string(context, key.as_c_str(), value.as_c_str()).map_err(part(number))?,
                None => fsconfig_set_flag(context, key.as_c_str()).map_err(part(number))?,
            }
        }
        for (index, (key, mount)) in filesystem.mounts.iter().enumerate() {
            let number = FIRST_OPTION + (filesystem.options.len() + index) as u16;
            fsconfig_set_fd(context, key.as_c_str(), self.fd(*mount)?).map_err(part(number))?;
        }
        fsconfig_create(context).map_err(part(1))?;
        let attributes = MountAttrFlags::from_bits_retain(filesystem.attributes as u32);
        fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(part(1))
    }

    pub(super) fn loop_mount(
        &mut self,
        source: &CStr,
        direct_io: bool,
        filesystem: &Filesystem,
        mount: Slot,
        state: &mut State,
    ) -> Result<(), Failed> {
        let read_only = filesystem.attributes & mount::attr::RDONLY != 0;
        let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let file = rustix::fs::open(source, access | OFlags::CLOEXEC, Mode::empty())?;
        let control = rustix::fs::open(c"/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let mut name = Name::default();
        // Between the question for a free device and its use somebody else may take it.
        for _ in 0..LOOP_TRIES {
            let number = mount::free_loop_device(control.as_fd())?;
            let path = name.numbered(b"/dev/loop", number)?;
            let device = rustix::fs::open(path, access | OFlags::CLOEXEC, Mode::empty())?;
            match mount::configure_loop_device(device.as_fd(), file.as_fd(), read_only, direct_io) {
                Err(Errno::BUSY | Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
                Ok(()) => return self.new_mount(Some(path), filesystem, mount, state),
            }
        }
        Err(Errno::BUSY.into())
    }

    pub(super) fn overlay_by_path(&mut self, base: &CStr, target: &CStr, flags: u64, data: &CStr, mount: Slot) -> Result<(), Failed> {
        rustix::process::chdir(base).map_err(part(1))?;
        mount::mount_with_data(c"overlay", target, c"overlay", flags, data)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(rustix::fs::CWD, target, flags).map_err(part(2))?;
        unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(part(2))?;
        rustix::process::chdir(c"/").map_err(part(1))?;
        self.fill(mount, tree)
    }

    pub(super) fn attach_root(&mut self, slot: Slot, path: &CStr, root: Slot, state: &mut State) -> Result<(), Failed> {
        self.attach_without_namespaces(slot, state, |mount| {
            move_mount(mount, c"", rustix::fs::CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        })?;
        let mount = self.fd(slot)?;
        // Not by its path: one that is mounted over `/` is not what `/` leads to.
        let opened = rustix::fs::openat(mount, c".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(part(1))?;
        self.fill(root, opened)
    }

    pub(super) fn take_mode(&self, root: Slot, target: &CStr, state: &mut State) -> Result<(), Failed> {
        match root::lookup(self.fd(root)?, target, Links::Follow, OFlags::DIRECTORY) {
            // What is no directory, the attaching will tell of.
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            result => state.mode = Some(rustix::fs::fstat(result?)?.st_mode & 0o7777),
        }
        Ok(())
    }

    pub(super) fn clone_own(&mut self, root: Slot, path: &CStr, recursive: bool, follow: bool, mount: Slot) -> Result<(), Failed> {
        let last = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        let found = root::lookup(self.fd(root)?, path, Links::Follow, last)?;
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let tree = open_tree(&found, c"", flags)?;
        self.fill(mount, tree)
    }

    /// As runc: exactly these flags, and where the kernel keeps some of the source's, those as well.
    pub(super) fn bind_flags(&self, mount: Slot, flags: &BindFlags) -> Result<(), Failed> {
        let mount = self.fd(mount)?;
        match mount::set_attributes(mount, c"", false, flags.set, flags.clear, 0) {
            Err(Errno::PERM) => {}
            result => return Ok(result?),
        }
        let found = mount::attributes(mount)?;
        let times = mount::attr::ATIME_MASK | mount::attr::NODIRATIME;
        let other_times = flags.has_access_time && flags.set & times != found & times;
        if found & flags.unwanted != 0 || other_times {
            return Err(Failed { detail: LOCKED, errno: Errno::PERM });
        }
        let clear = flags.clear & mount::attr::NOSYMFOLLOW;
        Ok(mount::set_attributes(mount, c"", false, flags.set & !times, clear, 0)?)
    }

    pub(super) fn map_owners(&mut self, slot: Slot, namespace: Slot, recursive: bool, state: &mut State) -> Result<(), Failed> {
        match mount::set_idmap(self.fd(slot)?, self.fd(namespace)?, recursive) {
            // A mount namespace that is mounted below has owners that cannot be mapped.
            Err(Errno::INVAL) if recursive && state.host.is_some() && !state.host_copied => self.without_namespaces(slot, state),
            result => Ok(result?),
        }
    }

    pub(super) fn attach(&mut self, slot: Slot, root: Slot, target: &CStr, rule: Target, state: &mut State) -> Result<(), Failed> {
        let mount = self.fd(slot)?;
        if rule == Target::Link && is_link(mount)? {
            return copy_link(mount, self.fd(root)?, target).map_err(part(attach::LINK));
        }
        let links = if matches!(rule, Target::PlainDirectory | Target::Proc) { Links::Refuse } else { Links::Follow };
        let directory = is_directory(mount)?;
        let kind = if directory { Make::Directory } else { Make::File };
        let target = match rule {
            Target::Itself => root::ensure_itself(self.fd(root)?, target, kind),
            _ => root::ensure(self.fd(root)?, target, kind, links),
        };
        let target = target.map_err(part(attach::LOOKUP))?;
        let allowed = match rule {
            Target::Ordinary | Target::PlainDirectory | Target::Itself | Target::Link => !on_procfs(target.as_fd())?,
            Target::Proc => on_procfs(mount)?,
            Target::ProcFile => true,
        };
        if !allowed {
            return Err(Failed { detail: attach::HOSTILE, errno: Errno::PERM });
        }
        self.attach_without_namespaces(slot, state, |mount| match attach_to(mount, target.as_fd()) {
            // move_mount(2) has one errno for much; mount(2) has its own for this mistake, by which Docker knows it.
            Err(Errno::INVAL) if is_directory(target.as_fd())? != directory => Err(Errno::NOTDIR),
            result => result,
        })
    }

    /// mqueue takes no label as an option (runc `libcontainer/rootfs_linux.go`, `mountToRootfs`).
    pub(super) fn file_label(&self, mount: Slot, label: &CStr) -> Result<(), Failed> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(self.fd(mount)?, c".", flags, Mode::empty())?;
        Ok(rustix::fs::fsetxattr(directory, c"security.selinux", label.to_bytes_with_nul(), rustix::fs::XattrFlags::empty())?)
    }

    pub(super) fn open_directory(&mut self, root: Slot, path: &CStr, directory: Slot) -> Result<(), Failed> {
        let opened = root::ensure(self.fd(root)?, path, Make::Directory, Links::Follow)?;
        self.fill(directory, opened)
    }

    pub(super) fn symlink(&self, directory: Slot, name: &CStr, target: &CStr) -> Result<(), Failed> {
        let directory = self.fd(directory)?;
        root::remove(directory, name)?;
        Ok(rustix::fs::symlinkat(target, directory, name)?)
    }

    pub(super) fn device(&mut self, root: Slot, path: &CStr, node: &Node) -> Result<(), Failed> {
        let mut name = Name::default();
        let name = name.set(root::last_component(path.to_bytes()))?;
        let parent = root::parents(self.fd(root)?, path.to_bytes(), Links::Follow).map_err(part(1))?;
        let kind = rustix::fs::FileType::from_raw_mode(node.kind);
        match rustix::fs::mknodat(&parent, name, kind, Mode::from_raw_mode(node.mode), node.device) {
            Ok(()) => {}
            // What the image or a mount has there stays, as with runc and crun: `-v /dev/null:/dev/kmsg --privileged` relies on it. It is
            // not touched, and the runtime uses no device of the container's own.
            Err(Errno::EXIST) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
        let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
        rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(part(2))
    }

    pub(super) fn console(
        &self,
        devpts: Option<Slot>,
        devices: Slot,
        cover: Cover,
        settings: console::Settings,
        state: &State,
    ) -> Result<(), Failed> {
        let devices = self.fd(devices)?;
        let found;
        let devpts = match devpts {
            Some(devpts) => self.fd(devpts)?,
            None => {
                found = root::lookup(devices, c"pts", Links::Refuse, OFlags::DIRECTORY).map_err(part(7))?;
                found.as_fd()
            }
        };
        let console = console::open(devpts, c"ptmx", settings)?;
        report::child::console(self.report(state)?, console.master.as_fd())?;
        console.cover(devpts, devices, cover)?;
        console.become_streams()
    }

    pub(super) fn enter_stub(&self) -> Result<(), Failed> {
        process::setns(self.stub, libc::CLONE_NEWNS)?;
        Ok(process::unshare(libc::CLONE_NEWNS)?)
    }

    pub(super) fn pivot(&mut self, root: Slot) -> Result<(), Failed> {
        rustix::process::fchdir(self.fd(root)?)?;
        rustix::process::pivot_root(c".", c".").map_err(part(1))?;
        unmount(c".", UnmountFlags::DETACH).map_err(part(2))?;
        Ok(rustix::process::chdir(c"/")?)
    }

    pub(super) fn move_root(&mut self, root: Slot) -> Result<(), Failed> {
        rustix::process::fchdir(self.fd(root)?)?;
        mount_move(c".", c"/").map_err(part(1))?;
        rustix::process::chroot(c".").map_err(part(2))?;
        Ok(rustix::process::chdir(c"/")?)
    }

    pub(super) fn mask(&mut self, path: &CStr, null: Slot, empty: Slot) -> Result<(), Failed> {
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

    pub(super) fn sysctl(&mut self, proc: Slot, path: &CStr, value: &CStr) -> Result<(), Failed> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let proc = self.fd(proc)?;
        if !on_procfs(proc)? {
            return Err(Errno::PERM.into());
        }
        let file = rustix::fs::openat2(proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)?;
        rustix::io::write(file, value.to_bytes()).map(drop).map_err(part(1))
    }
}

fn attach_to(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", target, c"", flags)
}

fn is_link(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode).is_symlink())
}

/// Makes the link anew; one of the same text is fine, anything else that is there is not replaced.
fn copy_link(link: BorrowedFd<'_>, root: BorrowedFd<'_>, target: &CStr) -> Result<(), Errno> {
    let (mut text, mut name) = (Name::default(), Name::default());
    let text = text.link(link, c"")?;
    let parent = root::parents(root, target.to_bytes(), Links::Follow)?;
    if on_procfs(parent.as_fd())? {
        return Err(Errno::PERM);
    }
    let name = name.set(root::last_component(target.to_bytes()))?;
    match rustix::fs::symlinkat(text, &parent, name) {
        Err(Errno::EXIST) => {
            let mut found = Name::default();
            if found.link(parent.as_fd(), name).is_ok_and(|found| found == text) { Ok(()) } else { Err(Errno::EXIST) }
        }
        result => result,
    }
}

pub fn is_directory(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode).is_dir())
}

pub fn slash() -> Result<OwnedFd, Errno> {
    rustix::fs::open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Changes the mount at `/`.
pub fn root_attributes(recursive: bool, set: u64, propagation: u64) -> Result<(), Failed> {
    Ok(mount::set_attributes(slash()?.as_fd(), c"", recursive, set, 0, propagation)?)
}

pub fn read_only(path: &CStr) -> Result<(), Failed> {
    let target = match root::lookup(slash()?.as_fd(), path, Links::Follow, OFlags::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        result => result?,
    };
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE;
    let copy = open_tree(&target, c"", flags)?;
    mount::set_attributes(copy.as_fd(), c"", true, mount::attr::RDONLY, 0, 0).map_err(part(1))?;
    attach_to(copy.as_fd(), target.as_fd()).map_err(part(2))
}
