//! The containers of a daemon, and what waits for a start.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use runtime_core::{Error, ErrorKind, Result};
use tokio::sync::watch;

use super::container::Container;
use super::exec::Pending;
use super::node::Child;
use super::state::State;
use crate::sync::lock;

/// See the module.
#[derive(Default)]
pub struct Table {
    inner: Mutex<Inner>,
}

struct Inner {
    containers: HashMap<String, Arc<Container>>,
    creating: HashMap<String, Arc<Creating>>,
    children: HashMap<String, Child>,
    pending: HashMap<(String, String), Pending>,
    /// When the last container went.
    left: Instant,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            containers: HashMap::new(),
            creating: HashMap::new(),
            children: HashMap::new(),
            pending: HashMap::new(),
            left: Instant::now(),
        }
    }
}

/// A container that is being made, as Delete sees it.
#[derive(Default)]
pub struct Creating {
    given_up: watch::Sender<bool>,
    over: watch::Sender<bool>,
}

impl Creating {
    /// Asks for the end of the making and waits for it: the container is there then, or nothing of it.
    pub async fn give_up(&self) {
        self.given_up.send_replace(true);
        // The sender lives as long as `self`.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }
}

/// An id that nobody else can take while this lives.
pub struct Reserved<'a> {
    table: &'a Table,
    id: String,
    creating: Arc<Creating>,
}

impl Reserved<'_> {
    /// Becomes true when nobody wants the container any more.
    pub fn given_up(&self) -> watch::Receiver<bool> {
        self.creating.given_up.subscribe()
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut inner = lock(&self.table.inner);
        inner.creating.remove(&self.id);
        inner.left = Instant::now();
        drop(inner);
        self.creating.over.send_replace(true);
    }
}

impl Table {
    /// Takes an id.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`].
    pub fn reserve(&self, id: &str) -> Result<Reserved<'_>> {
        let mut inner = lock(&self.inner);
        if inner.containers.contains_key(id) || inner.creating.contains_key(id) {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("container {id:?} already exists")));
        }
        let creating = Arc::<Creating>::default();
        inner.creating.insert(id.to_owned(), Arc::clone(&creating));
        Ok(Reserved { table: self, id: id.to_owned(), creating })
    }

    /// The making of a container, while it goes on.
    pub fn creating(&self, id: &str) -> Option<Arc<Creating>> {
        lock(&self.inner).creating.get(id).cloned()
    }

    /// Adds a container and its first process's child.
    pub fn insert(&self, container: Arc<Container>, child: Child) {
        let mut inner = lock(&self.inner);
        inner.children.insert(container.id.clone(), child);
        inner.containers.insert(container.id.clone(), container);
    }

    /// The container of an id.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn get(&self, id: &str) -> Result<Arc<Container>> {
        let missing = || Error::new(ErrorKind::NotFound, format!("container {id:?} does not exist"));
        lock(&self.inner).containers.get(id).cloned().ok_or_else(missing)
    }

    /// The containers of a pod.
    pub fn of_pod(&self, id: &str) -> Vec<Arc<Container>> {
        let of_pod = |container: &&Arc<Container>| container.pod.as_ref().is_some_and(|pod| pod.id == id);
        lock(&self.inner).containers.values().filter(of_pod).cloned().collect()
    }

    /// The first process's child, once.
    pub fn take_child(&self, id: &str) -> Option<Child> {
        lock(&self.inner).children.remove(id)
    }

    /// Keeps what an exec's start needs.
    pub fn add_pending(&self, id: &str, pending: Pending) {
        lock(&self.inner).pending.insert((id.to_owned(), pending.process.exec_id.clone()), pending);
    }

    /// What an exec's start needs, once.
    pub fn take_pending(&self, id: &str, exec_id: &str) -> Option<Pending> {
        lock(&self.inner).pending.remove(&(id.to_owned(), exec_id.to_owned()))
    }

    /// Forgets a container with all that waited for it.
    pub fn remove(&self, id: &str) {
        let mut inner = lock(&self.inner);
        inner.containers.remove(id);
        inner.children.remove(id);
        inner.pending.retain(|(container, _), _| container != id);
        inner.left = Instant::now();
    }

    /// Forgets the containers that have ended and whose bundles are gone: somebody else has cleaned up, and nobody will delete them here.
    pub fn forget_abandoned(&self) {
        let ended = |container: &Arc<Container>| container.init.state() == State::Stopped && !container.bundle.exists();
        let abandoned: Vec<String> = lock(&self.inner).containers.values().filter(|it| ended(it)).map(|it| it.id.clone()).collect();
        for id in abandoned {
            log::warn!("{id}: has ended, and its bundle is gone: forgetting it");
            self.remove(&id);
        }
    }

    /// For how long there has been no container, and none been made; `None` if there is one.
    pub fn empty_for(&self) -> Option<Duration> {
        let inner = lock(&self.inner);
        (inner.containers.is_empty() && inner.creating.is_empty()).then(|| inner.left.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_is_being_made_is_taken_and_the_table_not_empty() {
        let table = Table::default();
        assert!(table.empty_for().is_some());
        let reserved = table.reserve("a").unwrap();
        assert_eq!(table.reserve("a").map(drop).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(table.empty_for(), None);
        let hour = Duration::from_secs(3600);
        let Some(earlier) = Instant::now().checked_sub(hour) else { return };
        lock(&table.inner).left = earlier;
        drop(reserved);
        assert!(table.empty_for().unwrap() < hour, "the time starts anew");
        assert_eq!(table.get("a").map(drop).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
