//! The Task contract at the socket: every RPC's promises, every code, and the corner cases that containerd's history knows.

mod codes;
mod create;
mod exec;
mod exit;
mod failures;
#[path = "../../../runtime-core/tests/launch/fuse_server.rs"]
mod fuse_server;
mod helpers;
mod kill;
mod resources;
mod streams;
mod wire;

use std::process::ExitCode;
use std::time::Duration;

use tests::{hand_cases, requests};

/// Long enough for a loaded machine, short enough to notice a hang.
const SOON: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|argument| argument == fuse_server::SERVER) {
        return fuse_server::serve().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let cases = hand_cases![
        exit::early_exit,
        exit::exit_before_the_pid_is_known,
        exit::statuses,
        exit::init_ends_while_execs_run,
        exit::init_ends_in_the_hosts_pid_namespace,
        exit::init_ends_in_a_joined_pid_namespace,
        exit::many_waiters,
        exit::wait_after_delete,
        exit::delete_while_waited_for,
        exec::id_again_after_delete,
        exec::two_at_once_of_one_id,
        exec::that_cannot_start,
        exec::in_a_created_container,
        exec::in_a_paused_container,
        exec::not_started_is_deleted,
        exec::thirty_at_once,
        exec::large_spec,
        failures::terminal_that_cannot_be_made,
        failures::exec_at_each_limit_of_descriptors,
        failures::create_at_each_limit_of_descriptors,
        failures::exec_that_hangs_is_deleted,
        failures::exec_that_is_not_there_yet_is_not_deleted,
        failures::program_that_cannot_be_executed,
        create::two_at_once_of_one_id,
        create::given_up_by_its_client,
        create::whose_client_hangs_up,
        create::deleted_on_its_way,
        create::stuck_blocks_nobody,
        create::deleted_without_a_start,
        helpers::root_by_a_helper,
        helpers::that_fail_or_hang,
        helpers::whose_server_is_silent,
        helpers::of_a_dead_daemon,
        kill::created,
        kill::paused,
        kill::standing_still,
        kill::pid_one_without_a_handler,
        kill::of_execs,
        kill::all,
        kill::numbers,
        resources::update_in_every_state,
        resources::memory_grows_and_shrinks,
        resources::memory_below_what_is_in_use,
        resources::stats_are_the_cgroups,
        resources::stats_until_delete,
        resources::pids_name_their_execs,
        streams::resize,
        streams::close_stdin,
        streams::close_stdin_before_the_start,
        codes::of_every_row,
        codes::state_answers_what_create_asked,
        codes::connect_and_shutdown,
        wire::unknown_methods_and_services,
        wire::bad_frames,
        wire::nested_message,
        wire::many_open_calls,
        wire::slow_client,
        wire::unread_answers,
    ];
    requests::main("contract", cases, hand_cases![exit::delete_while_a_grandchild_holds_the_output])
}
