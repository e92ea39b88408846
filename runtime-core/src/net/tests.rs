//! Networks in a namespace that stands for the host, with processes in namespaces of their own that stand for containers. They need root.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use super::asked::Asked;
use super::node::Node;
use super::{Attachment, Container, prune, reconcile, release};
use crate::error::Result;

/// Runs `test` in a network namespace of its own, with a state of its own.
fn on_a_host(networks: &str, test: impl FnOnce(&Host) + Send) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: skipped");
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("network.toml");
    let state_line = format!("state = {:?}\n", state.path().join("state"));
    let allowed = "[namespaces.default]\nports = [\"1-65535\"]\nmodes = [\"bridge\", \"macvlan\"]\n";
    fs::write(&file, format!("{state_line}{networks}\n{allowed}")).unwrap();
    let node = Node::load(&file).unwrap().unwrap();
    thread::scope(|scope| {
        let host = || {
            crate::sys::process::unshare(libc::CLONE_NEWNET).unwrap();
            output("ip", &["link", "set", "lo", "up"]);
            test(&Host { node, bundles: state.path().to_owned() });
        };
        scope.spawn(host).join().unwrap();
    });
}

struct Host {
    node: Node,
    bundles: PathBuf,
}

/// A process in a network namespace of its own.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn new() -> Self {
        let mut child = Command::new("unshare");
        child.args(["--net", "sh", "-c", "ip link set lo up; echo; exec sleep 1000"]);
        let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
        std::io::Read::read(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        Self(child)
    }

    fn inside(&self, program: &str, args: &[&str]) -> String {
        let pid = self.0.id().to_string();
        output("nsenter", &[&["-t", &pid, "-n", program], args].concat())
    }
}

fn output(program: &str, args: &[&str]) -> String {
    let done = Command::new(program).args(args).output().unwrap();
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

impl Host {
    fn reserve(&self, id: &str, annotations: &[(&str, &str)]) -> Result<Attachment> {
        let annotations: HashMap<_, _> = annotations.iter().map(|(key, value)| (format!("coracle.{key}"), (*value).to_owned())).collect();
        let asked = Asked::of(&annotations, &self.node, "default")?.unwrap();
        Attachment::reserve(&self.node, &asked, &Container { namespace: "default", id, hostname: "", bundle: &self.bundles })
    }

    fn state(&self) -> &Path {
        &self.node.state
    }
}

#[test]
fn a_container_has_what_it_asked_for_and_gives_it_back() {
    on_a_host("", |host| {
        let container = Process::new();
        let attachment =
            host.reserve("a", &[("network", "bridge"), ("ports", "8080:80,127.0.0.1:53:53/udp"), ("egress-rate", "8M")]).unwrap();
        attachment.connect(container.0.id() as i32).unwrap();
        let addresses = container.inside("ip", &["-br", "addr", "show", "dev", "eth0"]);
        assert!(addresses.contains("10.209.0.2/16") && addresses.contains("fdc0:7ac1:e000::2/64"), "{addresses}");
        let routes = container.inside("ip", &["route"]);
        assert!(routes.starts_with("default via 10.209.0.1 dev eth0"), "{routes}");
        container.inside("busybox", &["ping", "-c", "1", "-W", "5", "10.209.0.1"]);
        container.inside("busybox", &["ping", "-6", "-c", "1", "-W", "5", "fdc0:7ac1:e000::1"]);
        let rules = output("nft", &["list", "table", "inet", "coracle"]);
        for want in ["tcp . 8080 : 10.209.0.2 . 80", "127.0.0.1 . udp . 53 : 10.209.0.2 . 53", "tcp . 8080 : fdc0:7ac1:e000::2 . 80"] {
            assert!(rules.contains(want), "{want}: {rules}");
        }
        assert!(attachment.traffic().unwrap().tx_packets > 1);
        release(&attachment.place()).unwrap();
        drop(container);
        let rules = output("nft", &["list", "table", "inet", "coracle"]);
        assert!(!rules.contains("10.209.0.2"), "{rules}");
        assert_eq!(prune(&host.node).unwrap(), ["coracle0"]);
        reconcile(host.state()).unwrap();
        assert_eq!(output("nft", &["list", "ruleset"]), "");
        assert!(!output("ip", &["-br", "link"]).contains("coracle0"));
    });
}
