//! Plans run for real, without a shim: one single-threaded process that forks a launcher, as the daemon does.
//!
//! Every test leaves the host as it found it: no mount, no process, no descriptor.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a program of tests: a failure is a panic")]

mod basics;
mod bed;
mod binds;
mod cgroups;
mod exec;
#[cfg(feature = "failpoints")]
mod failpoints;
mod fuse;
mod fuse_server;
mod hooks;
mod hostile;
mod mounts;
mod options;
mod process;
mod rootfs;
mod sealed;
mod terminal;
mod tuning;
mod users;

use std::panic::{AssertUnwindSafe, catch_unwind};

use bed::{Bed, Test};

fn main() {
    let wanted = std::env::args().nth(1).filter(|argument| !argument.starts_with('-')).unwrap_or_default();
    if wanted == sealed::CHILD {
        return sealed::child();
    }
    if wanted == sealed::ODD {
        return sealed::odd();
    }
    if wanted == fuse_server::SERVER {
        return fuse_server::serve().unwrap();
    }
    #[cfg(feature = "failpoints")]
    if wanted == failpoints::FEATURES {
        return println!("{:?}", runtime_core::kernel::Features::get());
    }
    let bed = Bed::new();
    let all = [
        basics::TESTS,
        rootfs::TESTS,
        fuse::TESTS,
        process::TESTS,
        mounts::TESTS,
        binds::TESTS,
        options::TESTS,
        terminal::TESTS,
        exec::TESTS,
        cgroups::TESTS,
        hooks::TESTS,
        hostile::TESTS,
        sealed::TESTS,
        users::TESTS,
        tuning::TESTS,
        #[cfg(feature = "failpoints")]
        failpoints::TESTS,
    ];
    let tests: Vec<&Test> = all.iter().flat_map(|list| list.iter()).filter(|(name, _)| name.contains(&wanted)).collect();
    let failed: Vec<&str> = tests.iter().filter(|test| !passes(&bed, test)).map(|(name, _)| *name).collect();
    println!("{} passed, {} failed {failed:?}", tests.len() - failed.len(), failed.len());
    std::process::exit(i32::from(!failed.is_empty()));
}

fn passes(bed: &Bed, (name, test): &Test) -> bool {
    let before = bed.traces();
    let passed = catch_unwind(AssertUnwindSafe(|| {
        test(bed);
        bed.assert_no_trace(before, name);
    }))
    .is_ok();
    println!("{}: {name}", if passed { "ok" } else { "FAILED" });
    passed
}
