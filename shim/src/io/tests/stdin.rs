//! stdin: when the process sees its end, and when it does not.

use super::*;

async fn with_stdin(fifos: &Fifos) -> (Io, File) {
    let (io, ends) = open(Request { stdin: text(&fifos.stdin), ..Request::default() }).await;
    (io, File::from(ends.stdin))
}

#[tokio::test(flavor = "current_thread")]
async fn writers_come_and_go_until_close_io() {
    let fifos = fifos();
    let (io, mut process) = with_stdin(&fifos).await;
    io.start();
    for line in [b"one\n", b"two\n"] {
        assert_silent(&process).await;
        writer(&fifos.stdin).write_all(line).unwrap();
        let read;
        (process, read) = read_exactly(process, 4).await;
        assert_eq!(read, line);
    }
    assert_silent(&process).await;
    io.close_stdin();
    assert!(read_to_end(process).await.is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn after_close_io_the_end_comes_with_the_last_writer() {
    let fifos = fifos();
    let (io, process) = with_stdin(&fifos).await;
    io.start();
    let mut containerd = writer(&fifos.stdin);
    io.close_stdin();
    io.close_stdin();
    assert_silent(&process).await;
    containerd.write_all(b"late").unwrap();
    let (process, read) = read_exactly(process, 4).await;
    assert_eq!(read, b"late");
    assert_silent(&process).await;
    drop(containerd);
    assert!(read_to_end(process).await.is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn what_was_written_before_close_io_arrives() {
    let fifos = fifos();
    let (io, process) = with_stdin(&fifos).await;
    io.start();
    writer(&fifos.stdin).write_all(b"hello").unwrap();
    io.close_stdin();
    assert_eq!(read_to_end(process).await, b"hello");
}

#[tokio::test(flavor = "current_thread")]
async fn close_io_before_the_start_counts() {
    for written in [&b""[..], b"early"] {
        let fifos = fifos();
        let (io, process) = with_stdin(&fifos).await;
        if !written.is_empty() {
            writer(&fifos.stdin).write_all(written).unwrap();
        }
        io.close_stdin();
        assert_silent(&process).await;
        io.start();
        assert_eq!(read_to_end(process).await, written);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_process_that_closes_its_input_goes_on() {
    let fifos = fifos();
    let (io, ends) = open(Request { stdin: text(&fifos.stdin), stdout: text(&fifos.stdout), ..Request::default() }).await;
    io.start();
    drop(ends.stdin);
    let mut containerd = writer(&fifos.stdin);
    containerd.write_all(b"not wanted").unwrap();
    tokio::time::timeout(SOON, async {
        while !poll_now(&containerd, PollFlags::OUT).contains(PollFlags::ERR) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("containerd is told by EPIPE");
    let mut stdout = File::from(ends.stdout);
    stdout.write_all(b"still here").unwrap();
    let (_, read) = read_exactly(reader(&fifos.stdout), 10).await;
    assert_eq!(read, b"still here");
    assert_idle().await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_long_input_is_exact_and_waits_for_the_process() {
    let fifos = fifos();
    let (io, mut process) = with_stdin(&fifos).await;
    io.start();
    let containerd = writer(&fifos.stdin);
    let client = tokio::task::spawn_blocking(move || write_noise(containerd, 128));
    tokio::time::sleep(WHILE).await;
    assert!(!client.is_finished(), "nothing is buffered beyond the pipes");
    assert_idle().await;
    io.close_stdin();
    let process = peer(move || {
        check_noise(&mut process, &mut Noise::new(), 128);
        process
    })
    .await;
    assert!(read_to_end(process).await.is_empty());
    client.await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_delete_does_not_wait_for_the_input() {
    let fifos = fifos();
    let (io, process) = with_stdin(&fifos).await;
    io.start();
    let mut containerd = writer(&fifos.stdin);
    let began = std::time::Instant::now();
    assert_eq!(io.drained(SOON).await, Drained::Complete);
    assert!(began.elapsed() < SOON / 10);
    assert_eq!(containerd.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    assert!(read_to_end(process).await.is_empty());
}
