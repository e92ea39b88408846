//! A bus for those who have nothing else to do meanwhile: the launcher when its daemon is gone, the `delete` command.

use std::os::fd::BorrowedFd;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::address::Address;
use super::client::{Answer, Client, Failure};
use super::manager::{Bus, Manager};
use super::unit::Scope;
use super::wire::Call;
use crate::error::{Error, ErrorKind, Result};

/// What one scope of several is granted.
const ONE: Duration = Duration::from_millis(500);

/// See the module. Connected when first asked, and again when the connection was lost.
pub struct Blocking {
    addresses: Vec<Address>,
    client: Mutex<Option<Client>>,
}

/// Stops scopes that a dead daemon has left, within about `bound`, and as far as systemd answers: it forgets an empty scope by itself, so what
/// fails here fails to hasten that.
pub fn stop<'a>(scopes: impl IntoIterator<Item = &'a Scope>, bound: Duration) {
    let deadline = Instant::now() + bound;
    let mut scopes = scopes.into_iter().peekable();
    let Some(addresses) = scopes.peek().and_then(|scope| Address::of(scope.instance).ok()) else { return };
    let bus = Arc::new(Blocking::new(addresses));
    for scope in scopes {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let manager = Manager::new(scope.instance, Arc::clone(&bus)).with_patience(left.min(ONE));
        let _ = block_on(manager.stop(scope));
    }
}

/// Runs to its end what waits for nothing but a [`Blocking`].
///
/// # Errors
/// It waits for something else, or fails itself.
pub fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    match pin!(future).poll(&mut TaskContext::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => Err(Error::new(ErrorKind::Internal, "systemd: waited for something that nobody wakes up for")),
    }
}

impl Blocking {
    /// Not connected yet; the addresses are those of one manager ([`Address::of`]).
    pub fn new(addresses: Vec<Address>) -> Self {
        Self { addresses, client: Mutex::new(None) }
    }

    fn ask(&self, call: &Call, bound: Duration) -> std::result::Result<Answer, Failure> {
        let deadline = Instant::now() + bound;
        let mut connected = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let mut client = match connected.take() {
            Some(client) => client,
            None => connect(&self.addresses, deadline)?,
        };
        let answer = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&answer);
        let serial = client.call(call, Box::new(move |result| *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(result)));
        loop {
            client.receive().map_err(Failure::Lost)?;
            let sent = client.flush().map_err(Failure::Lost)?;
            if let Some(result) = answer.lock().unwrap_or_else(PoisonError::into_inner).take() {
                *connected = Some(client);
                return result;
            }
            let flags = if sent { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            if !wait(Some((client.socket(), flags)), deadline) {
                client.forget(serial);
                *connected = Some(client);
                return Err(Failure::TimedOut);
            }
        }
    }
}

impl<B: Bus> Bus for Arc<B> {
    async fn call(&self, call: &Call, bound: Duration) -> std::result::Result<Answer, Failure> {
        B::call(self, call, bound).await
    }

    async fn pause(&self, time: Duration) {
        B::pause(self, time).await;
    }
}

impl Bus for Blocking {
    async fn call(&self, call: &Call, bound: Duration) -> std::result::Result<Answer, Failure> {
        self.ask(call, bound)
    }

    async fn pause(&self, time: Duration) {
        wait(None, Instant::now() + time);
    }
}

/// How long to wait for a manager that does not keep up with those who connect.
const CROWDED: Duration = Duration::from_millis(20);

fn connect(addresses: &[Address], deadline: Instant) -> std::result::Result<Client, Failure> {
    let mut refused = Vec::new();
    for address in addresses {
        loop {
            match Client::connect(address) {
                Ok(client) => return Ok(client),
                Err(Errno::AGAIN) if Instant::now() < deadline => drop(wait(None, Instant::now() + CROWDED)),
                Err(errno) => {
                    refused.push(Error::kernel(format!("connect to {address}"), errno).to_string());
                    break;
                }
            }
        }
    }
    Err(Failure::Unreachable(Error::new(ErrorKind::FailedPrecondition, refused.join(", "))))
}

/// Whether something happened before the deadline.
fn wait(what: Option<(BorrowedFd<'_>, PollFlags)>, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return false;
    }
    let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
    let mut polled: Vec<PollFd<'_>> = what.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
    // Interrupted, it is tried again by who waits.
    poll(&mut polled, Some(&timeout)) != Ok(0)
}
