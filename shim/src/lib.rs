//! The contract with containerd on top of runtime-core.
//!
//! *start → claim of the socket → fork → daemon → services; delete; info.*

pub mod accept;
pub mod bootstrap;
pub mod bundle;
pub mod check;
pub mod cleanup;
pub mod clock;
pub mod daemon;
pub mod delete;
pub mod events;
pub mod failpoint;
pub mod features;
pub mod group;
pub mod idle;
pub mod info;
pub mod io;
pub mod logger;
pub mod options;
pub mod place;
pub mod pod;
pub mod poststop;
pub mod ready;
pub mod sandbox;
pub mod serve;
pub mod slices;
pub mod socket;
pub mod start;
pub mod streaming;
pub mod sync;
pub mod systemd;
pub mod task;
