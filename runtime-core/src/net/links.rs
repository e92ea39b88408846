//! Devices, addresses and routes.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoMacVlan, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MacVlanMode, Stats64,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use rustix::net::{SocketFlags, SocketType, netdevice, socket_with};

use super::netlink::{Route, nested};

/// Added to what must not be there yet.
const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// The name that a container's own device has.
pub const INSIDE: &str = "eth0";

/// How hardware addresses begin: locally administered (IEEE 802, section 8.4).
const HARDWARE: [u8; 2] = [0x02, 0xc0];

// linux/if_link.h
const IFLA_PROTINFO: u16 = 12;
const IFLA_BRPORT_MODE: u16 = 4;

type Request = (RouteNetlinkMessage, u16);

/// The number of a device of the caller's network namespace. Cheaper than [`Route::link`], which looks through all namespaces that devices lead to.
///
/// # Errors
/// `ENODEV`.
pub fn index(name: &str) -> Result<u32, Errno> {
    let socket = socket_with(rustix::net::AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    netdevice::name_to_index(&socket, name)
}

/// The hardware address that goes with a container's addresses, so that one that takes an address over is found behind it at once.
pub fn hardware_address(addresses: &[IpNet]) -> [u8; 6] {
    let last: [u8; 4] = match addresses.first().map(IpNet::addr) {
        Some(IpAddr::V4(address)) => address.octets(),
        Some(IpAddr::V6(address)) => address.octets().last_chunk().copied().unwrap_or_default(),
        None => [0; 4],
    };
    let ([first, second], [a, b, c, d]) = (HARDWARE, last);
    [first, second, a, b, c, d]
}

impl Route {
    /// A device by its name.
    ///
    /// # Errors
    /// `ENODEV`.
    pub fn link(&mut self, name: &str) -> Result<LinkMessage, Errno> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.get(RouteNetlinkMessage::GetLink(request))? {
            RouteNetlinkMessage::NewLink(link) => Ok(link),
            _ => Err(Errno::BADMSG),
        }
    }

    /// All devices.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn links(&mut self) -> Result<Vec<LinkMessage>, Errno> {
        let all = self.list(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        let link = |message| if let RouteNetlinkMessage::NewLink(link) = message { Some(link) } else { None };
        Ok(all.into_iter().filter_map(link).collect())
    }

    /// Makes a bridge that has addresses and is up; its index.
    ///
    /// # Errors
    /// `EEXIST`.
    pub fn make_bridge(&mut self, name: &str, addresses: &[IpNet], mtu: Option<u32>) -> Result<u32, Errno> {
        let mut request = LinkMessage::default();
        let first = hardware_address(addresses);
        request.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Address(first.to_vec())];
        request.attributes.extend(mtu.map(LinkAttribute::Mtu));
        request.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        self.change(RouteNetlinkMessage::NewLink(request), NEW)?;
        let index = self.link(name)?.header.index;
        let mut requests: Vec<Request> = addresses.iter().map(|address| new_address(index, address)).collect();
        requests.push(up(index));
        self.batch(requests).map_err(|(_, errno)| errno)?;
        Ok(index)
    }

    /// Makes a pair of devices: one in this namespace, on a bridge; the other one in `namespace`, where it never has another name.
    ///
    /// # Errors
    /// `EEXIST`.
    pub fn make_pair(&mut self, pair: &Pair<'_>, bridge: u32, namespace: BorrowedFd<'_>) -> Result<(), Errno> {
        // It cannot be up before it is one of a pair.
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(INSIDE.to_owned()),
            LinkAttribute::NetNsFd(namespace.as_raw_fd()),
            LinkAttribute::Address(pair.hardware_address.to_vec()),
        ];
        peer.attributes.extend(pair.mtu.map(LinkAttribute::Mtu));
        let mut request = LinkMessage::default();
        (request.header.flags, request.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
        request.attributes = vec![LinkAttribute::IfName(pair.name.to_owned()), LinkAttribute::Controller(bridge)];
        request.attributes.extend(pair.mtu.map(LinkAttribute::Mtu));
        request
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)))]));
        self.change(RouteNetlinkMessage::NewLink(request), NEW)?;
        let index = index(pair.name)?;
        // What a container sends to a port that it has published itself comes back to it.
        let mut hairpin = LinkMessage::default();
        (hairpin.header.interface_family, hairpin.header.index) = (AddressFamily::Bridge, index);
        // The crate's own kind for this does not mark it as one that holds others, and the kernel wants that.
        let mode = DefaultNla::new(IFLA_BRPORT_MODE, vec![1]);
        hairpin.attributes = vec![LinkAttribute::Other(nested(IFLA_PROTINFO, &[mode]))];
        // The address is behind this port and nowhere else: the namespace of a container that had it before may live for some more
        // milliseconds, and no other container may claim it.
        let mut bound = NeighbourMessage::default();
        bound.header = NeighbourHeader {
            family: AddressFamily::Bridge,
            ifindex: index,
            state: NeighbourState::Noarp,
            flags: NeighbourFlags::Controller | NeighbourFlags::Sticky,
            kind: RouteType::default(),
        };
        bound.attributes = vec![NeighbourAttribute::LinkLayerAddress(pair.hardware_address.to_vec())];
        let bound = (RouteNetlinkMessage::NewNeighbour(bound), NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE);
        self.batch(vec![(RouteNetlinkMessage::SetLink(hairpin), NLM_F_ACK), bound]).map_err(|(_, errno)| errno)
    }

    /// Makes a device in `namespace` that is on one of this namespace's, with an address of its own.
    ///
    /// # Errors
    /// `EEXIST`; `EBUSY` if the parent has another use.
    pub fn make_macvlan(&mut self, parent: u32, pair: &Pair<'_>, namespace: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut request = LinkMessage::default();
        request.attributes = vec![
            LinkAttribute::IfName(INSIDE.to_owned()),
            LinkAttribute::NetNsFd(namespace.as_raw_fd()),
            LinkAttribute::Link(parent),
            LinkAttribute::Address(pair.hardware_address.to_vec()),
        ];
        request.attributes.extend(pair.mtu.map(LinkAttribute::Mtu));
        request.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::MacVlan),
            LinkInfo::Data(InfoData::MacVlan(vec![InfoMacVlan::Mode(MacVlanMode::Bridge)])),
        ]));
        self.change(RouteNetlinkMessage::NewLink(request), NEW)
    }

    /// Gives [`INSIDE`] its addresses and the ways out, in the namespace that this is of.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn configure(&mut self, addresses: &[IpNet], gateways: &[IpAddr]) -> Result<(), Errno> {
        let index = self.link(INSIDE)?.header.index;
        let mut requests: Vec<Request> = addresses.iter().map(|address| new_address(index, address)).collect();
        requests.push(up(index));
        requests.extend(gateways.iter().map(|gateway| new_default_route(index, *gateway)));
        self.batch(requests).map_err(|(_, errno)| errno)
    }

    /// Removes a device; one that is not there is fine.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn remove(&mut self, name: &str) -> Result<(), Errno> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.change(RouteNetlinkMessage::DelLink(request), 0) {
            Err(Errno::NODEV) => Ok(()),
            result => result,
        }
    }

    /// The destinations that the namespace has routes to, but for the default ones.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn destinations(&mut self) -> Result<Vec<IpNet>, Errno> {
        let all = self.list(&RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
        let destination = |message| {
            let RouteNetlinkMessage::NewRoute(route) = message else { return None };
            let length = route.header.destination_prefix_length;
            if length == 0 || route.header.kind != RouteType::Unicast {
                return None;
            }
            route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => IpNet::new((*address).into(), length).ok(),
                RouteAttribute::Destination(RouteAddress::Inet6(address)) => IpNet::new((*address).into(), length).ok(),
                _ => None,
            })
        };
        Ok(all.into_iter().filter_map(destination).collect())
    }
}

/// What a container's device is to be.
pub struct Pair<'a> {
    /// The host's end.
    pub name: &'a str,
    /// The container's.
    pub hardware_address: [u8; 6],
    /// In bytes.
    pub mtu: Option<u32>,
}

/// Whether a device's hardware address is one that is given here.
pub fn is_ours(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Address(bytes) if bytes.starts_with(&HARDWARE)))
}

/// What a device has carried.
pub fn counters(link: &LinkMessage) -> Option<Stats64> {
    link.attributes.iter().find_map(|attribute| if let LinkAttribute::Stats64(stats) = attribute { Some(*stats) } else { None })
}

/// A device's name.
pub fn name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| if let LinkAttribute::IfName(name) = attribute { Some(name.as_str()) } else { None })
}

fn up(index: u32) -> Request {
    let mut request = LinkMessage::default();
    request.header.index = index;
    (request.header.flags, request.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    (RouteNetlinkMessage::SetLink(request), NLM_F_ACK)
}

fn new_address(index: u32, address: &IpNet) -> Request {
    let mut request = AddressMessage::default();
    request.header.index = index;
    request.header.prefix_len = address.prefix_len();
    request.header.scope = AddressScope::Universe;
    request.attributes = vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
    match address {
        IpNet::V4(address) => {
            request.header.family = AddressFamily::Inet;
            request.attributes.push(AddressAttribute::Broadcast(address.broadcast()));
        }
        IpNet::V6(_) => {
            request.header.family = AddressFamily::Inet6;
            // Nobody else has it: the ledger says so, and a container does not wait a second to hear it from the wire.
            request.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
    }
    (RouteNetlinkMessage::NewAddress(request), NLM_F_ACK | NEW)
}

fn new_default_route(index: u32, gateway: IpAddr) -> Request {
    let mut request = RouteMessage::default();
    request.header = RouteHeader {
        address_family: if gateway.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 },
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    request.attributes = vec![RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(index)];
    (RouteNetlinkMessage::NewRoute(request), NLM_F_ACK | NEW)
}
