//! What the processes of a container see of the host through those that are born in their pid namespace.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use serde_json::{Value, json};
use tests::bed::Bed;
use tests::bundle::{Bundle, process};
use tests::containerd::eventually;
use tests::image::{Program, program};
use tests::{Result, ensure, ensure_eq, paths};

use crate::SOON;

/// How many processes of each kind a watcher looks at.
const COUNT: u32 = 40;

/// What only the host has: a file, an abstract socket, a mount.
struct Marks {
    secret: String,
    network: String,
    mount: String,
    _socket: UnixListener,
}

impl Marks {
    fn make(bed: &Bed<'_>) -> Result<Marks> {
        let secret = bed.data().join("secret");
        fs::write(&secret, "")?;
        let network = format!("{}-watched-{}", paths::tag(), bed.data().display());
        let socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&network)?)?;
        // "major:minor root mount-point" of the host's root.
        let own = fs::read_to_string("/proc/self/mountinfo")?;
        let mut root = own.lines().map(|line| line.splitn(6, ' ').skip(2).take(3).collect::<Vec<_>>().join(" "));
        let mount = root.rfind(|words| words.ends_with(" / /")).unwrap_or_default();
        Ok(Marks { secret: secret.display().to_string(), network, mount: format!(" {mount} "), _socket: socket })
    }
}

/// Who watches.
#[derive(Clone, Copy, PartialEq)]
enum Watcher {
    /// Root with CAP_SYS_PTRACE.
    Tracer,
    /// A user without any capability.
    User,
    /// Root of a user namespace, with CAP_SYS_PTRACE there.
    Mapped,
}

fn configure(bundle: &mut Bundle, watcher: Watcher, marks: &Marks) -> Result<()> {
    if watcher == Watcher::Mapped {
        bundle.map_users(1_000_000)?;
    }
    bundle.edit(|spec| {
        spec["process"]["args"] = json!(["/watcher", marks.secret, marks.network, marks.mount]);
        if watcher == Watcher::User {
            spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            spec["process"]["capabilities"] = json!({});
        } else if let Some(sets) = spec["process"]["capabilities"].as_object_mut() {
            sets.values_mut().filter_map(Value::as_array_mut).for_each(|set| set.push(json!("CAP_SYS_PTRACE")));
        }
    })
}

/// Runs `births` beside a watcher, which must see that something is born, and nothing of the host's.
fn watched(bed: &mut Bed<'_>, watcher: Watcher, births: impl FnOnce(&mut Bed<'_>, &Bundle, u32) -> Result<()>) -> Result<()> {
    let marks = Marks::make(bed)?;
    let name = match watcher {
        Watcher::Tracer => "tracer",
        Watcher::User => "user",
        Watcher::Mapped => "mapped",
    };
    let mut bundle = bed.bundle(name, &[])?;
    fs::copy(program(Program::Watcher, bed.data())?, bundle.written("watcher"))?;
    configure(&mut bundle, watcher, &marks)?;
    let pid = bed.running(&bundle)?;
    eventually("it watches", SOON, || bed.output(&bundle).is_ok_and(|(out, _)| out.starts_with("watching")))?;
    births(bed, &bundle, pid)?;
    bed.kill(&bundle, 15, false)?;
    bed.expect_status(&bundle, "stopped")?;
    let (seen, errors) = bed.output(&bundle)?;
    ensure_eq!(seen, "watching\nseen 1 root 0 network 0 mounts 0 descriptors 0\n", "what {name} saw, stderr {errors:?}");
    bed.end(&bundle)
}

fn execs(bed: &mut Bed<'_>, watcher: Watcher) -> Result<()> {
    watched(bed, watcher, |bed, bundle, _| {
        for number in 0..COUNT {
            let mut process = process(&["true"]);
            // With it, the filter is loaded last; without, before the capabilities go.
            process["noNewPrivileges"] = json!(number % 2 == 0);
            ensure_eq!(bed.exec(bundle, &process)?.status, 0, "status of exec {number}");
        }
        Ok(())
    })
}

pub fn execs_by_a_tracer(bed: &mut Bed<'_>) -> Result<()> {
    execs(bed, Watcher::Tracer)
}

pub fn execs_by_a_user(bed: &mut Bed<'_>) -> Result<()> {
    execs(bed, Watcher::User)
}

pub fn execs_in_a_user_namespace(bed: &mut Bed<'_>) -> Result<()> {
    execs(bed, Watcher::Mapped)
}

/// Containers that are created in the watcher's pid namespace, as those of a pod with shareProcessNamespace.
fn creates(bed: &mut Bed<'_>, watcher: Watcher) -> Result<()> {
    watched(bed, watcher, |bed, _, pid| {
        let mut member = bed.bundle("member", &["cat", "/proc/1/cmdline"])?;
        let hook = json!([{"path": "/bin/true"}]);
        for number in 0..COUNT / 4 {
            member.edit(|spec| {
                for namespace in spec["linux"]["namespaces"].as_array_mut().into_iter().flatten().filter(|found| found["type"] == "pid") {
                    namespace["path"] = json!(format!("/proc/{pid}/ns/pid"));
                }
                spec["hooks"] = if number % 2 == 0 { json!({}) } else { json!({"startContainer": hook.clone()}) };
            })?;
            let ran = bed.ran(&member)?;
            ensure!(ran.stdout.starts_with("/watcher"), "the first process that the member sees: {ran:?}");
        }
        Ok(())
    })
}

pub fn creates_by_a_tracer(bed: &mut Bed<'_>) -> Result<()> {
    creates(bed, Watcher::Tracer)
}

pub fn creates_by_a_user(bed: &mut Bed<'_>) -> Result<()> {
    creates(bed, Watcher::User)
}

/// runc#977: the namespaces of a container belong to its user namespace, so that it may mount a procfs; and what is mounted below the host's
/// procfs does not keep it from that (moby#26070).
pub fn namespaces_belong_to_the_user_namespace(bed: &mut Bed<'_>) -> Result<()> {
    let script = "mkdir -p /mnt; mount -t proc proc /mnt && mount -t sysfs sysfs /mnt && mount -t mqueue mqueue /mnt && hostname renamed && hostname";
    let mut bundle = bed.bundle("a", &["sh", "-c", script])?;
    bundle.map_users(1_000_000)?;
    bundle.edit(|spec| {
        for set in spec["process"]["capabilities"].as_object_mut().into_iter().flat_map(|sets| sets.values_mut()) {
            set.as_array_mut().into_iter().for_each(|set| set.push(json!("CAP_SYS_ADMIN")));
        }
    })?;
    let ran = bed.ran(&bundle)?;
    ensure_eq!((ran.status, ran.stdout.as_str()), (0, "renamed\n"), "{ran:?}");
    Ok(())
}
