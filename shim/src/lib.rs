//! The contract with containerd on top of runtime-core.
//!
//! *start → claim of the socket → fork → daemon → services; delete; info.*

pub mod accept;
pub mod bootstrap;
pub mod clock;
pub mod events;
pub mod logger;
pub mod options;
pub mod socket;
