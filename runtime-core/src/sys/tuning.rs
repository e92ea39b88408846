//! sched_setattr(2), ioprio_set(2), sched_setaffinity(2), personality(2), set_mempolicy(2).

use rustix::io::Errno;

use super::check;

/// `struct sched_attr` up to its 56th byte (include/uapi/linux/sched/types.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SchedulerAttributes {
    /// Bytes of this structure.
    pub size: u32,
    /// The policy's number.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For the policies of time sharing.
    pub nice: i32,
    /// For those of real time.
    pub priority: u32,
    /// For the deadline policy, in nanoseconds.
    pub runtime: u64,
    /// The same.
    pub deadline: u64,
    /// The same.
    pub period: u64,
    /// For the flags of utilisation clamps.
    pub utilisation: [u32; 2],
}

/// sched_setattr(2) of the caller.
///
/// # Errors
/// `EPERM` without CAP_SYS_NICE, `EINVAL`, `EBUSY` where there is no bandwidth.
pub fn set_scheduler(mut attributes: SchedulerAttributes) -> Result<(), Errno> {
    attributes.size = size_of::<SchedulerAttributes>() as u32;
    // SAFETY: the kernel reads `size` bytes of the structure, all of which are initialised; with E2BIG it writes the size that it knows.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw mut attributes, 0) }).map(drop)
}

/// ioprio_set(2) of the caller.
///
/// # Errors
/// `EPERM` for the class of real time without CAP_SYS_ADMIN or CAP_SYS_NICE.
pub fn set_io_priority(value: u32) -> Result<(), Errno> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) }).map(drop)
}

/// sched_setaffinity(2) of the caller.
///
/// # Errors
/// `EINVAL` if none of the processors is there, or allowed.
pub fn set_affinity(mask: &[u64]) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many bytes as it is told, all of the slice.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(mask), mask.as_ptr()) }).map(drop)
}

/// personality(2) of the caller.
///
/// # Errors
/// None is documented for the two that are used.
pub fn set_personality(value: u32) -> Result<(), Errno> {
    // SAFETY: a plain integer.
    check(unsafe { libc::syscall(libc::SYS_personality, libc::c_ulong::from(value)) }).map(drop)
}

/// set_mempolicy(2) of the caller. An empty mask is none.
///
/// # Errors
/// `EINVAL` for a mode that wants nodes and has none, or nodes that are not there; `ENOSYS` without NUMA.
pub fn set_memory_policy(mode: u32, nodes: &[u64]) -> Result<(), Errno> {
    // The kernel takes one bit less than it is told (get_nodes of mm/mempolicy.c).
    let bits = if nodes.is_empty() { 0 } else { nodes.len() * 64 + 1 };
    let mask = if nodes.is_empty() { std::ptr::null() } else { nodes.as_ptr() };
    // SAFETY: the kernel reads `bits - 1` bits of the mask, all of the slice, or nothing of a null pointer.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) }).map(drop)
}
