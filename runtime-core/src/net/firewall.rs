//! The node's one table of nf_tables (`inet coracle`): what leaves a network gets the host's address, published ports lead to containers, and
//! nothing else enters a network, neither from outside nor from another network.
//!
//! The rules are the same whatever there is; what differs are elements of sets. So a container costs an element for each of its ports, and a
//! packet costs the same for one container as for a thousand.

mod expressions;

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, GenAttribute, GenMessage, Hook, InetHookNumber, ListAttribute, NfTablesMessage,
    RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute, SetElementList, SetElementMessage, SetFlags, SetMessage, TableAttribute,
    TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use self::expressions::{Rule, rules};
use super::asked::{Port, Protocol};
use super::ledger::Lease;
use super::netlink::Netfilter;

const TABLE: &str = "coracle";

/// The bridges of all networks.
const BRIDGES: &str = "bridges";
/// Those of the networks that have a way out.
const OPEN: &str = "open";
/// Each bridge, twice: from where and to where packets may pass.
const WITHIN: &str = "within";

/// NFNL_SUBSYS_NFTABLES: whom a batch is for (linux/netfilter/nfnetlink.h).
const SUBSYSTEM: u16 = 10;

/// An attribute of the kernel's has 16 bits for its length.
const ELEMENTS_AT_ONCE: usize = 400;

/// A device's name in a key is as long as the kernel's field.
const NAME: usize = 16;

// Types of keys as nft(8) numbers them, so that it shows them as people write them (nftables, include/datatype.h); a key of several has six bits for each.
const ADDRESS_4: u32 = 7;
const ADDRESS_6: u32 = 8;
const PROTOCOL: u32 = 12;
const SERVICE: u32 = 13;
const DEVICE: u32 = 41;

const fn joined(types: &[u32]) -> u32 {
    let (mut all, mut place) = (0, 0);
    while place < types.len() {
        all = all << 6 | types[place];
        place += 1;
    }
    all
}

/// A set or a map of the table.
struct Set {
    name: &'static str,
    key: (u32, u32),
    /// Of a map.
    data: Option<(u32, u32)>,
}

const SETS: [Set; 7] = [
    Set { name: BRIDGES, key: (DEVICE, 16), data: None },
    Set { name: OPEN, key: (DEVICE, 16), data: None },
    Set { name: WITHIN, key: (joined(&[DEVICE, DEVICE]), 32), data: None },
    Set { name: "ports4", key: (joined(&[PROTOCOL, SERVICE]), 8), data: Some((joined(&[ADDRESS_4, SERVICE]), 8)) },
    Set { name: "ports6", key: (joined(&[PROTOCOL, SERVICE]), 8), data: Some((joined(&[ADDRESS_6, SERVICE]), 20)) },
    Set { name: "bound4", key: (joined(&[ADDRESS_4, PROTOCOL, SERVICE]), 12), data: Some((joined(&[ADDRESS_4, SERVICE]), 8)) },
    Set { name: "bound6", key: (joined(&[ADDRESS_6, PROTOCOL, SERVICE]), 24), data: Some((joined(&[ADDRESS_6, SERVICE]), 20)) },
];

/// A bridge, as the firewall needs to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// The device.
    pub name: String,
    /// It has no way out.
    pub internal: bool,
    /// The network's.
    pub subnets: Vec<IpNet>,
}

/// What came of opening a container's ports.
pub enum Opened {
    /// They are open.
    Done,
    /// The table is missing, or holds what it should not: it must be made anew.
    Stale,
}

type Message = (NetfilterMessage, u16);

/// A key, and for a map what belongs to it.
type Element = (Vec<u8>, Option<Vec<u8>>);

/// Makes the table anew with all that it should hold, at once: nobody sees it without.
///
/// # Errors
/// The errno of the batch: `EPROTONOSUPPORT` or `EOPNOTSUPP` where the kernel lacks nf_tables or a part that the rules need.
pub fn rebuild(bridges: &[Bridge], leases: &[Lease]) -> Result<(), Errno> {
    let mut messages = vec![table(true), table(false), table(true)];
    messages.extend(SETS.iter().zip(1..).map(|(set, id)| new_set(set, id)));
    let chains = [
        ("local", "filter", InetHookNumber::PreRouting, -300),
        ("prerouting", "nat", InetHookNumber::PreRouting, -100),
        ("output", "nat", InetHookNumber::LocalOut, -100),
        ("postrouting", "nat", InetHookNumber::PostRouting, 100),
        ("forward", "filter", InetHookNumber::Forward, 0),
    ];
    messages.extend(chains.map(|(name, kind, hook, priority)| new_chain(name, kind, hook, priority)));
    messages.extend(rules(bridges.iter().flat_map(|bridge| &bridge.subnets)).into_iter().map(new_rule));
    let padded = |name: &str| device(name).to_vec();
    let names = |open: bool| bridges.iter().filter(move |bridge| !(open && bridge.internal)).map(|bridge| (padded(&bridge.name), None));
    messages.extend(elements(BRIDGES, names(false).collect(), true));
    messages.extend(elements(OPEN, names(true).collect(), true));
    messages.extend(elements(WITHIN, names(false).map(|(name, _)| ([name.clone(), name].concat(), None)).collect(), true));
    messages.extend(ports(leases, true));
    send(messages)
}

/// Opens a container's ports.
///
/// # Errors
/// The errno of the batch.
pub fn open(lease: &Lease) -> Result<Opened, Errno> {
    match send(ports(std::slice::from_ref(lease), true)) {
        Ok(()) => Ok(Opened::Done),
        Err(Errno::NOENT | Errno::EXIST) => Ok(Opened::Stale),
        Err(errno) => Err(errno),
    }
}

/// Closes a container's ports.
///
/// # Errors
/// The errno of the batch; it is fine if they are closed.
pub fn close(lease: &Lease) -> Result<Opened, Errno> {
    match send(ports(std::slice::from_ref(lease), false)) {
        Ok(()) => Ok(Opened::Done),
        Err(Errno::NOENT) => Ok(Opened::Stale),
        Err(errno) => Err(errno),
    }
}

/// Whether the table is there and knows a bridge.
///
/// # Errors
/// The errno of the request.
pub fn knows(bridge: &str) -> Result<bool, Errno> {
    let key = SetElementAttribute::Key(DataAttribute::Value(device(bridge).to_vec()));
    let attributes = vec![
        SetElementList::Table(TABLE.to_owned()),
        SetElementList::Set(BRIDGES.to_owned()),
        SetElementList::Elements(vec![ListAttribute::Element(vec![key])]),
    ];
    let (request, _) = message(NfTablesMessage::GetSetElement(SetElementMessage { attributes }), 0);
    match Netfilter::with(|netfilter| netfilter.get(request)) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Whether the table has these bridges, and as many rules as it should.
///
/// # Errors
/// The errno of the request.
pub fn is_whole(bridges: &[Bridge]) -> Result<bool, Errno> {
    for bridge in bridges {
        if !knows(&bridge.name)? {
            return Ok(false);
        }
    }
    let (request, _) = message(NfTablesMessage::GetRule(RuleMessage { attributes: vec![RuleAttribute::Table(TABLE.to_owned())] }), 0);
    let there = Netfilter::with(|netfilter| netfilter.list(&request))?;
    Ok(there.len() == rules(bridges.iter().flat_map(|bridge| &bridge.subnets)).len())
}

/// A number that is another one after each change of anybody's tables.
///
/// # Errors
/// The errno of the request.
pub fn generation() -> Result<Option<u32>, Errno> {
    let (request, _) = message(NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() }), 0);
    let answer = Netfilter::with(|netfilter| netfilter.get(request))?;
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewGen(generation)) = answer.inner else { return Ok(None) };
    Ok(generation.attributes.into_iter().find_map(|attribute| if let GenAttribute::Id(id) = attribute { Some(id) } else { None }))
}

/// Removes the table, if it is there.
///
/// # Errors
/// The errno of the batch.
pub fn remove() -> Result<(), Errno> {
    send(vec![table(true), table(false)])
}

fn send(messages: Vec<Message>) -> Result<(), Errno> {
    if messages.is_empty() {
        return Ok(());
    }
    let bound = |message| (NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM), message), 0);
    let mut batch = vec![bound(ControlMessage::BatchBegin)];
    batch.extend(messages);
    batch.push(bound(ControlMessage::BatchEnd));
    Netfilter::with(|netfilter| netfilter.batch(batch).map_err(|(_, errno)| errno))
}

fn message(message: NfTablesMessage, flags: u16) -> Message {
    (NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0), message), flags | NLM_F_ACK)
}

fn table(new: bool) -> Message {
    let table = TableMessage { attributes: vec![TableAttribute::Name(TABLE.to_owned())] };
    if new { message(NfTablesMessage::NewTable(table), NLM_F_CREATE) } else { message(NfTablesMessage::DeleteTable(table), 0) }
}

fn new_set(set: &Set, id: u32) -> Message {
    let mut attributes = vec![
        SetAttribute::Table(TABLE.to_owned()),
        SetAttribute::Name(set.name.to_owned()),
        SetAttribute::KeyType(set.key.0),
        SetAttribute::KeyLen(set.key.1),
        SetAttribute::Id(id),
    ];
    if let Some((kind, length)) = set.data {
        attributes.extend([SetAttribute::Flags(SetFlags::Map), SetAttribute::DataType(kind), SetAttribute::DataLen(length)]);
    }
    message(NfTablesMessage::NewSet(SetMessage { attributes }), NLM_F_CREATE)
}

fn new_chain(name: &str, kind: &str, hook: InetHookNumber, priority: i32) -> Message {
    let attributes = vec![
        ChainAttribute::Table(TABLE.to_owned()),
        ChainAttribute::Name(name.to_owned()),
        ChainAttribute::Type(kind.to_owned()),
        ChainAttribute::Hook(vec![Hook::Number(hook.into()), Hook::Priority(priority.cast_unsigned())]),
    ];
    message(NfTablesMessage::NewChain(ChainMessage { attributes }), NLM_F_CREATE)
}

fn new_rule(rule: Rule) -> Message {
    let attributes = vec![
        RuleAttribute::Table(TABLE.to_owned()),
        RuleAttribute::Chain(rule.chain.to_owned()),
        RuleAttribute::Expressions(rule.expressions.into_iter().map(ListAttribute::from).collect()),
    ];
    message(NfTablesMessage::NewRule(RuleMessage { attributes }), NLM_F_CREATE | netlink_packet_core::NLM_F_APPEND)
}

/// Adds elements to a set, or removes them.
fn elements(set: &str, list: Vec<Element>, add: bool) -> Vec<Message> {
    let parts = list.chunks(ELEMENTS_AT_ONCE).map(|part| {
        let elements = part.iter().map(|(key, data)| {
            let mut element = vec![SetElementAttribute::Key(DataAttribute::Value(key.clone()))];
            element.extend(data.iter().map(|data| SetElementAttribute::Data(DataAttribute::Value(data.clone()))));
            ListAttribute::Element(element)
        });
        let attributes = vec![
            SetElementList::Table(TABLE.to_owned()),
            SetElementList::Set(set.to_owned()),
            SetElementList::Elements(elements.collect()),
        ];
        let elements = SetElementMessage { attributes };
        match add {
            true => message(NfTablesMessage::NewSetElement(elements), NLM_F_CREATE | NLM_F_EXCL),
            false => message(NfTablesMessage::DeleteSetElement(elements), 0),
        }
    });
    parts.collect()
}

/// The elements for the ports of containers.
fn ports(leases: &[Lease], add: bool) -> Vec<Message> {
    let mut lists: [Vec<Element>; 4] = Default::default();
    for lease in leases {
        for (address, port) in lease.addresses.iter().flat_map(|address| lease.ports.iter().map(|port| (address.addr(), port))) {
            if port.host.is_some_and(|host| host.is_ipv4() != address.is_ipv4()) {
                continue;
            }
            let [ports4, ports6, bound4, bound6] = &mut lists;
            let list = match (address.is_ipv4(), port.host.is_some()) {
                (true, false) => ports4,
                (false, false) => ports6,
                (true, true) => bound4,
                (false, true) => bound6,
            };
            list.push(element(address, port, add));
        }
    }
    let names = ["ports4", "ports6", "bound4", "bound6"];
    names.into_iter().zip(lists).flat_map(|(name, list)| elements(name, list, add)).collect()
}

fn element(address: IpAddr, port: &Port, add: bool) -> Element {
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let service = |port: u16| [&port.to_be_bytes()[..], &[0, 0]].concat();
    let protocol = if port.protocol == Protocol::Tcp { libc::IPPROTO_TCP } else { libc::IPPROTO_UDP };
    let key = [port.host.map(bytes).unwrap_or_default(), vec![protocol as u8, 0, 0, 0], service(port.host_port)].concat();
    (key, add.then(|| [bytes(address), service(port.port)].concat()))
}

/// A device's name as the kernel compares it.
fn device(name: &str) -> [u8; NAME] {
    let mut bytes = [0; NAME];
    // The last byte stays zero.
    for (place, byte) in bytes.iter_mut().take(NAME - 1).zip(name.bytes()) {
        *place = byte;
    }
    bytes
}
