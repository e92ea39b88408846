//! The rules, in the kernel's own terms (linux/netfilter/nf_tables.h). Registers 8 and above have 4 bytes each.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::Expressions;

use super::{BRIDGES, OPEN, WITHIN};
use crate::net::netlink::nested;

/// A rule of a chain.
pub struct Rule {
    /// The chain's name.
    pub chain: &'static str,
    /// What is done, one after the other, until one does not match.
    pub expressions: Vec<Expressions>,
}

// Registers.
const FIRST: u32 = 8;
const SECOND: u32 = 9;
/// Behind an address of IPv6 in the first.
const FIFTH: u32 = 12;
const SIXTH: u32 = 13;
const THIRD: u32 = 10;

// enum nft_meta_keys.
const IIFNAME: u32 = 6;
const OIFNAME: u32 = 7;
const NFPROTO: u32 = 15;
const L4PROTO: u32 = 16;

// enum nft_ct_keys, and bits of nf_conntrack_common.h.
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const ESTABLISHED_OR_RELATED: u32 = 1 << 1 | 1 << 2;
const DESTINATION_CHANGED: u32 = 1 << 5;

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

const ACCEPT: i32 = 1;
const DROP: i32 = 0;

const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

/// A family of addresses.
struct Family {
    /// NFPROTO_IPV4, NFPROTO_IPV6.
    number: u8,
    /// Where the header has the two addresses, and their length.
    source: u32,
    destination: u32,
    length: u32,
    /// Where a protocol and a port lie behind an address, as registers.
    protocol: u32,
    service: u32,
    ports: &'static str,
    bound: &'static str,
    /// The loopback network: its first bytes.
    loopback: &'static [u8],
}

const FAMILIES: [Family; 2] = [
    Family {
        number: 2,
        source: 12,
        destination: 16,
        length: 4,
        protocol: SECOND,
        service: THIRD,
        ports: "ports4",
        bound: "bound4",
        loopback: &[127],
    },
    Family {
        number: 10,
        source: 8,
        destination: 24,
        length: 16,
        protocol: FIFTH,
        service: SIXTH,
        ports: "ports6",
        bound: "bound6",
        loopback: &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    },
];

/// All of them, each chain's in its order, for networks with these subnets.
pub fn rules<'a>(subnets: impl Iterator<Item = &'a IpNet>) -> Vec<Rule> {
    let [four, six] = &FAMILIES;
    let mut rules = Vec::new();
    // `route_localnet` of the bridges is for replies. Nobody in a network may use it to talk to what listens on the host's loopback device.
    rules.push(rule("local", [meta(IIFNAME), vec![member(BRIDGES)], of(four), begins(four, four.destination, EQUAL), vec![verdict(DROP)]]));
    for chain in ["prerouting", "output"] {
        for family in &FAMILIES {
            rules.push(rule(chain, [of(family), bound_key(family), vec![found(family.bound, FIRST)], to_container(family)]));
            // The kernel lets no packet from ::1 leave, so it had better be refused at once.
            let elsewhere = if family.number == six.number { begins(family, family.destination, NOT_EQUAL) } else { Vec::new() };
            rules
                .push(rule(chain, [of(family), is_local(), elsewhere, port_key(), vec![found(family.ports, FIRST)], to_container(family)]));
        }
    }
    let out = || [meta(OIFNAME), vec![member(BRIDGES)]].concat();
    rules.push(rule("postrouting", [meta(IIFNAME), vec![member(OPEN)], meta(OIFNAME), vec![not_member(BRIDGES), masquerade()]]));
    // From a network to a port that is published, even by the caller itself: the answer must come back the same way. Not by the device that a
    // packet has come from: where filters see what is bridged (br_netfilter), it has none here.
    for subnet in subnets {
        let family = if subnet.addr().is_ipv4() { four } else { six };
        rules.push(rule("postrouting", [out(), published(), of(family), is_from(family, subnet), vec![masquerade()]]));
    }
    rules.push(rule("postrouting", [out(), of(four), begins(four, four.source, EQUAL), vec![masquerade()]]));
    let known = [ct(CT_STATE, ESTABLISHED_OR_RELATED), vec![verdict(ACCEPT)]].concat();
    rules.push(rule("forward", [known]));
    rules.push(rule("forward", [out(), published(), vec![verdict(ACCEPT)]]));
    rules.push(rule("forward", [meta(IIFNAME), meta_to(OIFNAME, FIFTH), vec![member(WITHIN), verdict(ACCEPT)]]));
    rules.push(rule("forward", [out(), vec![verdict(DROP)]]));
    // What comes from a network without a way out goes nowhere else.
    rules.push(rule("forward", [meta(IIFNAME), vec![member(BRIDGES), not_member(OPEN), verdict(DROP)]]));
    rules
}

fn rule<const N: usize>(chain: &'static str, parts: [Vec<Expressions>; N]) -> Rule {
    Rule { chain, expressions: parts.concat() }
}

/// The value of an attribute.
enum Value<'a> {
    Number(u32),
    Text(&'a str),
    Nested(Vec<DefaultNla>),
}

fn attribute(kind: u16, value: &Value<'_>) -> DefaultNla {
    match value {
        Value::Number(number) => DefaultNla::new(kind, number.to_be_bytes().to_vec()),
        Value::Text(text) => DefaultNla::new(kind, [text.as_bytes(), &[0]].concat()),
        Value::Nested(inner) => nested(kind, inner),
    }
}

fn expression(name: &str, attributes: &[(u16, Value<'_>)]) -> Expressions {
    let attributes = attributes.iter().map(|(kind, value)| attribute(*kind, value)).collect();
    Expressions::Other { expression_type: name.to_owned(), attributes }
}

/// NFTA_DATA_VALUE.
fn data(bytes: &[u8]) -> Value<'static> {
    Value::Nested(vec![DefaultNla::new(1, bytes.to_vec())])
}

fn meta(key: u32) -> Vec<Expressions> {
    meta_to(key, FIRST)
}

fn meta_to(key: u32, register: u32) -> Vec<Expressions> {
    vec![expression("meta", &[(1, Value::Number(register)), (2, Value::Number(key))])]
}

fn compare(operator: u32, bytes: &[u8]) -> Expressions {
    expression("cmp", &[(1, Value::Number(FIRST)), (2, Value::Number(operator)), (3, data(bytes))])
}

fn member(set: &str) -> Expressions {
    expression("lookup", &[(1, Value::Text(set)), (2, Value::Number(FIRST))])
}

fn not_member(set: &str) -> Expressions {
    expression("lookup", &[(1, Value::Text(set)), (2, Value::Number(FIRST)), (5, Value::Number(1))])
}

/// What a map has for the first register.
fn found(map: &str, register: u32) -> Expressions {
    expression("lookup", &[(1, Value::Text(map)), (2, Value::Number(FIRST)), (3, Value::Number(register))])
}

fn verdict(code: i32) -> Expressions {
    let verdict = Value::Nested(vec![attribute(2, &Value::Nested(vec![attribute(1, &Value::Number(code as u32))]))]);
    expression("immediate", &[(1, Value::Number(0)), (2, verdict)])
}

fn masquerade() -> Expressions {
    expression("masq", &[])
}

/// Of this family.
fn of(family: &Family) -> Vec<Expressions> {
    [meta(NFPROTO), vec![compare(EQUAL, &[family.number])]].concat()
}

fn payload(base: u32, offset: u32, length: u32, register: u32) -> Expressions {
    let numbers = [register, base, offset, length].map(Value::Number);
    let [register, base, offset, length] = numbers;
    expression("payload", &[(1, register), (2, base), (3, offset), (4, length)])
}

/// An address of the packet's is of the loopback network, or is not.
fn begins(family: &Family, offset: u32, operator: u32) -> Vec<Expressions> {
    vec![payload(NETWORK_HEADER, offset, family.loopback.len() as u32, FIRST), compare(operator, family.loopback)]
}

/// The source is of a subnet.
fn is_from(family: &Family, subnet: &IpNet) -> Vec<Expressions> {
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mask = bitwise(family.length, &bytes(subnet.netmask()));
    vec![payload(NETWORK_HEADER, family.source, family.length, FIRST), mask, compare(EQUAL, &bytes(subnet.network()))]
}

/// Of the first register, in place.
fn bitwise(length: u32, mask: &[u8]) -> Expressions {
    let (register, other) = (Value::Number(FIRST), Value::Number(FIRST));
    expression("bitwise", &[(1, register), (2, other), (3, Value::Number(length)), (4, data(mask)), (5, data(&vec![0; mask.len()]))])
}

/// The destination is an address of the host's.
fn is_local() -> Vec<Expressions> {
    // NFT_FIB_RESULT_ADDRTYPE of NFTA_FIB_F_DADDR; RTN_LOCAL is 2, in the host's order of bytes.
    let fib = expression("fib", &[(1, Value::Number(FIRST)), (2, Value::Number(3)), (3, Value::Number(2))]);
    vec![fib, compare(EQUAL, &2_u32.to_ne_bytes())]
}

/// A field of the connection's has one of these bits.
fn ct(key: u32, bits: u32) -> Vec<Expressions> {
    let load = expression("ct", &[(1, Value::Number(FIRST)), (2, Value::Number(key))]);
    vec![load, bitwise(4, &bits.to_ne_bytes()), compare(NOT_EQUAL, &[0; 4])]
}

/// The connection is one to a published port.
fn published() -> Vec<Expressions> {
    ct(CT_STATUS, DESTINATION_CHANGED)
}

/// Protocol and port.
fn port_key() -> Vec<Expressions> {
    [meta_to(L4PROTO, FIRST), vec![payload(TRANSPORT_HEADER, 2, 2, SECOND)]].concat()
}

/// Address, protocol and port.
fn bound_key(family: &Family) -> Vec<Expressions> {
    let address = payload(NETWORK_HEADER, family.destination, family.length, FIRST);
    [vec![address], meta_to(L4PROTO, family.protocol), vec![payload(TRANSPORT_HEADER, 2, 2, family.service)]].concat()
}

/// To the address and port that a map had.
fn to_container(family: &Family) -> Vec<Expressions> {
    let nat = expression(
        "nat",
        &[
            // NFT_NAT_DNAT.
            (1, Value::Number(1)),
            (2, Value::Number(family.number.into())),
            (3, Value::Number(FIRST)),
            (5, Value::Number(family.protocol)),
            // NF_NAT_RANGE_MAP_IPS and NF_NAT_RANGE_PROTO_SPECIFIED.
            (7, Value::Number(3)),
        ],
    );
    vec![nat]
}
