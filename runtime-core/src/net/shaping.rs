//! Limits of what a container receives and sends, as CNI's bandwidth plugin makes them (tc-tbf(8)): what it receives waits at the host's end of
//! its link. What it sends can only be dropped there, so it is led through a device where it can wait (tc-mirred(8), "ifb").

use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use super::asked::Rate;
use super::netlink::{Route, nested, refused};
use crate::error::{Error, ErrorKind, Result};

/// What the devices where packets wait are called, before the digits of the container's.
pub const DEVICE: &str = "cbw";

/// A packet that would have to wait longer is dropped, as CNI's plugin does.
const LATENCY_MS: u64 = 25;

// linux/pkt_sched.h.
const ROOT: TcHandle = TcHandle { major: 0xffff, minor: 0xffff };
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0xfff1 };
const INGRESS_QUEUE: TcHandle = TcHandle { major: 0xffff, minor: 0 };
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const ETHERNET: u8 = 1;

// linux/pkt_cls.h, linux/tc_act/tc_mirred.h.
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TC_ACT_STOLEN: u32 = 4;
const EGRESS_REDIRECT: u32 = 1;
const TERMINAL: u8 = 1;

/// The device where what a container sends waits, for the host's end of its link.
pub fn device(link: &str) -> String {
    format!("{DEVICE}{}", link.get(3..).unwrap_or_default())
}

/// Limits a link, by the host's end of it.
///
/// # Errors
/// The kernel lacks a part that is needed (`sch_tbf`, `sch_ingress`, `cls_u32`, `act_mirred`, `ifb`).
pub fn limit(host: &mut Route, link: &str, ingress: Option<Rate>, egress: Option<Rate>) -> Result<()> {
    let what = |key: &str| format!("annotations[\"coracle.{key}-rate\"]: limit {link:?} (tc)");
    let index = host.link(link).map_err(refused(format!("look for {link:?}")))?.header.index;
    if let Some(rate) = ingress {
        host.change(bucket(index, rate)?, NLM_F_CREATE | NLM_F_EXCL).map_err(refused(what("ingress")))?;
    }
    let Some(rate) = egress else { return Ok(()) };
    let waiting = device(link);
    let mut request = LinkMessage::default();
    (request.header.flags, request.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    request.attributes = vec![LinkAttribute::IfName(waiting.clone()), LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)])];
    let made = host.change(RouteNetlinkMessage::NewLink(request), NLM_F_CREATE | NLM_F_EXCL);
    made.map_err(refused(what("egress")))?;
    let place = host.link(&waiting).map_err(refused(format!("look for {waiting:?}")))?.header.index;
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    let requests = vec![(bucket(place, rate)?, flags), (ingress_queue(index)?, flags), (redirect(index, place)?, flags)];
    host.batch(requests).map_err(|(_, errno)| refused(what("egress"))(errno))
}

fn message(index: u32, parent: TcHandle, handle: TcHandle, kind: &str, options: Vec<DefaultNla>) -> Result<TcMessage> {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(index).map_err(|_| Error::new(ErrorKind::Internal, format!("device {index}")))?;
    (message.header.parent, message.header.handle) = (parent, handle);
    message.attributes = vec![TcAttribute::Kind(kind.to_owned())];
    if !options.is_empty() {
        message.attributes.push(TcAttribute::Options(options.into_iter().map(TcOption::Other).collect()));
    }
    Ok(message)
}

/// A token bucket in which all that leaves a device waits.
fn bucket(index: u32, rate: Rate) -> Result<RouteNetlinkMessage> {
    let (rate, burst) = (rate.rate / 8, rate.burst / 8);
    let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let limit = number(rate.saturating_mul(LATENCY_MS) / 1000).saturating_add(number(burst));
    // struct tc_tbf_qopt: two of tc_ratespec (cell_log, linklayer, overhead, cell_align, mpu, rate), limit, buffer, mtu.
    let spec = |rate: u32| [&[0, ETHERNET, 0, 0, 0, 0, 0, 0], &rate.to_ne_bytes()[..]].concat();
    let parameters = [spec(number(rate)), spec(0), limit.to_ne_bytes().to_vec(), vec![0; 8]].concat();
    let mut options =
        vec![DefaultNla::new(TCA_TBF_PARMS, parameters), DefaultNla::new(TCA_TBF_BURST, number(burst).to_ne_bytes().to_vec())];
    if rate > u64::from(u32::MAX) {
        options.push(DefaultNla::new(TCA_TBF_RATE64, rate.to_ne_bytes().to_vec()));
    }
    message(index, ROOT, TcHandle { major: 1, minor: 0 }, "tbf", options).map(RouteNetlinkMessage::NewQueueDiscipline)
}

fn ingress_queue(index: u32) -> Result<RouteNetlinkMessage> {
    message(index, INGRESS, INGRESS_QUEUE, "ingress", Vec::new()).map(RouteNetlinkMessage::NewQueueDiscipline)
}

/// Leads all that comes in at a device to another one.
fn redirect(index: u32, to: u32) -> Result<RouteNetlinkMessage> {
    // struct tc_u32_sel with one key that all packets match.
    let selector = [vec![TERMINAL, 0, 1], vec![0; 13], vec![0; 16]].concat();
    // struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex.
    let parameters = [0, 0, TC_ACT_STOLEN, 0, 0, EGRESS_REDIRECT, to].map(u32::to_ne_bytes).concat();
    let action =
        [DefaultNla::new(TCA_ACT_KIND, b"mirred\0".to_vec()), nested(TCA_ACT_OPTIONS, &[DefaultNla::new(TCA_MIRRED_PARMS, parameters)])];
    let options = vec![DefaultNla::new(TCA_U32_SEL, selector), nested(TCA_U32_ACT, &[nested(1, &action)])];
    let mut filter = message(index, INGRESS_QUEUE, TcHandle::default(), "u32", options)?;
    // Priority 1, all protocols, the latter in the network's order of bytes.
    filter.header.info = 1 << 16 | u32::from((libc::ETH_P_ALL as u16).to_be());
    Ok(RouteNetlinkMessage::NewTrafficFilter(filter))
}
