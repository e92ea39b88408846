//! Terminals that `run` and `exec` serve, on streams of all kinds.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::io::ioctl_fionbio;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use serde_json::json;
use tests::bundle::Bundle;
use tests::command::{self, code, wait_for};
use tests::containerd::eventually;
use tests::oci::Oci;
use tests::pty::Pty;
use tests::{Context, Result, ensure, ensure_eq};

use crate::{SOON, receive};

/// Longer than a command may wait for output that nobody reads any more.
const LATE: Duration = Duration::from_millis(1500);
const LINES: usize = 2000;

fn running(oci: &Oci) -> Result<Bundle> {
    let bundle = oci.bundle("a", &["sleep", "1000"])?;
    oci.create(&bundle, &[])?;
    oci.ok(&["start", &bundle.id])?;
    Ok(bundle)
}

/// A pipe of one page: reader, writer.
fn narrow() -> Result<(File, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setpipe_size(&writer, 4096)?;
    Ok((File::from(reader), writer))
}

fn ended(child: &mut Child) -> Result<i32> {
    Ok(code(wait_for(child, SOON)?.context(|| "the command does not end".to_owned())?))
}

/// crun#1717, crun#1838: the process has ended when its reader comes.
pub fn a_terminal_that_is_read_late(oci: &Oci) -> Result<()> {
    let bundle = running(oci)?;
    let mut other = oci.bundle("b", &["true"])?;
    other.edit(|spec| spec["process"]["terminal"] = json!(true))?;
    let script = format!("seq {LINES}; touch /done");
    other.edit(|spec| spec["process"]["args"] = json!(["sh", "-c", script]))?;
    let dir = other.dir.display().to_string();
    let exec = ["exec", "-t", &bundle.id, "sh", "-c", &script];
    let run = ["run", "-b", &dir, &other.id];
    for (args, root, nonblocking) in [(&exec[..], &bundle, false), (&exec, &bundle, true), (&run, &other, false), (&run, &other, true)] {
        let (mut reader, writer) = narrow()?;
        ioctl_fionbio(&writer, nonblocking)?;
        let mut child = oci.command(args)?.stdout(writer).spawn()?;
        let done = root.dir.join("rootfs/done");
        eventually("the process ends", SOON, || std::fs::remove_file(&done).is_ok())?;
        ensure!(wait_for(&mut child, LATE)?.is_none(), "{args:?}: it has ended before its output was read");
        let mut text = String::new();
        reader.read_to_string(&mut text)?;
        let wanted: String = (1..=LINES).map(|line| format!("{line}\n")).collect();
        ensure_eq!(text.len(), wanted.len(), "{args:?}, nonblocking {nonblocking}: length");
        ensure!(text == wanted, "{args:?}, nonblocking {nonblocking}: another text");
        ensure_eq!(ended(&mut child)?, 0, "{args:?}: status");
    }
    oci.ok(&["delete", "-f", &bundle.id]).map(drop)
}

/// Node and ssh have their terminals so: what is not there yet is no end.
pub fn input_that_does_not_wait(oci: &Oci) -> Result<()> {
    let bundle = running(oci)?;
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    ioctl_fionbio(&reader, true)?;
    let script = "touch /asks; read word; echo got $word";
    let mut exec = oci.command(&["exec", "-t", &bundle.id, "sh", "-c", script])?;
    let mut child = exec.stdin(reader).stdout(Stdio::piped()).spawn()?;
    let asks = bundle.dir.join("rootfs/asks");
    eventually("the process asks", SOON, || asks.exists())?;
    File::from(writer).write_all(b"this\n")?;
    ensure_eq!(ended(&mut child)?, 0, "status");
    let mut text = String::new();
    child.stdout.take().context(|| "no stdout".to_owned())?.read_to_string(&mut text)?;
    ensure!(text.ends_with("got this\n"), "output {text:?}");
    oci.ok(&["delete", "-f", &bundle.id]).map(drop)
}

/// As with runc the process gets SIGPIPE, as if it had written there itself.
pub fn a_reader_that_goes_away(oci: &Oci) -> Result<()> {
    let bundle = running(oci)?;
    let (mut reader, writer) = narrow()?;
    let mut child = oci.command(&["exec", "-t", &bundle.id, "yes"])?.stdout(writer).spawn()?;
    reader.read_exact(&mut [0; 2])?;
    drop(reader);
    ensure_eq!(ended(&mut child)?, 128 + libc::SIGPIPE, "status");
    // One that does not heed it runs to its end.
    let (reader, writer) = narrow()?;
    drop(reader);
    let script = "trap '' PIPE; seq 10000; exit 7";
    let mut child = oci.command(&["exec", "-t", &bundle.id, "sh", "-c", script])?.stdout(writer).spawn()?;
    ensure_eq!(ended(&mut child)?, 7, "status of one that goes on");
    oci.ok(&["delete", "-f", &bundle.id]).map(drop)
}

/// runc's `ClearONLCR`: the caller's terminal makes carriage returns, where there is one.
pub fn newlines_of_terminals(oci: &Oci) -> Result<()> {
    let mut bundle = oci.bundle("b", &["echo", "a"])?;
    bundle.edit(|spec| spec["process"]["terminal"] = json!(true))?;
    let dir = bundle.dir.display().to_string();
    ensure_eq!(oci.ok(&["run", "-b", &dir, &bundle.id])?, "a\n", "run to a pipe");
    let pty = Pty::spawn(&mut oci.command(&["run", "-b", &dir, &bundle.id])?, 24, 80)?;
    ensure_eq!(pty.finish(SOON)?, ("a\r\n".to_owned(), 0), "run on a terminal");
    let other = running(oci)?;
    ensure_eq!(oci.ok(&["exec", "-t", &other.id, "echo", "a"])?, "a\n", "exec to a pipe");
    let pty = Pty::spawn(&mut oci.command(&["exec", "-t", &other.id, "sh", "-c", "stty size; echo a"])?, 33, 77)?;
    ensure_eq!(pty.finish(SOON)?, ("33 77\r\na\r\n".to_owned(), 0), "exec on a terminal");
    // Whoever serves it sets it up.
    let socket = oci.dir().join("s");
    let listener = UnixListener::bind(&socket)?;
    let mut exec = oci.command(&["exec", "-d", "-t", "--console-socket", &socket.display().to_string(), &other.id, "echo", "a"])?;
    ensure!(exec.status()?.success(), "exec -d -t --console-socket");
    let mut text = [0; 3];
    File::from(receive(&listener)?).read_exact(&mut text)?;
    ensure_eq!(text, *b"a\r\n", "over a console socket");
    oci.ok(&["delete", "-f", &other.id]).map(drop)
}

/// A descriptor that is the host's null device is made anew, at whatever number.
pub fn null_devices_that_are_preserved(oci: &Oci) -> Result<()> {
    let bundle = oci.bundle("a", &["sleep", "1000"])?;
    let coracle = oci.command(&[])?;
    let words = std::iter::once(coracle.get_program()).chain(coracle.get_args());
    let coracle = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let shell = |line: &str| command::output(std::process::Command::new("bash").args(["-c", line]).stdin(Stdio::null()));
    oci.create(&bundle, &[])?;
    oci.ok(&["start", &bundle.id])?;
    for count in [1, 2, 3, 7, 20, 40] {
        let opened: String = (3..3 + count).map(|number| format!("exec {number}<>/dev/null; ")).collect();
        let try_all = format!("for n in $(seq 3 {}); do eval \"echo x >&$n\" || exit 9; done; echo all", 2 + count);
        let exec = format!("{opened}{coracle} exec --preserve-fds {count} {} sh -c '{try_all}'", bundle.id);
        ensure_eq!(shell(&exec)?, "all\n", "exec --preserve-fds {count}");
    }
    oci.ok(&["delete", "-f", &bundle.id])?;
    let mut bundle = bundle;
    bundle.edit(|spec| spec["process"]["args"] = json!(["sh", "-c", "echo x >&3 && echo three"]))?;
    let run = format!("exec 3<>/dev/null; {coracle} run --preserve-fds 1 -b {} {}", bundle.dir.display(), bundle.id);
    ensure_eq!(shell(&run)?, "three\n", "run --preserve-fds 1");
    Ok(())
}
