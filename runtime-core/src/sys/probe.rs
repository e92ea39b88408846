//! Whether the kernel has a system call, asked with arguments that cannot succeed: nothing is changed by asking.

use rustix::io::Errno;

use super::check;

/// clone3(2), asked with a structure of no size (`EINVAL` of the kernel's `copy_clone_args_from_user`).
pub fn clone3() -> bool {
    // SAFETY: of a structure of size 0 nothing is read, and no process is made.
    known(unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<libc::c_void>(), 0_usize) })
}

/// close_range(2), asked with a range that ends before it begins.
pub fn close_range() -> bool {
    // SAFETY: the kernel refuses such a range before it closes anything.
    known(unsafe { libc::syscall(libc::SYS_close_range, u32::MAX, 0_u32, 0_u32) })
}

fn known(answer: libc::c_long) -> bool {
    check(answer) != Err(Errno::NOSYS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_does_not_exist_is_told_from_one_that_refuses() {
        assert!(clone3() && close_range());
        // SAFETY: no kernel has this number.
        assert!(!known(unsafe { libc::syscall(100_000) }));
    }
}
