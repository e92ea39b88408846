//! Conversations with a manager that is played by the test, on a bus of the test's own; zbus is the other implementation of D-Bus.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use zbus::blocking::{Connection, MessageIterator, connection};
use zbus::message::Type;
use zbus::zvariant::{ObjectPath, OwnedValue, Value as Variant};

use super::*;
use crate::cgroup::{CgroupPath, Host, Intent, Mode};
use crate::error::{ErrorKind, Result};
use crate::spec::Resources;

type Properties = Vec<(String, OwnedValue)>;
type Heard = Arc<Mutex<Vec<(String, String, HashMap<String, String>)>>>;

const PATIENCE: Duration = Duration::from_millis(700);

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A bus at a path.
fn bus(socket: &Path) -> Process {
    let address = format!("--address=unix:path={}", socket.display());
    let mut command = Command::new("dbus-daemon");
    command.args(["--session", "--nofork", "--nopidfile", "--print-address=1", &address]).stdout(Stdio::piped());
    let mut process = Process(command.spawn().expect("dbus-daemon is installed"));
    let mut line = String::new();
    BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("unix:path="), "{line}");
    process
}

/// Where systemd keeps account of processes on this host.
fn accounts() -> PathBuf {
    match Host::detect().unwrap().mode() {
        Mode::V2 => "/sys/fs/cgroup".into(),
        Mode::V1 | Mode::Hybrid => "/sys/fs/cgroup/systemd".into(),
    }
}

/// The part of systemd. What it does is told by the unit's name.
struct Fake {
    connection: Connection,
    heard: Heard,
    reset: bool,
    jobs: u32,
    properties: HashMap<String, Properties>,
}

impl Fake {
    fn start(socket: &Path) -> Heard {
        let address = format!("unix:path={}", socket.display());
        let builder = connection::Builder::address(address.as_str()).unwrap().name("org.freedesktop.systemd1").unwrap();
        let connection = builder.build().unwrap();
        let heard = Heard::default();
        let mut fake =
            Self { connection: connection.clone(), heard: Arc::clone(&heard), reset: false, jobs: 0, properties: HashMap::new() };
        let messages = MessageIterator::from(connection);
        std::thread::spawn(move || {
            // Ends with the bus.
            for message in messages.map_while(std::result::Result::ok) {
                if message.header().message_type() == Type::MethodCall && fake.answer(&message).is_err() {
                    return;
                }
            }
        });
        heard
    }

    fn answer(&mut self, message: &zbus::Message) -> zbus::Result<()> {
        let header = message.header();
        let member = header.member().unwrap().to_string();
        let body = message.body();
        match member.as_str() {
            "Get" => {
                let (interface, name): (String, String) = body.deserialize()?;
                assert_eq!(interface, "org.freedesktop.systemd1.Manager");
                let value = if name == "Version" { "v257.9-1" } else { "/user.slice/user-7.slice/user@7.service" };
                self.connection.reply(&header, &Variant::from(value))
            }
            "StartTransientUnit" => {
                let (name, mode, properties, auxiliary): (String, String, Properties, Vec<(String, Properties)>) = body.deserialize()?;
                assert!(mode == "replace" && auxiliary.is_empty());
                self.hear(&member, &name, &properties);
                self.begin(&header, &name, properties)
            }
            "SetUnitProperties" => {
                let (name, runtime, properties): (String, bool, Properties) = body.deserialize()?;
                assert!(runtime);
                self.hear(&member, &name, &properties);
                self.connection.reply(&header, &())
            }
            "StopUnit" | "StartUnit" => {
                let (name, mode): (String, String) = body.deserialize()?;
                assert_eq!(mode, "replace");
                self.hear(&member, &name, &Vec::new());
                if name.starts_with("gone") {
                    return self.connection.reply_error(&header, "org.freedesktop.systemd1.NoSuchUnit", &"Unit not loaded.");
                }
                self.job(&header, &name, "done")
            }
            "ResetFailedUnit" => {
                let name: String = body.deserialize()?;
                self.hear(&member, &name, &Vec::new());
                self.reset = true;
                self.connection.reply(&header, &())
            }
            other => panic!("{other}"),
        }
    }

    fn hear(&self, member: &str, name: &str, properties: &Properties) {
        let properties = properties.iter().map(|(name, value)| (name.clone(), format!("{:?}", Variant::from(value.clone())))).collect();
        self.heard.lock().unwrap().push((member.to_owned(), name.to_owned(), properties));
    }

    fn begin(&mut self, header: &zbus::message::Header<'_>, name: &str, properties: Properties) -> zbus::Result<()> {
        let exists = name.starts_with("taken") || name.starts_with("failed") && !self.reset;
        if exists {
            return self.connection.reply_error(header, "org.freedesktop.systemd1.UnitExists", &"Unit was already loaded.");
        }
        if name.starts_with("mute") {
            return Ok(());
        }
        let find = |wanted: &str| properties.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.try_clone().unwrap());
        let slice: String = find("Slice").unwrap().try_into().unwrap();
        let pids: Vec<u32> = find("PIDs").unwrap().try_into().unwrap();
        let elsewhere = if name.starts_with("elsewhere") { "x" } else { "" };
        let directory = accounts().join(slice).join(format!("{name}{elsewhere}"));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("cgroup.procs"), pids[0].to_string()).unwrap();
        self.properties.insert(name.to_owned(), properties);
        self.job(header, name, if name.starts_with("refused") { "failed" } else { "done" })
    }

    fn job(&mut self, header: &zbus::message::Header<'_>, name: &str, result: &str) -> zbus::Result<()> {
        self.jobs += 1;
        let path = format!("/org/freedesktop/systemd1/job/{}", self.jobs);
        let path = ObjectPath::try_from(path.as_str()).unwrap();
        self.connection.reply(header, &path)?;
        if name.starts_with("endless") && result == "done" {
            return Ok(());
        }
        let other = ObjectPath::try_from("/org/freedesktop/systemd1/job/999").unwrap();
        for (path, result) in [(&other, "failed"), (&path, result)] {
            let body = (self.jobs, path, name, result);
            let manager = "org.freedesktop.systemd1.Manager";
            self.connection.emit_signal(None::<&str>, "/org/freedesktop/systemd1", manager, "JobRemoved", &body)?;
        }
        Ok(())
    }
}

struct Bed {
    heard: Heard,
    manager: Manager<Arc<Blocking>>,
    socket: PathBuf,
    host: Host,
    slice: String,
    bus: Option<Process>,
    _directory: tempfile::TempDir,
}

impl Bed {
    fn new(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("bus");
        let bus = Some(bus(&socket));
        let heard = Fake::start(&socket);
        let address = Address::Path { path: socket.clone(), direct: false };
        let manager = Manager::new(Instance::System, Arc::new(Blocking::new(vec![address]))).with_patience(PATIENCE);
        let slice = format!("coracletest{name}{}.slice", std::process::id());
        Self { heard, manager, socket, host: Host::detect().unwrap(), slice, bus, _directory: directory }
    }

    fn scope(&self, name: &str) -> Scope {
        Scope::new(Some(&format!("{}::{name}", self.slice)), "c", Instance::System).unwrap()
    }

    fn start(&self, scope: &Scope) -> Result<()> {
        let guest = Process(Command::new("sleep").arg("1000").spawn().unwrap());
        let resources: Resources = serde_json::from_str(r#"{"pids": {"limit": 7}}"#).unwrap();
        let intent = Intent::new(&self.host, &resources, None).unwrap();
        let path = CgroupPath::of_scope(scope, "").unwrap();
        let extra = [("TimeoutStopUSec".to_owned(), Value::Uint64(5))];
        let new = New { scope, path: &path, id: "c", pid: guest.0.id(), intent: &intent, extra: &extra };
        block_on(self.manager.start(&self.host, &new))
    }

    /// What was asked of a unit, in order.
    fn asked(&self, scope: &Scope) -> Vec<String> {
        self.heard.lock().unwrap().iter().filter(|(_, name, _)| *name == scope.name).map(|(member, ..)| member.clone()).collect()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let slice = accounts().join(&self.slice);
        let deadline = Instant::now() + Duration::from_secs(5);
        for entry in std::fs::read_dir(&slice).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
            while std::fs::remove_dir(entry.path()).is_err() && Instant::now() < deadline {}
        }
        let _ = std::fs::remove_dir(&slice);
        assert!(!slice.exists(), "{slice:?}");
    }
}

#[test]
fn a_scope_is_started_with_its_properties_and_stopped() {
    let bed = Bed::new("a");
    let scope = bed.scope("good");
    bed.start(&scope).unwrap();
    let (_, name, properties) = bed.heard.lock().unwrap().first().cloned().unwrap();
    assert_eq!(name, "good.scope");
    for (name, value) in [
        ("Delegate", "Bool(true)"),
        ("DefaultDependencies", "Bool(false)"),
        ("TasksMax", "U64(7)"),
        ("TimeoutStopUSec", "U64(5)"),
        ("MemoryAccounting", "Bool(true)"),
        ("CollectMode", "Str(\"inactive-or-failed\")"),
    ] {
        assert_eq!(properties.get(name).map(String::as_str), Some(value), "{name}");
    }
    let resources: Resources = serde_json::from_str(r#"{"pids": {"limit": 9}}"#).unwrap();
    block_on(bed.manager.set(&scope, &Intent { devices: None, ..Intent::new(&bed.host, &resources, None).unwrap() })).unwrap();
    block_on(bed.manager.set(&scope, &Intent { files: Vec::new(), devices: None })).unwrap();
    block_on(bed.manager.stop(&scope)).unwrap();
    assert_eq!(bed.asked(&scope), ["StartTransientUnit", "SetUnitProperties", "StopUnit", "ResetFailedUnit"]);
    assert_eq!(bed.heard.lock().unwrap()[1].2, HashMap::from([("TasksMax".to_owned(), "U64(9)".to_owned())]));
}

#[test]
fn a_scope_that_is_gone_is_stopped() {
    let bed = Bed::new("b");
    let scope = bed.scope("gone");
    block_on(bed.manager.stop(&scope)).unwrap();
    assert_eq!(bed.asked(&scope), ["StopUnit"]);
}

#[test]
fn a_failed_unit_of_the_name_is_reset_and_a_living_one_is_left_alone() {
    let bed = Bed::new("c");
    let failed = bed.scope("failed");
    bed.start(&failed).unwrap();
    assert_eq!(bed.asked(&failed), ["StartTransientUnit", "ResetFailedUnit", "StartTransientUnit"]);
    let taken = bed.scope("taken");
    let error = bed.start(&taken).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.to_string().contains("systemd: start \"taken.scope\": Unit was already loaded."), "{error}");
    assert_eq!(bed.asked(&taken), ["StartTransientUnit", "ResetFailedUnit", "StartTransientUnit"]);
}

#[test]
fn a_job_that_fails_is_told_and_leaves_no_unit() {
    let bed = Bed::new("d");
    let scope = bed.scope("refused");
    let error = bed.start(&scope).unwrap_err().to_string();
    assert_eq!(error, "systemd: start \"refused.scope\": the job has ended with \"failed\"");
    assert_eq!(bed.asked(&scope), ["StartTransientUnit", "StopUnit", "ResetFailedUnit"]);
}

#[test]
fn a_process_that_is_put_elsewhere_is_no_container() {
    let bed = Bed::new("e");
    let scope = bed.scope("elsewhere");
    let error = bed.start(&scope).unwrap_err().to_string();
    assert!(error.contains("/elsewhere.scopex\"") && error.contains("in place of"), "{error}");
    assert_eq!(bed.asked(&scope), ["StartTransientUnit", "StopUnit", "ResetFailedUnit"]);
}

#[test]
fn neither_a_mute_systemd_nor_a_job_without_end_is_waited_for_without_end() {
    let bed = Bed::new("f");
    for name in ["mute", "endless"] {
        let scope = bed.scope(name);
        let begun = Instant::now();
        let error = bed.start(&scope).unwrap_err().to_string();
        assert_eq!(error, format!("systemd: start \"{name}.scope\": no answer in 0.7 s"));
        assert!(begun.elapsed() < PATIENCE * 5, "{:?}", begun.elapsed());
        assert!(bed.asked(&scope).contains(&"StopUnit".to_owned()), "{:?}", bed.asked(&scope));
    }
}

#[test]
fn a_bus_that_comes_back_is_found_again() {
    let mut bed = Bed::new("g");
    let scope = bed.scope("good");
    bed.start(&scope).unwrap();
    bed.bus = None;
    std::fs::remove_file(&bed.socket).ok();
    bed.bus = Some(bus(&bed.socket));
    let heard = Fake::start(&bed.socket);
    block_on(bed.manager.stop(&scope)).unwrap();
    assert_eq!(heard.lock().unwrap().len(), 2);
}

#[test]
fn without_a_bus_the_error_names_what_was_tried() {
    let bus = Blocking::new(vec![Address::Path { path: "/nonexistent/bus".into(), direct: false }]);
    let manager = Manager::new(Instance::System, bus);
    let scope = Scope::new(None, "c", Instance::System).unwrap();
    let error = block_on(manager.stop(&scope)).unwrap_err();
    assert_eq!(error.to_string(), "systemd: stop \"coracle-c.scope\": connect to /nonexistent/bus: no such file or directory");
}

#[test]
fn a_users_scope_is_below_the_cgroup_of_the_users_manager() {
    let bed = Bed::new("h");
    let address = Address::Path { path: bed.socket.clone(), direct: false };
    let manager = Manager::new(Instance::User, Blocking::new(vec![address]));
    let scope = Scope::new(None, "c", Instance::User).unwrap();
    let path = block_on(manager.path(&scope)).unwrap();
    let expected = "\"path\":\"user.slice/user-7.slice/user@7.service/user.slice/coracle-c.scope\"";
    assert!(serde_json::to_string(&path).unwrap().contains(expected), "{path:?}");
}
