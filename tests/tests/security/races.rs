//! Paths that change while the runtime walks them: another container, played by a thread, exchanges a directory or a device of a shared
//! volume with a link that leads to the host, as often as it can. Create may fail, cleanly; nothing outside may be reached.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, RenameFlags, makedev, mknodat, renameat_with};
use rustix::process::{Signal, WaitOptions};
use serde_json::{Value, json};
use tests::bed::Bed;
use tests::bundle::Bundle;
use tests::footprint::Shims;
use tests::hand::Hand;
use tests::requests::{Ran, daemon, end};
use tests::{Context, Result, ensure, ensure_eq, fail, proc, wait};

use crate::rootfs::{Canary, without};

/// Containers that are created while nothing slows the runtime down, and while something does.
const ROUNDS: usize = 150;
const STRETCHED_ROUNDS: usize = 8;

/// Exchanges two names until it is dropped.
struct Racer {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Racer {
    fn start(one: &Path, other: &Path) -> Racer {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&count));
        let (one, other) = (one.to_owned(), other.to_owned());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Racer { stop, count, thread: Some(thread) }
    }

    fn exchanges(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Holds up each system call by which a launcher and its children walk and attach, so that the windows between them are wide.
struct Slowness(Child);

impl Slowness {
    const CALLS: &str = "openat2,open_tree,move_mount,mkdirat,openat,mknodat";

    fn of(launcher: u32) -> Result<Slowness> {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={}", Self::CALLS)]);
        strace.args(["-e", &format!("inject={}:delay_exit=3000", Self::CALLS), "-p", &launcher.to_string()]);
        let child = strace.stdin(Stdio::null()).spawn().context(|| "strace".to_owned())?;
        let traced = || {
            let status = fs::read_to_string(format!("/proc/{launcher}/status")).unwrap_or_default();
            status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0")).then_some(())
        };
        let slowness = Slowness(child);
        wait::until(Duration::from_secs(5), traced).context(|| "strace does not attach".to_owned())?;
        Ok(slowness)
    }
}

impl Drop for Slowness {
    fn drop(&mut self) {
        // At SIGTERM it lets go of what it traces.
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, Signal::TERM);
        let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
    }
}

/// What became of the containers of a race.
#[derive(Debug, Default)]
struct Outcome {
    ran: usize,
    refused: usize,
}

/// Creates the container of `bundle` again and again; `check` looks at each that there is.
fn race(bed: &mut Bed<'_>, bundle: &Bundle, rounds: usize, mut check: impl FnMut(u32) -> Result<()>) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for _ in 0..rounds {
        match bed.create(bundle) {
            Ok(pid) => {
                outcome.ran += 1;
                let checked = check(pid);
                bed.end(bundle)?;
                checked?;
            }
            Err(_) => outcome.refused += 1,
        }
    }
    Ok(outcome)
}

/// A volume with a directory `x`, and beside it a link to the host's tree that takes its place.
struct Volume(PathBuf);

impl Volume {
    fn new(dir: &Path, target: &str) -> Result<Volume> {
        let dir = dir.join("volume");
        fs::create_dir_all(dir.join("x"))?;
        symlink(target, dir.join("x.lnk"))?;
        Ok(Volume(dir))
    }

    fn race(&self) -> Racer {
        Racer::start(&self.0.join("x"), &self.0.join("x.lnk"))
    }

    fn is_link(&self) -> bool {
        self.0.join("x").is_symlink()
    }
}

/// The racer itself: what walks by strings is caught by it. Without this the others would prove nothing.
pub fn a_walk_by_strings_is_caught(hand: &mut Hand) -> Result<()> {
    let canary = Canary::new(hand.dir())?;
    let volume = Volume::new(hand.dir(), &canary.path("dev"))?;
    let racer = volume.race();
    let began = Instant::now();
    let caught = wait::until(Duration::from_secs(20), || {
        for number in 0..200 {
            let inside = volume.0.join(format!("x/n{number}"));
            // The check that such a walk would make, and what it does then.
            if !volume.is_link() {
                let _ = fs::create_dir(&inside);
            }
        }
        canary.0.join("dev").read_dir().ok()?.flatten().any(|entry| entry.file_name().as_encoded_bytes().starts_with(b"n")).then_some(())
    });
    println!("{} exchanges, caught: {} after {:?}", racer.exchanges(), caught.is_some(), began.elapsed());
    caught.context(|| "a check and a use of a path were never told apart".to_owned())
}

/// CVE-2021-30465, CVE-2024-45310: mount points below a directory of a volume that is exchanged with a link.
fn volume_paths(bed: &mut Bed<'_>, rounds: usize, stretched: bool) -> Result<()> {
    let canary = Canary::new(bed.dir())?;
    let volume = Volume::new(bed.dir(), &canary.path(""))?;
    let source = bed.dir().join("source");
    fs::create_dir_all(source.join("below"))?;
    let mut bundle = bed.bundle("a", &["sleep", "1000"])?;
    if stretched {
        // The shim of a first container is what is held up.
        bed.running(&bundle)?;
        bed.end(&bundle)?;
    }
    bundle.edit(|spec| add_mounts(spec, &volume.0, &source))?;
    let before = canary.state()?;
    let slowness = match bed.shim() {
        Some(shim) if stretched => Some(Slowness::of(Shims::of_daemon(daemon(shim, &bundle.id)?)?.launcher)?),
        _ => None,
    };
    let racer = volume.race();
    let outcome = race(bed, &bundle, rounds, |pid| {
        let table = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
        // By its name below the root of the container such a path may be a mount point: there it is the container's own.
        let of_host = |line: &str| line.split(' ').nth(3).is_some_and(|root| root.contains("canary"));
        ensure!(!table.lines().any(of_host), "the host's tree is mounted in the container: {table}");
        Ok(())
    });
    let exchanges = racer.exchanges();
    drop((racer, slowness));
    let outcome = outcome?;
    println!("{outcome:?}, {exchanges} exchanges");
    ensure_eq!(canary.state()?, before, "the host's tree");
    ensure!(fs::read_dir(source.join("below"))?.next().is_none(), "the source was written to");
    let mounts = proc::mounts().into_iter().filter(|mount| mount.line.contains("canary")).count();
    ensure_eq!(mounts, 0, "mounts on the host's tree");
    ensure!(exchanges > rounds as u64, "only {exchanges} exchanges in {rounds} rounds");
    // Slowed down, a walk rarely finds a path that stays.
    ensure!(stretched || outcome.ran > 0, "no container could be created at all");
    Ok(())
}

fn add_mounts(spec: &mut Value, volume: &Path, source: &Path) {
    let Some(mounts) = spec["mounts"].as_array_mut() else { return };
    mounts.push(json!({"destination": "/vol", "type": "bind", "source": volume, "options": ["rbind", "rw"]}));
    for number in 0..4 {
        let target = format!("/vol/x/new{number}/deep");
        mounts.push(json!({"destination": target, "type": "bind", "source": source, "options": ["rbind", "rw"]}));
    }
    mounts.push(json!({"destination": "/vol/x/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]}));
}

/// See [`volume_paths`].
pub fn volume_paths_that_are_exchanged(bed: &mut Bed<'_>) -> Result<()> {
    volume_paths(bed, ROUNDS, false)
}

/// The same with every step held up: the window between two of them is a thousand times as wide.
///
/// strace would not leave a command line before the container that it has made ends.
pub fn volume_paths_that_are_exchanged_slowly(hand: &mut Hand) -> Result<()> {
    Bed::with_shim(hand, |bed| volume_paths(bed, STRETCHED_ROUNDS, true))
}

/// CVE-2025-31133, CVE-2025-62161: what masks a path must not be taken from the container, whose /dev/null becomes a link to a file of procfs.
pub fn masks_while_dev_null_is_exchanged(bed: &mut Bed<'_>) -> Result<()> {
    const PATTERN: &str = "/proc/sys/kernel/core_pattern";
    let before = fs::read_to_string(PATTERN)?;
    let devices = bed.dir().join("devices");
    fs::create_dir_all(devices.join("pts"))?;
    let mode = Mode::from_raw_mode(0o666);
    mknodat(CWD, devices.join("null"), FileType::CharacterDevice, mode, makedev(1, 3))?;
    symlink(PATTERN, devices.join("null.lnk"))?;
    let script = "for f in /proc/kcore /proc/keys /proc/timer_list; do head -c 20 $f 2>/dev/null; echo '|x' >$f 2>/dev/null; done; true";
    let mut bundle = bed.bundle("a", &["sh", "-c", script])?;
    bundle.edit(|spec| {
        without(spec, &["/dev"]);
        spec["linux"]["maskedPaths"] = json!(["/proc/kcore", "/proc/keys", "/proc/timer_list"]);
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.push(json!({"destination": "/dev", "type": "bind", "source": devices, "options": ["rbind", "rw"]}));
        }
    })?;
    let racer = Racer::start(&devices.join("null"), &devices.join("null.lnk"));
    let mut outcome = Outcome::default();
    for _ in 0..ROUNDS / 3 {
        match bed.ran(&bundle) {
            Ok(Ran { stdout, .. }) => {
                ensure!(stdout.is_empty(), "a masked path could be read: {stdout:?}");
                outcome.ran += 1;
            }
            Err(_) => {
                outcome.refused += 1;
                let _ = bed.end(&bundle);
            }
        }
    }
    println!("{outcome:?}, {} exchanges", racer.exchanges());
    drop(racer);
    ensure_eq!(fs::read_to_string(PATTERN)?, before, "the host's {PATTERN}");
    ensure!(outcome.ran > 0, "no container could be created at all");
    Ok(())
}

/// CVE-2020-2024, CVE-2024-23652: at the end the bundle's root is a link to a mount of the host's, which must stay.
pub fn a_root_that_is_a_link_at_the_end(hand: &mut Hand) -> Result<()> {
    let mount = hand.dir().join("mounted");
    fs::create_dir_all(&mount)?;
    rustix::mount::mount("tmpfs", &mount, "tmpfs", rustix::mount::MountFlags::empty(), None)?;
    fs::write(mount.join("file"), "canary")?;
    let result = replaced_root(hand, &mount);
    let kept = fs::read_to_string(mount.join("file")).is_ok_and(|text| text == "canary");
    let still = proc::mounts().iter().any(|found| Path::new(&found.target) == mount);
    let _ = rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH);
    result?;
    ensure!(kept && still, "the host's mount: file kept {kept}, mounted {still}");
    Ok(())
}

fn replaced_root(hand: &mut Hand, mount: &Path) -> Result<()> {
    let (bundle, shim) = tests::requests::running(hand, &["sleep", "1000"])?;
    let root = bundle.dir.join("rootfs");
    fs::remove_dir(&root)?;
    symlink(mount, &root)?;
    let inode = fs::metadata(mount)?.ino();
    end(&shim, &bundle)?;
    shim.shutdown(&bundle.id)?;
    hand.launch(|launch| launch.delete(&bundle.dir, &bundle.id).map(drop))?;
    ensure_eq!(fs::metadata(mount)?.ino(), inode, "the mount's root");
    match fs::remove_file(&root) {
        Ok(()) => Ok(()),
        Err(error) => fail!("the link is gone: {error}"),
    }
}
