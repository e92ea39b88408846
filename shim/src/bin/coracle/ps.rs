//! Ps: the lines of ps(1) that are about a container's processes.

use std::collections::HashSet;
use std::process::Command;

use runtime_core::error::{Context as _, Error, ErrorKind, Result};

use crate::Runtime;
use crate::args::Format;
use crate::log::print;
use crate::show::encoded;

/// The columns that stand before `PID` in ps's own formats, and have one word in each line.
const ONE_WORD: [&str; 5] = ["F", "S", "UID", "USER", "PPID"];
/// As wide as a process id can be.
const MARK: &str = "CORACLE";

/// `coracle ps`.
///
/// # Errors
/// ps(1) is missing, or its output does not tell whom a line is about.
pub fn ps(runtime: &Runtime<'_>, format: Format, id: &str, options: &[String]) -> Result<()> {
    let (_, state) = runtime.store.look(id)?;
    let pids = state.cgroup(&runtime.host)?.pids()?;
    if format == Format::Json {
        print(&format!("{}\n", encoded(&pids, false)?))?;
        return Ok(());
    }
    let default = ["-ef".to_owned()];
    let options = if options.is_empty() { &default } else { options };
    let inside: HashSet<String> = pids.iter().map(i32::to_string).collect();
    let lines = about(&inside, &run(options)?, || run(&marked(options)).ok());
    let lines = lines.ok_or_else(|| Error::invalid("couldn't find PID field in ps output"))?;
    print(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
    Ok(())
}

fn run(options: &[String]) -> Result<String> {
    let output = Command::new("ps").args(options).output().context(|| "run ps")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::new(ErrorKind::Internal, format!("ps: {}: {}", output.status, said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The same with one more column before the others.
fn marked(options: &[String]) -> Vec<String> {
    let column = ["-o".to_owned(), format!("pid={MARK}")];
    column.into_iter().chain(options.iter().cloned()).collect()
}

/// The head and the lines of the processes that are `inside`. A command or a date before the process id may have any number of words: then
/// `again` is asked for the same lines with a column for it, and where ps does not mix that with its options, the place below the head counts.
fn about(inside: &HashSet<String>, plain: &str, again: impl FnOnce() -> Option<String>) -> Option<Vec<String>> {
    let head = plain.lines().next().unwrap_or_default();
    let column = words(head).position(|word| word == "PID");
    if let Some(column) = column.filter(|column| words(head).take(*column).all(|name| ONE_WORD.contains(&name))) {
        return Some(select(inside, plain, |line| words(line).nth(column)));
    }
    again().and_then(|text| without_mark(inside, &text, head)).or_else(|| {
        let pid = words(head).nth(column?)?;
        Some(select(inside, plain, |line| below(line, end_of(pid, head))))
    })
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split_ascii_whitespace()
}

/// A line of a thread has no process id, and belongs to the one before.
fn select<'a>(inside: &HashSet<String>, text: &'a str, pid: impl Fn(&'a str) -> Option<&'a str>) -> Vec<String> {
    let mut lines = text.lines();
    let mut selected: Vec<String> = lines.next().map(str::to_owned).into_iter().collect();
    let mut ours = false;
    for line in lines {
        let pid = pid(line);
        ours = if pid == Some("-") { ours } else { pid.is_some_and(|pid| inside.contains(pid)) };
        selected.extend(ours.then(|| line.to_owned()));
    }
    selected
}

/// The same lines as under `head`, by the column that was put before them. `None` if ps has made other ones.
fn without_mark(inside: &HashSet<String>, text: &str, head: &str) -> Option<Vec<String>> {
    let first = text.lines().next()?;
    let end = first.find(MARK)? + MARK.len();
    let rest = |line: &str| line.get(end..).map(|rest| rest.strip_prefix(' ').unwrap_or(rest).to_owned()).unwrap_or_default();
    words(&rest(first)).eq(words(head)).then(|| select(inside, text, |line| words(line).next()).iter().map(|line| rest(line)).collect())
}

/// The number that ends where the head's column does; if what stands before it was too wide, the next one.
fn below(line: &str, end: usize) -> Option<&str> {
    words(line).filter(|word| end_of(word, line) >= end).find(|word| *word == "-" || word.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Where a word of a line ends in it.
fn end_of(word: &str, line: &str) -> usize {
    word.as_ptr().addr() - line.as_ptr().addr() + word.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(plain: &str, again: Option<&str>) -> Option<Vec<String>> {
        about(&["7".to_owned(), "30".to_owned()].into(), plain, || again.map(str::to_owned))
    }

    #[test]
    fn formats_of_ps_itself() {
        let text = "UID  PID PPID CMD\nroot   7    1 a 30\nroot   8    7 b 7\n1000  30    8 c\n";
        let never = || -> Option<String> { panic!("ps has run again") };
        let inside: HashSet<String> = ["7".to_owned(), "30".to_owned()].into();
        assert_eq!(about(&inside, text, never).unwrap(), ["UID  PID PPID CMD", "root   7    1 a 30", "1000  30    8 c"]);
        // Lines of threads.
        let text = "UID  PID CMD\nroot   7 a\nroot   - -\nroot   8 b\nroot   - -\n";
        assert_eq!(listed(text, None).unwrap(), ["UID  PID CMD", "root   7 a", "root   - -"]);
    }

    #[test]
    fn a_command_before_the_process_id() {
        let plain = "CMD       PPID   PID\nsleep 7 x    7     8\nsleep 1      1    30\na b c        7     7\n";
        let again =
            "CORACLE CMD       PPID   PID\n      8 sleep 7 x    7     8\n     30 sleep 1      1    30\n      7 a b c        7     7\n";
        let ours = ["CMD       PPID   PID", "sleep 1      1    30", "a b c        7     7"];
        assert_eq!(listed(plain, Some(again)).unwrap(), ours);
        // ps does not take the column, or prints something else with it.
        for again in [None, Some("CORACLE\n      7\n")] {
            assert_eq!(listed(plain, again).unwrap(), ours);
        }
    }

    #[test]
    fn formats_without_a_process_id() {
        let again = "CORACLE USER\n      8 root\n     30 a\n      7 b\n";
        assert_eq!(listed("USER\nroot\na\nb\n", Some(again)).unwrap(), ["USER", "a", "b"]);
        assert_eq!(listed("USER\nroot\na\nb\n", None), None);
        assert_eq!(listed("", Some("")), None);
    }

    #[test]
    fn a_label_of_several_words() {
        let plain = "LABEL              UID   PID CMD\nx (enforce)        root    7 a\nunconfined         root    8 7\nmuch too long to (fit) root   30 b\n";
        let ours = ["LABEL              UID   PID CMD", "x (enforce)        root    7 a", "much too long to (fit) root   30 b"];
        assert_eq!(listed(plain, None).unwrap(), ours);
    }
}
