//! The Task service.

pub mod stats;
