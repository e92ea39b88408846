//! Connections that the kernel remembers. A datagram has no beginning: one that comes every second would for ever take the way that it took
//! before a port was published, or to a container that has gone.

use netlink_packet_core::{DefaultNla, NLM_F_ACK};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, ConntrackMessageType};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem};
use rustix::io::Errno;

use super::asked::{Port, Protocol};
use super::netlink::{Netfilter, nested};

// linux/netfilter/nfnetlink_conntrack.h, and net/netfilter/nf_conntrack_netlink.c for the flags of a filter.
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const BY_PROTOCOL_AND_PORT: u32 = 1 << 3 | 1 << 5;
/// Forgets what was sent to published ports of UDP.
///
/// # Errors
/// What the kernel answers.
pub fn forget(ports: &[Port]) -> Result<(), Errno> {
    for port in ports.iter().filter(|port| port.protocol == Protocol::Udp) {
        for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
            Netfilter::with(|socket| forget_one(socket, family, port.host_port))?;
        }
    }
    Ok(())
}

fn forget_one(socket: &mut Netfilter, family: NetfilterProtoFamily, port: u16) -> Result<(), Errno> {
    let header = || NetfilterHeader::new(family, 0, 0);
    let protocol =
        [DefaultNla::new(CTA_PROTO_NUM, vec![libc::IPPROTO_UDP as u8]), DefaultNla::new(CTA_PROTO_DST_PORT, port.to_be_bytes().to_vec())];
    let flags = [
        DefaultNla::new(CTA_FILTER_ORIG_FLAGS, BY_PROTOCOL_AND_PORT.to_ne_bytes().to_vec()),
        DefaultNla::new(CTA_FILTER_REPLY_FLAGS, vec![0; 4]),
    ];
    // Not as a `ConntrackMessage`, which does not mark an unknown attribute that holds others as one, and the kernel wants a filter to be marked.
    let request = NetfilterMessageInner::Other {
        subsys: NetfilterSubsystem::Conntrack,
        message_type: ConntrackMessageType::Get.into(),
        attributes: vec![nested(CTA_TUPLE_ORIG, &[nested(CTA_TUPLE_PROTO, &protocol)]), nested(CTA_FILTER, &flags)],
    };
    let known = socket.list(&NetfilterMessage::new(header(), request))?;
    let original = |message: NetfilterMessage| {
        let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner else { return None };
        attributes.into_iter().find(|attribute| matches!(attribute, ConntrackAttribute::CtaTupleOrig(_)))
    };
    for tuple in known.into_iter().filter_map(original) {
        match socket.change(NetfilterMessage::new(header(), ConntrackMessage::Delete(vec![tuple])), NLM_F_ACK) {
            // It has ended by itself.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
