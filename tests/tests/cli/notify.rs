//! A service manager's socket (sd_notify(3)): what a container says of being ready arrives there.

use std::fs;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tests::bundle::Bundle;
use tests::command;
use tests::oci::Oci;
use tests::{Context, Result, ensure, ensure_eq};

use crate::SOON;

/// busybox sends a datagram to no other place than `/dev/log`; the first line is syslog(3)'s.
const SAY_READY: &str = "ln -s $NOTIFY_SOCKET /dev/log; logger \"$(printf 'starting\\nREADY=1\\n')\"";

/// What systemd is for a service.
struct Manager(UnixDatagram, PathBuf);

impl Manager {
    fn new(oci: &Oci) -> Result<Self> {
        let path = oci.dir().join("manager");
        let socket = UnixDatagram::bind(&path)?;
        socket.set_read_timeout(Some(SOON))?;
        Ok(Self(socket, path))
    }

    /// The next message, and the descriptor that came with it.
    fn told(&self) -> Result<(String, Option<OwnedFd>)> {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let length = received.context(|| "nothing came from the container".to_owned())?.bytes;
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        });
        Ok((String::from_utf8_lossy(&bytes[..length]).into_owned(), descriptor))
    }

    /// All that comes when a container gets ready; the last message is answered.
    fn expect(&self, pid: impl FnOnce() -> Result<String>) -> Result<()> {
        ensure_eq!(self.told()?.0, "READY=1\n", "first message");
        ensure_eq!(self.told()?.0, format!("MAINPID={}\n", pid()?), "second message");
        let (barrier, descriptor) = self.told()?;
        ensure!(barrier == "BARRIER=1" && descriptor.is_some(), "third message: {barrier:?}, descriptor {descriptor:?}");
        Ok(())
    }

    fn quiet(&self) -> Result<()> {
        self.0.set_read_timeout(Some(Duration::from_millis(100)))?;
        let more = self.told();
        self.0.set_read_timeout(Some(SOON))?;
        ensure!(more.is_err(), "one more message: {:?}", more.map(|(text, _)| text));
        Ok(())
    }

    fn command(&self, oci: &Oci, args: &[&str]) -> Result<Command> {
        let mut command = oci.command(args)?;
        command.env("NOTIFY_SOCKET", &self.1).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command)
    }
}

fn bundle(oci: &Oci, name: &str, script: &str) -> Result<Bundle> {
    oci.bundle(name, &["sh", "-c", script])
}

fn ends_well(child: &mut Child, what: &str) -> Result<()> {
    let status = command::wait_for(child, SOON)?.context(|| format!("{what} does not end"))?;
    ensure_eq!(command::code(status), 0, "exit code of {what}");
    Ok(())
}

/// With create and start, run, and run in the background; `start` and the last wait until the container is ready.
pub fn a_service_manager_is_told(oci: &Oci) -> Result<()> {
    let manager = Manager::new(oci)?;
    let container = bundle(oci, "a", &format!("sleep 0.3; {SAY_READY}; exec sleep 1000"))?;
    let (id, dir) = (container.id.as_str(), container.dir.display().to_string());
    for background in [false, true] {
        let mut made = if background {
            manager.command(oci, &["run", "-d", "-b", &dir, id])?.spawn()?
        } else {
            ends_well(&mut manager.command(oci, &["create", "-b", &dir, id])?.spawn()?, "create")?;
            manager.quiet()?;
            manager.command(oci, &["start", id])?.spawn()?
        };
        ensure_eq!(manager.told()?.0, "READY=1\n", "first message");
        ensure_eq!(manager.told()?.0, format!("MAINPID={}\n", oci.state(id)?["pid"]), "second message");
        let (text, descriptor) = manager.told()?;
        ensure_eq!(text, "BARRIER=1", "third message");
        ensure!(made.try_wait()?.is_none(), "it did not wait for the manager, which still holds the barrier");
        drop(descriptor);
        ends_well(&mut made, "start")?;
        let environment = oci.ok(&["exec", id, "env"])?;
        ensure!(!environment.contains("NOTIFY_SOCKET"), "an exec has it, too: {environment}");
        oci.ok(&["delete", "--force", id])?;
        manager.quiet()?;
    }
    Ok(())
}

/// The command that waits is the process to look after, as with runc.
pub fn a_foreground_run_is_the_main_process(oci: &Oci) -> Result<()> {
    let manager = Manager::new(oci)?;
    let container = bundle(oci, "a", &format!("{SAY_READY}; sleep 0.5"))?;
    let mut run = manager.command(oci, &["run", "-b", &container.dir.display().to_string(), &container.id])?.spawn()?;
    manager.expect(|| Ok(run.id().to_string()))?;
    ends_well(&mut run, "run")?;
    // One that never gets ready ends as it does otherwise.
    let container = bundle(oci, "b", "exit 0")?;
    ends_well(&mut manager.command(oci, &["run", "-b", &container.dir.display().to_string(), &container.id])?.spawn()?, "run")?;
    ends_well(&mut manager.command(oci, &["run", "-d", "-b", &container.dir.display().to_string(), &container.id])?.spawn()?, "run -d")?;
    oci.ok(&["delete", "--force", &container.id])?;
    manager.quiet()
}

/// Root of a user namespace, and a user without rights in it, find the socket.
pub fn from_a_user_namespace(oci: &Oci) -> Result<()> {
    let manager = Manager::new(oci)?;
    let mut container = bundle(oci, "a", &format!("{SAY_READY}; exec sleep 1000"))?;
    container.map_users(200_000)?;
    let id = container.id.as_str();
    let mut run = manager.command(oci, &["run", "-d", "-b", &container.dir.display().to_string(), id])?;
    let mut run = umask(&mut run).spawn()?;
    manager.expect(|| Ok(oci.state(id)?["pid"].to_string()))?;
    ends_well(&mut run, "run -d")?;
    // The state goes with the container, and the socket with the state.
    ensure!(oci.dir().join("state").join(id).join("notify/notify.sock").exists(), "the socket is not where it should be");
    oci.ok(&["delete", "--force", id])?;
    ensure_eq!(fs::read_dir(oci.dir().join("state"))?.count(), 0, "what is left");
    Ok(())
}

/// A caller's mask is not the socket's.
fn umask(command: &mut Command) -> Command {
    let mut masked = Command::new("sh");
    masked.args(["-c", "umask 077; exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    masked.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    masked.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    masked
}

/// Commands that get the variable by accident work as without it: nobody listens there, or the container was created without.
pub fn a_manager_that_is_not_there(oci: &Oci) -> Result<()> {
    let container = bundle(oci, "a", "exec sleep 1000")?;
    let id = container.id.as_str();
    oci.create(&container, &[])?;
    let mut start = oci.command(&["start", id])?;
    ensure_eq!(command::run(start.env("NOTIFY_SOCKET", "/run/none"))?.code, 0, "start of a container that was created without");
    oci.ok(&["delete", "--force", id])?;
    for name in ["/run/none", "@coracle-test-none"] {
        let mut run = oci.command(&["run", "-d", "-b", &container.dir.display().to_string(), id])?;
        let mut run = run.env("NOTIFY_SOCKET", name).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        ends_well(&mut run, "run -d")?;
        oci.ok(&["delete", "--force", id])?;
    }
    Ok(())
}
