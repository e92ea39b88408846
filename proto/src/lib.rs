//! containerd's messages and services behind one door, so that the crate they come from can be changed in one place.
//!
//! What `containerd-shim-protos` has is re-exported (rust-protobuf types); what it lacks is written here with `prost`. The two
//! never mix in one message: where they meet, it is as bytes in an `Any`.

pub use containerd_shim_protos::*;
pub use prost;

pub mod any;
pub mod cri;
pub mod linuxruntime;
pub mod runtimeoptions;
pub mod streaming;
