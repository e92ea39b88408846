//! The networks that have been made, and what the host needs of each: its bridge, the sysctls, the table of the firewall.

use std::fs;
use std::io::ErrorKind as IoErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use ipnet::IpNet;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::attachment::remove_orphans;
use super::firewall::{self, Bridge};
use super::ledger::{Lease, Ledger};
use super::links;
use super::netlink::{Route, refused};
use super::node::{Network, overlap};
use crate::container::record::write_atomically;
use crate::error::{Context, Error, ErrorKind, Result};

const NAME: &str = "network.json";

/// A network that has been made, in the state's directory: `networks/<name>/network.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The network's.
    pub name: String,
    /// `None` of a macvlan.
    pub bridge: Option<Bridge>,
}

impl Made {
    /// What a network is when it has been made.
    pub fn of(name: &str, network: &Network) -> Self {
        let bridge = || Bridge { name: network.device(name).to_owned(), internal: network.internal, subnets: network.subnets.clone() };
        Self { name: name.to_owned(), bridge: network.macvlan.is_none().then(bridge) }
    }

    /// Forgets it, and the names of its containers.
    ///
    /// # Errors
    /// The errno and the directory.
    pub fn forget(&self, state: &Path) -> Result<()> {
        let directory = state.join("networks").join(&self.name);
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() == IoErrorKind::NotFound => Ok(()),
            result => result.context(|| format!("remove {directory:?}")),
        }
    }
}

/// All of them.
///
/// # Errors
/// The file that cannot be read.
pub fn all(state: &Path) -> Result<Vec<Made>> {
    let directory = state.join("networks");
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == IoErrorKind::NotFound => return Ok(Vec::new()),
        result => result.context(|| format!("{directory:?}"))?,
    };
    let mut all = Vec::new();
    for entry in entries {
        all.extend(read(&entry.context(|| format!("{directory:?}"))?.path().join(NAME))?);
    }
    Ok(all)
}

fn read(path: &Path) -> Result<Option<Made>> {
    match fs::read(path) {
        Err(error) if error.kind() == IoErrorKind::NotFound => Ok(None),
        result => {
            let bytes = result.context(|| format!("{path:?}"))?;
            serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::new(ErrorKind::Internal, format!("{path:?}: {error}")))
        }
    }
}

/// Makes the firewall anew, with all that it should hold.
///
/// # Errors
/// The errno of nf_tables, or the file that cannot be read.
pub fn rebuild(state: &Path, leases: &[Lease]) -> Result<()> {
    let bridges: Vec<Bridge> = all(state)?.into_iter().filter_map(|made| made.bridge).collect();
    firewall::rebuild(&bridges, leases).map_err(refused("make the table of nf_tables".to_owned()))
}

/// Makes the firewall anew if somebody has taken some of it away; whether that was so. To be called under the ledger's lock.
///
/// # Errors
/// As [`rebuild`].
pub fn mend(state: &Path, leases: &[Lease]) -> Result<bool> {
    let bridges: Vec<Bridge> = all(state)?.into_iter().filter_map(|made| made.bridge).collect();
    if bridges.is_empty() || firewall::is_whole(&bridges).map_err(refused("look at the table of nf_tables".to_owned()))? {
        return Ok(false);
    }
    rebuild(state, leases).map(|()| true)
}

/// Makes what is missing of a network. To be called under the ledger's lock.
///
/// # Errors
/// The subnet overlaps a route of the host's; the device's name is another one's; what the kernel refuses.
pub fn ensure(state: &Path, name: &str, network: &Network, ledger: &Ledger) -> Result<()> {
    let made = Made::of(name, network);
    let path = state.join("networks").join(name).join(NAME);
    let known = read(&path)?.as_ref() == Some(&made);
    let mut host = Route::open().map_err(refused("open netlink".to_owned()))?;
    let Some(bridge) = &made.bridge else {
        let parent = network.macvlan.as_deref().unwrap_or_default();
        host.link(parent).map_err(refused(format!("look for {parent:?}")))?;
        return if known { Ok(()) } else { remember(&path, &made) };
    };
    let link = match host.link(&bridge.name) {
        Ok(link) if !is_bridge(&link) || !links::is_ours(&link) => {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("device {:?} is somebody else's", bridge.name)));
        }

        Ok(link) => Some(link),
        Err(Errno::NODEV) => None,
        Err(errno) => return Err(refused(format!("look for {:?}", bridge.name))(errno)),
    };
    if known && link.is_some() && firewall::knows(&bridge.name).map_err(refused("look at the table of nf_tables".to_owned()))? {
        return Ok(());
    }
    if link.is_none() {
        let routes = host.destinations().map_err(refused("list routes".to_owned()))?;
        let overlapped = network.subnets.iter().find_map(|subnet| routes.iter().find(|route| overlap(route, subnet)).zip(Some(subnet)));
        if let Some((route, subnet)) = overlapped {
            return Err(Error::new(ErrorKind::FailedPrecondition, format!("subnet {subnet} overlaps the host's route to {route}")));
        }
    }
    // Whoever lost the state lost what was in it: what is left of that would stand in the way.
    remove_orphans(ledger.leases())?;
    remember(&path, &made)?;
    let mut bring = || {
        if link.is_none() {
            let addresses: Vec<IpNet> = network.subnets.iter().filter_map(|subnet| own_address(network, subnet)).collect();
            host.make_bridge(&bridge.name, &addresses, network.mtu).map_err(refused(format!("make the bridge {:?}", bridge.name)))?;
        }
        set_sysctls(&bridge.name, network)?;
        rebuild(state, ledger.leases())
    };
    let done = bring();
    if done.is_err() && link.is_none() {
        // The first failure is the one to tell.
        let _ = Route::open().map(|mut host| host.remove(&bridge.name));
        let _ = made.forget(state);
    }
    done
}

fn remember(path: &Path, made: &Made) -> Result<()> {
    let directory = path.parent().unwrap_or(path);
    fs::DirBuilder::new().recursive(true).mode(0o711).create(directory).context(|| format!("{directory:?}"))?;
    let bytes = serde_json::to_vec(made).map_err(|error| Error::new(ErrorKind::Internal, format!("{path:?}: {error}")))?;
    write_atomically(path, &bytes)
}

/// The gateway, as the bridge has it.
fn own_address(network: &Network, subnet: &IpNet) -> Option<IpNet> {
    IpNet::new(network.gateway(subnet)?, subnet.prefix_len()).ok()
}

/// What the host must do for the network: pass packets on, take answers to connections from its own loopback address, and listen to no router in it.
fn set_sysctls(bridge: &str, network: &Network) -> Result<()> {
    let v6 = network.subnets.iter().any(|subnet| subnet.addr().is_ipv6());
    set("ipv4/ip_forward", "1")?;
    set(&format!("ipv4/conf/{bridge}/route_localnet"), "1")?;
    if !v6 || !Path::new("/proc/sys/net/ipv6").exists() {
        return Ok(());
    }
    set(&format!("ipv6/conf/{bridge}/accept_ra"), "0")?;
    if get("ipv6/conf/all/forwarding")? == "0" {
        // A host that forwards forgets its own routers, unless it is told not to (Documentation/networking/ip-sysctl.rst, accept_ra).
        let devices = fs::read_dir("/proc/sys/net/ipv6/conf").context(|| "list /proc/sys/net/ipv6/conf")?;
        for device in devices.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            let key = format!("ipv6/conf/{device}/accept_ra");
            if device != "all" && device != "default" && get(&key).is_ok_and(|value| value == "1") {
                set(&key, "2")?;
            }
        }
        set("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

fn get(key: &str) -> Result<String> {
    let path = format!("/proc/sys/net/{key}");
    fs::read_to_string(&path).map(|text| text.trim().to_owned()).context(|| path)
}

/// Sets one that has another value: where procfs is read-only, it may be right already.
fn set(key: &str, value: &str) -> Result<()> {
    if get(key)? == value {
        return Ok(());
    }
    fs::write(format!("/proc/sys/net/{key}"), value).context(|| format!("set /proc/sys/net/{key} to {value}"))
}

/// Whether a device is a bridge.
pub fn is_bridge(link: &LinkMessage) -> bool {
    let kinds =
        link.attributes.iter().filter_map(|attribute| if let LinkAttribute::LinkInfo(infos) = attribute { Some(infos) } else { None });
    kinds.flatten().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge)))
}
