//! Events to containerd, in order: one queue, one sender, one event at a time.
//!
//! An event is sent until containerd has it. While containerd is away the first event of the queue stays first, so that order survives
//! a restart; each try is bounded, and a new connection is made after each failure. containerd may then see an event twice (its answer
//! got lost), never two in the wrong order.
//!
//! The queue is bounded by [`LIMIT`], with one exception: what a client waits for is never given up. When the queue is full, the oldest
//! exec-added and exec-started go first, then the oldest paused, resumed and checkpointed; create, start, exit and delete stay. So does OOM, of
//! which only one waits for each container, for a container may have as many processes killed as it likes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use proto::events::task;
use proto::protobuf::well_known_types::any::Any;
use proto::protobuf::{Message, MessageField};
use proto::shim::event::Envelope;
use proto::shim::events::ForwardRequest;
use proto::shim_async::{Client, EventsClient};
use proto::topics;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use ttrpc::asynchronous::transport::Socket;

use crate::clock::timestamp;

/// How many events may wait before the dispensable ones are dropped.
pub const LIMIT: usize = 2048;

/// How long containerd may take for one event, as in containerd's `pkg/shim/publisher.go`.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// The shortest and the longest wait before another try.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// How an event fares when the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Dropped first.
    Chatter,
    /// Dropped when no chatter is left.
    Notice,
    /// Never dropped, and not said again as long as it waits.
    Once,
    /// Never dropped.
    Always,
}

/// A message that containerd knows as an event. The type URL is a constant, since asking the message for its name would build
/// descriptors that nothing else in the shim needs.
pub trait Event: Message {
    /// Where containerd files it.
    const TOPIC: &'static str;
    /// Its name on the wire.
    const TYPE_URL: &'static str;
    /// Its fate in a full queue.
    const KEEP: Keep;
}

macro_rules! events {
    ($($message:ident $topic:ident $keep:ident)*) => {$(
        impl Event for task::$message {
            const TOPIC: &'static str = topics::$topic;
            const TYPE_URL: &'static str = concat!("containerd.events.", stringify!($message));
            const KEEP: Keep = Keep::$keep;
        }
    )*};
}

events! {
    TaskCreate       TASK_CREATE_EVENT_TOPIC       Always
    TaskStart        TASK_START_EVENT_TOPIC        Always
    TaskOOM          TASK_OOM_EVENT_TOPIC          Once
    TaskExit         TASK_EXIT_EVENT_TOPIC         Always
    TaskDelete       TASK_DELETE_EVENT_TOPIC       Always
    TaskExecAdded    TASK_EXEC_ADDED_EVENT_TOPIC   Chatter
    TaskExecStarted  TASK_EXEC_STARTED_EVENT_TOPIC Chatter
    TaskPaused       TASK_PAUSED_EVENT_TOPIC       Notice
    TaskResumed      TASK_RESUMED_EVENT_TOPIC      Notice
    TaskCheckpointed TASK_CHECKPOINTED_EVENT_TOPIC Notice
}

/// The queue's end that events go in at.
#[derive(Debug, Clone)]
pub struct Events {
    namespace: Arc<str>,
    queue: Option<Arc<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    filled: Notify,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<(Keep, Envelope)>,
    /// The sender holds the event before the first of `events`.
    in_flight: bool,
    dropped: u64,
}

impl Events {
    /// A queue to the ttrpc socket at `address`, in containerd's `namespace`. With an empty address events are dropped. To be called
    /// within a tokio runtime.
    pub fn new(address: &str, namespace: &str) -> Self {
        let namespace = Arc::from(namespace);
        if address.is_empty() {
            log::warn!("containerd gave no ttrpc address: events are dropped");
            return Self { namespace, queue: None };
        }
        let queue = Arc::<Queue>::default();
        tokio::spawn(send_all(Arc::clone(&queue), address.to_owned()));
        Self { namespace, queue: Some(queue) }
    }

    /// Queues `event`, which happened now. Never waits.
    pub fn publish<E: Event>(&self, event: &E) {
        let Some(queue) = &self.queue else { return };
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(error) => return log::error!("encode event {}: {error}", E::TOPIC),
        };
        let any = Any { type_url: E::TYPE_URL.to_owned(), value, ..Any::default() };
        let envelope = Envelope {
            timestamp: MessageField::some(timestamp(SystemTime::now())),
            namespace: self.namespace.to_string(),
            topic: E::TOPIC.to_owned(),
            event: MessageField::some(any),
            ..Envelope::default()
        };
        queue.push(E::KEEP, envelope);
    }

    /// How many events wait, the one under way included.
    pub fn pending(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.lock().pending())
    }

    /// Waits until containerd has every event, for at most `limit`. Returns how many are left.
    pub async fn flush(&self, limit: Duration) -> usize {
        if let Some(queue) = &self.queue {
            // What is left when the time is up is told by the count.
            let _ = tokio::time::timeout(limit, queue.empty()).await;
        }
        self.pending()
    }
}

impl Waiting {
    fn pending(&self) -> usize {
        self.events.len() + usize::from(self.in_flight)
    }

    /// Whether the same is to be said, whatever the time.
    fn has(&self, envelope: &Envelope) -> bool {
        self.events.iter().any(|(_, waiting)| waiting.topic == envelope.topic && waiting.event == envelope.event)
    }

    fn make_room(&mut self) {
        for keep in [Keep::Chatter, Keep::Notice] {
            if let Some(index) = self.events.iter().position(|(kept, _)| *kept == keep) {
                self.events.remove(index);
                self.dropped += 1;
                return;
            }
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        crate::sync::lock(&self.waiting)
    }

    fn push(&self, keep: Keep, envelope: Envelope) {
        let mut waiting = self.lock();
        if keep == Keep::Once && waiting.has(&envelope) {
            return;
        }
        waiting.events.push_back((keep, envelope));
        if waiting.events.len() > LIMIT {
            waiting.make_room();
        }
        drop(waiting);
        self.filled.notify_one();
    }

    async fn next(&self) -> Envelope {
        loop {
            {
                let mut waiting = self.lock();
                if let Some((_, envelope)) = waiting.events.pop_front() {
                    waiting.in_flight = true;
                    return envelope;
                }
            }
            self.filled.notified().await;
        }
    }

    fn delivered(&self) {
        let mut waiting = self.lock();
        waiting.in_flight = false;
        if waiting.events.is_empty() {
            if waiting.dropped > 0 {
                log::warn!("{} events were dropped while containerd was away", std::mem::take(&mut waiting.dropped));
            }
            self.emptied.notify_waiters();
        }
    }

    async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.lock().pending() == 0 {
                return;
            }
            emptied.await;
        }
    }
}

/// What became of one try.
enum Sent {
    /// containerd has it.
    Delivered,
    /// containerd will never take this event, said why.
    Refused(String),
    /// Another try may succeed.
    Failed(String),
}

async fn send_all(queue: Arc<Queue>, address: String) {
    let mut client = None;
    loop {
        let mut request = ForwardRequest::new();
        request.envelope = MessageField::some(queue.next().await);
        let mut backoff = BACKOFF.0;
        loop {
            match send(&mut client, &address, &request).await {
                Sent::Delivered => break,
                Sent::Refused(reason) => {
                    log::error!("containerd refused the event {}: {reason}", request.envelope.topic);
                    break;
                }
                Sent::Failed(reason) => {
                    client = None;
                    if backoff == BACKOFF.0 {
                        log::warn!("send the event {}: {reason}; trying again until containerd takes it", request.envelope.topic);
                    }
                    tokio::time::sleep(backoff).await;
                    backoff = BACKOFF.1.min(backoff * 2);
                }
            }
        }
        queue.delivered();
    }
}

async fn send(client: &mut Option<EventsClient>, address: &str, request: &ForwardRequest) -> Sent {
    let connected = match client.take() {
        Some(connected) => connected,
        None => match connect(address).await {
            Ok(connected) => connected,
            Err(error) => return Sent::Failed(format!("connect to {address}: {error}")),
        },
    };
    let answer = connected.forward(ttrpc::context::with_duration(SEND_TIMEOUT), request).await;
    *client = Some(connected);
    match answer {
        Ok(_) => Sent::Delivered,
        // The only answer that says that the event itself is wrong; all others pass, or say that containerd is not up yet.
        Err(ttrpc::Error::RpcStatus(status)) if status.code() == ttrpc::Code::INVALID_ARGUMENT => Sent::Refused(status.message),
        Err(error) => Sent::Failed(error.to_string()),
    }
}

/// Connects without ever blocking the thread: with a full queue of clients (containerd is stopped) this fails and is tried again.
async fn connect(address: &str) -> std::io::Result<EventsClient> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    let stream = tokio::time::timeout(SEND_TIMEOUT, UnixStream::connect(path)).await??;
    Ok(EventsClient::new(Client::new(Socket::from(stream))))
}

#[cfg(test)]
mod tests;
