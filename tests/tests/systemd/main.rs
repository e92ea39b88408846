//! The systemd cgroup driver on a real systemd: the machine's own, or one in namespaces (`tests/systemd.sh`).

mod command_line;
mod user;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use proto::protobuf::Message;
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::bundle::Bundle;
use tests::command::{self, signal};
use tests::hand::Hand;
use tests::oci;
use tests::requests::{create_as, create_request, create_with_toml, daemon};
use tests::rpc::{Answer, Shim, refused};
use tests::start::Protocol;
use tests::{Context, Result, containerd::eventually, ensure, ensure_eq, fail, proc, suite};
use ttrpc::Code;

const SOON: Duration = Duration::from_secs(10);
/// The slice of this suite: it is in `coracletest.slice`.
const SLICE: &str = "coracletest-suite.slice";
const MANY: usize = 100;

type Entry = (&'static str, fn(&mut Hand) -> Result<()>);

const CASES: &[Entry] = &[
    ("life_of_a_scope", life_of_a_scope),
    ("exec_pause_and_stats_in_a_scope", exec_pause_and_stats_in_a_scope),
    ("path_and_driver_must_fit", path_and_driver_must_fit),
    ("the_path_says_who_where_nobody_does", the_path_says_who_where_nobody_does),
    ("a_name_that_is_taken", a_name_that_is_taken),
    ("a_failed_unit_of_the_name", a_failed_unit_of_the_name),
    ("devices_after_a_reload", devices_after_a_reload),
    ("a_failed_create_leaves_no_scope", a_failed_create_leaves_no_scope),
    ("killed_daemon", killed_daemon),
    ("killed_daemon_and_launcher", killed_daemon_and_launcher),
    ("annotations_only_where_the_operator_allows", annotations_only_where_the_operator_allows),
    ("systemd_and_its_bus_start_anew", systemd_and_its_bus_start_anew),
    ("many_at_once", many_at_once),
    ("the_manager_of_a_user", user::the_manager_of_a_user),
];

/// Those that need controllers.
const LIMITS: &[Entry] =
    &[("limits_live_and_after_a_reload", limits_live_and_after_a_reload), ("no_room_for_a_second_process", no_room_for_a_second_process)];

const OF_THE_COMMAND_LINE: &[oci::Entry] = &[
    ("command_line::life_of_a_scope", command_line::life_of_a_scope),
    ("command_line::forced_and_refused", command_line::forced_and_refused),
    ("command_line::a_failed_create_leaves_no_scope", command_line::a_failed_create_leaves_no_scope),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, answer] = arguments.as_slice()
        && word == user::AS_USER
    {
        let told = user::as_user().unwrap_or_else(|error| error.to_string());
        return std::fs::write(answer, format!("{told}\n")).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let inside = std::env::var_os("CORACLE_SYSTEMD_BED").is_some() || Path::new("/run/systemd/system").exists();
    if !inside && !std::env::args().any(|argument| argument == "--list") {
        return on_a_machine_of_its_own().unwrap_or_else(|error| {
            println!("{error}");
            ExitCode::FAILURE
        });
    }
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    let limits = if controllers.is_ok_and(|controllers| !controllers.contains("memory")) { &[] } else { LIMITS };
    let cases = CASES.iter().chain(limits).map(|(name, case)| named(name, *case));
    suite::main_of(cases.chain(oci::named("systemd", OF_THE_COMMAND_LINE)).collect())
}

fn named(name: &str, case: fn(&mut Hand) -> Result<()>) -> suite::Named {
    (format!("systemd::{name}"), Box::new(move || Hand::run(Protocol::V20, case)))
}

/// And on another one, where the host has controllers of version 1 to give to it.
fn on_a_machine_of_its_own() -> Result<ExitCode> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd.sh");
    let modes = if proc::is_cgroup_v2() { &["v2"][..] } else { &["v2", "hybrid"] };
    let mut all = true;
    for mode in modes {
        println!("on a machine of its own, cgroups {mode}:");
        all &= Command::new(&script).arg(mode).arg(std::env::current_exe()?).args(std::env::args().skip(1)).status()?.success();
    }
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn unit(bundle: &Bundle) -> String {
    format!("test-{}.scope", bundle.id)
}

/// A bundle for the driver.
fn bundle(hand: &mut Hand, name: &str, args: &[&str]) -> Result<Bundle> {
    let mut bundle = hand.bundle(name, args)?;
    let path = format!("{SLICE}:test:{}", bundle.id);
    bundle.edit(|spec| spec["linux"]["cgroupsPath"] = json!(path))?;
    Ok(bundle)
}

fn create(shim: &Shim, bundle: &Bundle) -> Result<Answer<u32>> {
    let mut options = proto::shim::oci::Options::new();
    options.systemd_cgroup = true;
    create_as(shim, bundle, "containerd.runc.v1.Options", options.write_to_bytes()?)
}

/// A container that runs.
fn running(hand: &mut Hand, name: &str, change: impl FnOnce(&mut Value)) -> Result<(Bundle, Shim, u32)> {
    let mut bundle = bundle(hand, name, &["sleep", "1000"])?;
    bundle.edit(change)?;
    let shim = hand.shim(&bundle)?;
    let pid = create(&shim, &bundle)??;
    shim.start(&bundle.id, "")?;
    Ok((bundle, shim, pid))
}

fn end(shim: &Shim, bundle: &Bundle) -> Result<()> {
    shim.kill(&bundle.id, "", 9)?;
    shim.wait(&bundle.id, "")?;
    shim.delete(&bundle.id, "")?;
    expect_no_unit(bundle)?;
    shim.shutdown(&bundle.id)
}

fn systemctl(args: &[&str]) -> Result<String> {
    command::output(Command::new("systemctl").args(["--no-pager", "--no-ask-password"]).args(args)).map(|text| text.trim().to_owned())
}

fn property(unit: &str, name: &str) -> Result<String> {
    systemctl(&["show", "--value", "-p", name, unit])
}

/// What a unit that nobody has loaded looks like.
fn expect_no_unit(bundle: &Bundle) -> Result<()> {
    let listed = || systemctl(&["list-units", "--all", "--plain", "--no-legend", &unit(bundle)]);
    ensure_eq!(listed()?, "", "units after the end");
    Ok(())
}

/// Where the tree of version 2 is.
fn tree() -> &'static str {
    if proc::is_cgroup_v2() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/unified" }
}

fn cgroup_of(pid: u32) -> Result<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    path.map(str::to_owned).context(|| format!("no cgroup of version 2 in {text:?}"))
}

fn life_of_a_scope(hand: &mut Hand) -> Result<()> {
    let bundle = bundle(hand, "a", &["sleep", "1000"])?;
    let shim = hand.shim(&bundle)?;
    let pid = create(&shim, &bundle)??;
    let unit = unit(&bundle);
    let place = format!("/coracletest.slice/{SLICE}/{unit}");
    ensure_eq!(cgroup_of(pid)?, place, "cgroup of the first process");
    let inside = std::fs::read_to_string(format!("{}{place}/cgroup.procs", tree()))?;
    ensure_eq!(inside.trim(), pid.to_string(), "processes of the scope");
    for (name, value) in [
        ("Slice", SLICE),
        ("Delegate", "yes"),
        ("ActiveState", "active"),
        ("DefaultDependencies", "no"),
        ("CollectMode", "inactive-or-failed"),
        ("TasksAccounting", "yes"),
        ("Transient", "yes"),
        ("ControlGroup", place.as_str()),
        ("Description", format!("Coracle container {}", bundle.id).as_str()),
    ] {
        ensure_eq!(property(&unit, name)?, value, "{name}");
    }
    shim.start(&bundle.id, "")?;
    ensure!(systemctl(&["status", &unit])?.contains("sleep 1000"), "systemctl status does not show the container's process");
    end(&shim, &bundle)
}

fn exec_pause_and_stats_in_a_scope(hand: &mut Hand) -> Result<()> {
    let (bundle, shim, pid) = running(hand, "a", |_| {})?;
    shim.exec(&bundle.id, "e", &["sleep", "1000"])?;
    let exec = shim.start(&bundle.id, "e")?;
    ensure_eq!(cgroup_of(exec)?, cgroup_of(pid)?, "cgroup of the exec'd process");
    shim.pause(&bundle.id)?;
    ensure_eq!(shim.state(&bundle.id, "")?.status.value(), 4, "status PAUSED");
    shim.resume(&bundle.id)?;
    ensure!(!shim.stats(&bundle.id)?.value.is_empty(), "no statistics");
    ensure_eq!(shim.pids(&bundle.id)?.len(), 2, "processes");
    shim.kill(&bundle.id, "e", 9)?;
    shim.wait(&bundle.id, "e")?;
    shim.delete(&bundle.id, "e")?;
    end(&shim, &bundle)
}

fn path_and_driver_must_fit(hand: &mut Hand) -> Result<()> {
    let mut bundle = bundle(hand, "a", &["true"])?;
    let shim = hand.shim(&bundle)?;
    let path = format!("{SLICE}:test:{}", bundle.id);
    for text in [path.as_str(), "SystemdCgroup"] {
        refused(create_with_toml(&shim, &bundle, "SystemdCgroup = false\n")?, Code::INVALID_ARGUMENT, text)?;
    }
    for wrong in ["/a/plain/path", "a.slice:b", "a.slice:b:c:d", "not-a-slice:b:c", "a.slice:b:../c", "a--b.slice:x:y"] {
        bundle.edit(|spec| spec["linux"]["cgroupsPath"] = json!(wrong))?;
        refused(create(&shim, &bundle)?, Code::INVALID_ARGUMENT, &format!("cgroupsPath {wrong:?}"))?;
    }
    ensure!(!Path::new(tree()).join("coracletest.slice").join(SLICE).join(unit(&bundle)).exists(), "a cgroup was made");
    shim.shutdown(&bundle.id)
}

/// As Docker has it, which hands its driver on to runc only.
fn the_path_says_who_where_nobody_does(hand: &mut Hand) -> Result<()> {
    let bundle = bundle(hand, "a", &["sleep", "1000"])?;
    let shim = hand.shim(&bundle)?;
    let pid = shim.create(create_request(&bundle)?)?.pid;
    ensure_eq!(cgroup_of(pid)?, format!("/coracletest.slice/{SLICE}/{}", unit(&bundle)), "cgroup of the first process");
    shim.start(&bundle.id, "")?;
    end(&shim, &bundle)
}

/// Somebody else's scope, which has the name and stays as it is.
fn a_name_that_is_taken(hand: &mut Hand) -> Result<()> {
    for (name, slice) in [("a", SLICE), ("b", "system.slice")] {
        let bundle = bundle(hand, name, &["sleep", "1000"])?;
        let unit = unit(&bundle);
        let slice = format!("--slice={slice}");
        let mut other = Command::new("systemd-run").args(["--quiet", "--scope", &slice, "--unit", &unit, "sleep", "1000"]).spawn()?;
        eventually("the scope is there", SOON, || property(&unit, "ActiveState").is_ok_and(|state| state == "active"))?;
        let shim = hand.shim(&bundle)?;
        let status = create(&shim, &bundle)?.err().context(|| "the name was not found to be taken".to_owned())?;
        ensure!(status.message.contains(&unit), "{status}");
        ensure!([Code::ALREADY_EXISTS, Code::FAILED_PRECONDITION].contains(&status.code), "{status}");
        ensure_eq!(property(&unit, "ActiveState")?, "active", "the other scope");
        ensure!(other.try_wait()?.is_none(), "the other one's process has ended");
        shim.shutdown(&bundle.id)?;
        other.kill()?;
        other.wait()?;
        eventually("the other scope is gone", SOON, || expect_no_unit(&bundle).is_ok())?;
    }
    Ok(())
}

fn a_failed_unit_of_the_name(hand: &mut Hand) -> Result<()> {
    let bundle = bundle(hand, "a", &["sleep", "1000"])?;
    let unit = unit(&bundle);
    let mut other = Command::new("systemd-run");
    other.args(["--quiet", "--scope", "-p", "RuntimeMaxSec=1", "-p", "CollectMode=inactive", "--unit", &unit, "sleep", "1000"]);
    let _ = other.status()?;
    eventually("the unit has failed", SOON, || property(&unit, "ActiveState").is_ok_and(|state| state == "failed"))?;
    let shim = hand.shim(&bundle)?;
    create(&shim, &bundle)??;
    ensure_eq!(property(&unit, "Slice")?, SLICE, "slice");
    shim.start(&bundle.id, "")?;
    end(&shim, &bundle)
}

/// systemd writes its own device policy anew, and the container's stays in force.
fn devices_after_a_reload(hand: &mut Hand) -> Result<()> {
    let (bundle, shim, pid) = running(hand, "a", |_| {})?;
    let unit = unit(&bundle);
    ensure_eq!(property(&unit, "DevicePolicy")?, "strict", "DevicePolicy");
    ensure!(property(&unit, "DeviceAllow")?.contains("/dev/char/1:3 rwm"), "{}", property(&unit, "DeviceAllow")?);
    // A number that no driver has: who may open it is told that it is not there.
    let script = "cat /dev/null && head -c1 /dev/zero >/dev/null && mknod /k c 240 7 && cat /k 2>&1 | grep 'not permitted' && rm /k";
    let check = |exec: &str| -> Result<()> {
        shim.exec(&bundle.id, exec, &["sh", "-c", script])?;
        shim.start(&bundle.id, exec)?;
        let status = shim.wait(&bundle.id, exec)?.exit_status;
        shim.delete(&bundle.id, exec)?;
        ensure_eq!(status, 0, "devices");
        Ok(())
    };
    check("before")?;
    let places = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    systemctl(&["daemon-reload"])?;
    check("after")?;
    ensure_eq!(std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?, places, "cgroups after a reload");
    let rule = json!({"allow": true, "type": "c", "major": 240, "minor": 7, "access": "r"});
    let mut devices = bundle.spec["linux"]["resources"]["devices"].as_array().cloned().unwrap_or_default();
    devices.push(rule);
    shim.update_to(&bundle.id, &json!({ "devices": devices }))?;
    ensure!(property(&unit, "DeviceAllow")?.contains("/dev/char/240:7 r"), "{}", property(&unit, "DeviceAllow")?);
    systemctl(&["daemon-reload"])?;
    shim.exec(&bundle.id, "e", &["sh", "-c", "mknod /k c 240 7 && cat /k 2>&1 | grep 'No such device'"])?;
    shim.start(&bundle.id, "e")?;
    ensure_eq!(shim.wait(&bundle.id, "e")?.exit_status, 0, "a device that was allowed later");
    shim.delete(&bundle.id, "e")?;
    end(&shim, &bundle)
}

fn a_failed_create_leaves_no_scope(hand: &mut Hand) -> Result<()> {
    let mut bundle = bundle(hand, "a", &["/no/such/program"])?;
    let shim = hand.shim(&bundle)?;
    ensure!(create(&shim, &bundle)?.is_err(), "created without a program");
    expect_no_unit(&bundle)?;
    bundle.edit(|spec| spec["linux"]["resources"]["unified"] = json!({"nosuch.file": "1"}))?;
    ensure!(create(&shim, &bundle)?.is_err(), "created with a limit that no kernel has");
    expect_no_unit(&bundle)?;
    shim.shutdown(&bundle.id)
}

/// The launcher ends what its daemon has left.
fn killed_daemon(hand: &mut Hand) -> Result<()> {
    let (bundle, shim, pid) = running(hand, "a", |_| {})?;
    signal(daemon(&shim, &bundle.id)?, Signal::KILL)?;
    eventually("the container is gone", SOON, || proc::process(pid).is_none())?;
    eventually("the scope is gone", SOON, || expect_no_unit(&bundle).is_ok())?;
    hand.launch(|launch| launch.delete(&bundle.dir, &bundle.id))?;
    Ok(())
}

/// And `delete` what both have.
fn killed_daemon_and_launcher(hand: &mut Hand) -> Result<()> {
    let (bundle, shim, pid) = running(hand, "a", |_| {})?;
    let daemon = daemon(&shim, &bundle.id)?;
    // The launcher first, or it would begin with its work.
    for pid in hand.shim_pids().into_iter().filter(|pid| *pid != daemon).chain([daemon]) {
        signal(pid, Signal::KILL)?;
    }
    eventually("the shim is gone", SOON, || hand.shim_pids().is_empty())?;
    ensure_eq!(property(&unit(&bundle), "ActiveState")?, "active", "the scope that nobody supervises");
    let answer = hand.launch(|launch| launch.delete(&bundle.dir, &bundle.id))?;
    ensure_eq!((answer.pid, answer.exit_status), (pid, 137), "answer of delete");
    expect_no_unit(&bundle)?;
    Ok(())
}

fn annotations_only_where_the_operator_allows(hand: &mut Hand) -> Result<()> {
    for (name, options, expected) in
        [("a", "SystemdCgroup = true\n", "1min 30s"), ("b", "SystemdCgroup = true\nSystemdProperties = true\n", "7s")]
    {
        let mut bundle = bundle(hand, name, &["sleep", "1000"])?;
        bundle.edit(|spec| spec["annotations"] = json!({"org.systemd.property.TimeoutStopSec": "uint64 7"}))?;
        let shim = hand.shim(&bundle)?;
        create_with_toml(&shim, &bundle, options)??;
        ensure_eq!(property(&unit(&bundle), "TimeoutStopUSec")?, expected, "{options}");
        shim.start(&bundle.id, "")?;
        end(&shim, &bundle)?;
    }
    let mut bundle = bundle(hand, "c", &["true"])?;
    let shim = hand.shim(&bundle)?;
    let options = "SystemdCgroup = true\nsystemd_properties = true\n";
    for (annotation, value) in [("PIDs", "[uint32 1]"), ("TimeoutStopSec", "'x"), ("Slice", "'system.slice'")] {
        let key = format!("org.systemd.property.{annotation}");
        bundle.edit(|spec| spec["annotations"] = json!({ key.clone(): value }))?;
        refused(create_with_toml(&shim, &bundle, options)?, Code::INVALID_ARGUMENT, &format!("org.systemd.property.{annotation:?}"))?;
    }
    bundle.edit(|spec| spec["annotations"] = json!({"org.systemd.property.NoSuchThing": "true"}))?;
    let unknown = create_with_toml(&shim, &bundle, options)?;
    ensure!(unknown.as_ref().is_err_and(|status| status.message.contains("NoSuchThing")), "{unknown:?}");
    expect_no_unit(&bundle)?;
    shim.shutdown(&bundle.id)
}

/// The daemon's connection is lost, and it finds both again.
fn systemd_and_its_bus_start_anew(hand: &mut Hand) -> Result<()> {
    let (first, shim, _) = running(hand, "a", |_| {})?;
    systemctl(&["daemon-reexec"])?;
    shim.update_to(&first.id, &json!({ "devices": first.spec["linux"]["resources"]["devices"] }))?;
    if std::env::var_os("CORACLE_SYSTEMD_BED").is_some() {
        // A machine's own bus is not to be restarted.
        systemctl(&["restart", "dbus.service"])?;
    }
    end(&shim, &first)
}

/// A hundred containers of one daemon, begun at the same time.
fn many_at_once(hand: &mut Hand) -> Result<()> {
    let group = hand.watch("group");
    let mut bundles = Vec::new();
    for number in 0..MANY {
        let mut bundle = bundle(hand, &format!("n{number}"), &["sleep", "1000"])?;
        bundle.edit(|spec| spec["annotations"] = json!({"io.kubernetes.cri.sandbox-id": group}))?;
        bundles.push(bundle);
    }
    let answer = hand.launch(|launch| launch.start(&bundles[0].dir, &bundles[0].id))?;
    let shim = Shim::connect(&answer.address, answer.version)?.limited(Duration::from_secs(120));
    let each = |work: &(dyn Fn(&Bundle) -> Result<()> + Sync)| -> Result<()> {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                bundles.iter().map(|bundle| scope.spawn(move || work(bundle).map_err(|error| error.to_string()))).collect();
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => fail!("{error}"),
                Err(_) => fail!("a thread has panicked"),
            })
        })
    };
    each(&|bundle| {
        create(&shim, bundle)??;
        Ok(shim.start(&bundle.id, "").map(drop)?)
    })?;
    let pattern = format!("test-*{}*", &bundles[0].id[..bundles[0].id.len() - 2]);
    let list = || systemctl(&["list-units", "--all", "--plain", "--no-legend", &pattern]);
    ensure_eq!(list()?.lines().filter(|line| line.contains(" running ")).count(), MANY, "scopes that run");
    each(&|bundle| {
        shim.kill(&bundle.id, "", 9)?;
        shim.wait(&bundle.id, "")?;
        Ok(shim.delete(&bundle.id, "").map(drop)?)
    })?;
    ensure_eq!(list()?, "", "scopes that are left");
    shim.shutdown(&bundles[0].id)
}

fn limits_live_and_after_a_reload(hand: &mut Hand) -> Result<()> {
    let limits = json!({
        "memory": {"limit": 64 << 20, "reservation": 32 << 20},
        "cpu": {"shares": 2048, "quota": 20_000, "period": 50_000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 20},
    });
    let (bundle, shim, pid) = running(hand, "a", |spec| {
        for (field, value) in limits.as_object().into_iter().flatten() {
            spec["linux"]["resources"][field] = value.clone();
        }
    })?;
    let place = cgroup_of(pid)?;
    let expect = |values: &[(&str, &str, &str, &str)]| -> Result<()> {
        for (v2, value, controller, v1) in values {
            let file = if proc::is_cgroup_v2() {
                format!("/sys/fs/cgroup{place}/{v2}")
            } else {
                format!("/sys/fs/cgroup/{controller}{place}/{v1}")
            };
            let found = std::fs::read_to_string(&file).context(|| file.clone())?;
            let value = if proc::is_cgroup_v2() { *value } else { value.split(' ').next().unwrap_or_default() };
            ensure_eq!(found.trim(), value, "{file}");
        }
        Ok(())
    };
    let first = [
        ("memory.max", "67108864", "memory", "memory.limit_in_bytes"),
        ("cpu.max", "20000 50000", "cpu", "cpu.cfs_quota_us"),
        ("cpuset.cpus", "0", "cpuset", "cpuset.cpus"),
        ("pids.max", "20", "pids", "pids.max"),
    ];
    let only_v2 = [("memory.low", "33554432", "", ""), ("cpu.weight", "174", "", "")];
    let only_v2 = if proc::is_cgroup_v2() { &only_v2[..] } else { &[] };
    expect(&first)?;
    expect(only_v2)?;
    systemctl(&["daemon-reload"])?;
    expect(&first)?;
    let unit = unit(&bundle);
    ensure_eq!(property(&unit, if proc::is_cgroup_v2() { "MemoryMax" } else { "MemoryLimit" })?, "67108864", "limit of memory");
    shim.update_to(&bundle.id, &json!({"memory": {"limit": 96 << 20}, "cpu": {"quota": 10_000}, "pids": {"limit": 30}}))?;
    let second = [
        ("memory.max", "100663296", "memory", "memory.limit_in_bytes"),
        ("cpu.max", "10000 50000", "cpu", "cpu.cfs_quota_us"),
        ("pids.max", "30", "pids", "pids.max"),
    ];
    expect(&second)?;
    expect(only_v2)?;
    ensure_eq!(property(&unit, "TasksMax")?, "30", "TasksMax");
    systemctl(&["daemon-reload"])?;
    // A property of the slice makes systemd write the files of all that is in it.
    systemctl(&["set-property", "--runtime", SLICE, "CPUWeight=200"])?;
    expect(&second)?;
    expect(only_v2)?;
    end(&shim, &bundle)
}

/// The process that keeps a scope until the container's own one is inside does not count.
fn no_room_for_a_second_process(hand: &mut Hand) -> Result<()> {
    let (bundle, shim, pid) = running(hand, "a", |spec| spec["linux"]["resources"]["pids"] = json!({"limit": 1}))?;
    let pids = if proc::is_cgroup_v2() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" };
    let limit = std::fs::read_to_string(format!("{pids}{}/pids.max", cgroup_of(pid)?))?;
    ensure_eq!(limit.trim(), "1", "pids.max");
    end(&shim, &bundle)
}
