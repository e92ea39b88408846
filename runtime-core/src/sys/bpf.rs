//! bpf(2), as far as a device filter of a cgroup needs it.
//!
//! The structs are the leading fields of the kernel's `union bpf_attr` (include/uapi/linux/bpf.h); bpf(2) takes a shorter attr and reads the rest
//! as zero. It does not always write a shorter one: [`Room`] holds what the kernel may write. Everything here acts on the descriptors given and
//! on no state of the process, so it may be called from anywhere but a signal handler.

use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;

const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
const F_ALLOW_MULTI: u32 = 1 << 1;
const F_REPLACE: u32 = 1 << 2;

/// How often to load again what was interrupted.
const LOADS_MAX: u32 = 20;
/// More programs on one cgroup than anybody has; the kernel's own limit is 64 (`BPF_CGROUP_MAX_PROGS`).
const PROGRAMS_MAX: usize = 64;

/// One eBPF instruction, `struct bpf_insn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Insn {
    /// Operation.
    pub code: u8,
    /// Destination register in the low four bits, source register in the high four.
    pub registers: u8,
    /// Jump or memory offset.
    pub offset: i16,
    /// Immediate operand.
    pub immediate: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// Up to and with `revision`, which Linux 6.17 to 7.1 write for cgroups, too, whatever size they were given (runc#5403).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct IdAttr {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

/// A device filter that the kernel's verifier has accepted.
#[derive(Debug)]
pub struct DeviceProgram(OwnedFd);

impl DeviceProgram {
    /// Loads `program` as `BPF_PROG_TYPE_CGROUP_DEVICE`.
    ///
    /// # Errors
    /// EINVAL or EACCES where the verifier refuses, EPERM without CAP_BPF (or CAP_SYS_ADMIN).
    pub fn load(program: &[Insn]) -> Result<Self, Errno> {
        let license = c"Apache";
        let mut attr = LoadAttr {
            prog_type: PROG_TYPE_CGROUP_DEVICE,
            insn_cnt: u32::try_from(program.len()).map_err(|_| Errno::TOOBIG)?,
            insns: program.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log_buf: 0,
            kern_version: 0,
            prog_flags: 0,
        };
        let mut load = || {
            // SAFETY: `attr` has the layout BPF_PROG_LOAD reads; `insns` points at `insn_cnt` live instructions, `license` at a
            // NUL-terminated literal, and the kernel only reads both.
            unsafe { call(PROG_LOAD, &mut attr) }
        };
        // The verifier gives up when a signal has come (kernel/bpf/verifier.c, `do_check`), such as that of a child's end.
        let interrupted = (1..LOADS_MAX).map(|_| load()).find(|loaded| !matches!(loaded, Err(Errno::AGAIN)));
        let fd = interrupted.unwrap_or_else(load)?;
        // SAFETY: BPF_PROG_LOAD succeeded, so `fd` is a new descriptor (close-on-exec from birth) that nothing else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Attaches to the cgroup v2 directory `cgroup`, beside what others attached, or in the place of `replaced`.
    ///
    /// # Errors
    /// Those of `BPF_PROG_ATTACH`.
    pub fn attach(&self, cgroup: BorrowedFd<'_>, replaced: Option<&Self>) -> Result<(), Errno> {
        let mut attr = AttachAttr {
            target_fd: number(cgroup),
            attach_bpf_fd: number(self.0.as_fd()),
            attach_type: ATTACH_TYPE_CGROUP_DEVICE,
            attach_flags: F_ALLOW_MULTI | if replaced.is_some() { F_REPLACE } else { 0 },
            replace_bpf_fd: replaced.map_or(0, |old| number(old.0.as_fd())),
        };
        // SAFETY: `attr` has the layout BPF_PROG_ATTACH reads and holds no pointer; its descriptors are borrowed and thus open.
        unsafe { call(PROG_ATTACH, &mut attr) }.map(drop)
    }

    /// Detaches from `cgroup`.
    ///
    /// # Errors
    /// Those of `BPF_PROG_DETACH`.
    pub fn detach(&self, cgroup: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut attr = AttachAttr {
            target_fd: number(cgroup),
            attach_bpf_fd: number(self.0.as_fd()),
            attach_type: ATTACH_TYPE_CGROUP_DEVICE,
            attach_flags: 0,
            replace_bpf_fd: 0,
        };
        // SAFETY: `attr` has the layout BPF_PROG_DETACH reads and holds no pointer; its descriptors are borrowed and thus open.
        unsafe { call(PROG_DETACH, &mut attr) }.map(drop)
    }

    /// The device filters attached to `cgroup` itself, not those of its ancestors.
    ///
    /// # Errors
    /// Those of `BPF_PROG_QUERY` and `BPF_PROG_GET_FD_BY_ID`; a program that vanished in between is left out.
    pub fn attached(cgroup: BorrowedFd<'_>) -> Result<Vec<Self>, Errno> {
        let mut ids = [0u32; PROGRAMS_MAX];
        let mut attr = QueryAttr {
            target_fd: number(cgroup),
            attach_type: ATTACH_TYPE_CGROUP_DEVICE,
            prog_ids: ids.as_mut_ptr() as u64,
            prog_cnt: PROGRAMS_MAX as u32,
            ..QueryAttr::default()
        };
        // SAFETY: `attr` has the layout BPF_PROG_QUERY reads and writes; `prog_ids` points at `prog_cnt` numbers that live until after the call.
        unsafe { call(PROG_QUERY, &mut attr) }?;
        let count = (attr.prog_cnt as usize).min(PROGRAMS_MAX);
        ids[..count].iter().filter_map(|id| Self::by_id(*id).transpose()).collect()
    }

    fn by_id(prog_id: u32) -> Result<Option<Self>, Errno> {
        let mut attr = IdAttr { prog_id, next_id: 0, open_flags: 0 };
        // SAFETY: `attr` has the layout BPF_PROG_GET_FD_BY_ID reads and holds no pointer.
        match unsafe { call(PROG_GET_FD_BY_ID, &mut attr) } {
            // SAFETY: the call succeeded, so `fd` is a new descriptor (close-on-exec from birth) that nothing else owns.
            Ok(fd) => Ok(Some(Self(unsafe { OwnedFd::from_raw_fd(fd) }))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// More than `union bpf_attr` has had on any kernel (168 bytes on Linux 6.18).
const ROOM: usize = 512;

/// Where the kernel finds an attr: it may write beyond the size that it was given, and finds zeroes there.
#[repr(C)]
union Room<T: Copy> {
    attr: T,
    bytes: [u64; ROOM / 8],
}

/// # Safety
/// `T` must be laid out as the leading part of `union bpf_attr` that `command` uses, and every pointer in it must be good for what `command` does with it.
unsafe fn call<T: Copy>(command: libc::c_int, attr: &mut T) -> Result<libc::c_int, Errno> {
    let result = in_room(attr, |place, size| {
        // SAFETY: `place` is live and longer than any attr; the rest is this function's own contract.
        unsafe { libc::syscall(libc::SYS_bpf, command, place, size) }
    });
    super::check(result).map(|value| value as libc::c_int)
}

/// Lets `ask` read and write the attr in a [`Room`] of its own, by address and size.
fn in_room<T: Copy, R>(attr: &mut T, ask: impl FnOnce(*mut c_void, usize) -> R) -> R {
    const { assert!(size_of::<T>() <= ROOM) };
    let mut room: Room<T> = Room { bytes: [0; ROOM / 8] };
    room.attr = *attr;
    let result = ask((&raw mut room).cast(), size_of::<T>());
    // SAFETY: the attr was written above; the kernel has replaced fields of it by numbers.
    *attr = unsafe { room.attr };
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands beside an attr on the stack of a caller.
    #[repr(C)]
    struct Beside {
        before: [u64; 8],
        attr: QueryAttr,
        after: [u64; 64],
    }

    #[test]
    fn what_the_kernel_writes_beyond_an_attr_hits_nothing_else() {
        let attr = QueryAttr { target_fd: 7, prog_ids: 9, prog_cnt: 64, ..QueryAttr::default() };
        let mut beside = Beside { before: [!0; 8], attr, after: [!0; 64] };
        let seen = in_room(&mut beside.attr, |place, size| {
            let place = place.cast::<u64>();
            // SAFETY: the room is of that many words, by its contract.
            let words = unsafe { std::slice::from_raw_parts_mut(place, ROOM / 8) };
            let seen = (size, words[..4].to_vec(), words[size / 8..].iter().all(|word| *word == 0));
            // A kernel that knows nothing of sizes: the count of programs, the revision, and all that may come later.
            words[3] = 2;
            words[7..].fill(u64::from_ne_bytes(*b"revision"));
            seen
        });
        let (size, head, zeroed) = seen;
        // Offset and length of `query.revision`.
        assert!(size >= 56 + 8 && size % 8 == 0, "{size}");
        assert_eq!(head, [7, 0, 9, 64]);
        assert!(zeroed, "the kernel refuses what it does not know and is not zero");
        assert_eq!((beside.attr.prog_cnt, beside.attr.revision), (2, u64::from_ne_bytes(*b"revision")));
        assert!(beside.before.iter().chain(&beside.after).all(|word| *word == !0));
    }
}
