//! A container's place in one of the node's networks: reserved before anything of the container is made, connected when its namespace is there,
//! released when it has ended.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use rustix::fs::{Mode as FileMode, OFlags};
use rustix::io::Errno;

use super::asked::{Asked, Mode, Port, Protocol, Rate};
use super::firewall::{self, Opened};
use super::ledger::{Lease, Ledger};
use super::links::{self, Pair};
use super::made::{self, Made};
use super::netlink::{Route, refused};
use super::node::{Network, Node};
use super::{conntrack, names, shaping};
use crate::container::record::{Place, ProcessId};
use crate::error::{Context, Error, ErrorKind, Result};

/// What the host's devices for containers are called, before twelve digits.
const DEVICE: &str = "cor";

/// Who is to be connected.
pub struct Container<'a> {
    /// containerd's namespace of it.
    pub namespace: &'a str,
    /// Its id.
    pub id: &'a str,
    /// Its host name, if it has one of its own.
    pub hostname: &'a str,
    /// Its bundle.
    pub bundle: &'a Path,
}

/// See the module. What is reserved stays so until it is released, whatever becomes of this.
#[derive(Clone, Debug)]
pub struct Attachment {
    state: PathBuf,
    lease: Lease,
    network: Network,
    ingress: Option<Rate>,
    egress: Option<Rate>,
}

/// What a container's device has carried, as the container sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is what its name says, since the device was made")]
pub struct Traffic {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// Twelve digits that no device has: that of a container with the same id may live a little longer than it.
fn digits() -> Result<String> {
    let mut bytes = [0_u8; 6];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).context(|| "getrandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn label(key: &str) -> String {
    format!("annotations[\"coracle.{key}\"]")
}

fn taken(what: impl std::fmt::Display, by: &Lease) -> Error {
    Error::new(ErrorKind::AlreadyExists, format!("{what} is taken by container {}", by.key))
}

impl Attachment {
    /// Reserves addresses, names and ports, and makes the network if it is the first. Takes a millisecond or some, and must not be called where
    /// others wait.
    ///
    /// # Errors
    /// What is taken, and by whom; a full subnet; what the kernel refuses. Then nothing is reserved.
    pub fn reserve(node: &Node, asked: &Asked, container: &Container<'_>) -> Result<Self> {
        let Mode::Network(name) = &asked.mode else {
            return Err(Error::new(ErrorKind::Internal, "reserve: not a network of the node's"));
        };
        let network = node.network(name)?;
        let mut ledger = Ledger::open(&node.state)?;
        let key = format!("{}/{}", container.namespace, container.id);
        let stale: Vec<Lease> = ledger.leases().iter().filter(|lease| in_the_way(lease, &key, name, asked)).cloned().collect();
        for lease in stale.iter().filter(|lease| lease.key == key || lease.is_dead()) {
            give_back(&node.state, &mut ledger, lease)?;
        }
        let names = choose_names(&ledger, name, asked, container)?;
        check_ports(&ledger, &asked.ports)?;
        let addresses = choose_addresses(&node.state, &mut ledger, network, asked)?;
        made::ensure(&node.state, name, network, &ledger).context(|| format!("{}: network {name:?}", label("network")))?;
        let lease = Lease {
            key,
            bundle: container.bundle.to_owned(),
            network: name.clone(),
            bridge: network.macvlan.is_none().then(|| network.device(name).to_owned()),
            device: format!("{DEVICE}{}", digits()?),
            names,
            addresses,
            ports: asked.ports.clone(),
            shaped: asked.egress.is_some(),
            holder: ProcessId::of(std::process::id().cast_signed()).ok_or_else(|| Error::new(ErrorKind::Internal, "own process"))?,
        };
        ledger.add(lease.clone())?;
        if let Err(error) = names::add(&node.state, &lease) {
            // The first failure is the one to tell.
            let _ = give_back(&node.state, &mut ledger, &lease);
            return Err(error);
        }
        Ok(Self { state: node.state.clone(), lease, network: network.clone(), ingress: asked.ingress, egress: asked.egress })
    }

    /// Gives the network namespace of a process its device, and opens the ports. Takes a millisecond or some.
    ///
    /// # Errors
    /// The step that the kernel refused. The reservation stays.
    pub fn connect(&self, pid: i32) -> Result<()> {
        let lease = &self.lease;
        let path = format!("/proc/{pid}/ns/net");
        let namespace = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, FileMode::empty()).context(|| format!("open {path}"))?;
        let mut host = Route::open().map_err(refused("open netlink".to_owned()))?;
        let mut inside =
            Route::open_in(namespace.as_fd()).map_err(refused("open netlink in the container's network namespace".to_owned()))?;
        let pair = Pair { name: &lease.device, hardware_address: links::hardware_address(&lease.addresses), mtu: self.network.mtu };
        let on = lease.bridge.as_deref().or(self.network.macvlan.as_deref()).unwrap_or_default();
        let parent = links::index(on).map_err(refused(format!("look for {on:?}")))?;
        let made = match lease.bridge {
            Some(_) => host.make_pair(&pair, parent, namespace.as_fd()),
            None => host.make_macvlan(parent, &pair, namespace.as_fd()),
        };
        made.map_err(refused(format!("make {} on {on:?}", links::INSIDE)))?;
        inside.configure(&lease.addresses, &self.gateways()).map_err(refused(format!("configure {}", links::INSIDE)))?;
        if self.ingress.is_some() || self.egress.is_some() {
            shaping::limit(&mut host, &lease.device, self.ingress, self.egress)?;
        }
        if lease.ports.is_empty() {
            return Ok(());
        }
        let opened = firewall::open(lease).map_err(refused("open ports (nf_tables)".to_owned()))?;
        if matches!(opened, Opened::Stale) {
            let ledger = Ledger::open(&self.state)?;
            made::rebuild(&self.state, ledger.leases())?;
        }
        conntrack::forget(&lease.ports).map_err(refused("forget connections (conntrack)".to_owned()))
    }

    fn gateways(&self) -> Vec<IpAddr> {
        if self.network.internal {
            return Vec::new();
        }
        self.network.subnets.iter().filter_map(|subnet| self.network.gateway(subnet)).collect()
    }

    /// Where it is written down, for [`release`].
    pub fn place(&self) -> Place {
        Place { state: self.state.clone(), key: self.lease.key.clone(), network: self.lease.network.clone() }
    }

    /// What has been carried; `None` once the device has gone, and of a macvlan, which the host does not see.
    pub fn traffic(&self) -> Option<Traffic> {
        let link = Route::open().ok()?.link(&self.lease.device).ok()?;
        let host = links::counters(&link)?;
        // What the host's end has received, the container has sent.
        Some(Traffic {
            rx_bytes: host.tx_bytes,
            rx_packets: host.tx_packets,
            rx_errors: host.tx_errors,
            rx_dropped: host.tx_dropped,
            tx_bytes: host.rx_bytes,
            tx_packets: host.rx_packets,
            tx_errors: host.rx_errors,
            tx_dropped: host.rx_dropped,
        })
    }
}

/// Whether a lease stands in the way of a new one.
fn in_the_way(lease: &Lease, key: &str, network: &str, asked: &Asked) -> bool {
    let names =
        lease.network == network && lease.names.iter().any(|name| asked.aliases.contains(name) || key.ends_with(&format!("/{name}")));
    let ports = lease.ports.iter().any(|port| asked.ports.iter().any(|other| port.clashes(other)));
    let addresses = lease.addresses.iter().any(|address| asked.addresses.contains(&address.addr()));
    lease.key == key || names || ports || addresses
}

/// The container's id, the aliases, and its host name if nobody else has it.
fn choose_names(ledger: &Ledger, network: &str, asked: &Asked, container: &Container<'_>) -> Result<Vec<String>> {
    let holder = |name: &str| ledger.leases().iter().find(|lease| lease.network == network && lease.names.iter().any(|own| own == name));
    if let Some(lease) = holder(container.id) {
        return Err(taken(format!("{}: the name {:?}", label("network"), container.id), lease));
    }
    let mut names = vec![container.id.to_owned()];
    for alias in &asked.aliases {
        if let Some(lease) = holder(alias) {
            return Err(taken(format!("{}: {alias:?}", label("aliases")), lease));
        }
        names.push(alias.clone());
    }
    if super::asked::name(container.hostname).is_ok() && holder(container.hostname).is_none() {
        names.push(container.hostname.to_owned());
    }
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    Ok(names)
}

fn check_ports(ledger: &Ledger, ports: &[Port]) -> Result<()> {
    for port in ports {
        if let Some(lease) = ledger.leases().iter().find(|lease| lease.ports.iter().any(|other| other.clashes(port))) {
            return Err(taken(format!("{}: host port {port}", label("ports")), lease));
        }
        for address in port.host.map_or_else(|| vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()], |host| vec![host]) {
            let address = SocketAddr::new(address, port.host_port);
            let tried = match port.protocol {
                Protocol::Tcp => TcpListener::bind(address).map(drop),
                Protocol::Udp => UdpSocket::bind(address).map(drop),
            };
            match tried.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL)) {
                Err(Errno::ADDRINUSE) => {
                    let what = format!("{}: host port {port} is taken by a process of the host", label("ports"));
                    return Err(Error::new(ErrorKind::AlreadyExists, what));
                }
                Err(Errno::ADDRNOTAVAIL) if port.host.is_some() => {
                    return Err(Error::invalid(format!("{}: {} is no address of the host", label("ports"), address.ip())));
                }
                // A host without IPv6.
                _ => {}
            }
        }
    }
    Ok(())
}

fn choose_addresses(state: &Path, ledger: &mut Ledger, network: &Network, asked: &Asked) -> Result<Vec<IpNet>> {
    let mut addresses = Vec::new();
    for subnet in &network.subnets {
        let address = match asked.addresses.iter().find(|address| subnet.contains(*address)) {
            Some(address) => {
                let holder = ledger.leases().iter().find(|lease| lease.addresses.iter().any(|own| own.addr() == *address));
                if let Some(lease) = holder {
                    return Err(taken(format!("{}: {address}", label("address")), lease));
                }
                *address
            }
            None => match ledger.free(subnet, network.gateway(subnet)) {
                Err(error) => {
                    sweep(state, ledger)?;
                    ledger.free(subnet, network.gateway(subnet)).map_err(|_| error.context(label("network")))?
                }
                Ok(address) => address,
            },
        };
        addresses.push(IpNet::new(address, subnet.prefix_len()).map_err(|error| Error::invalid(format!("{subnet}: {error}")))?);
    }
    Ok(addresses)
}

/// Gives back what the dead have; how many they were.
fn sweep(state: &Path, ledger: &mut Ledger) -> Result<usize> {
    let dead: Vec<Lease> = ledger.leases().iter().filter(|lease| lease.is_dead()).cloned().collect();
    dead.iter().try_for_each(|lease| give_back(state, ledger, lease))?;
    Ok(dead.len())
}

/// Gives back all that a lease stands for, and last of all the lease: who is killed on the way is followed by another one.
fn give_back(state: &Path, ledger: &mut Ledger, lease: &Lease) -> Result<()> {
    let what = || format!("release the network of {}", lease.key);
    if !lease.ports.is_empty() {
        if matches!(firewall::close(lease).map_err(refused(what()))?, Opened::Stale) {
            let others: Vec<Lease> = ledger.leases().iter().filter(|other| other.key != lease.key).cloned().collect();
            made::rebuild(state, &others)?;
        }
        conntrack::forget(&lease.ports).map_err(refused(what()))?;
    }
    if lease.shaped {
        Route::open().and_then(|mut host| host.remove(&shaping::device(&lease.device))).map_err(refused(what()))?;
    }
    names::remove(state, lease).context(what)?;
    ledger.remove(&lease.key).context(what)
}

/// Gives back what a container has of its network, whoever reserved it. Its device ends with its namespace. Nothing reserved is fine.
///
/// # Errors
/// The step and the errno; it can be tried again.
pub fn release(place: &Place) -> Result<()> {
    if !place.state.exists() {
        return Ok(());
    }
    let mut ledger = Ledger::open(&place.state)?;
    match ledger.of(&place.key).cloned() {
        Some(lease) => give_back(&place.state, &mut ledger, &lease),
        None => Ok(()),
    }
}

/// What all containers have.
///
/// # Errors
/// The state cannot be read.
pub fn leases(state: &Path) -> Result<Vec<Lease>> {
    if !state.exists() {
        return Ok(Vec::new());
    }
    Ok(Ledger::open(state)?.leases().to_vec())
}

/// Removes what nobody will remove any more: leases of the dead, devices without a lease.
///
/// # Errors
/// The step and the errno.
pub fn reconcile(state: &Path) -> Result<()> {
    if !state.exists() {
        return Ok(());
    }
    let mut ledger = Ledger::open(state)?;
    sweep(state, &mut ledger)?;
    remove_orphans(ledger.leases())
}

/// Removes devices of ours that no lease is for.
pub(super) fn remove_orphans(leases: &[Lease]) -> Result<()> {
    let mut host = Route::open().map_err(refused("open netlink".to_owned()))?;
    let links = host.links().map_err(refused("list devices".to_owned()))?;
    let ours = |name: &str| {
        let digits = name.strip_prefix(DEVICE).or_else(|| name.strip_prefix(shaping::DEVICE));
        digits.is_some_and(|digits| digits.len() == 12 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    let leased = |name: &str| leases.iter().any(|lease| lease.device == name || (lease.shaped && shaping::device(&lease.device) == name));
    for name in links.iter().filter_map(links::name).filter(|name| ours(name) && !leased(name)) {
        host.remove(name).map_err(refused(format!("remove {name:?}")))?;
    }
    Ok(())
}

/// As [`reconcile`], and removes the networks that no container is in, those as well that a lost state has left; the table with the last of them.
///
/// # Errors
/// The step and the errno.
pub fn prune(node: &Node) -> Result<Vec<String>> {
    let state = &node.state;
    let mut ledger = Ledger::open(state)?;
    sweep(state, &mut ledger)?;
    remove_orphans(ledger.leases())?;
    let mut host = Route::open().map_err(refused("open netlink".to_owned()))?;
    let used = |name: &str| ledger.leases().iter().any(|lease| lease.network == name);
    let mut known = made::all(state)?;
    for (name, network) in node.networks.iter().filter(|(_, network)| network.macvlan.is_none()) {
        let ours = host.link(network.device(name)).is_ok_and(|link| made::is_bridge(&link) && links::is_ours(&link));
        if ours && !known.iter().any(|made| made.name == *name) {
            known.push(Made::of(name, network));
        }
    }
    let (kept, unused): (Vec<Made>, Vec<Made>) = known.into_iter().partition(|made| used(&made.name));
    for made in &unused {
        if let Some(bridge) = &made.bridge {
            host.remove(&bridge.name).map_err(refused(format!("remove {:?}", bridge.name)))?;
        }
        made.forget(state)?;
    }
    if kept.is_empty() {
        firewall::remove().map_err(refused("remove the table of nf_tables".to_owned()))?;
        fs::remove_dir_all(state).context(|| format!("remove {state:?}"))?;
    } else {
        made::rebuild(state, ledger.leases())?;
    }
    Ok(unused.into_iter().map(|made| made.name).collect())
}
