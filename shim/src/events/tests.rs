use super::*;
use async_trait::async_trait;
use proto::protobuf::well_known_types::empty::Empty;
use proto::shim_async::create_events;
use std::path::Path;
use tokio::sync::mpsc;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

/// containerd's side: hands on what it is given, after refusing with the answers that a test put in.
#[derive(Clone)]
struct Recorder {
    heard: mpsc::UnboundedSender<Envelope>,
    answers: Arc<Mutex<VecDeque<ttrpc::Code>>>,
}

#[async_trait]
impl proto::shim_async::Events for Recorder {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        if let Some(code) = self.answers.lock().unwrap().pop_front() {
            return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, "not now")));
        }
        self.heard.send(request.envelope.unwrap()).unwrap();
        Ok(Empty::new())
    }
}

struct Containerd {
    recorder: Recorder,
    heard: mpsc::UnboundedReceiver<Envelope>,
    address: String,
    _dir: tempfile::TempDir,
}

impl Containerd {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (sender, heard) = mpsc::unbounded_channel();
        let recorder = Recorder { heard: sender, answers: Arc::default() };
        Self { recorder, heard, address: dir.path().join("ttrpc").to_str().unwrap().to_owned(), _dir: dir }
    }

    async fn run(&self) -> Server {
        let _ = std::fs::remove_file(Path::new(&self.address));
        let listener = Listener::bind_unix(&self.address).unwrap();
        let mut server = Server::new().add_listener(listener).register_service(create_events(Arc::new(self.recorder.clone())));
        server.start().await.unwrap();
        server
    }

    async fn next_pid(&mut self) -> u32 {
        let envelope = self.heard.recv().await.unwrap();
        assert_eq!((envelope.namespace.as_str(), envelope.topic.as_str()), ("ns", "/tasks/exit"));
        assert!(envelope.timestamp.seconds > 1_600_000_000);
        assert_eq!(envelope.event.type_url, "containerd.events.TaskExit");
        task::TaskExit::parse_from_bytes(&envelope.event.value).unwrap().pid
    }
}

fn exit(pid: u32) -> task::TaskExit {
    task::TaskExit { pid, container_id: "web".into(), id: "web".into(), ..Default::default() }
}

#[tokio::test]
async fn events_arrive_in_order_whatever_containerd_does() {
    let mut containerd = Containerd::new();
    let events = Events::new(&containerd.address, "ns");
    // Away at first.
    events.publish(&exit(0));
    events.publish(&exit(1));
    let mut server = containerd.run().await;
    assert_eq!((containerd.next_pid().await, containerd.next_pid().await), (0, 1));
    // Not ready yet, three times.
    let codes = [ttrpc::Code::UNIMPLEMENTED, ttrpc::Code::UNAVAILABLE, ttrpc::Code::UNKNOWN];
    containerd.recorder.answers.lock().unwrap().extend(codes);
    events.publish(&exit(2));
    events.publish(&exit(3));
    assert_eq!((containerd.next_pid().await, containerd.next_pid().await), (2, 3));
    // Gone, with events on the way, and back.
    server.shutdown().await.unwrap();
    for pid in 4..200 {
        events.publish(&exit(pid));
    }
    assert_eq!(events.flush(Duration::from_millis(50)).await, 196);
    let _server = containerd.run().await;
    for pid in 4..200 {
        assert_eq!(containerd.next_pid().await, pid);
    }
    assert_eq!(events.flush(Duration::from_secs(5)).await, 0);
}

#[tokio::test]
async fn an_event_that_containerd_refuses_does_not_hold_up_the_rest() {
    let mut containerd = Containerd::new();
    let _server = containerd.run().await;
    containerd.recorder.answers.lock().unwrap().push_back(ttrpc::Code::INVALID_ARGUMENT);
    let events = Events::new(&containerd.address, "ns");
    events.publish(&exit(1));
    events.publish(&exit(2));
    assert_eq!(containerd.next_pid().await, 2);
}

#[tokio::test]
async fn a_full_queue_drops_chatter_first_and_exits_never() {
    let events = Events::new("/does/not/exist", "ns");
    let queue = Arc::clone(events.queue.as_ref().unwrap());
    tokio::task::yield_now().await;
    for _ in 0..LIMIT / 2 {
        events.publish(&task::TaskPaused::new());
        events.publish(&task::TaskExecAdded::new());
    }
    for pid in 0..3 * u32::try_from(LIMIT).unwrap() / 4 {
        events.publish(&exit(pid));
    }
    let count = |keep| queue.lock().events.iter().filter(|(kept, _)| *kept == keep).count();
    assert_eq!((count(Keep::Chatter), count(Keep::Notice), count(Keep::Always)), (0, LIMIT / 4, 3 * LIMIT / 4));
    for pid in 0..u32::try_from(LIMIT).unwrap() {
        events.publish(&exit(pid));
    }
    assert_eq!((count(Keep::Notice), count(Keep::Always)), (0, 7 * LIMIT / 4));
}

#[tokio::test]
async fn kills_for_lack_of_memory_are_one_event_of_a_container_while_containerd_is_away() {
    let events = Events::new("/does/not/exist", "ns");
    tokio::task::yield_now().await;
    let killed = |id: &str| events.publish(&task::TaskOOM { container_id: id.into(), ..Default::default() });
    // The first one is under way for ever.
    events.publish(&exit(0));
    tokio::task::yield_now().await;
    for _ in 0..10_000 {
        killed("web");
        killed("db");
    }
    assert_eq!(events.pending(), 3);
    events.publish(&exit(1));
    killed("web");
    assert_eq!(events.pending(), 4);
}

#[tokio::test]
async fn without_an_address_nothing_waits() {
    let events = Events::new("", "ns");
    events.publish(&exit(1));
    assert_eq!((events.pending(), events.flush(Duration::from_secs(60)).await), (0, 0));
}

#[test]
fn names_are_those_of_containerd() {
    fn check<E: Event + proto::protobuf::MessageFull + containerd_shim::event::Event>() {
        assert_eq!(E::TYPE_URL, E::descriptor().full_name());
        assert_eq!(E::TOPIC, containerd_shim::event::Event::topic(&E::new()));
    }
    check::<task::TaskCreate>();
    check::<task::TaskStart>();
    check::<task::TaskOOM>();
    check::<task::TaskExit>();
    check::<task::TaskDelete>();
    check::<task::TaskExecAdded>();
    check::<task::TaskExecStarted>();
    check::<task::TaskPaused>();
    check::<task::TaskResumed>();
    check::<task::TaskCheckpointed>();
}
