//! What lies at the paths: missing, of the wrong kind, logs.

use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use super::*;

async fn stdout_refusal(path: &Path) -> String {
    let error = refusal(Request { stdout: text(path), ..Request::default() }).await;
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    error.to_string().replace(&text(path.parent().unwrap()), "")
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_not_a_fifo_is_refused_by_its_kind() {
    let fifos = fifos();
    let dir = fifos.dir.path();
    symlink(&fifos.stdout, dir.join("link")).unwrap();
    let _listener = UnixListener::bind(dir.join("socket")).unwrap();
    std::fs::create_dir(dir.join("dir")).unwrap();
    assert_eq!(stdout_refusal(&dir.join("missing")).await, "open stdout \"/missing\": no such file or directory");
    assert_eq!(stdout_refusal(&dir.join("link")).await, "stdout \"/link\": a symbolic link, not a fifo");
    assert_eq!(stdout_refusal(&dir.join("socket")).await, "stdout \"/socket\": a socket, not a fifo");
    assert_eq!(stdout_refusal(&dir.join("dir")).await, "stdout \"/dir\": a directory, not a fifo");
    assert!(stdout_refusal(Path::new("/dev/zero")).await.contains("a device, not a fifo"));
}

#[tokio::test(flavor = "current_thread")]
async fn an_input_is_a_fifo_or_null() {
    let fifos = fifos();
    let file = fifos.dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    for stdin in [text(&file), "file:///x".to_owned(), "binary:///bin/true".to_owned(), text(&fifos.dir.path().join("missing"))] {
        let error = refusal(Request { stdin, ..Request::default() }).await;
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    let (io, ends) = open(Request { stdin: "/dev/null".to_owned(), ..Request::default() }).await;
    io.start();
    assert!(read_to_end(File::from(ends.stdin)).await.is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn a_failed_open_leaves_the_other_fifos_closed() {
    let fifos = fifos();
    let missing = text(&fifos.dir.path().join("missing"));
    refusal(Request { stdin: text(&fifos.stdin), stdout: text(&fifos.stdout), stderr: missing, ..Request::default() }).await;
    let write_end = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&fifos.stdout);
    assert_eq!(write_end.unwrap_err().raw_os_error(), Some(libc::ENXIO), "no reader is left");
}

#[tokio::test(flavor = "current_thread")]
async fn a_plain_path_to_a_file_is_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    std::fs::write(&log, "before ").unwrap();
    let (io, mut stdout) = with_stdout(&log).await;
    stdout.write_all(b"after").unwrap();
    drop(stdout);
    assert_eq!(io.drained(SOON).await, Drained::Complete);
    assert_eq!(std::fs::read(&log).unwrap(), b"before after");
}

#[tokio::test(flavor = "current_thread")]
async fn a_file_uri_makes_the_log_and_takes_both_streams() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("a b/c/log");
    for (stderr, run) in [(String::new(), 1), (format!("file://{}", text(&log).replace(' ', "%20")), 2)] {
        let stdout = format!("file://{}", text(&log).replace(' ', "%20"));
        let (io, ends) = open(Request { stdout, stderr, ..Request::default() }).await;
        io.start();
        File::from(ends.stdout).write_all(b"out;").unwrap();
        File::from(ends.stderr).write_all(b"err;").unwrap();
        assert_eq!(io.drained(SOON).await, Drained::Complete);
        let content = std::fs::read_to_string(&log).unwrap();
        assert_eq!((content.matches("out;").count(), content.matches("err;").count(), content.len()), (run, run, run * 8));
    }
    assert_eq!(std::fs::metadata(&log).unwrap().permissions().mode() & 0o7777, 0o644);
}

#[tokio::test(flavor = "current_thread")]
async fn a_log_is_never_something_else() {
    let fifos = fifos();
    let dir = fifos.dir.path();
    let canary = dir.join("canary");
    std::fs::write(&canary, "untouched").unwrap();
    symlink(&canary, dir.join("link")).unwrap();
    symlink(dir.join("nowhere"), dir.join("dangling")).unwrap();
    for name in ["link", "dangling", "stdout", "."] {
        let error = refusal(Request { stdout: format!("file://{}/{name}", dir.display()), ..Request::default() }).await;
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    assert_eq!(std::fs::read(&canary).unwrap(), b"untouched");
    assert!(!dir.join("nowhere").exists());
}

/// A full disk: in a mount namespace of the test's thread, which ends with it.
#[tokio::test(flavor = "current_thread")]
async fn a_full_disk_holds_the_process_back_until_there_is_room() {
    use nix::mount::{MsFlags, mount};
    let dir = tempfile::tempdir().unwrap();
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
    let filler = dir.path().join("filler");
    std::fs::write(&filler, vec![0; 900 * 1024]).unwrap();

    let log = dir.path().join("log");
    let (io, ends) = open(Request { stdout: format!("file://{}", text(&log)), ..Request::default() }).await;
    io.start();
    drop(ends.stderr);
    let process = tokio::task::spawn_blocking(move || write_noise(File::from(ends.stdout), 8));
    tokio::time::sleep(WHILE).await;
    assert!(!process.is_finished());
    assert_idle().await;
    std::fs::remove_file(&filler).unwrap();
    tokio::time::timeout(Duration::from_secs(1), process).await.expect("goes on within a second").unwrap();
    assert_eq!(io.drained(SOON).await, Drained::Complete);
    let mut log = File::open(&log).unwrap();
    check_noise(&mut log, &mut Noise::new(), 8);
    assert_eq!(log.read(&mut [0]).unwrap(), 0);
    drop(log);
    nix::mount::umount(dir.path()).unwrap();
}
