//! The systemd cgroup driver: a container is in a transient scope, which systemd makes and counts among its units.
//!
//! What is said to systemd is decided in here; how it is carried is a [`Bus`]'s affair, of which [`Blocking`] is one. Nothing here is touched
//! unless a container asks for the driver.
//!
//! ```text
//! Scope::new (cgroupsPath) ─► Manager::path ─► Manager::start with a process ─► Cgroup::adopt ─► Manager::set, with each Cgroup::update
//!                                                                                              └─► Manager::stop, after Cgroup::try_remove
//! ```

mod address;
mod annotation;
mod blocking;
mod client;
mod manager;
mod properties;
mod unit;
mod wire;

pub use annotation::PREFIX as ANNOTATIONS;

pub use address::Address;
pub use annotation::properties as annotated_properties;
pub use blocking::{Blocking, block_on, stop};
pub use client::{Answer, Client, Done, Failure, Reply};
pub use manager::{Bus, Manager, New};
pub use unit::{Instance, Scope, is_running};
pub use wire::{Call, Property, Value};

#[cfg(test)]
mod tests;
