//! Ranges to classic BPF: a balanced tree of comparisons of the number, with the rules on arguments at its leaves.
//!
//! Loading a filter costs about what the kernel spends on emulating it once for every number (kernel/seccomp.c,
//! `seccomp_cache_prepare`), so what counts is the depth. Programs are built from their end: jumps only go forward, so what an
//! instruction jumps to exists before it.

use oci_spec::runtime::LinuxSeccompOperator as Operator;

use super::Insn;
use super::arch::X32_BIT;
use super::profile::{Condition, RET_KILL_THREAD, Rule};
use super::ranges::{Ranges, Verdict};
use crate::error::{Error, Result};

/// `BPF_MAXINSNS` (include/uapi/linux/bpf_common.h).
const MAX_INSTRUCTIONS: usize = 4096;

/// include/uapi/linux/bpf_common.h.
const LD_W_ABS: u16 = 0x20;
const ALU_AND_K: u16 = 0x54;
const JA: u16 = 0x05;
const JEQ_K: u16 = 0x15;
const JGT_K: u16 = 0x25;
const JGE_K: u16 = 0x35;
const JSET_K: u16 = 0x45;
const RET_K: u16 = 0x06;

/// Offsets in `struct seccomp_data` (include/uapi/linux/seccomp.h).
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

/// Where a comparison goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Return(u32),
    /// An instruction, counted from the end of the program.
    Label(usize),
}

/// A program, last instruction first.
#[derive(Default)]
struct Program {
    reversed: Vec<Insn>,
    /// Where each value is returned nearest to the start.
    returns: Vec<(u32, usize)>,
}

/// Compiles the ranges of all architectures; any other one is killed, as libseccomp's `SCMP_FLTATR_ACT_BADARCH` says by default.
///
/// # Errors
/// More instructions than the kernel accepts.
pub(super) fn program(architectures: &[Ranges], default: u32) -> Result<Vec<Insn>> {
    let mut program = Program::default();
    let mut dispatch = Target::Return(RET_KILL_THREAD);
    for ranges in architectures.iter().rev() {
        let tree = Tree { ranges, default }.emit(&mut program);
        dispatch = program.compare(JEQ_K, ranges.audit, tree, dispatch);
    }
    program.load(ARCH, dispatch);
    if program.reversed.len() > MAX_INSTRUCTIONS {
        return Err(Error::invalid(format!(
            "linux.seccomp.syscalls: the filter takes {} instructions, the kernel accepts {MAX_INSTRUCTIONS}",
            program.reversed.len()
        )));
    }
    program.reversed.reverse();
    Ok(program.reversed)
}

impl Program {
    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> usize {
        self.reversed.push(Insn { code, jt, jf, k });
        self.reversed.len() - 1
    }

    /// How far a comparison that is emitted next jumps to `label`. `None`: too far.
    fn distance(&self, label: usize) -> Option<u8> {
        u8::try_from(self.reversed.len() - 1 - label).ok()
    }

    /// A label for `target` that a comparison can reach even if one more instruction comes between.
    fn reach(&mut self, target: Target) -> usize {
        let near = |program: &Self, label| program.distance(label).is_some_and(|distance| distance < u8::MAX);
        match target {
            Target::Label(label) if near(self, label) => label,
            Target::Label(label) => {
                let distance = self.reversed.len() - 1 - label;
                self.push(JA, 0, 0, u32::try_from(distance).unwrap_or(u32::MAX))
            }
            Target::Return(value) => self.returned(value),
        }
    }

    fn returned(&mut self, value: u32) -> usize {
        let known = self.returns.iter().position(|(known, _)| *known == value);
        if let Some(at) = known
            && self.distance(self.returns[at].1).is_some_and(|distance| distance < u8::MAX)
        {
            return self.returns[at].1;
        }
        let label = self.push(RET_K, 0, 0, value);
        match known {
            Some(at) => self.returns[at].1 = label,
            None => self.returns.push((value, label)),
        }
        label
    }

    /// Compares A with `k`.
    fn compare(&mut self, code: u16, k: u32, yes: Target, no: Target) -> Target {
        if yes == no {
            return yes;
        }
        // Reaching `no` may put one instruction after `yes`; `reach` allows for it.
        let labels = [self.reach(yes), self.reach(no)];
        let [jt, jf] = labels.map(|label| self.distance(label).unwrap_or(u8::MAX));
        Target::Label(self.push(code, jt, jf, k))
    }

    /// Loads a word of `seccomp_data` into A and goes on with `next`.
    fn load(&mut self, offset: u32, next: Target) -> Target {
        self.fall_into(next);
        Target::Label(self.push(LD_W_ABS, 0, 0, offset))
    }

    /// Makes `next` the instruction after the one to be emitted.
    fn fall_into(&mut self, next: Target) {
        match next {
            Target::Label(label) if label + 1 == self.reversed.len() => {}
            Target::Label(label) => {
                let distance = self.reversed.len() - 1 - label;
                self.push(JA, 0, 0, u32::try_from(distance).unwrap_or(u32::MAX));
            }
            Target::Return(value) => {
                self.push(RET_K, 0, 0, value);
            }
        }
    }
}

/// The search for a number among the ranges of one architecture.
struct Tree<'a> {
    ranges: &'a Ranges,
    default: u32,
}

impl Tree<'_> {
    fn emit(&self, program: &mut Program) -> Target {
        let root = self.search(program, &units(&self.ranges.ranges));
        match root {
            Target::Return(_) => root,
            Target::Label(_) => program.load(NR, root),
        }
    }

    fn search(&self, program: &mut Program, units: &[Unit<'_>]) -> Target {
        let (low, high) = units.split_at(heavy_middle(units));
        let (false, Some(pivot)) = (low.is_empty(), high.first()) else {
            return high.first().map_or(Target::Return(self.default), |unit| self.unit(program, unit.ranges));
        };
        let above = self.search(program, high);
        let below = self.search(program, low);
        program.compare(JGE_K, pivot.ranges[0].0, above, below)
    }

    fn unit(&self, program: &mut Program, unit: &[(u32, Verdict)]) -> Target {
        let outer = self.leaf(program, &unit[0]);
        match unit.get(1) {
            Some(single) => {
                let inner = self.leaf(program, single);
                program.compare(JEQ_K, single.0, inner, outer)
            }
            None => outer,
        }
    }

    fn leaf(&self, program: &mut Program, (nr, verdict): &(u32, Verdict)) -> Target {
        match verdict {
            Verdict::Return(value) => Target::Return(*value),
            Verdict::Rules(rules) => {
                let wide = self.ranges.wide && nr & X32_BIT == 0;
                rules.iter().rev().fold(Target::Return(self.default), |otherwise, rule| emit_rule(program, rule, wide, otherwise))
            }
        }
    }
}

/// No more calls than this in a row have the same answer in a profile that is worth optimizing for.
const LONGEST_RUN: u32 = 128;

/// What the search ends at.
struct Unit<'a> {
    /// One range; or three, where a single number interrupts a range: telling it apart takes one comparison.
    ranges: &'a [(u32, Verdict)],
    /// How many numbers the kernel will try in here.
    weight: u32,
}

/// Groups ranges for the search.
fn units(ranges: &[(u32, Verdict)]) -> Vec<Unit<'_>> {
    let mut units = Vec::new();
    let mut rest = ranges;
    while let Some(first) = rest.first() {
        let size = match rest {
            [before, single, after, ..] if before.1 == after.1 && single.0 + 1 == after.0 => 3,
            _ => 1,
        };
        let (unit, others) = rest.split_at(size);
        let end = others.first().map_or(u32::MAX, |next| next.0);
        // It tries those it has, and none of x32: gaps and what lies beyond count little.
        let tried = if end < X32_BIT { (end - first.0).min(LONGEST_RUN) } else { 0 };
        units.push(Unit { ranges: unit, weight: tried + 1 });
        rest = others;
    }
    units
}

/// Where to split so that both sides weigh about the same; neither is empty if there are two units.
fn heavy_middle(units: &[Unit<'_>]) -> usize {
    let total: u32 = units.iter().map(|unit| unit.weight).sum();
    let mut below = 0;
    let splits = units.iter().enumerate().skip(1).map(|(at, _)| {
        below += units[at - 1].weight;
        (at, below.abs_diff(total - below))
    });
    splits.min_by_key(|(_, difference)| *difference).map_or(0, |(at, _)| at)
}

fn emit_rule(program: &mut Program, rule: &Rule, wide: bool, otherwise: Target) -> Target {
    rule.conditions
        .iter()
        .rev()
        .fold(Target::Return(rule.action), |met, condition| emit_condition(program, condition, wide, met, otherwise))
}

/// Compares an argument, the upper word first. Every operator is one of three, or the opposite of one.
fn emit_condition(program: &mut Program, condition: &Condition, wide: bool, yes: Target, no: Target) -> Target {
    let (code, yes, no) = match condition.op {
        Operator::ScmpCmpEq | Operator::ScmpCmpMaskedEq => (JEQ_K, yes, no),
        Operator::ScmpCmpNe => (JEQ_K, no, yes),
        Operator::ScmpCmpGt => (JGT_K, yes, no),
        Operator::ScmpCmpLe => (JGT_K, no, yes),
        Operator::ScmpCmpGe => (JGE_K, yes, no),
        Operator::ScmpCmpLt => (JGE_K, no, yes),
    };
    let (mask, value) = (words(condition.mask), words(condition.value));
    let offset = ARGS + 8 * u32::from(condition.index);
    let (high, low) = if cfg!(target_endian = "little") { (offset + 4, offset) } else { (offset, offset + 4) };
    if code == JEQ_K {
        let low = emit_equal(program, low, mask[1], value[1], yes, no);
        return if wide { emit_equal(program, high, mask[0], value[0], low, no) } else { low };
    }
    let low_words = program.compare(code, value[1], yes, no);
    let low_words = program.load(low, low_words);
    if !wide {
        return low_words;
    }
    let equal = program.compare(JEQ_K, value[0], low_words, no);
    let greater = program.compare(JGT_K, value[0], yes, equal);
    program.load(high, greater)
}

fn emit_equal(program: &mut Program, offset: u32, mask: u32, value: u32, yes: Target, no: Target) -> Target {
    match (mask, value) {
        (0, _) => return yes,
        (u32::MAX, _) => {
            let compared = program.compare(JEQ_K, value, yes, no);
            return program.load(offset, compared);
        }
        (_, 0) => {
            let tested = program.compare(JSET_K, mask, no, yes);
            return program.load(offset, tested);
        }
        _ => {}
    }
    let compared = program.compare(JEQ_K, value, yes, no);
    program.fall_into(compared);
    let masked = Target::Label(program.push(ALU_AND_K, 0, 0, mask));
    program.load(offset, masked)
}

/// The upper and the lower word.
fn words(value: u64) -> [u32; 2] {
    [(value >> 32) as u32, (value & u64::from(u32::MAX)) as u32]
}
