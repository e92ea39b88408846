//! What an OCI runtime keeps of a container besides its plan: the record on disk, hooks, and sentences for failures.

pub mod failure;
pub mod hooks;
pub mod own_file;
mod passed_over;
pub mod progress;
pub mod record;

pub use passed_over::passed_over;
