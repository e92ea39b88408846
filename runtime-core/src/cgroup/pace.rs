//! Long work in short slices: a container decides how many cgroups and processes it has, and other containers must not wait for its walk.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Lets others have their turn. Asked between two short steps of work that has no bound.
pub trait Pace: Send {
    /// May return at once.
    fn rest(&mut self) -> impl Future<Output = ()> + Send;
}

/// For a process that has nothing else to do.
#[derive(Clone, Copy, Debug)]
pub struct AtOnce;

impl Pace for AtOnce {
    async fn rest(&mut self) {}
}

/// Runs to its end what waits for nothing but [`AtOnce`].
pub(super) fn at_once<T>(work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        if let Poll::Ready(done) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return done;
        }
    }
}
