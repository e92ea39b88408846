//! Who is connected, and how long a daemon stays for whom: one that containerd has lost before its first container, or after its last, must not
//! stay for ever (containerd#5015, #6860).

use std::time::Duration;

use tokio::sync::watch;

/// How long a daemon without containers waits for a client.
const ALONE: Duration = Duration::from_secs(60);

/// So many times longer it waits for a client that is there and asks for no container: containerd 1.6, restarted, connects to what it has lost
/// and never calls it.
const CONNECTED: u32 = 5;

/// The number of clients.
#[derive(Debug, Clone, Default)]
pub struct Clients(watch::Sender<usize>);

/// One client, for as long as it lives.
#[derive(Debug)]
pub struct Present(Clients);

impl Clients {
    /// Counts one more.
    pub fn enter(&self) -> Present {
        self.0.send_modify(|count| *count += 1);
        Present(self.clone())
    }

    /// Sees them come and go.
    pub fn watch(&self) -> watch::Receiver<usize> {
        self.0.subscribe()
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
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
