//! What a filter answers to each number, as ranges.
//!
//! The rules of a number come in the order in which libseccomp's filters try them, so overlapping rules with different actions
//! decide alike.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use oci_spec::runtime::LinuxSeccompOperator as Operator;

use super::arch::{Architecture, X32_BIT};
use super::numbers::{self, Table};
use super::profile::{Condition, Profile, RET_ERRNO_ENOSYS, RET_KILL_THREAD, Rule};
use crate::error::{Error, Result};

/// The answer to a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Whatever the arguments are.
    Return(u32),
    /// The first rule that is met decides; none: the default action.
    Rules(Vec<Rule>),
}

/// The answers to all numbers under one `seccomp_data.arch`: each range starts at its first number and ends before the next one.
/// The first starts at 0, and neighbours differ.
#[derive(Debug)]
pub(super) struct Ranges {
    pub audit: u32,
    /// Arguments of numbers with [`X32_BIT`] are never wide.
    pub wide: bool,
    pub ranges: Vec<(u32, Verdict)>,
}

/// What the profile says to the numbers of one architecture.
struct Numbers {
    verdicts: BTreeMap<u32, Verdict>,
    /// Numbers above are hidden.
    greatest: Option<u32>,
}

/// One [`Ranges`] for every value of `seccomp_data.arch` that the profile covers, the native one first.
///
/// # Errors
/// Two rules that contradict each other.
pub(super) fn of(profile: &Profile<'_>) -> Result<Vec<Ranges>> {
    let mut all: Vec<Ranges> = Vec::new();
    for arch in &profile.architectures {
        if all.iter().any(|done| done.audit == arch.audit) {
            continue;
        }
        let mut ranges = Vec::new();
        let twin = |table| profile.architectures.iter().find(|other| other.audit == arch.audit && other.table == table);
        match (twin(Table::X86_64), twin(Table::X32)) {
            (None, None) => paint(&mut ranges, &Numbers::of(profile, arch)?, 0, u32::MAX, profile.default),
            (wide, x32) => paint_x86_64(&mut ranges, profile, wide.copied(), x32.copied())?,
        }
        ranges.dedup_by(|next, kept| next.1 == kept.1);
        let wide = profile.architectures.iter().any(|other| other.audit == arch.audit && other.wide);
        all.push(Ranges { audit: arch.audit, wide, ranges });
    }
    Ok(all)
}

/// x86_64 and x32 share `seccomp_data.arch` and split the numbers by [`X32_BIT`]. Where only one of them is in the filter, the half
/// of the other is a wrong architecture – save -1, which is no number of either but what a tracer sets to skip the call.
fn paint_x86_64(
    ranges: &mut Vec<(u32, Verdict)>,
    profile: &Profile<'_>,
    wide: Option<&Architecture>,
    x32: Option<&Architecture>,
) -> Result<()> {
    let absent = Numbers { verdicts: BTreeMap::new(), greatest: None };
    let wide = wide.map(|arch| Numbers::of(profile, arch)).transpose()?;
    let x32 = x32.map(|arch| Numbers::of(profile, arch)).transpose()?;
    let base = |half: &Option<Numbers>| if half.is_some() { profile.default } else { RET_KILL_THREAD };
    paint(ranges, wide.as_ref().unwrap_or(&absent), 0, X32_BIT - 1, base(&wide));
    paint(ranges, x32.as_ref().unwrap_or(&absent), X32_BIT, 2 * X32_BIT - 1, base(&x32));
    // Above, only X32_BIT tells which of the two limits holds, as in runc.
    let hidden = |half: &Option<Numbers>| half.as_ref().is_some_and(|half| half.greatest.is_some());
    ranges.push((2 * X32_BIT, Verdict::Return(if hidden(&wide) { RET_ERRNO_ENOSYS } else { base(&x32) })));
    ranges.push((3 * X32_BIT, Verdict::Return(if hidden(&x32) { RET_ERRNO_ENOSYS } else { base(&x32) })));
    if x32.is_none() {
        ranges.push((u32::MAX, Verdict::Return(profile.default)));
    }
    Ok(())
}

/// Appends the ranges from `first` to `last`.
fn paint(ranges: &mut Vec<(u32, Verdict)>, numbers: &Numbers, first: u32, last: u32, base: u32) {
    let greatest = numbers.greatest.unwrap_or(last);
    let mut next = first;
    for (&nr, verdict) in numbers.verdicts.range(first..=greatest) {
        if nr > next {
            ranges.push((next, Verdict::Return(base)));
        }
        ranges.push((nr, verdict.clone()));
        next = nr + 1;
    }
    if next <= greatest {
        ranges.push((next, Verdict::Return(base)));
    }
    if greatest < last {
        ranges.push((greatest + 1, Verdict::Return(RET_ERRNO_ENOSYS)));
    }
}

impl Numbers {
    fn of(profile: &Profile<'_>, arch: &Architecture) -> Result<Self> {
        let mut greatest = 0;
        let mut said = Vec::new();
        arch.table.for_each(|nr, name| {
            let Some(named) = profile.names.get(name) else { return };
            named.known.set(true);
            // runc asks libseccomp for the number, and that answers with none for what is multiplexed.
            if arch.multiplexers.is_none() || !is_multiplexed(name) {
                greatest = greatest.max(nr);
            }
            said.extend(named.rules.iter().map(|&rule| Said { nr, rule, call: None }));
        });
        said.extend(through_multiplexers(profile, arch));
        said.sort_by_key(|said| (said.nr, said.rule));
        let mut verdicts = BTreeMap::new();
        for of_number in said.chunk_by(|a, b| a.nr == b.nr) {
            let rules = of_number.iter().map(|said| for_arch(&profile.rules[said.rule], said.call, arch));
            verdicts.insert(of_number[0].nr, verdict(rules, profile.default)?);
        }
        let hides = profile.hides_newer_calls && greatest > 0;
        if hides && matches!(arch.table, Table::S390 | Table::S390x) {
            // Numbers that do not fit into the instruction arrive as 0 when the kernel does not know them (runc, patchbpf).
            verdicts.insert(0, Verdict::Return(RET_ERRNO_ENOSYS));
        }
        Ok(Self { verdicts, greatest: hides.then_some(greatest) })
    }
}

/// A rule for a number.
struct Said {
    nr: u32,
    /// Index of the rule.
    rule: usize,
    /// The number is that of a multiplexer, and this is its first argument.
    call: Option<u64>,
}

/// What the names of multiplexed calls say of `socketcall` and `ipc`.
fn through_multiplexers(profile: &Profile<'_>, arch: &Architecture) -> Vec<Said> {
    let mut said = Vec::new();
    let Some((socketcall, ipc)) = arch.multiplexers else { return said };
    for (nr, calls) in [(socketcall, &numbers::SOCKETCALLS[..]), (ipc, &numbers::IPCS[..])] {
        for (call, named) in calls.iter().filter_map(|(call, name)| Some((call, profile.names.get(name)?))) {
            named.known.set(true);
            said.extend(named.rules.iter().map(|&rule| Said { nr, rule, call: Some(*call) }));
        }
    }
    said
}

fn is_multiplexed(name: &str) -> bool {
    numbers::SOCKETCALLS.iter().chain(&numbers::IPCS).any(|(_, call)| *call == name)
}

/// The rule as `arch` compares it. For a multiplexed call the first argument selects the call, and a condition on what the caller
/// passes as its first argument is lost: the kernel reads it from memory, where no filter can look. libseccomp does the same.
fn for_arch(rule: &Rule, call: Option<u64>, arch: &Architecture) -> Rule {
    let mut rule = rule.clone();
    if let Some(call) = call {
        rule.conditions.retain(|condition| condition.index != 0);
        rule.conditions.insert(0, Condition { index: 0, op: Operator::ScmpCmpEq, mask: u64::MAX, value: call });
    }
    let word = if arch.wide { u64::MAX } else { u64::from(u32::MAX) };
    for condition in &mut rule.conditions {
        condition.mask &= word;
        condition.value &= word;
    }
    rule.conditions.retain(|condition| condition.mask != 0);
    rule
}

/// Joins the rules of one number, which come in the order of the profile, as libseccomp joins them: the first rule without
/// conditions wins over all others.
fn verdict(rules: impl Iterator<Item = Rule>, default: u32) -> Result<Verdict> {
    let mut kept: Vec<Rule> = Vec::new();
    let mut always = None;
    for rule in rules {
        if rule.conditions.is_empty() {
            always = always.or(Some(rule.action));
        } else if always.is_none() {
            insert(&mut kept, rule)?;
        }
    }
    if let Some(action) = always {
        return Ok(Verdict::Return(action));
    }
    kept.sort_by(precedence);
    Ok(if kept.is_empty() { Verdict::Return(default) } else { Verdict::Rules(kept) })
}

/// Adds a rule unless one with fewer of its conditions is there, and takes out what it makes redundant.
///
/// # Errors
/// A rule with these conditions, or with more after them, has another action: refused by libseccomp too (EEXIST).
fn insert(kept: &mut Vec<Rule>, rule: Rule) -> Result<()> {
    if kept.iter().any(|other| other.covers(&rule) || rule.conditions.len() > other.conditions.len() && rule.starts_with(other)) {
        return Ok(());
    }
    kept.retain(|other| !rule.covers(other));
    if let Some(other) = kept.iter().find(|other| other.starts_with(&rule)) {
        return Err(Error::invalid(format!(
            "linux.seccomp.syscalls[{}]: contradicts syscalls[{}]: the same arguments, another action",
            rule.at, other.at
        )));
    }
    kept.push(rule);
    Ok(())
}

impl Rule {
    /// Whether this rule has the action of `other`, and whenever `other` has it.
    fn covers(&self, other: &Self) -> bool {
        self.action == other.action && self.conditions.iter().all(|condition| other.conditions.contains(condition))
    }

    fn starts_with(&self, other: &Self) -> bool {
        self.conditions.starts_with(&other.conditions)
    }
}

/// The order of rules in libseccomp's trees: conditions one by one, higher arguments first, equality before ranges, tight ranges
/// before wide ones. A tie keeps the order of the profile.
fn precedence(a: &Rule, b: &Rule) -> Ordering {
    let by_condition = |(a, b): (&Condition, &Condition)| {
        let by_value = match a.op {
            Operator::ScmpCmpLt | Operator::ScmpCmpLe => a.value.cmp(&b.value),
            _ => b.value.cmp(&a.value),
        };
        b.index.cmp(&a.index).then(class(b.op).cmp(&class(a.op))).then(by_value)
    };
    a.conditions.iter().zip(&b.conditions).map(by_condition).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

fn class(op: Operator) -> u8 {
    match op {
        Operator::ScmpCmpEq | Operator::ScmpCmpNe | Operator::ScmpCmpMaskedEq => 3,
        Operator::ScmpCmpLt | Operator::ScmpCmpLe => 2,
        Operator::ScmpCmpGt | Operator::ScmpCmpGe => 1,
    }
}
