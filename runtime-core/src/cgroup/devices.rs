//! Device rules: from the specification's ordered list to what cgroup v1 would make of it, and from there to v1 lines or (see
//! [`super::device_filter`]) an eBPF program.
//!
//! Both versions enforce the same [`Policy`], the one of the v1 kernel (security/device_cgroup.c): a default and a set of exceptions to it.

use std::collections::BTreeMap;
use std::fmt;

use bitflags::bitflags;

use crate::error::{Error, Result};
use crate::spec::resources::DeviceRule;

bitflags! {
    /// What a process wants to do with a device; the numbers are those of `BPF_DEVCG_ACC_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Access: u32 {
        const MKNOD = 1;
        const READ = 2;
        const WRITE = 4;
    }
}

/// The numbers are those of `BPF_DEVCG_DEV_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Block = 1,
    Char = 2,
}

/// A device or a range of them; `None` is every number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Devices {
    pub kind: Kind,
    pub major: Option<u32>,
    pub minor: Option<u32>,
}

impl Devices {
    fn overlaps(self, other: Self) -> bool {
        let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.kind == other.kind && meet(self.major, other.major) && meet(self.minor, other.minor)
    }

    fn is_within(self, other: Self) -> bool {
        let within = |a: Option<u32>, b: Option<u32>| b.is_none() || a == b;
        self.kind == other.kind && within(self.major, other.major) && within(self.minor, other.minor)
    }
}

/// What a group may do with devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// What holds for a device without an exception.
    pub allow: bool,
    /// The accesses for which the opposite holds. None is empty.
    pub exceptions: BTreeMap<Devices, Access>,
}

/// The devices that every container may use, whatever its rules say: the nodes that the specification puts into every `/dev`, its ptys, and
/// making nodes (which opens nothing).
///
/// The list of runc. `/dev/net/tun` (10:200) is in it for those who cannot add a rule: runc and crun took it out and put it back (runc#4555).
pub fn default_rules() -> Vec<DeviceRule> {
    let rule = |kind: &str, major: Option<i64>, minor: Option<i64>, access: &str| DeviceRule {
        allow: true,
        kind: kind.to_owned(),
        major,
        minor,
        access: access.to_owned(),
    };
    let numbers = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (10, 200)];
    let mut rules = vec![rule("c", None, None, "m"), rule("b", None, None, "m")];
    rules.extend(numbers.map(|(major, minor)| rule("c", Some(major), Some(minor), "rwm")));
    rules.push(rule("c", Some(136), None, "rwm"));
    rules
}

impl DeviceRule {
    /// Whether it takes the place of all rules before it. Its numbers and its access are ignored, as cgroup v1 does (security/device_cgroup.c,
    /// `devcgroup_update_access`), and runc on both versions.
    fn is_for_all(&self) -> bool {
        matches!(self.kind.as_str(), "" | "a")
    }

    /// Whether it allows more than it says.
    pub(crate) fn is_wider_than_it_says(&self) -> bool {
        let every = |number: Option<i64>| matches!(number, None | Some(-1));
        let all = every(self.major) && every(self.minor) && access(&self.access).is_ok_and(|access| access.is_all());
        self.allow && self.is_for_all() && !all
    }
}

impl Policy {
    /// The policy of a container: everything is denied but what `rules`, in order, allow, and [`default_rules`].
    ///
    /// # Errors
    /// `InvalidArgument` naming the rule that is malformed or that v1 could not express.
    pub fn of_container(rules: &[DeviceRule]) -> Result<Self> {
        let mut policy = Self { allow: false, exceptions: BTreeMap::new() };
        for (index, rule) in rules.iter().enumerate() {
            policy.apply(rule).map_err(|error| error.context(format!("resources.devices[{index}]")))?;
        }
        // Where all is allowed, the default rules could only lift what the container's own rules deny by name.
        if !policy.allow {
            default_rules().iter().try_for_each(|rule| policy.apply(rule))?;
        }
        Ok(policy)
    }

    /// What `devices.list` of a v1 group says. The exceptions to "all allowed" are not listed there; neither are they ever needed.
    fn current(devices_list: &str) -> Self {
        let mut policy = Self { allow: false, exceptions: BTreeMap::new() };
        for line in devices_list.lines() {
            match parse_line(line) {
                Some((devices, access)) => policy.add(devices, access),
                // "a *:* rwm", or a line that is not understood: start over from a known state.
                None => return Self { allow: true, exceptions: BTreeMap::new() },
            }
        }
        policy
    }

    fn apply(&mut self, rule: &DeviceRule) -> Result<()> {
        let kind = match rule.kind.as_str() {
            "c" => Kind::Char,
            "b" => Kind::Block,
            _ if rule.is_for_all() => {
                *self = Self { allow: rule.allow, exceptions: BTreeMap::new() };
                return Ok(());
            }
            other => return Err(Error::invalid(format!("{other:?} is not a type of device that a rule can name"))),
        };
        let (devices, access) = (Devices { kind, major: number(rule.major)?, minor: number(rule.minor)? }, access(&rule.access)?);
        if rule.allow == self.allow {
            return self.remove(devices, access);
        }
        self.add(devices, access);
        Ok(())
    }

    fn add(&mut self, devices: Devices, access: Access) {
        if access.is_empty() {
            return;
        }
        let entry = self.exceptions.entry(devices).or_insert(Access::empty());
        *entry |= access;
    }

    /// Takes `access` to `devices` back out of the exceptions, also out of narrower ones: the last rule counts. (runc, like a write to
    /// `devices.deny`, leaves narrower ones.) A part of a wider exception cannot be taken out, no version of the kernel has a form for that.
    fn remove(&mut self, devices: Devices, access: Access) -> Result<()> {
        let overlapping = self.exceptions.iter_mut().filter(|(other, held)| other.overlaps(devices) && held.intersects(access));
        for (other, held) in overlapping {
            if !other.is_within(devices) {
                return Err(Error::invalid(format!(
                    "{} cannot be taken out of the wider rule {}",
                    text(devices, access),
                    text(*other, *held)
                )));
            }
            *held -= access;
        }
        self.exceptions.retain(|_, held| !held.is_empty());
        Ok(())
    }

    /// The writes, (file, line), that lead a v1 group whose `devices.list` is given to this policy, disturbing what stays allowed as little
    /// as possible: a running container must not see its devices denied in between.
    pub fn transition(&self, devices_list: &str) -> Vec<(&'static str, String)> {
        let mut current = Self::current(devices_list);
        let mut writes = Vec::new();
        let file = |allow| if allow { "devices.allow" } else { "devices.deny" };
        if current.allow || current.allow != self.allow {
            writes.push((file(self.allow), "a".to_owned()));
            current.exceptions.clear();
        }
        let difference = |from: &Self, to: &Self, allow| {
            let missing = |(devices, access): (&Devices, &Access)| {
                let rest = *access - to.exceptions.get(devices).copied().unwrap_or(Access::empty());
                (!rest.is_empty()).then(|| (file(allow), text(*devices, rest)))
            };
            from.exceptions.iter().filter_map(missing).collect::<Vec<_>>()
        };
        writes.extend(difference(&current, self, self.allow));
        writes.extend(difference(self, &current, !self.allow));
        writes
    }
}

/// Letters other than `r`, `w` and `m` mean nothing, as with runc.
fn access(letters: &str) -> Result<Access> {
    if letters.is_empty() {
        return Err(Error::invalid("access cannot be empty"));
    }
    Ok(letters.chars().fold(Access::empty(), |access, letter| match letter {
        'r' => access | Access::READ,
        'w' => access | Access::WRITE,
        'm' => access | Access::MKNOD,
        _ => access,
    }))
}

fn number(value: Option<i64>) -> Result<Option<u32>> {
    match value {
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value).map(Some).map_err(|_| Error::invalid(format!("{value} is not a device number"))),
    }
}

/// The line of v1's `devices.allow`, `devices.deny` and `devices.list`.
fn text(devices: Devices, access: Access) -> String {
    let letters = [(Access::READ, "r"), (Access::WRITE, "w"), (Access::MKNOD, "m")];
    let letters: String = letters.into_iter().filter(|(flag, _)| access.contains(*flag)).map(|(_, letter)| letter).collect();
    format!("{devices} {letters}")
}

fn parse_line(line: &str) -> Option<(Devices, Access)> {
    let mut words = line.split([' ', ':']);
    let kind = match words.next()? {
        "c" => Kind::Char,
        "b" => Kind::Block,
        _ => return None,
    };
    let mut number = || match words.next()? {
        "*" => Some(None),
        digits => digits.parse().ok().map(Some),
    };
    let (major, minor) = (number()?, number()?);
    Some((Devices { kind, major, minor }, access(words.next()?).ok()?))
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        let kind = if self.kind == Kind::Block { 'b' } else { 'c' };
        write!(f, "{kind} {}:{}", number(self.major), number(self.minor))
    }
}

#[cfg(test)]
mod tests;
