//! The life of a process, as data.
//!
//! ```text
//!           start            exit
//! Created ─────────▶ Running ─────▶ Stopped
//!    │                │   ▲            ▲
//!    │ exit    pausing│   │resumed     │
//!    │                ▼   │            │
//!    │             Pausing, Paused ────┤ exit
//!    └─────────────────────────────────┘
//! ```
//!
//! An exec'd process has the same life, but for pausing, which it shares with its container.

use runtime_core::{Error, ErrorKind};

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, not started.
    Created,
    /// Started.
    Running,
    /// About to stand still.
    Pausing,
    /// Standing still.
    Paused,
    /// Ended.
    Stopped,
}

/// What may be asked of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start the program.
    Start,
    /// Freeze.
    Pause,
    /// Thaw.
    Resume,
    /// Add a process to the container.
    Exec,
    /// Change limits.
    Update,
    /// Forget it.
    Delete,
}

impl State {
    /// Whether `action` is allowed now.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`], in a sentence.
    pub fn allow(self, action: Action) -> Result<(), Error> {
        let refused = match (action, self) {
            (Action::Start, Self::Created)
            | (Action::Pause, Self::Running)
            | (Action::Resume, Self::Paused)
            | (Action::Exec, Self::Created | Self::Running)
            | (Action::Update, Self::Created | Self::Running | Self::Pausing | Self::Paused)
            | (Action::Delete, Self::Created | Self::Stopped) => return Ok(()),
            (Action::Start, Self::Running | Self::Pausing | Self::Paused) => "process was started already",
            (Action::Start, Self::Stopped) => "cannot start a stopped process",
            (Action::Pause, Self::Created) => "cannot pause a container that was not started",
            (Action::Pause, Self::Pausing | Self::Paused) => "container is paused already",
            (Action::Pause, Self::Stopped) => "cannot pause a stopped container",
            (Action::Resume, _) => "cannot resume a container that is not paused",
            (Action::Exec, Self::Pausing | Self::Paused) => "cannot exec in a paused container",
            (Action::Exec, Self::Stopped) => "cannot exec in a stopped container",
            (Action::Update, Self::Stopped) => "cannot update a stopped container",
            (Action::Delete, Self::Running | Self::Pausing | Self::Paused) => "cannot delete a running process",
        };
        Err(Error::new(ErrorKind::FailedPrecondition, refused))
    }

    /// As the Task service says it (containerd `api/types/task/task.proto`).
    pub fn status(self) -> proto::api::Status {
        match self {
            Self::Created => proto::api::Status::CREATED,
            Self::Running => proto::api::Status::RUNNING,
            Self::Pausing => proto::api::Status::PAUSING,
            Self::Paused => proto::api::Status::PAUSED,
            Self::Stopped => proto::api::Status::STOPPED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_what_is_allowed() {
        use Action::{Delete, Exec, Pause, Resume, Start, Update};
        use State::{Created, Paused, Pausing, Running, Stopped};
        let allowed = [
            (Created, vec![Start, Exec, Update, Delete]),
            (Running, vec![Pause, Exec, Update]),
            (Pausing, vec![Update]),
            (Paused, vec![Resume, Update]),
            (Stopped, vec![Delete]),
        ];
        for (state, actions) in allowed {
            for action in [Start, Pause, Resume, Exec, Update, Delete] {
                assert_eq!(state.allow(action).is_ok(), actions.contains(&action), "{action:?} when {state:?}");
            }
        }
    }
}
