//! What systemd is asked for, and what is made of its answers (org.freedesktop.systemd1(5)).

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::client::{Answer, Failure, MANAGER, Reply, SYSTEMD, SYSTEMD_PATH};
use super::properties;
use super::unit::{Instance, Scope};
use super::wire::{Call, Property, Writer};
use crate::cgroup::{Cgroup, CgroupPath, Host, Intent};
use crate::error::{Context, Error, ErrorKind, Result};

const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// What runc grants systemd for one answer and for one job.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often, and how long apart, a question is asked again that got lost: systemd is away from the bus for a moment when it executes itself
/// anew.
const AGAIN: u32 = 10;
const PAUSE: Duration = Duration::from_millis(200);

/// How questions get to a manager.
pub trait Bus: Send + Sync {
    /// Asks, and waits for the answer, or for the end of the job that it tells of, at most for `bound`.
    fn call(&self, call: &Call, bound: Duration) -> impl Future<Output = std::result::Result<Answer, Failure>> + Send;

    /// Waits.
    fn pause(&self, time: Duration) -> impl Future<Output = ()> + Send;
}

/// What is known of a manager once it has been asked.
#[derive(Debug)]
struct Facts {
    /// The number in front: 0 for a version that has none.
    version: u32,
    /// Its own cgroup, without a slash at either end: where a user's units are below. Empty for that of the machine.
    cgroup: String,
}

/// A manager and the way to it.
#[derive(Debug)]
pub struct Manager<B> {
    instance: Instance,
    bus: B,
    patience: Duration,
    facts: OnceLock<Facts>,
}

/// What a scope is started with.
#[derive(Debug)]
pub struct New<'a> {
    /// The scope.
    pub scope: &'a Scope,
    /// Where its cgroup has to be then.
    pub path: &'a CgroupPath,
    /// Of the container, for people.
    pub id: &'a str,
    /// A process that stays in it until the container's own one is.
    pub pid: u32,
    /// The limits.
    pub intent: &'a Intent,
    /// What else it has, as annotations say it; counts more than the limits.
    pub extra: &'a [Property],
}

impl<B: Bus> Manager<B> {
    /// Nothing is asked yet.
    pub fn new(instance: Instance, bus: B) -> Self {
        Self { instance, bus, patience: PATIENCE, facts: OnceLock::new() }
    }

    /// With another bound than half a minute for one answer or one job.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Where the cgroup of a scope is.
    ///
    /// # Errors
    /// The manager of a user does not tell where it is itself.
    pub async fn path(&self, scope: &Scope) -> Result<CgroupPath> {
        let root = match self.instance {
            Instance::System => "",
            Instance::User => self.facts().await?.cgroup.as_str(),
        };
        CgroupPath::of_scope(scope, root)
    }

    /// The same for a scope that is to be made.
    ///
    /// # Errors
    /// `FailedPrecondition` for one that is in use: it is known before anything says that the cgroup is ours and may be cleaned up.
    pub async fn place(&self, host: &Host, scope: &Scope) -> Result<CgroupPath> {
        let path = self.path(scope).await?;
        if Cgroup::open(host, &path)?.populated()? {
            let message = format!("cgroupsPath: the scope {:?} is in use", scope.name);
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        }
        Ok(path)
    }

    /// Starts a scope. Its limits are in force and the process is inside afterwards.
    ///
    /// # Errors
    /// `AlreadyExists` if there is a unit of this name that has not failed; after any other error there is none.
    pub async fn start(&self, host: &Host, new: &New<'_>) -> Result<()> {
        let version = self.facts().await?.version;
        let mut wanted = properties::of_new(new.scope, new.id, new.pid, host.mode(), version);
        wanted.extend(properties::of_limits(new.intent, version)?);
        wanted.retain(|(name, _)| new.extra.iter().all(|(other, _)| other != name));
        wanted.extend_from_slice(new.extra);
        let started = self.begin(new, &wanted).await.and_then(|()| new.path.check_inside(host, new.pid));
        if let Err(error) = &started
            && error.kind() != ErrorKind::AlreadyExists
        {
            // The first failure is the one to tell.
            let _ = self.stop(new.scope).await;
        }
        started
    }

    async fn begin(&self, new: &New<'_>, wanted: &[Property]) -> Result<()> {
        let name = &new.scope.name;
        let call = start_transient_unit(name, wanted);
        let (mut cleared, mut lost) = (false, 0);
        loop {
            match self.bus.call(&call, self.patience).await {
                Ok(answer) => return done(answer, "start", name),
                // Ours, and the answer got lost: a job that waits for the other one's end.
                Err(failure) if failure.is("UnitExists") && lost > 0 => return self.job("StartUnit", "start", new.scope).await,
                Err(failure) if failure.is("UnitExists") && !cleared => {
                    cleared = true;
                    // One that has failed stays until somebody has looked at it.
                    self.reset_failed(new.scope).await;
                }
                Err(failure) if failure.is_passing() && lost < AGAIN => {
                    lost += 1;
                    self.bus.pause(PAUSE).await;
                }
                Err(failure) => return Err(failure.explain("start", name, self.patience)),
            }
        }
    }

    /// Changes limits for as long as the unit is there, so that systemd keeps them when it writes the cgroup's files anew. Nothing is asked if
    /// nothing has a property.
    ///
    /// # Errors
    /// `NotFound` if there is no such unit any more; what systemd says of the values.
    pub async fn set(&self, scope: &Scope, intent: &Intent) -> Result<()> {
        let wanted = properties::of_limits(intent, self.facts().await?.version)?;
        if wanted.is_empty() {
            return Ok(());
        }
        let mut body = Writer::default();
        body.text(&scope.name);
        body.uint32(1);
        body.properties(&wanted);
        let call = manager("SetUnitProperties", "sba(sv)", body, false);
        self.ask(&call).await.map(drop).map_err(|failure| failure.explain("set the properties of", &scope.name, self.patience))
    }

    /// Stops a scope in which nobody should be any more, and makes systemd forget that it may have failed. One that is not there is fine.
    ///
    /// # Errors
    /// systemd does not answer, or the unit is still there after the bound.
    pub async fn stop(&self, scope: &Scope) -> Result<()> {
        match self.job("StopUnit", "stop", scope).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            result => {
                self.reset_failed(scope).await;
                result
            }
        }
    }

    /// There is nothing to be done about one that cannot be reset: most often it has not failed.
    async fn reset_failed(&self, scope: &Scope) {
        let mut body = Writer::default();
        body.text(&scope.name);
        let _ = self.ask(&manager("ResetFailedUnit", "s", body, false)).await;
    }

    async fn job(&self, member: &'static str, step: &str, scope: &Scope) -> Result<()> {
        let mut body = Writer::default();
        body.text(&scope.name);
        body.text("replace");
        let answer = self.ask(&manager(member, "ss", body, true)).await;
        done(answer.map_err(|failure| failure.explain(step, &scope.name, self.patience))?, step, &scope.name)
    }

    /// Asks what may be asked twice.
    async fn ask(&self, call: &Call) -> std::result::Result<Answer, Failure> {
        let deadline = Instant::now() + self.patience.min(PAUSE * AGAIN);
        loop {
            match self.bus.call(call, self.patience).await {
                Err(failure) if failure.is_passing() && Instant::now() < deadline => self.bus.pause(PAUSE).await,
                result => return result,
            }
        }
    }

    async fn facts(&self) -> Result<&Facts> {
        if let Some(facts) = self.facts.get() {
            return Ok(facts);
        }
        let version = self.property("Version").await?;
        let cgroup = match self.instance {
            Instance::System => String::new(),
            Instance::User => self.property("ControlGroup").await?,
        };
        Ok(self.facts.get_or_init(|| Facts { version: leading_number(&version), cgroup: cgroup.trim_matches('/').to_owned() }))
    }

    async fn property(&self, name: &str) -> Result<String> {
        let mut body = Writer::default();
        body.text(MANAGER);
        body.text(name);
        let call = Call { interface: PROPERTIES, ..manager("Get", "ss", body, false) };
        match self.ask(&call).await.map_err(|failure| failure.explain("read the property", name, self.patience))? {
            Answer::Reply(reply) => Reply::text_in_variant(&reply).context(|| format!("systemd: {name}")),
            Answer::Job(_) => Err(Error::new(ErrorKind::Internal, "D-Bus: a job in place of an answer")),
        }
    }
}

fn manager(member: &'static str, signature: &'static str, body: Writer, job: bool) -> Call {
    Call { destination: SYSTEMD, path: SYSTEMD_PATH, interface: MANAGER, member, signature, body: body.finish(), job }
}

fn start_transient_unit(name: &str, wanted: &[Property]) -> Call {
    let mut body = Writer::default();
    body.text(name);
    body.text("replace");
    body.properties(wanted);
    body.nothing_auxiliary();
    manager("StartTransientUnit", "ssa(sv)a(sa(sv))", body, true)
}

/// The result of a job (org.freedesktop.systemd1(5), "Signals").
fn done(answer: Answer, step: &str, unit: &str) -> Result<()> {
    match answer {
        Answer::Job(result) if result == "done" => Ok(()),
        Answer::Job(result) => Err(Error::new(ErrorKind::Internal, format!("systemd: {step} {unit:?}: the job has ended with {result:?}"))),
        Answer::Reply(_) => Err(Error::new(ErrorKind::Internal, format!("systemd: {step} {unit:?}: an answer without a job"))),
    }
}

/// `257.9-1~deb13u1`, or `v245-rc1`.
fn leading_number(version: &str) -> u32 {
    let digits = version.trim_start_matches('v');
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or(0)
}

/// Whoever has nothing but a container's path: the limits of its scope follow those that are given.
impl<B: Bus> Manager<B> {
    /// [`Manager::set`] and [`Cgroup::update`] of a container in a scope: all is checked before anything changes, and the files come last, for
    /// they are exact where systemd rounds.
    ///
    /// # Errors
    /// Those of the two.
    pub async fn update(&self, host: &Host, scope: &Scope, cgroup: &Cgroup, resources: &crate::spec::resources::Resources) -> Result<()> {
        cgroup.check_update(resources)?;
        self.set(scope, &Intent::new(host, resources, Some(cgroup))?).await?;
        cgroup.update(resources)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_begins_with_a_number() {
        for (text, number) in [("252.38-1~deb12u1", 252), ("v245-rc1", 245), ("258", 258), ("main", 0), ("", 0)] {
            assert_eq!(leading_number(text), number, "{text}");
        }
    }
}
