//! Mount helpers: programs of the host's that mount what the kernel cannot mount by itself (mount(8), "EXTERNAL HELPERS").

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, statx};
use rustix::io::{Errno, retry_on_intr};
use rustix::mount::{OpenTreeFlags, UnmountFlags, open_tree, unmount};
use rustix::pipe::{PipeFlags, pipe_with};

use super::{Child, Failed, State, helper_failed, part};
use crate::plan::Slot;
use crate::sys::process::{self, Cloned};

/// As shells say that a program could not be executed.
const NOT_EXECUTED: i32 = 126;

impl Child<'_> {
    pub(super) fn mount_by_helper(&mut self, target: &CStr, mount: Slot, state: &mut State) -> Result<(), Failed> {
        let before = mount_id(target)?;
        let status = self.run_helper(state)?;
        if status != 0 {
            return Err(Failed { detail: helper_failed::STATUS, errno: Errno::from_raw_os_error(status as i32) });
        }
        if mount_id(target)? == before {
            return Err(Failed { detail: helper_failed::NOTHING, errno: Errno::NODEV });
        }
        state.text_length = 0;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(rustix::fs::CWD, target, flags)?;
        // The server is told that its filesystem is gone when nobody has the mount any more, so it must not have it itself.
        unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
        self.fill(mount, tree)
    }

    /// Runs it with nothing but standard streams, and keeps the beginning of what it says.
    fn run_helper(&mut self, state: &mut State) -> Result<u32, Failed> {
        let (said, output) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&said, true)?;
        let helper = match process::clone_as_child(0)? {
            Cloned::Child => {
                let _ = self.become_helper(output.as_fd(), state);
                process::exit(NOT_EXECUTED)
            }
            Cloned::Parent(_, pidfd) => pidfd,
        };
        drop(output);
        listen(helper.as_fd(), said, state)?;
        let ended = retry_on_intr(|| process::wait(helper.as_fd()))?;
        Ok(ended.map_or(0, |ended| ended.status))
    }

    fn become_helper(&mut self, output: BorrowedFd<'_>, state: &State) -> Result<(), Failed> {
        let null = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        process::duplicate_onto(null.as_fd(), 0, false)?;
        process::duplicate_onto(output, 1, false)?;
        process::duplicate_onto(output, 2, false)?;
        process::close_from(3)?;
        self.exec(false, state)
    }

    pub(super) fn keep(&mut self) -> Result<(), Failed> {
        // For people who list processes.
        let _ = rustix::thread::set_name(c"coracle-fuse");
        self.slots.fill_with(|| None);
        process::close_from(3)?;
        loop {
            if let Err(Errno::CHILD) = process::wait_any() {
                process::exit(0);
            }
        }
    }
}

/// Until the helper ends: what it leaves in the background may hold its streams for ever.
fn listen(helper: BorrowedFd<'_>, said: OwnedFd, state: &mut State) -> Result<(), Errno> {
    let mut talking = true;
    loop {
        let watched = if talking { PollFlags::IN } else { PollFlags::empty() };
        let mut both = [PollFd::from_borrowed_fd(helper, PollFlags::IN), PollFd::new(&said, watched)];
        retry_on_intr(|| poll(&mut both[..if talking { 2 } else { 1 }], None))?;
        let ended = !both[0].revents().is_empty();
        talking = take(said.as_fd(), state)?;
        if ended {
            return Ok(());
        }
    }
}

/// Reads all that is there; whether there may be more.
fn take(said: BorrowedFd<'_>, state: &mut State) -> Result<bool, Errno> {
    let mut beyond = [0u8; 256];
    loop {
        let room = &mut state.text[state.text_length..];
        let full = room.is_empty();
        match retry_on_intr(|| rustix::io::read(said, if full { &mut beyond[..] } else { &mut *room })) {
            Ok(0) => return Ok(false),
            Ok(length) if !full => state.text_length += length,
            Ok(_) => {}
            Err(Errno::AGAIN) => return Ok(true),
            Err(errno) => return Err(errno),
        }
    }
}

/// Which mount a path is on, without asking the filesystem.
fn mount_id(path: &CStr) -> Result<u64, Failed> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    Ok(statx(rustix::fs::CWD, path, flags, StatxFlags::MNT_ID).map_err(part(0))?.stx_mnt_id)
}
