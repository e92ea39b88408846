//! `linux.netDevices` (OCI config-linux.md, "Network Devices"): devices of the host's that become the container's, with their addresses.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::netlink::{Route, refused};
use crate::error::{Context, Result};
use crate::spec::net_devices::Device;

/// Moves devices out of the caller's network namespace into that of a process, in order: each comes with its global permanent addresses and is up then, as runc does
/// it. If one cannot be moved, those before it are put back. The kernel gives hardware back to the host when a namespace goes.
///
/// Takes some milliseconds per device and must not be called where others wait.
///
/// # Errors
/// The device and what could not be done with it.
pub fn move_into(devices: &[Device], pid: i32) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let what = || "open netlink in the container's network namespace";
    let home =
        rustix::fs::open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(|| "open own netns")?;
    let mut host = Side { route: Route::open().context(|| "open netlink")?, namespace: home };
    let path = format!("/proc/{pid}/ns/net");
    let namespace = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(|| format!("open {path}"))?;
    let mut inside = Side { route: Route::open_in(namespace.as_fd()).context(what)?, namespace };
    let mut moved: Vec<(&Device, bool)> = Vec::new();
    for device in devices {
        match carry(&mut host, &device.host, &mut inside, &device.container, true) {
            Ok(was_up) => moved.push((device, was_up)),
            Err(error) => {
                for &(device, was_up) in moved.iter().rev() {
                    // The first failure is the one to tell; what cannot be put back goes where the namespace goes.
                    let _ = carry(&mut inside, &device.container, &mut host, &device.host, was_up);
                }
                return Err(error.context(format!("linux.netDevices[{:?}]", device.host)));
            }
        }
    }
    Ok(())
}

/// One end of a move.
struct Side {
    route: Route,
    namespace: OwnedFd,
}

/// Moves a device; whether it was up before.
fn carry(from: &mut Side, name: &str, to: &mut Side, new_name: &str, up: bool) -> Result<bool> {
    let link = from.route.link(name).map_err(refused("look for it".to_owned()))?;
    let was_up = link.header.flags.contains(LinkFlags::Up);
    let index = link.header.index;
    // Before it is set down, when those of IPv6 go.
    let addresses = from.addresses(index).map_err(refused("list its addresses".to_owned()))?;
    match to.route.link(new_name) {
        Err(Errno::NODEV) => {}
        Ok(_) => return Err(refused(format!("move it to {new_name:?}"))(Errno::EXIST)),
        Err(errno) => return Err(refused(format!("look for {new_name:?}"))(errno)),
    }
    from.set_up(index, false).map_err(refused("set it down".to_owned()))?;
    let moved = from.hand_over(index, to.namespace.as_fd(), new_name);
    if let Err(errno) = moved {
        let _ = from.set_up(index, was_up);
        return Err(refused(format!("move it to {new_name:?}"))(errno));
    }
    let arrived = to.route.link(new_name).map_err(refused(format!("look for {new_name:?} after the move")))?.header.index;
    let ready = addresses.into_iter().try_for_each(|address| to.add(arrived, address)).and_then(|()| to.set_up(arrived, up));
    if let Err(errno) = ready {
        let _ = to.set_up(arrived, false);
        let _ = to.hand_over(arrived, from.namespace.as_fd(), name);
        return Err(refused(format!("give {new_name:?} its addresses and set it up"))(errno));
    }
    Ok(was_up)
}

impl Side {
    fn set_up(&mut self, index: u32, up: bool) -> Result<(), Errno> {
        let mut request = LinkMessage::default();
        request.header.index = index;
        request.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        request.header.change_mask = LinkFlags::Up;
        self.route.change(RouteNetlinkMessage::SetLink(request), 0)
    }

    /// One request, so that the device never has its old name there.
    fn hand_over(&mut self, index: u32, namespace: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
        let mut request = LinkMessage::default();
        request.header.index = index;
        request.attributes = vec![LinkAttribute::NetNsFd(namespace.as_raw_fd()), LinkAttribute::IfName(name.to_owned())];
        self.route.change(RouteNetlinkMessage::SetLink(request), 0)
    }

    /// Those that somebody has given it: what the kernel makes itself belongs to its place.
    fn addresses(&mut self, index: u32) -> Result<Vec<AddressMessage>, Errno> {
        let all = self.route.list(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        let of_device = |message| match message {
            RouteNetlinkMessage::NewAddress(address) if address.header.index == index => Some(address),
            _ => None,
        };
        let moves =
            |address: &AddressMessage| address.header.scope == AddressScope::Universe && flags(address).contains(AddressFlags::Permanent);
        Ok(all.into_iter().filter_map(of_device).filter(moves).collect())
    }

    fn add(&mut self, index: u32, address: AddressMessage) -> Result<(), Errno> {
        let kept = flags(&address) & (AddressFlags::Nodad | AddressFlags::Noprefixroute | AddressFlags::Homeaddress);
        let mut request = AddressMessage::default();
        request.header.index = index;
        (request.header.family, request.header.prefix_len) = (address.header.family, address.header.prefix_len);
        let belongs = |attribute: &AddressAttribute| {
            matches!(attribute, AddressAttribute::Address(_) | AddressAttribute::Local(_) | AddressAttribute::Broadcast(_))
        };
        request.attributes = address.attributes.into_iter().filter(belongs).collect();
        request.attributes.push(AddressAttribute::Flags(kept));
        self.route.change(RouteNetlinkMessage::NewAddress(request), NLM_F_CREATE | NLM_F_EXCL)
    }
}

fn flags(address: &AddressMessage) -> AddressFlags {
    let given = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    };
    address.attributes.iter().find_map(given).unwrap_or_else(AddressFlags::empty)
}
