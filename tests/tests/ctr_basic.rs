//! `ctr` as people use it, on every containerd: each flag is looked at from inside the container.

use std::process::ExitCode;
use std::time::Duration;

use tests::case::words;
use tests::containerd::Version;
use tests::suite::Suite;
use tests::{Case, Context, Result, cases, ensure, ensure_eq, image};

fn main() -> ExitCode {
    Suite {
        name: "ctr_basic",
        parallel: 2,
        cases: cases![
            run_rm,
        ],
    }
    .main()
}

fn run_rm(case: &Case<'_>) -> Result<()> {
    ensure_eq!(case.run(&[], &["echo", "hello"])?, "hello", "stdout");
    let failed = case.try_run(&[], &["sh", "-c", "echo out; echo err >&2; exit 7"])?;
    ensure_eq!((failed.code, failed.stdout.as_str(), failed.stderr.as_str()), (7, "out\n", "err\n"), "code and streams");
    Ok(())
}
