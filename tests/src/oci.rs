//! One case with the OCI command line: a state directory and bundles of its own, and a ledger that must balance.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::bundle::Bundle;
use crate::command::{self, Output};
use crate::ledger::{self, Entries, Scope};
use crate::suite::Named;
use crate::{Context, Result, both, ensure_eq, fail, paths, proc};

/// A case by its name.
pub type Entry = (&'static str, fn(&Oci) -> Result<()>);

/// What a case works with.
pub struct Oci {
    word: String,
    dir: PathBuf,
    data: PathBuf,
    scope: Scope,
    before: Entries,
}

/// The cases of a suite with their full names.
pub fn named(suite: &str, entries: &'static [Entry]) -> Vec<Named> {
    let named = entries.iter().map(|&(name, case)| -> Named { (format!("{suite}::{name}"), Box::new(move || Oci::run(case))) });
    named.collect()
}

impl Oci {
    /// Opens the books, runs the case and closes them, whichever way it ended.
    pub fn run(case: impl FnOnce(&Oci) -> Result<()>) -> Result<()> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let word = format!("{}-o{number}x", paths::tag());
        let (dir, data) = (paths::run_dir().join(format!("o{number}")), paths::data_dir()?.join(format!("o{number}")));
        fs::create_dir_all(&dir)?;
        fs::create_dir_all(&data)?;
        let scope = Scope { words: vec![word.clone()], ..Scope::default() };
        let before = ledger::read(&scope);
        let oci = Oci { word, dir, data, scope, before };
        let result = case(&oci);
        both(result, oci.close())
    }

    /// A short directory below `/run`.
    pub fn dir(&self) -> &PathBuf {
        &self.dir
    }

    /// A directory on disk.
    pub fn data(&self) -> &PathBuf {
        &self.data
    }

    /// A container id that the ledger watches.
    pub fn id(&self, name: &str) -> String {
        format!("{}{name}", self.word)
    }

    /// A bundle with a root filesystem of its own that runs `args`.
    pub fn bundle(&self, name: &str, args: &[&str]) -> Result<Bundle> {
        let mut bundle = Bundle::new(&self.data, &self.id(name), args)?;
        bundle.fill()?;
        Ok(bundle)
    }

    /// What there is of a container's cgroups, in every hierarchy.
    pub fn cgroups(&self, id: &str) -> Vec<PathBuf> {
        let below = proc::cgroup_roots().into_iter().flat_map(|root| proc::cgroups_below(&root));
        below.filter(|dir| dir.to_string_lossy().contains(id)).collect()
    }

    /// `coracle` with this case's state directory.
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(paths::command_line()?);
        command.arg("--root").arg(self.dir.join("state")).args(args).stdin(std::process::Stdio::null());
        Ok(command)
    }

    /// What a command leaves.
    pub fn coracle(&self, args: &[&str]) -> Result<Output> {
        command::run(&mut self.command(args)?)
    }

    /// What a command prints that must succeed.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        let done = self.coracle(args)?;
        if done.code != 0 {
            fail!("{args:?}: exit code {}, stdout {:?}, stderr {:?}", done.code, done.stdout, done.stderr);
        }
        Ok(done.stdout)
    }

    /// Runs a command that must fail with this exit code and these words.
    pub fn fails(&self, args: &[&str], code: i32, words: &str) -> Result<()> {
        let done = self.coracle(args)?;
        // A line of the log has its message in quotes.
        if done.code != code || !done.stderr.replace("\\\"", "\"").contains(words) {
            fail!("{args:?}: exit code {}, stderr {:?}, in place of {code} and {words:?}", done.code, done.stderr);
        }
        Ok(())
    }

    /// Creates the container of a bundle with its output in a file, whose path this answers.
    ///
    /// A pipe would be held open by the container, and the test would wait for its end.
    pub fn create(&self, bundle: &Bundle, flags: &[&str]) -> Result<PathBuf> {
        self.create_with(bundle, &[], flags)
    }

    /// The same with flags before the command's name.
    pub fn create_with(&self, bundle: &Bundle, globals: &[&str], flags: &[&str]) -> Result<PathBuf> {
        let path = self.data.join(format!("{}.out", bundle.id));
        let file = fs::File::create(&path)?;
        let dir = bundle.dir.display().to_string();
        let args = [globals, &["create", "-b", &dir], flags, &[&bundle.id]].concat();
        let mut child = self.command(&args)?.stdout(file.try_clone()?).stderr(file).spawn()?;
        let status = command::wait_for(&mut child, std::time::Duration::from_secs(60))?.context(|| "create does not end".to_owned())?;
        if command::code(status) != 0 {
            fail!("create: exit code {}: {}", command::code(status), fs::read_to_string(&path)?);
        }
        Ok(path)
    }

    /// What `state` says.
    pub fn state(&self, id: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.ok(&["state", id])?)?)
    }

    /// Waits until the container has this status.
    pub fn expect_status(&self, id: &str, status: &str) -> Result<()> {
        let mut last = Value::Null;
        let reached = crate::wait::until(std::time::Duration::from_secs(10), || {
            last = self.state(id).map_or(Value::Null, |state| state["status"].clone());
            (last == status).then_some(())
        });
        if reached.is_none() {
            ensure_eq!(last, status, "status of {id}");
        }
        Ok(())
    }

    fn close(self) -> Result<()> {
        let clean = ledger::expect_clean(&self.scope, &self.before);
        if clean.is_err() {
            for id in fs::read_dir(self.dir.join("state")).into_iter().flatten().flatten() {
                // The ledger has told of it already.
                let _ = self.coracle(&["delete", "--force", &id.file_name().to_string_lossy()]);
            }
        }
        fs::remove_dir_all(&self.dir)?;
        fs::remove_dir_all(&self.data)?;
        let _ = fs::remove_dir(paths::run_dir());
        let _ = fs::remove_dir(paths::data_dir()?);
        for root in proc::cgroup_roots() {
            let _ = fs::remove_dir(root.join(paths::tag()));
        }
        clean
    }
}
