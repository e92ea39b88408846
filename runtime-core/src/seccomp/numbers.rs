//! System call numbers by architecture.

use std::collections::HashSet;

use syscalls::{aarch64, arm, loongarch64, mips, mips64, powerpc, powerpc64, riscv64, s390x, x86, x86_64};

use super::arch::X32_BIT;
use super::packed::{Packer, entries, packed};

/// Whose numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Aarch64,
    Arm,
    Loongarch64,
    Mips,
    Mips64,
    Ppc,
    Ppc64,
    Riscv64,
    S390,
    S390x,
    X32,
    X86,
    X86_64,
}

const ALL: [Table; 13] = [
    Table::X86_64,
    Table::X86,
    Table::X32,
    Table::Arm,
    Table::S390,
    Table::Aarch64,
    Table::Riscv64,
    Table::Loongarch64,
    Table::S390x,
    Table::Ppc64,
    Table::Ppc,
    Table::Mips,
    Table::Mips64,
];

impl Table {
    /// Calls `each` with the number and the name of every system call.
    pub fn for_each(self, mut each: impl FnMut(u32, &'static str)) {
        for (nr, name) in entries(self.packed()).filter_map(|(nr, name)| self.corrected(nr, name)) {
            each(nr, name);
        }
        match self {
            Self::Arm => ARM_PRIVATE.iter().for_each(|&(nr, name)| each(nr, name)),
            Self::Mips64 => each(5450, "set_mempolicy_home_node"),
            Self::S390 => S390_31BIT.iter().for_each(|&(nr, name)| each(nr, name)),
            Self::X32 => (X32_BIT + 512..).zip(X32_ONLY).for_each(|(nr, name)| each(nr, name)),
            _ => {}
        }
    }

    fn packed(self) -> &'static [u8] {
        match self {
            Self::Aarch64 => packed!(aarch64, 0),
            Self::Arm => packed!(arm, 0),
            Self::Loongarch64 => packed!(loongarch64, 0),
            Self::Mips => packed!(mips, 4000),
            Self::Mips64 => packed!(mips64, 5000),
            Self::Ppc => packed!(powerpc, 0),
            Self::Ppc64 => packed!(powerpc64, 0),
            Self::Riscv64 => packed!(riscv64, 0),
            Self::S390 | Self::S390x => packed!(s390x, 0),
            Self::X86 => packed!(x86, 0),
            Self::X86_64 | Self::X32 => packed!(x86_64, 0),
        }
    }

    /// An entry of the crate as the kernel has it; `None` where the kernel has none.
    fn corrected(self, nr: u32, name: &'static str) -> Option<(u32, &'static str)> {
        match self {
            // The generic table marks these calls as those of 32-bit machines (scripts/syscall.tbl).
            Self::Aarch64 | Self::Loongarch64 if (403..=423).contains(&nr) => None,
            Self::Aarch64 | Self::Loongarch64 if name == "fstatat" => Some((nr, "newfstatat")),
            Self::S390 if S390X_ONLY.contains(&name) || S390_31BIT.iter().any(|(_, other)| *other == name) => None,
            Self::X32 if X86_64_ONLY.contains(&name) || X32_ONLY.contains(&name) => None,
            Self::X32 => Some((nr | X32_BIT, name)),
            _ => Some((nr, name)),
        }
    }
}

/// Takes out of `names` all that some table has.
pub(super) fn discard_known(names: &mut HashSet<&str>) {
    let mut tables = ALL.into_iter();
    while let (false, Some(table)) = (names.is_empty(), tables.next()) {
        table.for_each(|_, name| {
            names.remove(name);
        });
    }
}

/// What `socketcall` multiplexes, by its first argument (include/uapi/linux/net.h).
pub(super) const SOCKETCALLS: [(u64, &str); 20] = [
    (1, "socket"),
    (2, "bind"),
    (3, "connect"),
    (4, "listen"),
    (5, "accept"),
    (6, "getsockname"),
    (7, "getpeername"),
    (8, "socketpair"),
    (9, "send"),
    (10, "recv"),
    (11, "sendto"),
    (12, "recvfrom"),
    (13, "shutdown"),
    (14, "setsockopt"),
    (15, "getsockopt"),
    (16, "sendmsg"),
    (17, "recvmsg"),
    (18, "accept4"),
    (19, "recvmmsg"),
    (20, "sendmmsg"),
];

/// What `ipc` multiplexes, by its first argument (include/uapi/linux/ipc.h).
pub(super) const IPCS: [(u64, &str); 12] = [
    (1, "semop"),
    (2, "semget"),
    (3, "semctl"),
    (4, "semtimedop"),
    (11, "msgsnd"),
    (12, "msgrcv"),
    (13, "msgget"),
    (14, "msgctl"),
    (21, "shmat"),
    (22, "shmdt"),
    (23, "shmget"),
    (24, "shmctl"),
];

/// `__ARM_NR_*` (arch/arm/include/uapi/asm/unistd.h).
const ARM_PRIVATE: [(u32, &str); 6] = [
    (0xf_0001, "breakpoint"),
    (0xf_0002, "cacheflush"),
    (0xf_0003, "usr26"),
    (0xf_0004, "usr32"),
    (0xf_0005, "set_tls"),
    (0xf_0006, "get_tls"),
];

/// Numbers 512 and up of x32, in order (arch/x86/entry/syscalls/syscall_64.tbl). The same names have other numbers on x86_64.
const X32_ONLY: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];

/// What the same file marks `64` and gives x32 no number for.
const X86_64_ONLY: [&str; 12] = [
    "_sysctl",
    "create_module",
    "epoll_ctl_old",
    "epoll_wait_old",
    "get_kernel_syms",
    "get_thread_area",
    "map_shadow_stack",
    "nfsservctl",
    "query_module",
    "set_thread_area",
    "uselib",
    "vserver",
];

/// What 31-bit s390 has not (arch/s390/kernel/syscalls/syscall.tbl).
const S390X_ONLY: [&str; 3] = ["newfstatat", "select", "semtimedop"];

/// What 31-bit s390 has besides, or under another number than s390x (the same file).
const S390_31BIT: [(u32, &str); 75] = [
    (13, "time"),
    (16, "lchown"),
    (23, "setuid"),
    (24, "getuid"),
    (25, "stime"),
    (46, "setgid"),
    (47, "getgid"),
    (49, "geteuid"),
    (50, "getegid"),
    (70, "setreuid"),
    (71, "setregid"),
    (76, "getrlimit"),
    (80, "getgroups"),
    (81, "setgroups"),
    (95, "fchown"),
    (101, "ioperm"),
    (138, "setfsuid"),
    (139, "setfsgid"),
    (140, "_llseek"),
    (142, "_newselect"),
    (164, "setresuid"),
    (165, "getresuid"),
    (170, "setresgid"),
    (171, "getresgid"),
    (182, "chown"),
    (191, "ugetrlimit"),
    (192, "mmap2"),
    (193, "truncate64"),
    (194, "ftruncate64"),
    (195, "stat64"),
    (196, "lstat64"),
    (197, "fstat64"),
    (198, "lchown32"),
    (199, "getuid32"),
    (200, "getgid32"),
    (201, "geteuid32"),
    (202, "getegid32"),
    (203, "setreuid32"),
    (204, "setregid32"),
    (205, "getgroups32"),
    (206, "setgroups32"),
    (207, "fchown32"),
    (208, "setresuid32"),
    (209, "getresuid32"),
    (210, "setresgid32"),
    (211, "getresgid32"),
    (212, "chown32"),
    (213, "setuid32"),
    (214, "setgid32"),
    (215, "setfsuid32"),
    (216, "setfsgid32"),
    (221, "fcntl64"),
    (223, "sendfile64"),
    (264, "fadvise64_64"),
    (293, "fstatat64"),
    (403, "clock_gettime64"),
    (404, "clock_settime64"),
    (405, "clock_adjtime64"),
    (406, "clock_getres_time64"),
    (407, "clock_nanosleep_time64"),
    (408, "timer_gettime64"),
    (409, "timer_settime64"),
    (410, "timerfd_gettime64"),
    (411, "timerfd_settime64"),
    (412, "utimensat_time64"),
    (413, "pselect6_time64"),
    (414, "ppoll_time64"),
    (416, "io_pgetevents_time64"),
    (417, "recvmmsg_time64"),
    (418, "mq_timedsend_time64"),
    (419, "mq_timedreceive_time64"),
    (420, "semtimedop_time64"),
    (421, "rt_sigtimedwait_time64"),
    (422, "futex_time64"),
    (423, "sched_rr_get_interval_time64"),
];
