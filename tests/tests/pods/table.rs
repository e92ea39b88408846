//! The table of what works where, as the documents have it.

use std::collections::{BTreeMap, BTreeSet};

use tests::containerd::Version;
use tests::cri::Style;
use tests::{Context, Result, ensure, paths};

/// The rows by the names of their cases.
pub struct Table {
    columns: Vec<String>,
    rows: BTreeMap<String, Vec<String>>,
}

/// Reads it and compares it with the cases that exist.
pub fn read<'a>(cases: impl Iterator<Item = &'a str>) -> Result<Table> {
    let path = paths::checkout().join("deploy/docs/kubernetes.md");
    let text = std::fs::read_to_string(&path).context(|| path.display().to_string())?;
    let table = parse(&text)?;
    let (cases, rows): (BTreeSet<&str>, BTreeSet<&str>) = (cases.collect(), table.rows.keys().map(String::as_str).collect());
    ensure!(cases == rows, "without a row: {:?}; without a case: {:?}", cases.difference(&rows), rows.difference(&cases));
    Ok(table)
}

/// Rows are lines `| what | `case` | cell ... |` below the one with the versions; causes are lines `* **a** ...`.
fn parse(text: &str) -> Result<Table> {
    let cells = |line: &str| -> Vec<String> { line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect() };
    let mut lines = text.lines().filter(|line| line.starts_with('|'));
    let head = lines.by_ref().find(|line| line.contains("| case |")).context(|| "no table of cases".to_owned())?;
    let columns = cells(head).split_off(2);
    let causes: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("* **")?.split_once("**")).map(|(letter, _)| letter).collect();
    let mut rows = BTreeMap::new();
    for line in lines.filter(|line| !line.starts_with("|--") && !line.starts_with("| --")) {
        let mut row = cells(line);
        let Some(name) = row.get(1).and_then(|cell| cell.strip_prefix('`')?.strip_suffix('`')).map(str::to_owned) else { continue };
        let row = row.split_off(2);
        ensure!(row.len() == columns.len(), "{name} has {} cells for {} columns", row.len(), columns.len());
        for cause in row.iter().flat_map(|cell| gaps(cell)).map(|(_, cause)| cause) {
            ensure!(causes.contains(cause.trim_end_matches('!')), "{name}: no cause is called {cause:?}");
        }
        ensure!(rows.insert(name.clone(), row).is_none(), "{name} has two rows");
    }
    Ok(Table { columns, rows })
}

/// The gaps of a cell: `yes` has none, `a` is one of all styles, `own: a, path: b` are some of some. `a!` is one that takes containerd down.
fn gaps(cell: &str) -> Vec<(Option<&str>, &str)> {
    let gap = |part| match str::split_once(part, ": ") {
        Some((style, cause)) => (Some(style), cause),
        None => (None, part),
    };
    cell.split(", ").filter(|part| *part != "yes").map(gap).collect()
}

impl Table {
    /// Why a case cannot pass there; `None` where it must.
    pub fn gap(&self, case: &str, version: Version, style: Style) -> Option<String> {
        let column = self.columns.iter().position(|column| column == version.name())?;
        let cell = self.rows.get(case)?.get(column)?;
        gaps(cell).into_iter().find(|(only, _)| only.is_none_or(|only| only == style.name())).map(|(_, cause)| cause.to_owned())
    }
}
