//! OCI images made here from busybox-static: no network, no registry.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::command::output;
use crate::tar::Tar;
use crate::{Context, Failure, Result, ensure};

/// The layer counts that the suites use; each is an image of its own.
pub const LAYERS: [usize; 3] = [1, 20, 120];

/// The name of the image with so many layers.
pub fn name(layers: usize) -> String {
    format!("docker.io/coracle/busybox:{layers}")
}

/// Debian's static busybox.
pub fn busybox() -> Result<PathBuf> {
    let path = PathBuf::from("/bin/busybox");
    let program = std::fs::read(&path).context(|| "/bin/busybox is missing: run deploy/setup/tools.sh".to_owned())?;
    // PT_INTERP holds the dynamic linker's name.
    ensure!(!program.windows(9).any(|w| w == b"/ld-linux"), "/bin/busybox is not static: install busybox-static");
    Ok(path)
}

/// The names under which busybox can be called.
pub fn applets() -> Result<&'static [String]> {
    static APPLETS: OnceLock<std::result::Result<Vec<String>, String>> = OnceLock::new();
    let listed = APPLETS.get_or_init(|| {
        let text = busybox().and_then(|path| output(Command::new(path).arg("--list"))).map_err(|e| e.0)?;
        Ok(text.lines().filter(|name| *name != "busybox").map(str::to_owned).collect())
    });
    listed.as_deref().map_err(|e| Failure(e.clone()))
}

/// Writes an archive for `ctr images import` to `path`, with the image of each of `counts`.
pub fn archive(counts: &[usize], path: &Path) -> Result<()> {
    let mut layout = Layout::default();
    let images = counts.iter().map(|count| layout.image(*count)).collect::<Result<Vec<_>>>()?;
    layout.write(&images, path)
}

/// The name of the image whose only program holds a pod's namespaces.
pub const PAUSE: &str = "docker.io/coracle/pause:1";

/// Writes an archive with the pause image to `path`; `work` is a directory for its compilation.
pub fn pause_archive(work: &Path, path: &Path) -> Result<()> {
    let mut tar = Tar::default();
    tar.file("pause", 0o755, &std::fs::read(program(Program::Pause, work)?)?);
    let mut layout = Layout::default();
    let entry = layout.image_of(PAUSE, &[tar.finish()], json!({"Entrypoint": ["/pause"]}));
    layout.write(&[entry], path)
}

/// A static program for containers, in C.
#[derive(Clone, Copy)]
pub enum Program {
    /// Holds a pod's namespaces.
    Pause,
    /// Watches what appears in its pid namespace, see its source.
    Watcher,
}

/// The path of a program: that of `CORACLE_PROGRAMS` where nothing can be compiled, else one that is compiled in `work`.
pub fn program(program: Program, work: &Path) -> Result<PathBuf> {
    let (name, source) = match program {
        Program::Pause => ("pause", include_str!("pause.c")),
        Program::Watcher => ("watcher", include_str!("watcher.c")),
    };
    if let Some(compiled) = std::env::var_os("CORACLE_PROGRAMS") {
        return Ok(Path::new(&compiled).join(name));
    }
    let (file, program) = (work.join(format!("{name}.c")), work.join(name));
    std::fs::write(&file, source)?;
    output(Command::new("cc").args(["-static", "-Os", "-s", "-o"]).arg(&program).arg(&file))?;
    Ok(program)
}

#[derive(Default)]
struct Layout {
    tar: Tar,
    written: std::collections::HashSet<String>,
}

impl Layout {
    fn blob(&mut self, media_type: &str, content: &[u8]) -> Value {
        let digest = Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect::<String>();
        if self.written.insert(digest.clone()) {
            self.tar.file(&format!("blobs/sha256/{digest}"), 0o644, content);
        }
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len()})
    }

    fn image(&mut self, count: usize) -> Result<Value> {
        let mut layers: Vec<Vec<u8>> = (1..count).map(lower_layer).collect();
        layers.push(top_layer(count)?);
        Ok(self.image_of(&name(count), &layers, json!({"Env": ["PATH=/bin:/sbin", "FROM_IMAGE=yes"], "Cmd": ["sh"]})))
    }

    /// Adds an image and answers its entry for the index.
    fn image_of(&mut self, name: &str, layers: &[Vec<u8>], config: Value) -> Value {
        let layers: Vec<Value> = layers.iter().map(|layer| self.blob("application/vnd.oci.image.layer.v1.tar", layer)).collect();
        let ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        let arch = match std::env::consts::ARCH {
            "aarch64" => "arm64",
            _ => "amd64",
        };
        let config = json!({"architecture": arch, "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}, "config": config});
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
        let mut entry = self.blob(media_type, manifest.to_string().as_bytes());
        let tag = name.rsplit(':').next();
        entry["annotations"] = json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
        entry
    }

    /// Writes the archive with an index of `images`.
    fn write(mut self, images: &[Value], path: &Path) -> Result<()> {
        self.tar.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": images});
        self.tar.file("index.json", 0o644, index.to_string().as_bytes());
        Ok(std::fs::write(path, self.tar.finish())?)
    }
}

/// One file that names its layer, and one that every layer replaces.
fn lower_layer(number: usize) -> Vec<u8> {
    let mut tar = Tar::default();
    tar.directory("layers", 0o755).file(&format!("layers/{number}"), 0o644, format!("{number}\n").as_bytes());
    tar.file("top", 0o644, format!("{number}\n").as_bytes());
    tar.finish()
}

/// The system on top, so that a snapshotter which copies its parents copies little.
fn top_layer(number: usize) -> Result<Vec<u8>> {
    let mut tar = Tar::default();
    for dir in ["bin", "dev", "etc", "home", "layers", "proc", "run", "sys", "tmp", "var"] {
        tar.directory(dir, if dir == "tmp" { 0o1777 } else { 0o755 });
    }
    tar.file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\nada:x:1000:1000:ada:/home:/bin/sh\n");
    tar.file("etc/group", 0o644, b"root:x:0:\nada:x:1000:\nextra:x:2000:ada\n");
    tar.file(&format!("layers/{number}"), 0o644, format!("{number}\n").as_bytes());
    tar.file("top", 0o644, format!("{number}\n").as_bytes());
    tar.file("bin/busybox", 0o755, &std::fs::read(busybox()?)?);
    for applet in applets()? {
        tar.symlink(&format!("bin/{applet}"), "busybox");
    }
    Ok(tar.finish())
}

/// Unpacks the one-layer image's files into `dir`, for bundles and for `ctr run --rootfs`.
pub fn unpack(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let layer = dir.with_extension("tar");
    std::fs::write(&layer, top_layer(1)?)?;
    output(Command::new("tar").arg("-C").arg(dir).arg("-xf").arg(&layer))?;
    Ok(std::fs::remove_file(&layer)?)
}
