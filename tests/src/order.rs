//! The order of events that containerd's documentation promises and its clients rely on, as an automaton over a record.
//!
//! Per container `Create < Start < Exit < Delete`, each once a life; per exec `ExecAdded < ExecStarted < Exit`; every exec's Exit before the
//! init's; OOM before Exit; nothing after Delete (docs/runtime-v2.md; containerd#9719).

use std::collections::BTreeMap;

use crate::events::{Event, Kind};
use crate::{Result, fail};

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Known,
    Running,
    Exited,
}

#[derive(Default)]
struct Container {
    init: Option<Stage>,
    pid: u32,
    paused: bool,
    deleted: bool,
    execs: BTreeMap<String, (Stage, u32)>,
}

/// Checks a record that may still go on.
pub fn check(events: &[Event]) -> Result<()> {
    follow(events, Deletes::All).map(drop)
}

/// Checks a record of containerd's own shim, which exits on Shutdown without waiting for the Delete event to be sent.
pub fn check_peer(events: &[Event]) -> Result<()> {
    follow(events, Deletes::SomeLost).map(drop)
}

/// Checks a record in which every container was deleted at the end.
pub fn check_complete(events: &[Event]) -> Result<()> {
    for (id, container) in follow(events, Deletes::All)? {
        if !container.deleted {
            fail!("{id} ended without Delete, at {:?}", container.init);
        }
    }
    Ok(())
}

/// Whether a container that ended may come again without a Delete.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Deletes {
    All,
    SomeLost,
}

fn follow(events: &[Event], deletes: Deletes) -> Result<BTreeMap<String, Container>> {
    let mut containers = BTreeMap::<String, Container>::new();
    for (index, event) in events.iter().enumerate() {
        let container = containers.entry(event.container.clone()).or_default();
        if deletes == Deletes::SomeLost && event.kind == Kind::Create && container.init == Some(Stage::Exited) {
            *container = Container::default();
        }
        let stepped = if event.exec.is_empty() { container.step(event) } else { container.step_exec(event) };
        if let Err(why) = stepped {
            let shown = events[..=index].iter().filter(|e| e.container == event.container).map(show).collect::<Vec<_>>();
            fail!("{}: {why}; the events: {}", event.container, shown.join(", "));
        }
    }
    Ok(containers)
}

fn show(event: &Event) -> String {
    format!("{:?}({}{}{})", event.kind, event.exec, if event.exec.is_empty() { "" } else { " " }, event.pid)
}

type Step = std::result::Result<(), &'static str>;

impl Container {
    fn step(&mut self, event: &Event) -> Step {
        match (event.kind, self.init) {
            (Kind::Create, None) => {
                *self = Container { init: Some(Stage::Known), pid: event.pid, ..Container::default() };
            }
            (Kind::Create, Some(_)) => return Err("Create twice"),
            (_, None) => return Err(if self.deleted { "an event after Delete" } else { "an event before Create" }),
            (Kind::Start, Some(Stage::Known)) => {
                if event.pid == 0 || self.pid != 0 && event.pid != self.pid {
                    return Err("Start with another pid than Create");
                }
                self.pid = event.pid;
                self.init = Some(Stage::Running);
            }
            (Kind::Start, _) => return Err("Start twice or after Exit"),
            (Kind::Exit, Some(Stage::Exited)) => return Err("Exit twice"),
            (Kind::Exit, Some(_)) => {
                if self.execs.values().any(|(stage, _)| *stage == Stage::Running) {
                    return Err("the init's Exit before that of an exec");
                }
                ended(event, self.pid)?;
                self.init = Some(Stage::Exited);
            }
            (Kind::Delete, Some(Stage::Running)) => return Err("Delete without Exit"),
            (Kind::Delete, Some(_)) => {
                *self = Container { deleted: true, ..Container::default() };
            }
            (Kind::Oom, Some(Stage::Exited)) => return Err("OOM after Exit"),
            (Kind::Paused, Some(Stage::Running)) if !self.paused => self.paused = true,
            (Kind::Resumed, Some(Stage::Running)) if self.paused => self.paused = false,
            (Kind::Paused | Kind::Resumed, _) => return Err("Paused or Resumed out of place"),
            (Kind::Oom | Kind::Checkpointed, _) => {}
            (Kind::ExecAdded | Kind::ExecStarted, _) => return Err("an exec without id"),
        }
        Ok(())
    }

    fn step_exec(&mut self, event: &Event) -> Step {
        match self.init {
            None => return Err(if self.deleted { "an exec's event after Delete" } else { "an exec's event before Create" }),
            Some(Stage::Exited) if event.kind != Kind::Delete => return Err("an exec's event after the init's Exit"),
            Some(_) => {}
        }
        let stage = self.execs.get(&event.exec).copied();
        let next = match (event.kind, stage) {
            (Kind::ExecAdded, None) => (Stage::Known, 0),
            // Nothing tells of an exec's deletion, so an id may come again after its end or after a failed start.
            (Kind::ExecAdded, Some((Stage::Running, _))) => return Err("ExecAdded of a running exec"),
            (Kind::ExecAdded, Some(_)) => (Stage::Known, 0),
            (Kind::ExecStarted, Some((Stage::Known, _))) if event.pid != 0 => (Stage::Running, event.pid),
            (Kind::ExecStarted, _) => return Err("ExecStarted out of place or without pid"),
            (Kind::Exit, Some((Stage::Running, pid))) => {
                ended(event, pid)?;
                (Stage::Exited, pid)
            }
            (Kind::Exit, _) => return Err("an exec's Exit twice or without ExecStarted"),
            (Kind::Delete, Some((Stage::Running, _)) | None) => return Err("an exec's Delete before its Exit"),
            (Kind::Delete, Some(kept)) => kept,
            _ => return Err("not an event of an exec"),
        };
        self.execs.insert(event.exec.clone(), next);
        Ok(())
    }
}

fn ended(event: &Event, pid: u32) -> Step {
    if event.pid != pid || pid == 0 {
        return Err("Exit with another pid than Start");
    }
    if event.timed { Ok(()) } else { Err("Exit without its time") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// `C S A:e T:e X:e X D` as Create, Start, ExecAdded, ExecStarted, exec's Exit, Exit, Delete; O is OOM, P paused, R resumed.
    fn record(text: &str) -> Vec<Event> {
        let event = |word: &str| {
            let (letter, exec) = word.split_once(':').unwrap_or((word, ""));
            let kind = match letter {
                "C" => Kind::Create,
                "S" => Kind::Start,
                "A" => Kind::ExecAdded,
                "T" => Kind::ExecStarted,
                "X" => Kind::Exit,
                "D" => Kind::Delete,
                "O" => Kind::Oom,
                "P" => Kind::Paused,
                "R" => Kind::Resumed,
                other => unreachable!("{other}"),
            };
            let pid = if exec.is_empty() { 10 } else { 20 };
            Event { at: Instant::now(), kind, container: "c".to_owned(), exec: exec.to_owned(), pid, status: 0, timed: true }
        };
        text.split(' ').map(event).collect()
    }

    #[test]
    fn good_orders() {
        let good = [
            "C S X D",
            "C D",
            "C X D",
            "C S X D C S X D",
            "C S O X D",
            "C S P R P R X D",
            "C S A:e T:e X:e X D",
            "C S A:e T:e A:f T:f X:f X:e X D",
            "C S A:e T:e X:e A:e T:e X:e X D",
            "C S A:e X D",
            "C S A:e T:e X:e D:e X D",
        ];
        for text in good {
            assert!(check_complete(&record(text)).is_ok(), "{text}: {:?}", check_complete(&record(text)));
        }
    }

    #[test]
    fn bad_orders() {
        let bad = [
            "S",
            "X",
            "D",
            "C C",
            "C S S",
            "C S D",
            "C S X X",
            "C S X S",
            "C S X D X",
            "C S X D D",
            "C S X O",
            "C S R",
            "C S P P",
            "C S T:e",
            "C S A:e X:e",
            "C S A:e T:e X",
            "C S A:e T:e X:e X:e",
            "C S X A:e",
            "A:e",
            "C S A:e T:e A:e",
            "C S A:e T:e D:e",
            "C S X D A:e",
        ];
        for text in bad {
            assert!(check(&record(text)).is_err(), "{text} passed");
        }
        assert!(check(&record("C S X")).is_ok());
        assert!(check_complete(&record("C S X")).is_err());
        assert!(check_peer(&record("C S X C S X")).is_ok());
        assert!(check_peer(&record("C S C")).is_err());
    }

    #[test]
    fn pids_and_times() {
        let mut events = record("C S X D");
        events[2].pid = 11;
        assert!(check(&events).is_err());
        let mut events = record("C S X D");
        events[2].timed = false;
        assert!(check(&events).is_err());
    }
}
