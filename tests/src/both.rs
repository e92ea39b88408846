//! Suites whose cases run by both ways into the runtime, see [`Bed`].

use std::process::ExitCode;

use crate::Result;
use crate::bed::Bed;
use crate::hand::Hand;
use crate::oci::Oci;
use crate::requests;
use crate::start::Protocol;
use crate::suite::{self, Named};

/// A case by its name.
pub type Entry = (&'static str, fn(&mut Bed<'_>) -> Result<()>);

/// Names each function by its path.
#[macro_export]
macro_rules! both_cases {
    ($($name:path),* $(,)?) => { vec![$((stringify!($name), $name as fn(&mut $crate::bed::Bed<'_>) -> $crate::Result<()>)),*] };
}

/// A suite of cases over both ways, and of those that only the shim has.
pub struct Suite {
    /// The first word of each case's name.
    pub name: &'static str,
    /// By both versions of the task service and the command line.
    pub both: Vec<Entry>,
    /// The same, but by version 3 alone: what takes long.
    pub both_once: Vec<Entry>,
    /// By both versions of the task service.
    pub shim: Vec<requests::Entry>,
    /// By version 3 alone.
    pub shim_once: Vec<requests::Entry>,
}

impl Suite {
    /// The whole of a suite's `main`.
    pub fn main(self) -> ExitCode {
        let mut cases: Vec<Named> = Vec::new();
        for &protocol in requests::protocols() {
            let more = if protocol == Protocol::V17 { &[][..] } else { &self.both_once };
            for &(case, run) in self.both.iter().chain(more) {
                let run = move || Hand::run(protocol, |hand| Bed::with_shim(hand, run));
                cases.push((format!("{}::shim::{protocol:?}::{}", self.name, case.replace(' ', "")), Box::new(run)));
            }
        }
        cases.extend(requests::named(&format!("{}::shim", self.name), self.shim, self.shim_once));
        for &(case, run) in self.both.iter().chain(&self.both_once) {
            let run = move || Oci::run(|oci| run(&mut Bed::with_command(oci)));
            cases.push((format!("{}::command_line::{}", self.name, case.replace(' ', "")), Box::new(run)));
        }
        suite::main_of(cases)
    }
}
