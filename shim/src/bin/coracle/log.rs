//! What the command says: results on standard output, failures as runc writes them, for the programs that parse those.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use runtime_core::error::{Error, Result};
use runtime_core::plan::Plan;
use rustix::io::Errno;
use serde_json::json;
use shim::clock::rfc3339;

use crate::args::LogFormat;
use crate::relay::write_all;

/// Where failures and warnings go.
pub struct Log {
    /// A file besides standard error.
    pub file: Option<PathBuf>,
    /// The form of its lines.
    pub format: LogFormat,
    /// Whether what is done is told, too.
    pub debug: bool,
}

impl Log {
    /// What a command line that is wrong elsewhere says of it.
    pub fn of_arguments(arguments: impl Iterator<Item = OsString>) -> Self {
        let arguments: Vec<String> = arguments.map(|word| word.to_string_lossy().into_owned()).collect();
        let value = |flag: &str| {
            arguments.iter().enumerate().find_map(|(place, word)| {
                let rest = word.trim_start_matches('-').strip_prefix(flag).filter(|_| word.starts_with('-'))?;
                if rest.is_empty() { arguments.get(place + 1).cloned() } else { rest.strip_prefix('=').map(str::to_owned) }
            })
        };
        let format = if value("log-format").as_deref() == Some("json") { LogFormat::Json } else { LogFormat::Text };
        Self { file: value("log").map(PathBuf::from), format, debug: false }
    }

    /// Fails where the file cannot be written to, as runc does: who reads it would take its silence for success. It is made here, so that
    /// it is there if nothing is said.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn ready(&self) -> Result<()> {
        let Some(path) = &self.file else { return Ok(()) };
        append_to(path).map(drop).map_err(|error| Error::io(format!("open the log {}", path.display()), &error))
    }

    /// What standard error has been told already, for the file.
    pub fn note(&self, message: &str) {
        if self.file.is_some() {
            self.write("error", message.lines().next().unwrap_or_default());
        }
    }

    /// Why the command has failed: in the file, and in plain words on standard error.
    pub fn error(&self, message: &str) {
        if self.file.is_some() {
            self.write("error", message);
            tell(&format!("{message}\n"));
        } else {
            self.write("error", message);
        }
    }

    /// What a new process does, step by step.
    pub fn plan(&self, of: &str, plan: &Plan) {
        if self.debug {
            plan.to_string().lines().for_each(|step| self.write("debug", &format!("{of}: {step}")));
        }
    }

    /// What is passed over.
    pub fn warn(&self, message: &str) {
        self.write("warning", message);
    }

    fn write(&self, level: &str, message: &str) {
        let time = rfc3339(SystemTime::now());
        // To the second, as runc's logger writes it.
        let time = format!("{}Z", time.get(..19).unwrap_or(&time));
        let line = match self.format {
            LogFormat::Json => format!("{}\n", json!({ "level": level, "msg": message, "time": time })),
            LogFormat::Text => format!("time={time:?} level={level} msg={message:?}\n"),
        };
        let append = |path: &PathBuf| append_to(path).and_then(|mut file| file.write_all(line.as_bytes())).is_ok();
        // A log that cannot be written must not hide what it was to say.
        if !self.file.as_ref().is_some_and(append) {
            tell(&line);
        }
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o644).open(path)
}

/// A result. A reader that goes away early is no failure.
///
/// # Errors
/// It cannot be written.
pub fn print(text: &str) -> Result<()> {
    match write_all(std::io::stdout().as_fd(), text.as_bytes()) {
        Ok(()) | Err(Errno::PIPE) => Ok(()),
        Err(errno) => Err(Error::kernel("write standard output", errno)),
    }
}

/// To standard error, whose reader may have gone.
fn tell(text: &str) {
    let _ = write_all(std::io::stderr().as_fd(), text.as_bytes());
}
