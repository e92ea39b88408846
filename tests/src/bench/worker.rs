//! A contender in a process of its own, and the lines that are spoken with it.
//!
//! ```text
//! worker:  {"ready":{...}}                        or {"error":"..."} and its end
//! ask:     sample          lives 100               facts
//! answer:  {"start":812.5} {"seconds":0.31}        {"private_bytes":524288}
//! ```

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::{Context, Failure, Result, ensure, fail};

use super::Sample;

/// One way to run a container.
pub trait Contender {
    /// One turn.
    fn sample(&mut self) -> Result<Sample>;

    /// One whole life of a container, as fast as it goes.
    fn life(&mut self) -> Result<()> {
        fail!("throughput is not measured here")
    }

    /// What is measured once.
    fn facts(&mut self) -> Result<Sample> {
        Ok(Sample::new())
    }
}

/// Answers the lines on standard input until it ends.
pub fn serve(contender: Result<Box<dyn Contender>>) -> Result<()> {
    let mut contender = match contender {
        Ok(contender) => contender,
        Err(e) => return say(&json!({"error": e.0})),
    };
    say(&json!({"ready": {}}))?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let answer = match line.split_once(' ') {
            Some(("lives", count)) => lives(contender.as_mut(), count.parse()?),
            _ if line == "facts" => contender.facts(),
            _ => contender.sample(),
        };
        say(&match answer {
            Ok(sample) => json!(sample),
            Err(e) => json!({"error": e.0}),
        })?;
    }
    Ok(())
}

fn lives(contender: &mut dyn Contender, count: u32) -> Result<Sample> {
    let start = Instant::now();
    for _ in 0..count {
        contender.life()?;
    }
    Ok(Sample::from([("seconds".to_owned(), start.elapsed().as_secs_f64())]))
}

fn say(answer: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{answer}")?;
    Ok(out.flush()?)
}

/// The benchmark's end of a worker. Dropping it lets the worker end and tidy up.
pub struct Worker {
    /// Who it is, in tables.
    pub name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts this program again as a worker and waits until it is ready.
    pub fn spawn(name: &str, args: &[&str], environment: &[(&str, &str)]) -> Result<Worker> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("worker").args(args).envs(environment.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else { fail!("a worker has no pipes") };
        let mut worker = Worker { name: name.to_owned(), child, stdin: Some(stdin), stdout: BufReader::new(stdout) };
        worker.answer()?;
        Ok(worker)
    }

    /// One turn.
    pub fn sample(&mut self) -> Result<Sample> {
        self.ask("sample")?;
        self.numbers()
    }

    /// What is measured once.
    pub fn facts(&mut self) -> Result<Sample> {
        self.ask("facts")?;
        self.numbers()
    }

    /// Begins `count` lives; [`Worker::numbers`] waits for their end.
    pub fn begin_lives(&mut self, count: u32) -> Result<()> {
        self.ask(&format!("lives {count}"))
    }

    /// The answer to what was asked.
    pub fn numbers(&mut self) -> Result<Sample> {
        Ok(serde_json::from_value(self.answer()?)?)
    }

    fn ask(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context(|| "the worker was dismissed".to_owned())?;
        Ok(writeln!(stdin, "{line}")?)
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        let length = self.stdout.read_line(&mut line)?;
        ensure!(length > 0, "the worker of {} ended: {}", self.name, self.child.wait()?);
        let value: Value = serde_json::from_str(&line)?;
        match value["error"].as_str() {
            Some(error) => Err(Failure(error.to_owned())),
            None => Ok(value),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.wait();
    }
}
