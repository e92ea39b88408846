//! What a container must not be given, see or reach: looked at from inside it, and at what it could have left outside.

mod born;
mod cgroups;
mod files;
mod identity;
mod inherited;
mod inside;
mod limits;
mod mounts;
mod races;
mod rootfs;
mod watch;

use std::process::ExitCode;
use std::time::Duration;

use tests::both::Suite;
use tests::{both_cases, hand_cases};

const SOON: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let both = both_cases![
        inherited::processors_of_the_caller,
        inherited::everything_odd,
        inside::environment_is_the_specs,
        inside::the_last_of_a_name_counts,
        inside::three_descriptors,
        inside::working_directories,
        inside::programs_behind_descriptors,
        inside::no_new_privileges_and_seccomp,
        inside::masked_and_readonly_paths,
        inside::devices,
        inside::the_null_device_is_not_the_hosts,
        inside::sysctls_stay_inside,
        inside::no_controlling_terminal,
        inside::annotations_change_nothing,
        identity::capabilities,
        identity::ambient_and_inheritable,
        identity::another_user_has_no_capabilities,
        identity::an_exec_is_confined_as_its_container,
        identity::groups_are_exact,
        identity::ids_at_the_edge,
        identity::passwd_is_not_read,
        rootfs::links_in_place_of_system_directories,
        rootfs::links_in_the_way_of_mounts,
        rootfs::a_console_that_is_a_link,
        rootfs::devices_that_are_links,
        rootfs::traps_for_libraries,
        watch::nothing_of_ours_in_a_shared_pid_namespace,
        limits::the_tunnel_device_may_be_opened,
        limits::rules_for_all_devices,
        limits::sysctls_of_a_user_namespace,
        limits::numbers_that_are_no_limits,
        born::execs_by_a_tracer,
        born::execs_by_a_user,
        born::execs_in_a_user_namespace,
        born::creates_by_a_tracer,
        born::creates_by_a_user,
        born::namespaces_belong_to_the_user_namespace,
        cgroups::a_name_that_is_no_text,
        cgroups::cgroups_that_no_path_names,
        cgroups::a_refused_create_hurts_nobody,
        cgroups::processes_that_have_left_their_cgroup,
        cgroups::whoever_left_ends_with_the_rest,
        cgroups::frozen_by_others,
        cgroups::what_the_first_process_leaves,
        cgroups::many_processes_keep_nobody_waiting,
        mounts::the_host_gets_no_mounts,
        mounts::a_pinned_mount_namespace_is_left_out,
        mounts::fifteen_hundred_binds,
        mounts::unknown_options_of_binds,
        mounts::flags_of_the_source,
        mounts::flags_that_a_user_namespace_locks,
        mounts::overlays_of_the_host,
        mounts::a_filesystem_of_a_block_device,
        mounts::binds_of_an_earlier_mount,
        mounts::a_user_namespace_by_a_file,
        mounts::an_empty_namespace_path_is_none,
        mounts::odd_destinations,
        mounts::masks_over_mounts,
        mounts::a_tmpfs_with_what_it_covers,
        mounts::mounts_over_mounts,
        mounts::propagation_of_binds,
        mounts::options_of_filesystems,
    ];
    let both_once = both_cases![races::volume_paths_that_are_exchanged, races::masks_while_dev_null_is_exchanged];
    // The shim's own files and sockets, and what it does at the end of a bundle that it has mounted itself.
    let shim = hand_cases![
        files::modes_whatever_the_umask,
        files::socket_is_for_one_user,
        files::log_lines_cannot_be_forged,
        files::no_abstract_sockets,
        watch::proc_self_exe_cannot_be_written,
        mounts::a_root_of_a_block_device,
        races::a_root_that_is_a_link_at_the_end,
        cgroups::whoever_left_ends_with_the_daemon,
    ];
    let shim_once = hand_cases![
        cgroups::a_huge_container_keeps_nobody_waiting,
        races::a_walk_by_strings_is_caught,
        races::volume_paths_that_are_exchanged_slowly
    ];
    Suite { name: "security", both, both_once, shim, shim_once }.main()
}
