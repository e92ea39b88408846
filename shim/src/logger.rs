//! The log: lines as logrus writes them, into the fifo `log` of the bundle, which containerd copies to its own log.
//!
//! The daemon never waits for a reader. A line is one write(2) of at most `PIPE_BUF` bytes, so it arrives whole or not at all; what
//! does not fit is dropped and counted, and the count is the first line that fits again.

use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::SystemTime;

use log::{LevelFilter, Log, Metadata, Record};
use runtime_core::error::{Error, ErrorKind, Result};
use rustix::fs::{Mode, OFlags};

use crate::clock::rfc3339;
use crate::sync::lock;

/// The longest line that a fifo takes whole (pipe(7): `PIPE_BUF`).
const MAX_LINE_BYTES: usize = 4096;

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// The sink of the `log` macros.
#[derive(Debug)]
pub struct Logger {
    level: LevelFilter,
    /// ` id=… namespace=…`, at the end of each line.
    fields: String,
    sink: Mutex<Sink>,
}

#[derive(Debug)]
struct Sink {
    path: PathBuf,
    fifo: Option<OwnedFd>,
    dropped: u64,
}

/// Sends the `log` macros, and panics, to the fifo `log` of `bundle`. Once per process.
///
/// # Errors
/// `AlreadyExists` on the second call.
pub fn init(bundle: &Path, level: LevelFilter, id: &str, namespace: &str) -> Result<()> {
    let again = || Error::new(ErrorKind::AlreadyExists, "the log is set up already");
    LOGGER.set(Logger::new(&bundle.join("log"), level, id, namespace)).map_err(|_| again())?;
    let logger = LOGGER.get().ok_or_else(again)?;
    log::set_logger(logger).map_err(|_| again())?;
    log::set_max_level(level);
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(|| "?".to_owned(), ToString::to_string);
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let text = text.unwrap_or("no message");
        log::error!("panic at {place}: {text}");
    }));
    Ok(())
}

/// Turns to the fifo `log` of another bundle, if the one of now is gone: the daemon of a group outlives its first container.
pub fn follow(bundle: &Path) {
    if let Some(logger) = LOGGER.get() {
        logger.follow(bundle);
    }
}

/// The number of lines that were lost so far because nobody read them.
pub fn dropped() -> u64 {
    LOGGER.get().map_or(0, |logger| lock(&logger.sink).dropped)
}

impl Logger {
    fn new(path: &Path, level: LevelFilter, id: &str, namespace: &str) -> Self {
        let mut fields = String::new();
        push_field(&mut fields, "id", id);
        push_field(&mut fields, "namespace", namespace);
        Self { level, fields, sink: Mutex::new(Sink { path: path.to_path_buf(), fifo: None, dropped: 0 }) }
    }

    fn follow(&self, bundle: &Path) {
        let mut sink = lock(&self.sink);
        if !sink.path.exists() {
            sink.path = bundle.join("log");
            sink.fifo = None;
        }
    }

    fn line(&self, level: &str, message: &str) -> Vec<u8> {
        let mut line = format!("time=\"{}\" level={level}", rfc3339(SystemTime::now()));
        let room = MAX_LINE_BYTES.saturating_sub(line.len() + self.fields.len() + " msg=\"...\"\n".len());
        line.push_str(" msg=\"");
        escape(&mut line, message, room);
        line.push('"');
        line.push_str(&self.fields);
        line.push('\n');
        line.into_bytes()
    }

    fn write(&self, level: &str, message: &str) {
        let line = self.line(level, message);
        let mut sink = lock(&self.sink);
        if sink.dropped > 0 {
            let lost = self.line("warning", &format!("{} log lines were lost: nobody read them", sink.dropped));
            if !sink.put(&lost) {
                sink.dropped += 1;
                return;
            }
            sink.dropped = 0;
        }
        if !sink.put(&line) {
            sink.dropped += 1;
        }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.write(logrus_level(record.level()), &record.args().to_string());
        }
    }

    fn flush(&self) {}
}

impl Sink {
    /// Whether the whole line went out.
    fn put(&mut self, line: &[u8]) -> bool {
        if self.fifo.is_none() {
            // ENXIO: nobody reads (fifo(7)); ENOENT: the bundle is gone. Either may change until the next line.
            let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            self.fifo = rustix::fs::open(&self.path, flags, Mode::empty()).ok();
        }
        // EPIPE (the reader went away) is no reason to close: the descriptor works again when the next reader opens the fifo.
        self.fifo.as_ref().is_some_and(|fifo| rustix::io::write(fifo, line).is_ok_and(|written| written == line.len()))
    }
}

fn logrus_level(level: log::Level) -> &'static str {
    match level {
        log::Level::Error => "error",
        log::Level::Warn => "warning",
        log::Level::Info => "info",
        log::Level::Debug => "debug",
        log::Level::Trace => "trace",
    }
}

fn push_field(line: &mut String, key: &str, value: &str) {
    let _ = write!(line, " {key}=\"");
    escape(line, value, 512);
    line.push('"');
}

/// Appends `text` so that it stays within its quotes and its line, and shows no terminal escape: at most `room` bytes, and dots where
/// it was cut.
fn escape(line: &mut String, text: &str, room: usize) {
    let end = line.len() + room;
    for c in text.chars() {
        let before = line.len();
        match c {
            '"' | '\\' => line.extend(['\\', c]),
            c if is_unprintable(c) => line.extend(c.escape_default()),
            c => line.push(c),
        }
        if line.len() > end {
            line.truncate(before);
            line.push_str("...");
            return;
        }
    }
}

/// Control characters, and those that change the direction or the breaking of the text around them.
fn is_unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn fifo(dir: &Path) -> PathBuf {
        let path = dir.join("log");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path
    }

    fn reader(path: &Path) -> std::fs::File {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).unwrap().into()
    }

    fn text(reader: &mut std::fs::File) -> String {
        let mut bytes = vec![0; 1 << 17];
        let count = reader.read(&mut bytes).unwrap_or(0);
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }

    #[test]
    fn a_line_is_logfmt_and_cannot_be_forged() {
        let tmp = tempfile::tempdir().unwrap();
        let path = fifo(tmp.path());
        let mut reader = reader(&path);
        let logger = Logger::new(&path, LevelFilter::Info, "a\"\nlevel=fatal", "ns");
        logger.write("info", "say \"hi\"\nlevel=fatal \u{1b}[31m \\ \u{202e}é");
        let text = text(&mut reader);
        assert!(text.starts_with("time=\"20"), "{text}");
        let rest = text.split_once(' ').unwrap().1;
        let expected = r#"level=info msg="say \"hi\"\nlevel=fatal \u{1b}[31m \\ \u{202e}é" id="a\"\nlevel=fatal" namespace="ns""#;
        assert_eq!(rest, format!("{expected}\n"));
    }

    #[test]
    fn a_long_line_is_cut_to_what_goes_out_whole() {
        let tmp = tempfile::tempdir().unwrap();
        let logger = Logger::new(&fifo(tmp.path()), LevelFilter::Info, "web", "ns");
        for message in ["x".repeat(9000), "\u{1b}".repeat(9000), "世".repeat(4000)] {
            let line = logger.line("info", &message);
            assert!(line.len() <= MAX_LINE_BYTES && line.len() > MAX_LINE_BYTES - 16, "{}", line.len());
            let line = String::from_utf8(line).unwrap();
            assert!(line.ends_with("...\" id=\"web\" namespace=\"ns\"\n"), "{line}");
        }
    }

    #[test]
    fn without_a_reader_lines_are_counted_and_the_count_is_told() {
        let tmp = tempfile::tempdir().unwrap();
        let path = fifo(tmp.path());
        let logger = Logger::new(&path, LevelFilter::Info, "web", "ns");
        logger.write("info", "one");
        logger.write("info", "two");
        let mut first = reader(&path);
        logger.write("info", "three");
        let heard = text(&mut first);
        assert!(heard.contains("msg=\"2 log lines were lost: nobody read them\"") && heard.contains("msg=\"three\""), "{heard}");
        drop(first);
        logger.write("info", "four");
        let mut second = reader(&path);
        logger.write("info", "five");
        let heard = text(&mut second);
        assert!(heard.contains("msg=\"1 log lines were lost") && heard.contains("msg=\"five\"") && !heard.contains("four"), "{heard}");
    }

    #[test]
    fn a_log_that_is_gone_is_replaced_and_another_is_not() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (old, new) = (fifo(first.path()), fifo(second.path()));
        let (mut reads_old, mut reads_new) = (reader(&old), reader(&new));
        let logger = Logger::new(&old, LevelFilter::Info, "web", "ns");
        logger.follow(second.path());
        logger.write("info", "one");
        assert!(text(&mut reads_old).contains("one"));
        std::fs::remove_file(&old).unwrap();
        logger.follow(second.path());
        logger.write("info", "two");
        assert!(text(&mut reads_new).contains("two"));
    }

    #[test]
    fn a_full_fifo_does_not_hold_the_writer() {
        let tmp = tempfile::tempdir().unwrap();
        let path = fifo(tmp.path());
        let mut reader = reader(&path);
        let logger = Logger::new(&path, LevelFilter::Info, "web", "ns");
        for _ in 0..10_000 {
            logger.write("info", "a line that nobody reads");
        }
        assert!(logger.sink.lock().unwrap().dropped > 5_000);
        let heard = text(&mut reader);
        assert!(heard.lines().all(|line| line.ends_with("namespace=\"ns\"")));
        logger.write("info", "after");
        assert!(text(&mut reader).contains("log lines were lost"));
    }

    #[test]
    fn a_link_is_not_followed() {
        let tmp = tempfile::tempdir().unwrap();
        let target = tmp.path().join("target");
        std::fs::write(&target, "").unwrap();
        std::os::unix::fs::symlink(&target, tmp.path().join("log")).unwrap();
        Logger::new(&tmp.path().join("log"), LevelFilter::Info, "web", "ns").write("info", "x");
        assert_eq!(std::fs::read(&target).unwrap(), b"");
    }
}
