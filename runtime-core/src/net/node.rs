//! The node's file: its networks, and what annotations may ask for. Without the file they ask for nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind as IoErrorKind, Read};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

use super::asked::{Mode, Port, Protocol};
use crate::error::{Context, Error, Result};

/// Where the file is, unless an operator says otherwise.
pub const PATH: &str = "/etc/coracle/network.toml";

/// The network that `coracle.network=bridge` means.
pub const DEFAULT: &str = "coracle0";

/// Kubernetes' containerd namespace, whose networks are CNI's.
const KUBERNETES: &str = "k8s.io";

/// A device's name has at most 15 bytes (linux/if.h, `IFNAMSIZ`).
const DEVICE_NAME: usize = 15;

/// The file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Where leases and the names of containers are kept: a directory that a reboot empties.
    #[serde(default = "state")]
    pub state: PathBuf,
    /// By name.
    #[serde(default)]
    pub networks: BTreeMap<String, Network>,
    /// By containerd's namespace.
    #[serde(default)]
    namespaces: BTreeMap<String, Allowed>,
}

/// A network of the node.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// One of IPv4, one of IPv6, or one of them alone.
    pub subnets: Vec<IpNet>,
    /// The bridge's device, where it is not named like the network.
    pub bridge: Option<String>,
    /// In place of a bridge: the device of the host's on which each container gets one of its own (macvlan).
    pub macvlan: Option<String>,
    /// The routers of a macvlan network; a bridge network's are the first addresses of its subnets.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// In bytes.
    pub mtu: Option<u32>,
    /// Has no way out.
    #[serde(default)]
    pub internal: bool,
}

/// What annotations of a namespace's containers may ask for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowed {
    #[serde(default = "modes")]
    modes: BTreeSet<String>,
    /// All, if it is not said.
    networks: Option<BTreeSet<String>>,
    /// Of the host.
    #[serde(default)]
    ports: Vec<PortRange>,
    /// Of the host, for its ports; all, if it is not said.
    addresses: Option<BTreeSet<IpAddr>>,
    /// Namespaces of other containers, or by path.
    #[serde(default)]
    join: bool,
}

/// `8000-8999/tcp`, `53`.
#[derive(Clone, Copy, Debug)]
struct PortRange {
    first: u16,
    last: u16,
    protocol: Option<Protocol>,
}

fn state() -> PathBuf {
    PathBuf::from("/run/coracle-network")
}

fn modes() -> BTreeSet<String> {
    ["bridge", "none"].map(str::to_owned).into()
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parse = || {
            let (range, protocol) = match text.split_once('/') {
                Some((range, protocol)) => (range, Some(protocol.parse().ok()?)),
                None => (text.as_str(), None),
            };
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (first > 0 && first <= last).then_some(Self { first, last, protocol })
        };
        parse().ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no range of ports, such as 8000-8999/tcp")))
    }
}

impl Node {
    /// Reads it, if there is one.
    ///
    /// # Errors
    /// It is not what it should be; the field is named. Others than its owner may write to it.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        let what = || format!("{path:?}");
        let mut file = match fs::File::open(path) {
            Err(error) if error.kind() == IoErrorKind::NotFound => return Ok(None),
            result => result.context(what)?,
        };
        let status = file.metadata().context(what)?;
        if status.mode() & 0o022 != 0 || (status.uid() != 0 && status.uid() != rustix::process::geteuid().as_raw()) {
            return Err(Error::invalid(format!("{path:?}: others than root may write to it")));
        }
        let mut text = String::new();
        file.read_to_string(&mut text).context(what)?;
        Self::parse(&text).map(Some).context(what)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut node: Self = toml::from_str(text).map_err(|error| {
            let place = error.span().map_or(1, |span| text.get(..span.start).unwrap_or_default().lines().count().max(1));
            Error::invalid(format!("line {place}: {}", error.message()))
        })?;
        if node.namespaces.contains_key(KUBERNETES) {
            return Err(Error::invalid(format!("namespaces: {KUBERNETES} is Kubernetes' own; its networks are CNI's")));
        }
        if !node.state.is_absolute() {
            return Err(Error::invalid("state: not an absolute path"));
        }
        node.networks.entry(DEFAULT.to_owned()).or_insert_with(Network::of_the_house);
        let mut taken: Vec<(&str, IpNet)> = Vec::new();
        for (name, network) in &node.networks {
            network.check(name).context(|| format!("networks.{name}"))?;
            for subnet in &network.subnets {
                if let Some((other, overlapped)) = taken.iter().find(|(_, other)| overlap(subnet, other)) {
                    return Err(Error::invalid(format!("networks.{name}: subnet {subnet} overlaps {overlapped} of {other}")));
                }
                taken.push((name, *subnet));
            }
        }
        Ok(node)
    }

    /// What a namespace may ask for; nothing at all if the file does not list it.
    pub fn allowed(&self, namespace: &str) -> Option<&Allowed> {
        self.namespaces.get(namespace)
    }

    /// A network by name.
    ///
    /// # Errors
    /// There is none.
    pub fn network(&self, name: &str) -> Result<&Network> {
        let known = || self.networks.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        self.networks.get(name).ok_or_else(|| Error::invalid(format!("there is no network {name:?}; there are {}", known())))
    }
}

/// Whether two subnets have an address in common.
pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

impl Network {
    fn of_the_house() -> Self {
        let subnets = ["10.209.0.0/16", "fdc0:7ac1:e000::/64"].iter().filter_map(|subnet| subnet.parse().ok()).collect();
        Self { subnets, bridge: None, macvlan: None, gateways: Vec::new(), mtu: None, internal: false }
    }

    fn check(&self, name: &str) -> Result<()> {
        let of = |v4: bool| self.subnets.iter().filter(|subnet| subnet.addr().is_ipv4() == v4).count();
        if self.subnets.is_empty() || of(true) > 1 || of(false) > 1 {
            return Err(Error::invalid("subnets: want one of IPv4, one of IPv6, or both"));
        }
        for subnet in &self.subnets {
            if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
                return Err(Error::invalid(format!("subnets: {subnet} has no room for a container")));
            }
            if subnet.addr() != subnet.network() {
                return Err(Error::invalid(format!("subnets: {subnet} is not the subnet's first address; want {}", subnet.trunc())));
            }
        }
        let names = [("name", Some(self.device(name))), ("macvlan", self.macvlan.as_deref())];
        for (what, device) in names.iter().filter_map(|(what, device)| device.map(|device| (what, device))) {
            let fits = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
            if device.is_empty() || device.len() > DEVICE_NAME || device.starts_with('.') || !device.bytes().all(fits) {
                return Err(Error::invalid(format!("{what}: {device:?} cannot be a device's name")));
            }
        }
        let reserved = ["bridge", "host", "none", "lo", "all", "default"];
        if reserved.contains(&name) || reserved.get(3..).is_some_and(|devices| devices.contains(&self.device(name))) {
            return Err(Error::invalid("the name has a meaning of its own"));
        }
        if self.macvlan.is_some() && self.bridge.is_some() {
            return Err(Error::invalid("bridge and macvlan exclude each other"));
        }
        if self.macvlan.is_none() && !self.gateways.is_empty() {
            return Err(Error::invalid("gateways: a bridge network's are the first addresses of its subnets"));
        }
        match self.gateways.iter().find(|gateway| !self.subnets.iter().any(|subnet| subnet.contains(*gateway))) {
            Some(gateway) => Err(Error::invalid(format!("gateways: {gateway} is in no subnet"))),
            None => Ok(()),
        }
    }

    /// The bridge's device, for a network of this name.
    pub fn device<'a>(&'a self, name: &'a str) -> &'a str {
        self.bridge.as_deref().unwrap_or(name)
    }

    /// Where packets leave a subnet.
    pub fn gateway(&self, subnet: &IpNet) -> Option<IpAddr> {
        match self.macvlan {
            Some(_) => self.gateways.iter().copied().find(|gateway| subnet.contains(gateway)),
            None => subnet.hosts().next().map(|first| match first {
                // `hosts` begins with the router's anycast address (RFC 4291 section 2.6.1) for IPv6.
                IpAddr::V6(zero) => IpAddr::V6((u128::from(zero) | 1).into()),
                first => first,
            }),
        }
    }
}

impl Allowed {
    /// Whether a mode may be asked for.
    ///
    /// # Errors
    /// It may not; the sentence says what would have to be in the file.
    pub fn mode(&self, mode: &Mode, network: Option<&Network>) -> Result<()> {
        let named = match mode {
            Mode::Container(_) | Mode::Path(_) if self.join => return Ok(()),
            Mode::Container(_) | Mode::Path(_) => return Err(Error::invalid("joining is not allowed here (join)")),
            Mode::Host => "host",
            Mode::None => "none",
            Mode::Network(_) if network.is_some_and(|network| network.macvlan.is_some()) => "macvlan",
            Mode::Network(_) => "bridge",
        };
        if !self.modes.contains(named) {
            return Err(Error::invalid(format!("{named} is not allowed here (modes)")));
        }
        match (mode, &self.networks) {
            (Mode::Network(name), Some(networks)) if !networks.contains(name) => {
                Err(Error::invalid(format!("network {name:?} is not allowed here (networks)")))
            }
            _ => Ok(()),
        }
    }

    /// Whether a port of the host may be published.
    ///
    /// # Errors
    /// It may not.
    pub fn port(&self, port: &Port) -> Result<()> {
        let fits = |range: &PortRange| {
            (range.first..=range.last).contains(&port.host_port) && range.protocol.is_none_or(|protocol| protocol == port.protocol)
        };
        if !self.ports.iter().any(fits) {
            return Err(Error::invalid(format!("host port {port} is not allowed here (ports)")));
        }
        let Some(addresses) = &self.addresses else { return Ok(()) };
        match port.host {
            Some(address) if addresses.contains(&address) => Ok(()),
            Some(address) => Err(Error::invalid(format!("host address {address} is not allowed here (addresses)"))),
            None => Err(Error::invalid(format!("host port {port} on all addresses is not allowed here (addresses)"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Node::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_has_the_default_network_and_allows_nothing() {
        let node = Node::parse("").unwrap();
        assert_eq!(node.networks.keys().collect::<Vec<_>>(), [DEFAULT]);
        assert!(node.allowed("default").is_none());
        let network = node.network(DEFAULT).unwrap();
        let gateways: Vec<_> = network.subnets.iter().filter_map(|subnet| network.gateway(subnet)).collect();
        assert_eq!(gateways, ["10.209.0.1".parse::<IpAddr>().unwrap(), "fdc0:7ac1:e000::1".parse().unwrap()]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, want) in [
            ("x = 1", "unknown field `x`"),
            ("state = \"run\"", "state: not an absolute path"),
            ("[namespaces.\"k8s.io\"]", "k8s.io is Kubernetes' own"),
            ("[namespaces.a]\nports = [\"9-1\"]", "line 2: \"9-1\" is no range of ports"),
            ("[networks.a]\nsubnets = []", "networks.a: subnets: want one of IPv4"),
            ("[networks.a]\nsubnets = [\"10.0.0.0/31\"]", "no room for a container"),
            ("[networks.a]\nsubnets = [\"10.0.0.1/24\"]", "want 10.0.0.0/24"),
            ("[networks.a]\nsubnets = [\"10.209.1.0/24\"]", "overlaps 10.209.1.0/24 of a"),
            ("[networks.a-name-of-17-bytes]\nsubnets = [\"10.0.0.0/24\"]", "cannot be a device's name"),
            ("[networks.host]\nsubnets = [\"10.0.0.0/24\"]", "meaning of its own"),
            ("[networks.a]\nsubnets = [\"10.0.0.0/24\"]\nbridge = \"b\"\nmacvlan = \"c\"", "exclude each other"),
            ("[networks.a]\nsubnets = [\"10.0.0.0/24\"]\nmacvlan = \"c\"\ngateways = [\"10.0.1.1\"]", "10.0.1.1 is in no subnet"),
        ] {
            let said = refused(text);
            assert!(said.contains(want), "{text:?}: {said}");
        }
    }

    #[test]
    fn a_namespace_may_what_is_listed() {
        let text =
            "[namespaces.a]\nmodes = [\"host\"]\nnetworks = [\"b\"]\nports = [\"80/tcp\", \"5000-5010\"]\naddresses = [\"127.0.0.1\"]";
        let node = Node::parse(text).unwrap();
        let allowed = node.allowed("a").unwrap();
        assert!(allowed.mode(&Mode::Host, None).is_ok());
        assert!(allowed.mode(&Mode::None, None).is_err() && allowed.mode(&Mode::Container("x".to_owned()), None).is_err());
        let port = |host_port, protocol, host: Option<&str>| Port {
            protocol,
            host: host.map(|address| address.parse().unwrap()),
            host_port,
            port: 1,
        };
        assert!(allowed.port(&port(80, Protocol::Tcp, Some("127.0.0.1"))).is_ok());
        assert!(allowed.port(&port(5010, Protocol::Udp, Some("127.0.0.1"))).is_ok());
        for refused in [
            port(80, Protocol::Udp, Some("127.0.0.1")),
            port(81, Protocol::Tcp, Some("127.0.0.1")),
            port(80, Protocol::Tcp, Some("10.0.0.1")),
            port(80, Protocol::Tcp, None),
        ] {
            assert!(allowed.port(&refused).is_err(), "{refused}");
        }
    }
}
