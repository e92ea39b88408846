//! Who is connected, and how long a daemon stays for whom: one that containerd has lost before its first container, or after its last, must not
//! stay for ever (containerd#5015, #6860). And what it gives back when nobody calls.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use runtime_core::sys::memory;
use tokio::sync::watch;
use ttrpc::asynchronous::{MethodHandler, Service, TtrpcContext};
use ttrpc::{Request, Response};

use crate::sync::lock;

/// How long a daemon without containers waits for a client.
const ALONE: Duration = Duration::from_secs(60);

/// So many times longer it waits for a client that is there and asks for no container: containerd 1.6, restarted, connects to what it has lost
/// and never calls it.
const CONNECTED: u32 = 5;

/// How long a daemon that was asked to end stays for who was just told its address.
pub const LINGER: Duration = Duration::from_secs(2);

/// How long after a call that does something another one is expected. In a time of such calls it is looked at so often, too.
const QUIET: Duration = Duration::from_secs(1);

/// Calls that only look. containerd 2.3 asks every task for its statistics each second, so nothing may be kept from one to the next.
const LOOKS: [&str; 8] = ["State", "Pids", "Stats", "Connect", "SandboxStatus", "SandboxMetrics", "PingSandbox", "Platform"];

/// How long after such a call others may come, for the other containers of a pod.
const GLANCE: Duration = Duration::from_millis(100);

/// The clients.
#[derive(Debug, Clone, Default)]
pub struct Clients {
    count: watch::Sender<usize>,
    last: Arc<Mutex<Option<Instant>>>,
    /// Something has been read of a client.
    calls: watch::Sender<()>,
    /// A call has come that does something.
    deeds: watch::Sender<()>,
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
        let (mut calls, mut deeds) = (self.calls.subscribe(), self.deeds.subscribe());
        while calls.changed().await.is_ok() {
            tokio::time::sleep(GLANCE).await;
            while deeds.has_changed().unwrap_or(false) {
                deeds.mark_unchanged();
                tokio::time::sleep(QUIET).await;
            }
            calls.mark_unchanged();
            self.quiet.0.store(true, Ordering::Relaxed);
        }
    }

    /// The same service, whose calls that do something are noticed here.
    pub fn notice(&self, service: Service) -> Service {
        let wrap = |(name, handler): (String, Box<dyn MethodHandler + Send + Sync>)| {
            if LOOKS.contains(&name.as_str()) {
                return (name, handler);
            }
            let noticed: Box<dyn MethodHandler + Send + Sync> = Box::new(Deed { clients: self.clone(), handler });
            (name, noticed)
        };
        Service { methods: service.methods.into_iter().map(wrap).collect::<HashMap<_, _>>(), streams: service.streams }
    }
}

/// A method that does something.
struct Deed {
    clients: Clients,
    handler: Box<dyn MethodHandler + Send + Sync>,
}

#[async_trait]
impl MethodHandler for Deed {
    async fn handler(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        self.clients.deeds.send_replace(());
        self.handler.handler(context, request).await
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
