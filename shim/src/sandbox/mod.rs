//! The Sandbox service (containerd `api/runtime/sandbox/v1/sandbox.proto`): pods without a pause container.
//!
//! [`service`] converts requests and answers; [`run`] is the start and the end of a pod.

pub mod run;
pub mod service;
