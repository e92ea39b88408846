//! A whole container, its program, its working directory.

use serde_json::json;

use super::bed::{Bed, Bundle, Test};

pub const TESTS: &[Test] = &[
    ("a container runs and sees only its own", runs),
    ("programs that cannot run are told from each other", programs),
    ("PATH is searched as the user", path_is_searched),
    ("HOME is the user's of the image", home),
    ("HOME without a usable passwd", odd_passwd),
    ("the working directory is made, also in a read-only root", working_directory_is_made),
    ("a working directory that only the user may enter", working_directory_of_user),
    ("a root that is moved instead of pivoted", moved_root),
    ("names and sysctls of the container's own", names_and_sysctls),
];

fn runs(bed: &Bed) {
    let script = "hostname; id -u; echo $$; echo /*; cat /proc/self/mountinfo; ls /proc/self/fd; ls /proc | grep -c '^[0-9]'";
    let output = Bundle::new(script).output(bed);
    let (head, rest) = output.split_once('\n').unwrap();
    assert_eq!(head, "inside");
    assert!(rest.starts_with("0\n1\n/bin /dev /proc /run /sys\n"), "{output}");
    let points: Vec<&str> = rest.lines().filter(|line| line.contains(" - ")).map(|line| line.split(' ').nth(4).unwrap()).collect();
    let known = ["/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/run"];
    assert!(known.iter().all(|point| points.contains(point)), "{output}");
    let covers = ["/proc/keys", "/proc/kcore", "/proc/acpi", "/proc/sys", "/proc/bus", "/sys/firmware"];
    assert!(points.iter().all(|point| known.contains(point) || covers.contains(point)), "{output}");
    // 0, 1, 2 and the one that ls reads.
    assert!(output.contains("\n0\n1\n2\n3\n"), "{output}");
}

fn programs(bed: &Bed) {
    let bundle = Bundle::new("");
    std::fs::write(bundle.root().join("data"), "\x01no program").unwrap();
    std::fs::write(bundle.root().join("closed"), "").unwrap();
    std::fs::create_dir(bundle.root().join("directory")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(bundle.root().join("data"), mode).unwrap();
    let mut bundle = bundle;
    for (program, sentence) in [
        ("nosuch", r#"exec: "nosuch": executable file not found in $PATH"#),
        ("/nosuch", r#"exec: "/nosuch": stat /nosuch: no such file or directory"#),
        ("/data/x", r#"exec: "/data/x": stat /data/x: no such file or directory"#),
        ("/closed", r#"exec: "/closed": permission denied"#),
        ("/directory", r#"exec: "/directory": is a directory"#),
    ] {
        bundle = bundle.with("/process/args", json!([program]));
        assert_eq!(bundle.failure(bed), sentence);
    }
    // What only execve(2) can tell is the program's own end.
    bundle = bundle.with("/process/args", json!(["/data"]));
    let mut running = bundle.start(bed);
    running.ready();
    running.go();
    assert_eq!(running.end(), (126, "exec /data: exec format error\n".to_owned()));
}

fn path_is_searched(bed: &Bed) {
    let bundle = Bundle::new("echo found").with("/process/env", json!(["PATH=relative:/nosuch:/locked:/bin/"]));
    let bundle = bundle.with("/process/user", json!({"uid": 1000, "gid": 1000}));
    std::fs::create_dir(bundle.root().join("locked")).unwrap();
    std::fs::copy("/bin/busybox", bundle.root().join("locked/sh")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(bundle.root().join("locked"), mode).unwrap();
    assert_eq!(bundle.output(bed), "found\n");
    let bundle = bundle.with("/process/env", json!(["PATH=/locked"]));
    assert_eq!(bundle.failure(bed), r#"exec: "sh": permission denied"#);
}

fn home(bed: &Bed) {
    let script = "env | grep -c '^HOME='; echo $HOME";
    let user = |uid: u32| Bundle::new(script).with("/process/user", json!({"uid": uid, "gid": 7}));
    let with_passwd = |uid: u32| {
        let bundle = user(uid);
        std::fs::create_dir(bundle.root().join("etc")).unwrap();
        std::fs::write(bundle.root().join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nseven:x:7:7::/home/seven:/bin/sh\n").unwrap();
        bundle
    };
    for (uid, home) in [(0, "/root"), (7, "/home/seven"), (8, "/")] {
        assert_eq!(with_passwd(uid).output(bed), format!("1\n{home}\n"));
    }
    assert_eq!(user(0).output(bed), "1\n/\n");
    let given = with_passwd(7).with("/process/env", json!(["PATH=/bin", "HOME=/h"]));
    assert_eq!(given.output(bed), "1\n/h\n");
    let empty = with_passwd(7).with("/process/env", json!(["HOME=", "PATH=/bin"]));
    assert_eq!(empty.output(bed), "1\n/home/seven\n");

    let bundle = with_passwd(0).with("/process/args", json!(["cat", "/run/fifo"]));
    let mut init = bundle.start(bed);
    init.ready();
    let joined = bundle.join_output(bed, &init, json!({"args": ["sh", "-c", "echo $HOME"], "user": {"uid": 7, "gid": 7}}));
    assert_eq!(joined, "/home/seven\n");
    init.kill();
}

/// Whatever an image has in the place of its passwd, the start neither waits nor fails, and reads nothing of the host.
fn odd_passwd(bed: &Bed) {
    type Make = fn(&std::path::Path);
    let kinds: [Make; 5] = [
        |path| std::fs::create_dir(path).unwrap(),
        |path| rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap(),
        |path| std::os::unix::fs::symlink("passwd", path).unwrap(),
        |path| std::os::unix::fs::symlink("/proc/1/root/etc/passwd", path).unwrap(),
        |path| std::os::unix::fs::symlink("../../../../etc/shadow", path).unwrap(),
    ];
    for make in kinds {
        let bundle = Bundle::new("echo $HOME");
        std::fs::create_dir(bundle.root().join("etc")).unwrap();
        make(&bundle.root().join("etc/passwd"));
        assert_eq!(bundle.output(bed), "/\n");
    }
}

fn working_directory_is_made(bed: &Bed) {
    let bundle = Bundle::new("pwd; stat -c %a .").with("/process/cwd", json!("/a/b")).with("/root/readonly", json!(true));
    assert_eq!(bundle.output(bed), "/a/b\n755\n");
}

fn working_directory_of_user(bed: &Bed) {
    let bundle = Bundle::new("pwd").with("/process/cwd", json!("/closed")).with("/process/user", json!({"uid": 9, "gid": 9}));
    std::fs::create_dir(bundle.root().join("closed")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(bundle.root().join("closed"), mode).unwrap();
    // As with runc: what root may enter, the user is in.
    assert_eq!(bundle.output(bed), "/closed\n");
}

fn moved_root(bed: &Bed) {
    let mut bundle = Bundle::new("echo /*; cat /proc/self/mountinfo | head -1");
    bundle.no_pivot_root = true;
    assert!(bundle.output(bed).starts_with("/bin /dev /proc /run /sys\n"));
}

fn names_and_sysctls(bed: &Bed) {
    let before = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    let script = "hostname; cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax";
    let bundle = Bundle::new(script).with("/domainname", json!("example.org"));
    let sysctl = json!({"net.ipv4.ip_unprivileged_port_start": "7", "kernel.msgmax": "4242"});
    assert_eq!(bundle.with("/linux/sysctl", sysctl).output(bed), "inside\nexample.org\n7\n4242\n");
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(), before);
}
