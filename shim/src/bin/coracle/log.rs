//! What the command says: results on standard output, failures as runc writes them, for the programs that parse those.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::json;
use shim::clock::rfc3339;

use crate::args::LogFormat;

/// Where failures and warnings go.
pub struct Log {
    /// A file besides standard error.
    pub file: Option<PathBuf>,
    /// The form of its lines.
    pub format: LogFormat,
}

impl Log {
    /// What a command line that is wrong elsewhere says of it.
    pub fn of_arguments(arguments: impl Iterator<Item = String>) -> Self {
        let arguments: Vec<String> = arguments.collect();
        let value = |flag: &str| {
            arguments.iter().enumerate().find_map(|(place, word)| {
                let rest = word.trim_start_matches('-').strip_prefix(flag).filter(|_| word.starts_with('-'))?;
                if rest.is_empty() { arguments.get(place + 1).cloned() } else { rest.strip_prefix('=').map(str::to_owned) }
            })
        };
        let format = if value("log-format").as_deref() == Some("json") { LogFormat::Json } else { LogFormat::Text };
        Self { file: value("log").map(PathBuf::from), format }
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
            eprintln!("{message}");
        } else {
            self.write("error", message);
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
        let append = |path: &PathBuf| {
            let file = OpenOptions::new().append(true).create(true).mode(0o644).open(path);
            file.and_then(|mut file| file.write_all(line.as_bytes())).is_ok()
        };
        // A log that cannot be written must not hide what it was to say.
        if !self.file.as_ref().is_some_and(append) {
            eprint!("{line}");
        }
    }
}

/// A result. A reader that goes away early is no failure.
pub fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
