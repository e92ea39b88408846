//! Who reaches whom.

use std::net::Ipv4Addr;
use std::process::Command;

use tests::netns::{Namespace, Protocol};
use tests::{Case, Context, Result, command, ensure, ensure_eq, image};

use crate::waiting;

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

pub fn one_network(case: &Case<'_>) -> Result<()> {
    let (one, other) = (waiting(case, &[("network", "bridge")])?, waiting(case, &[("network", "bridge")])?);
    let _servers = other.namespace.serve_both(7000, "hello")?;
    for (from, to) in one.addresses()?.iter().zip(other.addresses()?) {
        for protocol in BOTH {
            ensure_eq!(one.namespace.ask(protocol, &to, 7000)?, format!("hello {from}"), "{protocol:?} to {to}");
        }
    }
    ensure_eq!(one.addresses()?.len(), 2, "addresses");
    let sysctl = |key: &str| case.exec(&one.id, &["cat", &format!("/proc/sys/net/ipv6/conf/eth0/{key}")]);
    ensure_eq!(sysctl("accept_ra")?.trim(), "0", "accept_ra");
    Ok(())
}

pub fn two_networks(case: &Case<'_>) -> Result<()> {
    let (one, other) = (waiting(case, &[("network", "bridge")])?, waiting(case, &[("network", "front")])?);
    let inner = waiting(case, &[("network", "back")])?;
    let _servers = other.namespace.serve_both(7000, "hello")?;
    for to in other.addresses()? {
        for protocol in BOTH {
            one.namespace.is_unanswered(protocol, &to, 7000)?;
        }
    }
    inner.namespace.is_unanswered(Protocol::Tcp, &other.address()?, 7000)?;
    // Nor by name.
    let hosts = case.exec(&one.id, &["cat", "/etc/hosts"])?;
    ensure!(hosts.contains(&one.id) && !hosts.contains(&other.id), "hosts: {hosts}");
    Ok(())
}

/// A host beside ours, which it reaches by a pair of devices.
fn neighbour(number: u8) -> Result<(Namespace, [String; 4])> {
    let (host, outside) = (Namespace::own()?, Namespace::new()?);
    let addresses = [1, 2]
        .map(|last| format!("203.0.113.{}", number * 4 + last))
        .into_iter()
        .chain([1, 2].map(|last| format!("fdff:{number:x}::{last}")));
    let addresses: Vec<String> = addresses.collect();
    let [here4, there4, here6, there6] = <[String; 4]>::try_from(addresses).map_err(|_| tests::Failure("addresses".to_owned()))?;
    let with = |address: &str, length: u8| format!("{address}/{length}");
    let (name, other) = (format!("out{number}"), "uplink");
    host.connect(&name, &[&with(&here4, 30), &with(&here6, 64)], &outside, other, &[&with(&there4, 30), &with(&there6, 64)])?;
    Ok((outside, [here4, there4, here6, there6]))
}

/// Ends the pair with its namespace, at once.
fn part(number: u8) -> Result<()> {
    command::output(Command::new("ip").args(["link", "del", &format!("out{number}")])).map(drop)
}

pub fn outside(case: &Case<'_>) -> Result<()> {
    let (world, [here4, there4, here6, there6]) = neighbour(1)?;
    let _servers = world.serve_both(80, "world")?;
    for network in ["bridge", "front"] {
        let member = waiting(case, &[("network", network)])?;
        for (here, there) in [(&here4, &there4), (&here6, &there6)] {
            for protocol in BOTH {
                ensure_eq!(member.namespace.ask(protocol, there, 80)?, format!("world {here}"), "{protocol:?} from {network}");
            }
        }
        // Who knows a container's address and a way to it does not reach what it has not published.
        let _inside = member.namespace.serve(Protocol::Tcp, 7000, "inside")?;
        let address = member.address()?;
        world.command("ip", &["route", "add", &format!("{address}/32"), "via", &here4])?;
        world.is_unanswered(Protocol::Tcp, &address, 7000)?;
    }
    let inner = waiting(case, &[("network", "back")])?;
    inner.namespace.is_unanswered(Protocol::Tcp, &there4, 80)?;
    part(1)
}

pub fn published_ports(case: &Case<'_>) -> Result<()> {
    let (world, [here4, there4, here6, there6]) = neighbour(2)?;
    let host = Namespace::own()?;
    let asked = [("network", "bridge"), ("ports", "2080:80,2080:80/udp,2100-2102:100-102")];
    let server = waiting(case, &asked)?;
    let _servers = server.namespace.serve_both(80, "web")?;
    let _ranged = server.namespace.serve(Protocol::Tcp, 102, "third")?;
    let (beside, apart) = (waiting(case, &[("network", "bridge")])?, waiting(case, &[("network", "front")])?);
    for protocol in BOTH {
        // From outside, with the address that it came from.
        ensure_eq!(world.ask(protocol, &here4, 2080)?, format!("web {there4}"), "from outside");
        ensure_eq!(world.ask(protocol, &here6, 2080)?, format!("web {there6}"), "from outside, IPv6");
        // From the host, by its own address and by the loopback device's.
        host.ask(protocol, &here4, 2080).context(|| "from the host".to_owned())?;
        host.ask(protocol, &here6, 2080).context(|| "from the host, IPv6".to_owned())?;
        ensure!(host.ask(protocol, "127.0.0.1", 2080)?.starts_with("web 10.209."), "from localhost");
        // From containers: on the same network, on another one, and from the one itself.
        for (member, who) in [(&beside, "beside"), (&apart, "apart"), (&server, "itself")] {
            member.namespace.ask(protocol, &here4, 2080).context(|| who.to_owned())?;
        }
    }
    // By ::1 it is refused at once, so that who tries all addresses of localhost goes on to the next.
    let began = std::time::Instant::now();
    host.is_unanswered(Protocol::Tcp, "::1", 2080)?;
    ensure!(began.elapsed().as_millis() < 500, "::1 is not refused at once");
    ensure_eq!(world.ask(Protocol::Tcp, &here4, 2102)?, format!("third {there4}"), "the last of a range");
    // What listens on the host's loopback device is not for containers.
    let _private = host.serve(Protocol::Tcp, 2999, "private")?;
    beside.namespace.command("ip", &["route", "add", "127.0.0.0/9", "via", "10.209.0.1"]).ok();
    beside.namespace.is_unanswered(Protocol::Tcp, "127.0.0.1", 2999)?;
    case.ctr().ok(&["task", "kill", "-s", "KILL", &server.id])?;
    case.ctr().wait_status(&server.id, "STOPPED", std::time::Duration::from_secs(10))?;
    tests::containerd::eventually("its ports are closed", std::time::Duration::from_secs(5), || {
        world.is_unanswered(Protocol::Tcp, &here4, 2080).is_ok()
    })?;
    part(2)
}

pub fn published_on_one_address(case: &Case<'_>) -> Result<()> {
    let (world, [here4, _, here6, _]) = neighbour(3)?;
    let host = Namespace::own()?;
    let ports = format!("127.0.0.1:3080:80,[{here6}]:3080:81");
    let server = waiting(case, &[("network", "bridge"), ("ports", &ports)])?;
    let _four = server.namespace.serve(Protocol::Tcp, 80, "four")?;
    let _six = server.namespace.serve(Protocol::Tcp, 81, "six")?;
    ensure!(host.ask(Protocol::Tcp, "127.0.0.1", 3080)?.starts_with("four "), "127.0.0.1");
    ensure!(world.ask(Protocol::Tcp, &here6, 3080)?.starts_with("six "), "the address that was named");
    world.is_unanswered(Protocol::Tcp, &here4, 3080)?;
    // The same port of another address is another one's.
    let other = waiting(case, &[("network", "bridge"), ("ports", &format!("{here4}:3080:80"))])?;
    let _other = other.namespace.serve(Protocol::Tcp, 80, "other")?;
    ensure!(world.ask(Protocol::Tcp, &here4, 3080)?.starts_with("other "), "the other's");
    part(3)
}

pub fn names(case: &Case<'_>) -> Result<()> {
    let one = waiting(case, &[("network", "front"), ("aliases", "web,db.example")])?;
    let later = waiting(case, &[("network", "front")])?;
    let reaches =
        |from: &str, name: &str| case.exec(from, &["ping", "-c", "1", "-W", "5", name]).context(|| format!("{from} pings {name}"));
    for name in [one.id.as_str(), "web", "db.example", later.id.as_str()] {
        reaches(&later.id, name)?;
    }
    // The first one was there before.
    reaches(&one.id, &later.id)?;
    let names = case.exec(&one.id, &["cat", "/etc/hosts"])?;
    ensure!(names.lines().any(|line| line == "127.0.0.1\tlocalhost"), "localhost: {names}");
    let written = case.exec(&one.id, &["sh", "-c", "echo x >>/etc/hosts || echo refused"])?;
    ensure_eq!(written, "refused", "the others' names are not a container's to change");
    case.ctr().ok(&["task", "kill", "-s", "KILL", &later.id])?;
    tests::containerd::eventually("its name is forgotten", std::time::Duration::from_secs(10), || {
        let hosts = case.exec(&one.id, &["cat", "/etc/hosts"]).unwrap_or_default();
        !hosts.lines().any(|line| !line.starts_with('#') && line.contains(&later.id))
    })
}

pub fn resolver(case: &Case<'_>) -> Result<()> {
    let own = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let run = |flags: &[&str]| case.run(&[&["--annotation", "coracle.network=bridge"], flags].concat(), &["cat", "/etc/resolv.conf"]);
    let hosts = run(&[])?;
    for line in own.lines().filter(|line| line.starts_with("search") || (line.starts_with("nameserver") && !line.contains("127."))) {
        ensure!(hosts.contains(line), "{line:?} of the host's is not in {hosts:?}");
    }
    let asked = ["--annotation", "coracle.dns=192.0.2.53,2001:db8::53", "--annotation", "coracle.dns-search=a.example,b"];
    let given = run(&[&asked[..], &["--annotation", "coracle.dns-options=ndots:2"]].concat())?;
    ensure_eq!(given, "nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch a.example b\noptions ndots:2", "resolv.conf");
    Ok(())
}

pub fn macvlan(case: &Case<'_>) -> Result<()> {
    let (host, lan) = (Namespace::own()?, Namespace::new()?);
    host.connect("parent", &[], &lan, "port", &["198.51.100.254/24"])?;
    let _server = lan.serve(Protocol::Tcp, 80, "lan")?;
    let asked = [("network", "lan"), ("address", "198.51.100.7")];
    let (one, other) = (waiting(case, &asked)?, waiting(case, &[("network", "lan")])?);
    ensure_eq!(one.addresses()?, ["198.51.100.7"], "the address that was asked for");
    // The container itself is seen, not the host.
    ensure_eq!(one.namespace.ask(Protocol::Tcp, "198.51.100.254", 80)?, "lan 198.51.100.7", "from the network");
    let _inside = one.namespace.serve(Protocol::Tcp, 80, "one")?;
    ensure_eq!(other.namespace.ask(Protocol::Tcp, "198.51.100.7", 80)?, format!("one {}", other.address()?), "from its neighbour");
    for id in [&one.id, &other.id] {
        case.ctr().ok(&["task", "kill", "-s", "KILL", id])?;
        case.ctr().wait_status(id, "STOPPED", std::time::Duration::from_secs(10))?;
    }
    host.command("ip", &["link", "del", "parent"]).map(drop)
}

pub fn modes(case: &Case<'_>) -> Result<()> {
    let own = std::fs::read_link("/proc/thread-self/ns/net")?;
    let of = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/net"));
    ensure_eq!(of(waiting(case, &[("network", "host")])?.pid)?, own, "host");
    let none = waiting(case, &[("network", "none")])?;
    ensure!(of(none.pid)? != own, "none is the host's");
    ensure!(none.addresses().is_err(), "none has addresses");
    let first = waiting(case, &[("network", "front"), ("dns", "192.0.2.1")])?;
    let second = waiting(case, &[("network", &format!("container:{}", first.id))])?;
    ensure_eq!(of(second.pid)?, of(first.pid)?, "container:<id>");
    for file in ["/etc/hosts", "/etc/resolv.conf"] {
        ensure_eq!(case.exec(&second.id, &["cat", file])?, case.exec(&first.id, &["cat", file])?, "{file}");
    }
    let third = waiting(case, &[("network", &format!("ns:/proc/{}/ns/net", first.pid))])?;
    ensure_eq!(of(third.pid)?, of(first.pid)?, "ns:<path>");
    // One that is given is left alone.
    let id = case.id("g");
    let flags = ["--detach", "--with-ns", &format!("network:/proc/{}/ns/net", first.pid), "--annotation", "coracle.network=bridge"];
    case.ctr().ok(&tests::case::words(&case.run_args(&flags, &[], &image::name(1), &id, &["sleep", "1000"])))?;
    ensure_eq!(of(case.ctr().pid(&id)?)?, of(first.pid)?, "a given namespace");
    Ok(())
}

/// A megabyte takes as long as the rate says, at least.
pub fn rates(case: &Case<'_>) -> Result<()> {
    let asked =
        [("network", "bridge"), ("ingress-rate", "8M"), ("ingress-burst", "1100k"), ("egress-rate", "8M"), ("egress-burst", "1100k")];
    let (limited, peer) = (waiting(case, &asked)?, waiting(case, &[("network", "bridge")])?);
    for (from, to) in [(&limited, &peer), (&peer, &limited)] {
        let address: Ipv4Addr = to.address()?.parse().map_err(|_| tests::Failure("address".to_owned()))?;
        let listener = to.namespace.run(|| Ok(std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9000))?))?;
        let reader = std::thread::spawn(move || -> std::io::Result<u64> {
            let (mut stream, _) = listener.accept()?;
            std::io::copy(&mut stream, &mut std::io::sink())
        });
        let began = std::time::Instant::now();
        from.namespace.run(|| Ok(std::io::Write::write_all(&mut std::net::TcpStream::connect((address, 9000))?, &vec![0; 1 << 20])?))?;
        let read = reader.join().map_err(|_| tests::Failure("panicked".to_owned()))??;
        ensure_eq!(read, 1 << 20, "bytes");
        ensure!(began.elapsed().as_millis() > 700, "8 Mbit in {:?} at 8 Mbit/s", began.elapsed());
    }
    Ok(())
}
