//! runc and crun by their command lines.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::bundle::Bundle;
use crate::command;
use crate::{Result, ensure, paths, proc};

use super::place::{self, Cgroups, GivenNet, Net};
use super::worker::Contender;
use super::{Sample, micros};

/// The runtime `name` of Debian's bookworm.
pub fn program(name: &str) -> Result<PathBuf> {
    let dir = paths::cache("bookworm")?;
    let found = ["usr/sbin", "usr/bin"].into_iter().map(|bin| dir.join(bin).join(name)).find(|path| path.exists());
    crate::Context::context(found, || format!("{name} is not in {}: run deploy/setup/peers.sh", dir.display()))
}

/// The libraries that were unpacked with the peers.
pub fn libraries() -> Result<String> {
    Ok(paths::cache("bookworm")?.join(place::libraries().trim_start_matches('/')).display().to_string())
}

/// The first line that `name --version` prints.
pub fn version(name: &str) -> Result<String> {
    let said = command::output(Command::new(program(name)?).arg("--version").env("LD_LIBRARY_PATH", libraries()?))?;
    Ok(said.lines().next().unwrap_or_default().to_owned())
}

/// A peer with one container that idles, for execs. Its root filesystem is a plain directory: it does less than the others, who mount an
/// overlay.
pub struct Peer {
    program: PathBuf,
    root: PathBuf,
    data: PathBuf,
    cgroups: Cgroups,
    given: Option<GivenNet>,
    count: u32,
    paused: String,
}

impl Peer {
    /// `name` is a file name in Debian's bookworm.
    pub fn new(name: &str, cgroups: Cgroups, net: Net) -> Result<Peer> {
        place::enter(cgroups)?;
        place::add_libraries(&libraries()?)?;
        let data = place::data_on_tmpfs()?;
        let given = if net == Net::Given { Some(GivenNet::new()?) } else { None };
        let root = paths::run_dir().join(name);
        std::fs::create_dir_all(&root)?;
        let mut peer = Peer { program: program(name)?, root, data, cgroups, given, count: 0, paused: String::new() };
        let bundle = peer.bundle("/pause")?;
        peer.create(&bundle)?;
        peer.paused = bundle.id.clone();
        peer.call(&["start", &bundle.id])?;
        Ok(peer)
    }

    fn bundle(&mut self, program: &str) -> Result<Bundle> {
        self.count += 1;
        let net = self.given.as_ref().map(GivenNet::path);
        let mut bundle = place::bundle(&self.data, &format!("peer{}", self.count), program, self.cgroups, net.as_deref())?;
        let system = crate::bundle::system()?.display().to_string();
        // Shared and only read from, so that no copy is made for each container.
        bundle.edit(|spec| spec["root"]["path"] = system.into())?;
        Ok(bundle)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Runs it without reading from it, since what it leaves behind keeps a pipe open.
    fn call(&self, args: &[&str]) -> Result<f64> {
        let begin = Instant::now();
        let status = self.command(args).status()?;
        let took = micros(begin);
        ensure!(status.success(), "{} {}: {status}", self.program.display(), args.join(" "));
        Ok(took)
    }

    fn create(&self, bundle: &Bundle) -> Result<f64> {
        let said = self.data.join("stderr");
        let dir = bundle.dir.display().to_string();
        let begin = Instant::now();
        let status = self.command(&["create", "--bundle", &dir, &bundle.id]).stderr(std::fs::File::create(&said)?).status()?;
        let took = micros(begin);
        ensure!(status.success(), "{} create: {}", self.program.display(), std::fs::read_to_string(&said)?.trim());
        Ok(took)
    }

    fn run(&mut self) -> Result<f64> {
        let bundle = self.bundle("/true")?;
        let dir = bundle.dir.display().to_string();
        let took = self.call(&["run", "--bundle", &dir, &bundle.id])?;
        std::fs::remove_dir_all(&bundle.dir)?;
        Ok(took)
    }
}

impl Contender for Peer {
    fn sample(&mut self) -> Result<Sample> {
        let run = self.run()?;
        let bundle = self.bundle("/true")?;
        let create = self.create(&bundle)?;
        let start = self.call(&["start", &bundle.id])?;
        let delete = self.call(&["delete", "--force", &bundle.id])?;
        std::fs::remove_dir_all(&bundle.dir)?;
        let exec = self.call(&["exec", &self.paused, "/true"])?;
        let values = [
            ("start", create + start),
            ("create only", create),
            ("start only", start),
            ("delete", delete),
            ("run", run),
            ("exec run", exec),
            ("exec", exec),
        ];
        Ok(values.map(|(name, value)| (name.to_owned(), value)).into())
    }

    fn life(&mut self) -> Result<()> {
        self.run().map(drop)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if !self.paused.is_empty() {
            let _ = self.call(&["delete", "--force", &self.paused]);
        }
        let _ = std::fs::remove_dir_all(&self.root);
        for root in proc::cgroup_roots() {
            let _ = std::fs::remove_dir(root.join(paths::tag()));
        }
    }
}
