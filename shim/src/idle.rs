//! Who is connected, and since when nobody is: a daemon that containerd has lost before its first container must not stay for ever
//! (containerd#5015, #6860).

use std::time::Duration;

use tokio::sync::watch;

const LIMIT: Duration = Duration::from_secs(60);

/// How long a daemon without containers waits for a client.
pub fn limit() -> Duration {
    #[cfg(feature = "failpoints")]
    if let Some(limit) = crate::failpoint::idle() {
        return limit;
    }
    LIMIT
}

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

    /// Waits until there has been none for `limit`.
    pub async fn absent_for(&self, limit: Duration) {
        let mut count = self.0.subscribe();
        loop {
            // The sender lives as long as `self`.
            let _ = count.wait_for(|count| *count == 0).await;
            if tokio::time::timeout(limit, count.changed()).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, sleep};

    const SHORT: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn a_client_starts_the_time_anew() {
        let clients = Clients::default();
        let began = Instant::now();
        let visits = async {
            sleep(SHORT / 2).await;
            drop(clients.enter());
            sleep(SHORT / 2).await;
            let (first, second) = (clients.enter(), clients.enter());
            drop(first);
            sleep(2 * SHORT).await;
            drop(second);
            Instant::now()
        };
        let ((), left) = tokio::join!(clients.absent_for(SHORT), visits);
        assert!(left.elapsed() >= SHORT && began.elapsed() >= 4 * SHORT, "{:?} after the last one", left.elapsed());
    }
}
