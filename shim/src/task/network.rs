//! A container's network, where its annotations ask for one of the node's (`runtime_core::net`).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Mount};
use runtime_core::container::record::{Place, ProcessId, Record};
use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use runtime_core::net::asked::{Asked, Mode, PREFIX};
use runtime_core::net::watch::{Found, Turn};
use runtime_core::net::{self, Attachment, Traffic, node};
use runtime_core::spec::Spec;
use tokio::io::Interest;
use tokio::sync::Mutex;

use super::node::Node;
use crate::io::watched::Watched;

/// The file in a bundle that becomes the container's `/etc/resolv.conf`.
const RESOLV_CONF: &str = "resolv.conf";

/// How long a daemon's first container with a network is given before it clears up.
const QUIET: Duration = Duration::from_millis(500);

/// How often the firewall is looked at, by one daemon for all.
const GLANCE: Duration = Duration::from_secs(2);

/// What a container's annotations ask for, and the node allows.
pub struct Wanted {
    node: node::Node,
    asked: Asked,
    namespace: String,
    id: String,
    hostname: String,
    bundle: PathBuf,
    /// The first process of the container whose network namespace it is to have.
    pub joins: Option<ProcessId>,
}

/// What a container has of a network of the node's.
pub struct Network {
    attachment: Attachment,
    released: Mutex<bool>,
}

/// What is asked for, if anything. Changes the spec accordingly: its network namespace, and the files that resolve names.
///
/// # Errors
/// The annotation that is malformed, or asks for what is not allowed.
pub fn wanted(node: &Node, spec: &mut Spec, id: &str, bundle: &Path) -> Result<Option<Wanted>> {
    if !spec.annotations.keys().any(|key| key.starts_with(PREFIX)) {
        return Ok(None);
    }
    let bootstrap = &node.context.config.bootstrap;
    let Some(file) = node::Node::load(&bootstrap.network_file)? else { return Ok(None) };
    let Some(asked) = Asked::of(&spec.annotations, &file, &bootstrap.namespace)? else { return Ok(None) };
    let given = spec.linux.namespaces.iter().find(|it| it.typ() == LinuxNamespaceType::Network).and_then(|it| it.path().clone());
    if let Some(path) = given {
        log::warn!("{id}: the network namespace {path:?} is given, the annotations for another one are ignored");
        return Ok(None);
    }
    let mut wanted = Wanted {
        node: file,
        asked,
        namespace: bootstrap.namespace.clone(),
        id: id.to_owned(),
        hostname: spec.hostname.clone(),
        bundle: bundle.to_owned(),
        joins: None,
    };
    wanted.change(spec)?;
    Ok(Some(wanted))
}

impl Wanted {
    fn change(&mut self, spec: &mut Spec) -> Result<()> {
        spec.linux.namespaces.retain(|it| it.typ() != LinuxNamespaceType::Network);
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(LinuxNamespaceType::Network);
        let (hosts, resolv_conf) = match &self.asked.mode {
            Mode::Host => {
                add_file(spec, "hosts", Path::new("/etc/hosts"));
                add_file(spec, RESOLV_CONF, Path::new("/etc/resolv.conf"));
                return Ok(());
            }
            Mode::None => (None, None),
            Mode::Path(path) => {
                namespace.set_path(Some(path.clone()));
                (None, Some(self.bundle.join(RESOLV_CONF)))
            }
            Mode::Container(other) => {
                let bundle = self.bundle.parent().map(|directory| directory.join(other)).unwrap_or_default();
                let (init, place) = first_process(other, &bundle)?;
                namespace.set_path(Some(PathBuf::from(format!("/proc/{}/ns/net", init.pid))));
                self.joins = Some(init);
                let resolv_conf = bundle.join(RESOLV_CONF);
                (place.map(|place| net::hosts(&place.state, &place.network)), resolv_conf.exists().then_some(resolv_conf))
            }
            Mode::Network(name) => (Some(net::hosts(&self.node.state, name)), Some(self.bundle.join(RESOLV_CONF))),
        };
        spec.linux.namespaces.push(namespace);
        for (name, source) in [("hosts", hosts), (RESOLV_CONF, resolv_conf)] {
            if let Some(source) = source {
                add_file(spec, name, &source);
            }
        }
        Ok(())
    }

    /// Whether the container's process has to wait for its network.
    pub fn is_made(&self) -> bool {
        matches!(self.asked.mode, Mode::Network(_))
    }

    /// Reserves what is asked for, and notes it in the container's record.
    ///
    /// # Errors
    /// What is taken, or what the kernel refuses; then nothing is reserved.
    pub async fn reserve(self, record: &mut Record) -> Result<Option<Arc<Network>>> {
        if matches!(self.asked.mode, Mode::Network(_) | Mode::Path(_)) {
            let path = self.bundle.join(RESOLV_CONF);
            net::write_resolv_conf(&path, &self.asked.resolver)?;
        }
        if !self.is_made() {
            return Ok(None);
        }
        let bundle = self.bundle.clone();
        let attachment = blocking(move || {
            let container = net::Container { namespace: &self.namespace, id: &self.id, hostname: &self.hostname, bundle: &self.bundle };
            Attachment::reserve(&self.node, &self.asked, &container)
        });
        let attachment = attachment.await?;
        clear_up(attachment.place().state);
        watch(attachment.place().state);
        record.network = Some(attachment.place());
        let network = Network { attachment, released: Mutex::new(false) };
        if let Err(error) = record.write(&bundle) {
            network.release().await;
            return Err(error);
        }
        Ok(Some(Arc::new(network)))
    }
}

impl Network {
    /// Gives it to the namespace of a process.
    ///
    /// # Errors
    /// The step that the kernel refused.
    pub async fn connect(&self, pid: i32) -> Result<()> {
        let attachment = self.attachment.clone();
        blocking(move || attachment.connect(pid)).await
    }

    /// Gives it back, if that has not been done. What fails is logged: another one will find it.
    pub async fn release(&self) {
        let mut released = self.released.lock().await;
        if *released {
            return;
        }
        let place = self.attachment.place();
        match blocking(move || net::release(&place)).await {
            Ok(()) => *released = true,
            Err(error) => log::error!("{error}"),
        }
    }

    /// What it has carried.
    pub fn traffic(&self) -> Option<Traffic> {
        self.attachment.traffic()
    }
}

/// Removes, once for each daemon and while nobody waits, what others have left that were killed.
fn clear_up(state: PathBuf) {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        tokio::spawn(async move {
            tokio::time::sleep(QUIET).await;
            if let Err(error) = blocking(move || net::reconcile(&state)).await {
                log::warn!("clear up after networks: {error}");
            }
        });
    });
}

/// Sees to it that one daemon looks after the firewall: this one, if nobody does, or when whoever does has gone.
fn watch(state: PathBuf) {
    static WATCHING: AtomicBool = AtomicBool::new(false);
    if WATCHING.swap(true, Ordering::Relaxed) {
        return;
    }
    tokio::spawn(async move {
        if let Err(error) = take_turns(state).await {
            log::warn!("watch the firewall: {error}");
        }
        WATCHING.store(false, Ordering::Relaxed);
    });
}

async fn take_turns(state: PathBuf) -> Result<()> {
    loop {
        let place = state.clone();
        match blocking(move || Turn::take(&place)).await? {
            Turn::Over => return Ok(()),
            Turn::Theirs(None) => tokio::time::sleep(GLANCE).await,
            Turn::Theirs(Some(pidfd)) => drop(Watched::new(pidfd, Interest::READABLE)?.ready().await),
            Turn::Ours(mut watcher) => loop {
                tokio::time::sleep(GLANCE).await;
                let (back, found) = blocking(move || {
                    let found = watcher.look();
                    Ok((watcher, found))
                })
                .await?;
                match found {
                    Ok(Found::Nothing) => return Ok(()),
                    Ok(Found::Whole) => {}
                    Ok(Found::Mended) => log::warn!("the firewall of networks was taken away, and has been made again"),
                    Err(error) => log::warn!("the firewall of networks: {error}"),
                }
                watcher = back;
            },
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| Err(Error::new(ErrorKind::Internal, format!("network: {panic}"))))
}

/// The first process of another container, if it lives, and what it has of a network.
fn first_process(other: &str, bundle: &Path) -> Result<(ProcessId, Option<Place>)> {
    let what = || format!("annotations[\"coracle.network\"]: container {other:?}");
    let record = Record::read(bundle).context(what)?;
    let running = record.and_then(|record| Some((record.init.filter(ProcessId::is_alive)?, record.network)));
    running.ok_or_else(|| Error::new(ErrorKind::FailedPrecondition, format!("{}: does not run", what())))
}

/// Adds a file of `/etc`, unless the spec has a mount for it.
fn add_file(spec: &mut Spec, name: &str, source: &Path) {
    let destination = Path::new("/etc").join(name);
    if spec.mounts.iter().any(|mount| *mount.destination() == destination) {
        return;
    }
    // Read-only: others have the same file.
    let options = ["rbind", "rprivate", "ro", "nosuid", "nodev", "noexec"].map(str::to_owned).to_vec();
    let mut mount = Mount::default();
    mount.set_destination(destination).set_typ(Some("bind".to_owned())).set_source(Some(source.to_owned())).set_options(Some(options));
    spec.mounts.push(mount);
}
