//! A container's network: ours, the same by the kernel's primitives alone, and by the CNI plugins. Each worker is on a host of its own.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use runtime_core::net::asked::Asked;
use runtime_core::net::node::Node;
use runtime_core::net::{Attachment, Container, release};
use runtime_core::sys::process::{setns, unshare};
use rustix::net::netlink::NETFILTER;
use serde_json::{Value, json};

use crate::bench::netlink::{ACKNOWLEDGED, NEW, ask, attribute, message, nest, open};
use crate::{Context, Result, command, ensure, fail, paths};

use super::worker::Contender;
use super::{Sample, micros, place};

/// How many containers there are already on a crowded host.
const CROWD: usize = 200;
const NAME: &str = "bench";
const HOST_PORT: u16 = 8080;
const PORT: u16 = 80;

/// A network namespace, which ends with this.
struct Space {
    /// The thread in it.
    tid: i32,
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Space {
    /// With what the making has cost.
    fn new() -> Result<(Self, f64)> {
        let ((ready, made), (end, over)) = (channel(), channel());
        let thread = std::thread::spawn(move || {
            let begin = Instant::now();
            let result = unshare(libc::CLONE_NEWNET).map(|()| (rustix::thread::gettid().as_raw_nonzero().get(), micros(begin)));
            // Nobody waits any more if the other side has failed.
            let _ = ready.send(result);
            let _: std::result::Result<(), _> = Receiver::recv(&over);
        });
        let (tid, took) = made.recv().context(|| "a thread".to_owned())??;
        Ok((Self { tid, end: Some(end), thread: Some(thread) }, took))
    }

    fn path(&self) -> String {
        format!("/proc/{}/task/{}/ns/net", std::process::id(), self.tid)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Nothing but a loopback device. Before the first thread.
fn enter() -> Result<PathBuf> {
    unshare(libc::CLONE_NEWNET)?;
    place::enter(place::Cgroups::Host)?;
    command::output(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    place::data_on_tmpfs()
}

/// What a turn has measured.
fn sample(up: f64, down: f64) -> Sample {
    Sample::from([("up".to_owned(), up), ("down".to_owned(), down)])
}

/// `runtime_core::net`, as the daemon uses it.
pub struct Ours {
    node: Node,
    data: PathBuf,
    count: usize,
    crowd: Vec<Space>,
}

impl Ours {
    /// With as many others as `crowded` says.
    pub fn new(crowded: bool) -> Result<Self> {
        let data = enter()?;
        let file = data.join("network.toml");
        fs::write(
            &file,
            format!(
                "state = {:?}\n[networks.{NAME}]\nsubnets = [\"10.44.0.0/16\"]\n[namespaces.{NAME}]\nports = [\"1024-65535\"]\n",
                data.join("state")
            ),
        )?;
        let node = Node::load(&file)?.context(|| "no networks".to_owned())?;
        let mut ours = Self { node, data, count: 0, crowd: Vec::new() };
        for number in 0..if crowded { CROWD } else { 0 } {
            let (space, ..) = ours.up(10_000 + u16::try_from(number)?)?;
            ours.crowd.push(space);
        }
        Ok(ours)
    }

    fn up(&mut self, host_port: u16) -> Result<(Space, Attachment, f64)> {
        self.count += 1;
        let annotations = HashMap::from([("network", NAME.to_owned()), ("ports", format!("{host_port}:{PORT}/tcp"))]);
        let annotations = annotations.into_iter().map(|(key, value)| (format!("coracle.{key}"), value)).collect();
        let asked = Asked::of(&annotations, &self.node, NAME)?.context(|| "nothing is asked for".to_owned())?;
        let (space, took) = Space::new()?;
        let id = format!("c{}", self.count);
        let container = Container { namespace: NAME, id: &id, hostname: "", bundle: &self.data };
        let begin = Instant::now();
        let attachment = Attachment::reserve(&self.node, &asked, &container)?;
        attachment.connect(space.tid)?;
        Ok((space, attachment, took + micros(begin)))
    }
}

impl Contender for Ours {
    fn sample(&mut self) -> Result<Sample> {
        let (space, attachment, up) = self.up(HOST_PORT)?;
        let begin = Instant::now();
        release(&attachment.place())?;
        let down = micros(begin);
        drop(space);
        Ok(sample(up, down))
    }
}

/// What the kernel takes for the same: a pair of devices, an address, a route, an element of a map of ports.
pub struct Primitives {
    route: OwnedFd,
    netfilter: OwnedFd,
    bridge: u32,
    crowd: Vec<Space>,
}

const TABLE: &str = "table ip yardstick {
    map ports { type inet_proto . inet_service : ipv4_addr . inet_service; }
    chain pre { type nat hook prerouting priority dstnat; dnat ip to meta l4proto . th dport map @ports; }
    chain post { type nat hook postrouting priority srcnat; ip saddr 10.45.0.0/16 oifname != \"yardstick\" masquerade; }
}";

impl Primitives {
    /// With the bridge and the table, which all containers share, and as many others as `crowded` says.
    pub fn new(crowded: bool) -> Result<Self> {
        enter()?;
        for args in [["link", "add", "yardstick", "type", "bridge"], ["addr", "add", "10.45.0.1/16", "dev", "yardstick"]] {
            command::output(Command::new("ip").args(args))?;
        }
        command::output(Command::new("ip").args(["link", "set", "yardstick", "up"]))?;
        command::output(Command::new("nft").arg(TABLE))?;
        let bridge = fs::read_to_string("/sys/class/net/yardstick/ifindex").or_else(|_| index_by_ip("yardstick"))?.trim().parse()?;
        let mut primitives = Self { route: open(None)?, netfilter: open(Some(NETFILTER))?, bridge, crowd: Vec::new() };
        for number in 1..=if crowded { CROWD } else { 0 } {
            let (space, ..) = primitives.up(number)?;
            primitives.crowd.push(space);
        }
        Ok(primitives)
    }

    fn up(&self, number: usize) -> Result<(Space, Messages, f64)> {
        let (space, took) = Space::new()?;
        let namespace = OwnedFd::from(fs::File::open(space.path())?);
        let messages = messages(self.bridge, &namespace, u16::try_from(number)?);
        let begin = Instant::now();
        ask(&self.route, &messages.pair, "a pair of devices")?;
        let inside = std::thread::scope(|scope| {
            let opened = scope.spawn(|| -> Result<OwnedFd> {
                setns(namespace.as_fd(), libc::CLONE_NEWNET)?;
                open(None)
            });
            opened.join().unwrap_or_else(|_| fail!("panicked"))
        })?;
        for (message, what) in [(&messages.address, "an address"), (&messages.up, "up"), (&messages.route, "a route")] {
            ask(&inside, message, what)?;
        }
        ask(&self.netfilter, &messages.open, "a published port")?;
        Ok((space, messages, took + micros(begin)))
    }
}

/// Where `/sys` shows another namespace's devices.
fn index_by_ip(name: &str) -> std::io::Result<String> {
    let done = Command::new("ip").args(["-o", "link", "show", name]).output()?;
    Ok(String::from_utf8_lossy(&done.stdout).split(':').next().unwrap_or_default().to_owned())
}

/// `struct ifinfomsg`.
fn link_header(index: u32, up: bool) -> Vec<u8> {
    let flag = u32::from(up).to_ne_bytes();
    [[0; 4], index.to_ne_bytes(), flag, flag].concat()
}

/// The messages of one container.
struct Messages {
    pair: Vec<u8>,
    address: Vec<u8>,
    up: Vec<u8>,
    route: Vec<u8>,
    open: Vec<u8>,
    close: Vec<u8>,
    remove: Vec<u8>,
}

/// The peer's index in its namespace: the first after the loopback device's.
const INDEX: u32 = 2;

fn messages(bridge: u32, namespace: &OwnedFd, number: u16) -> Messages {
    let name = |name: &str| attribute(libc::IFLA_IFNAME, format!("{name}\0").as_bytes());
    let peer = [
        link_header(INDEX, false),
        name("eth0"),
        attribute(libc::IFLA_NET_NS_FD, &u32::try_from(namespace.as_raw_fd()).unwrap_or_default().to_ne_bytes()),
    ];
    let data = nest(libc::IFLA_INFO_DATA, &[attribute(1, &peer.concat())]);
    let info = nest(libc::IFLA_LINKINFO, &[attribute(libc::IFLA_INFO_KIND, b"veth\0"), data]);
    let master = attribute(libc::IFLA_MASTER, &bridge.to_ne_bytes());
    let device = format!("yard{number}");
    let [high, low] = (number + 2).to_be_bytes();
    let octets = [10, 45, high, low];
    let host_port = HOST_PORT + number;
    // struct ifaddrmsg, struct rtmsg: AF_INET, lengths of prefixes, table main, boot, unicast.
    let of_address = [[2, 16, 0, 0], INDEX.to_ne_bytes()].concat();
    let of_route = [[2, 0, 0, 0], [254, 3, 0, 1], [0; 4]].concat();
    Messages {
        pair: message(libc::RTM_NEWLINK, NEW, &link_header(0, true), &[name(&device), master, info]),
        address: message(
            libc::RTM_NEWADDR,
            NEW,
            &of_address,
            &[attribute(libc::IFA_LOCAL, &octets), attribute(libc::IFA_ADDRESS, &octets)],
        ),
        up: message(libc::RTM_NEWLINK, ACKNOWLEDGED, &link_header(INDEX, true), &[]),
        route: message(libc::RTM_NEWROUTE, NEW, &of_route, &[attribute(libc::RTA_GATEWAY, &[10, 45, 0, 1])]),
        open: element(NEW_ELEMENT, NEW & !0x200, host_port, octets),
        close: element(DELETE_ELEMENT, ACKNOWLEDGED, host_port, octets),
        remove: message(libc::RTM_DELLINK, ACKNOWLEDGED, &link_header(0, false), &[name(&device)]),
    }
}

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWSETELEM` of linux/netfilter/nf_tables.h.
const NEW_ELEMENT: u16 = 10 << 8 | 12;
const DELETE_ELEMENT: u16 = 10 << 8 | 14;

/// A transaction that adds or removes a published port.
fn element(kind: u16, flags: u16, host_port: u16, address: [u8; 4]) -> Vec<u8> {
    const BEGIN: u16 = 16;
    const END: u16 = 17;
    const REQUEST: u16 = 1;
    let value = |bytes: [[u8; 4]; 2]| [attribute(1, &bytes.concat())];
    let port = |port: u16| [port.to_be_bytes(), [0, 0]].concat().try_into().unwrap_or_default();
    // NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA.
    let key = nest(1, &value([[6, 0, 0, 0], port(host_port)]));
    let data = nest(2, &value([address, port(PORT)]));
    let list = nest(3, &[nest(1, &[key, data])]);
    let change = message(kind, flags, &[2, 0, 0, 0], &[attribute(1, b"yardstick\0"), attribute(2, b"ports\0"), list]);
    let around = |kind| message(kind, REQUEST, &[0, 0, 0, 10], &[]);
    [around(BEGIN), change, around(END)].concat()
}

impl Contender for Primitives {
    fn sample(&mut self) -> Result<Sample> {
        let (space, messages, up) = self.up(0)?;
        let begin = Instant::now();
        ask(&self.netfilter, &messages.close, "a closed port")?;
        let down = micros(begin);
        ask(&self.route, &messages.remove, "a pair's end")?;
        drop(space);
        Ok(sample(up, down))
    }
}

/// Debian's CNI plugins bridge, with host-local, and portmap, run one after the other as by their callers.
pub struct Cni {
    plugins: PathBuf,
    network: Value,
    ports: Value,
    count: usize,
}

impl Cni {
    /// Nothing is made yet: the first container makes the bridge.
    pub fn new() -> Result<Self> {
        let data = enter()?;
        let plugins = paths::cache("bookworm")?.join("usr/lib/cni");
        let ipam = json!({"type": "host-local", "dataDir": data.join("ipam"), "ranges": [[{"subnet": "10.46.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}]});
        let network = json!({"cniVersion": "0.4.0", "name": NAME, "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": ipam});
        let ports = json!({"cniVersion": "0.4.0", "name": NAME, "type": "portmap", "capabilities": {"portMappings": true},
            "runtimeConfig": {"portMappings": [{"hostPort": HOST_PORT, "containerPort": PORT, "protocol": "tcp"}]}});
        Ok(Self { plugins, network, ports, count: 0 })
    }

    fn call(&self, plugin: &str, order: &str, space: &Space, config: &Value) -> Result<Value> {
        let mut command = Command::new(self.plugins.join(plugin));
        command.env("CNI_COMMAND", order).env("CNI_CONTAINERID", format!("c{}", self.count)).env("CNI_NETNS", space.path());
        command.env("CNI_IFNAME", "eth0").env("CNI_PATH", &self.plugins).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context(|| plugin.to_owned())?;
        std::io::Write::write_all(&mut child.stdin.take().context(|| "no stdin".to_owned())?, config.to_string().as_bytes())?;
        let done = child.wait_with_output()?;
        ensure!(done.status.success(), "{plugin} {order}: {}", String::from_utf8_lossy(&done.stdout));
        Ok(serde_json::from_slice(&done.stdout).unwrap_or_default())
    }
}

impl Contender for Cni {
    fn sample(&mut self) -> Result<Sample> {
        self.count += 1;
        let (space, took) = Space::new()?;
        let begin = Instant::now();
        let made = self.call("bridge", "ADD", &space, &self.network)?;
        let mut ports = self.ports.clone();
        ports["prevResult"] = made;
        self.call("portmap", "ADD", &space, &ports)?;
        let up = took + micros(begin);
        let begin = Instant::now();
        self.call("portmap", "DEL", &space, &ports)?;
        self.call("bridge", "DEL", &space, &self.network)?;
        Ok(sample(up, micros(begin)))
    }
}

/// The contender that a worker's arguments name.
pub fn contender(words: &[&str]) -> Result<Box<dyn Contender>> {
    Ok(match words {
        ["primitives", rest @ ..] => Box::new(Primitives::new(rest.contains(&"crowded"))?),
        ["cni"] => Box::new(Cni::new()?),
        words => Box::new(Ours::new(words.contains(&"crowded"))?),
    })
}
