//! Who is connected, and how long a daemon stays for whom: one that containerd has lost before its first container, or after its last, must not
//! stay for ever (containerd#5015, #6860). And what it gives back when nobody calls.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use runtime_core::sys::memory;
use tokio::sync::watch;

use crate::sync::lock;

/// How long a daemon without containers waits for a client.
const ALONE: Duration = Duration::from_secs(60);

/// So many times longer it waits for a client that is there and asks for no container: containerd 1.6, restarted, connects to what it has lost
/// and never calls it.
const CONNECTED: u32 = 5;

/// How long a daemon that was asked to end stays for who was just told its address.
pub const LINGER: Duration = Duration::from_secs(2);

/// How long after a call another one is expected. In a time of calls it is looked at so often, too.
const QUIET: Duration = Duration::from_secs(1);

/// The clients.
#[derive(Debug, Clone, Default)]
pub struct Clients {
    count: watch::Sender<usize>,
    last: Arc<Mutex<Option<Instant>>>,
    calls: watch::Sender<()>,
    quiet: Quiet,
}

/// Whether memory is to be given back before the next wait.
#[derive(Debug, Clone, Default)]
pub struct Quiet(Arc<AtomicBool>);

impl Quiet {
    /// To be called right before the daemon's thread waits.
    pub fn before_wait(&self) {
        if self.0.load(Ordering::Relaxed) {
            self.0.store(false, Ordering::Relaxed);
            memory::give_back();
        }
    }
}

/// One client, for as long as it lives.
#[derive(Debug)]
pub struct Present(Clients);

impl Clients {
    /// Counts one more.
    pub fn enter(&self) -> Present {
        *lock(&self.last) = Some(Instant::now());
        self.count.send_modify(|count| *count += 1);
        Present(self.clone())
    }

    /// Whether one has come within [`LINGER`].
    pub fn came_just_now(&self) -> bool {
        lock(&self.last).is_some_and(|last| last.elapsed() < LINGER)
    }

    /// Sees them come and go.
    pub fn watch(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// What the daemon's thread looks at before it waits.
    pub fn quiet(&self) -> Quiet {
        self.quiet.clone()
    }

    /// Has memory given back once after each time of calls; in between it wakes nobody.
    pub async fn rest_between_calls(self) {
        let mut calls = self.calls.subscribe();
        while calls.changed().await.is_ok() {
            tokio::time::sleep(QUIET).await;
            while calls.has_changed().unwrap_or(false) {
                calls.mark_unchanged();
                tokio::time::sleep(QUIET).await;
            }
            self.quiet.0.store(true, Ordering::Relaxed);
        }
    }
}

impl Present {
    /// It has sent something.
    pub fn called(&self) {
        self.0.calls.send_replace(());
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.count.send_modify(|count| *count -= 1);
    }
}

/// How long a daemon without containers stays for so many clients.
pub fn limit(clients: usize) -> Duration {
    let alone = alone();
    if clients == 0 { alone } else { alone * CONNECTED }
}

#[cfg(not(feature = "failpoints"))]
fn alone() -> Duration {
    ALONE
}

#[cfg(feature = "failpoints")]
fn alone() -> Duration {
    crate::failpoint::idle().unwrap_or(ALONE)
}
