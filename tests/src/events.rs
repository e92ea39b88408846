//! Task events as a test sees them: through `ctr events`, or in a stub of containerd's event service.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use proto::events::task;
use proto::protobuf::{Message, MessageField, well_known_types::timestamp::Timestamp};
use proto::shim::{event::Envelope, events::ForwardRequest};
use tokio::sync::oneshot;
use ttrpc::asynchronous::{Server, TtrpcContext};

use crate::containerd::Containerd;
use crate::{Context, Failure, Result, ensure};

/// The topics below `/tasks/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named as its topic")]
pub enum Kind {
    Create,
    Start,
    Oom,
    Exit,
    Delete,
    ExecAdded,
    ExecStarted,
    Paused,
    Resumed,
    Checkpointed,
}

impl Kind {
    fn from_topic(topic: &str) -> Option<Kind> {
        Some(match topic.strip_prefix("/tasks/")? {
            "create" => Kind::Create,
            "start" => Kind::Start,
            "oom" => Kind::Oom,
            "exit" => Kind::Exit,
            "delete" => Kind::Delete,
            "exec-added" => Kind::ExecAdded,
            "exec-started" => Kind::ExecStarted,
            "paused" => Kind::Paused,
            "resumed" => Kind::Resumed,
            "checkpointed" => Kind::Checkpointed,
            _ => return None,
        })
    }
}

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    /// When it arrived, on the monotonic clock.
    pub at: Instant,
    /// What happened.
    pub kind: Kind,
    /// To which container.
    pub container: String,
    /// The exec's id, empty for the container's init.
    pub exec: String,
    /// The pid, 0 where the event has none.
    pub pid: u32,
    /// The exit status of Exit and Delete.
    pub status: u32,
    /// Whether an Exit or Delete carries the time of the end.
    pub timed: bool,
}

/// Events in the order of their arrival.
#[derive(Clone, Default)]
pub struct Record(Arc<(Mutex<Vec<Event>>, Condvar)>);

impl Record {
    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: Event) {
        self.lock().push(event);
        self.0.1.notify_all();
    }

    /// The events of one container up to now.
    pub fn of(&self, container: &str) -> Vec<Event> {
        self.lock().iter().filter(|event| event.container == container).cloned().collect()
    }

    /// All events up to now.
    pub fn all(&self) -> Vec<Event> {
        self.lock().clone()
    }

    /// How many there are of a kind.
    pub fn count(&self, is_one: impl Fn(&Event) -> bool) -> usize {
        self.lock().iter().filter(|event| is_one(event)).count()
    }

    /// Waits for an event of a container's init, which may have come before.
    pub fn wait(&self, container: &str, kind: Kind, limit: Duration) -> Result<Event> {
        self.wait_exec(container, "", kind, limit)
    }

    /// Waits for an event of an exec.
    pub fn wait_exec(&self, container: &str, exec: &str, kind: Kind, limit: Duration) -> Result<Event> {
        let wanted = |event: &Event| event.container == container && event.exec == exec && event.kind == kind;
        let waited = self.0.1.wait_timeout_while(self.lock(), limit, |events| !events.iter().any(wanted));
        let (events, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let found = events.iter().find(|event| wanted(event)).cloned();
        let of_it = || events.iter().filter(|event| event.container == container).map(|event| event.kind).collect::<Vec<_>>();
        found.context(|| format!("no {kind:?} of {container} {exec} in {limit:?}, but {:?}", of_it()))
    }
}

/// A running `ctr events`.
pub struct CtrEvents {
    child: Child,
    /// What it saw.
    pub record: Record,
}

impl CtrEvents {
    /// Starts it and waits until it is subscribed, which an event of containerd's own proves.
    pub fn start(containerd: &Containerd) -> Result<CtrEvents> {
        let ctr = containerd.ctr();
        let mut child = ctr.command(&["events"])?.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context(|| "ctr events has no stdout".to_owned())?);
        let record = Record::default();
        let (seen, subscribed) = (record.clone(), Arc::new((Mutex::new(false), Condvar::new())));
        let notice = subscribed.clone();
        std::thread::spawn(move || {
            for line in lines.lines().map_while(std::io::Result::ok) {
                *notice.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
                notice.1.notify_all();
                if let Some(event) = parse(&line) {
                    seen.push(event);
                }
            }
        });
        for round in 0..100 {
            // Labelling a namespace publishes an event and changes nothing else.
            ctr.ok(&["namespaces", "label", crate::paths::tag(), &format!("round={round}")])?;
            let lock = subscribed.0.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = subscribed.1.wait_timeout_while(lock, Duration::from_millis(100), |seen| !*seen);
            if *waited.unwrap_or_else(PoisonError::into_inner).0 {
                return Ok(CtrEvents { child, record });
            }
        }
        child.kill()?;
        child.wait()?;
        Err(Failure("ctr events shows nothing".to_owned()))
    }
}

impl Drop for CtrEvents {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A line of `ctr events`: date, time, zone twice, namespace, topic, JSON.
fn parse(line: &str) -> Option<Event> {
    let (head, body) = line.split_once(" {")?;
    let kind = Kind::from_topic(head.rsplit(' ').next()?)?;
    let body: serde_json::Value = serde_json::from_str(&format!("{{{body}")).ok()?;
    let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| body[key].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or_default();
    let time = &body["exited_at"];
    // A time is text up to 1.7 and an object of seconds and nanoseconds since.
    let timed =
        time.as_str().is_some_and(|t| !t.starts_with("0001") && !t.starts_with("1970")) || time["seconds"].as_u64().is_some_and(|s| s > 0);
    let container = text("container_id");
    let exec = match kind {
        Kind::ExecAdded | Kind::ExecStarted => text("exec_id"),
        _ => text("id"),
    };
    Some(Event {
        at: Instant::now(),
        kind,
        exec: own(&container, exec),
        container,
        pid: number("pid"),
        status: number("exit_status"),
        timed,
    })
}

/// Of an init's exit the id is the container's.
fn own(container: &str, id: String) -> String {
    if id == container { String::new() } else { id }
}

/// A stub of containerd's event service on a socket, which can go away and come back.
pub struct Stub {
    path: PathBuf,
    stop: Option<(oneshot::Sender<()>, std::thread::JoinHandle<()>)>,
    /// What it was sent.
    pub record: Record,
}

impl Stub {
    /// Serves at `path`.
    pub fn start(path: &Path) -> Result<Stub> {
        let mut stub = Stub { path: path.to_owned(), stop: None, record: Record::default() };
        stub.resume()?;
        Ok(stub)
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Closes the socket and all connections, as a containerd that dies.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.stop.take() {
            let _ = stop.send(());
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }

    /// Serves again, into the same record.
    pub fn resume(&mut self) -> Result<()> {
        ensure!(self.stop.is_none(), "the event service runs already");
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (address, record) = (format!("unix://{}", self.path.display()), self.record.clone());
        let thread = std::thread::spawn(move || {
            // Errors travel as text, since the runtime does not leave its thread.
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            runtime.block_on(async {
                let service = proto::shim_async::create_events(Arc::new(Service(record)));
                let started = match Server::new().bind(&address) {
                    Ok(server) => {
                        let mut server = server.register_service(service);
                        server.start().await.map(|()| server)
                    }
                    Err(e) => Err(e),
                };
                let _ = ready.send(started.as_ref().map(drop).map_err(ToString::to_string));
                let _ = stopped.await;
            });
            runtime.shutdown_background();
        });
        let answer = is_ready.recv_timeout(Duration::from_secs(5));
        answer?.map_err(Failure)?;
        self.stop = Some((stop, thread));
        Ok(())
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Service(Record);

#[async_trait]
impl proto::shim_async::Events for Service {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<proto::api::Empty> {
        let event = decode(&request.envelope).map_err(|e| ttrpc::Error::Others(e.to_string()))?;
        self.0.push(event);
        Ok(proto::api::Empty::new())
    }
}

fn decode(envelope: &Envelope) -> Result<Event> {
    let kind = Kind::from_topic(&envelope.topic).context(|| format!("topic {:?} is not of a task", envelope.topic))?;
    let bytes = &envelope.event.value;
    let timed = |time: &MessageField<Timestamp>| time.as_ref().is_some_and(|time| time.seconds > 0);
    let event = |container: String, exec: String, pid| Event {
        at: Instant::now(),
        kind,
        exec: own(&container, exec),
        container,
        pid,
        status: 0,
        timed: false,
    };
    let none = String::new;
    Ok(match kind {
        Kind::Create => task::TaskCreate::parse_from_bytes(bytes).map(|m| event(m.container_id, none(), m.pid))?,
        Kind::Start => task::TaskStart::parse_from_bytes(bytes).map(|m| event(m.container_id, none(), m.pid))?,
        Kind::Oom => task::TaskOOM::parse_from_bytes(bytes).map(|m| event(m.container_id, none(), 0))?,
        Kind::Exit => {
            let m = task::TaskExit::parse_from_bytes(bytes)?;
            Event { status: m.exit_status, timed: timed(&m.exited_at), ..event(m.container_id, m.id, m.pid) }
        }
        Kind::Delete => {
            let m = task::TaskDelete::parse_from_bytes(bytes)?;
            Event { status: m.exit_status, timed: timed(&m.exited_at), ..event(m.container_id, m.id, m.pid) }
        }
        Kind::ExecAdded => task::TaskExecAdded::parse_from_bytes(bytes).map(|m| event(m.container_id, m.exec_id, 0))?,
        Kind::ExecStarted => task::TaskExecStarted::parse_from_bytes(bytes).map(|m| event(m.container_id, m.exec_id, m.pid))?,
        Kind::Paused => task::TaskPaused::parse_from_bytes(bytes).map(|m| event(m.container_id, none(), 0))?,
        Kind::Resumed => task::TaskResumed::parse_from_bytes(bytes).map(|m| event(m.container_id, none(), 0))?,
        Kind::Checkpointed => task::TaskCheckpointed::parse_from_bytes(bytes).map(|m| event(m.container_id, none(), 0))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_generation() {
        let old = r#"2026-01-02 03:04:05.6 +0000 UTC ns /tasks/exit {"container_id":"a","id":"a","pid":7,"exit_status":137,"exited_at":"2026-01-02T03:04:05Z"}"#;
        let event = parse(old).unwrap();
        assert_eq!((event.kind, event.exec.as_str(), event.pid, event.status, event.timed), (Kind::Exit, "", 7, 137, true));
        let new =
            r#"2026-01-02 03:04:05.6 +0000 UTC ns /tasks/exit {"container_id":"a","id":"e","pid":8,"exited_at":{"seconds":1767323045}}"#;
        let event = parse(new).unwrap();
        assert_eq!((event.exec.as_str(), event.status, event.timed), ("e", 0, true));
        assert!(parse(r#"2026-01-02 03:04:05.6 +0000 UTC ns /images/create {"name":"x"}"#).is_none());
    }

    #[test]
    fn the_stub_records_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut stub = Stub::start(&path).unwrap();
        let send = |topic: &str| {
            let client = ttrpc::Client::connect(&format!("unix://{}", path.display())).unwrap();
            let mut request = ForwardRequest::new();
            let mut oom = task::TaskOOM::new();
            oom.container_id = "c".to_owned();
            let envelope = request.envelope.mut_or_insert_default();
            envelope.topic = topic.to_owned();
            envelope.event.mut_or_insert_default().value = oom.write_to_bytes().unwrap();
            proto::EventsClient::new(client).forward(ttrpc::context::with_timeout(1_000_000_000), &request).is_ok()
        };
        assert!(send("/tasks/oom"));
        assert!(!send("/tasks/unheard-of"));
        stub.stop();
        assert!(std::os::unix::net::UnixStream::connect(&path).is_err());
        stub.resume().unwrap();
        assert!(send("/tasks/oom"));
        assert_eq!(stub.record.of("c").len(), 2);
    }
}
