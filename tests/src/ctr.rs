//! `ctr` of the containerd's own version.

use std::process::Command;
use std::time::Duration;

use crate::command::{self, Output};
use crate::containerd::Containerd;
use crate::pty::Pty;
use crate::{Result, ensure, fail};

/// `ctr`, bound to one containerd and to a namespace in it.
pub struct Ctr<'a> {
    containerd: &'a Containerd,
    namespace: &'a str,
}

impl<'a> Ctr<'a> {
    pub(crate) fn new(containerd: &'a Containerd, namespace: &'a str) -> Ctr<'a> {
        Ctr { containerd, namespace }
    }

    /// The command, ready to be changed or spawned by the caller.
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(self.containerd.version.program("ctr")?);
        command.arg("--address").arg(self.containerd.address()).args(["--namespace", self.namespace]).args(args);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("TERM", "xterm");
        command.stdin(std::process::Stdio::null());
        Ok(command)
    }

    /// Runs it to its end, whatever its exit code.
    pub fn run(&self, args: &[&str]) -> Result<Output> {
        command::run(&mut self.command(args)?)
    }

    /// Runs it and expects success; answers its stdout without the last newline.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        let done = self.run(args)?;
        ensure!(done.code == 0, "ctr {}: exit code {}, stdout {:?}, stderr {:?}", args.join(" "), done.code, done.stdout, done.stderr);
        Ok(done.stdout.trim_end().to_owned())
    }

    /// Runs it and expects a failure that says `text`; answers the exit code.
    pub fn refused(&self, args: &[&str], text: &str) -> Result<i32> {
        let done = self.run(args)?;
        ensure!(done.code != 0, "ctr {}: succeeded, stdout {:?}", args.join(" "), done.stdout);
        ensure!(done.stderr.contains(text), "ctr {}: stderr {:?} does not say {text:?}", args.join(" "), done.stderr);
        Ok(done.code)
    }

    /// Runs it on a terminal of its own.
    pub fn on_terminal(&self, args: &[&str], rows: u16, columns: u16) -> Result<Pty> {
        Pty::spawn(&mut self.command(args)?, rows, columns)
    }

    /// The status in `ctr task ls`: `RUNNING`, `STOPPED`, `PAUSED` or `CREATED`; `None` without a task.
    pub fn status(&self, id: &str) -> Result<Option<String>> {
        Ok(self.task(id)?.map(|(_, status)| status))
    }

    /// The pid in `ctr task ls`.
    pub fn pid(&self, id: &str) -> Result<u32> {
        match self.task(id)? {
            Some((pid, _)) => Ok(pid.parse()?),
            None => fail!("{id} has no task"),
        }
    }

    /// Waits until the task has a status.
    pub fn wait_status(&self, id: &str, status: &str, limit: Duration) -> Result<()> {
        crate::containerd::eventually(&format!("{id} is {status}"), limit, || self.status(id).is_ok_and(|is| is.as_deref() == Some(status)))
    }

    fn task(&self, id: &str) -> Result<Option<(String, String)>> {
        let list = self.ok(&["task", "ls"])?;
        let found = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|words| words.first() == Some(&id));
        Ok(found.map(|words| (words[1].to_owned(), words[2].to_owned())))
    }
}
