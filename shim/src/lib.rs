//! The contract with containerd on top of runtime-core.

pub mod io;
