//! Terminals: one master, copied to stdout, resized, hung up.

use std::os::fd::AsRawFd;

use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use super::*;

struct Terminal {
    io: Io,
    fifos: Fifos,
    containerd: File,
    slave: File,
}

/// A terminal with its copies running; raw, so that bytes are bytes.
async fn terminal() -> Terminal {
    let fifos = fifos();
    let request = Request { terminal: true, stdin: text(&fifos.stdin), stdout: text(&fifos.stdout), stderr: String::new() };
    let (io, ends) = Io::open(&request, &NOBODY, None).await.unwrap();
    assert!(ends.is_none());
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut settings = tcgetattr(&pty.slave).unwrap();
    cfmakeraw(&mut settings);
    tcsetattr(&pty.slave, SetArg::TCSANOW, &settings).unwrap();
    io.start();
    io.attach_console(pty.master).unwrap();
    let containerd = reader(&fifos.stdout);
    Terminal { io, fifos, containerd, slave: File::from(pty.slave) }
}

/// Opens the slave once more, as a process does by `/dev/pts/N`.
fn again(slave: &File) -> PathBuf {
    std::fs::read_link(format!("/proc/self/fd/{}", slave.as_raw_fd())).unwrap()
}

#[tokio::test(flavor = "current_thread")]
async fn bytes_go_both_ways_and_the_size_arrives() {
    let Terminal { io, fifos, containerd, mut slave } = terminal().await;
    slave.write_all(b"prompt").unwrap();
    let (_containerd, read) = read_exactly(containerd, 6).await;
    assert_eq!(read, b"prompt");
    writer(&fifos.stdin).write_all(b"typed").unwrap();
    let (slave, read) = read_exactly(slave, 5).await;
    assert_eq!(read, b"typed");
    io.resize(132, 43).unwrap();
    let size = rustix::termios::tcgetwinsize(&slave).unwrap();
    assert_eq!((size.ws_col, size.ws_row), (132, 43));
    assert_idle().await;
}

#[tokio::test(flavor = "current_thread")]
async fn the_output_before_the_exit_arrives_and_then_the_end() {
    let Terminal { io, fifos: _fifos, containerd, slave } = terminal().await;
    let (exit, exited) = tokio::sync::oneshot::channel::<()>();
    let process = tokio::task::spawn_blocking(move || {
        write_noise(slave, 16);
        exit.send(()).unwrap();
    });
    let client = tokio::task::spawn_blocking(move || {
        let mut containerd = containerd;
        check_noise(&mut containerd, &mut Noise::new(), 16);
        containerd
    });
    exited.await.unwrap();
    io.exited();
    // The end must come before any delete: clients wait for it first.
    assert!(read_to_end(client.await.unwrap()).await.is_empty());
    process.await.unwrap();
    assert_eq!(io.drained(SOON).await, Drained::Complete);
}

#[tokio::test(flavor = "current_thread")]
async fn a_session_that_is_gone_is_not_waited_for() {
    let Terminal { io, fifos: _fifos, containerd, mut slave } = terminal().await;
    slave.write_all(b"bye").unwrap();
    io.exited();
    // The slave is still held, by a background process.
    assert_eq!(read_to_end(containerd).await, b"bye");
    assert_eq!(io.drained(SOON).await, Drained::Complete);
    assert_eq!(slave.write(b"x").unwrap_err().raw_os_error(), Some(libc::EIO), "hung up");
}

#[tokio::test(flavor = "current_thread")]
async fn a_terminal_closed_by_all_can_be_opened_again() {
    let Terminal { io, fifos: _fifos, containerd, mut slave } = terminal().await;
    slave.write_all(b"one").unwrap();
    let (containerd, _) = read_exactly(containerd, 3).await;
    let path = again(&slave);
    drop(slave);
    assert_silent(&containerd).await;
    assert_idle().await;
    let mut slave = OpenOptions::new().read(true).write(true).open(path).unwrap();
    slave.write_all(b"two").unwrap();
    let (containerd, read) = read_exactly(containerd, 3).await;
    assert_eq!(read, b"two");
    drop(slave);
    io.exited();
    assert!(read_to_end(containerd).await.is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn a_stopped_reader_holds_the_writer_back_without_loss() {
    let Terminal { io, fifos: _fifos, containerd, slave } = terminal().await;
    let process = tokio::task::spawn_blocking(move || write_noise(slave, 16));
    tokio::time::sleep(WHILE).await;
    assert!(!process.is_finished());
    assert_idle().await;
    peer(move || {
        let mut containerd = containerd;
        check_noise(&mut containerd, &mut Noise::new(), 16);
    })
    .await;
    process.await.unwrap();
    io.exited();
    assert_eq!(io.drained(SOON).await, Drained::Complete);
}

#[tokio::test(flavor = "current_thread")]
async fn the_end_of_the_input_is_typed() {
    let Terminal { io, fifos, containerd: _containerd, slave } = terminal().await;
    let mut settings = tcgetattr(&slave).unwrap();
    settings.local_flags.insert(nix::sys::termios::LocalFlags::ICANON);
    tcsetattr(&slave, SetArg::TCSANOW, &settings).unwrap();
    writer(&fifos.stdin).write_all(b"half a line").unwrap();
    io.close_stdin();
    assert_eq!(read_to_end(slave).await, b"half a line");
}

#[tokio::test(flavor = "current_thread")]
async fn a_terminal_has_one_output() {
    let fifos = fifos();
    let mut request = Request { terminal: true, ..Request::default() };
    // containerd's client names a fifo for stderr that nobody will read; a log is named twice (`TerminalLogURI`).
    let log = format!("file://{}/log", fifos.dir.path().display());
    for stderr in [text(&fifos.stderr), log.clone()] {
        request.stdout = log.clone();
        request.stderr = stderr;
        let (io, _) = Io::open(&request, &NOBODY, None).await.unwrap();
        let pty = nix::pty::openpty(None, None).unwrap();
        io.attach_console(pty.master).unwrap();
        io.start();
        File::from(pty.slave).write_all(b"hello").unwrap();
        io.exited();
        assert_eq!(io.drained(SOON).await, Drained::Complete);
    }
    assert_eq!(std::fs::read(fifos.dir.path().join("log")).unwrap(), b"hellohello");
}

#[tokio::test(flavor = "current_thread")]
async fn a_terminal_that_nobody_reads_does_not_block() {
    let (io, _) = Io::open(&Request { terminal: true, ..Request::default() }, &NOBODY, None).await.unwrap();
    let pty = nix::pty::openpty(None, None).unwrap();
    io.attach_console(pty.master).unwrap();
    let another = nix::pty::openpty(None, None).unwrap();
    assert_eq!(io.attach_console(another.master).unwrap_err().kind(), ErrorKind::FailedPrecondition);
    io.start();
    peer(move || write_noise(File::from(pty.slave), 16)).await;
    io.exited();
    assert_eq!(io.drained(SOON).await, Drained::Complete);
}
