//! A shim driven at its socket, as containerd 1.6 drives it: ours, or containerd's own with runc or crun.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proto::api::CreateTaskRequest;
use proto::protobuf::{MessageField, well_known_types::any::Any};
use ttrpc::Code;

use crate::bundle::Bundle;
use crate::events::Stub;
use crate::rpc::Shim;
use crate::start::{Launch, Protocol, log_fifo};
use crate::{Result, ensure, fail, paths, proc, wait};

use super::connector::{Counts, count};
use super::place::{self, Cgroups};
use super::worker::Contender;
use super::{Sample, micros, peer};

/// Containers that are added to a pod to see what each costs.
const MORE: u32 = 10;
/// A pod is idle when nothing has happened for a while; both shims have given back by then what they do give back (the Go runtime after
/// its garbage collection, ours after a second or two).
const SETTLE: Duration = Duration::from_secs(4);
/// What containerd 2.3 waits between two calls for the statistics of a task.
const POLL: Duration = Duration::from_secs(1);

/// A pod: one shim with one container that idles.
struct Pod {
    shim: Shim,
    id: String,
    _log: File,
}

/// One kind of shim.
pub struct Driver {
    cgroups: Cgroups,
    data: PathBuf,
    dir: PathBuf,
    stub: Stub,
    /// `BinaryName` of runc's options.
    binary: Option<String>,
    count: u32,
    pod: Option<Pod>,
}

impl Driver {
    /// The runtime under test by `TEST_RUNTIME`; `runtime` is the OCI runtime of containerd's shim, by its name in Debian's bookworm.
    pub fn new(cgroups: Cgroups, runtime: Option<&str>) -> Result<Driver> {
        place::enter(cgroups)?;
        place::add_libraries(&peer::libraries()?)?;
        let data = place::data_on_tmpfs()?;
        let dir = paths::run_dir();
        fs::create_dir_all(&dir)?;
        let stub = Stub::start(&dir.join("ttrpc.sock"))?;
        let binary = runtime.map(|name| Ok::<_, crate::Failure>(peer::program(name)?.display().to_string())).transpose()?;
        let mut driver = Driver { cgroups, data, dir, stub, binary, count: 0, pod: None };
        driver.pod = Some(driver.pod()?);
        Ok(driver)
    }

    fn launch<T>(&self, then: impl FnOnce(&Launch<'_>) -> Result<T>) -> Result<T> {
        let protocol = Protocol::V16;
        then(&Launch {
            binary: paths::shim_binary(protocol.suite())?,
            protocol,
            ttrpc_address: self.stub.path(),
            grpc_address: &self.dir.join("grpc.sock"),
            options: None,
            socket_dir: None,
        })
    }

    fn bundle(&mut self, program: &str) -> Result<Bundle> {
        self.count += 1;
        place::bundle(&self.data, &format!("{}-s{}x", paths::tag(), self.count), program, self.cgroups, None)
    }

    /// `containerd.runc.v1.Options` with `binary_name` (6) and `root` (7).
    fn options(&self) -> MessageField<Any> {
        let Some(binary) = &self.binary else { return MessageField::none() };
        let root = self.dir.join("runc").display().to_string();
        let mut any = Any::new();
        any.type_url = "containerd.runc.v1.Options".to_owned();
        for (field, text) in [(6, binary), (7, &root)] {
            any.value.push(field << 3 | 2);
            any.value.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
            any.value.extend(text.as_bytes());
        }
        MessageField::some(any)
    }

    fn create(&self, shim: &Shim, bundle: &Bundle) -> Result<()> {
        let mut request = CreateTaskRequest::new();
        request.id.clone_from(&bundle.id);
        request.bundle = bundle.dir.display().to_string();
        request.rootfs = bundle.overlay()?;
        request.options = self.options();
        shim.create(request)?;
        Ok(())
    }

    /// A container that runs `program`: Create and Start.
    fn start(&mut self, shim: &Shim, program: &str) -> Result<(Bundle, f64)> {
        let bundle = self.bundle(program)?;
        let begin = Instant::now();
        self.create(shim, &bundle)?;
        shim.start(&bundle.id, "")?;
        Ok((bundle, micros(begin)))
    }

    fn kill(&self, shim: &Shim, id: &str) -> Result<()> {
        shim.kill(id, "", 9)?;
        shim.wait(id, "")?;
        shim.delete(id, "")?;
        Ok(())
    }

    /// Runs `start` and asks until there is an answer, which is that nobody has this name.
    fn boot(&self, bundle: &Bundle) -> Result<(Shim, File, f64)> {
        let log = log_fifo(&bundle.dir)?;
        let begin = Instant::now();
        let shim = self.launch(|launch| launch.connect(&bundle.dir, &bundle.id))?;
        match shim.state("nobody", "") {
            Err(status) if status.code != Code::UNAVAILABLE => Ok((shim, log, micros(begin))),
            Err(status) => Err(status.into()),
            Ok(_) => fail!("State of nobody is answered"),
        }
    }

    fn pod(&mut self) -> Result<Pod> {
        let bundle = self.bundle("/pause")?;
        let (shim, log, _) = self.boot(&bundle)?;
        let pod = Pod { shim, id: bundle.id.clone(), _log: log };
        self.create(&pod.shim, &bundle)?;
        pod.shim.start(&pod.id, "")?;
        Ok(pod)
    }

    fn end(&self, pod: &Pod) -> Result<()> {
        self.kill(&pod.shim, &pod.id)?;
        pod.shim.shutdown(&pod.id)
    }

    /// `start` in a new pod, its first container, and its end.
    fn fresh(&mut self) -> Result<Sample> {
        let bundle = self.bundle("/true")?;
        let (shim, _log, boot) = self.boot(&bundle)?;
        let begin = Instant::now();
        self.create(&shim, &bundle)?;
        shim.start(&bundle.id, "")?;
        let first = micros(begin);
        shim.wait(&bundle.id, "")?;
        shim.delete(&bundle.id, "")?;
        shim.shutdown(&bundle.id)?;
        Ok(Sample::from([("boot".to_owned(), boot), ("first".to_owned(), first)]))
    }

    /// A further container of a pod.
    fn further(&mut self, shim: &Shim) -> Result<Sample> {
        let (bundle, start) = self.start(shim, "/true")?;
        shim.wait(&bundle.id, "")?;
        let begin = Instant::now();
        shim.delete(&bundle.id, "")?;
        let delete = micros(begin);
        fs::remove_dir_all(&bundle.dir)?;
        Ok(Sample::from([("create+start".to_owned(), start), ("delete".to_owned(), delete)]))
    }

    fn exec(&self, pod: &Pod) -> Result<f64> {
        let begin = Instant::now();
        pod.shim.exec(&pod.id, "e", &["/true"])?;
        pod.shim.start(&pod.id, "e")?;
        let took = micros(begin);
        pod.shim.wait(&pod.id, "e")?;
        pod.shim.delete(&pod.id, "e")?;
        Ok(took)
    }

    /// Waits like a containerd that asks for a task's statistics each second.
    fn settle(&self, pod: &Pod) -> Result<()> {
        let end = Instant::now() + SETTLE;
        while Instant::now() < end {
            pod.shim.stats(&pod.id)?;
            wait::pause_for(POLL);
        }
        Ok(())
    }

    /// Memory of an idle pod with one container, and of each further one; host mounts of each.
    fn memory(&mut self) -> Result<Sample> {
        let pod = self.pod()?;
        self.settle(&pod)?;
        let one = memory(&pod.id)?;
        let mounts = proc::mounts().len();
        let mut more = Vec::new();
        for _ in 0..MORE {
            more.push(self.start(&pod.shim, "/pause")?.0);
        }
        let added = proc::mounts().len().saturating_sub(mounts);
        self.settle(&pod)?;
        let many = memory(&pod.id)?;
        for bundle in more {
            self.kill(&pod.shim, &bundle.id)?;
        }
        self.end(&pod)?;
        let each = |many: f64, one: f64| (many - one) / f64::from(MORE);
        let mut facts = Sample::from([
            ("private of a further container".to_owned(), each(many["private"], one["private"])),
            ("host mounts of a container".to_owned(), added as f64 / f64::from(MORE)),
        ]);
        facts.extend(one);
        Ok(facts)
    }

    /// Programs and processes of the first container's life, from `start` to the final `delete`, and of a second one's; without the payload.
    fn counts(&mut self) -> Result<Sample> {
        let bundle = self.bundle("/true")?;
        let first = count(&[std::process::id()], || {
            let (shim, _log, _) = self.boot(&bundle)?;
            self.create(&shim, &bundle)?;
            shim.start(&bundle.id, "")?;
            shim.wait(&bundle.id, "")?;
            shim.delete(&bundle.id, "")?;
            shim.shutdown(&bundle.id)?;
            self.launch(|launch| launch.delete(&bundle.dir, &bundle.id)).map(drop)
        })?;
        let pod = self.pod()?;
        let pids = shims(&pod.id);
        ensure!(!pids.is_empty(), "the shim of {} is not to be found", pod.id);
        let second = count(&pids, || self.further(&pod.shim.clone()).map(drop))?;
        self.end(&pod)?;
        let sample = |which: &str, counts: Counts| {
            let value = |what: &str, number: u32| (format!("{what} of the {which} container"), f64::from(number.saturating_sub(1)));
            [value("execs", counts.execs), value("processes", counts.processes)]
        };
        Ok(sample("first", first).into_iter().chain(sample("second", second)).collect())
    }
}

/// The processes of the shim that was started for `id`: a launcher has the daemon's arguments.
fn shims(id: &str) -> Vec<u32> {
    let all = proc::all().into_iter();
    all.filter(|p| p.command_line.contains(id) && p.command_line.contains("containerd-shim")).map(|p| p.pid).collect()
}

/// Bytes of all processes of a shim: private (dirty pages and page tables), proportional share, and how many processes and threads.
fn memory(id: &str) -> Result<Sample> {
    let mut sums = [("private", 0.0), ("pss", 0.0), ("shim processes", 0.0), ("shim threads", 0.0)].map(|(k, v)| (k.to_owned(), v));
    for pid in shims(id) {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |text: &str, name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(f64::NAN)
        };
        sums[0].1 += (field(&rollup, "Private_Dirty") + field(&status, "VmPTE")) * 1024.0;
        sums[1].1 += field(&rollup, "Pss") * 1024.0;
        sums[2].1 += 1.0;
        sums[3].1 += field(&status, "Threads");
    }
    Ok(Sample::from(sums))
}

impl Contender for Driver {
    fn sample(&mut self) -> Result<Sample> {
        let mut sample = self.fresh()?;
        let Some(pod) = self.pod.take() else { fail!("there is no pod") };
        let further = self.further(&pod.shim);
        let exec = self.exec(&pod);
        self.pod = Some(pod);
        sample.extend(further?);
        sample.insert("exec+start".to_owned(), exec?);
        Ok(sample)
    }

    fn life(&mut self) -> Result<()> {
        let Some(shim) = self.pod.as_ref().map(|pod| pod.shim.clone()) else { fail!("there is no pod") };
        self.further(&shim).map(drop)
    }

    fn facts(&mut self) -> Result<Sample> {
        let mut facts = self.memory()?;
        facts.extend(self.counts()?);
        let binary = paths::shim_binary(Protocol::V16.suite())?;
        let runtime = self.binary.as_ref().map(PathBuf::from);
        let sizes = [Some(binary), runtime].into_iter().flatten().map(|path| Ok(fs::metadata(path)?.len() as f64));
        facts.insert("binaries".to_owned(), sizes.collect::<Result<Vec<f64>>>()?.iter().sum());
        Ok(facts)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(pod) = self.pod.take()
            && self.end(&pod).is_err()
        {
            for pid in shims(&pod.id) {
                let _ = crate::command::signal(pid, rustix::process::Signal::KILL);
            }
        }
        for root in proc::cgroup_roots() {
            let _ = fs::remove_dir(root.join(paths::tag()));
        }
    }
}
