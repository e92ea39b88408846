//! The Task service: what containerd asks of containers and their processes.
//!
//! [`service`] converts requests and answers; [`table`] knows the containers; [`create`], [`exec`] and [`lifecycle`] are what happens to
//! them; [`node`] is what they share. A container's data is behind short locks; what takes time holds only that container's own
//! `changing`, so State, Pids, Kill and Wait always answer.

pub mod container;
pub mod create;
pub mod exec;
pub mod hooks;
pub mod lifecycle;
pub mod listener;
pub mod network;
pub mod node;
pub mod process;
pub mod scope;
pub mod servers;
pub mod service;
pub mod shown;
pub mod spawner;
pub mod state;
pub mod stats;
pub mod table;
