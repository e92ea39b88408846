//! The benchmark: what a start, an exec and an idle pod cost here, next to runc, crun, containerd's own shim and the kernel's floor.
//!
//! *contender ⊃ worker → sample → row ⊃ ratio → target; table, JSON, plot.*
//!
//! Every contender runs in a worker process of its own, which times itself. The benchmark asks the workers of a comparison in turn, one
//! sample each, so that a disturbance of the machine hits all alike; what is said of two contenders is the median of the ratios within
//! the turns.

pub mod clone;
pub mod connector;
pub mod core;
pub mod ctr;
pub mod floor;
pub mod netlink;
pub mod network;
pub mod payload;
pub mod peer;
pub mod place;
pub mod plot;
pub mod report;
pub mod shim;
pub mod stats;
pub mod suite;
pub mod target;
pub mod worker;

use std::collections::BTreeMap;
use std::time::Instant;

/// What one turn of a worker measured: microseconds, bytes or counts, as the name says.
pub type Sample = BTreeMap<String, f64>;

/// Microseconds since `start`.
pub fn micros(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6
}
