//! Descriptors are counted for the whole process, so this test has a process of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;

use shim::io::{Drained, Io, Origin, Request};

#[tokio::test(flavor = "current_thread")]
async fn a_thousand_lives_leave_no_descriptor() {
    let open_files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| {
        let path = dir.path().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (stdin, stdout, stderr) = (path("stdin"), path("stdout"), path("stderr"));
    let origin = Origin { id: "web-1", namespace: "default", spawner: None, streams: None };
    // Reads all output; its own write end keeps it from seeing an end. It goes with the process.
    let mut reader = std::fs::OpenOptions::new().read(true).write(true).open(&stdout).unwrap();
    std::thread::spawn(move || while reader.read(&mut [0; 64]).is_ok() {});
    let before = open_files();
    for round in 0..1000 {
        let terminal = round % 4 == 0;
        let stderr = if terminal { String::new() } else { stderr.clone() };
        let request = Request { terminal, stdin: stdin.clone(), stdout: stdout.clone(), stderr };
        let (io, ends) = Io::open(&request, &origin, None).await.unwrap();
        let mut writer = match ends {
            Some(ends) => File::from(ends.stdout),
            None => {
                let pty = nix::pty::openpty(None, None).unwrap();
                io.attach_console(pty.master).unwrap();
                File::from(pty.slave)
            }
        };
        if round % 5 == 0 {
            // Not started, aborted: as when a create fails.
            io.abort();
            continue;
        }
        io.start();
        writer.write_all(b"output").unwrap();
        drop(writer);
        io.exited();
        assert_eq!(io.drained(Duration::from_secs(5)).await, Drained::Complete);
    }
    // An inotify descriptor is closed a moment later, since closing one blocks.
    for _ in 0..50 {
        if open_files() == before {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(open_files(), before);
}
