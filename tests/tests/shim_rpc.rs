//! The shim alone, called as each generation of containerd calls it: start-up, the task service, events, `delete`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use tests::command;
use tests::events::Kind;
use tests::failpoint::{DIRECTORY, IDLE, MOMENTS, RPCS};
use tests::hand::Hand;
use tests::rpc::refused;
use tests::start::Protocol;
use tests::{Result, containerd::eventually, ensure, ensure_eq, order, paths, proc, suite};
use ttrpc::Code;

const SOON: Duration = Duration::from_secs(10);

type Entry = (&'static str, fn(&mut Hand) -> Result<()>);

const CASES: &[Entry] = &[
    ("life_of_a_container", life_of_a_container),
    ("exec", exec),
    ("exec_beside_cgroups_of_the_containers_own", exec_beside_cgroups_of_the_containers_own),
    ("unknown_ids", unknown_ids),
    ("pause_and_pids", pause_and_pids),
    ("stats_fit_the_cgroup_mode", stats_fit_the_cgroup_mode),
    ("group_shares_one_shim", group_shares_one_shim),
    ("events_survive_containerd", events_survive_containerd),
    ("delete_after_the_shim_was_killed", delete_after_the_shim_was_killed),
    ("delete_with_a_record_that_is_none", delete_with_a_record_that_is_none),
];

fn main() -> ExitCode {
    let mut cases: Vec<suite::Named> = Vec::new();
    for protocol in Protocol::known() {
        for (name, case) in CASES {
            cases.push((format!("shim_rpc::{protocol:?}::{name}"), Box::new(move || Hand::run(*protocol, case))));
        }
    }
    cases.push(("shim_rpc::failpoints_are_not_in_the_program".to_owned(), Box::new(failpoints_are_not_in_the_program)));
    suite::main_of(cases)
}

fn life_of_a_container(hand: &mut Hand) -> Result<()> {
    let bundle = hand.bundle("a", &["sh", "-c", "echo written >/mark; exit 7"])?;
    let shim = hand.shim(&bundle)?;
    let pid = shim.create_quiet(&bundle)?;
    let state = shim.state(&bundle.id, "")?;
    ensure_eq!((state.pid, state.status.value()), (pid, 1), "pid and status CREATED");
    ensure_eq!(shim.start(&bundle.id, "")?, pid, "pid of Start");
    let exit = shim.wait(&bundle.id, "")?;
    ensure_eq!(exit.exit_status, 7, "status of Wait");
    ensure_eq!(std::fs::read_to_string(bundle.written("mark"))?, "written\n", "what it wrote to its overlay");
    ensure_eq!(shim.wait(&bundle.id, "")?.exited_at, exit.exited_at, "a second Wait");
    refused(shim.kill(&bundle.id, "", 15), Code::NOT_FOUND, "")?;
    let gone = shim.delete(&bundle.id, "")?;
    ensure_eq!((gone.pid, gone.exit_status), (pid, 7), "answer of Delete");
    hand.stub.record.wait(&bundle.id, Kind::Delete, SOON)?;
    order::check_complete(&hand.stub.record.of(&bundle.id))?;
    shim.shutdown(&bundle.id)
}

fn exec(hand: &mut Hand) -> Result<()> {
    let bundle = hand.bundle("a", &["sleep", "1000"])?;
    let shim = hand.shim(&bundle)?;
    shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    shim.exec(&bundle.id, "e", &["sh", "-c", "exit 3"])?;
    refused(shim.exec(&bundle.id, "e", &["true"]), Code::ALREADY_EXISTS, "")?;
    shim.start(&bundle.id, "e")?;
    ensure_eq!(shim.wait(&bundle.id, "e")?.exit_status, 3, "exit status");
    hand.stub.record.wait_exec(&bundle.id, "e", Kind::Exit, SOON)?;
    ensure_eq!(shim.delete(&bundle.id, "e")?.exit_status, 3, "exit status of Delete");
    // The second outlives the init's SIGKILL only if the order of the exits is wrong.
    shim.exec(&bundle.id, "f", &["sleep", "1000"])?;
    shim.start(&bundle.id, "f")?;
    shim.kill(&bundle.id, "", 9)?;
    ensure_eq!(shim.wait(&bundle.id, "")?.exit_status, 137, "exit status of the init");
    ensure_eq!(shim.wait(&bundle.id, "f")?.exit_status, 137, "exit status of its exec");
    shim.delete(&bundle.id, "")?;
    shim.shutdown(&bundle.id)
}

/// What systemd or a container engine in a container does to its cgroup of version 2; where that has no controllers, only the move is made.
fn exec_beside_cgroups_of_the_containers_own(hand: &mut Hand) -> Result<()> {
    let bundle = hand.bundle("a", &["sleep", "1000"])?;
    let shim = hand.shim(&bundle)?;
    let pid = shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    if let Some(cgroup) = proc::unified_cgroup_of(pid) {
        std::fs::create_dir(cgroup.join("init"))?;
        std::fs::write(cgroup.join("init/cgroup.procs"), pid.to_string())?;
        for controller in std::fs::read_to_string(cgroup.join("cgroup.controllers"))?.split_whitespace() {
            std::fs::write(cgroup.join("cgroup.subtree_control"), format!("+{controller}"))?;
        }
    }
    shim.exec(&bundle.id, "e", &["sh", "-c", "exit 3"])?;
    shim.start(&bundle.id, "e")?;
    ensure_eq!(shim.wait(&bundle.id, "e")?.exit_status, 3, "exit status");
    shim.kill(&bundle.id, "", 9)?;
    shim.wait(&bundle.id, "")?;
    shim.delete(&bundle.id, "")?;
    shim.shutdown(&bundle.id)
}

fn unknown_ids(hand: &mut Hand) -> Result<()> {
    let bundle = hand.bundle("a", &["sleep", "1000"])?;
    let shim = hand.shim(&bundle)?;
    refused(shim.state("nobody", ""), Code::NOT_FOUND, "")?;
    refused(shim.delete("nobody", ""), Code::NOT_FOUND, "")?;
    refused(shim.pids("nobody"), Code::NOT_FOUND, "")?;
    ensure!(shim.connected("nobody").is_ok(), "Connect is refused");
    shim.create_quiet(&bundle)?;
    refused(shim.state(&bundle.id, "nobody"), Code::NOT_FOUND, "")?;
    refused(shim.start(&bundle.id, "nobody"), Code::NOT_FOUND, "")?;
    shim.kill(&bundle.id, "", 9)?;
    shim.wait(&bundle.id, "")?;
    shim.delete(&bundle.id, "")?;
    refused(shim.delete(&bundle.id, ""), Code::NOT_FOUND, "")?;
    shim.shutdown(&bundle.id)
}

fn pause_and_pids(hand: &mut Hand) -> Result<()> {
    let bundle = hand.bundle("a", &["sh", "-c", "sleep 1000 & sleep 1000 & wait"])?;
    let shim = hand.shim(&bundle)?;
    let pid = shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    eventually("three pids", SOON, || shim.pids(&bundle.id).is_ok_and(|pids| pids.len() == 3 && pids.contains(&pid)))?;
    shim.pause(&bundle.id)?;
    ensure_eq!(shim.state(&bundle.id, "")?.status.value(), 4, "status PAUSED");
    shim.resume(&bundle.id)?;
    ensure_eq!(shim.state(&bundle.id, "")?.status.value(), 2, "status RUNNING");
    shim.kill(&bundle.id, "", 9)?;
    shim.wait(&bundle.id, "")?;
    shim.delete(&bundle.id, "")?;
    shim.shutdown(&bundle.id)
}

fn stats_fit_the_cgroup_mode(hand: &mut Hand) -> Result<()> {
    let bundle = hand.bundle("a", &["sleep", "1000"])?;
    let shim = hand.shim(&bundle)?;
    shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    let unified = proc::is_cgroup_v2();
    let expected = if unified { "io.containerd.cgroups.v2.Metrics" } else { "io.containerd.cgroups.v1.Metrics" };
    ensure_eq!(shim.stats(&bundle.id)?.type_url.trim_start_matches("type.googleapis.com/"), expected, "type of Stats");
    shim.kill(&bundle.id, "", 9)?;
    shim.wait(&bundle.id, "")?;
    shim.delete(&bundle.id, "")?;
    shim.shutdown(&bundle.id)
}

fn group_shares_one_shim(hand: &mut Hand) -> Result<()> {
    let mut first = hand.bundle("a", &["sleep", "1000"])?;
    let mut second = hand.bundle("b", &["sleep", "1000"])?;
    let group = hand.watch("group");
    for bundle in [&mut first, &mut second] {
        bundle.edit(|spec| spec["annotations"] = serde_json::json!({"io.kubernetes.cri.sandbox-id": group}))?;
    }
    let answers = hand.launch(|launch| Ok((launch.start(&first.dir, &first.id)?, launch.start(&second.dir, &second.id)?)))?;
    ensure_eq!(answers.0, answers.1, "answers of start");
    let shim = tests::rpc::Shim::connect(&answers.0.address, answers.0.version)?;
    for bundle in [&first, &second] {
        shim.create_quiet(bundle)?;
        shim.start(&bundle.id, "")?;
    }
    shim.kill(&first.id, "", 9)?;
    shim.wait(&first.id, "")?;
    shim.delete(&first.id, "")?;
    shim.shutdown(&first.id)?;
    ensure_eq!(shim.state(&second.id, "")?.status.value(), 2, "the other one after Shutdown for the first");
    shim.kill(&second.id, "", 9)?;
    shim.wait(&second.id, "")?;
    shim.delete(&second.id, "")?;
    shim.shutdown(&second.id)?;
    if !paths::is_ours() {
        // 2.1's shim leaves the socket of a group.
        hand.remove_sockets();
    }
    Ok(())
}

fn events_survive_containerd(hand: &mut Hand) -> Result<()> {
    let bundle = hand.bundle("a", &["sleep", "1000"])?;
    let shim = hand.shim(&bundle)?;
    shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    hand.stub.record.wait(&bundle.id, Kind::Start, SOON)?;
    hand.stub.stop();
    shim.kill(&bundle.id, "", 9)?;
    shim.wait(&bundle.id, "")?;
    hand.stub.resume()?;
    hand.stub.record.wait(&bundle.id, Kind::Exit, Duration::from_secs(20))?;
    shim.delete(&bundle.id, "")?;
    shim.shutdown(&bundle.id)
}

fn delete_after_the_shim_was_killed(hand: &mut Hand) -> Result<()> {
    let bundle = hand.bundle("a", &["sh", "-c", "sleep 1000 & exec sleep 1000"])?;
    let shim = hand.shim(&bundle)?;
    let pid = shim.create_quiet(&bundle)?;
    shim.start(&bundle.id, "")?;
    hand.kill_shims()?;
    let answer = hand.launch(|launch| launch.delete(&bundle.dir, &bundle.id))?;
    ensure_eq!((answer.pid, answer.exit_status), (pid, 137), "answer of delete");
    eventually("the container is gone", Duration::from_secs(5), || proc::process(pid).is_none())?;
    if paths::is_ours() {
        // runc's shim refuses a second one, ours is idempotent.
        hand.launch(|launch| launch.delete(&bundle.dir, &bundle.id))?;
    } else {
        // And it leaves the socket of a killed shim.
        hand.remove_sockets();
    }
    Ok(())
}

/// Whatever lies in the record's place, the container is ended, by what else the bundle has.
fn delete_with_a_record_that_is_none(hand: &mut Hand) -> Result<()> {
    if !paths::is_ours() {
        return Ok(());
    }
    for (number, kind) in ["empty", "other", "foreign", "fifo", "link"].into_iter().enumerate() {
        let bundle = hand.bundle(&format!("a{number}"), &["sh", "-c", "sleep 1000 & exec sleep 1000"])?;
        let shim = hand.shim(&bundle)?;
        let pid = shim.create_quiet(&bundle)?;
        shim.start(&bundle.id, "")?;
        hand.kill_shims()?;
        let record = bundle.dir.join("coracle.json");
        let text = std::fs::read_to_string(&record)?;
        std::fs::remove_file(&record)?;
        match kind {
            "empty" => std::fs::write(&record, "")?,
            "other" => std::fs::write(&record, "{\"some\": [\"thing\"]}")?,
            "foreign" => std::fs::write(&record, text.replace(&bundle.id, "somebody-else").replace(&pid.to_string(), "1"))?,
            "fifo" => nix::unistd::mkfifo(&record, nix::sys::stat::Mode::S_IRWXU)?,
            _ => std::os::unix::fs::symlink("/dev/zero", &record)?,
        }
        let answer = hand.launch(|launch| launch.delete(&bundle.dir, &bundle.id)).map_err(|e| tests::Failure(format!("{kind}: {e}")))?;
        ensure_eq!((answer.pid, answer.exit_status), (pid, 137), "answer of delete with {kind}");
        eventually("the container is gone", Duration::from_secs(5), || proc::process(pid).is_none())?;
        ensure!(!record.exists(), "the record is still there, {kind}");
    }
    Ok(())
}

/// In the program that is built for tests they are found, so the search works.
fn failpoints_are_not_in_the_program() -> Result<()> {
    if !paths::is_ours() {
        return Ok(());
    }
    let points = RPCS.iter().flat_map(|rpc| MOMENTS.map(|moment| format!("{rpc}.{moment}")));
    let words: BTreeSet<String> = points.chain([DIRECTORY.to_owned(), IDLE.to_owned()]).collect();
    ensure_eq!(found(&words, paths::failpoint_dir()?)?, words, "names in the program for tests");
    ensure_eq!(found(&words, paths::shim_dir()?)?, BTreeSet::new(), "names in the program");
    Ok(())
}

/// Which of the words are in the shim of a directory; grep has the search of many words at once.
fn found(words: &BTreeSet<String>, dir: PathBuf) -> Result<BTreeSet<String>> {
    let mut grep = Command::new("grep");
    grep.arg("-aoF").args(words.iter().flat_map(|word| ["-e", word])).arg(dir.join(paths::binary_name(paths::OURS)));
    let done = command::run(&mut grep)?;
    // 1 is "none".
    ensure!(done.code <= 1, "grep: {done:?}");
    Ok(done.stdout.lines().map(str::to_owned).collect())
}
