//! A container's cgroup, whoever makes it: this program, or systemd as a scope.

use std::sync::Arc;
use std::time::Duration;

use runtime_core::cgroup::{Cgroup, CgroupPath, Host, Intent, Undo};
use runtime_core::compile;
use runtime_core::container::record::Record;
use runtime_core::error::{Context as _, Result};
use runtime_core::plan::report;
use runtime_core::spec::Resources;
use runtime_core::systemd::{Address, Blocking, Instance, Manager, New, Scope, block_on};

use crate::Runtime;
use crate::launch::{Child, Progress, unexpected};
use crate::store::State;

/// How long a cgroup may take to die, and to go.
pub const REMOVAL: Duration = Duration::from_secs(10);

/// Where the cgroup of a new container is.
///
/// # Errors
/// A path that does not have the form of the driver; a scope that is in use.
pub fn place(runtime: &Runtime<'_>, cgroups_path: Option<&str>, id: &str) -> Result<CgroupPath> {
    if !runtime.systemd && !Scope::is_meant_by(cgroups_path) {
        return CgroupPath::new(&runtime.host, cgroups_path, id);
    }
    let scope = Scope::new(cgroups_path, id, Instance::of_this_process())?;
    block_on(manager(&scope)?.place(&runtime.host, &scope))
}

/// Where the cgroup of a container is that was made with this path, by whichever driver its form is for.
///
/// # Errors
/// A path of neither form.
pub fn locate(runtime: &Runtime<'_>, cgroups_path: Option<&str>, id: &str) -> Result<CgroupPath> {
    match Scope::new(cgroups_path, id, Instance::of_this_process()) {
        Ok(scope) if runtime.systemd || cgroups_path.is_some_and(|path| path.contains(':')) => block_on(manager(&scope)?.path(&scope)),
        _ => CgroupPath::new(&runtime.host, cgroups_path, id),
    }
}

fn manager(scope: &Scope) -> Result<Manager<Arc<Blocking>>> {
    let bus = Arc::new(Blocking::new(Address::of(scope.instance)?));
    Ok(Manager::new(scope.instance, bus))
}

/// Refuses a cgroup that is another one's, before anything says that it is the new container's. A scope's was refused by [`place`].
///
/// # Errors
/// It is in use.
pub fn check_free(runtime: &Runtime<'_>, path: &CgroupPath) -> Result<()> {
    if path.scope().is_some() { Ok(()) } else { Cgroup::check_free(&runtime.host, path) }
}

/// What a command has made of a cgroup.
#[derive(Default)]
pub struct Made {
    directories: Option<Undo>,
    has_scope: bool,
}

impl Made {
    /// The container is made: it stays.
    pub fn keep(self) {
        self.directories.into_iter().for_each(Undo::keep);
    }

    /// Removes it with all who are inside, and nothing that was there before.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn undo(self, host: &Host, record: &Record) -> Result<()> {
        match self.directories {
            Some(undo) => undo.run(REMOVAL).and(runtime_core::rdt::remove(&record.resctrl)),
            None if self.has_scope => destroy(host, record),
            None => runtime_core::rdt::remove(&record.resctrl),
        }
    }
}

/// A cgroup with its limits in force, and the process that keeps a scope until the container's own one is inside.
///
/// # Errors
/// The step that failed; what there is by then is in `made`.
pub fn make(runtime: &Runtime<'_>, path: &CgroupPath, id: &str, resources: &Resources, made: &mut Made) -> Result<(Cgroup, Option<Guest>)> {
    let Some(scope) = path.scope() else {
        let (cgroup, undo) = Cgroup::create_undoably(&runtime.host, path, resources)?;
        made.directories = Some(undo);
        return Ok((cgroup, None));
    };
    let intent = Intent::new(&runtime.host, resources, None)?;
    let (report, child_report) = report::pair().context(|| "socketpair")?;
    let mut guest = Guest(runtime.launching.launch(compile::guest(child_report)?, report)?);
    match guest.0.progress()? {
        Progress::Ready => {}
        _ => return Err(unexpected()),
    }
    let new = New { scope, path, id, pid: guest.0.pid.cast_unsigned(), intent: &intent, extra: &[] };
    block_on(manager(scope)?.start(&runtime.host, &new))?;
    made.has_scope = true;
    Ok((Cgroup::adopt(&runtime.host, path, resources)?, Some(guest)))
}

/// The process that keeps a scope; it ends with this.
pub struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// Kills the first process and what is inside, and removes the cgroup, the scope and the groups of resctrl of a container.
///
/// # Errors
/// The first step that failed; all are tried.
pub fn destroy(host: &Host, record: &Record) -> Result<()> {
    let (cgroup, found) = record.find_cgroup(host);
    let removed = cgroup.kill_and_wait(REMOVAL).and_then(|()| cgroup.remove(REMOVAL)).and(found);
    let stopped = match record.cgroup.as_ref().and_then(CgroupPath::scope) {
        Some(scope) => manager(scope).and_then(|manager| block_on(manager.stop(scope))),
        None => Ok(()),
    };
    removed.and(stopped).and(runtime_core::rdt::remove(&record.resctrl))
}

/// Changes limits.
///
/// # Errors
/// The field that could not be changed.
pub fn update(host: &Host, state: &State, resources: &Resources) -> Result<()> {
    let cgroup = state.cgroup(host)?;
    match state.record.cgroup.as_ref().and_then(CgroupPath::scope) {
        Some(scope) => block_on(manager(scope)?.update(host, scope, &cgroup, resources)),
        None => cgroup.update(resources),
    }
}
