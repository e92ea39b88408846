//! What a container's annotations ask for.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::node::{Allowed, DEFAULT, Network, Node};
use crate::error::{Context, Error, Result};

/// What begins the names of the annotations.
pub const PREFIX: &str = "coracle.";
const NETWORK: &str = "coracle.network";

/// More than that is a mistake, and each costs an element of the kernel's.
const MOST_PORTS: usize = 1024;

/// Where a container's network comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One of the node's networks.
    Network(String),
    /// The host's own.
    Host,
    /// A namespace with nothing but the loopback device.
    None,
    /// That of another container in the same namespace of containerd's.
    Container(String),
    /// One that exists already.
    Path(PathBuf),
}

/// Of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host's that leads to one of the container's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Of both.
    pub protocol: Protocol,
    /// On this address of the host's alone.
    pub host: Option<IpAddr>,
    /// Of the host.
    pub host_port: u16,
    /// Of the container.
    pub port: u16,
}

/// How names are resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Those of the host, if none is given.
    pub servers: Vec<IpAddr>,
    /// Those of the host, if none is given.
    pub search: Vec<String>,
    /// Those of the host, if none is given.
    pub options: Vec<String>,
}

/// In bits per second, and bits at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Bits per second.
    pub rate: u64,
    /// Bits.
    pub burst: u64,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// `coracle.network`.
    pub mode: Mode,
    /// `coracle.ports`.
    pub ports: Vec<Port>,
    /// `coracle.address`: to have these of the network.
    pub addresses: Vec<IpAddr>,
    /// `coracle.aliases`: more names on the network.
    pub aliases: Vec<String>,
    /// `coracle.dns`, `coracle.dns-search`, `coracle.dns-options`.
    pub resolver: Resolver,
    /// `coracle.ingress-rate`, `coracle.ingress-burst`: to the container.
    pub ingress: Option<Rate>,
    /// `coracle.egress-rate`, `coracle.egress-burst`: from the container.
    pub egress: Option<Rate>,
}

impl FromStr for Protocol {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = if self.protocol == Protocol::Tcp { "tcp" } else { "udp" };
        match self.host {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:{}/{protocol}", self.host_port),
            Some(IpAddr::V4(address)) => write!(f, "{address}:{}/{protocol}", self.host_port),
            None => write!(f, "{}/{protocol}", self.host_port),
        }
    }
}

impl Port {
    /// Whether both cannot be had.
    pub fn clashes(&self, other: &Self) -> bool {
        let same_address = || match (self.host, other.host) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        self.protocol == other.protocol && self.host_port == other.host_port && same_address()
    }
}

/// The annotations of this runtime's, each of which must be asked for.
struct Annotations<'a>(HashMap<&'a str, &'a str>);

impl<'a> Annotations<'a> {
    /// The parts of a list, and what each is; empty without the annotation.
    fn list<T>(&mut self, key: &'static str, part: impl Fn(&'a str) -> Result<T>) -> Result<Vec<T>> {
        let Some(text) = self.0.remove(key) else { return Ok(Vec::new()) };
        text.split(',').map(|word| part(word.trim())).collect::<Result<_>>().context(|| label(key))
    }

    fn rate(&mut self, rate: &'static str, burst: &'static str) -> Result<Option<Rate>> {
        let mut bits = |key: &'static str| self.0.remove(key).map(|text| bits(text).context(|| label(key))).transpose();
        match (bits(rate)?, bits(burst)?) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(Error::invalid(format!("{}: needs {rate}", label(burst)))),
            // A tenth of a second's worth, and never less than what one packet of 64 KiB needs.
            (Some(rate), burst) => Ok(Some(Rate { rate, burst: burst.unwrap_or(rate / 10).max(1 << 20) })),
        }
    }
}

fn label(key: &str) -> String {
    format!("annotations[{key:?}]")
}

impl Asked {
    /// What annotations ask for, if the node's file lets those of the namespace count and they ask for something.
    ///
    /// # Errors
    /// They are malformed, or ask for what is not allowed; the annotation is named.
    pub fn of(annotations: &HashMap<String, String>, node: &Node, namespace: &str) -> Result<Option<Self>> {
        let Some(allowed) = node.allowed(namespace) else { return Ok(None) };
        let ours = annotations.iter().filter(|(key, _)| key.starts_with(PREFIX));
        let mut given = Annotations(ours.map(|(key, value)| (key.as_str(), value.as_str())).collect());
        let Some(text) = given.0.remove(NETWORK) else {
            return match given.0.keys().min() {
                Some(key) => Err(Error::invalid(format!("{}: needs {NETWORK}", label(key)))),
                None => Ok(None),
            };
        };
        let asked = Self {
            mode: mode(text, allowed, node).context(|| label(NETWORK))?,
            ports: given.list("coracle.ports", ports)?.concat(),
            addresses: given.list("coracle.address", address)?,
            aliases: given.list("coracle.aliases", |word| name(word).map(str::to_owned))?,
            resolver: Resolver {
                servers: given.list("coracle.dns", address)?,
                search: given.list("coracle.dns-search", |word| name(word).map(str::to_owned))?,
                options: given.list("coracle.dns-options", |word| option(word).map(str::to_owned))?,
            },
            ingress: given.rate("coracle.ingress-rate", "coracle.ingress-burst")?,
            egress: given.rate("coracle.egress-rate", "coracle.egress-burst")?,
        };
        if let Some(key) = given.0.keys().min() {
            return Err(Error::invalid(format!("{}: there is no such annotation", label(key))));
        }
        asked.check(allowed, node)?;
        Ok(Some(asked))
    }

    fn check(&self, allowed: &Allowed, node: &Node) -> Result<()> {
        let network = match &self.mode {
            Mode::Network(name) => Some(node.network(name)?),
            _ => None,
        };
        let needs = |key: &str, what: &str| Err(Error::invalid(format!("{}: needs {what}", label(key))));
        if !self.ports.is_empty() && network.is_none_or(|network| network.macvlan.is_some() || network.internal) {
            return needs("coracle.ports", "a bridge network with a way out");
        }
        if (self.ingress.is_some() || self.egress.is_some()) && network.is_none_or(|network| network.macvlan.is_some()) {
            return needs(if self.ingress.is_some() { "coracle.ingress-rate" } else { "coracle.egress-rate" }, "a bridge network");
        }
        if !self.aliases.is_empty() && network.is_none() {
            return needs("coracle.aliases", "a network");
        }
        if matches!(self.mode, Mode::Container(_) | Mode::Host) && self.resolver != Resolver::default() {
            return needs("coracle.dns", "a namespace of the container's own");
        }
        self.check_ports(allowed).context(|| label("coracle.ports"))?;
        self.check_addresses(network).context(|| label("coracle.address"))
    }

    fn check_ports(&self, allowed: &Allowed) -> Result<()> {
        if self.ports.len() > MOST_PORTS {
            return Err(Error::invalid(format!("{} ports, at most {MOST_PORTS}", self.ports.len())));
        }
        for (place, port) in self.ports.iter().enumerate() {
            allowed.port(port)?;
            if self.ports.iter().take(place).any(|other| other.clashes(port)) {
                return Err(Error::invalid(format!("host port {port} is given twice")));
            }
        }
        Ok(())
    }

    fn check_addresses(&self, network: Option<&Network>) -> Result<()> {
        for (place, address) in self.addresses.iter().enumerate() {
            let subnet = network.and_then(|network| network.subnets.iter().find(|subnet| subnet.contains(address)));
            let Some((subnet, network)) = subnet.zip(network) else {
                return Err(Error::invalid(format!("{address} is in no subnet of the network")));
            };
            if *address == subnet.network() || *address == subnet.broadcast() || network.gateway(subnet) == Some(*address) {
                return Err(Error::invalid(format!("{address} is not a container's")));
            }
            if self.addresses.iter().take(place).any(|other| subnet.contains(other)) {
                return Err(Error::invalid(format!("{address} is the second of {subnet}")));
            }
        }
        Ok(())
    }
}

fn mode(text: &str, allowed: &Allowed, node: &Node) -> Result<Mode> {
    let mode = match text.split_once(':') {
        Some(("container", id)) if !id.is_empty() && !id.contains('/') && !id.starts_with('.') => Mode::Container(id.to_owned()),
        Some(("ns", path)) if path.starts_with('/') && !path.contains('\0') => Mode::Path(PathBuf::from(path)),
        None if text == "host" => Mode::Host,
        None if text == "none" => Mode::None,
        None if text == "bridge" => Mode::Network(DEFAULT.to_owned()),
        None => Mode::Network(text.to_owned()),
        Some(_) => return Err(Error::invalid(format!("{text:?} is none of bridge, host, none, container:<id>, ns:<path>, <network>"))),
    };
    let network = match &mode {
        Mode::Network(name) => Some(node.network(name)?),
        _ => None,
    };
    allowed.mode(&mode, network)?;
    Ok(mode)
}

fn address(word: &str) -> Result<IpAddr> {
    word.parse().map_err(|_| Error::invalid(format!("{word:?} is no address")))
}

/// A name of DNS (RFC 1123 section 2.1), with the underscore that container ids may have.
pub fn name(word: &str) -> Result<&str> {
    let fits = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    let fits = word.len() <= 253 && word.split('.').all(fits) && word.parse::<IpAddr>().is_err();
    if fits { Ok(word) } else { Err(Error::invalid(format!("{word:?} cannot be a host's name"))) }
}

/// A word of resolv.conf(5)'s `options`.
fn option(word: &str) -> Result<&str> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b':');
    if !word.is_empty() && word.bytes().all(fits) { Ok(word) } else { Err(Error::invalid(format!("{word:?} is no option"))) }
}

/// `10M`, `1500k`, `800000`: bits, in powers of ten.
fn bits(text: &str) -> Result<u64> {
    let (number, unit) = match text.char_indices().last() {
        Some((end, 'k')) => (text.get(..end), 1_000),
        Some((end, 'M')) => (text.get(..end), 1_000_000),
        Some((end, 'G')) => (text.get(..end), 1_000_000_000),
        _ => (Some(text), 1),
    };
    let bits = number.and_then(|number| number.parse::<u64>().ok()).and_then(|number| number.checked_mul(unit));
    // Less than a thousand, and packets would wait for minutes; more than what the kernel's 32 bits of bytes for a burst hold makes no sense.
    let sensible = bits.filter(|bits| (1_000..=1 << 50).contains(bits));
    sensible.ok_or_else(|| Error::invalid(format!("{text:?} is no number of bits, such as 10M, 1500k or 1G")))
}

/// `[address:]host[-host]:container[-container][/protocol]`, as Docker and CNI's users write it.
fn ports(word: &str) -> Result<Vec<Port>> {
    let malformed = || Error::invalid(format!("{word:?} is not [<address>:]<host port>:<container port>[/tcp|udp]"));
    let (rest, protocol) = match word.rsplit_once('/') {
        Some((rest, protocol)) => (rest, protocol.parse().map_err(|()| malformed())?),
        None => (word, Protocol::Tcp),
    };
    let (rest, container) = rest.rsplit_once(':').ok_or_else(malformed)?;
    let (host, host_ports) = match rest.rsplit_once(':') {
        Some((address, ports)) => {
            let address = address.strip_prefix('[').and_then(|address| address.strip_suffix(']')).unwrap_or(address);
            let address: IpAddr = address.parse().map_err(|_| malformed())?;
            if address.is_loopback() && address.is_ipv6() {
                return Err(Error::invalid(format!("{word:?}: the kernel lets no packet from {address} leave")));
            }
            // All of them is what no address means.
            ((!address.is_unspecified()).then_some(address), ports)
        }
        None => (None, rest),
    };
    let range = |text: &str| -> Option<RangeInclusive<u16>> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
        (first > 0 && first <= last).then_some(first..=last)
    };
    let (host_ports, container) = range(host_ports).zip(range(container)).ok_or_else(malformed)?;
    if host_ports.len() != container.len() {
        return Err(Error::invalid(format!("{word:?}: {} ports lead to {}", host_ports.len(), container.len())));
    }
    Ok(host_ports.zip(container).map(|(host_port, port)| Port { protocol, host, host_port, port }).collect())
}

#[cfg(test)]
mod tests;
