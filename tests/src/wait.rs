//! Waiting for what has no event: a line gone from procfs, a directory gone from cgroupfs.

use std::time::{Duration, Instant};

/// Asks `probe` until it answers or `limit` is over, first at once and then every few milliseconds, ever slower up to 50.
pub fn until<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        pause_for(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Lets time pass where the passing of time is the test itself (a container that must not run, a spinner that is measured).
pub fn pause_for(span: Duration) {
    let end = Instant::now() + span;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}
