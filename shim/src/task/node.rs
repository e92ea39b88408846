//! What all containers of a daemon share: the launcher, the reaper, the cgroup hierarchies, compiled filters, the event queue.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use oci_spec::runtime::LinuxSeccomp;
use runtime_core::cgroup::{CgroupPath, Host};
use runtime_core::compile::Compiled;
use runtime_core::container::progress;
pub use runtime_core::container::progress::Progress;
use runtime_core::container::record::ProcessId;
use runtime_core::error::{Context as _, Result};
use runtime_core::kernel::Features;
use runtime_core::plan::Launch;
use runtime_core::plan::launcher::{Launched, Launcher, Request};
use runtime_core::seccomp::{self, Filter};
use runtime_core::sys::process::{self, Exited};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::daemon::new_launcher;
use crate::io::Streams;
use crate::io::watched::{Edge, Watched};
use crate::pod::Pods;
use crate::serve::Context;
use crate::sync::lock;
use crate::systemd::Systemd;

/// See the module.
pub struct Node {
    /// Configuration, events and the way out.
    pub context: Context,
    /// The host's cgroup hierarchies.
    pub host: Host,
    /// Who makes cgroups for containers that ask for the systemd cgroup driver.
    pub systemd: Systemd,
    /// What the kernel can do.
    pub kernel: Features,
    launcher: tokio::sync::Mutex<Link>,
    watched: Mutex<HashMap<String, (CgroupPath, Option<ProcessId>)>>,
    children: Arc<Mutex<Children>>,
    filters: Mutex<seccomp::Cache>,
    /// Stdio that clients carry over connections of their own.
    pub streams: Streams,
    /// Those that have no container of their own.
    pub pods: Pods,
    /// Whether containerd has asked the daemon of a node to end, and no container has come since.
    pub dismissed: watch::Sender<bool>,
}

/// The launcher and its socket on the reactor.
struct Link {
    launcher: Launcher,
    socket: Watched,
}

/// Children that somebody waits for; all others are orphans of containers, and reaped unseen.
#[derive(Default)]
struct Children {
    known: HashSet<i32>,
    /// Launches whose process id is not known yet: until then no unknown child is reaped.
    in_flight: usize,
    /// Known ones that are to go on as a process whose id is not known yet.
    unborn: HashSet<i32>,
}

/// A process that was launched and has not executed its program: dropped before that, it ends.
pub struct Child {
    /// As the host sees it.
    pub pid: i32,
    /// For signals.
    pub pidfd: Arc<OwnedFd>,
    launch: Launch,
    report: Watched,
    children: Arc<Mutex<Children>>,
    /// In the place of the pidfd of the process that it goes on as: at the limit of descriptors the kernel would drop that, and the daemon would not know
    /// the process.
    place: Option<OwnedFd>,
}

impl Link {
    fn new(launcher: Launcher) -> Result<Self> {
        let socket = launcher.socket().try_clone_to_owned().context(|| "launcher: dup")?;
        Ok(Self { launcher, socket: Watched::new(socket, Interest::READABLE | Interest::WRITABLE)? })
    }

    /// The descriptors go with the first byte.
    async fn send(&self, message: &[u8], descriptors: &[OwnedFd]) -> std::result::Result<(), Errno> {
        let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        let mut sent = 0;
        while sent < message.len() {
            let with = if sent == 0 { descriptors.as_slice() } else { &[] };
            match self.launcher.send(&message[sent..], with) {
                Ok(more) => sent += more,
                Err(Errno::AGAIN) => {
                    self.socket.writable().await;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    async fn receive(&self) -> std::result::Result<std::result::Result<Launched, Errno>, Errno> {
        loop {
            match self.launcher.receive() {
                Err(Errno::AGAIN) => {
                    self.socket.readable().await;
                }
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
    }
}

impl Node {
    /// Takes over the launcher that was forked before the runtime existed. Must be called inside the runtime.
    ///
    /// # Errors
    /// Where the host has no cgroups or the reactor refuses.
    pub fn new(context: Context, launcher: Launcher) -> Result<Arc<Self>> {
        let node = Arc::new(Self {
            context,
            host: Host::detect()?,
            systemd: Systemd::default(),
            kernel: Features::get(),
            launcher: tokio::sync::Mutex::new(Link::new(launcher)?),
            watched: Mutex::default(),
            children: Arc::default(),
            filters: Mutex::default(),
            streams: Streams::default(),
            pods: Pods::default(),
            dismissed: watch::Sender::default(),
        });
        tokio::spawn(reap_orphans(Arc::clone(&node), signal(SignalKind::child()).context(|| "handle SIGCHLD")?));
        Ok(node)
    }

    /// The compiled filter of a profile.
    ///
    /// # Errors
    /// What is wrong with the profile, by its field.
    pub fn filter(&self, profile: Option<&LinuxSeccomp>) -> Result<Option<Arc<Filter>>> {
        profile.map(|profile| lock(&self.filters).get(profile)).transpose()
    }

    /// Tells the launcher to clean up this cgroup if the daemon dies.
    ///
    /// # Errors
    /// The launcher cannot be had.
    pub async fn watch(&self, id: &str, cgroup: &CgroupPath) -> Result<()> {
        lock(&self.watched).insert(id.to_owned(), (cgroup.clone(), None));
        self.tell(&Request::Watch(id.to_owned(), cgroup.clone())).await
    }

    /// The same for the first process in it, which may leave it.
    ///
    /// # Errors
    /// The launcher cannot be had.
    pub async fn watch_first(&self, id: &str, first: Option<ProcessId>) -> Result<()> {
        let Some(first) = first else { return Ok(()) };
        lock(&self.watched).get_mut(id).into_iter().for_each(|watched| watched.1 = Some(first));
        self.tell(&Request::First(id.to_owned(), first)).await
    }

    /// Undoes [`Node::watch`].
    pub async fn forget(&self, id: &str) {
        lock(&self.watched).remove(id);
        if let Err(error) = self.tell(&Request::Forget(id.to_owned())).await {
            log::warn!("{id}: {error}");
        }
    }

    async fn tell(&self, request: &Request) -> Result<()> {
        let message = request.encode()?;
        let mut link = self.launcher.lock().await;
        match link.send(&message, &[]).await {
            Ok(()) => Ok(()),
            // A new one is told of everything that is watched.
            Err(_) => self.replace(&mut link).await,
        }
    }

    /// Starts a process.
    ///
    /// # Errors
    /// The errno of clone3(2).
    pub async fn launch(&self, compiled: Compiled, report: OwnedFd) -> Result<Child> {
        let Compiled { launch, descriptors } = compiled;
        let report = Watched::new(report, Interest::READABLE)?;
        let place = launch.plan.is_born().then(|| report.as_fd().try_clone_to_owned().context(|| "dup")).transpose()?;
        let message = Request::Launch(Box::new(launch.clone())).encode()?;
        let flight = Flight::new(self);
        let mut link = self.launcher.lock().await;
        let answer = match exchange(&link, &message, &descriptors).await {
            Ok(answer) => answer,
            Err(errno) => {
                log::warn!("the launcher is gone ({errno}), starting another one");
                self.replace(&mut link).await?;
                exchange(&link, &message, &descriptors).await.context(|| "launcher")?
            }
        };
        drop(link);
        let Launched { pid, pidfd } = answer.context(|| "clone3")?;
        {
            let mut children = lock(&self.children);
            children.known.insert(pid);
            if launch.plan.is_born() {
                children.unborn.insert(pid);
            }
        }
        drop(flight);
        Ok(Child { pid, pidfd, launch, report, children: Arc::clone(&self.children), place })
    }

    async fn replace(&self, link: &mut Link) -> Result<()> {
        *link = Link::new(new_launcher()?)?;
        let watched: Vec<_> = lock(&self.watched).clone().into_iter().collect();
        for (id, (cgroup, first)) in watched {
            let first = first.map(|first| Request::First(id.clone(), first));
            for request in [Request::Watch(id, cgroup)].into_iter().chain(first) {
                link.send(&request.encode()?, &[]).await.context(|| "launcher")?;
            }
        }
        Ok(())
    }

    /// Waits for a child's end and reaps it.
    pub async fn wait(&self, pid: i32, pidfd: &OwnedFd) -> Exited {
        wait_and_forget(&self.children, pid, pidfd).await
    }

    /// Ends a child that nobody wants and reaps it.
    pub async fn kill(&self, pid: i32, pidfd: &OwnedFd) {
        let _ = process::send_signal(pidfd.as_fd(), libc::SIGKILL);
        self.wait(pid, pidfd).await;
    }
}

/// Orphans become our children, since we are their subreaper (prctl(2)). The first ended child hides the others, but one that somebody
/// waits for is reaped at once, and then we look again.
fn reap_unknown(children: &Mutex<Children>) {
    let children = lock(children);
    if children.in_flight > 0 || !children.unborn.is_empty() {
        return;
    }
    while let Ok(Some(Exited { pid, .. })) = process::peek_any() {
        if children.known.contains(&pid) || process::reap(pid).is_err() {
            return;
        }
    }
}

async fn wait_and_forget(children: &Mutex<Children>, pid: i32, pidfd: &OwnedFd) -> Exited {
    let exited = wait_for(pidfd).await.unwrap_or_else(|error| {
        log::error!("wait for process {pid}: {error}");
        Exited { pid, status: UNKNOWN, signal: None }
    });
    {
        let mut children = lock(children);
        children.known.remove(&pid);
        children.unborn.remove(&pid);
    }
    reap_unknown(children);
    exited
}

/// 255 is what containerd says of a status that nobody knows.
const UNKNOWN: u32 = 255;

/// While it lives, a child may exist whose process id the daemon does not know yet.
struct Flight<'a>(&'a Node);

impl<'a> Flight<'a> {
    fn new(node: &'a Node) -> Self {
        lock(&node.children).in_flight += 1;
        Self(node)
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        lock(&self.0.children).in_flight -= 1;
        reap_unknown(&self.0.children);
    }
}

async fn reap_orphans(node: Arc<Node>, mut ended: tokio::signal::unix::Signal) {
    while ended.recv().await.is_some() {
        reap_unknown(&node.children);
    }
}

async fn wait_for(pidfd: &OwnedFd) -> Result<Exited> {
    let watched = Watched::new(pidfd.try_clone().context(|| "dup pidfd")?, Interest::READABLE)?;
    loop {
        if let Some(exited) = process::try_wait(pidfd.as_fd()).context(|| "waitid")? {
            return Ok(exited);
        }
        watched.readable().await;
    }
}

async fn exchange(
    link: &Link,
    message: &[u8],
    descriptors: &[OwnedFd],
) -> std::result::Result<std::result::Result<Launched, Errno>, Errno> {
    link.send(message, descriptors).await?;
    link.receive().await
}

impl Child {
    /// The next thing that the child says. After a birth in a pid namespace it is the new process from here on.
    ///
    /// # Errors
    /// The step that failed, as a sentence.
    pub async fn progress(&mut self) -> Result<Progress> {
        let mut hung_up = false;
        loop {
            let kept = self.place.take().is_some();
            match Progress::next(self.report.as_fd(), self.pidfd.as_fd(), &self.launch)? {
                Some(Progress::Born(born)) => {
                    self.become_born(born.clone());
                    return Ok(Progress::Born(born));
                }
                Some(progress) => return Ok(progress),
                None if hung_up => return Ok(Progress::Executed),
                None => {
                    self.place = if kept { self.report.as_fd().try_clone_to_owned().ok() } else { None };
                    hung_up = self.report.readable().await == Edge::HungUp;
                }
            }
        }
    }

    /// The old process has no more to do than to end; if it is killed meanwhile, the new one is what was meant.
    fn become_born(&mut self, Launched { pid, pidfd }: Launched) {
        let (old, old_pidfd) = (std::mem::replace(&mut self.pid, pid), std::mem::replace(&mut self.pidfd, Arc::clone(&pidfd)));
        let children = Arc::clone(&self.children);
        lock(&children).known.insert(pid);
        lock(&children).unborn.remove(&old);
        tokio::spawn(async move {
            if wait_and_forget(&children, old, &old_pidfd).await.status != 0 {
                let _ = process::send_signal(pidfd.as_fd(), libc::SIGKILL);
            }
        });
    }

    /// The word that the child waits for.
    ///
    /// # Errors
    /// `EPIPE` if it is gone.
    pub fn go(&self) -> Result<()> {
        progress::go(self.report.as_fd())
    }
}
