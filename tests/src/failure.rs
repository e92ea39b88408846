//! The error of a test: one sentence. Cases return it instead of panicking, so that they can be undone.

use std::fmt;

/// Why a case failed.
pub struct Failure(pub String);

/// What cases and fixtures return.
pub type Result<T> = std::result::Result<T, Failure>;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure(error.to_string())
    }
}

/// How a case ended and how its books were closed: either failure is told, the case's first.
///
/// # Errors
/// If there is one.
pub fn both(case: Result<()>, closed: Result<()>) -> Result<()> {
    match (case, closed) {
        (Ok(()), closed) => closed,
        (Err(e), Ok(())) => Err(e),
        (Err(e), Err(closed)) => Err(Failure(format!("{e}\n    and: {closed}"))),
    }
}

/// Says what was being done when an error came.
pub trait Context<T> {
    /// Puts `what()` in front of the error.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Failure(format!("{}: {e}", what())))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.ok_or_else(|| Failure(what()))
    }
}

/// Leaves the function with a [`Failure`] made by `format!`.
#[macro_export]
macro_rules! fail {
    ($($text:tt)*) => { return Err($crate::Failure(format!($($text)*))) };
}

/// Leaves the function with a [`Failure`] unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => { if !$condition { $crate::fail!($($text)*) } };
}

/// Leaves the function with a [`Failure`] that shows both sides unless they are equal.
#[macro_export]
macro_rules! ensure_eq {
    ($left:expr, $right:expr, $($text:tt)*) => {
        match (&$left, &$right) {
            (left, right) => if left != right {
                $crate::fail!("{}: {left:?} instead of {right:?}", format!($($text)*))
            },
        }
    };
}
