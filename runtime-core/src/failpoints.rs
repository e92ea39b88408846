//! Faults on demand, for tests: only a build with the feature `failpoints` has them.

/// The strings that only such a build holds: a binary that is shipped must have none of them.
pub const STRINGS: &[&str] = &["CORACLE_FAIL_STEP", "CORACLE_OLD_OVERLAY"];

/// Which of [`STRINGS`] a binary holds.
pub fn found_in(binary: &[u8]) -> Vec<&'static str> {
    let holds = |text: &&&str| binary.windows(text.len()).any(|window| window == text.as_bytes());
    STRINGS.iter().filter(holds).copied().collect()
}

#[cfg(feature = "failpoints")]
mod enabled {
    use serde::{Deserialize, Serialize};

    use super::STRINGS;

    /// A step that fails instead of being done.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub struct FailStep {
        /// Index into the plan's steps.
        pub step: u16,
        /// Why it fails.
        pub errno: i32,
    }

    impl FailStep {
        /// `STEP:ERRNO` from the environment.
        pub fn from_environment() -> Option<Self> {
            let value = std::env::var(STRINGS[0]).ok()?;
            let (step, errno) = value.split_once(':')?;
            Some(Self { step: step.parse().ok()?, errno: errno.parse().ok()? })
        }
    }

    /// Whether the kernel is to be taken for one whose overlay does not know `lowerdir+`.
    pub fn old_overlay() -> bool {
        std::env::var_os(STRINGS[1]).is_some()
    }
}

#[cfg(feature = "failpoints")]
pub use enabled::{FailStep, old_overlay};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_with_the_strings_is_told_from_one_without() {
        assert!(found_in(b"a release build").is_empty());
        assert_eq!(found_in(b"\0CORACLE_FAIL_STEP\0"), [STRINGS[0]]);
    }
}
