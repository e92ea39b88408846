//! containerd's messages and services behind one door, so that the crate they come from can be changed in one place.

pub use containerd_shim_protos::*;
