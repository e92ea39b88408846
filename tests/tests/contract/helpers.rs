//! Root filesystems that a mount helper makes (`fuse3.*`): the helper is a script, in a mount namespace of the shim's own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proto::api::CreateTaskRequest;
use proto::types::mount::Mount;
use rustix::process::Signal;
use tests::bundle::{Bundle, system};
use tests::command::signal;
use tests::containerd::eventually;
use tests::hand::Hand;
use tests::requests::{around, create_request, daemon, end, exec_ran, expect_nothing_of, files_of, shim_by};
use tests::rpc::{Shim, refused};
use tests::{Context, Result, ensure, ensure_eq, proc};
use ttrpc::Code;

use crate::SOON;
use crate::fuse_server::{SERVER, SILENT};

/// A shim that finds the script as `mount.fuse3`.
fn shim(hand: &Hand, bundle: &Bundle, script: &str) -> Result<Shim> {
    let place = hand.data().join("helpers");
    fs::create_dir_all(&place)?;
    let helper = place.join("mount.fuse3");
    fs::write(&helper, format!("#!/bin/sh\n{script}\n"))?;
    fs::set_permissions(&helper, PermissionsExt::from_mode(0o755))?;
    let enter = format!("mount --bind {} /usr/local/sbin && exec \"$0\" \"$@\"", place.display());
    shim_by(hand, bundle, |start| around("unshare", &["--mount", "--propagation", "private", "/bin/sh", "-c", &enter], &start))
}

fn request(bundle: &Bundle) -> Result<CreateTaskRequest> {
    let mut mount = Mount::new();
    mount.type_ = "fuse3.test".to_owned();
    mount.source = system()?.display().to_string();
    mount.options = vec!["rw".to_owned()];
    let mut request = create_request(bundle)?;
    request.rootfs = vec![mount];
    Ok(request)
}

/// Leaves a process behind that never ends by itself, named by `word`.
fn with_server(word: &str) -> String {
    format!("mount -t tmpfs fake \"$2\" && cp -a \"$1\"/. \"$2\" && (exec setsid /bin/busybox sh -c 'sleep 100000; : {word}' &)")
}

fn servers(word: &str) -> Vec<u32> {
    let server = |process: &proc::Process| process.name == "busybox" && process.command_line.contains(word);
    proc::all().into_iter().filter(server).map(|process| process.pid).collect()
}

fn running(hand: &mut Hand) -> Result<(Bundle, Shim, String)> {
    let bundle = hand.bundle("a", &["sleep", "1000"])?;
    let word = format!("server-of-{}", bundle.id);
    let shim = shim(hand, &bundle, &with_server(&word))?;
    shim.create(request(&bundle)?)?;
    shim.start(&bundle.id, "")?;
    Ok((bundle, shim, word))
}

pub fn root_by_a_helper(hand: &mut Hand) -> Result<()> {
    let (bundle, shim, word) = running(hand)?;
    ensure_eq!(servers(&word).len(), 1, "servers");
    let mounted = fs::read_to_string(format!("/proc/{}/mountinfo", daemon(&shim, &bundle.id)?))?;
    ensure!(!mounted.contains(&bundle.id), "in the shim's mount table: {mounted}");
    let script = "test -e /bin/busybox && touch /new && grep -q ' / / .* tmpfs fake' /proc/1/mountinfo";
    ensure_eq!(exec_ran(&shim, &bundle, "e", &tests::bundle::process(&["sh", "-c", script]))?, 0, "an exec");
    ensure_eq!(shim.pids(&bundle.id)?.len(), 1, "processes of the container");
    end(&shim, &bundle)?;
    ensure_eq!(servers(&word).len(), 0, "servers after Delete");
    ensure_eq!(fs::read_dir(bundle.dir.join("rootfs"))?.count(), 0, "files below the root's place");
    shim.shutdown(&bundle.id)
}

pub fn that_fail_or_hang(hand: &mut Hand) -> Result<()> {
    let bundle = hand.bundle("a", &["sleep", "1000"])?;
    let shim = shim(hand, &bundle, "echo no such thing >&2; exit 3")?;
    let files = files_of(&bundle)?;
    let text = "rootfs fuse3.test: mount helper mount.fuse3: exit status 3: no such thing";
    refused(shim.create(request(&bundle)?), Code::UNKNOWN, text)?;
    expect_nothing_of(&bundle, &files)?;

    let entered = hand.dir().join("entered");
    let helper: PathBuf = hand.data().join("helpers/mount.fuse3");
    fs::write(&helper, format!("#!/bin/sh\necho >{}\nsleep 1000 & wait\n", entered.display()))?;
    std::thread::scope(|scope| -> Result<()> {
        let request = request(&bundle)?;
        let creating = scope.spawn(|| shim.create(request));
        eventually("the helper runs", SOON, || entered.exists())?;
        let began = Instant::now();
        refused(shim.delete(&bundle.id, ""), Code::NOT_FOUND, &bundle.id)?;
        refused(creating.join().ok().context(|| "Create panicked".to_owned())?, Code::UNKNOWN, "deleted")?;
        ensure!(began.elapsed() < Duration::from_secs(3), "giving up took {:?}", began.elapsed());
        Ok(())
    })?;
    expect_nothing_of(&bundle, &files)?;

    fs::remove_file(&helper)?;
    // A host that has fuse3 has its helper in a later place, and that one knows no such type.
    let installed = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().any(|place| Path::new(place).join("mount.fuse3").exists());
    let (code, words) = match installed {
        true => (Code::UNKNOWN, "mount helper mount.fuse3: exit status"),
        false => (Code::FAILED_PRECONDITION, "mount helper \"mount.fuse3\" is not in /usr/local/sbin:"),
    };
    refused(shim.create(request(&bundle)?), code, words)?;
    shim.shutdown(&bundle.id)
}

/// A process that waits for it cannot be killed: the server has to be.
pub fn whose_server_is_silent(hand: &mut Hand) -> Result<()> {
    let bundle = hand.bundle("a", &["cat", "/mnt/nosuch"])?;
    let program = std::env::current_exe()?.display().to_string();
    let shim = shim(hand, &bundle, &format!("exec {program} {SERVER} \"$@\" {}", bundle.id))?;
    let mut mounts = request(&bundle)?.rootfs;
    mounts[0].target = "/mnt".to_owned();
    mounts[0].options = vec![SILENT.to_owned()];
    let mut request = create_request(&bundle)?;
    request.rootfs.append(&mut mounts);
    shim.create(request)?;
    let pid = shim.start(&bundle.id, "")?;
    eventually("it waits", SOON, || proc::process(pid).is_some_and(|process| process.state == 'S' && process.name == "cat"))?;
    shim.kill(&bundle.id, "", 9)?;
    ensure_eq!(shim.wait(&bundle.id, "")?.exit_status, 137, "status");
    shim.delete(&bundle.id, "")?;
    shim.shutdown(&bundle.id)
}

pub fn of_a_dead_daemon(hand: &mut Hand) -> Result<()> {
    let (bundle, shim, word) = running(hand)?;
    signal(daemon(&shim, &bundle.id)?, Signal::KILL)?;
    let answer = hand.launch(|launch| launch.delete(&bundle.dir, &bundle.id))?;
    ensure_eq!(answer.exit_status, 137, "status by delete");
    eventually("the server is gone", SOON, || servers(&word).is_empty())
}
