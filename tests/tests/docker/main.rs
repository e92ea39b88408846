//! Docker Engine on Coracle: a walk through what people do with it, which must print what it prints on Docker's own runc.

mod engine;

use std::fs;
use std::process::{Command, ExitCode};
use std::time::Duration;

use tests::oci::{self, Entry, Oci};
use tests::{Context, Failure, Result, command, ensure, ensure_eq, netns, suite};

use engine::{Engine, Runtime};

const STEP: Duration = Duration::from_secs(90);

fn main() -> ExitCode {
    const CASES: &[Entry] = &[("walk", walk), ("chosen_per_container", chosen_per_container), ("with_userns_remap", with_userns_remap)];
    netns::on_a_host_of_its_own(|_| Ok(()), || suite::main_of(oci::named("docker", CASES)))
}

/// A line of `walk.txt`.
struct Step {
    code: i32,
    sign: Sign,
    script: &'static str,
}

/// What is asked of Docker's own runc.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    /// To print the same, and to end so.
    Same,
    /// To end so.
    Ends,
    /// The same, but nothing with systemd's cgroup driver.
    Chance,
}

fn steps() -> Result<Vec<Step>> {
    let lines = include_str!("walk.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.splitn(3, ' ');
            let mut step = || Some((words.next()?.parse().ok()?, words.next()?, words.next()?));
            let (code, sign, script) = step().context(|| format!("walk.txt: {line}"))?;
            let sign = match sign {
                "=" => Sign::Same,
                "~" => Sign::Ends,
                "+" => Sign::Chance,
                _ => return Err(Failure(format!("walk.txt: {line}"))),
            };
            Ok(Step { code, sign, script })
        })
        .collect()
}

fn walk(oci: &Oci) -> Result<()> {
    let steps = steps()?;
    let told = |runtime| -> Result<Vec<(i32, String)>> {
        let engine = Engine::start(oci, runtime)?;
        let told = steps.iter().map(|step| one(&engine, step)).collect::<Result<Vec<_>>>()?;
        ensure_eq!(engine.runs_of_runc()?, "", "runs of runc during the walk");
        engine.stop()?;
        Ok(told)
    };
    let (theirs, ours) = (told(Runtime::Runc)?, told(Runtime::Coracle)?);
    let mut wrong = Vec::new();
    for (step, (theirs, ours)) in steps.iter().zip(theirs.iter().zip(&ours)) {
        let same = match step.sign {
            Sign::Same => theirs == ours,
            Sign::Ends => theirs.0 == ours.0,
            Sign::Chance => theirs == ours || suite::by_systemd(),
        };
        if !same || ours.0 != step.code {
            let [theirs, ours] = [theirs, ours].map(|(code, text)| format!("{code} {text}"));
            wrong.push(format!("{} {}\n  on runc: {theirs}  on coracle: {ours}", step.code, step.script));
        }
    }
    ensure!(wrong.is_empty(), "not as it should be:\n{}", wrong.join("\n"));
    println!("{} commands", steps.len());
    Ok(())
}

/// What a command ends with, and what it prints.
fn one(engine: &Engine<'_>, step: &Step) -> Result<(i32, String)> {
    let mut shell = Command::new("bash");
    shell.args(["-c", step.script]);
    let done = command::run_for(engine.within(&mut shell), STEP).context(|| step.script.to_owned())?;
    Ok((done.code, engine.without_ids(&format!("{}{}", done.stdout, done.stderr))))
}

/// By its runtime type, and by a name that the engine's configuration gives it.
fn chosen_per_container(oci: &Oci) -> Result<()> {
    let engine = Engine::start(oci, Runtime::Runc)?;
    for runtime in ["io.containerd.coracle.v2", "coracle"] {
        engine.docker(&["run", "-d", "--name", "one", "--runtime", runtime, "bb", "sleep", "1000"])?;
        let pid = engine.docker(&["inspect", "-f", "{{.State.Pid}}", "one"])?;
        let parent = engine.supervisor(pid.trim())?;
        ensure!(parent.contains("containerd-shim-coracle-v2"), "{runtime}: supervised by {parent}");
        ensure_eq!(engine.docker(&["exec", "one", "echo", "in"])?, "in\n", "exec");
        engine.docker(&["rm", "-f", "one"])?;
    }
    let path = engine.docker(&["run", "--rm", "--runtime", "coracle-cli", "bb", "echo", "by path"])?;
    ensure_eq!(path, "by path\n", "the OCI command line in runc's place");
    engine.stop()
}

/// This engine gives a container its network by a prestart hook.
fn with_userns_remap(oci: &Oci) -> Result<()> {
    let ranges = oci.data().join("ranges");
    fs::write(&ranges, "daemon:1000000:65536\n")?;
    // In a mount namespace of the suite's own.
    for file in ["/etc/subuid", "/etc/subgid"] {
        rustix::mount::mount_bind(&ranges, file).context(|| file.to_owned())?;
    }
    let engine = Engine::start_with(oci, Runtime::Coracle, &["--userns-remap", "daemon"])?;
    for runtime in ["coracle", "coracle-cli"] {
        let run = |script: &str| engine.docker(&["run", "--rm", "--runtime", runtime, "bb", "sh", "-c", script]);
        let map = run("cat /proc/self/uid_map")?;
        ensure_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "1000000", "65536"], "{runtime}: ids");
        ensure!(run("ls /sys/class/net")?.contains("eth0"), "{runtime}: no network");
    }
    engine.stop()?;
    for file in ["/etc/subuid", "/etc/subgid"] {
        rustix::mount::unmount(file, rustix::mount::UnmountFlags::DETACH)?;
    }
    Ok(())
}
