//! The order of what a process writes to its two outputs in turn.
//!
//! Each output has a fifo of its own, and the order gets lost where two of them become readable at once: a client written in Go, as containerd is,
//! serves the later one first (`netpoll` of its runtime gives back a stack). So a line for one output waits a moment if one has just gone to the other.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::sync::lock;

/// In which a client comes to read what has become readable.
const MOMENT: Duration = Duration::from_millis(1);

/// More than lines: a process that writes so much does not depend on the order, and is not held up.
pub(super) const LINES: u64 = 4096;

/// When something last went to each output.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<[Option<Instant>; 2]>);

/// One output's part of it.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    own: usize,
}

impl Turn {
    /// That of standard error, or of standard output.
    pub(super) fn new(turns: &Arc<Turns>, is_stderr: bool) -> Self {
        Self { turns: Arc::clone(turns), own: usize::from(is_stderr) }
    }

    /// How long the other output's reader may still need.
    pub(super) fn wait(&self) -> Option<Duration> {
        let other = lock(&self.turns.0)[1 - self.own]?;
        MOMENT.checked_sub(other.elapsed()).filter(|left| !left.is_zero())
    }

    /// Something has gone to this output.
    pub(super) fn taken(&self) {
        lock(&self.turns.0)[self.own] = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_waits_for_the_other_and_not_for_itself() {
        let turns = Arc::default();
        let (out, err) = (Turn::new(&turns, false), Turn::new(&turns, true));
        assert_eq!((out.wait(), err.wait()), (None, None));
        out.taken();
        assert_eq!(out.wait(), None);
        assert!(err.wait().is_none_or(|left| left <= MOMENT));
        while err.wait().is_some() {
            std::thread::yield_now();
        }
        assert_eq!(err.wait(), None);
    }
}
