//! The root filesystem, mounts and devices.

use proto::api::Mount;
use serde_json::{Value, json};
use tests::Result;
use tests::hand::Hand;
use ttrpc::Code;

use crate::{BAD, Row, refuse_all, row, spec};

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::new();
    (mount.type_, mount.source) = (kind.to_owned(), source.to_owned());
    mount.options = options.iter().map(|option| (*option).to_owned()).collect();
    mount
}

fn rooted(mounts: impl Fn() -> Vec<Mount> + 'static, code: Code, words: &[&'static str]) -> Row {
    row(
        move |_, request| {
            request.rootfs = mounts();
            Ok(())
        },
        code,
        words,
    )
}

pub fn rootfs(hand: &mut Hand) -> Result<()> {
    let rows = vec![
        rooted(|| vec![mount("bind", "/no/such/root", &["rbind", "rw"])], Code::UNKNOWN, &["/no/such/root", "no such file"]),
        rooted(|| vec![mount("bind", "/etc/passwd", &["rbind", "rw"])], Code::UNKNOWN, &["/etc/passwd", "root"]),
        rooted(|| vec![mount("sillyfs", "none", &[])], Code::UNKNOWN, &["sillyfs"]),
        rooted(|| vec![mount("", "none", &[])], BAD, &["rootfs"]),
        rooted(|| vec![mount("overlay", "overlay", &["lowerdir=/no/such/layer"])], Code::UNKNOWN, &["overlay"]),
        rooted(|| vec![mount("overlay", "overlay", &["upperdir=/tmp"])], BAD, &["overlay"]),
        rooted(|| vec![mount("format/overlay", "overlay", &["lowerdir={{ mount 0 }}"])], BAD, &["format/overlay"]),
        rooted(|| vec![mount("bind", "/tmp", &["rbind", "X-containerd.mkdir.path=/x"])], BAD, &["X-containerd.mkdir.path"]),
        rooted(|| vec![mount("ext4", "/no/such.img", &["loop"])], Code::UNKNOWN, &["/no/such.img", "no such file"]),
        row(
            |bundle, request| {
                request.rootfs.clear();
                bundle.edit(|spec| spec["root"]["path"] = json!("/no/such/root"))
            },
            Code::UNKNOWN,
            &["/no/such/root", "no such file"],
        ),
    ];
    refuse_all(hand, rows)
}

fn added(mount: Value, code: Code, words: &[&'static str]) -> Row {
    spec(
        move |spec| {
            if let Some(mounts) = spec["mounts"].as_array_mut() {
                mounts.push(mount.clone());
            }
        },
        code,
        words,
    )
}

pub fn mounts(hand: &mut Hand) -> Result<()> {
    let bind = |source: &str, target: &str, option: &str| json!({"destination": target, "type": "bind", "source": source, "options": ["rbind", option]});
    let new = |kind: &str, target: &str, option: &str| json!({"destination": target, "type": kind, "source": kind, "options": [option]});
    let rows = vec![
        added(bind("/no/such/volume", "/v", "rw"), Code::UNKNOWN, &["/no/such/volume", "no such file"]),
        added(bind("/tmp", "/", "rw"), BAD, &["mounts[\"/\"]", "root"]),
        added(bind("/tmp", "/proc/1", "rw"), BAD, &["/proc/1"]),
        added(bind("/tmp", "/proc/self/attr", "rw"), BAD, &["/proc/self/attr"]),
        added(bind("/tmp", "/bin/busybox/v", "rw"), Code::UNKNOWN, &["bin/busybox/v", "not a directory"]),
        added(bind("/etc/passwd", "/bin", "rw"), Code::UNKNOWN, &["bin"]),
        added(new("sillyfs", "/v", "ro"), Code::UNKNOWN, &["sillyfs", "no such device"]),
        added(new("tmpfs", "/v", "silly=1"), Code::UNKNOWN, &["silly", "/v"]),
        added(new("tmpfs", "/v", "size=much"), Code::UNKNOWN, &["size", "/v", "invalid argument"]),
        added(new("", "/v", "ro"), BAD, &["mounts[\"/v\"]", "type"]),
        added(json!({"destination": "/v", "type": "bind", "options": ["bind"]}), BAD, &["mounts[\"/v\"]", "source"]),
        added(
            json!({"destination": "/v", "type": "bind", "source": "/tmp", "options": ["bind", "ro"], "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}),
            BAD,
            &["uidMappings", "without the other"],
        ),
        added(
            json!({"destination": "/v", "type": "tmpfs", "source": "none", "options": ["ro"],
                "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}], "gidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}),
            BAD,
            &["uidMappings", "only a bind"],
        ),
    ];
    refuse_all(hand, rows)
}

pub fn devices(hand: &mut Hand) -> Result<()> {
    let device = |device: Value, code: Code, words: &[&'static str]| {
        spec(move |spec| spec["linux"]["devices"] = json!([device.clone()]), code, words)
    };
    let rows = vec![
        device(json!({"path": "/dev/x", "type": "a", "major": 1, "minor": 3}), BAD, &["linux.devices", "/dev/x"]),
        device(json!({"path": "/dev/x", "type": "z", "major": 1, "minor": 3}), BAD, &["spec: linux.devices[0].type"]),
        device(json!({"path": "dev/x", "type": "c", "major": 1, "minor": 3}), BAD, &["linux.devices", "dev/x"]),
        device(json!({"path": "/", "type": "c", "major": 1, "minor": 3}), BAD, &["linux.devices"]),
        device(json!({"path": "/dev/x", "type": "c", "major": -1, "minor": 3}), BAD, &["linux.devices", "/dev/x", "number"]),
        device(json!({"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "uid": u32::MAX}), BAD, &["linux.devices", "/dev/x", "uid"]),
        device(json!({"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "gid": u32::MAX}), BAD, &["linux.devices", "/dev/x", "gid"]),
        device(json!({"path": "/dev/x", "type": "p", "uid": u32::MAX}), BAD, &["linux.devices", "/dev/x", "uid"]),
        // The kernel would cut them to 1:3.
        device(json!({"path": "/dev/x", "type": "c", "major": 4097, "minor": 3}), BAD, &["linux.devices", "/dev/x", "major 4097"]),
        device(json!({"path": "/dev/x", "type": "b", "major": 1, "minor": (1 << 20) + 3}), BAD, &["linux.devices", "/dev/x", "minor"]),
        device(json!({"path": "/dev/x", "type": "c", "major": 1, "minor": i64::MIN}), BAD, &["linux.devices", "/dev/x", "minor"]),
        device(json!({"path": "/dev/x", "type": "u", "major": i64::MAX, "minor": 3}), BAD, &["linux.devices", "/dev/x", "major"]),
        device(json!({"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": -1}), BAD, &["spec: linux.devices[0].fileMode"]),
        device(json!({"path": "/bin/busybox/x", "type": "c", "major": 1, "minor": 3}), Code::UNKNOWN, &["busybox/x", "not a directory"]),
    ];
    refuse_all(hand, rows)
}
