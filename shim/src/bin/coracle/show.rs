//! State and list: what there is, in runc's formats.

use std::collections::HashMap;

use runtime_core::error::{Error, ErrorKind, Result};
use serde::Serialize;

use crate::Runtime;
use crate::args::Format;
use crate::log::print;
use crate::store::{State, Status};

/// runc's form of the state: the spec's, and a few fields more.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    oci_version: &'a str,
    id: &'a str,
    pid: i32,
    status: &'static str,
    bundle: &'a std::path::Path,
    rootfs: &'a std::path::Path,
    created: &'a str,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    annotations: &'a HashMap<String, String>,
    owner: String,
}

impl<'a> Shown<'a> {
    fn new(state: &'a State, status: Status) -> Self {
        Self {
            oci_version: &state.oci_version,
            id: &state.record.id,
            pid: if status == Status::Stopped { 0 } else { state.pid() },
            status: status.name(),
            bundle: &state.bundle,
            rootfs: &state.rootfs,
            created: &state.created,
            annotations: &state.annotations,
            owner: String::new(),
        }
    }
}

/// JSON.
///
/// # Errors
/// None for what is shown.
pub fn encoded(value: &impl Serialize, pretty: bool) -> Result<String> {
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    text.map_err(|error| Error::new(ErrorKind::Internal, format!("encode: {error}")))
}

/// `coracle state`.
///
/// # Errors
/// There is no such container.
pub fn state(runtime: &Runtime<'_>, id: &str) -> Result<()> {
    let (_, state) = runtime.store.look(id)?;
    print(&encoded(&Shown::new(&state, state.status(&runtime.host)?), true)?)
}

/// `coracle list`.
///
/// # Errors
/// The root cannot be read.
pub fn list(runtime: &Runtime<'_>, format: Format, quiet: bool) -> Result<()> {
    let mut states = Vec::new();
    for id in runtime.store.ids()? {
        match runtime.store.look(&id) {
            Ok((_, state)) => states.push(state),
            // One that comes or goes.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => runtime.log.warn(&format!("{id}: {error}, ignoring")),
        }
    }
    if quiet {
        print(&states.iter().map(|state| format!("{}\n", state.record.id)).collect::<String>())?;
        return Ok(());
    }
    let mut users = HashMap::new();
    let mut shown = Vec::new();
    for state in &states {
        let owner = users.entry(state.owner).or_insert_with(|| user(state.owner)).clone();
        match state.status(&runtime.host) {
            Ok(status) => shown.push(Shown { owner, ..Shown::new(state, status) }),
            Err(error) => runtime.log.warn(&format!("{}: {error}, ignoring", state.record.id)),
        }
    }
    match format {
        Format::Json => print(&encoded(&shown, false)?)?,
        Format::Table => {
            let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
            let rows = shown.iter().map(|state| {
                let bundle = state.bundle.display().to_string();
                [state.id.to_owned(), state.pid.to_string(), state.status.to_owned(), bundle, state.created.to_owned(), state.owner.clone()]
            });
            print(&table(std::iter::once(head).chain(rows).collect()))?;
        }
    }
    Ok(())
}

/// Columns as Go's tabwriter makes them for runc: at least 12 wide, 3 apart, the last one as it is.
fn table(rows: Vec<[String; 6]>) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count() + 3).max().unwrap_or_default().max(12);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let line = |row: &[String; 6]| {
        let cells: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{cells}{}\n", row[5])
    };
    rows.iter().map(line).collect()
}

/// The name of a user, or `#` and the number.
fn user(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("#{uid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_its_cells() {
        let row = |cells: [&str; 6]| cells.map(str::to_owned);
        let rows =
            vec![row(["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]), row(["a", "7", "running", "/a/longer/bundle", "t", "root"])];
        let text = "ID          PID         STATUS      BUNDLE             CREATED     OWNER\n\
                    a           7           running     /a/longer/bundle   t           root\n";
        assert_eq!(table(rows), text);
    }
}
