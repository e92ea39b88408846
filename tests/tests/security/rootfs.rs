//! Hostile root filesystems: links and traps where the runtime has to work. Nothing outside may change, whatever Create answers.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::bed::Bed;
use tests::bundle::{Bundle, process};
use tests::{Result, ensure, ensure_eq, proc};

/// A tree of the host's that links point to.
pub struct Canary(pub PathBuf);

impl Canary {
    pub fn new(dir: &Path) -> Result<Canary> {
        let dir = dir.join("canary");
        for name in ["dev", "p", "s", "etc"] {
            fs::create_dir_all(dir.join(name))?;
        }
        for name in ["f", "dev/ptmx", "dev/null", "etc/passwd"] {
            fs::write(dir.join(name), "canary")?;
        }
        Ok(Canary(dir))
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// Everything below, with type, mode, owner, size, change and content.
    pub fn state(&self) -> Result<BTreeMap<String, String>> {
        let mut state = BTreeMap::new();
        let mut open = vec![self.0.clone()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir)?.flatten() {
                let found = fs::symlink_metadata(entry.path())?;
                let content = if found.is_file() { fs::read_to_string(entry.path())? } else { String::new() };
                let device = found.file_type().is_char_device();
                let text = format!("{:o} {} {} {} {content} {device}", found.mode(), found.uid(), found.size(), found.ctime_nsec());
                state.insert(entry.path().display().to_string(), text);
                if found.is_dir() {
                    open.push(entry.path());
                }
            }
        }
        Ok(state)
    }
}

/// Creates, runs and deletes a container whatever comes of it; answers whether Create and Start went well.
fn try_out(bed: &mut Bed<'_>, bundle: &Bundle) -> Result<bool> {
    if bed.create(bundle).is_err() {
        return Ok(false);
    }
    let started = bed.start(bundle).is_ok();
    bed.end(bundle)?;
    Ok(started)
}

/// Each link in the image of a container of its own; nothing on the host may change.
fn unharmed(bed: &mut Bed<'_>, links: &[(&str, String)], change: impl Fn(&mut Value)) -> Result<Vec<bool>> {
    let canary = Canary::new(bed.dir())?;
    let before = (canary.state()?, proc::mounts().len());
    let mut results = Vec::new();
    for (number, (link, target)) in links.iter().enumerate() {
        let mut bundle = bed.bundle(&format!("l{number}"), &["sleep", "1000"])?;
        bundle.edit(&change)?;
        let place = bundle.written(link.trim_start_matches('/'));
        fs::create_dir_all(place.parent().unwrap_or(&place))?;
        // A root of the container's own has a directory there.
        let _ = fs::remove_dir_all(&place);
        symlink(target, &place)?;
        results.push(try_out(bed, &bundle)?);
        ensure_eq!(canary.state()?, before.0, "the host's tree after {link} -> {target}");
    }
    let ours = proc::mounts().into_iter().filter(|mount| mount.line.contains("canary")).count();
    ensure_eq!(ours, 0, "mounts on the host's tree");
    Ok(results)
}

/// Without the mounts on and below these targets.
pub fn without(spec: &mut Value, targets: &[&str]) {
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        mounts.retain(|mount| !targets.iter().any(|target| mount["destination"].as_str().is_some_and(|path| path.starts_with(target))));
    }
}

/// CVE-2025-54867, CVE-2023-27561: /proc and /sys are directories or there is no container.
pub fn links_in_place_of_system_directories(bed: &mut Bed<'_>) -> Result<()> {
    let canary = Canary::new(bed.dir())?;
    let links = [
        ("/proc", canary.path("p")),
        ("/sys", canary.path("s")),
        ("/proc", "proc2".to_owned()),
        ("/sys", "bin".to_owned()),
        ("/proc", "/../../../..".to_owned()),
        ("/proc", "/proc/self/cwd".to_owned()),
    ];
    let results = unharmed(bed, &links, |_| {})?;
    ensure!(results.iter().all(|started| !started), "started: {results:?}");
    Ok(())
}

/// CVE-2026-41579, CVE-2026-47766: a /dev that leads away.
pub fn devices_that_are_links(bed: &mut Bed<'_>) -> Result<()> {
    let canary = Canary::new(bed.dir())?;
    let up = format!("../../../../../..{}", canary.path("dev"));
    let links = [
        ("/dev", canary.path("dev")),
        ("/dev", up),
        ("/dev", "/proc/self/cwd/..".to_owned()),
        ("/dev/null", canary.path("f")),
        ("/dev/ptmx", canary.path("dev/ptmx")),
        ("/dev/fd", canary.path("dev")),
        ("/dev/pts", canary.path("dev")),
        ("/dev/shm", canary.path("dev")),
    ];
    unharmed(bed, &links, |spec| without(spec, &["/dev"]))?;
    Ok(())
}

/// CVE-2026-88264: a console that would be made behind a link.
pub fn a_console_that_is_a_link(bed: &mut Bed<'_>) -> Result<()> {
    let canary = Canary::new(bed.dir())?;
    let links = [("/dev/console", canary.path("newfile")), ("/dev/console", canary.path("f")), ("/dev/pts", canary.path("dev"))];
    unharmed(bed, &links, |spec| {
        without(spec, &["/dev"]);
        spec["process"]["terminal"] = json!(true);
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.push(
                json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]}),
            );
        }
    })?;
    Ok(())
}

/// CVE-2019-18837, CVE-2024-45310, CVE-2026-87766: mount points whose parents lead away.
pub fn links_in_the_way_of_mounts(bed: &mut Bed<'_>) -> Result<()> {
    let canary = Canary::new(bed.dir())?;
    let mut links: Vec<(&str, String)> = ["/a", "/a/b"].into_iter().map(|link| (link, canary.path(""))).collect();
    for target in ["/proc/self/root", "/proc/1/root", "/proc/self/fd/3", "/proc/self/fd/9", "/proc/self/cwd", "../../../..", "/oldroot"] {
        links.push(("/a", format!("{target}{}", canary.path(""))));
        links.push(("/a", target.to_owned()));
    }
    let volume = bed.dir().join("volume");
    fs::create_dir_all(&volume)?;
    let source = volume.display().to_string();
    unharmed(bed, &links, move |spec| {
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            for target in ["/a/b/c", "/a/new", "/a/f/x"] {
                mounts.push(json!({"destination": target, "type": "bind", "source": source, "options": ["rbind", "rw"]}));
            }
        }
    })?;
    ensure!(fs::read_dir(Path::new(&volume))?.next().is_none(), "the volume was written to");
    Ok(())
}

/// CVE-2019-14271: files that libraries and shells would open of themselves. Each is a fifo, at which whoever opens it would wait.
pub fn traps_for_libraries(bed: &mut Bed<'_>) -> Result<()> {
    let bundle = bed.bundle("a", &["sleep", "1000"])?;
    for name in ["etc/passwd", "etc/group", "etc/nsswitch.conf", "etc/ld.so.preload", "etc/ld.so.cache", "etc/localtime", "etc/resolv.conf"]
    {
        let path = bundle.written(name);
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        let _ = fs::remove_file(&path);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU)?;
    }
    let began = Instant::now();
    bed.running(&bundle)?;
    let exec = bed.exec_start(&bundle, &process(&["sleep", "1000"]))?;
    ensure!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
    bed.exec_end(&bundle, exec)?;
    bed.end(&bundle)
}
