//! mount_setattr(2) and loop devices: what rustix lacks of the mount calls.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::fs::{AtFlags, StatxFlags, statx};
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
    /// What the kernel locks in a user namespace once it is set, besides access times (mount_namespaces(7)).
    pub const LOCKABLE: u64 = RDONLY | NOSUID | NODEV | NOEXEC;
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

/// What [`set_attributes`] has set, or the filesystem itself (statfs(2)).
///
/// # Errors
/// The errno of fstatfs(2).
pub fn attributes(mount: BorrowedFd<'_>) -> Result<u64, Errno> {
    // linux/statfs.h, with `ST_RELATIME` and without `ST_VALID`.
    const NAMES: [(u64, u64); 7] = [
        (0x1, attr::RDONLY),
        (0x2, attr::NOSUID),
        (0x4, attr::NODEV),
        (0x8, attr::NOEXEC),
        (0x400, attr::NOATIME),
        (0x800, attr::NODIRATIME),
        (0x2000, attr::NOSYMFOLLOW),
    ];
    const NO_STRICTATIME: u64 = 0x400 | 0x1000;
    let found = rustix::fs::fstatfs(mount)?.f_flags as u64;
    let strict = if found & NO_STRICTATIME == 0 { attr::STRICTATIME } else { 0 };
    Ok(NAMES.iter().filter(|(shown, _)| found & shown != 0).fold(strict, |all, (_, attribute)| all | attribute))
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

/// Unmounts everything that is mounted at `path`: processes that are inside keep it. It is no error if nothing is mounted there.
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

/// Whether a mount namespace is mounted below an attached mount. Before Linux 6.8 there is no way to know: those kernels attach none.
///
/// # Errors
/// The errno of statx(2), listmount(2) or statmount(2).
pub fn holds_mount_namespace(mount: BorrowedFd<'_>) -> Result<bool, Errno> {
    const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    let found = statx(mount, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, UNIQUE)?;
    if found.stx_mask & UNIQUE.bits() == 0 {
        return Ok(false);
    }
    let (mut below, mut last) = ([0u64; 64], 0);
    loop {
        let request = MountRequest::new(found.stx_mnt_id, last);
        // SAFETY: `request` is as long as it says; `below` holds as many numbers as is said, and outlives the call.
        let listed = check(unsafe { libc::syscall(LISTMOUNT, &raw const request, below.as_mut_ptr(), below.len(), 0) });
        let count = match listed {
            // A filter from outside that does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => return Ok(false),
            result => result?,
        };
        let listed = below.get(..count as usize).unwrap_or_default();
        for mount in listed {
            if is_mount_namespace(*mount)? {
                return Ok(true);
            }
        }
        match listed.last().filter(|_| listed.len() == below.len()) {
            Some(mount) => last = *mount,
            None => return Ok(false),
        }
    }
}

// The same numbers on all architectures that this program is for (asm-generic/unistd.h).
const STATMOUNT: libc::c_long = 457;
const LISTMOUNT: libc::c_long = 458;

/// `struct mnt_id_req` of linux/mount.h, its first version.
#[repr(C)]
struct MountRequest {
    size: u32,
    spare: u32,
    mount: u64,
    parameter: u64,
}

impl MountRequest {
    fn new(mount: u64, parameter: u64) -> Self {
        Self { size: size_of::<Self>() as u32, spare: 0, mount, parameter }
    }
}

/// The root of such a mount is called `mnt:[number]` (proc_pid_ns(5)).
fn is_mount_namespace(mount: u64) -> Result<bool, Errno> {
    const NSFS: u64 = 0x6e73_6673;
    const SB_BASIC_AND_ROOT: u64 = 0x1 | 0x8;
    // struct statmount of linux/mount.h: sb_magic at 24, mnt_root, which counts from the strings at 512, at 104.
    let mut answer = [0u8; 1024];
    let request = MountRequest::new(mount, SB_BASIC_AND_ROOT);
    // SAFETY: `request` is as long as it says; the kernel writes no more to `answer` than its length, which is given.
    let result = check(unsafe { libc::syscall(STATMOUNT, &raw const request, answer.as_mut_ptr(), answer.len(), 0) });
    match result {
        // Unmounted meanwhile; or a name that is longer than that of any namespace.
        Err(Errno::NOENT | Errno::OVERFLOW | Errno::NOSYS | Errno::PERM) => return Ok(false),
        result => result?,
    };
    let (Some(magic), Some(root)) = (answer.get(24..32), answer.get(104..108)) else { return Ok(false) };
    let root = 512 + root.iter().rev().fold(0usize, |number, byte| number << 8 | usize::from(*byte));
    let magic = magic.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    Ok(magic == NSFS && answer.get(root..).is_some_and(|name| name.starts_with(b"mnt:")))
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
