//! What `config.json` asks for where the daemon has a part in it: set by hand, seen from inside the container.

mod devices;
mod extensions;
mod listener;
mod rdt;
mod resources;

use std::process::ExitCode;
use std::time::Duration;

use tests::both::Suite;
use tests::{both_cases, hand_cases};

const SOON: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let both = both_cases![listener::sent_at_create];
    let shim = hand_cases![
        listener::of_the_first_process,
        listener::early_and_of_hooks,
        listener::of_execs,
        listener::nobody_listens,
        devices::moved_with_addresses,
        devices::put_back,
        extensions::of_crun,
        extensions::malformed,
        rdt::class_and_monitoring,
        rdt::refused_and_removed,
        rdt::after_a_dead_daemon,
        rdt::passed_over,
        resources::set_and_changed,
        resources::idle_groups,
        resources::realtime_groups,
        resources::checked_before_the_update,
    ];
    Suite { name: "spec", both, both_once: Vec::new(), shim, shim_once: Vec::new() }.main()
}
