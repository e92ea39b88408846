//! Our runtime core without a shim: from the bundle to execve, by the launcher, as the daemon does it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use runtime_core::cgroup::{self, Cgroup, CgroupPath};
use runtime_core::compile::{self, CgroupView, Compiled, Container, Joined, Joining, RootMount, Streams};
use runtime_core::container::failure;
use runtime_core::kernel::Features;
use runtime_core::plan::launcher::{Launched, Launcher, Request};
use runtime_core::plan::report::{self, GO, Message};
use runtime_core::rdt::Groups;
use runtime_core::seccomp::{self, Filter};
use runtime_core::spec::{Process, Spec, check};
use runtime_core::sys::process;
use rustix::event::{PollFd, PollFlags, poll};

use crate::bundle::Bundle;
use crate::{Context, Result, ensure, fail, paths, proc};

use super::place::{self, Cgroups, GivenNet, Net};
use super::worker::Contender;
use super::{Sample, micros};

/// How long a cgroup may take to become empty.
const BUSY: Duration = Duration::from_secs(2);

/// A container that runs.
struct Running {
    cgroup: Cgroup,
    launched: Launched,
    joined: Joined,
    filter: Filter,
}

/// The core in a single-threaded process of its own.
pub struct Core {
    launcher: Launcher,
    host: cgroup::Host,
    data: PathBuf,
    cgroups: Cgroups,
    given: Option<GivenNet>,
    count: u32,
    paused: Option<Running>,
    process: Vec<u8>,
}

impl Core {
    /// A core with one container that idles, for execs.
    pub fn new(cgroups: Cgroups, net: Net) -> Result<Core> {
        place::enter(cgroups)?;
        let data = place::data_on_tmpfs()?;
        let launcher = Launcher::spawn()?;
        let host = cgroup::Host::detect()?;
        let given = if net == Net::Given { Some(GivenNet::new()?) } else { None };
        let process = crate::bundle::process(&["/true"]).to_string().into_bytes();
        let mut core = Core { launcher, host, data, cgroups, given, count: 0, paused: None, process };
        let bundle = core.bundle("/pause")?;
        core.paused = Some(core.start(&bundle)?.0);
        Ok(core)
    }

    fn bundle(&mut self, program: &str) -> Result<Bundle> {
        self.count += 1;
        let net = self.given.as_ref().map(GivenNet::path);
        place::bundle(&self.data, &format!("core{}", self.count), program, self.cgroups, net.as_deref())
    }

    /// One start: until execve is done.
    fn start(&self, bundle: &Bundle) -> Result<(Running, f64)> {
        let overlay = bundle.overlay()?;
        let rootfs: Vec<RootMount> = overlay
            .into_iter()
            .map(|mount| RootMount { fstype: mount.type_, source: mount.source, target: mount.target, options: mount.options })
            .collect();
        let begin = Instant::now();
        let spec = Spec::load(&bundle.dir)?;
        check(&spec)?;
        let path = CgroupPath::new(&self.host, spec.linux.cgroups_path.as_deref(), &bundle.id)?;
        let cgroup = Cgroup::create(&self.host, &path, &spec.linux.resources)?;
        let profile = spec.linux.seccomp.as_ref().context(|| "the bundle has no seccomp profile".to_owned())?;
        let filter = seccomp::compile(profile)?;
        let (parent, child) = report::pair()?;
        let compiled = compile::container(Container {
            id: &bundle.id,
            bundle: &bundle.dir,
            spec: &spec,
            rootfs: &rootfs,
            by_helper: Vec::new(),
            pod: None,
            cgroup: CgroupView::of(&cgroup, &Groups::default())?,
            streams: Streams::Given(null_streams()?),
            filter: Some(&filter),
            report: child,
            parents_end: None,
            preserved: Vec::new(),
            no_pivot_root: false,
            networked: false,
            no_new_keyring: false,
            kernel: Features::get(),
        })?;
        let launched = self.launch(compiled, &parent)?;
        let took = micros(begin);
        let joined = Joined::of(&spec.linux)?;
        Ok((Running { cgroup, launched, joined, filter }, took))
    }

    /// Hands the plan to the launcher and follows the child up to execve.
    fn launch(&self, compiled: Compiled, parent: &OwnedFd) -> Result<Launched> {
        let Compiled { launch, descriptors } = compiled;
        let request = Request::Launch(Box::new(launch));
        let bytes = request.encode()?;
        let fds: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let sent = self.launcher.send(&bytes, &fds)?;
        ensure!(sent == bytes.len(), "the launcher took {sent} of {} bytes", bytes.len());
        // Among them is the child's end of the report, whose closing is the sign of execve.
        drop(descriptors);
        readable(self.launcher.socket())?;
        let launched = self.launcher.receive()??;
        loop {
            readable(parent.as_fd())?;
            match report::receive(parent.as_fd())? {
                None => return Ok(launched),
                Some(Message::Ready) => drop(rustix::io::write(parent, &[GO])?),
                Some(Message::Failed(failure)) => {
                    let Request::Launch(launch) = &request else { fail!("not a launch") };
                    fail!("{}", failure::explain(launch, &failure))
                }
                Some(other) => fail!("unexpected: {other:?}"),
            }
        }
    }

    /// One exec of `/true` in the paused container: until execve is done, and until it is reaped.
    fn exec(&self) -> Result<(f64, f64)> {
        let paused = self.paused.as_ref().context(|| "no container is paused".to_owned())?;
        let begin = Instant::now();
        let process: Process = serde_json::from_slice(&self.process)?;
        let (parent, child) = report::pair()?;
        let compiled = compile::joining(Joining {
            id: "exec",
            namespaces: &paused.joined,
            process: &process,
            init: paused.launched.pidfd.try_clone()?,
            cgroup: CgroupView::of(&paused.cgroup, &Groups::default())?,
            streams: Streams::Given(null_streams()?),
            filter: Some(&paused.filter),
            report: child,
            preserved: Vec::new(),
            no_new_keyring: false,
        })?;
        let launched = self.launch(compiled, &parent)?;
        let took = micros(begin);
        reap(&launched)?;
        Ok((took, micros(begin)))
    }
}

fn null_streams() -> Result<[OwnedFd; 3]> {
    let null = OwnedFd::from(File::options().read(true).write(true).open("/dev/null")?);
    Ok([null.try_clone()?, null.try_clone()?, null])
}

fn readable(fd: std::os::fd::BorrowedFd<'_>) -> Result<()> {
    Ok(poll(&mut [PollFd::new(&fd, PollFlags::IN)], None).map(drop)?)
}

fn reap(launched: &Launched) -> Result<()> {
    match process::wait(launched.pidfd.as_fd())? {
        Some(ended) if ended.status == 0 => Ok(()),
        ended => fail!("the payload ended with {ended:?}"),
    }
}

impl Contender for Core {
    fn sample(&mut self) -> Result<Sample> {
        let bundle = self.bundle("/true")?;
        let begin = Instant::now();
        let (running, start) = self.start(&bundle)?;
        reap(&running.launched)?;
        running.cgroup.remove(BUSY)?;
        let run = micros(begin);
        std::fs::remove_dir_all(&bundle.dir)?;
        let (exec, exec_run) = self.exec()?;
        let values = [("start", start), ("run", run), ("exec", exec), ("exec run", exec_run)];
        Ok(values.map(|(name, value)| (name.to_owned(), value)).into())
    }

    fn life(&mut self) -> Result<()> {
        let bundle = self.bundle("/true")?;
        let (running, _) = self.start(&bundle)?;
        reap(&running.launched)?;
        Ok(running.cgroup.remove(BUSY)?)
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if let Some(paused) = self.paused.take() {
            // What fails here is named by the next run's ledger of cgroups.
            let _ = paused.cgroup.kill();
            let _ = process::wait(paused.launched.pidfd.as_fd());
            let _ = paused.cgroup.remove(BUSY);
        }
        for root in proc::cgroup_roots() {
            let _ = std::fs::remove_dir(root.join(paths::tag()));
        }
    }
}
