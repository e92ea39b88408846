//! Long work of one container in the turns of a daemon that serves others as well.

use std::time::{Duration, Instant};

use runtime_core::cgroup::Pace;

/// How long others may wait for one turn.
const TURN: Duration = Duration::from_millis(1);

/// Gives up the thread after each turn, for whatever has become ready meanwhile.
pub struct Slices(Instant);

impl Default for Slices {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Pace for Slices {
    async fn rest(&mut self) {
        if self.0.elapsed() >= TURN {
            tokio::task::yield_now().await;
            self.0 = Instant::now();
        }
    }
}
