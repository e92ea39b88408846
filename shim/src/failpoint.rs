//! Points at which a test can hold or break the daemon: before, inside and after each call of the Task service.
//!
//! They exist under the cargo feature `failpoints` only. Without it the one call that stands in the code does nothing, and no name of a
//! point is in the program.

#[cfg(feature = "failpoints")]
mod armed;

#[cfg(feature = "failpoints")]
pub use armed::{Around, idle, inside};

/// The calls of the Task service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named as its method")]
pub enum Rpc {
    State,
    Create,
    Start,
    Delete,
    Pids,
    Pause,
    Resume,
    Checkpoint,
    Kill,
    Exec,
    ResizePty,
    CloseIo,
    Update,
    Wait,
    Stats,
    Connect,
    Shutdown,
}

/// In the middle of a call's work.
///
/// # Errors
/// What a test asks for.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub async fn inside(_: Rpc) -> runtime_core::Result<()> {
    Ok(())
}
