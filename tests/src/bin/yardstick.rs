//! What the kernel alone takes for a start and an exec.
//!
//! usage: yardstick [COUNT [own|given [host|bare]]]
//! COUNT samples, a network namespace of its own or a given one, the host's cgroups or a bare version 2 tree.

use std::process::ExitCode;

use tests::Result;
use tests::bench::floor::Floor;
use tests::bench::place::{Cgroups, Net};
use tests::bench::stats::quantile;
use tests::bench::worker::Contender;

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("yardstick: {e}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| args.iter().any(|arg| arg == word);
    let count: usize = args.first().map_or(Ok(200), |arg| arg.parse())?;
    let net = if has("given") { Net::Given } else { Net::Own };
    let cgroups = if has("bare") { Cgroups::Bare } else { Cgroups::Host };
    let mut floor = Floor::new(cgroups, net)?;
    let samples = (0..count).map(|_| floor.sample()).collect::<Result<Vec<_>>>()?;
    for name in ["start", "run", "exec", "exec run"] {
        let values: Vec<f64> = samples.iter().map(|sample| sample[name]).collect();
        let [low, middle, high] = [0.1, 0.5, 0.9].map(|q| quantile(&values, q));
        println!("{name:<9} p10 {low:8.1}  p50 {middle:8.1}  p90 {high:8.1} µs");
    }
    Ok(())
}
