//! The daemon's one server: which services are on the socket, and when it ends.

use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use proto::sandbox_async::{Sandbox, create_sandbox};
use proto::shim_async::{Task, create_task};
use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use runtime_core::plan::launcher::Launcher;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, Service};

use crate::accept::SameUser;
use crate::daemon::Config;
use crate::events::Events;
use crate::group::Grouping;
use crate::idle::Clients;
use crate::logger;
use crate::ready::Ready;
use crate::socket::Bound;
use crate::task::{self, node::Node};
use crate::{sandbox, streaming};

const TASK_V2: &str = "containerd.task.v2.Task";
const TASK_V3: &str = "containerd.task.v3.Task";

const SANDBOX: &str = "containerd.runtime.sandbox.v1.Sandbox";

/// How long containerd may take for the last events before the daemon exits.
const FLUSH: Duration = Duration::from_secs(5);

/// How long the last answers may take to go out.
const DISCONNECT: Duration = Duration::from_secs(1);

/// What the services of one daemon share.
#[derive(Debug, Clone)]
pub struct Context {
    /// What the daemon was started with.
    pub config: Arc<Config>,
    /// The way events go to containerd.
    pub events: Events,
    /// Who is connected.
    pub clients: Clients,
    /// The way out.
    pub shutdown: Shutdown,
}

/// Ends the daemon, from wherever it is called.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(Arc<Notify>);

impl Shutdown {
    /// Asks for the end. Answers that are under way still go out.
    pub fn request(&self) {
        self.0.notify_one();
    }

    async fn requested(&self) {
        self.0.notified().await;
    }
}

/// Every service on the socket, by its full name.
///
/// # Errors
/// What the services need of the host is not there.
pub fn services(context: &Context, launcher: Launcher) -> Result<HashMap<String, Service>> {
    let node = Node::new(context.clone(), launcher)?;
    let streams = node.streams.clone();
    let tasks = task::service::Service::new(node);
    let sandboxes: Arc<dyn Sandbox + Send + Sync> = Arc::new(sandbox::service::Service::new(tasks.clone()));
    let service: Arc<dyn Task + Send + Sync> = Arc::new(tasks);
    #[cfg(feature = "failpoints")]
    let service: Arc<dyn Task + Send + Sync> = Arc::new(crate::failpoint::Around(service));
    let mut services = named(&service);
    services.extend(create_sandbox(sandboxes).into_values().map(|service| (SANDBOX.to_owned(), service)));
    services.insert(streaming::NAME.to_owned(), streaming::service(streams));
    Ok(services.into_iter().map(|(name, service)| (name, context.clients.notice(service))).collect())
}

/// The Task service under both its names: versions 2 and 3 have the same methods and messages, only the package differs.
pub fn named(service: &Arc<dyn Task + Send + Sync>) -> HashMap<String, Service> {
    let mut named = HashMap::new();
    for name in [TASK_V2, TASK_V3] {
        named.extend(create_task(Arc::clone(service)).into_values().map(|service| (name.to_owned(), service)));
    }
    named
}

/// Serves until a shutdown is requested or a signal asks for it, then removes the socket and delivers the last events.
///
/// # Errors
/// The step that failed before the first client was served.
pub async fn serve(config: Config, bound: Bound, ready: &mut Ready, launcher: Launcher, clients: Clients) -> Result<()> {
    serve_those(config, bound, ready, clients, |context| services(context, launcher)).await
}

async fn serve_those(
    config: Config,
    bound: Bound,
    ready: &mut Ready,
    clients: Clients,
    services: impl FnOnce(&Context) -> Result<HashMap<String, Service>>,
) -> Result<()> {
    let Bound { listener, file } = bound;
    let events = Events::new(&config.bootstrap.ttrpc_address, &config.bootstrap.namespace);
    let context = Context { config: Arc::new(config), events, clients, shutdown: Shutdown::default() };
    context.config.options.tell_ignored();
    let mut signals = Signals::new()?;
    // Only the daemon of a node looks for clients that it has not taken yet.
    let shared = context.config.grouping == Grouping::Node;
    let queue = shared.then(|| listener.try_clone()).transpose().context(|| "copy the socket")?;
    let accepted = SameUser::new(listener, context.clients.clone()).context(|| "register the socket")?;
    let mut server = Server::new().add_listener(Listener::new(accepted)).register_service(services(&context)?);
    server.start().await.map_err(|error| Error::new(ErrorKind::Internal, format!("start the server: {error}")))?;
    if let Err(error) = ready.notify() {
        // Nobody else is left to remove it.
        let _ = file.remove();
        return Err(error);
    }
    tokio::spawn(context.clients.clone().rest_between_calls());
    log::debug!("serving {} for {}", file.address(), context.config.group.as_deref().unwrap_or("one container"));
    // While the listener is open the name is ours, so nobody else's socket can be removed.
    let removed = loop {
        let end = until_shutdown(&context, &mut signals).await;
        let queue = queue.as_ref().filter(|_| end == End::Unneeded);
        // A `start` that found the daemon alive has left a trace of it: a client that waits, or has come just now.
        match file.remove_unless(|| queue.is_some_and(|queue| is_waited_for(queue) || context.clients.came_just_now())) {
            Ok(false) => {}
            removed => break removed.map(drop),
        }
    };
    // A client that keeps its connection open must not keep the daemon.
    let _ = tokio::time::timeout(DISCONNECT, server.shutdown()).await;
    let left = context.events.flush(FLUSH).await;
    if left > 0 {
        log::error!("{left} events were not delivered");
    }
    removed
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    dump: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let handle = |kind| signal(kind).context(|| "handle signals");
        Ok(Self {
            terminate: handle(SignalKind::terminate())?,
            interrupt: handle(SignalKind::interrupt())?,
            dump: handle(SignalKind::user_defined1())?,
        })
    }
}

/// Why the daemon is to end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// It has no container.
    Unneeded,
    /// Somebody sent a signal.
    Told,
}

async fn until_shutdown(context: &Context, signals: &mut Signals) -> End {
    let name = loop {
        tokio::select! {
            () = context.shutdown.requested() => return End::Unneeded,
            _ = signals.terminate.recv() => break "SIGTERM",
            _ = signals.interrupt.recv() => break "SIGINT",
            _ = signals.dump.recv() => log::info!("{}", state(context)),
        }
    };
    log::info!("shutting down on {name}");
    End::Told
}

/// Whether a client waits to be accepted.
fn is_waited_for(queue: &UnixListener) -> bool {
    let now = Timespec::default();
    poll(&mut [PollFd::new(queue, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}

/// In quotes, or that there is none.
fn quoted(name: &str) -> String {
    if name.is_empty() { "none".to_owned() } else { format!("{name:?}") }
}

/// One line about the daemon, for who sends SIGUSR1.
fn state(context: &Context) -> String {
    let bootstrap = &context.config.bootstrap;
    format!(
        "state: pid {} group {} containerd {} task api {:?} tasks {} events pending {} log lines dropped {}",
        std::process::id(),
        quoted(context.config.group.as_deref().unwrap_or_default()),
        quoted(&bootstrap.containerd_version),
        bootstrap.task_api,
        tokio::runtime::Handle::current().metrics().num_alive_tasks(),
        context.events.pending(),
        logger::dropped(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::{Bootstrap, Environment};
    use crate::ready::pair;
    use crate::socket::{Claim, claim};
    use async_trait::async_trait;
    use containerd_shim::Flags;
    use proto::api::{ConnectRequest, ConnectResponse, Empty, ShutdownRequest};
    use proto::shim_async::Client;
    use std::path::{Path, PathBuf};
    use ttrpc::asynchronous::TtrpcContext;

    struct Last(Shutdown);

    #[async_trait]
    impl Task for Last {
        async fn connect(&self, _: &TtrpcContext, _: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
            Ok(ConnectResponse { shim_pid: 7, ..ConnectResponse::default() })
        }

        async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
            self.0.request();
            Ok(Empty::new())
        }
    }

    fn config(bundle: &Path) -> Config {
        let flags = Flags { id: "web".into(), namespace: "ns".into(), ..Flags::default() };
        let bootstrap = Bootstrap::resolve(&flags, &[], &Environment::default()).unwrap();
        Config { bundle: bundle.to_path_buf(), options: Default::default(), grouping: Grouping::Pod, group: None, bootstrap }
    }

    fn bound(path: &Path) -> Bound {
        match claim(path).unwrap() {
            Claim::Bound(bound) => bound,
            Claim::Live => panic!("{path:?} is taken"),
        }
    }

    async fn call<Q, A>(client: &Client, service: &str, method: &str, request: Q) -> ttrpc::Result<A>
    where
        Q: proto::protobuf::Message,
        A: proto::protobuf::Message,
    {
        let request = ttrpc::Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: request.write_to_bytes().unwrap(),
            ..ttrpc::Request::default()
        };
        client.request(request).await.map(|response| A::parse_from_bytes(&response.payload).unwrap())
    }

    fn socket(dir: &Path) -> PathBuf {
        dir.join("s").join("x")
    }

    #[tokio::test]
    async fn both_task_services_answer_and_the_answer_to_shutdown_goes_out() {
        let tmp = tempfile::tempdir().unwrap();
        let bound = bound(&socket(tmp.path()));
        let address = bound.file.address();
        let (outcome, mut ready) = pair().unwrap();
        let services = |context: &Context| {
            let service: Arc<dyn Task + Send + Sync> = Arc::new(Last(context.shutdown.clone()));
            Ok(named(&service))
        };
        let served = serve_those(config(tmp.path()), bound, &mut ready, Clients::default(), services);
        let called = async {
            let client = Client::connect(&address).await.unwrap();
            for name in [TASK_V2, TASK_V3] {
                let answer: ConnectResponse = call(&client, name, "Connect", ConnectRequest::new()).await.unwrap();
                assert_eq!(answer.shim_pid, 7);
            }
            let answer: ttrpc::Result<Empty> = call(&client, TASK_V3, "Shutdown", ShutdownRequest::new()).await;
            answer.unwrap();
            // Open until the server is gone.
            client
        };
        let started = std::time::Instant::now();
        let (served, _client) = tokio::join!(served, called);
        served.unwrap();
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        assert!(!socket(tmp.path()).exists());
        outcome.wait(rustix::process::Pid::INIT).unwrap();
    }

    #[tokio::test]
    async fn without_start_to_hear_of_it_nothing_is_served() {
        let tmp = tempfile::tempdir().unwrap();
        let (outcome, mut ready) = pair().unwrap();
        drop(outcome);
        let bound = bound(&socket(tmp.path()));
        let served = serve_those(config(tmp.path()), bound, &mut ready, Clients::default(), |_| Ok(HashMap::new()));
        let error = served.await.unwrap_err();
        assert_eq!(error.errno(), Some(libc::EPIPE));
        assert!(!socket(tmp.path()).exists());
    }
}
