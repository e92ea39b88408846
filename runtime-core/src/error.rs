//! One error type: what kind it is (for the caller's code) and a chain of what was being done (for people).

use std::fmt;
use std::io;

/// What a caller may branch on. Every kind maps to one RPC status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request or the spec asks for something malformed or not allowed.
    InvalidArgument,
    /// The object does not exist, or is gone already.
    NotFound,
    /// The identifier is taken.
    AlreadyExists,
    /// The object is not in a state that allows this.
    FailedPrecondition,
    /// Understood, but not provided by this build or this kernel.
    Unimplemented,
    /// The kernel or the process that was asked refused.
    Internal,
}

/// A failure: `step: object: errno`, in one line.
///
/// Boxed so that a `Result` stays small on the path where nothing fails.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    errno: Option<i32>,
}

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failure of `kind`, told by `message`: lower case, no full stop, what was done to what and why it failed.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: one_line(&message.into()), errno: None }))
    }

    /// [`ErrorKind::InvalidArgument`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// A failed system call: `what` names the step and the object.
    pub fn kernel(what: impl fmt::Display, errno: rustix::io::Errno) -> Self {
        Self::from_errno(what, errno.raw_os_error())
    }

    /// [`Error::kernel`] for an errno that came as a number, for instance from a child.
    pub fn from_errno(what: impl fmt::Display, errno: i32) -> Self {
        let text = io::Error::from_raw_os_error(errno).to_string();
        let text = text.split(" (os error").next().unwrap_or_default().to_lowercase();
        Self(Box::new(Inner { kind: ErrorKind::Internal, message: one_line(&format!("{what}: {text}")), errno: Some(errno) }))
    }

    /// A failed operation of the standard library: `what` names the step and the object.
    pub fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::from_errno(what, errno),
            None => Self::new(ErrorKind::Internal, format!("{what}: {error}")),
        }
    }

    /// The same failure, seen from one level up: `doing: …`.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.0.message = one_line(&format!("{doing}: {}", self.0.message));
        self
    }

    /// The same failure under another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// What the caller may branch on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The errno behind the failure, where a system call failed.
    pub fn errno(&self) -> Option<i32> {
        self.0.errno
    }
}

/// User strings may hold line breaks and escape sequences; a message is one line of printable text.
fn one_line(message: &str) -> String {
    let printable: String = match message.chars().any(char::is_control) {
        false => message.to_owned(),
        true => message.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect(),
    };
    if printable.len() <= LONGEST { printable } else { shortened(&printable) }
}

/// Bytes of a message: a client's string in it may be a megabyte, and what is wrong with it stands at the end.
const LONGEST: usize = 1400;
const TAIL: usize = 400;

fn shortened(message: &str) -> String {
    let boundary = |index: &usize| message.is_char_boundary(*index);
    let head = (0..=LONGEST - TAIL).rev().find(boundary).unwrap_or(0);
    let tail = (message.len() - TAIL..message.len()).find(boundary).unwrap_or(message.len());
    format!("{} [...] {}", &message[..head], &message[tail..])
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Error {}

/// Adds what was being done to a failure on its way up.
pub trait Context<T> {
    /// `doing` is evaluated only on failure.
    ///
    /// # Errors
    /// The same failure, with `doing: ` in front.
    fn context<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| error.context(doing()))
    }
}

impl<T> Context<T> for std::result::Result<T, rustix::io::Errno> {
    fn context<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|errno| Error::kernel(doing(), errno))
    }
}

impl<T> Context<T> for io::Result<T> {
    fn context<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| Error::io(doing(), &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_with_step_object_and_errno() {
        let error = Error::kernel("open \"/a\nb\"", rustix::io::Errno::NOENT).context("create web-1");
        assert_eq!(error.to_string(), "create web-1: open \"/a\\nb\": no such file or directory");
        assert_eq!(error.errno(), Some(libc::ENOENT));
    }

    #[test]
    fn a_message_keeps_its_beginning_and_its_end() {
        let long = format!("field: {}: too long", "\u{fc}".repeat(5000));
        let message = Error::invalid(long).context("step").to_string();
        assert!(message.starts_with("step: field: ") && message.ends_with("\u{fc}: too long"), "{message}");
        assert!(message.contains(" [...] ") && message.len() < LONGEST + 20, "{}", message.len());
    }
}
