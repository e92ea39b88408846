//! ResizePty and CloseIO.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use tests::bundle::process;
use tests::containerd::eventually;
use tests::hand::Hand;
use tests::requests::{create_request, exec_ran, exec_request, finish, running, timed_out};
use tests::rpc::refused;
use tests::{Result, ensure_eq};
use ttrpc::Code;

use crate::SOON;

pub fn resize(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["sleep", "1000"])?;
    bundle.edit(|spec| spec["process"]["terminal"] = true.into())?;
    let shim = hand.shim(&bundle)?;
    let mut request = create_request(&bundle)?;
    request.terminal = true;
    shim.create(request)?;
    shim.resize(&bundle.id, "", 101, 43)?;
    shim.start(&bundle.id, "")?;
    ensure_eq!(exec_ran(&shim, &bundle, "e", &process(&["sh", "-c", "[ \"$(stty -F /dev/console size)\" = '43 101' ]"]))?, 0, "size");
    shim.resize(&bundle.id, "", 33, 12)?;
    ensure_eq!(exec_ran(&shim, &bundle, "e", &process(&["sh", "-c", "[ \"$(stty -F /dev/console size)\" = '12 33' ]"]))?, 0, "new size");
    refused(shim.resize(&bundle.id, "", 70_000, 1), Code::INVALID_ARGUMENT, "70000")?;
    refused(shim.resize(&bundle.id, "nobody", 1, 1), Code::NOT_FOUND, "nobody")?;
    // Without a terminal it is nothing to do: before the start, while it runs and after.
    shim.exec(&bundle.id, "e", &["sleep", "1000"])?;
    shim.resize(&bundle.id, "e", 1, 1)?;
    shim.start(&bundle.id, "e")?;
    shim.resize(&bundle.id, "e", 1, 1)?;
    shim.kill(&bundle.id, "e", 9)?;
    shim.wait(&bundle.id, "e")?;
    shim.resize(&bundle.id, "e", 1, 1)?;
    shim.kill(&bundle.id, "", 9)?;
    shim.wait(&bundle.id, "")?;
    let late = shim.resize(&bundle.id, "", 1, 1);
    assert!(late.is_ok() || late.is_err_and(|status| status.code == Code::NOT_FOUND));
    shim.delete(&bundle.id, "")?;
    shim.shutdown(&bundle.id)
}

/// An exec that copies its input, and the fifo.
fn copying(hand: &mut Hand) -> Result<(tests::bundle::Bundle, tests::rpc::Shim, PathBuf)> {
    let (bundle, shim) = running(hand, &["sleep", "1000"])?;
    let fifo = hand.dir().join("in");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
    let mut request = exec_request(&bundle.id, "e", &process(&["sh", "-c", "cat >/copy; exit 4"]));
    request.stdin = fifo.display().to_string();
    shim.exec_process(request)?;
    Ok((bundle, shim, fifo))
}

pub fn close_stdin(hand: &mut Hand) -> Result<()> {
    let (bundle, shim, fifo) = copying(hand)?;
    // As containerd's client, which opens for reading and writing not to wait for the shim.
    let mut writer = File::options().read(true).write(true).open(&fifo)?;
    shim.start(&bundle.id, "e")?;
    writer.write_all(b"some input")?;
    eventually("the input arrives", SOON, || std::fs::read(bundle.written("copy")).is_ok_and(|copy| copy == b"some input"))?;
    drop(writer);
    // The shim's own writer keeps it open, for a containerd that comes back.
    timed_out(shim.limited(Duration::from_millis(200)).wait(&bundle.id, "e"))?;
    shim.close_stdin(&bundle.id, "e")?;
    shim.close_stdin(&bundle.id, "e")?;
    ensure_eq!(shim.wait(&bundle.id, "e")?.exit_status, 4, "status");
    shim.close_stdin(&bundle.id, "e")?;
    ensure_eq!(std::fs::read_to_string(bundle.written("copy"))?, "some input", "copy");
    shim.delete(&bundle.id, "e")?;
    refused(shim.close_stdin(&bundle.id, "e"), Code::NOT_FOUND, "e")?;
    // The init has none.
    shim.close_stdin(&bundle.id, "")?;
    finish(&shim, &bundle)
}

pub fn close_stdin_before_the_start(hand: &mut Hand) -> Result<()> {
    let (bundle, shim, fifo) = copying(hand)?;
    let mut writer = File::options().read(true).write(true).open(&fifo)?;
    writer.write_all(b"early")?;
    shim.close_stdin(&bundle.id, "e")?;
    shim.start(&bundle.id, "e")?;
    eventually("the input arrives", SOON, || std::fs::read(bundle.written("copy")).is_ok_and(|copy| copy == b"early"))?;
    drop(writer);
    ensure_eq!(shim.wait(&bundle.id, "e")?.exit_status, 4, "status");
    shim.delete(&bundle.id, "e")?;
    finish(&shim, &bundle)
}
