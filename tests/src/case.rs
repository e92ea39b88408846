//! One case on one containerd: names of its own, and a ledger that must balance at its end.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::containerd::{Containerd, Version};
use crate::ctr::Ctr;
use crate::events::Record;
use crate::ledger::{self, Entries, Scope};
use crate::{Result, image, paths, rootless};

/// What a case works with.
pub struct Case<'a> {
    /// Its containerd, shared with other cases unless it started one.
    pub containerd: &'a Containerd,
    /// Every event that its containerd published.
    pub events: &'a Record,
    word: String,
    scope: Scope,
    before: Entries,
    ids: Mutex<Vec<String>>,
}

impl<'a> Case<'a> {
    /// Opens the books.
    pub fn new(containerd: &'a Containerd, events: &'a Record) -> Case<'a> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let word = format!("{}-{}x", paths::tag(), COUNT.fetch_add(1, Ordering::Relaxed));
        let scope = Scope { words: vec![word.clone()], ..Scope::default() };
        let before = ledger::read(&scope);
        Case { containerd, events, word, scope, before, ids: Mutex::default() }
    }

    /// The containerd's generation.
    pub fn version(&self) -> Version {
        self.containerd.version
    }

    /// A new container id, which the ledger watches and the end of the case removes.
    pub fn id(&self, name: &str) -> String {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        let id = format!("{}{name}{}", self.word, ids.len());
        ids.push(id.clone());
        id
    }

    /// A path for a file of this case, gone with the containerd. It is on the checkout's disk, for `/run` is often mounted noexec.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        let dir = self.containerd.data().join("files");
        std::fs::create_dir_all(&dir)?;
        Ok(dir.join(format!("{}{name}", self.number())))
    }

    /// The case's word without the tag: in the name of a file that is no leak.
    fn number(&self) -> &str {
        self.word.trim_start_matches(paths::tag()).trim_start_matches('-')
    }

    /// Where `ctr` puts its fifos. A detached `ctr` leaves them behind, so they are the case's to remove.
    fn fifos(&self) -> PathBuf {
        self.containerd.dir().join("fifo").join(self.number())
    }

    /// `ctr` of the containerd.
    pub fn ctr(&self) -> Ctr<'a> {
        self.containerd.ctr()
    }

    /// `ctr run --rm` of the one-layer image, with flags; answers stdout, which must come with exit code 0.
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Result<String> {
        self.ctr().ok(&words(&self.run_args(&["--rm"], flags, &image::name(1), &self.id("r"), command)))
    }

    /// As [`Case::run`], but any exit code will do.
    pub fn try_run(&self, flags: &[&str], command: &[&str]) -> Result<crate::command::Output> {
        self.ctr().run(&words(&self.run_args(&["--rm"], flags, &image::name(1), &self.id("r"), command)))
    }

    /// `ctr run -d` of the one-layer image with its output in a file; answers the id.
    pub fn detached(&self, flags: &[&str], command: &[&str]) -> Result<String> {
        let id = self.id("d");
        let log = format!("file://{}", self.log(&id)?.display());
        self.ctr().ok(&words(&self.run_args(&["--detach", "--log-uri", &log], flags, &image::name(1), &id, command)))?;
        Ok(id)
    }

    /// As [`Case::detached`] by a whole specification, for what ctr has no flag for.
    pub fn configured(&self, args: &[&str], change: impl FnOnce(&mut Value)) -> Result<String> {
        let id = self.id("c");
        let mut bundle = Bundle::new(&self.path("config")?, &id, args)?;
        bundle.fill()?;
        let root = bundle.dir.join("rootfs");
        bundle.edit(|spec| {
            spec["root"]["path"] = json!(root);
            change(spec);
        })?;
        let config = bundle.dir.join("config.json").display().to_string();
        let log = format!("file://{}", self.log(&id)?.display());
        // With --config the only other argument is the id.
        let mut args = self.run_args(&["--detach", "--log-uri", &log, "--config", &config], &[], "", &id, &[]);
        args.retain(|word| !word.is_empty());
        self.ctr().ok(&words(&args))?;
        Ok(id)
    }

    /// The output of a detached container up to now.
    pub fn output(&self, id: &str) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(self.log(id)?).unwrap_or_default()).into_owned())
    }

    /// `ctr task exec` with an exec id and its exit code 0; answers stdout.
    pub fn exec(&self, id: &str, command: &[&str]) -> Result<String> {
        self.ctr().ok(&words(&self.exec_args(id, &[], command)))
    }

    /// The arguments of `ctr task exec`.
    pub fn exec_args(&self, id: &str, flags: &[&str], command: &[&str]) -> Vec<String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let exec = format!("{}e{}", self.word, COUNT.fetch_add(1, Ordering::Relaxed));
        let head = ["task", "exec", "--exec-id", &exec, "--fifo-dir", &self.fifos().to_string_lossy()].map(str::to_owned);
        head.into_iter().chain([flags, &[id], command].concat().into_iter().map(str::to_owned)).collect()
    }

    /// The arguments of `ctr run`; `image` may be a directory where the flags have `--rootfs`.
    pub fn run_args(&self, first: &[&str], flags: &[&str], image: &str, id: &str, command: &[&str]) -> Vec<String> {
        let head = ["run", "--runtime", paths::runtime(), "--fifo-dir", &self.fifos().to_string_lossy()].map(str::to_owned);
        let place: &[&str] = if rootless::is_a_user() { &["--cgroup="] } else { &[] };
        head.into_iter().chain([first, place, flags, &[image, id], command].concat().into_iter().map(str::to_owned)).collect()
    }

    /// Removes what the case did not, and fails if anything is left on the host.
    pub fn close(self) -> Result<()> {
        let (ctr, fifos) = (self.ctr(), self.fifos());
        for id in self.ids.into_inner().unwrap_or_else(PoisonError::into_inner) {
            if ctr.status(&id)?.is_some() {
                ctr.ok(&["task", "rm", "-f", &id])?;
            }
            // Gone already after `ctr run --rm`.
            ctr.run(&["container", "rm", &id])?;
        }
        if fifos.exists() {
            std::fs::remove_dir_all(fifos)?;
        }
        ledger::expect_clean(&self.scope, &self.before)
    }

    fn log(&self, id: &str) -> Result<PathBuf> {
        self.path(&format!("{}.out", id.trim_start_matches(&self.word)))
    }
}

/// Borrows every word of a command line.
pub fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}
