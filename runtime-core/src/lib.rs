//! The OCI runtime as a library: no async runtime, no RPC, no containerd words.
//!
//! *bundle ⊃ spec → plan ⊃ step; mount descriptor; slot; launcher; record.*

pub mod cgroup;
pub mod compile;
pub mod container;
pub mod error;
pub mod failpoints;
pub mod hold;
pub mod kernel;
pub mod net;
pub mod plan;
pub mod rdt;
pub mod sealed;
pub mod seccomp;
pub mod spec;
pub mod sys;
pub mod systemd;

pub use error::{Error, ErrorKind, Result};
