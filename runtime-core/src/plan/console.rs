//! A container's terminal: always from its own devpts, its peer by ioctl and never by name (CVE-2025-52565).

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, OutputModes};

use super::Cover;
use super::child::{Failed, part};
use super::decimal::decimal;
use super::root::{self, Links, Name};
use crate::sys::{process, tty};

/// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// How a pseudoterminal is set up.
#[derive(Clone, Copy)]
pub struct Settings {
    /// Whose the peer is.
    pub uid: u32,
    /// Columns and rows.
    pub size: Option<(u16, u16)>,
    /// Whether a newline is written as a carriage return and a newline: not by one whose output goes to another terminal, which does that.
    pub onlcr: bool,
}

/// Both ends of a new pseudoterminal.
pub struct Console {
    pub master: OwnedFd,
    peer: OwnedFd,
}

/// Opens the multiplexer `name` in `directory`, makes sure that it is one, and the peer the user's.
pub fn open(directory: BorrowedFd<'_>, name: &CStr, settings: Settings) -> Result<Console, Failed> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    from_master(master, settings)
}

/// The same in a container that was joined: its `/dev` may hold anything.
pub fn open_joined(settings: Settings) -> Result<Console, Failed> {
    let slash = rustix::fs::open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // O_PATH first: opening a device that is no terminal could have effects.
    let found = root::lookup(slash.as_fd(), c"dev/ptmx", Links::Follow, OFlags::empty())?;
    if !is_multiplexer(found.as_fd())? {
        return Err(Failed { detail: 1, errno: Errno::NOTTY });
    }
    let master = root::open(slash.as_fd(), c"dev/ptmx", Links::Follow, OFlags::RDWR)?;
    from_master(master, settings)
}

fn from_master(master: OwnedFd, settings: Settings) -> Result<Console, Failed> {
    if !is_multiplexer(master.as_fd())? {
        return Err(Failed { detail: 1, errno: Errno::NOTTY });
    }
    tty::unlock(master.as_fd()).map_err(part(2))?;
    let peer = rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).map_err(part(2))?;
    if let Some((width, height)) = settings.size {
        let size = rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&peer, size).map_err(part(2))?;
    }
    if !settings.onlcr {
        let mut modes = rustix::termios::tcgetattr(&peer).map_err(part(2))?;
        modes.output_modes.remove(OutputModes::ONLCR);
        rustix::termios::tcsetattr(&peer, OptionalActions::Now, &modes).map_err(part(2))?;
    }
    rustix::fs::fchown(&peer, Some(Uid::from_raw(settings.uid)), None).map_err(part(3))?;
    Ok(Console { master, peer })
}

fn is_multiplexer(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let found = rustix::fs::fstat(fd)?;
    let device = FileType::from_raw_mode(found.st_mode).is_char_device() && found.st_rdev == rustix::fs::makedev(5, 2);
    Ok(device && rustix::fs::fstatfs(fd)?.f_type as i64 == DEVPTS_MAGIC)
}

impl Console {
    /// Puts the peer at `/dev/console`: the mount is cloned from the devpts that the peer came from, and compared with it.
    pub fn cover(&self, devpts: BorrowedFd<'_>, devices: BorrowedFd<'_>, cover: Cover) -> Result<(), Failed> {
        if cover == Cover::Never {
            return Ok(());
        }
        let (mut digits, mut name) = ([0; 10], Name::default());
        let name = name.set(decimal(tty::peer_number(self.master.as_fd())?, &mut digits))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        let tree = open_tree(devpts, name, flags).map_err(part(4))?;
        if rustix::fs::fstat(&tree)?.st_rdev != rustix::fs::fstat(&self.peer)?.st_rdev {
            return Err(Failed { detail: 4, errno: Errno::NOTTY });
        }
        let create = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
        if cover == Cover::Made {
            match rustix::fs::openat(devices, c"console", create, Mode::from_raw_mode(0o666)) {
                Ok(_) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(Failed { detail: 5, errno }),
            }
        }
        let target = match rustix::fs::openat(devices, c"console", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::NOENT) if cover == Cover::IfThere => return Ok(()),
            result => result.map_err(part(5))?,
        };
        if FileType::from_raw_mode(rustix::fs::fstat(&target)?.st_mode).is_symlink() {
            return Err(Failed { detail: 5, errno: Errno::LOOP });
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&tree, c"", &target, c"", flags).map_err(part(5))
    }

    /// Makes the peer the three standard streams.
    pub fn become_streams(&self) -> Result<(), Failed> {
        for number in 0..3 {
            process::duplicate_onto(self.peer.as_fd(), number, false).map_err(part(6))?;
        }
        Ok(())
    }
}
