//! Network namespaces: sockets in those of containers, and hosts of the test's own.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

use crate::{Context, Failure, Result, command, fail};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How often a server looks whether it is to end.
const GLANCE: Duration = Duration::from_millis(50);
/// How long is waited for one that must not come.
const SILENCE: Duration = Duration::from_millis(700);

/// Says that we are on a host of our own, and in which directory its files are.
const BED: &str = "CORACLE_TEST_BED";
/// The name, in that directory, of the file that says what networks there are.
pub const NODE_FILE: &str = "network.toml";

/// Runs a suite where nothing is but a loopback device: this program again, in a network and a mount namespace. `prepare` fills a directory
/// of the host's, [`bed`].
pub fn on_a_host_of_its_own(prepare: impl FnOnce(&Path) -> Result<()>, suite: impl FnOnce() -> ExitCode) -> ExitCode {
    if std::env::args().any(|argument| argument == "--list") {
        return suite();
    }
    if std::env::var_os(BED).is_none() {
        let error = match make_bed(prepare) {
            Ok(mut command) => command.exec().to_string(),
            Err(error) => error.to_string(),
        };
        println!("a host of its own: {error}");
        return ExitCode::FAILURE;
    }
    let code = suite();
    let _ = fs::remove_dir_all(bed());
    code
}

/// The directory of the host of our own.
pub fn bed() -> PathBuf {
    std::env::var_os(BED).unwrap_or_default().into()
}

fn make_bed(prepare: impl FnOnce(&Path) -> Result<()>) -> Result<Command> {
    let bed = PathBuf::from(format!("/run/coracle-bed.{}", std::process::id()));
    fs::create_dir(&bed)?;
    prepare(&bed)?;
    let script = "mkdir \"$0/cgroup\" && mount --rbind /sys/fs/cgroup \"$0/cgroup\" && mount -t sysfs sysfs /sys && \
                  mount --rbind \"$0/cgroup\" /sys/fs/cgroup && umount -l \"$0/cgroup\" && ip link set lo up && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--propagation", "private", "sh", "-c", script]).arg(&bed);
    command.arg(std::env::current_exe()?).args(std::env::args().skip(1)).env(BED, &bed);
    let file = bed.join(NODE_FILE);
    if file.exists() {
        command.env("CORACLE_NETWORK_FILE", file);
    }
    Ok(command)
}

/// A network namespace, which lives as long as this does and anything in it.
pub struct Namespace(File);

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they say it")]
pub enum Protocol {
    Tcp,
    Udp,
}

/// Something that answers each request with a word and the address that the request came from, until it is dropped.
pub struct Server {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Namespace {
    /// A new one with its loopback device up.
    pub fn new() -> Result<Self> {
        let made = std::thread::spawn(|| -> Result<Self> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            command::output(Command::new("ip").args(["link", "set", "lo", "up"]))?;
            Ok(Self(File::open("/proc/thread-self/ns/net")?))
        });
        made.join().map_err(|_| Failure("panicked".to_owned()))?
    }

    /// That of a process.
    pub fn of(pid: u32) -> Result<Self> {
        Ok(Self(File::open(format!("/proc/{pid}/ns/net")).context(|| format!("network namespace of {pid}"))?))
    }

    /// The caller's.
    pub fn own() -> Result<Self> {
        Ok(Self(File::open("/proc/thread-self/ns/net")?))
    }

    /// Does something in it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let enter = || {
            setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET)?;
            work()
        };
        std::thread::scope(|scope| scope.spawn(enter).join()).unwrap_or_else(|_| fail!("panicked"))
    }

    /// Runs a command in it that must succeed.
    pub fn command(&self, program: &str, args: &[&str]) -> Result<String> {
        self.run(|| command::output(Command::new(program).args(args)))
    }

    /// Connects it to another one by a pair of devices with these names and addresses; each is up.
    pub fn connect(&self, name: &str, addresses: &[&str], other: &Namespace, other_name: &str, other_addresses: &[&str]) -> Result<()> {
        let there = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&other.0));
        self.command("ip", &["link", "add", name, "type", "veth", "peer", "name", other_name, "netns", &there])?;
        for (namespace, name, addresses) in [(self, name, addresses), (other, other_name, other_addresses)] {
            for address in addresses {
                let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
                namespace.command("ip", &[&["addr", "add", address, "dev", name], nodad].concat())?;
            }
            namespace.command("ip", &["link", "set", name, "up"])?;
        }
        Ok(())
    }

    /// Answers at a port of all its addresses.
    pub fn serve(&self, protocol: Protocol, port: u16, word: &str) -> Result<Server> {
        let over = Arc::new(AtomicBool::new(false));
        let any = SocketAddr::new(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), port);
        let answer = {
            let word = word.to_owned();
            move |from: SocketAddr| format!("{word} {}", from.ip().to_canonical()).into_bytes()
        };
        let one: Box<dyn Fn() -> Result<()> + Send> = match protocol {
            Protocol::Tcp => {
                let listener = self.run(|| Ok(TcpListener::bind(any)?))?;
                Box::new(move || {
                    if command::readable(&listener, GLANCE)? {
                        let (mut stream, from) = listener.accept()?;
                        stream.write_all(&answer(from))?;
                    }
                    Ok(())
                })
            }
            Protocol::Udp => {
                let socket = self.run(|| Ok(UdpSocket::bind(any)?))?;
                Box::new(move || {
                    if command::readable(&socket, GLANCE)? {
                        let (_, from) = socket.recv_from(&mut [0; 64])?;
                        socket.send_to(&answer(from), from)?;
                    }
                    Ok(())
                })
            }
        };
        let thread = {
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    // A client that goes away is no matter.
                    let _ = one();
                }
            })
        };
        Ok(Server { over, thread: Some(thread) })
    }

    /// As [`Namespace::serve`], over TCP and UDP.
    pub fn serve_both(&self, port: u16, word: &str) -> Result<[Server; 2]> {
        Ok([self.serve(Protocol::Tcp, port, word)?, self.serve(Protocol::Udp, port, word)?])
    }

    /// What a server answers to a request from here.
    pub fn ask(&self, protocol: Protocol, address: &str, port: u16) -> Result<String> {
        self.asked(protocol, address, port, ANSWER).context(|| format!("{protocol:?} to {address} port {port}"))
    }

    /// That nobody answers.
    pub fn is_unanswered(&self, protocol: Protocol, address: &str, port: u16) -> Result<()> {
        match self.asked(protocol, address, port, SILENCE) {
            Ok(answer) => fail!("{protocol:?} to {address} port {port} is answered: {answer:?}"),
            Err(_) => Ok(()),
        }
    }

    fn asked(&self, protocol: Protocol, address: &str, port: u16, limit: Duration) -> Result<String> {
        let address = SocketAddr::new(address.parse().map_err(|_| Failure(format!("{address:?} is no address")))?, port);
        self.run(|| {
            let mut answer = vec![0; 256];
            let length = match protocol {
                Protocol::Tcp => {
                    let mut stream = TcpStream::connect_timeout(&address, limit)?;
                    stream.set_read_timeout(Some(limit))?;
                    let mut text = Vec::new();
                    stream.read_to_end(&mut text)?;
                    answer = text;
                    answer.len()
                }
                Protocol::Udp => {
                    let any: SocketAddr =
                        if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().map_err(|_| Failure(String::new()))?;
                    let socket = UdpSocket::bind(any)?;
                    socket.set_read_timeout(Some(limit))?;
                    socket.connect(address)?;
                    socket.send(b"?")?;
                    socket.recv(&mut answer)?
                }
            };
            answer.truncate(length);
            String::from_utf8(answer).map_err(|_| Failure("not text".to_owned()))
        })
    }
}
