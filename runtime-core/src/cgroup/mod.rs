//! x
use serde::{Deserialize, Serialize};
/// x
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {}
/// x
pub struct Cgroup {}
impl Cgroup {
    /// x
    pub fn reopen(_: &Record) -> crate::Result<Self> {
        Ok(Self {})
    }
    /// x
    pub fn kill_and_remove(&self) -> crate::Result<()> {
        Ok(())
    }
}
