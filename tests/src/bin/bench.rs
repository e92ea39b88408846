//! `make bench`: prints the table and writes it as JSON and as a plot. `BENCH_QUICK=1` for a short run.

use std::process::ExitCode;

use tests::Result;
use tests::bench::core::Core;
use tests::bench::ctr::Ctr;
use tests::bench::floor::Floor;
use tests::bench::network;
use tests::bench::peer::Peer;
use tests::bench::place::{Cgroups, Net};
use tests::bench::shim::Driver;
use tests::bench::worker::{Contender, serve};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["worker", kind, rest @ ..] => serve(contender(kind, rest)),
        _ => tests::bench::suite::run(),
    };
    tests::paths::tidy();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench: {e}");
            ExitCode::FAILURE
        }
    }
}

fn contender(kind: &str, words: &[&str]) -> Result<Box<dyn Contender>> {
    let cgroups = if words.contains(&"bare") { Cgroups::Bare } else { Cgroups::Host };
    let net = if words.contains(&"given") { Net::Given } else { Net::Own };
    let runtime = words.iter().copied().find(|word| matches!(*word, "runc" | "crun"));
    Ok(match kind {
        "floor" => Box::new(Floor::new(cgroups, net)?),
        "core" => Box::new(Core::new(cgroups, net)?),
        "shim" => Box::new(Driver::new(cgroups, runtime)?),
        "network" => network::contender(words)?,
        "ctr" => Box::new(Ctr::new(cgroups, runtime)?),
        name => Box::new(Peer::new(name, cgroups, net)?),
    })
}
