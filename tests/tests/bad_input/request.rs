//! What comes with the request: options and streams; and hooks.

use proto::protobuf::well_known_types::any::Any;
use proto::protobuf::{Message, MessageField};
use serde_json::{Value, json};
use tests::Result;
use tests::hand::Hand;
use ttrpc::Code;

use crate::{BAD, Row, refuse_all, row, spec};

fn with_options(type_url: &'static str, value: Vec<u8>, code: Code, words: &[&'static str]) -> Row {
    row(
        move |_, request| {
            let mut any = Any::new();
            (any.type_url, any.value) = (type_url.to_owned(), value.clone());
            request.options = MessageField::some(any);
            Ok(())
        },
        code,
        words,
    )
}

pub fn runtime_options(hand: &mut Hand) -> Result<()> {
    let mut systemd = proto::shim::oci::Options::new();
    systemd.systemd_cgroup = true;
    let toml = |text: &str| {
        let mut options = Vec::new();
        // runtimeoptions.v1.Options: config_body is field 3, bytes.
        options.extend([0x1a, u8::try_from(text.len()).unwrap_or_default()]);
        options.extend(text.as_bytes());
        options
    };
    let rows = vec![
        with_options("containerd.runc.v1.Options", vec![0xff; 8], BAD, &["options"]),
        with_options("containerd.runc.v1.Options", systemd.write_to_bytes()?, BAD, &["cgroupsPath", "SystemdCgroup", "slice:prefix:name"]),
        with_options("runtimeoptions.v1.Options", toml("SystemdCgroup = \"perhaps\""), BAD, &["options", "SystemdCgroup"]),
        with_options("runtimeoptions.v1.Options", toml("= ="), BAD, &["options"]),
    ];
    refuse_all(hand, rows)
}

pub fn hooks(hand: &mut Hand) -> Result<()> {
    let hook = |hook: Value, code: Code, words: &[&'static str]| {
        spec(move |spec| spec["hooks"] = json!({"createRuntime": [hook.clone()]}), code, words)
    };
    let rows = vec![
        hook(json!({"path": "/no/such/hook"}), Code::NOT_FOUND, &["createRuntime", "/no/such/hook"]),
        hook(json!({"path": "relative"}), BAD, &["createRuntime", "relative", "absolute"]),
        hook(json!({"path": "/etc/passwd"}), BAD, &["createRuntime", "/etc/passwd", "permission denied"]),
        hook(json!({"path": "/bin/sh", "timeout": -1}), BAD, &["createRuntime", "timeout"]),
        hook(json!({"path": "/bin/sh", "timeout": 0}), BAD, &["createRuntime", "timeout"]),
        hook(
            json!({"path": "/bin/sh", "args": ["sh", "-c", "echo broken >&2; exit 3"]}),
            Code::UNKNOWN,
            &["createRuntime", "/bin/sh", "3", "broken"],
        ),
        hook(json!({"args": ["x"]}), BAD, &["spec: hooks.", "path"]),
    ];
    refuse_all(hand, rows)
}

pub fn streams(hand: &mut Hand) -> Result<()> {
    let stdout = |stdout: &'static str, code: Code, words: &[&'static str]| {
        row(
            move |_, request| {
                request.stdout = stdout.to_owned();
                Ok(())
            },
            code,
            words,
        )
    };
    let link = hand.dir().join("link");
    std::os::unix::fs::symlink("/etc/passwd", &link)?;
    let mut rows = vec![
        stdout("/no/such/fifo", BAD, &["stdout", "/no/such/fifo", "no such file"]),
        stdout("relative", BAD, &["stdout", "relative", "absolute"]),
        stdout("/tmp", BAD, &["stdout", "/tmp", "directory"]),
        stdout("/tmp/../etc/passwd", BAD, &["stdout", ".."]),
        stdout("carrier-pigeon:///x", Code::UNIMPLEMENTED, &["stdout", "carrier-pigeon"]),
        stdout("file:///etc/passwd/log", BAD, &["/etc/passwd/log", "not a directory"]),
        stdout("binary:///no/such/logger", Code::UNKNOWN, &["/no/such/logger"]),
        stdout("binary://relative", BAD, &["stdout", "absolute"]),
    ];
    rows.push(row(
        move |_, request| {
            request.stdout = format!("file://{}", link.display());
            Ok(())
        },
        BAD,
        &["link", "symbolic links"],
    ));
    rows.push(row(
        |bundle, request| {
            request.terminal = true;
            bundle.edit(|spec| {
                spec["process"]["terminal"] = json!(true);
                if let Some(mounts) = spec["mounts"].as_array_mut() {
                    mounts.retain(|mount| mount["type"] != "devpts");
                }
            })
        },
        BAD,
        &["process.terminal", "devpts"],
    ));
    refuse_all(hand, rows)
}
