//! Streams: every byte arrives whatever becomes of containerd, in every kind of target, and none of them holds up an end.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::bundle::Bundle;
use tests::case::words;
use tests::command::{code, readable, signal, wait_for};
use tests::containerd::{Containerd, Version, eventually};
use tests::events::Kind;
use tests::footprint::{MEMORY_BOUND, Shims};
use tests::hand::Hand;
use tests::rpc::{Shim, Streams};
use tests::start::Protocol;
use tests::stream::{Blocks, Reader, fifo};
use tests::suite::{Suite, is_long};
use tests::{Case, Context, Result, cases, ensure, ensure_eq, image, proc, wait};

fn main() -> ExitCode {
    Suite {
        name: "streams",
        parallel: 4,
        cases: cases![
            gigabyte_while_containerd_is_stopped,
            gigabyte_over_containerds_death,
            background_child_holds_the_pipe,
            full_pipe_kill_delete,
            burst_for_a_slow_reader,
            one_stopped_reader_holds_nobody_else,
            binary_logger,
            log_file_takes_both_streams,
            null_streams,
            terminal_output_is_complete,
            stdin_of_an_exec_ends,
            close_io_ends_stdin,
            attach_to_pipes,
        ],
    }
    .main()
}

const SOON: Duration = Duration::from_secs(10);

/// How many blocks of 64 MiB go through, and for how long containerd is away in their middle.
struct Flood {
    blocks: usize,
    away: Duration,
}

impl Flood {
    const FULL: Flood = Flood { blocks: 16, away: Duration::from_secs(30) };
    const SHORT: Flood = Flood { blocks: 1, away: Duration::from_secs(3) };
}

/// A containerd of the case's own, for it is going to be stopped.
fn own_containerd(case: &Case<'_>) -> Result<Containerd> {
    let containerd = Containerd::start(case.version())?;
    containerd.import(&[1])?;
    Ok(containerd)
}

/// Reads blocks until `target` bytes have come, or the end.
fn pour(from: &mut impl FnMut(&mut [u8]) -> Result<usize>, blocks: &mut Blocks, target: u64) -> Result<()> {
    let mut buffer = vec![0; 1 << 17];
    while blocks.received < target {
        match from(&mut buffer)? {
            0 => break,
            count => blocks.take(&buffer[..count])?,
        }
    }
    Ok(())
}

/// containerd's process stands still, and so does the reader, which under Kubernetes it is.
fn gigabyte_while_containerd_is_stopped(case: &Case<'_>) -> Result<()> {
    let flood = if is_long() || case.version() == Version::V2 { Flood::FULL } else { Flood::SHORT };
    let containerd = own_containerd(case)?;
    let (ctr, id, data) = (containerd.ctr(), case.id("g"), case.path("blocks")?);
    let mut blocks = Blocks::new(&data, flood.blocks)?;
    let mount = format!("type=bind,src={},dst=/data,options=rbind:ro", data.display());
    let args = case.run_args(&["--rm"], &["--mount", &mount], &image::name(1), &id, &["sh", "-c", &blocks.script()]);
    let mut client = ctr.command(&words(&args))?.stdout(Stdio::piped()).spawn()?;
    let mut stdout = client.stdout.take().context(|| "ctr has no stdout".to_owned())?;
    let mut from = |buffer: &mut [u8]| -> Result<usize> {
        ensure!(readable(&stdout, SOON)?, "no output for {SOON:?}");
        Ok(stdout.read(buffer)?)
    };
    let middle = blocks.length() / 2;
    pour(&mut from, &mut blocks, middle)?;
    let shims = Shims::of(ctr.pid(&id)?)?;
    let before = shims.read()?[0];
    containerd.signal(Signal::STOP)?;
    signal(client.id(), Signal::STOP)?;
    wait::pause_for(flood.away);
    let stopped = shims.read()?[0];
    containerd.signal(Signal::CONT)?;
    signal(client.id(), Signal::CONT)?;
    ensure!(stopped.private <= before.private + MEMORY_BOUND, "the output is kept in memory: {before:?}, then {stopped:?}");
    ensure_eq!(stopped.threads, 1, "threads of the daemon");
    pour(&mut from, &mut blocks, u64::MAX)?;
    blocks.expect_whole()?;
    let status = wait_for(&mut client, SOON)?.context(|| "ctr goes on after the end of the output".to_owned())?;
    ensure_eq!(code(status), 0, "exit code of ctr run");
    println!("containerd {}: {} bytes, with containerd and ctr stopped for {:?}", case.version().name(), blocks.received, flood.away);
    fs::remove_dir_all(data)?;
    Ok(())
}

/// containerd is killed, its reader's descriptors with it, and comes again.
fn gigabyte_over_containerds_death(case: &Case<'_>) -> Result<()> {
    let flood = if is_long() { Flood::FULL } else { Flood::SHORT };
    let mut containerd = own_containerd(case)?;
    let (id, data) = (case.id("k"), case.path("blocks")?);
    let mut blocks = Blocks::new(&data, flood.blocks)?;
    // Not before ctr is gone, which reads for as long as it lives.
    let gate = fifo(&data, "gate")?;
    let fifos = data.join("fifos");
    fs::create_dir(&fifos)?;
    let mount = format!("type=bind,src={},dst=/data,options=rbind:ro", data.display());
    let script = format!("read go </data/gate; {}; exit 5", blocks.script());
    let flags = ["--fifo-dir", &fifos.to_string_lossy(), "--mount", &mount];
    let args = case.run_args(&["--detach"], &flags, &image::name(1), &id, &["sh", "-c", &script]);
    containerd.ctr().ok(&words(&args))?;
    let stdout = find(&fifos, "-stdout")?;
    let shims = Shims::of(containerd.ctr().pid(&id)?)?;
    let before = shims.read()?[0];
    let mut reader = Reader::open(&stdout)?;
    writeln!(File::options().read(true).write(true).open(&gate)?)?;
    let middle = blocks.length() / 2;
    pour(&mut |buffer| reader.read(buffer, SOON), &mut blocks, middle)?;
    // Between two pipes the bytes move inside the kernel. (A child's reads count as the daemon's own once it is reaped, so not later.)
    let after = shims.read()?[0];
    ensure!(after.read - before.read < blocks.received / 16, "the daemon has read the output itself: {before:?}, then {after:?}");
    containerd.kill()?;
    drop(reader);
    wait::pause_for(flood.away);
    containerd.restart()?;
    let mut reader = Reader::open(&stdout)?;
    pour(&mut |buffer| reader.read(buffer, SOON), &mut blocks, u64::MAX)?;
    blocks.expect_whole()?;
    let ctr = containerd.ctr();
    ctr.wait_status(&id, "STOPPED", SOON)?;
    let deleted = ctr.run(&["task", "rm", &id])?;
    ensure!(deleted.code == 0 && deleted.stderr.contains("non-zero exit code 5"), "ctr task rm: {deleted:?}");
    ctr.ok(&["container", "rm", &id])?;
    println!("containerd {}: {} bytes, with containerd killed for {:?}", case.version().name(), blocks.received, flood.away);
    fs::remove_dir_all(data)?;
    Ok(())
}

/// The file below `dir` whose name ends so.
fn find(dir: &Path, end: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            return find(&path, end);
        }
        if path.to_string_lossy().ends_with(end) {
            return Ok(path);
        }
    }
    Err(tests::Failure(format!("no file *{end} below {}", dir.display())))
}

/// A shim with one running container, and the fifo of its stdout.
struct Played {
    bundle: Bundle,
    shim: Shim,
    shims: Shims,
    stdout: PathBuf,
}

fn play(hand: &mut Hand, args: &[&str]) -> Result<Played> {
    let bundle = hand.bundle("a", args)?;
    let stdout = fifo(hand.dir(), "stdout")?;
    let shim = hand.shim(&bundle)?;
    let pid = shim.create_with(&bundle, to(&stdout))?;
    Ok(Played { shims: Shims::of(pid)?, bundle, shim, stdout })
}

fn to(stdout: &Path) -> Streams {
    Streams { stdout: stdout.display().to_string(), ..Streams::default() }
}

impl Played {
    fn kill_and_delete(&self) -> Result<()> {
        self.shim.kill(&self.bundle.id, "", 9)?;
        self.end().map(drop)
    }

    fn end(&self) -> Result<u32> {
        self.shim.wait(&self.bundle.id, "")?;
        let status = self.shim.delete(&self.bundle.id, "")?.exit_status;
        self.shim.shutdown(&self.bundle.id)?;
        Ok(status)
    }
}

fn by_hand(case: &Case<'_>, run: impl FnOnce(&mut Hand) -> Result<()>) -> Result<()> {
    Hand::run(Protocol::of(case.version()), run)
}

/// An exec has ended when its process has, though another one still holds the pipe; its Delete waits for that one, but not for ever.
fn background_child_holds_the_pipe(case: &Case<'_>) -> Result<()> {
    by_hand(case, |hand| {
        let played = play(hand, &["sleep", "1000"])?;
        let (id, shim) = (&played.bundle.id, &played.shim);
        shim.start(id, "")?;
        let before = played.shims.read()?;
        let stdout = fifo(hand.dir(), "exec")?;
        let mut reader = Reader::open(&stdout)?;
        shim.exec_with(id, "e", &["sh", "-c", "sleep 1000 & echo ok; exit 4"], to(&stdout))?;
        let began = Instant::now();
        shim.start(id, "e")?;
        ensure_eq!(shim.wait(id, "e")?.exit_status, 4, "exit status");
        hand.stub.record.wait_exec(id, "e", Kind::Exit, SOON)?;
        ensure!(began.elapsed() < Duration::from_secs(2), "the exit was told {:?} after the start", began.elapsed());
        shim.delete(id, "e")?;
        let taken = began.elapsed();
        ensure!(taken < Duration::from_secs(11), "Delete took {taken:?}");
        ensure_eq!(reader.text(SOON)?, "ok\n", "output");
        ensure!(shim.pids(id)?.len() >= 2, "the child was killed");
        played.shims.expect_no_growth(&before)?;
        played.kill_and_delete()
    })
}

/// A process that is stuck at a full pipe dies at once, and its Delete gives up on the reader.
fn full_pipe_kill_delete(case: &Case<'_>) -> Result<()> {
    by_hand(case, |hand| {
        let played = play(hand, &["yes"])?;
        let (id, shim) = (&played.bundle.id, &played.shim);
        let pid = shim.start(id, "")?;
        let asleep = || proc::process(pid).is_some_and(|process| process.state == 'S');
        eventually("the writer waits for the reader", SOON, asleep)?;
        let idle = played.shims.read()?[0];
        wait::pause_for(Duration::from_millis(500));
        let later = played.shims.read()?[0];
        ensure!(later.sleeps - idle.sleeps <= 20, "the daemon does not rest while the fifo is full: {idle:?}, then {later:?}");
        let began = Instant::now();
        shim.kill(id, "", 9)?;
        ensure_eq!(shim.wait(id, "")?.exit_status, 137, "exit status");
        hand.stub.record.wait(id, Kind::Exit, SOON)?;
        ensure!(began.elapsed() < Duration::from_secs(1), "the exit was told after {:?}", began.elapsed());
        shim.state(id, "")?;
        shim.delete(id, "")?;
        ensure!(began.elapsed() < Duration::from_secs(11), "Kill and Delete took {:?}", began.elapsed());
        shim.shutdown(id)
    })
}

/// What was written before the exit arrives after it, however slow the reader is.
fn burst_for_a_slow_reader(case: &Case<'_>) -> Result<()> {
    by_hand(case, |hand| {
        let played = play(hand, &["sh", "-c", "i=0; while [ $i -lt 131072 ]; do i=$((i+1)); printf '%07d\n' $i; done; exit 6"])?;
        let (id, shim) = (&played.bundle.id, &played.shim);
        let mut reader = Reader::open(&played.stdout)?;
        shim.start(id, "")?;
        let mut expected = (1..=131_072).map(|number| format!("{number:07}\n"));
        let (mut rest, mut buffer) = (String::new(), vec![0; 8192]);
        let ender = std::thread::scope(|scope| {
            let ender = scope.spawn(|| played.end());
            loop {
                let count = reader.read(&mut buffer, SOON)?;
                if count == 0 {
                    break;
                }
                rest.push_str(std::str::from_utf8(&buffer[..count])?);
                while rest.len() >= 8 {
                    let line: String = rest.drain(..8).collect();
                    ensure_eq!(Some(line), expected.next(), "line");
                }
                wait::pause_for(Duration::from_millis(5));
            }
            ender.join().unwrap_or_else(|_| Err(tests::Failure("Delete panicked".to_owned())))
        })?;
        ensure_eq!(expected.next(), None, "the next line at the end of the output");
        ensure_eq!(ender, 6, "exit status");
        Ok(())
    })
}

fn one_stopped_reader_holds_nobody_else(case: &Case<'_>) -> Result<()> {
    by_hand(case, |hand| {
        let played = play(hand, &["yes"])?;
        let (id, shim) = (&played.bundle.id, &played.shim);
        let pid = shim.start(id, "")?;
        eventually("the writer waits", SOON, || proc::process(pid).is_some_and(|process| process.state == 'S'))?;
        let began = Instant::now();
        for number in 0..20 {
            let exec = format!("e{number}");
            let stdout = fifo(hand.dir(), &exec)?;
            let mut reader = Reader::open(&stdout)?;
            shim.exec_with(id, &exec, &["echo", &exec], to(&stdout))?;
            shim.start(id, &exec)?;
            ensure_eq!(reader.text(SOON)?, format!("{exec}\n"), "output of another process");
            shim.wait(id, &exec)?;
            shim.delete(id, &exec)?;
        }
        ensure!(began.elapsed() < SOON, "20 execs took {:?}", began.elapsed());
        let mut reader = Reader::open(&played.stdout)?;
        shim.kill(id, "", 9)?;
        let text = reader.text(SOON)?;
        ensure!(text.trim_end_matches("y\n").is_empty() && text.len() > 1 << 16, "{} bytes of output", text.len());
        played.end().map(drop)
    })
}

/// A logger as containerd's documentation has it: the streams at 3 and 4, ready when 5 is closed, the query as arguments.
fn binary_logger(case: &Case<'_>) -> Result<()> {
    let (logger, log) = (case.path("logger")?, case.path("log")?);
    fs::create_dir_all(&log)?;
    let script = "#!/bin/sh\n\
        [ \"$1\" = dir ] || exit 9\n\
        echo \"$CONTAINER_ID $CONTAINER_NAMESPACE $(ls /proc/self/fd | wc -l)\" >\"$2/who\"\n\
        exec 5>&-\n\
        cat <&3 >\"$2/out\" &\n\
        cat <&4 >\"$2/err\" &\n\
        wait\n\
        echo complete >>\"$2/who\"\n";
    fs::write(&logger, script)?;
    fs::set_permissions(&logger, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let id = case.id("b");
    let uri = format!("binary://{}?dir={}", logger.display(), log.display());
    let script = "seq 1 200000; echo to stderr >&2; exit 3";
    let args = case.run_args(&["--detach", "--log-uri", &uri], &[], &image::name(1), &id, &["sh", "-c", script]);
    case.ctr().ok(&words(&args))?;
    case.ctr().wait_status(&id, "STOPPED", SOON)?;
    ensure_eq!(case.events.wait(&id, Kind::Exit, SOON)?.status, 3, "exit status");
    case.ctr().ok(&["task", "rm", &id])?;
    let read = |name: &str| fs::read_to_string(log.join(name)).context(|| format!("the logger's {name}"));
    // After Delete everything is there.
    let expected: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    ensure!(read("out")? == expected, "{} bytes of stdout instead of {}", read("out")?.len(), expected.len());
    ensure_eq!(read("err")?, "to stderr\n", "stderr");
    // 0 to 5, the pipe of the substitution and the directory that ls reads are all that it has open.
    let who = read("who")?;
    ensure!(who.starts_with(&format!("{id} {} ", tests::paths::tag())) && who.ends_with("complete\n"), "the logger says {who:?}");
    let open: usize = who.split_whitespace().nth(2).unwrap_or_default().parse()?;
    ensure!(open <= 8, "the logger has {open} descriptors open");
    let left = || proc::all().into_iter().filter(|process| process.command_line.contains(&*logger.to_string_lossy())).count();
    eventually("the logger has ended", SOON, || left() == 0)
}

fn log_file_takes_both_streams(case: &Case<'_>) -> Result<()> {
    let log = case.path("both")?;
    fs::write(&log, "kept\n")?;
    let uri = format!("file://{}", log.display());
    let id = case.id("f");
    let args =
        case.run_args(&["--detach", "--log-uri", &uri], &[], &image::name(1), &id, &["sh", "-c", "echo out; sleep 0.1; echo err >&2"]);
    case.ctr().ok(&words(&args))?;
    case.events.wait(&id, Kind::Exit, SOON)?;
    case.ctr().ok(&["task", "rm", &id])?;
    ensure_eq!(fs::read_to_string(&log)?, "kept\nout\nerr\n", "the log, appended to");
    Ok(())
}

fn null_streams(case: &Case<'_>) -> Result<()> {
    let id = case.id("n");
    let script =
        "for n in 0 1 2; do readlink /proc/self/fd/$n >>/targets; done; seq 1 100000; read line; echo $? >>/targets; exec sleep 1000";
    let args = case.run_args(&["--detach", "--null-io"], &[], &image::name(1), &id, &["sh", "-c", script]);
    case.ctr().ok(&words(&args))?;
    eventually("it got through its output and its empty input", SOON, || {
        // In the first line's redirection stdout is the file itself.
        case.exec(&id, &["cat", "/targets"]).is_ok_and(|text| text == "/dev/null\n/targets\n/dev/null\n1")
    })
}

fn terminal_output_is_complete(case: &Case<'_>) -> Result<()> {
    by_hand(case, |hand| {
        let mut bundle = hand.bundle("a", &["sh", "-c", "seq 1 150000; exit 2"])?;
        bundle.edit(|spec| spec["process"]["terminal"] = serde_json::json!(true))?;
        let stdout = fifo(hand.dir(), "stdout")?;
        let mut reader = Reader::open(&stdout)?;
        let shim = hand.shim(&bundle)?;
        // containerd's Go client may name a fifo for stderr too, from which it reads nothing.
        let stderr = fifo(hand.dir(), "stderr")?.display().to_string();
        shim.create_with(&bundle, Streams { terminal: true, stderr, ..to(&stdout) })?;
        shim.start(&bundle.id, "")?;
        let shown = reader.text(SOON)?;
        let expected: String = (1..=150_000).map(|number| format!("{number}\r\n")).collect();
        ensure!(
            shown == expected,
            "{} bytes instead of {}, the end {:?}",
            shown.len(),
            expected.len(),
            shown.get(shown.len().saturating_sub(20)..)
        );
        ensure_eq!(shim.wait(&bundle.id, "")?.exit_status, 2, "exit status");
        shim.delete(&bundle.id, "")?;
        shim.shutdown(&bundle.id)
    })
}

fn stdin_of_an_exec_ends(case: &Case<'_>) -> Result<()> {
    let id = case.detached(&[], &["sleep", "1000"])?;
    let input = case.path("input")?;
    fs::write(&input, vec![b'x'; 3_000_000])?;
    let mut command = case.ctr().command(&words(&case.exec_args(&id, &[], &["wc", "-c"])))?;
    let done = tests::command::run(command.stdin(File::open(input)?))?;
    ensure_eq!((done.code, done.stdout.trim()), (0, "3000000"), "bytes of stdin, stderr {:?}", done.stderr);
    Ok(())
}

/// The input goes on when its writer is exchanged, and ends after CloseIO with the last one.
fn close_io_ends_stdin(case: &Case<'_>) -> Result<()> {
    by_hand(case, |hand| {
        let bundle = hand.bundle("a", &["cat"])?;
        let (stdin, stdout) = (fifo(hand.dir(), "stdin")?, fifo(hand.dir(), "stdout")?);
        let mut reader = Reader::open(&stdout)?;
        let shim = hand.shim(&bundle)?;
        shim.create_with(&bundle, Streams { stdin: stdin.display().to_string(), ..to(&stdout) })?;
        shim.start(&bundle.id, "")?;
        let write = |text: &str| -> Result<File> {
            let mut file = File::options().write(true).open(&stdin)?;
            file.write_all(text.as_bytes())?;
            Ok(file)
        };
        drop(write("one\n")?);
        let mut buffer = [0; 64];
        let count = reader.read(&mut buffer, SOON)?;
        ensure_eq!(&buffer[..count], b"one\n", "output");
        let last = write("two\n")?;
        shim.close_stdin(&bundle.id, "")?;
        let count = reader.read(&mut buffer, SOON)?;
        ensure_eq!(&buffer[..count], b"two\n", "output after CloseIO, with a writer left");
        ensure_eq!(shim.state(&bundle.id, "")?.status.value(), 2, "status RUNNING");
        drop(last);
        ensure_eq!(reader.text(SOON)?, "", "output after the end of the input");
        ensure_eq!(shim.wait(&bundle.id, "")?.exit_status, 0, "exit status");
        shim.delete(&bundle.id, "")?;
        shim.shutdown(&bundle.id)
    })
}

fn attach_to_pipes(case: &Case<'_>) -> Result<()> {
    let (id, dir) = (case.id("p"), case.path("gates")?);
    fs::create_dir_all(&dir)?;
    let gate = fifo(&dir, "gate")?;
    let mut gate = File::options().read(true).write(true).open(&gate)?;
    let mount = format!("type=bind,src={},dst=/data,options=rbind:ro", dir.display());
    // Only one line is taken from the gate, which the shell reads byte by byte.
    let script = "exec 3</data/gate; for n in one two; do read go <&3; echo $n; done; exit 7";
    let args = case.run_args(&[], &["--mount", &mount], &image::name(1), &id, &["sh", "-c", script]);
    let mut first = case.ctr().command(&words(&args))?.stdout(Stdio::piped()).spawn()?;
    gate.write_all(b"go\n")?;
    ensure_eq!(line(&mut first)?, "one\n", "output of the first client");
    first.kill()?;
    first.wait()?;
    let mut second = case.ctr().command(&["task", "attach", &id])?.stdout(Stdio::piped()).spawn()?;
    gate.write_all(b"go\n")?;
    ensure_eq!(line(&mut second)?, "two\n", "output of the second client");
    let status = wait_for(&mut second, SOON)?.context(|| "ctr task attach goes on after the end".to_owned())?;
    ensure_eq!(code(status), 7, "exit code of ctr task attach");
    Ok(())
}

/// The next piece of a client's output.
fn line(client: &mut Child) -> Result<String> {
    let stdout = client.stdout.as_mut().context(|| "ctr has no stdout".to_owned())?;
    ensure!(readable(stdout, SOON)?, "no output for {SOON:?}");
    let mut buffer = [0; 64];
    let count = stdout.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
}
