//! Seccomp: a profile of the OCI spec (`linux.seccomp`) → a program of classic BPF for seccomp(2).
//!
//! *profile ⊃ rule ⊃ condition → ranges of numbers → filter.* A **condition** compares one argument; a **rule** is an action for a
//! system call whose arguments meet all its conditions; a **range** is a run of numbers with the same answer; a **filter** is what
//! the kernel runs.
//!
//! The filter decides as one made by runc with libseccomp 2.5: the native architecture is always covered and one that is not covered
//! kills the thread; names that no architecture knows are passed over; rules of one call are alternatives, and one without
//! conditions wins; calls newer than the profile answer `ENOSYS` where the default is to deny, so that libraries fall back.

mod arch;
mod cache;
mod compile;
#[cfg(test)]
mod emulate;
#[cfg(test)]
mod model;
mod numbers;
#[cfg(test)]
mod oracle;
mod packed;
mod profile;
mod ranges;
#[cfg(test)]
mod tests;

use oci_spec::runtime::LinuxSeccomp;
use serde::{Deserialize, Serialize};

pub use cache::Cache;
pub use profile::Listener;

use crate::error::Result;

pub use crate::sys::security::Insn;

/// What seccomp(2) is called with, for `SECCOMP_SET_MODE_FILTER`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// At most 4096 instructions.
    pub program: Vec<Insn>,
    /// `SECCOMP_FILTER_FLAG_*` bits (include/uapi/linux/seccomp.h).
    pub flags: u32,
    /// Who answers for the calls of NOTIFY; with one, loading the filter makes a descriptor for it.
    pub listener: Option<Listener>,
    /// Names in the profile that no known architecture has: typos, or calls newer than this build. Worth a warning, no more.
    pub skipped: Vec<String>,
}

/// Compiles a profile.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) naming the field that is wrong.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
    let profile = profile::Profile::check(profile)?;
    let ranges = ranges::of(&profile)?;
    let program = compile::program(&ranges, profile.default)?;
    Ok(Filter { program, flags: profile.flags, skipped: profile.unknown_names(), listener: profile.listener })
}

/// The actions a profile may use, as the `features` document lists them.
pub fn actions() -> &'static [&'static str] {
    &[
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_LOG",
        "SCMP_ACT_NOTIFY",
        "SCMP_ACT_TRACE",
        "SCMP_ACT_TRAP",
    ]
}

/// The operators a condition may use.
pub fn operators() -> &'static [&'static str] {
    &["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"]
}

/// The architectures a profile may list.
pub fn architectures() -> Vec<&'static str> {
    arch::ARCHITECTURES.iter().map(|arch| arch.name).collect()
}

/// The flags a profile may set.
pub fn flags() -> &'static [&'static str] {
    &["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]
}
