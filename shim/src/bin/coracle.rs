//! For operators and tools: `coracle check` says what this host has of what the shim needs.

use std::io::Write;
use std::process::ExitCode;

use serde_json::json;
use shim::check::{self, Finding};

const HELP: &str = "\
usage: coracle check [--json]
       coracle --version | --help

check   which kernel features, cgroups and security modules this host has, and what each missing one costs
        --json   the same for programs

Exit code: 0, containers can be run; 1, something that is needed is missing; 2, wrong usage.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["check"] => report(false),
        ["check", "--json"] => report(true),
        ["--version" | "-v"] => print(&format!("coracle {}\n", env!("CARGO_PKG_VERSION")), ExitCode::SUCCESS),
        ["--help" | "-h"] => print(HELP, ExitCode::SUCCESS),
        [] => usage("no command"),
        ["check", .., argument] => usage(&format!("unknown argument {argument:?}")),
        [command, ..] => usage(&format!("unknown command {command:?}")),
    }
}

fn report(as_json: bool) -> ExitCode {
    let findings = check::findings();
    let enough = check::is_enough(&findings);
    let text = if as_json {
        format!("{:#}\n", json!({ "enough": enough, "cgroups": check::cgroups(), "findings": findings }))
    } else {
        let verdict = if enough { "Containers can be run." } else { "Containers cannot be run: what is MISSING above is needed." };
        format!("{}\n{}{verdict}\n", check::cgroups(), findings.iter().map(line).collect::<String>())
    };
    print(&text, if enough { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn line(finding: &Finding) -> String {
    let word = match (finding.present, finding.needed) {
        (true, _) => "yes",
        (false, false) => "no",
        (false, true) => "MISSING",
    };
    let note = if finding.note.is_empty() { String::new() } else { format!(": {}", finding.note) };
    format!("{word:8}{}{note}\n", finding.name)
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("coracle: {problem}\n{HELP}");
    ExitCode::from(2)
}

/// A reader that goes away early is no failure of the check.
fn print(text: &str, code: ExitCode) -> ExitCode {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    code
}
