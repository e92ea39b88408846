//! What the shim leaves on the host while a container runs: files, sockets, log lines.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tests::bundle::Bundle;
use tests::command;
use tests::hand::Hand;
use tests::requests::{around, finish, ran, running, shim_by};
use tests::rpc::refused;
use tests::{Context, Result, bundle, ensure, ensure_eq};
use ttrpc::Code;

fn socket(bundle: &Bundle) -> Result<PathBuf> {
    Ok(PathBuf::from(fs::read_to_string(bundle.dir.join("address"))?.trim().trim_start_matches("unix://")))
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::symlink_metadata(path).context(|| path.display().to_string())?.mode() & 0o7777)
}

/// CVE-2021-41103, CVE-2024-25621.
pub fn modes_whatever_the_umask(hand: &mut Hand) -> Result<()> {
    for umask in ["0", "0777", "022"] {
        let mut bundle = hand.bundle(&format!("u{umask}"), &["sh", "-c", "umask; echo >/made; ls -l /made | cut -c1-10"])?;
        let theirs: Vec<String> =
            fs::read_dir(&bundle.dir)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        let script = format!("umask {umask}; exec \"$0\" \"$@\"");
        let shim = shim_by(hand, &bundle, |start| around("/bin/busybox", &["sh", "-c", &script], &start))?;
        let seen = ran(hand, &shim, &bundle)?;
        ensure_eq!(seen.stdout, "0022\n-rw-r--r--\n", "umask inside, with {umask} outside");
        bundle.edit(|spec| spec["process"]["args"] = json!(["sleep", "1000"]))?;
        shim.create_quiet(&bundle)?;
        let mut ours = 0;
        for entry in fs::read_dir(&bundle.dir)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !theirs.contains(&name) {
                ours += 1;
                ensure_eq!(mode(&entry.path())?, 0o600, "mode of {name} with umask {umask}");
            }
        }
        ensure!(ours >= 3, "only {ours} files in the bundle");
        let socket = socket(&bundle)?;
        ensure_eq!(mode(&socket)?, 0o600, "mode of the socket with umask {umask}");
        let directory = socket.parent().context(|| "no directory".to_owned())?;
        // The common one may be of another containerd's making.
        if directory.starts_with(hand.dir()) {
            ensure_eq!(mode(directory)?, 0o700, "mode of its directory with umask {umask}");
        }
        finish(&shim, &bundle)?;
    }
    Ok(())
}

pub fn socket_is_for_one_user(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    let path = socket(&bundle)?;
    let found = fs::symlink_metadata(&path)?;
    ensure_eq!((found.uid(), found.mode() & 0o7777), (0, 0o600), "owner and mode");
    // Even with the directory open to it, a stranger is not let in.
    let mut stranger = Command::new("setpriv");
    stranger.args(["--reuid", "1000", "--regid", "1000", "--clear-groups", "/bin/busybox", "ls"]).arg(path.parent().unwrap_or(&path));
    let tried = command::run(&mut stranger)?;
    ensure!(tried.code != 0 && tried.stdout.is_empty(), "a stranger sees {:?}", tried.stdout);
    ensure_eq!(shim.state(&bundle.id, "")?.status.value(), 2, "status");
    finish(&shim, &bundle)
}

/// CVE-2025-58160: what a spec or a request brings along stays inside one line, without control characters.
pub fn log_lines_cannot_be_forged(hand: &mut Hand) -> Result<()> {
    let evil = "CAP_\u{1b}]0;title\u{7}\ntime=\"x\" level=fatal msg=forged";
    let mut bundle = hand.bundle("a", &["true"])?;
    let mut log = fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(bundle.dir.join("log"))?;
    let shim = hand.shim(&bundle)?;
    bundle.edit(|spec| {
        spec["process"]["capabilities"]["bounding"] = json!([evil]);
        spec["process"]["args"] = json!(["true", evil]);
        spec["annotations"] = json!({evil: evil});
    })?;
    ran(hand, &shim, &bundle)?;
    bundle.edit(|spec| spec["process"]["args"] = json!([evil]))?;
    let status = shim.create(tests::requests::create_request(&bundle)?).err().context(|| "it was created".to_owned())?;
    ensure!(!status.message.chars().any(char::is_control), "the message has control characters: {:?}", status.message);
    refused(shim.state(evil, evil), Code::NOT_FOUND, "")?;
    refused(shim.exec(evil, evil, &["true"]), Code::NOT_FOUND, "")?;
    let mut text = Vec::new();
    let mut part = [0; 65536];
    while let Ok(length @ 1..) = log.read(&mut part) {
        text.extend_from_slice(&part[..length]);
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    ensure!(text.contains("CAP_"), "no warning in {text:?}");
    for line in text.lines() {
        ensure!(line.starts_with("time=") && !line.starts_with("time=\"x\""), "a line of its own: {line:?}");
        ensure!(!line.chars().any(char::is_control), "control characters in {line:?}");
    }
    shim.shutdown(&bundle.id)
}

/// CVE-2020-15257: whoever shares the host's network namespace reaches abstract sockets.
pub fn no_abstract_sockets(hand: &mut Hand) -> Result<()> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    shim.exec(&bundle.id, "e", &["sleep", "1000"])?;
    shim.start(&bundle.id, "e")?;
    let table = fs::read_to_string("/proc/net/unix")?;
    for pid in hand.shim_pids() {
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let target = target.display().to_string();
            let Some(inode) = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) else { continue };
            let line = table.lines().find(|line| line.split_whitespace().nth(6) == Some(inode));
            ensure!(line.is_none_or(|line| !line.contains(" @")), "an abstract socket: {line:?}");
        }
    }
    ensure_eq!(tests::requests::exec_ran(&shim, &bundle, "f", &bundle::process(&["true"]))?, 0, "an exec");
    finish(&shim, &bundle)
}
