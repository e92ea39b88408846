//! Starts logger processes through the launcher.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use runtime_core::compile::{self, Environment, Helper};
use runtime_core::error::{Context as _, Result};
use runtime_core::plan::report;
use runtime_core::sys::process::send_signal;
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;

use super::hooks::run_to_exec;
use super::node::Node;
use crate::io::{LoggerCommand, LoggerProcess, Spawner};

/// See the module.
pub struct Loggers(pub Arc<Node>);

struct Running {
    node: Arc<Node>,
    pid: i32,
    pidfd: Arc<OwnedFd>,
    ended: bool,
}

#[async_trait]
impl Spawner for Loggers {
    async fn spawn_logger(&self, command: LoggerCommand) -> Result<Box<dyn LoggerProcess>> {
        let name = command.path.to_string_lossy().into_owned();
        let arguments: Vec<String> =
            std::iter::once(name).chain(command.args.iter().map(|argument| argument.to_string_lossy().into_owned())).collect();
        let environment: Vec<String> = command.env.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let (report, child_report) = report::pair().context(|| "socketpair")?;
        let mut descriptors = command.fds;
        for number in 0..3 {
            let null = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).context(|| "open /dev/null")?;
            descriptors.push((null, number));
        }
        let compiled = compile::helper(Helper {
            path: &command.path,
            arguments: &arguments,
            environment: Environment::Given(&environment),
            descriptors,
            inside: None,
            directory: Path::new("/"),
            report: child_report,
        })?;
        let mut child = self.0.launch(compiled, report).await?;
        let mut running = Running { node: Arc::clone(&self.0), pid: child.pid, pidfd: Arc::clone(&child.pidfd), ended: false };
        if let Err(error) = run_to_exec(&mut child, None).await {
            running.wait().await;
            return Err(error);
        }
        Ok(Box::new(running))
    }
}

#[async_trait]
impl LoggerProcess for Running {
    fn kill(&self, signal: Signal) {
        let _ = send_signal(self.pidfd.as_fd(), signal.as_raw());
    }

    async fn wait(&mut self) {
        if !self.ended {
            self.node.wait(self.pid, &self.pidfd).await;
            self.ended = true;
        }
    }
}
