//! Annotations of crun's that ask for more than the specification has (crun.1, "Extensions to OCI"). They change rights and write files, and
//! whoever may create a container may write annotations: they count only where the operator says so.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::Spec;
use crate::error::{Context, Error, Result};

/// What crun's annotations begin with.
pub const PREFIX: &str = "run.oci.";
const KEEP_GROUPS: &str = "run.oci.keep_original_groups";
const CONTEXT_TYPE: &str = "run.oci.mount_context_type";
const STDOUT: &str = "run.oci.hooks.stdout";
const STDERR: &str = "run.oci.hooks.stderr";

/// mount(8), "context=context, fscontext=context, defcontext=context, and rootcontext=context".
const CONTEXTS: [&str; 4] = ["context", "fscontext", "defcontext", "rootcontext"];

/// What they ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extensions {
    /// The first process keeps the supplementary groups of the runtime.
    pub keep_groups: bool,
    /// The mount option that `linux.mountLabel` is given by.
    pub context: &'static str,
    /// The file that hooks write to.
    pub stdout: Option<PathBuf>,
    /// The file that hooks complain to.
    pub stderr: Option<PathBuf>,
}

impl Default for Extensions {
    fn default() -> Self {
        Self { keep_groups: false, context: "context", stdout: None, stderr: None }
    }
}

impl Extensions {
    fn of(annotations: &HashMap<String, String>) -> Result<Self> {
        let wrong = |key: &str, want: &str| Error::invalid(format!("annotations[{key:?}]: {:?} is not {want}", annotations[key]));
        let file = |key: &str| match annotations.get(key).map(PathBuf::from) {
            Some(path) if !path.is_absolute() => Err(wrong(key, "an absolute path")),
            path => Ok(path),
        };
        let keep_groups = match annotations.get(KEEP_GROUPS).map(String::as_str) {
            None | Some("0") => false,
            Some("1") => true,
            Some(_) => return Err(wrong(KEEP_GROUPS, "0 or 1")),
        };
        let context = match annotations.get(CONTEXT_TYPE) {
            None => Self::default().context,
            Some(name) => CONTEXTS
                .into_iter()
                .find(|context| context == name)
                .ok_or_else(|| wrong(CONTEXT_TYPE, "context, fscontext, defcontext or rootcontext"))?,
        };
        Ok(Self { keep_groups, context, stdout: file(STDOUT)?, stderr: file(STDERR)? })
    }
}

impl Spec {
    /// Lets the annotations of crun's count.
    ///
    /// # Errors
    /// `InvalidArgument` that names the annotation.
    pub fn take_extensions(&mut self) -> Result<()> {
        self.extensions = Extensions::of(&self.annotations)?;
        if let Some(process) = &mut self.process {
            process.user.keep_groups = self.extensions.keep_groups;
        }
        Ok(())
    }
}

/// Opens a file for what hooks say, to be added to.
///
/// # Errors
/// The errno of open(2).
pub fn open(path: &Path) -> Result<OwnedFd> {
    let mut options = OpenOptions::new();
    let file = options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open(path);
    file.map(OwnedFd::from).context(|| format!("open {path:?} for hooks"))
}

/// Standard output of hooks: that file, or nothing.
///
/// # Errors
/// As [`open`].
pub fn stdout(path: Option<&Path>) -> Result<OwnedFd> {
    let null = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from).context(|| "open /dev/null");
    path.map_or_else(null, open)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(annotations: &[(&str, &str)]) -> Result<Extensions> {
        Extensions::of(&annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn what_is_not_asked_for_is_as_ever() {
        assert_eq!(read(&[("run.oci.handler", "krun")]).unwrap(), Extensions::default());
        let asked = read(&[(KEEP_GROUPS, "1"), (CONTEXT_TYPE, "rootcontext"), (STDOUT, "/o"), (STDERR, "/e")]).unwrap();
        assert_eq!(asked, Extensions { keep_groups: true, context: "rootcontext", stdout: Some("/o".into()), stderr: Some("/e".into()) });
    }

    #[test]
    fn what_is_malformed_is_refused_by_its_name() {
        for (key, value) in [(KEEP_GROUPS, "yes"), (CONTEXT_TYPE, "x"), (STDOUT, "o"), (STDERR, "")] {
            let error = read(&[(key, value)]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("annotations[{key:?}]: ")), "{error}");
        }
    }
}
