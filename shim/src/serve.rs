//! The daemon's one server: which services are on the socket, and when it ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, Service};

use crate::accept::SameUser;
use crate::daemon::Config;
use crate::events::Events;
use crate::logger;
use crate::ready::Ready;
use crate::socket::Bound;

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
pub fn services(_context: &Context) -> HashMap<String, Service> {
    HashMap::new()
}

/// Serves until a shutdown is requested or a signal asks for it, then removes the socket and delivers the last events.
///
/// # Errors
/// The step that failed before the first client was served.
pub async fn serve(config: Config, bound: Bound, ready: &mut Ready) -> Result<()> {
    let Bound { listener, file } = bound;
    let events = Events::new(&config.bootstrap.ttrpc_address, &config.bootstrap.namespace);
    let context = Context { config: Arc::new(config), events, shutdown: Shutdown::default() };
    let signals = Signals::new()?;
    let accepted = SameUser::new(listener).context(|| "register the socket")?;
    let mut server = Server::new().add_listener(Listener::new(accepted)).register_service(services(&context));
    server.start().await.map_err(|error| Error::new(ErrorKind::Internal, format!("start the server: {error}")))?;
    ready.notify()?;
    log::debug!("serving {} for {:?}", file.address(), context.config.group);
    until_shutdown(&context, signals).await;
    // While the listener is open the name is ours, so nobody else's socket can be removed.
    let removed = file.remove();
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

async fn until_shutdown(context: &Context, mut signals: Signals) {
    loop {
        tokio::select! {
            () = context.shutdown.requested() => return,
            _ = signals.terminate.recv() => return log::info!("shutting down on SIGTERM"),
            _ = signals.interrupt.recv() => return log::info!("shutting down on SIGINT"),
            _ = signals.dump.recv() => log::info!("{}", state(context)),
        }
    }
}

/// One line about the daemon, for who sends SIGUSR1.
fn state(context: &Context) -> String {
    let bootstrap = &context.config.bootstrap;
    format!(
        "state: pid {} group {:?} containerd {:?} task api {:?} tasks {} events pending {} log lines dropped {}",
        std::process::id(),
        context.config.group,
        bootstrap.containerd_version,
        bootstrap.task_api,
        tokio::runtime::Handle::current().metrics().num_alive_tasks(),
        context.events.pending(),
        logger::dropped(),
    )
}
