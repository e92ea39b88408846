//! The way to systemd on the runtime's reactor: one connection for all containers, made when the first of them asks for the systemd cgroup
//! driver, and made again when it was lost. Without such a container there is nothing of it.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use runtime_core::systemd::{Address, Answer, Bus, Call, Client, Failure, Instance, Manager};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use crate::io::watched::Watched;
use crate::sync::lock;

/// How long to wait for a bus that does not keep up with those who connect.
const CROWDED: Duration = Duration::from_millis(20);

/// The manager of this daemon's containers.
#[derive(Default)]
pub struct Systemd(OnceLock<Box<Manager<Link>>>);

/// See the module.
#[derive(Default)]
pub struct Link(Arc<Mutex<Option<Arc<Connection>>>>);

struct Connection {
    client: Mutex<Client>,
    /// Something is to be sent.
    queued: Notify,
}

impl Systemd {
    /// Whose manager makes this daemon's scopes.
    pub fn instance() -> Instance {
        Instance::of_this_process()
    }

    /// The manager; nothing is asked yet.
    pub fn manager(&self) -> &Manager<Link> {
        self.0.get_or_init(|| Box::new(Manager::new(Self::instance(), Link::default())))
    }
}

impl Link {
    /// The connection there is, or a new one.
    async fn connection(&self, deadline: Instant) -> std::result::Result<Arc<Connection>, Failure> {
        if let Some(connection) = lock(&self.0).clone() {
            return Ok(connection);
        }
        let mut refused = Vec::new();
        for address in Address::of(Systemd::instance()).map_err(Failure::Unreachable)? {
            loop {
                match Client::connect(&address) {
                    Ok(client) => return self.adopt(client).map_err(Failure::Unreachable),
                    Err(Errno::AGAIN) if Instant::now() < deadline => sleep(CROWDED).await,
                    Err(errno) => {
                        refused.push(Error::kernel(format!("connect to {address}"), errno).to_string());
                        break;
                    }
                }
            }
        }
        Err(Failure::Unreachable(Error::new(ErrorKind::FailedPrecondition, refused.join(", "))))
    }

    /// Another caller may have been faster.
    fn adopt(&self, client: Client) -> Result<Arc<Connection>> {
        let mut current = lock(&self.0);
        if let Some(connection) = current.clone() {
            return Ok(connection);
        }
        let socket = client.socket().try_clone_to_owned().context(|| "D-Bus: dup")?;
        let watched = Watched::new(socket, Interest::READABLE | Interest::WRITABLE)?;
        let connection = Arc::new(Connection { client: Mutex::new(client), queued: Notify::new() });
        *current = Some(Arc::clone(&connection));
        tokio::spawn(carry(Arc::clone(&connection), watched, Arc::clone(&self.0)));
        Ok(connection)
    }
}

/// Sends and receives until the connection ends, and tells those who wait for something then.
async fn carry(connection: Arc<Connection>, socket: Watched, current: Arc<Mutex<Option<Arc<Connection>>>>) {
    let ended = loop {
        let moved = {
            let mut client = lock(&connection.client);
            client.receive().and_then(|()| client.flush())
        };
        match moved {
            Ok(sent) => tokio::select! {
                _ = socket.readable() => {}
                _ = socket.writable(), if !sent => {}
                () = connection.queued.notified() => {}
            },
            Err(error) => break error,
        }
    };
    // In this order: who is told may ask again at once, and gets a new connection.
    *lock(&current) = None;
    lock(&connection.client).end(&ended);
}

impl Bus for Link {
    async fn call(&self, call: &Call, bound: Duration) -> std::result::Result<Answer, Failure> {
        let deadline = Instant::now() + bound;
        let connection = self.connection(deadline).await?;
        let (done, answer) = oneshot::channel();
        let serial = lock(&connection.client).call(call, Box::new(move |result| drop(done.send(result))));
        connection.queued.notify_one();
        match timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Failure::Lost(Error::new(ErrorKind::Internal, "D-Bus: the connection has ended"))),
            Err(_) => {
                lock(&connection.client).forget(serial);
                Err(Failure::TimedOut)
            }
        }
    }

    async fn pause(&self, time: Duration) {
        sleep(time).await;
    }
}
