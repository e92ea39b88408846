//! Intel's resource director: classes of service and monitoring groups in resctrl (Documentation/filesystems/resctrl.rst), as the OCI
//! runtime spec asks for them (config-linux.md, "IntelRdt").

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind as IoKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::spec::rdt::IntelRdt;

/// Where resctrl is mounted, if it is.
const MOUNT_POINT: &str = "/sys/fs/resctrl";

/// The group that all others are in.
pub fn root() -> &'static Path {
    Path::new(MOUNT_POINT)
}

/// Whether the host has it.
pub fn is_mounted() -> bool {
    Path::new(MOUNT_POINT).join(SCHEMATA).exists()
}

const SCHEMATA: &str = "schemata";
const TASKS: &str = "tasks";
const MONITORS: &str = "mon_groups";

/// The groups of one container: decided first, so that they can be recorded before they are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    class: Option<PathBuf>,
    /// The class is the container's own, and goes with it.
    own: bool,
    monitor: Option<PathBuf>,
    schemata: Vec<String>,
    /// Only a class that is there already will do.
    must_exist: bool,
}

impl Groups {
    /// Those that a container gets on this host: none without resctrl, since they only tune.
    pub fn here(id: &str, spec: Option<&IntelRdt>) -> Self {
        spec.filter(|_| is_mounted()).map_or_else(Self::default, |spec| Self::of(Path::new(MOUNT_POINT), id, spec))
    }

    /// The groups of the container `id` below a mounted resctrl.
    pub fn of(root: &Path, id: &str, spec: &IntelRdt) -> Self {
        let schemata = spec.lines();
        let given = spec.clos_id.as_deref().filter(|name| !name.is_empty());
        let class = match given {
            Some("/") => root.to_owned(),
            name => root.join(name.unwrap_or(id)),
        };
        let monitor = spec.enable_monitoring.then(|| class.join(MONITORS).join(id));
        Self { class: Some(class), own: given.is_none(), monitor, must_exist: given.is_some() && schemata.is_empty(), schemata }
    }

    /// The class of service, if the host has it.
    pub fn class(&self) -> Option<&Path> {
        self.class.as_deref().filter(|class| class.is_dir())
    }

    /// The monitoring group, or else the class: where what the container uses is counted.
    pub fn monitored(&self) -> Option<&Path> {
        self.monitor.as_deref().or_else(|| self.class())
    }

    /// What goes with the container, the innermost first.
    pub fn of_container(&self) -> Vec<PathBuf> {
        self.monitor.iter().chain(self.class.iter().filter(|_| self.own)).cloned().collect()
    }

    /// Makes what is missing.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] when a class that should be there is not, or says something else than the spec; what the kernel says
    /// to a line.
    pub fn make(&self) -> Result<()> {
        let Some(class) = &self.class else { return Ok(()) };
        if self.must_exist && !class.is_dir() {
            let message = format!("linux.intelRdt.closID: there is no class {class:?}, and nothing says what it should be");
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        }
        let made = make_directory(class).context(|| format!("linux.intelRdt.closID: make {class:?}"))?;
        match made || self.own {
            _ if self.schemata.is_empty() => {}
            true => self.write(class)?,
            false => self.compare(class)?,
        }
        match &self.monitor {
            Some(monitor) => make_directory(monitor).map(drop).context(|| format!("linux.intelRdt.enableMonitoring: make {monitor:?}")),
            None => Ok(()),
        }
    }

    /// Changes the class, and makes it if it is missing.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] without resctrl; what the kernel says to a line.
    pub fn update(&self) -> Result<()> {
        let missing = || Error::new(ErrorKind::FailedPrecondition, format!("linux.intelRdt: resctrl is not mounted at {MOUNT_POINT}"));
        let class = self.class.as_ref().ok_or_else(missing)?;
        let made = make_directory(class).context(|| format!("linux.intelRdt.closID: make {class:?}"))?;
        let written = self.write(class);
        if made && written.is_err() {
            // The first failure is the one to tell.
            let _ = fs::remove_dir(class);
        }
        written
    }

    /// Moves processes in.
    ///
    /// # Errors
    /// What the kernel says to one that runs.
    pub fn add(&self, pids: &[i32]) -> Result<()> {
        let Some(class) = &self.class else { return Ok(()) };
        let path = class.join(TASKS);
        let mut file = File::options().write(true).open(&path).context(|| format!("linux.intelRdt: open {path:?}"))?;
        for pid in pids {
            match file.write_all(pid.to_string().as_bytes()) {
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                result => result.context(|| format!("linux.intelRdt: write {pid} to {path:?}"))?,
            }
        }
        Ok(())
    }

    /// The files by which a process enters, as it enters a cgroup.
    ///
    /// # Errors
    /// A group is gone.
    pub fn tasks(&self) -> Result<Vec<OwnedFd>> {
        let open = |group: &PathBuf| {
            let path = group.join(TASKS);
            File::options().write(true).open(&path).map(OwnedFd::from).context(|| format!("linux.intelRdt: open {path:?}"))
        };
        self.class.iter().chain(&self.monitor).map(open).collect()
    }

    fn write(&self, class: &Path) -> Result<()> {
        let path = class.join(SCHEMATA);
        let text: String = self.schemata.iter().map(|line| format!("{line}\n")).collect();
        let written = OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|error| {
            let said = class.ancestors().find_map(|directory| fs::read_to_string(directory.join("info/last_cmd_status")).ok());
            let said = said.map(|said| format!(" ({})", said.trim())).unwrap_or_default();
            Error::io(format!("linux.intelRdt: write {:?} to {path:?}{said}", self.schemata.join("; ")), &error)
        })
    }

    /// A class that others may be in is not changed.
    fn compare(&self, class: &Path) -> Result<()> {
        let path = class.join(SCHEMATA);
        let there = fs::read_to_string(&path).context(|| format!("read {path:?}"))?;
        let there: BTreeMap<_, _> = there.lines().filter_map(domains).collect();
        let differs = |line: &&String| {
            domains(line).is_none_or(|(resource, wanted)| {
                let now = there.get(&resource);
                !wanted.iter().all(|(domain, value)| now.and_then(|now| now.get(domain)) == Some(value))
            })
        };
        match self.schemata.iter().find(differs) {
            None => Ok(()),
            Some(line) => {
                let message = format!("linux.intelRdt: the class {class:?} is there already, and not as {line:?} says");
                Err(Error::new(ErrorKind::FailedPrecondition, message))
            }
        }
    }
}

/// One line of a schemata file: the resource, and per domain its value. Masks are compared without leading zeros.
fn domains(line: &str) -> Option<(String, BTreeMap<String, String>)> {
    let (resource, domains) = line.trim().split_once(':')?;
    let one = |domain: &str| {
        let (id, value) = domain.split_once('=')?;
        let value = value.trim().trim_start_matches('0').to_ascii_lowercase();
        Some((id.trim().to_owned(), value))
    };
    Some((resource.trim().to_owned(), domains.split(';').map(one).collect::<Option<_>>()?))
}

/// Whether it was missing.
fn make_directory(path: &Path) -> std::io::Result<bool> {
    match DirBuilder::new().mode(0o755).create(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == IoKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes groups that were made for a container; their processes, if any are left, go to the groups above. Missing ones are fine.
///
/// # Errors
/// The errno of rmdir(2).
pub fn remove(groups: &[PathBuf]) -> Result<()> {
    for group in groups {
        match fs::remove_dir(group) {
            Err(error) if error.kind() != IoKind::NotFound => return Err(Error::io(format!("remove {group:?}"), &error)),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> IntelRdt {
        serde_json::from_str(json).unwrap()
    }

    /// A class as the kernel would make it.
    fn class(root: &Path, name: &str, schemata: &str) -> PathBuf {
        let class = root.join(name);
        fs::create_dir_all(class.join(MONITORS)).unwrap();
        fs::write(class.join(SCHEMATA), schemata).unwrap();
        class
    }

    #[test]
    fn without_a_class_the_container_has_its_own() {
        let tmp = tempfile::tempdir().unwrap();
        // The kernel fills a new directory; here it is filled beforehand.
        let own = class(tmp.path(), "c1", "");
        let groups =
            Groups::of(tmp.path(), "c1", &spec(r#"{"l3CacheSchema":"L3:0=f;1=f","memBwSchema":"MB:0=50","enableMonitoring":true}"#));
        groups.make().unwrap();
        assert_eq!(fs::read_to_string(own.join(SCHEMATA)).unwrap(), "L3:0=f;1=f\nMB:0=50\n");
        assert_eq!(groups.of_container(), [own.join("mon_groups/c1"), own.clone()]);
        assert!(own.join("mon_groups/c1").is_dir());
        remove(&groups.of_container()[..1]).unwrap();
        remove(&groups.of_container()[..1]).unwrap();
        assert!(!own.join("mon_groups/c1").exists());
    }

    #[test]
    fn a_class_is_changed_and_entered() {
        let tmp = tempfile::tempdir().unwrap();
        let own = class(tmp.path(), "c1", "");
        fs::write(own.join(TASKS), "").unwrap();
        let groups = Groups::of(tmp.path(), "c1", &spec(r#"{"memBwSchema":"MB:0=50"}"#));
        groups.update().unwrap();
        groups.add(&[7, 8]).unwrap();
        assert_eq!(fs::read_to_string(own.join(SCHEMATA)).unwrap(), "MB:0=50\n");
        assert_eq!(fs::read_to_string(own.join(TASKS)).unwrap(), "78");
        assert_eq!(Groups::default().update().unwrap_err().kind(), ErrorKind::FailedPrecondition);
        let new = Groups::of(tmp.path(), "c2", &spec(r#"{"memBwSchema":"MB:0=50"}"#));
        assert!(new.update().is_err() && !tmp.path().join("c2").exists());
    }

    #[test]
    fn schemata_come_last_and_win() {
        let tmp = tempfile::tempdir().unwrap();
        let own = class(tmp.path(), "c1", "");
        Groups::of(tmp.path(), "c1", &spec(r#"{"l3CacheSchema":"L3:0=f","schemata":["L2:0=3","L3:0=1"]}"#)).make().unwrap();
        assert_eq!(fs::read_to_string(own.join(SCHEMATA)).unwrap(), "L3:0=f\nL2:0=3\nL3:0=1\n");
    }

    #[test]
    fn a_given_class_is_used_as_it_is_and_stays() {
        let tmp = tempfile::tempdir().unwrap();
        let gold = class(tmp.path(), "gold", "    L3:0=00f;1=00f\n    MB:0=100\n");
        for (json, why) in [
            (r#"{"closID":"gold"}"#, None),
            (r#"{"closID":"gold","l3CacheSchema":"L3:1=F"}"#, None),
            (r#"{"closID":"/","enableMonitoring":false}"#, None),
            (r#"{"closID":"gold","memBwSchema":"MB:0=50"}"#, Some("is there already, and not as \"MB:0=50\" says")),
            (r#"{"closID":"gold","schemata":["L2:0=1"]}"#, Some("is there already, and not as \"L2:0=1\" says")),
            (r#"{"closID":"silver"}"#, Some("linux.intelRdt.closID: there is no class")),
        ] {
            let groups = Groups::of(tmp.path(), "c1", &spec(json));
            match (groups.make(), why) {
                (Ok(()), None) => {}
                (Err(error), Some(why)) => assert!(error.to_string().contains(why), "{json}: {error}"),
                (made, _) => panic!("{json}: {made:?}"),
            }
            assert_eq!(groups.of_container(), Vec::<PathBuf>::new());
        }
        assert_eq!(fs::read_to_string(gold.join(SCHEMATA)).unwrap(), "    L3:0=00f;1=00f\n    MB:0=100\n");
        assert!(!tmp.path().join("silver").exists());
    }

    #[test]
    fn a_process_enters_the_class_and_the_group() {
        let tmp = tempfile::tempdir().unwrap();
        let gold = class(tmp.path(), "gold", "");
        let groups = Groups::of(tmp.path(), "c1", &spec(r#"{"closID":"gold","enableMonitoring":true}"#));
        groups.make().unwrap();
        assert!(groups.tasks().unwrap_err().to_string().starts_with("linux.intelRdt: open "));
        for group in [gold.clone(), gold.join("mon_groups/c1")] {
            fs::write(group.join(TASKS), "").unwrap();
        }
        assert_eq!(groups.tasks().unwrap().len(), 2);
        assert_eq!(Groups::default().tasks().unwrap().len(), 0);
    }
}
