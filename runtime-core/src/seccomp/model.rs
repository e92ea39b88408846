//! What a profile says, read off it rule by rule: slow, and as plain as can be.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompArg, LinuxSeccompOperator as Operator};

use super::arch::{ARCHITECTURES, Architecture, X32_BIT};
use super::emulate::Call;
use super::numbers::{IPCS, SOCKETCALLS};

pub struct Model<'a> {
    profile: &'a LinuxSeccomp,
    /// By the index in `ARCHITECTURES`.
    names: HashMap<(usize, u32), &'static str>,
}

impl<'a> Model<'a> {
    pub fn new(profile: &'a LinuxSeccomp) -> Self {
        let mut names = HashMap::new();
        for (at, arch) in ARCHITECTURES.iter().enumerate() {
            arch.table.for_each(|nr, name| {
                names.insert((at, nr), name);
            });
        }
        Self { profile, names }
    }

    /// What a filter may answer: several, where rules of different actions are met and none is unconditional.
    pub fn answers(&self, call: &Call) -> Vec<u32> {
        let default = self.profile.default_action().as_u32(self.profile.default_errno_ret().map(|errno| errno & 0xffff));
        let Some((at, arch)) = ARCHITECTURES.iter().enumerate().find(|(_, arch)| self.is_meant(arch, call)) else {
            return vec![if call.arch == 0xc000_003e && call.nr == u32::MAX { default } else { 0 }];
        };
        let mut met = Vec::new();
        for entry in self.profile.syscalls().iter().flatten() {
            let action = entry.action().as_u32(entry.errno_ret().map(|errno| errno & 0xffff));
            let args = entry.args().as_deref().unwrap_or_default();
            for name in entry.names().iter().filter(|_| action != default) {
                let direct = self.names.get(&(at, call.nr)) == Some(&name.as_str());
                let through = multiplexed(arch, call, name);
                // The multiplexer's first argument takes the place of the call's own.
                let repeated = (0..6).any(|index| args.iter().filter(|arg| arg.index() == index).count() > 1);
                let counts: Vec<_> = args.iter().filter(|arg| direct || arg.index() != 0).filter(|arg| !is_void(arch, arg)).collect();
                let holds: Vec<_> = counts.iter().map(|arg| holds(arch, arg, call)).collect();
                let all = if repeated { holds.contains(&true) || counts.len() < args.len() } else { !holds.contains(&false) };
                if (direct || through) && all {
                    let unconditional = direct && if repeated { counts.len() < args.len() } else { counts.is_empty() };
                    if unconditional && !met.iter().any(|(_, unconditional)| *unconditional) {
                        met.clear();
                    }
                    if unconditional || !met.iter().any(|(_, unconditional)| *unconditional) {
                        met.push((action, unconditional));
                    }
                }
            }
        }
        match met.first() {
            None => vec![default],
            Some((action, true)) => vec![*action],
            Some(_) => met.into_iter().map(|(action, _)| action).collect(),
        }
    }

    fn is_meant(&self, arch: &Architecture, call: &Call) -> bool {
        let listed = arch.name == "SCMP_ARCH_X86_64" || self.profile.architectures().iter().flatten().any(|listed| *listed == arch.arch);
        let x32 = call.nr >= X32_BIT;
        listed && arch.audit == call.arch && (call.arch != 0xc000_003e || x32 == (arch.name == "SCMP_ARCH_X32"))
    }
}

fn multiplexed(arch: &Architecture, call: &Call, name: &str) -> bool {
    let Some((socketcall, ipc)) = arch.multiplexers else { return false };
    let calls = match call.nr {
        nr if nr == socketcall => &SOCKETCALLS[..],
        nr if nr == ipc => &IPCS[..],
        _ => return false,
    };
    calls.contains(&(word(arch, call.args[0]), name))
}

fn word(arch: &Architecture, value: u64) -> u64 {
    if arch.wide { value } else { value & 0xffff_ffff }
}

/// A comparison of no bits holds always.
fn is_void(arch: &Architecture, arg: &LinuxSeccompArg) -> bool {
    arg.op() == Operator::ScmpCmpMaskedEq && word(arch, arg.value()) == 0
}

fn holds(arch: &Architecture, arg: &LinuxSeccompArg, call: &Call) -> bool {
    let (have, value) = (word(arch, call.args[arg.index()]), word(arch, arg.value()));
    match arg.op() {
        Operator::ScmpCmpNe => have != value,
        Operator::ScmpCmpLt => have < value,
        Operator::ScmpCmpLe => have <= value,
        Operator::ScmpCmpEq => have == value,
        Operator::ScmpCmpGe => have >= value,
        Operator::ScmpCmpGt => have > value,
        Operator::ScmpCmpMaskedEq => have & value == arg.value_two().unwrap_or(0) & value,
    }
}
