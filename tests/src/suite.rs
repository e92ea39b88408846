//! Runs the cases of a suite on every containerd and prints one line for each, ending as `cargo test` does.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use crate::containerd::{Containerd, Version, sweep};
use crate::events::{CtrEvents, Record};
use crate::order;
use crate::{Case, Failure, Result, both, image, paths};

/// A named case.
pub type Entry = (&'static str, fn(&Case<'_>) -> Result<()>);

/// A case by its full name, for [`main_of`].
pub type Named = (String, Box<dyn Fn() -> Result<()>>);

/// Names each function by its path.
#[macro_export]
macro_rules! cases {
    ($($name:path),* $(,)?) => { &[$((stringify!($name), $name as fn(&$crate::Case<'_>) -> $crate::Result<()>)),*] };
}

/// Whether the cgroup driver of those who use the shim is systemd's: `TEST_CGROUPS=systemd`.
pub fn by_systemd() -> bool {
    std::env::var("TEST_CGROUPS").is_ok_and(|driver| driver == "systemd")
}

/// How a suite runs.
pub struct Suite {
    /// Its name.
    pub name: &'static str,
    /// Its cases.
    pub cases: &'static [Entry],
    /// How many run at once; 1 where cases measure time.
    pub parallel: usize,
}

/// What the command line asks for: words that a case's full name must have one of, and whether only to list.
struct Choice {
    words: Vec<String>,
    list: bool,
}

impl Choice {
    fn from_args() -> Choice {
        let (flags, words): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|arg| arg.starts_with('-'));
        Choice { words, list: flags.iter().any(|flag| flag == "--list") }
    }

    fn takes(&self, name: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| name.contains(word.as_str()))
    }
}

impl Suite {
    /// The whole of a suite's `main`.
    pub fn main(&self) -> ExitCode {
        let choice = Choice::from_args();
        let began = Instant::now();
        let mut tally = Tally::default();
        if !choice.list
            && let Err(e) = sweep()
        {
            println!("what earlier runs left cannot be removed: {e}");
        }
        for version in versions() {
            let chosen: VecDeque<&Entry> = self.cases.iter().filter(|case| choice.takes(&self.full(version, case.0))).collect();
            if choice.list {
                chosen.iter().for_each(|case| println!("{}: test", self.full(version, case.0)));
            } else if !chosen.is_empty() {
                self.on(version, chosen, &mut tally);
            }
        }
        if choice.list {
            return ExitCode::SUCCESS;
        }
        tally.print(began)
    }

    fn full(&self, version: Version, case: &str) -> String {
        format!("{}::{}::{case}", self.name, version.name())
    }

    /// All chosen cases on one containerd; one that does not start fails every case.
    fn on(&self, version: Version, chosen: VecDeque<&Entry>, tally: &mut Tally) {
        let started = Containerd::start(version).and_then(|containerd| {
            containerd.import(&image::LAYERS)?;
            Ok((CtrEvents::start(&containerd)?, containerd))
        });
        let (events, mut containerd) = match started {
            Ok(started) => started,
            Err(e) => {
                return chosen.iter().for_each(|case| tally.add(&self.full(version, case.0), Instant::now(), Err(Failure(e.0.clone()))));
            }
        };
        let (queue, shared) = (Mutex::new(chosen), Mutex::new(tally));
        std::thread::scope(|scope| {
            for _ in 0..self.parallel {
                scope.spawn(|| {
                    while let Some(case) = queue.lock().ok().and_then(|mut queue| queue.pop_front()) {
                        let began = Instant::now();
                        let result = run(case, &containerd, &events.record);
                        if let Ok(mut tally) = shared.lock() {
                            tally.add(&self.full(version, case.0), began, result);
                        }
                    }
                });
            }
        });
        let Ok(tally) = shared.into_inner() else { return };
        // Over all cases at once: every container has been deleted by now.
        let check = if paths::is_ours() { order::check_complete } else { order::check_peer };
        tally.add(&self.full(version, "events_are_in_order"), Instant::now(), check(&events.record.all()));
        drop(events);
        if tally.failed > 0 {
            let kept = containerd.keep_log(&format!("{}-{}", self.name, version.name()));
            println!("containerd {}'s log: {}", version.name(), kept.map_or_else(|e| e.0, |path| path.display().to_string()));
        }
        tally.add(&self.full(version, "containerd_stops"), Instant::now(), containerd.stop());
    }
}

/// Runs one case and balances its ledger, whichever way it ended.
fn run(case: &Entry, containerd: &Containerd, events: &Record) -> Result<()> {
    let context = Case::new(containerd, events);
    let result = catch_unwind(AssertUnwindSafe(|| (case.1)(&context))).unwrap_or_else(|_| Err(Failure("panicked, see above".to_owned())));
    both(result, context.close())
}

/// The whole `main` of a suite of cases that need no common containerd: each has its full name and its function.
pub fn main_of(cases: Vec<Named>) -> ExitCode {
    let choice = Choice::from_args();
    if !choice.list
        && let Err(e) = sweep()
    {
        println!("what earlier runs left cannot be removed: {e}");
    }
    let (began, mut tally) = (Instant::now(), Tally::default());
    for (name, case) in cases.iter().filter(|case| choice.takes(&case.0)) {
        if choice.list {
            println!("{name}: test");
            continue;
        }
        let began = Instant::now();
        tally.add(name, began, catch_unwind(AssertUnwindSafe(case)).unwrap_or_else(|_| Err(Failure("panicked, see above".to_owned()))));
    }
    if choice.list { ExitCode::SUCCESS } else { tally.print(began) }
}

/// Cases that share a state and run one after the other, beside other lanes.
pub struct Lane<S> {
    /// Makes the state; a failure is that of every case.
    pub prepare: Box<dyn FnOnce() -> Result<S> + Send>,
    /// Names and functions.
    pub cases: Vec<(String, LaneCase<S>)>,
    /// The name of the last case, which takes the state down.
    pub end: (String, fn(S) -> Result<()>),
}

/// A case of a lane.
pub type LaneCase<S> = Box<dyn Fn(&mut S) -> Result<()> + Send>;

impl<S> Lane<S> {
    fn run(mut self, choice: &Choice, tally: &Mutex<Tally>) {
        self.cases.retain(|case| choice.takes(&case.0));
        let add = |name: &str, began, result| {
            if let Ok(mut tally) = tally.lock() {
                tally.add(name, began, result);
            }
        };
        if choice.list {
            return self.cases.iter().for_each(|case| println!("{}: test", case.0));
        }
        if self.cases.is_empty() {
            return;
        }
        let mut state = match (self.prepare)() {
            Ok(state) => state,
            Err(e) => return self.cases.iter().for_each(|case| add(&case.0, Instant::now(), Err(Failure(e.0.clone())))),
        };
        for (name, case) in &self.cases {
            let began = Instant::now();
            let result = catch_unwind(AssertUnwindSafe(|| case(&mut state)));
            add(name, began, result.unwrap_or_else(|_| Err(Failure("panicked, see above".to_owned()))));
        }
        add(&self.end.0, Instant::now(), (self.end.1)(state));
    }
}

/// The whole `main` of a suite whose cases come in lanes.
pub fn main_of_lanes<S>(lanes: Vec<Lane<S>>) -> ExitCode {
    let choice = Choice::from_args();
    if !choice.list
        && let Err(e) = sweep()
    {
        println!("what earlier runs left cannot be removed: {e}");
    }
    let (began, tally) = (Instant::now(), Mutex::new(Tally::default()));
    std::thread::scope(|scope| {
        for lane in lanes {
            let (choice, tally) = (&choice, &tally);
            scope.spawn(move || lane.run(choice, tally));
        }
    });
    match tally.into_inner() {
        Ok(_) if choice.list => ExitCode::SUCCESS,
        Ok(tally) => tally.print(began),
        Err(_) => ExitCode::FAILURE,
    }
}

/// `TEST_VERSIONS` ("1.6 2.x"), by default all.
pub fn versions() -> Vec<Version> {
    let wanted = std::env::var("TEST_VERSIONS").unwrap_or_default();
    Version::ALL.into_iter().filter(|version| wanted.is_empty() || wanted.split([' ', ',']).any(|name| name == version.name())).collect()
}

/// Whether the full numbers are asked for (`make test-long`), and not those that fit into `make test`.
pub fn is_long() -> bool {
    std::env::var("CORACLE_LONG").is_ok_and(|value| value == "1")
}

/// Passed and failed.
#[derive(Default)]
pub struct Tally {
    passed: usize,
    failed: usize,
}

impl Tally {
    /// Counts and prints one result.
    pub fn add(&mut self, name: &str, began: Instant, result: Result<()>) {
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("test {name} ... ok ({} ms)", began.elapsed().as_millis());
            }
            Err(e) => {
                self.failed += 1;
                println!("test {name} ... FAILED\n    {e}");
            }
        }
    }

    /// Prints the sum and answers the exit code.
    pub fn print(&self, began: Instant) -> ExitCode {
        paths::tidy();
        let good = self.failed == 0;
        let word = if good { "ok" } else { "FAILED" };
        println!(
            "\ntest result: {word}. {} passed; {} failed; runtime {}; finished in {:.1}s",
            self.passed,
            self.failed,
            paths::runtime(),
            began.elapsed().as_secs_f32()
        );
        if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
