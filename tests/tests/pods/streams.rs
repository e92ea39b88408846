//! Exec, attach and port-forward by the streaming server; logs and their rotation.

use std::fs;
use std::io::{Read, Write};
use std::time::Duration;

use tests::cri::api::{AttachRequest, ExecRequest, PortForwardRequest, ReopenContainerLogRequest};
use tests::cri::pod::strings;
use tests::cri::stream::{RESIZE, STATUS, STDERR, STDIN, STDOUT, Stream};
use tests::cri::{Container, PodCase};
use tests::{Result, ensure, ensure_eq};

fn exec(case: &PodCase<'_>, app: &Container<'_>, command: &[&str], tty: bool) -> Result<Stream> {
    let request = ExecRequest { container_id: app.id.clone(), cmd: strings(command), tty, stdin: true, stdout: true, stderr: !tty };
    Stream::open(case.node, &case.cri.exec(request)?.url)
}

pub fn exec_stream(case: &PodCase<'_>) -> Result<()> {
    let app = case.pod("pod")?.sleeper("app")?;
    let mut stream = exec(case, &app, &["sh"], false)?;
    stream.send(STDIN, b"echo to-out; echo to-err >&2; exit 5\n")?;
    stream.wait(STATUS, "\"message\":\"5\"")?;
    ensure_eq!((stream.text(STDOUT), stream.text(STDERR)), ("to-out\n".to_owned(), "to-err\n".to_owned()), "streams");
    Ok(())
}

pub fn exec_terminal(case: &PodCase<'_>) -> Result<()> {
    let app = case.pod("pod")?.sleeper("app")?;
    let mut stream = exec(case, &app, &["sh"], true)?;
    stream.send(RESIZE, br#"{"Width":123,"Height":45}"#)?;
    stream.send(STDIN, b"until [ \"$(stty size)\" = '45 123' ]; do sleep 0.1; done; tty; echo re''sized\n")?;
    stream.wait(STDOUT, "resized")?;
    ensure!(stream.text(STDOUT).contains("/dev/pts/"), "no terminal: {:?}", stream.text(STDOUT));
    stream.send(STDIN, b"exit 0\n")?;
    stream.wait(STATUS, "Success")
}

pub fn attach(case: &PodCase<'_>) -> Result<()> {
    let app = case.pod("pod")?.container_with("app", &["cat"], |config| config.stdin = true)?;
    let request = AttachRequest { container_id: app.id.clone(), stdin: true, stdout: true, stderr: true, tty: false };
    // Twice, for stdin stays open when a client leaves (`stdin_once` is not set).
    for word in ["first", "second"] {
        let mut stream = Stream::open(case.node, &case.cri.attach(request.clone())?.url)?;
        stream.send(STDIN, format!("{word}\n").as_bytes())?;
        app.wait_printed(word)?;
        // containerd passes the input on before it has joined the output (`Attach` in its `internal/cri/io/container_io.go`), so a quick
        // answer is for the log alone now and then.
        stream.send(STDIN, format!("{word} again\n").as_bytes())?;
        stream.wait(STDOUT, &format!("{word} again"))?;
    }
    app.wait_printed("first\nfirst again\nsecond\nsecond again")
}

pub fn port_forward(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod("pod")?;
    let serve = "while :; do echo answer | nc -l -p 8080 -w 5; done";
    pod.container("app", &["sh", "-c", serve])?.shell("until netstat -ltn | grep -q 8080; do sleep 0.1; done")?;
    let url = case.cri.port_forward(PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![8080] })?.url;
    let mut stream = Stream::open(case.node, &format!("{url}?port=8080"))?;
    stream.send(0, b"question\n")?;
    stream.wait(0, "answer")
}

pub fn log_rotation(case: &PodCase<'_>) -> Result<()> {
    let app = case.pod("pod")?.container_with("app", &["cat"], |config| config.stdin = true)?;
    let request = AttachRequest { container_id: app.id.clone(), stdin: true, stdout: true, stderr: true, tty: false };
    let mut stream = Stream::open(case.node, &case.cri.attach(request)?.url)?;
    stream.send(STDIN, b"before\n")?;
    app.wait_printed("before")?;
    let old = app.log.with_extension("old");
    fs::rename(&app.log, &old)?;
    case.cri.reopen_container_log(ReopenContainerLogRequest { container_id: app.id.clone() })?;
    stream.send(STDIN, b"after\n")?;
    app.wait_printed("after")?;
    ensure_eq!(app.stdout()?, "after\n", "the new log");
    ensure!(!fs::read_to_string(&old)?.contains("after"), "the old log grew");
    Ok(())
}

/// A shell that writes to both streams in turn, as many programs write their progress and their warnings.
pub fn order_of_both_streams(case: &PodCase<'_>) -> Result<()> {
    let script = "i=0; while [ $i -lt 60 ]; do echo out; echo err >&2; i=$((i+1)); sleep 0.02; done";
    let app = case.pod("pod")?.container("app", &["sh", "-c", script])?;
    app.wait_exit()?;
    let log = fs::read_to_string(&app.log)?;
    let streams: Vec<&str> = log.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    ensure_eq!(streams.len(), 120, "lines in {log}");
    let swapped = streams.chunks(2).filter(|pair| *pair != ["stdout", "stderr"]).count();
    // containerd writes each stream to the log by a thread of its own, so a busy machine swaps some.
    ensure!(swapped <= 15, "{swapped} of 60 pairs are swapped");
    Ok(())
}

pub fn pod_address(case: &PodCase<'_>) -> Result<()> {
    let pod = case.pod("pod")?;
    pod.container("app", &["sh", "-c", "while :; do echo answer | nc -l -p 8080 -w 5; done"])?
        .shell("until netstat -ltn | grep -q 8080; do sleep 0.1; done")?;
    let address = pod.status()?.network.unwrap_or_default().ip;
    let mut tcp = tests::cri::stream::connect(case.node.containerd.pid(), format!("{address}:8080"))?;
    tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
    tcp.write_all(b"question\n")?;
    let mut answer = [0; 6];
    tcp.read_exact(&mut answer)?;
    ensure_eq!(&answer, b"answer", "what the pod serves");
    Ok(())
}
