//! What an OCI runtime keeps of a container besides its plan: the record on disk, hooks, and sentences for failures.

pub mod failure;
pub mod hooks;
pub mod record;
