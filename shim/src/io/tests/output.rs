//! stdout and stderr through fifos.

use std::time::Instant;

use super::super::linger::LATE;
use super::*;

#[tokio::test(flavor = "current_thread")]
async fn output_is_exact_through_a_reader_that_pauses() {
    const BLOCKS: usize = 1024;
    let fifos = fifos();
    let (io, stdout) = with_stdout(&fifos.stdout).await;
    let process = tokio::task::spawn_blocking(move || write_noise(stdout, BLOCKS));
    let mut containerd = reader(&fifos.stdout);
    let mut noise = Noise::new();
    for part in [BLOCKS / 4, BLOCKS * 3 / 4] {
        (containerd, noise) = peer(move || {
            check_noise(&mut containerd, &mut noise, part);
            (containerd, noise)
        })
        .await;
        tokio::time::sleep(WHILE).await;
    }
    process.await.unwrap();
    assert!(read_to_end(containerd).await.is_empty(), "then the end");
    assert_eq!(io.drained(SOON).await, Drained::Complete);
}

#[tokio::test(flavor = "current_thread")]
async fn a_reader_that_comes_back_goes_on_where_it_stopped() {
    let fifos = fifos();
    let (io, stdout) = with_stdout(&fifos.stdout).await;
    let process = tokio::task::spawn_blocking(move || write_noise(stdout, 64));
    let mut noise = Noise::new();
    for _ in 0..8 {
        let path = fifos.stdout.clone();
        noise = peer(move || {
            check_noise(&mut reader(&path), &mut noise, 8);
            noise
        })
        .await;
        // Nobody reads now; the process must block and not get EPIPE.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    process.await.unwrap();
    assert_eq!(io.drained(SOON).await, Drained::Complete);
}

#[tokio::test(flavor = "current_thread")]
async fn nobody_ever_reads() {
    let fifos = fifos();
    let (io, mut stdout) = with_stdout(&fifos.stdout).await;
    stdout.write_all(b"unread").unwrap();
    drop(stdout);
    tokio::time::sleep(WHILE).await;
    let began = Instant::now();
    assert_eq!(io.drained(SOON).await, Drained::Truncated(6));
    assert!(began.elapsed() < SOON / 10, "nobody will come after a delete");
}

#[tokio::test(flavor = "current_thread")]
async fn the_tail_waits_for_a_containerd_that_is_away() {
    let fifos = fifos();
    let (io, mut stdout) = with_stdout(&fifos.stdout).await;
    stdout.write_all(b"last words").unwrap();
    drop(stdout);
    io.exited();
    tokio::time::sleep(WHILE).await;
    assert_idle().await;
    // A client waits for the end of this before it asks for the deletion.
    let path = fifos.stdout.clone();
    assert_eq!(peer(move || std::fs::read(path).unwrap()).await, b"last words");
    assert_eq!(io.drained(SOON).await, Drained::Complete);
}

#[tokio::test(flavor = "current_thread")]
async fn a_delete_while_containerd_is_away_does_not_stop_the_thread() {
    let mut times = Vec::new();
    for _ in 0..11 {
        let fifos = fifos();
        let (io, mut stdout) = with_stdout(&fifos.stdout).await;
        stdout.write_all(b"unread").unwrap();
        drop(stdout);
        tokio::time::sleep(Duration::from_millis(5)).await;
        let began = Instant::now();
        assert_eq!(io.drained(SOON).await, Drained::Truncated(6));
        times.push(began.elapsed().saturating_sub(LATE));
    }
    times.sort_unstable();
    assert!(times[5] < Duration::from_millis(4), "{times:?}");
}

/// The client is killed by the answer to the deletion, so that must not come while it has still to be scheduled.
#[tokio::test(flavor = "current_thread")]
async fn a_delete_waits_for_a_reader_that_is_late() {
    for opened_before in [true, false] {
        let fifos = fifos();
        let (io, mut stdout) = with_stdout(&fifos.stdout).await;
        let path = fifos.stdout.clone();
        let open = move || reader(&path);
        let early = if opened_before { Some(peer(open.clone()).await) } else { None };
        stdout.write_all(b"late").unwrap();
        drop(stdout);
        tokio::time::sleep(WHILE).await;
        let deleting = tokio::spawn(async move { io.drained(SOON).await });
        tokio::time::sleep(LATE / 5).await;
        assert!(!deleting.is_finished(), "the deletion did not wait, opened before: {opened_before}");
        let mut containerd = match early {
            Some(file) => file,
            None => peer(open).await,
        };
        let mut read = [0; 4];
        containerd.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"late");
        let began = Instant::now();
        assert_eq!(deleting.await.unwrap(), Drained::Complete);
        assert!(began.elapsed() < LATE / 2, "nothing is left to be waited for");
    }
}

/// With and without another process that keeps the pipe open.
#[tokio::test(flavor = "current_thread")]
async fn the_end_is_told_when_the_last_words_have_been_read() {
    for held_open in [false, true] {
        let fifos = fifos();
        let (io, mut stdout) = with_stdout(&fifos.stdout).await;
        let path = fifos.stdout.clone();
        let mut containerd = peer(move || reader(&path)).await;
        stdout.write_all(b"bye").unwrap();
        let other = held_open.then(|| stdout.try_clone().unwrap());
        drop(stdout);
        io.exited();
        let telling = tokio::spawn(async move {
            io.taken().await;
            io
        });
        tokio::time::sleep(LATE / 5).await;
        assert!(!telling.is_finished(), "told before it was read, held open: {held_open}");
        let mut read = [0; 3];
        containerd.read_exact(&mut read).unwrap();
        let began = Instant::now();
        let io = telling.await.unwrap();
        assert!(began.elapsed() < LATE / 2, "nothing is left to be waited for");
        drop(other);
        assert_eq!(io.drained(SOON).await, Drained::Complete);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn the_end_is_told_at_once_without_output_and_soon_without_a_reader() {
    let fifos = fifos();
    let (io, mut stdout) = with_stdout(&fifos.stdout).await;
    let (silent, unused) = with_stdout(&fifos.stderr).await;
    stdout.write_all(b"unread").unwrap();
    drop((stdout, unused));
    let began = Instant::now();
    silent.exited();
    silent.taken().await;
    assert!(began.elapsed() < LATE / 2, "there was nothing to read");
    io.exited();
    io.taken().await;
    assert!(began.elapsed() < LATE * 2, "nobody reads");
    assert_eq!(silent.drained(SOON).await, Drained::Complete);
    assert_eq!(io.drained(SOON).await, Drained::Truncated(6));
}

#[tokio::test(flavor = "current_thread")]
async fn the_end_of_nothing_is_kept_for_a_reader_that_is_late() {
    let fifos = fifos();
    let (io, stdout) = with_stdout(&fifos.stdout).await;
    let (unopened, unused) = with_stdout(&fifos.stderr).await;
    drop((stdout, unused));
    for io in [&io, &unopened] {
        io.exited();
        io.taken().await;
    }
    tokio::time::sleep(WHILE).await;
    let path = fifos.stdout.clone();
    // As containerd opens it: without O_NONBLOCK, so that the kernel waits for a writer.
    let late = peer(move || std::fs::read(path).unwrap());
    assert_eq!(tokio::time::timeout(SOON, late).await.expect("the reader waits for a writer"), b"");
    let began = Instant::now();
    assert_eq!(unopened.drained(SOON).await, Drained::Complete);
    assert!(began.elapsed() < LATE / 2, "a deletion does not wait for nothing");
}

#[tokio::test(flavor = "current_thread")]
async fn output_that_is_not_taken_in_time_is_counted() {
    let fifos = fifos();
    let (io, stdout) = with_stdout(&fifos.stdout).await;
    let containerd = peer({
        let path = fifos.stdout.clone();
        move || reader(&path)
    })
    .await;
    // Fills the fifo and then the pipe: 16 pages each.
    peer(move || write_noise(stdout, 2)).await;
    let began = Instant::now();
    assert_eq!(io.drained(WHILE).await, Drained::Truncated(BLOCK as u64));
    assert!(began.elapsed() >= WHILE && began.elapsed() < WHILE * 4);
    assert_eq!(read_to_end(containerd).await.len(), BLOCK, "what is in the fifo is still read");
    assert_eq!(io.drained(SOON).await, Drained::Truncated(BLOCK as u64), "the first answer stays");
}

#[tokio::test(flavor = "current_thread")]
async fn a_burst_is_drained_into_a_slow_reader() {
    let fifos = fifos();
    let (io, stdout) = with_stdout(&fifos.stdout).await;
    let path = fifos.stdout.clone();
    let (slow, go) = tokio::sync::oneshot::channel::<()>();
    let containerd = tokio::task::spawn_blocking(move || {
        let mut fifo = reader(&path);
        go.blocking_recv().unwrap();
        check_noise(&mut fifo, &mut Noise::new(), 2);
        assert_eq!(fifo.read(&mut [0]).unwrap(), 0);
    });
    peer(move || write_noise(stdout, 2)).await;
    io.exited();
    let (drained, ()) = tokio::join!(io.drained(SOON), async {
        tokio::time::sleep(WHILE).await;
        slow.send(()).unwrap();
    });
    assert_eq!(drained, Drained::Complete);
    containerd.await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_background_child_holds_up_a_delete_no_longer_than_the_bound() {
    let fifos = fifos();
    let (io, mut stdout) = with_stdout(&fifos.stdout).await;
    let containerd = peer({
        let path = fifos.stdout.clone();
        move || reader(&path)
    })
    .await;
    stdout.write_all(b"ok\n").unwrap();
    io.exited();
    let began = Instant::now();
    assert_eq!(io.drained(WHILE).await, Drained::HeldOpen);
    assert!(began.elapsed() >= WHILE && began.elapsed() < WHILE * 4);
    assert_eq!(read_to_end(containerd).await, b"ok\n");
}

#[tokio::test(flavor = "current_thread")]
async fn a_drain_that_is_dropped_loses_nothing() {
    let fifos = fifos();
    let (io, stdout) = with_stdout(&fifos.stdout).await;
    let _containerd = OpenOptions::new().read(true).write(true).open(&fifos.stdout).unwrap();
    assert!(tokio::time::timeout(WHILE, io.drained(SOON)).await.is_err());
    assert_eq!(io.drained(WHILE).await, Drained::HeldOpen);
    drop(stdout);
}

#[tokio::test(flavor = "current_thread")]
async fn a_stopped_reader_stops_one_stream_only() {
    let fifos = fifos();
    let request = Request { stdout: text(&fifos.stdout), stderr: text(&fifos.stderr), ..Request::default() };
    let (io, ends) = open(request).await;
    io.start();
    let stuck = tokio::task::spawn_blocking(move || write_noise(File::from(ends.stdout), 4));
    tokio::time::sleep(WHILE).await;
    assert!(!stuck.is_finished(), "the process is held back");
    let process = tokio::task::spawn_blocking(move || write_noise(File::from(ends.stderr), 64));
    let path = fifos.stderr.clone();
    peer(move || check_noise(&mut reader(&path), &mut Noise::new(), 64)).await;
    process.await.unwrap();
    assert_idle().await;
    let path = fifos.stdout.clone();
    peer(move || check_noise(&mut reader(&path), &mut Noise::new(), 4)).await;
    stuck.await.unwrap();
    assert_eq!(io.drained(SOON).await, Drained::Complete);
}

#[tokio::test(flavor = "current_thread")]
async fn idle_ends_cost_nothing() {
    let fifos = fifos();
    let request = Request { stdin: text(&fifos.stdin), stdout: text(&fifos.stdout), stderr: text(&fifos.stderr), ..Request::default() };
    let (io, ends) = open(request).await;
    io.start();
    assert_idle().await;
    drop(ends);
    assert_eq!(io.drained(SOON).await, Drained::Complete);
}

#[tokio::test(flavor = "current_thread")]
async fn the_rest_of_the_thread_gets_its_turn_under_a_flood() {
    let fifos = fifos();
    let (io, stdout) = with_stdout(&fifos.stdout).await;
    let flood = tokio::task::spawn_blocking(move || write_noise(stdout, 2048));
    let path = fifos.stdout.clone();
    let containerd = tokio::task::spawn_blocking(move || std::io::copy(&mut reader(&path), &mut std::io::sink()).unwrap());
    let mut longest = Duration::ZERO;
    while !flood.is_finished() {
        let began = Instant::now();
        tokio::task::yield_now().await;
        longest = longest.max(began.elapsed());
    }
    assert!(longest < Duration::from_millis(200), "a turn took {longest:?}");
    assert_eq!(containerd.await.unwrap(), 2048 * BLOCK as u64);
    assert_eq!(io.drained(SOON).await, Drained::Complete);
}

#[tokio::test(flavor = "current_thread")]
async fn dropping_the_io_ends_everything() {
    let fifos = fifos();
    let (io, mut stdout) = with_stdout(&fifos.stdout).await;
    drop(io);
    tokio::time::timeout(SOON, async {
        while poll_now(&stdout, PollFlags::OUT) != PollFlags::OUT | PollFlags::ERR {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(stdout.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test(flavor = "current_thread")]
async fn pipes_belong_to_the_given_owner_and_block() {
    use std::os::unix::fs::MetadataExt;
    let fifos = fifos();
    let request = Request { stdin: text(&fifos.stdin), stdout: text(&fifos.stdout), stderr: text(&fifos.stderr), ..Request::default() };
    let (_io, ends) = Io::open(&request, &NOBODY, Some(Owner { uid: 1000, gid: 1001 })).await.unwrap();
    let ends = ends.unwrap();
    for end in [ends.stdin, ends.stdout, ends.stderr] {
        let flags = rustix::fs::fcntl_getfl(&end).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
        assert!(rustix::io::fcntl_getfd(&end).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        let metadata = File::from(end).metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1000, 1001));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn null_io_is_three_null_devices() {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let (io, ends) = open(Request::default()).await;
    io.start();
    for end in [ends.stdin, ends.stdout, ends.stderr] {
        let metadata = File::from(end).metadata().unwrap();
        assert!(metadata.file_type().is_char_device());
        assert_eq!(metadata.rdev(), rustix::fs::makedev(1, 3));
    }
    io.resize(80, 25).unwrap();
    io.close_stdin();
    assert_eq!(io.drained(SOON).await, Drained::Complete);
}

/// What is written to both in turn becomes readable one after the other, so that a reader of both sees the order.
#[tokio::test]
async fn two_outputs_keep_their_order() {
    const ROUNDS: usize = 40;
    let fifos = fifos();
    let (io, ends) = open(Request { stdout: text(&fifos.stdout), stderr: text(&fifos.stderr), ..Request::default() }).await;
    let (mut stdout, mut stderr) = (reader(&fifos.stdout), reader(&fifos.stderr));
    io.start();
    let (mut out, mut err) = (File::from(ends.stdout), File::from(ends.stderr));
    let at_once = peer(move || {
        let mut at_once = 0;
        for round in 0..ROUNDS {
            let odd = round % 2 == 1;
            let (first, second) = if odd { (&mut err, &mut out) } else { (&mut out, &mut err) };
            first.write_all(b"first\n").unwrap();
            second.write_all(b"second\n").unwrap();
            let (one, other) = if odd { (&mut stderr, &mut stdout) } else { (&mut stdout, &mut stderr) };
            one.read_exact(&mut [0; 6]).unwrap();
            at_once += usize::from(!poll_now(&*other, PollFlags::IN).is_empty());
            other.read_exact(&mut [0; 7]).unwrap();
            let next = Instant::now() + Duration::from_millis(3);
            while Instant::now() < next {
                std::thread::yield_now();
            }
        }
        at_once
    })
    .await;
    // A busy machine may not let the reader run in time.
    assert!(at_once < ROUNDS / 4, "{at_once} of {ROUNDS} seconds were there with the first");
}
