//! Root filesystems that the host sees in their bundles, for hooks.

use std::path::Path;
use std::sync::Arc;

use runtime_core::compile;
use runtime_core::error::{Context as _, Error, ErrorKind, Result};
use runtime_core::plan::report;

use super::node::{Node, Progress};

/// Unmounts one, by a process of its own: what was written to it may have to be written back first.
///
/// # Errors
/// The errno of umount2(2).
pub async fn hide(node: &Arc<Node>, path: &Path) -> Result<()> {
    let (report, child_report) = report::pair().context(|| "socketpair")?;
    let mut child = node.launch(compile::unmount(path, child_report)?, report).await?;
    let told = child.progress().await;
    node.wait(child.pid, &child.pidfd).await;
    match told? {
        Progress::Executed => Ok(()),
        _ => Err(Error::new(ErrorKind::Internal, "an unexpected report of a helper")),
    }
}
