//! mount_setattr(2) and loop devices: what rustix lacks of the mount calls.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::check;

/// `MOUNT_ATTR_RDONLY` and its family, mount_setattr(2).
pub mod attr {
    /// Read-only mount.
    pub const RDONLY: u64 = 0x1;
    /// Set-user-ID bits and file capabilities are ignored.
    pub const NOSUID: u64 = 0x2;
    /// Device files are not opened.
    pub const NODEV: u64 = 0x4;
    /// Nothing is executed.
    pub const NOEXEC: u64 = 0x8;
    /// The three access time modes, of which one holds.
    pub const ATIME_MASK: u64 = 0x70;
    /// Access times are never updated.
    pub const NOATIME: u64 = 0x10;
    /// Access times are always updated.
    pub const STRICTATIME: u64 = 0x20;
    /// Access times of directories are not updated.
    pub const NODIRATIME: u64 = 0x80;
    /// Symbolic links are not followed.
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
}

#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// Changes attributes (`set`, `clear`) and the propagation type (`MS_SHARED` …, 0 leaves it) of the mount behind `mount`, with everything
/// below it if `recursive`.
///
/// # Errors
/// `EINVAL` for an attribute the filesystem or kernel does not know, `EPERM` for a locked one, `EBUSY` where writers exist.
pub fn set_attributes(mount: BorrowedFd<'_>, path: &CStr, recursive: bool, set: u64, clear: u64, propagation: u64) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    change(mount, path, flags, &MountAttr { set, clear, propagation, userns: 0 })
}

fn change(mount: BorrowedFd<'_>, path: &CStr, flags: i32, attributes: &MountAttr) -> Result<(), Errno> {
    // SAFETY: `path` is NUL-terminated, `attributes` outlives the call and is as long as is said; the kernel only reads both.
    check(unsafe {
        libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), path.as_ptr(), flags, ptr::from_ref(attributes), size_of::<MountAttr>())
    })
    .map(drop)
}

/// Makes the mount behind `mount`, which must be detached, show its files' owners as the maps of the user namespace `namespace` say
/// (`MOUNT_ATTR_IDMAP`, mount_setattr(2)); if `recursive`, those below it, too.
///
/// # Errors
/// `EINVAL` if the filesystem cannot be idmapped or the mount is already, `EPERM` for the initial user namespace.
pub fn set_idmap(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>, recursive: bool) -> Result<(), Errno> {
    const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
    change(
        mount,
        c"",
        libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 },
        &MountAttr { set: MOUNT_ATTR_IDMAP, userns: namespace.as_raw_fd() as u64, ..MountAttr::default() },
    )
}

/// Unmounts everything that is mounted at `path`: whoever is inside keeps it. Nothing there is fine.
///
/// # Errors
/// The errno of umount2(2).
pub fn detach_all(path: &CStr) -> Result<(), Errno> {
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // No mount point (any more), or no path.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
}

/// mount(2) with a data string, for the kernels on which overlay cannot be made through descriptors.
///
/// # Errors
/// The errno of mount(2).
pub fn mount_with_data(source: &CStr, target: &CStr, fstype: &CStr, flags: u64, data: &CStr) -> Result<(), Errno> {
    // SAFETY: all four strings are NUL-terminated and only read.
    check(libc::c_long::from(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), fstype.as_ptr(), flags, data.as_ptr().cast()) }))
        .map(drop)
}

/// An idle loop device's number (`LOOP_CTL_GET_FREE`), made if there is none.
///
/// # Errors
/// The errno of ioctl(2) on `/dev/loop-control`.
pub fn free_loop_device(control: BorrowedFd<'_>) -> Result<u32, Errno> {
    const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
    // SAFETY: this request takes no argument.
    check(libc::c_long::from(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })).map(|n| n as u32)
}

/// Binds `file` to the loop device `device`, which frees itself when its last user is gone (`LOOP_CONFIGURE`, Linux 5.8, autoclear).
///
/// # Errors
/// `EBUSY` if somebody else took the device first: ask for another one.
pub fn configure_loop_device(device: BorrowedFd<'_>, file: BorrowedFd<'_>, read_only: bool, direct_io: bool) -> Result<(), Errno> {
    const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
    const LO_FLAGS_READ_ONLY: u32 = 1;
    const LO_FLAGS_AUTOCLEAR: u32 = 4;
    const LO_FLAGS_DIRECT_IO: u32 = 16;
    // struct loop_config of linux/loop.h: fd, block_size, struct loop_info64 (232 bytes, lo_flags at 52), 8 reserved words.
    let mut config = [0u8; 4 + 4 + 232 + 64];
    config[..4].copy_from_slice(&(file.as_raw_fd() as u32).to_ne_bytes());
    let flags = LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 } | if direct_io { LO_FLAGS_DIRECT_IO } else { 0 };
    config[8 + 52..8 + 56].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: `config` is as long as the request's structure and outlives the call; the kernel only reads it.
    check(libc::c_long::from(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, config.as_ptr()) })).map(drop)
}
