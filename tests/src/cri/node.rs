//! A containerd with CRI, as a node has it: every way to install the shim is a handler of its own.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::api::{ImageSpec, ImageStatusRequest, ListPodSandboxRequest};
use super::client::Cri;
use crate::containerd::{Containerd, Setup, Version, eventually};
use crate::suite::by_systemd;
use crate::{Result, image, paths};

/// The namespace that CRI uses in containerd.
pub const NAMESPACE: &str = "k8s.io";

/// A way to install the shim, and what is compared with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `runtime_type = "io.containerd.coracle.v2"`.
    Own,
    /// `runtime_type = "io.containerd.runc.v2"` with `runtime_path`.
    Path,
    /// `runtime_type = "io.containerd.runc.v2"`, which finds the shim under the name of runc's.
    DropIn,
    /// `sandboxer = "shim"`: pods without a pause container.
    Podless,
    /// The same with `io_type = "streaming"`: stdio over the shim's socket.
    Streaming,
    /// containerd's own shim with runc.
    Runc,
}

impl Style {
    /// The ways to install the shim.
    pub const INSTALLED: [Style; 3] = [Style::Own, Style::Path, Style::DropIn];

    /// The ways to have pods of the shim in a generation of containerd.
    pub fn all(version: Version) -> &'static [Style] {
        match version {
            Version::V16 | Version::V17 => &Self::INSTALLED,
            Version::V2 => &[Style::Own, Style::Path, Style::DropIn, Style::Podless, Style::Streaming],
        }
    }

    /// Whether a pod has a container of its own.
    pub fn has_pause(self) -> bool {
        !matches!(self, Style::Podless | Style::Streaming)
    }

    /// The handler of our own type with an option, whose pods are made as those of this style.
    pub fn with_options(self) -> String {
        format!("{}-with-options", self.name())
    }

    /// The handler of our own type with an option that nobody knows, whose pods are made as those of this style.
    pub fn with_bad_options(self) -> String {
        format!("{}-with-bad-options", self.name())
    }

    /// The handler's name, and the column of the table in the documents.
    pub fn name(self) -> &'static str {
        match self {
            Style::Own => "own",
            Style::Path => "path",
            Style::DropIn => "drop-in",
            Style::Podless => "podless",
            Style::Streaming => "streaming",
            Style::Runc => "runc",
        }
    }

    /// The handler's table, of which `runtime` is the path to its parent.
    fn table(self, runtime: &str, suite: &str, bin: &Path) -> Result<String> {
        let shim = bin.join(paths::binary_name(paths::OURS));
        let lines = match self {
            Style::Own => "runtime_type = \"io.containerd.coracle.v2\"\n".to_owned(),
            Style::Path => format!("runtime_type = \"io.containerd.runc.v2\"\nruntime_path = {:?}\n", shim),
            Style::DropIn => "runtime_type = \"io.containerd.runc.v2\"\n".to_owned(),
            Style::Podless => "runtime_type = \"io.containerd.coracle.v2\"\nsandboxer = \"shim\"\n".to_owned(),
            Style::Streaming => "runtime_type = \"io.containerd.coracle.v2\"\nsandboxer = \"shim\"\nio_type = \"streaming\"\n".to_owned(),
            Style::Runc => {
                let shim = paths::cache(suite)?.join("usr/bin/containerd-shim-runc-v2");
                let runc = paths::cache("bookworm")?.join("usr/sbin/runc");
                format!(
                    "runtime_type = \"io.containerd.runc.v2\"\nruntime_path = {shim:?}\n[{runtime}.{}.options]\nBinaryName = {runc:?}\n",
                    self.name()
                )
            }
        };
        let options = match self {
            Style::Runc if by_systemd() => "SystemdCgroup = true\n".to_owned(),
            Style::Path | Style::DropIn if by_systemd() => format!("[{runtime}.{}.options]\nSystemdCgroup = true\n", self.name()),
            // Options do not come everywhere; the form of the path is enough.
            _ => String::new(),
        };
        Ok(format!("[{runtime}.{}]\n{lines}{options}", self.name()))
    }
}

/// A running containerd with CRI, its images and its network.
pub struct Node {
    /// The containerd.
    pub containerd: Containerd,
}

impl Node {
    /// Starts one, with what else is to be in the environment of containerd and its shims.
    pub fn start(version: Version, environment: &[(&str, &str)]) -> Result<Node> {
        let mut prepared = Ok(());
        let containerd = Containerd::start_with(version, |dir| {
            let mut setup =
                Setup { environment: environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(), ..Setup::default() };
            prepared = prepare(version, dir).map(|cri| {
                setup.cri = Some(cri);
                setup.shim = Some(dir.join("bin"));
            });
            setup
        });
        prepared?;
        let node = Node { containerd: containerd? };
        node.import()?;
        Ok(node)
    }

    /// Starts containerd again after it was killed, and waits for CRI, which is ready later.
    pub fn restart(&mut self) -> Result<()> {
        self.containerd.restart()?;
        let cri = self.cri()?;
        eventually("CRI answers", Duration::from_secs(20), || cri.list_pod_sandbox(ListPodSandboxRequest::default()).is_ok())
    }

    /// Puts a copy of the shim in its place, as an upgrade does.
    pub fn replace_shim(&self) -> Result<()> {
        let bin = self.containerd.dir().join("bin");
        let (old, new) = (paths::shim_dir()?.join(paths::binary_name(paths::OURS)), self.containerd.data().join("upgrade"));
        fs::copy(&old, &new)?;
        for name in [paths::binary_name(paths::OURS), "containerd-shim-runc-v2".to_owned()] {
            let beside = bin.join(format!(".{name}"));
            symlink(&new, &beside)?;
            fs::rename(&beside, bin.join(name))?;
        }
        Ok(())
    }

    /// A client of its own.
    pub fn cri(&self) -> Result<Cri> {
        Cri::new(&self.containerd.address())
    }

    /// Both images, as CRI sees them.
    fn import(&self) -> Result<()> {
        let (busybox, pause) = (self.containerd.data().join("busybox.tar"), self.containerd.data().join("pause.tar"));
        image::archive(&[1], &busybox)?;
        image::pause_archive(self.containerd.data(), &pause)?;
        self.containerd.import_into(NAMESPACE, &busybox)?;
        self.containerd.import_into(NAMESPACE, &pause)?;
        let cri = self.cri()?;
        for name in [image::name(1), image::PAUSE.to_owned()] {
            // CRI learns of images by containerd's events.
            eventually(&format!("CRI knows {name}"), Duration::from_secs(10), || {
                let image = Some(ImageSpec { image: name.clone(), ..ImageSpec::default() });
                cri.image_status(ImageStatusRequest { image, verbose: false }).is_ok_and(|reply| reply.image.is_some())
            })?;
        }
        Ok(())
    }
}

/// Makes the directories of programs and of the network's configuration, and answers CRI's tables.
fn prepare(version: Version, dir: &Path) -> Result<String> {
    let (bin, net) = (dir.join("bin"), dir.join("net.d"));
    fs::create_dir_all(&bin)?;
    fs::create_dir_all(&net)?;
    let shim = paths::shim_dir()?.join(paths::binary_name(paths::OURS));
    symlink(&shim, bin.join(paths::binary_name(paths::OURS)))?;
    symlink(&shim, bin.join("containerd-shim-runc-v2"))?;
    let network = json!({
        "cniVersion": "0.4.0", "name": "pods",
        "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
                "ipam": {"type": "host-local", "dataDir": dir.join("ipam"), "ranges": [[{"subnet": "10.88.0.0/16"}]]}},
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": false},
        ],
    });
    fs::write(net.join("10-pods.conflist"), network.to_string())?;
    tables(version, &net, &bin)
}

/// CRI's configuration in the format of the version.
fn tables(version: Version, net: &Path, bin: &Path) -> Result<String> {
    let cni = paths::cache("bookworm")?.join("usr/lib/cni");
    let (grpc, runtime) = match version {
        Version::V16 | Version::V17 => ("plugins.\"io.containerd.grpc.v1.cri\"", "plugins.\"io.containerd.grpc.v1.cri\""),
        Version::V2 => ("plugins.\"io.containerd.grpc.v1.cri\"", "plugins.\"io.containerd.cri.v1.runtime\""),
    };
    let mut text = format!("[{grpc}]\nstream_server_address = \"127.0.0.1\"\nstream_server_port = \"0\"\ndisable_tcp_service = false\n");
    let mut rest = "restrict_oom_score_adj = true\nnetns_mounts_under_state_dir = true\ntolerate_missing_hugetlb_controller = true\n\
         disable_hugetlb_controller = false\nenable_unprivileged_ports = true\nenable_unprivileged_icmp = true\nmax_container_log_line_size = 16384\n"
        .to_owned();
    if version == Version::V2 {
        let images = "plugins.\"io.containerd.cri.v1.images\"";
        write!(
            text,
            "[{images}]\nsnapshotter = \"overlayfs\"\n[{images}.pinned_images]\nsandbox = {:?}\n[{runtime}]\n{rest}",
            image::PAUSE
        )?;
        write!(text, "[{runtime}.cni]\nbin_dir = {cni:?}\nconf_dir = {net:?}\n")?;
    } else {
        write!(rest, "sandbox_image = {:?}\n[{runtime}.cni]\nbin_dir = {cni:?}\nconf_dir = {net:?}\n", image::PAUSE)?;
        text += &rest;
    }
    write!(text, "[{runtime}.containerd]\ndefault_runtime_name = \"own\"\n")?;
    for &style in Style::all(version).iter().chain(&[Style::Runc]) {
        text += &style.table(&format!("{runtime}.containerd.runtimes"), version.suite(), bin)?;
    }
    for &style in Style::all(version) {
        let lines = if style.has_pause() { "" } else { "sandboxer = \"shim\"\n" };
        for (name, option) in [(style.with_options(), "NoNewKeyring = true"), (style.with_bad_options(), "Nope = 1")] {
            write!(
                text,
                "[{runtime}.containerd.runtimes.{name}]\nruntime_type = \"io.containerd.coracle.v2\"\n{lines}\
                 [{runtime}.containerd.runtimes.{name}.options]\n{option}\n"
            )?;
        }
    }
    Ok(text)
}
