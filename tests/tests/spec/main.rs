//! What `config.json` asks for where the daemon has a part in it: set by hand, seen from inside the container.

mod devices;
mod listener;

use std::process::ExitCode;

use tests::{hand_cases, requests};

fn main() -> ExitCode {
    let cases = hand_cases![
        listener::of_the_first_process,
        listener::early_and_of_hooks,
        listener::of_execs,
        listener::nobody_listens,
        devices::moved_with_addresses,
        devices::put_back,
    ];
    requests::main("spec", cases, Vec::new())
}
