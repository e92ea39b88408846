//! Fixtures of the end-to-end tests: private containerds, images, bundles, the shim driven by hand, and what a test must leave behind: nothing.
//!
//! *suite ⊃ case → containerd ⊃ ctr; bundle → shim ⊃ task client; event → order; ledger.*

pub mod agent;
pub mod bed;
pub mod bench;
pub mod both;
pub mod bundle;
pub mod case;
pub mod command;
pub mod containerd;
pub mod cri;
pub mod ctr;
pub mod events;
pub mod failpoint;
pub mod failure;
pub mod footprint;
pub mod hand;
pub mod image;
pub mod ledger;
pub mod netns;
pub mod oci;
pub mod order;
pub mod paths;
pub mod proc;
pub mod pty;
pub mod requests;
pub mod rootless;
pub mod rpc;
pub mod start;
pub mod stream;
pub mod suite;
pub mod tar;
pub mod victim;
pub mod wait;

pub use case::Case;
pub use failure::{Context, Failure, Result, both};
