//! `binary://` loggers, played by tasks.

use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

use async_trait::async_trait;
use rustix::process::Signal;
use tokio::sync::watch;

use super::*;

/// What a logger does once it runs.
#[derive(Clone, Copy)]
enum Play {
    /// Says that it is ready, reads to the end, ends.
    Obey,
    /// Closes descriptor 5 without a byte.
    CloseOnly,
    /// Is ready and never ends by itself.
    Stay,
    /// Is ready and closes its input at once.
    Quit,
}

/// Path, arguments, environment.
type Seen = (PathBuf, Vec<std::ffi::OsString>, Vec<(&'static str, String)>);

struct Stage {
    play: Play,
    seen: Mutex<Vec<Seen>>,
    signals: watch::Sender<Vec<i32>>,
    log: watch::Sender<Vec<u8>>,
}

fn stage(play: Play) -> Stage {
    Stage { play, seen: Mutex::default(), signals: watch::Sender::default(), log: watch::Sender::default() }
}

struct Actor {
    signals: watch::Sender<Vec<i32>>,
    ended: watch::Receiver<bool>,
}

#[async_trait]
impl LoggerProcess for Actor {
    fn kill(&self, signal: Signal) {
        self.signals.send_modify(|signals| signals.push(signal.as_raw()));
    }

    async fn wait(&mut self) {
        let _ = self.ended.wait_for(|ended| *ended).await;
    }
}

#[async_trait]
impl Spawner for Stage {
    async fn spawn_logger(&self, command: LoggerCommand) -> Result<Box<dyn LoggerProcess>> {
        self.seen.lock().unwrap().push((command.path, command.args, command.env));
        assert_eq!(command.fds.iter().map(|(_, number)| *number).collect::<Vec<_>>(), [3, 4, 5]);
        let [out, err, ready] = <[_; 3]>::try_from(command.fds).unwrap().map(|(fd, _)| File::from(fd));
        let (end, ended) = watch::channel(false);
        let (play, log) = (self.play, self.log.clone());
        let mut signals = self.signals.subscribe();
        tokio::spawn(async move {
            if !matches!(play, Play::CloseOnly) {
                let _ = (&ready).write(b"1");
            }
            drop(ready);
            match play {
                Play::Obey => {
                    let read = [read_to_end(out).await, read_to_end(err).await].concat();
                    log.send_replace(read);
                }
                Play::Stay => {
                    let _ = signals.wait_for(|signals| !signals.is_empty()).await;
                }
                Play::CloseOnly | Play::Quit => {}
            }
            end.send_replace(true);
        });
        Ok(Box::new(Actor { signals: self.signals.clone(), ended }))
    }
}

fn request(scheme: &str) -> Request {
    let uri = format!("{scheme}:///bin/true?b=1&a=2");
    Request { stdout: uri.clone(), stderr: uri, ..Request::default() }
}

async fn start(stage: &Stage, request: &Request) -> Result<(Io, Option<ChildEnds>)> {
    Io::open(request, &Origin { spawner: Some(stage), ..NOBODY }, None).await
}

#[tokio::test(flavor = "current_thread")]
async fn a_logger_gets_the_streams_and_only_what_it_may_know() {
    for scheme in ["binary", "binary-v2"] {
        let stage = stage(Play::Obey);
        let (io, ends) = start(&stage, &request(scheme)).await.unwrap();
        let ends = ends.unwrap();
        io.start();
        File::from(ends.stdout).write_all(b"out").unwrap();
        File::from(ends.stderr).write_all(b"err").unwrap();
        assert_eq!(io.drained(SOON).await, Drained::Complete);
        assert_eq!(*stage.log.borrow(), b"outerr");
        assert!(stage.signals.borrow().is_empty(), "it ended by itself");
        let seen = stage.seen.lock().unwrap();
        assert_eq!(seen[0].0, PathBuf::from("/bin/true"));
        assert_eq!(seen[0].1, ["b", "1", "a", "2"]);
        assert_eq!(seen[0].2, [("CONTAINER_ID", "web-1".to_owned()), ("CONTAINER_NAMESPACE", "default".to_owned())]);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_byte_makes_the_difference_between_the_versions() {
    assert!(start(&stage(Play::CloseOnly), &request("binary")).await.is_ok());
    let failed = stage(Play::CloseOnly);
    let error = start(&failed, &request("binary-v2")).await.unwrap_err();
    assert!(error.to_string().contains("without saying that it is ready"), "{error}");
    let mut signals = failed.signals.subscribe();
    tokio::time::timeout(SOON, signals.wait_for(|signals| signals == &[libc::SIGTERM])).await.unwrap().unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_logger_that_stays_is_terminated() {
    let stage = stage(Play::Stay);
    let (io, ends) = start(&stage, &request("binary")).await.unwrap();
    drop(ends);
    io.start();
    assert_eq!(io.drained(Duration::from_secs(10)).await, Drained::Complete);
    assert_eq!(*stage.signals.borrow(), [libc::SIGTERM]);
}

#[tokio::test(flavor = "current_thread")]
async fn a_terminal_is_logged_and_outlives_its_logger() {
    for (play, logged) in [(Play::Obey, &b"hello"[..]), (Play::Quit, b"")] {
        let stage = stage(play);
        let (io, ends) = start(&stage, &Request { terminal: true, ..request("binary") }).await.unwrap();
        assert!(ends.is_none());
        let pty = nix::pty::openpty(None, None).unwrap();
        io.attach_console(pty.master).unwrap();
        io.start();
        let mut slave = File::from(pty.slave);
        slave.write_all(b"hello").unwrap();
        if matches!(play, Play::Quit) {
            peer(move || write_noise(slave, 8)).await;
        }
        io.exited();
        assert_eq!(io.drained(SOON).await, Drained::Complete);
        assert_eq!(*stage.log.borrow(), logged);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_logger_that_others_can_change_is_refused() {
    let error = Io::open(&request("binary"), &NOBODY, None).await.unwrap_err();
    assert_eq!(error.to_string(), "logger \"/bin/true\": binary loggers are not allowed (allow_binary_logger)");
    let dir = tempfile::tempdir().unwrap();
    let binary = dir.path().join("logger");
    std::fs::write(&binary, "").unwrap();
    for (mode, owner, why) in [(0o775, 0, "writable"), (0o757, 0, "writable"), (0o755, 1000, "owned"), (0o644, 0, "executable")] {
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(&binary, Some(owner), None).unwrap();
        let stage = stage(Play::Obey);
        let error = start(&stage, &Request { stdout: format!("binary://{}", text(&binary)), ..Request::default() }).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert!(stage.seen.lock().unwrap().is_empty());
    }
    let stage = stage(Play::Obey);
    let missing = Request { stdout: format!("binary://{}", text(&dir.path().join("missing"))), ..Request::default() };
    assert!(start(&stage, &missing).await.unwrap_err().to_string().ends_with("open: no such file or directory"));
    let stderr_only = Request { stdout: String::new(), ..request("binary") };
    assert_eq!(start(&stage, &stderr_only).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
}
