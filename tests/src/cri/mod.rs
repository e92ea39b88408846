//! Plays the kubelet: a client of containerd's CRI plugin, and what pods are made of.
//!
//! *node (one containerd with CRI) ⊃ case ⊃ pod ⊃ container.*

pub mod case;
pub mod client;
pub mod node;
pub mod pod;
pub mod stream;

pub use case::PodCase;
pub use client::Cri;
pub use node::{Node, Style};
pub use pod::{Container, Pod};

/// The messages of CRI, version 1.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod api {
    tonic::include_proto!("runtime.v1");
}
