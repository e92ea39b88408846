//! `coracle check`: what this host has of what the shim needs.

use std::process::ExitCode;

use serde_json::json;
use shim::check::{self, Finding};

use crate::log::print;

/// Prints the findings; the exit code is 1 if something that is needed is missing.
pub fn report(as_json: bool) -> ExitCode {
    let findings = check::findings();
    let enough = check::is_enough(&findings);
    let text = if as_json {
        format!("{:#}\n", json!({ "enough": enough, "cgroups": check::cgroups(), "findings": findings }))
    } else {
        let verdict = if enough { "Containers can be run." } else { "Containers cannot be run: what is MISSING above is needed." };
        format!("{}\n{}{verdict}\n", check::cgroups(), findings.iter().map(line).collect::<String>())
    };
    if print(&text).is_ok() && enough { ExitCode::SUCCESS } else { ExitCode::from(1) }
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
