//! Exit codes as `ctr` shows them, and the words that Docker makes 126 and 127 of (moby `daemon/errors.go`).

use std::process::ExitCode;

use tests::case::words;
use tests::suite::Suite;
use tests::{Case, Result, cases, ensure, ensure_eq};

fn main() -> ExitCode {
    Suite { name: "exit_codes", parallel: 2, cases: cases![of_run, of_exec, of_what_cannot_start] }.main()
}

/// Scripts of a shell and what it ends with.
const SCRIPTS: [(&str, i32); 9] = [
    ("exit 0", 0),
    ("exit 1", 1),
    ("exit 125", 125),
    ("exec /no/such/program", 127),
    ("exec /etc", 126),
    ("exit 128", 128),
    ("exit 255", 255),
    ("sh -c 'kill -15 $$'; exit $?", 143),
    ("sh -c 'kill -9 $$'; exit $?", 137),
];

fn of_run(case: &Case<'_>) -> Result<()> {
    for (script, code) in SCRIPTS {
        ensure_eq!(case.try_run(&[], &["sh", "-c", script])?.code, code, "{script}");
    }
    Ok(())
}

fn of_exec(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&[], &["sleep", "1000"])?;
    for (script, code) in SCRIPTS.into_iter().chain([("kill -9 $$", 137), ("kill -6 $$", 134)]) {
        let done = case.ctr().run(&words(&case.exec_args(&id, &[], &["sh", "-c", script])))?;
        ensure_eq!(done.code, code, "{script}, stderr {:?}", done.stderr);
    }
    Ok(())
}

fn of_what_cannot_start(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&[], &["sleep", "1000"])?;
    for (program, text) in [
        ("no-such-program", "executable file not found in $PATH"),
        ("/no/such/program", "no such file or directory"),
        ("/bin", "is a directory"),
        ("/proc/version", "permission denied"),
    ] {
        let ran = case.try_run(&[], &[program])?;
        // ctr has one code for every error of its own.
        ensure!(ran.code == 1 && ran.stderr.contains(text) && ran.stderr.contains(program), "run of {program}: {ran:?}");
        let done = case.ctr().run(&words(&case.exec_args(&id, &[], &[program])))?;
        ensure!(done.code == 1 && done.stderr.contains(text) && done.stderr.contains(program), "exec of {program}: {done:?}");
    }
    Ok(())
}
