//! Bad input: what cannot be done is refused in one line with step, object and reason, with the code that containerd maps, and leaves nothing.

mod hostile;
mod linux;
mod process;
mod request;
mod root;

use std::process::ExitCode;
use std::time::Duration;

use proto::api::CreateTaskRequest;
use serde_json::{Value, json};
use tests::bundle::Bundle;
use tests::hand::Hand;
use tests::requests::{self, create_request, expect_nothing_of, files_of, ran};
use tests::rpc::Shim;
use tests::{Context, Failure, Result, ensure, ensure_eq, hand_cases};
use ttrpc::Code;

fn main() -> ExitCode {
    let cases = hand_cases![
        configuration,
        process::process,
        process::users_and_limits,
        root::rootfs,
        request::runtime_options,
        root::mounts,
        linux::seccomp_profiles,
        linux::cgroup_paths,
        linux::limits,
        linux::namespaces,
        linux::user_namespaces,
        linux::sysctls,
        root::devices,
        request::hooks,
        request::streams,
        linux::labels,
        process::commands,
        process::unknown_capability_only_warns,
        the_shim_goes_on,
    ];
    requests::main("bad_input", cases, hand_cases![hostile::every_field])
}

/// What is wrong, put into a bundle or a request that was right.
type Change = Box<dyn Fn(&mut Bundle, &mut CreateTaskRequest) -> Result<()>>;

/// One refusal: what is changed, the code, and the words that the message must have.
struct Row {
    change: Change,
    code: Code,
    words: Vec<&'static str>,
}

fn row(change: impl Fn(&mut Bundle, &mut CreateTaskRequest) -> Result<()> + 'static, code: Code, words: &[&'static str]) -> Row {
    Row { change: Box::new(change), code, words: words.to_vec() }
}

/// A refusal of a specification.
fn spec(change: impl Fn(&mut Value) + 'static, code: Code, words: &[&'static str]) -> Row {
    row(move |bundle, _| bundle.edit(&change), code, words)
}

/// Each row with a bundle of its own, all with one shim.
fn refuse_all(hand: &mut Hand, rows: Vec<Row>) -> Result<()> {
    let first = hand.bundle("first", &["true"])?;
    let shim = hand.shim(&first)?;
    let mut failures = Vec::new();
    for (number, row) in rows.into_iter().enumerate() {
        if let Err(failure) = refuse(hand, &shim, number, &row) {
            failures.push(format!("{:?}: {failure}", row.words));
        }
    }
    shim.shutdown(&first.id)?;
    ensure!(failures.is_empty(), "{}", failures.join("\n    "));
    Ok(())
}

fn refuse(hand: &mut Hand, shim: &Shim, number: usize, row: &Row) -> Result<()> {
    let mut bundle = hand.bundle(&format!("r{number}"), &["true"])?;
    let mut request = create_request(&bundle)?;
    (row.change)(&mut bundle, &mut request)?;
    let files = files_of(&bundle)?;
    let status = shim.create(request).err().context(|| "Create succeeded".to_owned())?;
    let message = &status.message;
    if std::env::var_os("TEST_SHOW").is_some() {
        println!("{:?} {message}", status.code);
    }
    ensure_eq!(status.code, row.code, "code of {message:?}");
    for word in &row.words {
        ensure!(message.to_lowercase().contains(&word.to_lowercase()), "no {word:?} in {message:?}");
    }
    ensure!(!message.chars().any(char::is_control) && message.len() < 700, "not one short line: {message:?}");
    ensure!(!message.contains("Some(") && !message.contains("os error"), "not written for people: {message:?}");
    let state = shim.state(&bundle.id, "").err().context(|| "State knows it".to_owned())?;
    ensure_eq!(state.code, Code::NOT_FOUND, "code of State");
    expect_nothing_of(&bundle, &files)?;
    ensure!(hand.stub.record.of(&bundle.id).is_empty(), "events of a container that never was");
    Ok(())
}

fn text_config(text: &'static str, code: Code, words: &[&'static str]) -> Row {
    row(move |bundle, _| Ok(std::fs::write(bundle.dir.join("config.json"), text)?), code, words)
}

const BAD: Code = Code::INVALID_ARGUMENT;

fn configuration(hand: &mut Hand) -> Result<()> {
    let nested = || "[".repeat(100_000);
    let rows = vec![
        row(|bundle, _| Ok(std::fs::remove_file(bundle.dir.join("config.json"))?), BAD, &["config.json", "no such file"]),
        text_config("", BAD, &["spec: "]),
        text_config("{\"ociVersion\": \"1.0.2\", ", BAD, &["spec: ", "EOF"]),
        text_config("null", BAD, &["ociVersion"]),
        text_config("[]", BAD, &["spec: "]),
        text_config("\u{0}\u{1}", BAD, &["spec: "]),
        row(move |bundle, _| Ok(std::fs::write(bundle.dir.join("config.json"), nested())?), BAD, &["spec: "]),
        row(
            |bundle, _| {
                std::fs::remove_file(bundle.dir.join("config.json"))?;
                Ok(std::fs::create_dir(bundle.dir.join("config.json"))?)
            },
            BAD,
            &["config.json", "is a directory"],
        ),
        row(
            |_, request| {
                request.bundle = "/no/such/bundle".to_owned();
                Ok(())
            },
            BAD,
            &["/no/such/bundle", "no such file"],
        ),
        spec(|spec| spec["ociVersion"] = json!("2.0.0"), BAD, &["ociVersion", "2.0.0"]),
        spec(|spec| spec["ociVersion"] = json!(7), BAD, &["spec: ociVersion"]),
        spec(|spec| spec["process"] = json!(null), BAD, &["process"]),
        spec(|spec| spec["linux"] = json!(null), BAD, &["mount namespace"]),
        spec(|spec| spec["mounts"] = json!({"destination": "/"}), BAD, &["spec: mounts"]),
        spec(|spec| spec["linux"]["rootfsPropagation"] = json!("sideways"), BAD, &["rootfsPropagation", "sideways"]),
        spec(|spec| spec["linux"]["maskedPaths"] = json!(["/proc/k\0core"]), BAD, &["maskedPaths", "/proc/k"]),
    ];
    refuse_all(hand, rows)
}

/// After two hundred refusals the shim is what it was, and an id that was refused can be used.
fn the_shim_goes_on(hand: &mut Hand) -> Result<()> {
    let mut bundle = hand.bundle("a", &["true"])?;
    let shim = hand.shim(&bundle)?;
    let pid = shim.connected(&bundle.id)?.shim_pid;
    ran(hand, &shim, &bundle)?;
    let before = tests::proc::usage(pid);
    for round in 0..50 {
        bundle.edit(|spec| {
            spec["process"]["args"] = json!(["no-such-program"]);
            spec["linux"]["resources"]["pids"] = json!({"limit": 10 + round});
        })?;
        ensure!(shim.create(create_request(&bundle)?).is_err(), "round {round} succeeded");
    }
    bundle.edit(|spec| spec["process"]["args"] = json!(["true"]))?;
    ensure_eq!(ran(hand, &shim, &bundle)?.status, 0, "status of a good one");
    let after = tests::wait::until(Duration::from_secs(5), || Some(tests::proc::usage(pid)).filter(|usage| *usage == before));
    after.context(|| format!("the daemon held {before:?} and now {:?}", tests::proc::usage(pid)))?;
    shim.shutdown(&bundle.id).map_err(|e| Failure(format!("Shutdown: {e}")))
}
