//! clone3(2), execve(2), setns(2), unshare(2), close_range(2), waitid(2), prctl(2).

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::ptr;

use rustix::fs::{FileType, Stat, makedev};
use rustix::io::Errno;

use super::check;

/// clone3(2), Linux 5.7; the constant of the libc crate overflows its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which of the two processes a clone returned in.
pub enum Cloned {
    /// The new process.
    Child,
    /// The caller, with the child's process id and a pidfd that is close-on-exec.
    Parent(libc::pid_t, OwnedFd),
}

/// clone3(2) without shared memory: a copy of the caller with the namespaces of `flags`, born inside `cgroup` if one is given
/// (`CLONE_INTO_CGROUP`, cgroup v2 only), whose parent is the *caller's* parent (`CLONE_PARENT`; the exit signal is then the caller's own).
///
/// The caller must be a single-threaded process, or the child may only use what is safe after fork in a threaded one; every child of this
/// crate ends in [`execve`] or [`exit`].
///
/// # Errors
/// The errno of clone3(2): `EINVAL` for flags this kernel lacks, `EAGAIN` at a process limit, `EBUSY` for an unusable cgroup.
pub fn clone_as_sibling(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned, Errno> {
    let mut args = clone_args(flags | libc::CLONE_PARENT as u64);
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    clone(args)
}

/// clone3(2) without shared memory: a copy of the caller with the namespaces of `flags`, as the caller's own child, to be waited for.
///
/// The caller must be single-threaded, as for [`clone_as_sibling`].
///
/// # Errors
/// The errno of clone3(2).
pub fn clone_as_child(flags: u64) -> Result<Cloned, Errno> {
    let mut args = clone_args(flags);
    args.exit_signal = libc::SIGCHLD as u64;
    clone(args)
}

fn clone_args(flags: u64) -> libc::clone_args {
    // SAFETY: all-zero is a valid `clone_args`: no stack, no tls, no tid set.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args
}

fn clone(mut args: libc::clone_args) -> Result<Cloned, Errno> {
    let mut pidfd: libc::c_int = -1;
    args.pidfd = ptr::from_mut(&mut pidfd) as u64;
    // SAFETY: `args` outlives the call and is as long as is said; without CLONE_VM the child runs on its own copy of this stack.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel stored a new descriptor in `pidfd` that nobody else owns.
    Ok(Cloned::Parent(pid as libc::pid_t, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Ends the process without running destructors or atexit handlers: they belong to the parent.
pub fn exit(status: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(status) }
}

/// A NULL-terminated array of strings as execve(2) takes it, built before clone so that the child need not allocate.
pub struct StringArray {
    pointers: Vec<*const libc::c_char>,
    _strings: Vec<CString>,
    room: Vec<u8>,
}

impl StringArray {
    /// Keeps `strings` and their addresses.
    pub fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect();
        Self { pointers, _strings: strings, room: Vec::new() }
    }

    /// The same with room for one more string of up to `room` bytes, which [`StringArray::add`] puts at the end without allocating.
    pub fn with_room(strings: Vec<CString>, room: usize) -> Self {
        let mut array = Self::new(strings);
        array.pointers.push(ptr::null());
        array.room = vec![0; room + 1];
        array
    }

    /// Adds the string that there is room for, put together from `parts`.
    ///
    /// # Errors
    /// `E2BIG` if there is no room, `EINVAL` for a NUL.
    pub fn add(&mut self, parts: &[&[u8]]) -> Result<(), Errno> {
        // The last pointer stays NULL.
        let spare = self.pointers.iter().position(|pointer| pointer.is_null()).filter(|spare| spare + 1 < self.pointers.len());
        let (Some(spare), Some(most)) = (spare, self.room.len().checked_sub(1)) else { return Err(Errno::TOOBIG) };
        let mut length = 0;
        for part in parts {
            if part.contains(&0) {
                return Err(Errno::INVAL);
            }
            let end = length + part.len();
            if end > most {
                return Err(Errno::TOOBIG);
            }
            self.room[length..end].copy_from_slice(part);
            length = end;
        }
        self.room[length] = 0;
        self.pointers[spare] = self.room.as_ptr().cast();
        Ok(())
    }
}

/// execve(2): returns only on failure.
pub fn execve(path: &CStr, argv: &StringArray, envp: &StringArray) -> Errno {
    // SAFETY: `path` is NUL-terminated; both arrays end in NULL and point into strings that they own.
    unsafe { libc::execve(path.as_ptr(), argv.pointers.as_ptr(), envp.pointers.as_ptr()) };
    super::last_errno()
}

unsafe extern "C" {
    /// environ(7): what this process was given, as it is.
    static environ: *const *const libc::c_char;
}

/// execveat(2) of the open file `program` itself with the environment that this process was given, every byte of it, also of an entry that is
/// no `NAME=value`: returns only on failure.
pub fn execve_file_again(program: BorrowedFd<'_>, argv: &StringArray) -> Errno {
    // SAFETY: the C library set it before main, and nothing here changes it.
    let environment = unsafe { environ };
    // SAFETY: the path is a NUL-terminated literal; both arrays end in NULL and point to strings that outlive the call.
    unsafe {
        libc::syscall(libc::SYS_execveat, program.as_raw_fd(), c"".as_ptr(), argv.pointers.as_ptr(), environment, libc::AT_EMPTY_PATH)
    };
    super::last_errno()
}

/// execveat(2) of the open file `program` itself (`AT_EMPTY_PATH`): returns only on failure.
pub fn execve_file(program: BorrowedFd<'_>, argv: &StringArray, envp: &StringArray) -> Errno {
    let (arguments, environment) = (argv.pointers.as_ptr(), envp.pointers.as_ptr());
    // SAFETY: the path is a NUL-terminated literal; both arrays end in NULL and point into strings that they own.
    unsafe { libc::syscall(libc::SYS_execveat, program.as_raw_fd(), c"".as_ptr(), arguments, environment, libc::AT_EMPTY_PATH) };
    super::last_errno()
}

/// setns(2) of the calling thread. `target` is a namespace descriptor, or a pidfd, of which `flags` says which namespaces to join.
///
/// # Errors
/// `EPERM`, `EINVAL` where the kind does not match or the caller is threaded, `ESRCH` for a pidfd whose process is gone.
pub fn setns(target: BorrowedFd<'_>, flags: i32) -> Result<(), Errno> {
    // SAFETY: plain integers; changes only the calling thread's namespaces.
    check(unsafe { libc::syscall(libc::SYS_setns, target.as_raw_fd(), flags) }).map(drop)
}

/// unshare(2) of the calling thread.
///
/// # Errors
/// `EPERM`, `ENOSPC` at a namespace limit, `ENOMEM`.
pub fn unshare(flags: i32) -> Result<(), Errno> {
    // SAFETY: plain integer; changes only the calling thread's own context.
    check(unsafe { libc::syscall(libc::SYS_unshare, flags) }).map(drop)
}

/// Closes every descriptor from `first` on (close_range(2)).
///
/// The caller must own nothing there that it still uses: meant for a child that is about to execve.
///
/// # Errors
/// None on Linux 5.9 and later.
pub fn close_from(first: u32) -> Result<(), Errno> {
    // SAFETY: plain integers; the contract above keeps owned descriptors out of the range.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// Marks every descriptor from `first` on close-on-exec (close_range(2) with `CLOSE_RANGE_CLOEXEC`, Linux 5.11).
///
/// # Errors
/// None on Linux 5.11 and later.
pub fn cloexec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: plain integers; no descriptor is closed.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// Makes the number `target` a close-on-exec copy of `fd` (dup3(2)). `fd` itself may be `target`: then only the flag is set.
///
/// # Errors
/// `EBADF`, `EMFILE`.
pub fn duplicate_onto(fd: BorrowedFd<'_>, target: i32, close_on_exec: bool) -> Result<(), Errno> {
    let flag = if close_on_exec { libc::FD_CLOEXEC } else { 0 };
    if fd.as_raw_fd() == target {
        // SAFETY: changes the flag of a descriptor that the caller has borrowed.
        return check(libc::c_long::from(unsafe { libc::fcntl(target, libc::F_SETFD, flag) })).map(drop);
    }
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: dup3 replaces `target`, which by the caller's plan is a standard stream or the reserved report descriptor.
    check(unsafe { libc::syscall(libc::SYS_dup3, fd.as_raw_fd(), target, flags) }).map(drop)
}

/// Whether a file is the null device: 1:3, see the kernel's admin-guide/devices.txt.
pub fn is_null(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3)
}

/// The descriptor number `fd` as a borrowed descriptor, for the reserved numbers 0 to 3 of a child.
pub fn borrow_number<'a>(fd: i32) -> BorrowedFd<'a> {
    // SAFETY: only called by the child for numbers that its plan has filled and never closes before execve.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// What waitid(2) tells of an ended process, as a shell would: the exit code, or 128 + the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exited {
    /// The process id.
    pub pid: libc::pid_t,
    /// 0 to 255.
    pub status: u32,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
}

impl std::fmt::Display for Exited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.signal {
            Some(signal) => write!(f, "killed by signal {signal}"),
            None => write!(f, "exit status {}", self.status),
        }
    }
}

fn exited(info: &libc::siginfo_t) -> Option<Exited> {
    // SAFETY: waitid filled the structure for SIGCHLD, so the child members are the valid ones (all zero if nothing was waitable).
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return None;
    }
    Some(match info.si_code {
        libc::CLD_EXITED => Exited { pid, status: status as u32 & 0xff, signal: None },
        _ => Exited { pid, status: 128 + status as u32, signal: Some(status) },
    })
}

/// Reaps the child behind `pidfd` if it has ended (waitid(2), `P_PIDFD`).
///
/// # Errors
/// `ECHILD` if it is no child of the caller or was reaped before.
pub fn try_wait(pidfd: BorrowedFd<'_>) -> Result<Option<Exited>, Errno> {
    wait_id(libc::P_PIDFD, pidfd.as_raw_fd() as libc::id_t, libc::WEXITED | libc::WNOHANG)
}

/// Waits until the child behind `pidfd` has ended, and reaps it.
///
/// # Errors
/// `ECHILD`, `EINTR`.
pub fn wait(pidfd: BorrowedFd<'_>) -> Result<Option<Exited>, Errno> {
    wait_id(libc::P_PIDFD, pidfd.as_raw_fd() as libc::id_t, libc::WEXITED)
}

/// Waits until some child has ended, and reaps it.
///
/// # Errors
/// `ECHILD` if there is none, `EINTR`.
pub fn wait_any() -> Result<Option<Exited>, Errno> {
    wait_id(libc::P_ALL, 0, libc::WEXITED)
}

/// Any child that has ended, left for [`try_wait`] or [`reap`].
///
/// # Errors
/// `ECHILD` if there is no child at all.
pub fn peek_any() -> Result<Option<Exited>, Errno> {
    wait_id(libc::P_ALL, 0, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)
}

/// Reaps the ended child `pid`.
///
/// # Errors
/// `ECHILD` if it is no child of the caller.
pub fn reap(pid: libc::pid_t) -> Result<Option<Exited>, Errno> {
    wait_id(libc::P_PID, pid as libc::id_t, libc::WEXITED | libc::WNOHANG)
}

fn wait_id(kind: libc::idtype_t, id: libc::id_t, options: i32) -> Result<Option<Exited>, Errno> {
    // SAFETY: all-zero is a valid `siginfo_t`, which the kernel overwrites.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` outlives the call; the rest are integers.
    let result = unsafe { libc::waitid(kind, id, &raw mut info, options) };
    check(libc::c_long::from(result))?;
    Ok(exited(&info))
}

/// `PR_SET_DUMPABLE` 0: nobody but real root may look at or ptrace this process until it execs (prctl(2)).
pub fn forbid_dump() -> Result<(), Errno> {
    prctl(libc::PR_SET_DUMPABLE, 0)
}

/// `PR_SET_CHILD_SUBREAPER`: orphans of the caller's descendants become its children.
///
/// # Errors
/// None known.
pub fn set_subreaper() -> Result<(), Errno> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1)
}

/// Undoes `PR_SET_THP_DISABLE`, which children and what they execute would inherit.
///
/// # Errors
/// None known.
pub fn allow_huge_pages() -> Result<(), Errno> {
    prctl(libc::PR_SET_THP_DISABLE, 0)
}

fn prctl(option: i32, value: libc::c_ulong) -> Result<(), Errno> {
    // SAFETY: plain integers; the options used here take no pointer.
    check(libc::c_long::from(unsafe { libc::prctl(option, value, 0, 0, 0) })).map(drop)
}

/// Every signal unblocked and at its default action, as execve'd programs expect: an ignored SIGPIPE would be inherited.
pub fn reset_signals() {
    // `struct sigaction` of the kernel with SIG_DFL. The C library refuses its own two signals, which its posix_spawn(3) leaves ignored.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: the kernel reads the 32 bytes; SIG_DFL runs no handler; the two signals that cannot be changed answer EINVAL.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null_mut::<u64>(), 8) };
    }
    // SAFETY: an all-zero set is the empty set on Linux; the kernel only reads it, 8 bytes long.
    let empty: u64 = 0;
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const empty, ptr::null_mut::<u64>(), 8) };
}

/// The children that the caller gets are its own to wait for, also where SIGCHLD was ignored when it was executed: waitid(2) would know of none.
pub fn keep_children() {
    // SAFETY: SIG_DFL runs no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Signals that end a process which only waits, by a handler since process 1 of a pid namespace is spared the default action of those that come
/// from its own kind (pid_namespaces(7)). execve(2) undoes this.
const ENDING: [i32; 9] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGILL, libc::SIGTRAP, libc::SIGABRT, libc::SIGTERM, libc::SIGSTKFLT, libc::SIGSYS];

/// Signals that such a process does not heed, whatever its number: they are for the program that it will execute.
const UNHEEDED: [i32; 10] = [
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGPIPE,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGXCPU,
    libc::SIGXFSZ,
];

/// The real-time signals that the C library has not taken for itself (signal(7)).
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

extern "C" fn end(signal: i32) {
    exit(128 + signal);
}

extern "C" fn nothing(_: i32) {}

/// What a process does with signals while it waits for its start, as runc's does: those that ask for its end end it, with the status of a process
/// that the signal has killed, the others do nothing.
pub fn wait_with_signals() {
    let set = |signal: i32, handler: extern "C" fn(i32)| {
        // SAFETY: both handlers call nothing but `_exit` or nothing at all, which is safe at any time.
        unsafe { libc::signal(signal, handler as *const () as libc::sighandler_t) };
    };
    ENDING.into_iter().for_each(|signal| set(signal, end));
    UNHEEDED.into_iter().chain(REAL_TIME).for_each(|signal| set(signal, nothing));
}

/// Has the kernel reap the children that the caller has or gets (`SA_NOCLDWAIT` of sigaction(2)).
pub fn leave_children_to_kernel() {
    // SAFETY: SIG_IGN runs no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Waits for a signal (pause(2)).
pub fn pause() {
    // SAFETY: takes no argument and touches no memory.
    unsafe { libc::pause() };
}

/// Whether getcwd(2) gives an absolute path: one that is outside the caller's root begins with `(unreachable)`.
///
/// # Errors
/// `ENOENT` if the directory was removed.
pub fn working_directory_is_reachable() -> Result<bool, Errno> {
    let mut path = [0u8; 4096];
    // SAFETY: the kernel writes at most `path.len()` bytes.
    check(unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) })?;
    Ok(path[0] == b'/')
}

/// Moves a descriptor to the number `target`, close-on-exec, replacing what was there.
///
/// # Errors
/// `EBADF`, `EMFILE`.
pub fn move_to(fd: OwnedFd, target: u32) -> Result<OwnedFd, Errno> {
    place(fd, target as i32, true)?;
    // SAFETY: `place` left the number a descriptor without an owner; the caller's process has no other owner of a replaced one.
    Ok(unsafe { OwnedFd::from_raw_fd(target as i32) })
}

/// Gives a descriptor the number `target`, which must have no other owner, replacing what was there. It may have that number already.
///
/// # Errors
/// `EBADF`, `EMFILE`.
pub fn place(fd: OwnedFd, target: i32, close_on_exec: bool) -> Result<(), Errno> {
    duplicate_onto(fd.as_fd(), target, close_on_exec)?;
    if fd.as_raw_fd() == target {
        // Dropped, it would be closed.
        let _ = fd.into_raw_fd();
    }
    Ok(())
}

/// Closes one descriptor by number, for a forked child whose copy of the owner is never dropped.
pub fn close_number(fd: u32) {
    // SAFETY: the child ends in execve or `_exit` without running the owner's destructor.
    unsafe { libc::close(fd as i32) };
}

/// pidfd_send_signal(2): any signal number, 0 only asks whether the process is there.
///
/// # Errors
/// `ESRCH` if it has ended and was reaped, `EINVAL` for no signal.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    let info = ptr::null_mut::<libc::siginfo_t>();
    // SAFETY: a null `info` makes the kernel fill one in, as for kill(2); the rest are integers.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0) }).map(drop)
}
