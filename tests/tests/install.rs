//! The installer: what it does to a configuration, that the runtime works then, and that nothing is left when it is gone.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use tests::command::{Output, output, run};
use tests::containerd::Version;
use tests::cri::{Node, PodCase, Style};
use tests::suite::{Named, main_of, versions};
use tests::{Context, Result, ensure, ensure_eq, paths};

fn main() -> ExitCode {
    let mut cases: Vec<Named> = vec![
        ("install::wrong_usage".to_owned(), Box::new(wrong_usage)),
        ("install::runcs_own_shim_comes_back".to_owned(), Box::new(runcs_own_shim_comes_back)),
        ("install::candidate_is_private".to_owned(), Box::new(candidate_is_private)),
        ("install::lost_mark_is_a_refusal".to_owned(), Box::new(lost_mark_is_a_refusal)),
    ];
    cases.push(("install::debian_package".to_owned(), Box::new(debian_package)));
    cases.push(("install::from_a_container".to_owned(), Box::new(from_a_container)));
    for version in versions() {
        let full = |name: &str| format!("install::{}::{name}", version.name());
        cases.push((full("configurations"), Box::new(move || configurations(version))));
        cases.push((full("configuration_behind_links"), Box::new(move || behind_links(version))));
        cases.push((full("killed_in_the_middle"), Box::new(move || killed_in_the_middle(version))));
        cases.push((full("containerd_that_does_not_come_back"), Box::new(move || no_restart(version))));
        let podless = Style::all(version).contains(&Style::Podless);
        for style in Style::INSTALLED.into_iter().chain(podless.then_some(Style::Podless)) {
            cases.push((full(&format!("pods_{}", style.name())), Box::new(move || pods(version, style))));
        }
        if !podless {
            cases.push((full("podless_is_refused"), Box::new(move || podless_is_refused(version))));
        }
    }
    main_of(cases)
}

/// Every path with its mode, owner and group, and its content.
type Tree = BTreeMap<PathBuf, ([u32; 3], Vec<u8>)>;

/// A system in a directory, as far as the installer sees of it.
struct System {
    dir: tempfile::TempDir,
    containerd: PathBuf,
}

impl System {
    fn new(version: Version) -> Result<System> {
        Ok(System { dir: tempfile::tempdir()?, containerd: version.program("containerd")? })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> PathBuf {
        self.path("etc/containerd/config.toml")
    }

    /// Runs the installer with directories of this system.
    fn installer(&self, arguments: &[&str]) -> Result<Output> {
        run(&mut self.command(&self.config(), arguments)?)
    }

    fn command(&self, config: &Path, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(paths::checkout().join("deploy/install.sh"));
        command.args(arguments).arg("--from").arg(paths::shim_dir()?).arg("--config").arg(config);
        command.arg("--bin-dir").arg(self.path("usr/local/bin")).arg("--state").arg(self.path("var/lib/coracle"));
        command.arg("--containerd").arg(&self.containerd);
        Ok(command)
    }

    fn install(&self, arguments: &[&str]) -> Result<String> {
        let done = self.installer(&[&["install", "--no-restart"], arguments].concat())?;
        ensure_eq!(done.code, 0, "exit code of the installation, which said {:?} {:?}", done.stdout, done.stderr);
        Ok(done.stdout)
    }

    fn uninstall(&self) -> Result<()> {
        // Shims of other suites may be running on this machine.
        let done = self.installer(&["uninstall", "--no-restart", "--force"])?;
        ensure_eq!(done.code, 0, "exit code of the removal, which said {:?} {:?}", done.stdout, done.stderr);
        Ok(())
    }

    fn tree(&self) -> Result<Tree> {
        let (mut tree, mut open) = (BTreeMap::new(), vec![self.dir.path().to_owned()]);
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir)? {
                let (path, found) = {
                    let entry = entry?;
                    (entry.path(), entry.metadata()?)
                };
                let content = match found.file_type() {
                    kind if kind.is_symlink() => fs::read_link(&path)?.into_os_string().into_encoded_bytes(),
                    kind if kind.is_dir() => {
                        open.push(path.clone());
                        Vec::new()
                    }
                    _ => fs::read(&path)?,
                };
                tree.insert(path, ([found.mode(), found.uid(), found.gid()], content));
            }
        }
        Ok(tree)
    }

    /// The handler in the configuration as containerd reads it.
    fn handler(&self, name: &str) -> Result<Option<String>> {
        let dump = output(Command::new(&self.containerd).arg("--config").arg(self.config()).args(["config", "dump"]))?;
        let mut lines = dump.lines().skip_while(|line| !line.trim_end().ends_with(&format!("containerd.runtimes.{name}]")));
        Ok(lines
            .next()
            .map(|_| lines.take_while(|line| !line.trim_start().starts_with('[')).map(|line| format!("{}\n", line.trim())).collect()))
    }
}

/// What is found on machines.
fn found(version: Version) -> Vec<(&'static str, Option<String>)> {
    let old =
        "version = 2\n\n# a comment\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  default_runtime_name = \"runc\"\n".to_owned();
    let with_runc =
        format!("{old}  [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n    runtime_type = \"io.containerd.runc.v2\"");
    let mut found = vec![
        ("none", None),
        ("empty", Some(String::new())),
        ("of Debian, without CRI", Some("version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n".to_owned())),
        ("with comments", Some(old)),
        ("without a last newline", Some(with_runc)),
    ];
    if version == Version::V2 {
        let new = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\n  default_runtime_name = 'runc'\n";
        found.push(("of version 3", Some(new.to_owned())));
        found.push(("with imports", Some(format!("imports = ['conf.d/*.toml']\n{new}"))));
    }
    found
}

fn configurations(version: Version) -> Result<()> {
    for (name, text) in found(version) {
        let system = System::new(version)?;
        if let Some(text) = &text {
            fs::create_dir_all(system.path("etc/containerd/conf.d"))?;
            fs::write(system.config(), text)?;
            fs::set_permissions(system.config(), fs::Permissions::from_mode(0o640))?;
        }
        let before = system.tree()?;
        system.install(&[]).context(|| name.to_owned())?;
        // containerd 1.x does not show what a disabled plugin is told.
        let shown = version == Version::V2 || !text.as_ref().is_some_and(|text| text.contains("disabled_plugins"));
        let expect = |words: &[&str]| -> Result<()> {
            let handler = match shown {
                true => system.handler("coracle")?.context(|| format!("{name}: no handler"))?,
                false => fs::read_to_string(system.config())?,
            };
            ensure!(words.iter().all(|word| handler.contains(word)), "{name}: the handler is {handler:?}");
            Ok(())
        };
        expect(&["io.containerd.coracle.v2"])?;
        ensure!(!shown || system.handler("runc")?.is_some(), "{name}: the handler runc is gone");
        ensure!(text.is_none() || fs::metadata(system.config())?.mode() & 0o777 == 0o640, "{name}: the mode is another one");
        let once = system.tree()?;
        system.install(&[]).context(|| format!("{name}, again"))?;
        ensure!(system.tree()? == once, "{name}: a second installation changes something");
        // Another style takes the first one's place.
        system.install(&["--style", "path"])?;
        expect(&["io.containerd.runc.v2", "usr/local/bin/containerd-shim-coracle-v2"])?;
        system.uninstall()?;
        let (after, names) = (system.tree()?, |tree: &BTreeMap<PathBuf, _>| tree.keys().cloned().collect::<Vec<_>>());
        ensure_eq!(names(&after), names(&before), "{name}: paths after the removal");
        ensure!(after == before, "{name}: the configuration is not as it was: {:?}", fs::read_to_string(system.config()));
    }
    Ok(())
}

fn wrong_usage() -> Result<()> {
    let system = System::new(Version::V16)?;
    for (arguments, words) in [
        (&["install", "--style", "other"] as &[&str], "--style 'other'"),
        (&["install", "--handler", "a b"], "--handler 'a b'"),
        (&["install", "--colour"], "unknown argument '--colour'"),
        (&["uninstall"], "nothing of this installer is here"),
    ] {
        let done = system.installer(arguments)?;
        ensure!(done.code == 1 && done.stderr.contains(words), "{arguments:?}: exit code {}, {:?}", done.code, done.stderr);
    }
    fs::create_dir_all(system.path("etc/containerd"))?;
    for (text, words) in [
        ("root = \"/x\"\n", "version 1"),
        ("version = 9\n", "version 9"),
        ("version = 2\n[broken\n", "nothing of it was changed"),
        (
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.coracle]\n  runtime_type = \"x\"\n",
            "not of this installer",
        ),
    ] {
        fs::write(system.config(), text)?;
        let done = system.installer(&["install", "--no-restart"])?;
        ensure!(done.code == 1 && done.stderr.contains(words), "{text:?}: exit code {}, {:?}", done.code, done.stderr);
        ensure_eq!(fs::read_to_string(system.config())?, text, "the configuration after a refusal");
    }
    let dry = System::new(Version::V16)?;
    let done = dry.installer(&["install", "--dry-run"])?;
    ensure!(done.code == 0 && done.stdout.contains("would install"), "dry run: {done:?}");
    ensure!(dry.tree()?.is_empty(), "a dry run made {:?}", dry.tree()?.keys());
    Ok(())
}

/// The link stays a link, and the file behind it keeps all that is not its content.
fn behind_links(version: Version) -> Result<()> {
    let text = "version = 2\nimports = [\"more.toml\"]\n# mine\n";
    // getfacl: user::rw-, user:4321:r--, group::r--, mask::r--, other::---
    let acl: Vec<u8> = [(1, 6, u32::MAX), (2, 4, 4321), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
        .iter()
        .flat_map(|&(tag, may, id): &(u16, u16, u32)| [&tag.to_le_bytes()[..], &may.to_le_bytes(), &id.to_le_bytes()].concat())
        .collect();
    let acl = [&2_u32.to_le_bytes()[..], &acl].concat();
    for link in ["../../opt/real.toml", "absolute", "second"] {
        let system = System::new(version)?;
        fs::create_dir_all(system.path("etc/containerd"))?;
        fs::create_dir(system.path("opt"))?;
        let real = system.path("opt/real.toml");
        fs::write(&real, text)?;
        fs::write(system.path("etc/containerd/more.toml"), "version = 2\n")?;
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640))?;
        std::os::unix::fs::chown(&real, Some(1234), Some(5678))?;
        rustix::fs::setxattr(&real, "user.note", b"mine", rustix::fs::XattrFlags::empty())?;
        rustix::fs::setxattr(&real, "system.posix_acl_access", &acl, rustix::fs::XattrFlags::empty())?;
        symlink("../../opt/real.toml", system.path("etc/containerd/second"))?;
        symlink(if link == "absolute" { real.as_path() } else { Path::new(link) }, system.config())?;
        let before = system.tree()?;
        let kept = |when: &str| -> Result<()> {
            let (found, mut value) = (fs::metadata(&real)?, [0; 128]);
            ensure_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (0o640, 1234, 5678), "{link}: mode and owner {when}");
            ensure!(fs::symlink_metadata(system.config())?.is_symlink(), "{link}: no link any more {when}");
            let length = rustix::fs::getxattr(&real, "user.note", &mut value)?;
            ensure_eq!(&value[..length], b"mine", "{link}: the attribute {when}");
            let length = rustix::fs::getxattr(&real, "system.posix_acl_access", &mut value)?;
            ensure_eq!(&value[..length], &acl[..], "{link}: the ACL {when}");
            Ok(())
        };
        system.install(&[])?;
        ensure!(fs::read_to_string(&real)?.ends_with("# END coracle\n"), "{link}: no handler");
        kept("after the installation")?;
        let failed = system.installer(&["install", "--style", "path", "--restart", "false"])?;
        ensure!(failed.stderr.contains("the old one is in place again"), "{link}: {:?}", failed.stderr);
        kept("after a restart that failed")?;
        system.uninstall()?;
        kept("after the removal")?;
        ensure!(system.tree()? == before, "{link}: not as before: {:?}", system.tree()?.keys());
    }
    nowhere(version)
}

/// A link whose file is yet to be made, and one whose directory is missing.
fn nowhere(version: Version) -> Result<()> {
    let system = System::new(version)?;
    fs::create_dir_all(system.path("etc/containerd"))?;
    symlink("new.toml", system.config())?;
    let before = system.tree()?;
    system.install(&[])?;
    ensure!(fs::symlink_metadata(system.path("etc/containerd/new.toml"))?.is_file(), "the link leads to no file");
    system.uninstall()?;
    ensure!(system.tree()? == before, "not as before: {:?}", system.tree()?.keys());
    fs::remove_file(system.config())?;
    symlink("missing/new.toml", system.config())?;
    let before = system.tree()?;
    let done = system.installer(&["install", "--no-restart"])?;
    ensure!(done.code == 1 && done.stderr.contains("link to nowhere"), "exit code {}, {:?}", done.code, done.stderr);
    ensure!(system.tree()? == before, "the refusal left something");
    Ok(())
}

/// The configuration may hold a registry's passwords: nobody else reads the new one before it is in place, and refused, or with the
/// installer ended by a signal, it is gone.
fn candidate_is_private() -> Result<()> {
    let text = "version = 2\n# password\n";
    for (end, code) in [("exit 1", 1), ("kill -TERM $PPID", 143), ("kill -HUP $PPID", 129), ("kill -KILL $PPID", -1)] {
        let mut system = System::new(Version::V16)?;
        fs::create_dir_all(system.path("etc/containerd"))?;
        fs::write(system.config(), text)?;
        fs::set_permissions(system.config(), fs::Permissions::from_mode(0o600))?;
        // As an earlier installer left it.
        let left = system.path("etc/containerd/.coracle-next.toml");
        fs::write(&left, "old")?;
        fs::set_permissions(&left, fs::Permissions::from_mode(0o644))?;
        let seen = system.path("seen");
        system.containerd = system.path("containerd");
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = --config ] || exit 0\nstat -c '%a %u' \"$2\" >{}\ngrep -q password \"$2\" && {end}\n",
            seen.display()
        );
        fs::write(&system.containerd, script)?;
        fs::set_permissions(&system.containerd, fs::Permissions::from_mode(0o755))?;
        // A shell cannot trap what its caller ignores, as nohup(1) does with SIGHUP.
        let mut command = Command::new("sh");
        command.args(["-c", "umask 0; exec env --default-signal=HUP,TERM \"$@\"", "sh"]);
        let installer = system.command(&system.config(), &["install", "--no-restart"])?;
        let done = run(command.arg(installer.get_program()).args(installer.get_args()))?;
        ensure!(done.code == code || code == -1, "{end}: exit code {}, {:?}", done.code, done.stderr);
        ensure_eq!(fs::read_to_string(&seen)?.trim(), "600 0", "{end}: mode and owner of the candidate");
        ensure_eq!(fs::read_to_string(system.config())?, text, "{end}: the configuration");
        let memory = fs::metadata(system.path("var/lib/coracle"))?.mode() & 0o777;
        ensure_eq!(memory, 0o700, "{end}: mode of the installer's directory");
        system.uninstall()?;
        let names: Vec<_> = fs::read_dir(system.path("etc/containerd"))?.flatten().map(|entry| entry.file_name()).collect();
        ensure_eq!(names, ["config.toml"], "{end}: what is beside the configuration");
    }
    refusals_leave_nothing()
}

fn refusals_leave_nothing() -> Result<()> {
    let system = System::new(Version::V16)?;
    fs::create_dir_all(system.path("etc/containerd"))?;
    let table = "plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.coracle";
    for text in ["root = \"/x\"\n", "version = 9\n", "version = 2\n[broken\n", &format!("version = 2\n[{table}]\n")] {
        fs::write(system.config(), text)?;
        let done = system.installer(&["install", "--no-restart"])?;
        ensure_eq!(done.code, 1, "{text:?}: exit code, {:?}", done.stderr);
        let names: Vec<_> = fs::read_dir(system.path("etc/containerd"))?.flatten().map(|entry| entry.file_name()).collect();
        ensure_eq!(names, ["config.toml"], "{text:?}: what is beside the configuration");
    }
    Ok(())
}

/// Where the block ends is known by its marks only. What stands behind a lost one is another's.
fn lost_mark_is_a_refusal() -> Result<()> {
    let (begin, end) = ("# BEGIN coracle: added by its installer, which also removes it\n", "# END coracle\n");
    let damages = |text: &str| {
        [
            ("no end", text.replace(end, "")),
            ("no begin", text.replace(begin, "")),
            ("end before begin", format!("{end}{}", text.replace(end, ""))),
            ("two begins", text.replace(begin, &format!("{begin}{begin}"))),
            ("indented", text.replace(end, &format!("  {end}"))),
            ("carriage returns", text.replace('\n', "\r\n")),
        ]
    };
    let system = System::new(Version::V16)?;
    fs::create_dir_all(system.path("etc/containerd"))?;
    fs::write(system.config(), "version = 2\n")?;
    system.install(&[])?;
    let whole = fs::read_to_string(system.config())?;
    for (name, damaged) in damages(&format!("{whole}[metrics]\n  address = \"127.0.0.1:1338\"\n")) {
        fs::write(system.config(), damaged)?;
        let before = system.tree()?;
        for arguments in [&["uninstall", "--no-restart", "--force"][..], &["install", "--no-restart", "--style", "path"]] {
            let done = system.installer(arguments)?;
            ensure!(done.code == 1 && done.stderr.contains("is not whole"), "{name}, {arguments:?}: {}, {:?}", done.code, done.stderr);
            ensure!(system.tree()? == before, "{name}: {arguments:?} changed something");
        }
    }
    Ok(())
}

fn runcs_own_shim_comes_back() -> Result<()> {
    let system = System::new(Version::V16)?;
    fs::create_dir_all(system.path("usr/local/bin"))?;
    fs::write(system.path("usr/local/bin/containerd-shim-runc-v2"), "its own")?;
    fs::set_permissions(system.path("usr/local/bin/containerd-shim-runc-v2"), fs::Permissions::from_mode(0o755))?;
    let before = system.tree()?;
    system.install(&["--style", "drop-in"])?;
    system.install(&["--style", "drop-in"])?;
    let link = fs::read_link(system.path("usr/local/bin/containerd-shim-runc-v2"))?;
    ensure_eq!(link, Path::new("containerd-shim-coracle-v2"), "what is in the place of runc's shim");
    system.uninstall()?;
    ensure!(system.tree()? == before, "not as before: {:?}", system.tree()?.keys());
    Ok(())
}

/// SIGKILL at ever later moments: the configuration is the old one or the new one, and a second run brings everything to an end.
fn killed_in_the_middle(version: Version) -> Result<()> {
    let text = "version = 2\n# mine\n";
    let system = System::new(version)?;
    fs::create_dir_all(system.path("etc/containerd"))?;
    fs::write(system.config(), text)?;
    let before = system.tree()?;
    for moment in 0..12 {
        let mut child = system.command(&system.config(), &["install", "--no-restart"])?.stdout(std::process::Stdio::null()).spawn()?;
        tests::wait::pause_for(Duration::from_millis(moment * 15));
        child.kill()?;
        child.wait()?;
        let now = fs::read_to_string(system.config())?;
        ensure!(now.starts_with(text) && (now == text || now.ends_with("# END coracle\n")), "after {moment}: {now:?}");
        for program in ["containerd-shim-coracle-v2", "coracle"] {
            let installed = system.path("usr/local/bin").join(program);
            ensure!(!installed.exists() || fs::read(&installed)? == fs::read(paths::shim_dir()?.join(program))?, "half of {program}");
        }
    }
    system.install(&[])?;
    system.uninstall()?;
    ensure_eq!(system.tree()?.into_keys().collect::<Vec<_>>(), before.into_keys().collect::<Vec<_>>(), "paths after the removal");
    ensure_eq!(fs::read_to_string(system.config())?, text, "the configuration");
    Ok(())
}

fn no_restart(version: Version) -> Result<()> {
    let system = System::new(version)?;
    fs::create_dir_all(system.path("etc/containerd"))?;
    fs::write(system.config(), "version = 2\n")?;
    let done = system.installer(&["install", "--restart", "false"])?;
    ensure!(done.code == 1 && done.stderr.contains("the old one is in place again"), "exit code {}, {:?}", done.code, done.stderr);
    ensure_eq!(fs::read_to_string(system.config())?, "version = 2\n", "the configuration");
    Ok(())
}

/// A containerd without the sandbox API would ignore the line, or refuse it at its next start.
fn podless_is_refused(version: Version) -> Result<()> {
    let system = System::new(version)?;
    let before = system.tree()?;
    let done = system.installer(&["install", "--no-restart", "--style", "podless"])?;
    ensure!(done.code == 1 && done.stderr.contains("needs containerd 2.x"), "exit code {}, {:?}", done.code, done.stderr);
    ensure!(system.tree()? == before, "something is left");
    Ok(())
}

/// On a containerd that runs: install, a pod by the handler, uninstall.
fn pods(version: Version, style: Style) -> Result<()> {
    let mut node = Node::start(version, &[])?;
    let (system, config) = (System::new(version)?, node.containerd.dir().join("config.toml"));
    // The programs that the fixtures put there are not the installed ones.
    let bin = node.containerd.dir().join("bin");
    fs::remove_dir_all(&bin)?;
    fs::create_dir_all(system.path("usr/local"))?;
    fs::create_dir(system.path("usr/local/bin"))?;
    symlink(system.path("usr/local/bin"), &bin)?;
    let before = fs::read(&config)?;
    let arguments = ["install", "--no-restart", "--handler", "installed", "--style", style.name()];
    let done = run(&mut system.command(&config, &arguments)?)?;
    ensure_eq!(done.code, 0, "exit code of the installation, which said {:?} {:?}", done.stdout, done.stderr);
    node.containerd.stop()?;
    node.restart()?;
    let case = PodCase::new(&node, style)?;
    let handler = if style == Style::DropIn { style.name() } else { "installed" };
    let pod = case.pod_of(handler, "pod")?;
    let app = pod.sleeper("app")?;
    ensure_eq!(app.shell("echo works")?, "works", "what a container says");
    let daemon = tests::proc::process(app.pid()?).context(|| "the container is gone".to_owned())?.parent;
    let name = tests::proc::process(daemon).map(|process| process.command_line).unwrap_or_default();
    let wanted = if style == Style::DropIn { "containerd-shim-runc-v2" } else { paths::OURS.rsplit('.').nth(1).unwrap_or_default() };
    ensure!(name.contains(wanted), "the shim is {name:?}");
    let pauses = tests::proc::all().into_iter().filter(|it| it.cgroups.contains(case.word()) && it.name == "pause").count();
    ensure_eq!(pauses, usize::from(style.has_pause()), "pause containers");
    case.close()?;
    let done = run(&mut system.command(&config, &["uninstall", "--no-restart", "--force"])?)?;
    ensure_eq!(done.code, 0, "exit code of the removal, which said {:?} {:?}", done.stdout, done.stderr);
    ensure!(fs::read(&config)? == before, "the configuration is not as it was");
    fs::remove_file(&bin)?;
    node.containerd.stop()
}

/// Built twice it is the same; installed it has its programs and pages; purged it leaves nothing but dpkg's own files.
fn debian_package() -> Result<()> {
    let build = || output(Command::new(paths::checkout().join("deploy/deb/build.sh")).arg(paths::shim_dir()?));
    let package = paths::checkout().join(build()?.trim());
    let first = fs::read(&package)?;
    build()?;
    ensure!(fs::read(&package)? == first, "two builds differ");
    let root = tempfile::tempdir()?;
    for dir in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/log"] {
        fs::create_dir_all(root.path().join(dir))?;
    }
    fs::write(root.path().join("var/lib/dpkg/status"), "")?;
    let mut dpkg = Command::new("dpkg");
    dpkg.arg(format!("--root={}", root.path().display())).arg("--install").arg(&package);
    output(&mut dpkg)?;
    for (path, mode) in [
        ("usr/bin/containerd-shim-coracle-v2", 0o755),
        ("usr/bin/coracle", 0o755),
        ("usr/share/coracle/install.sh", 0o755),
        ("usr/share/man/man8/coracle.8.gz", 0o644),
        ("usr/share/man/man8/containerd-shim-coracle-v2.8.gz", 0o644),
        ("usr/share/doc/coracle/copyright", 0o644),
    ] {
        let found = fs::metadata(root.path().join(path)).context(|| path.to_owned())?;
        ensure_eq!((found.mode() & 0o7777, found.uid()), (mode, 0), "mode and owner of {path}");
    }
    let version = output(Command::new(root.path().join("usr/bin/coracle")).arg("--version"))?;
    ensure!(version.starts_with("coracle "), "the installed program says {version:?}");
    output(Command::new("dpkg").arg(format!("--root={}", root.path().display())).args(["--purge", "coracle"]))?;
    ensure!(!root.path().join("usr").exists(), "something of the package is left");
    Ok(())
}

/// As the DaemonSet does it: the host's root is somewhere else. Here it is an overlay of this one, in a mount namespace of its own.
fn from_a_container() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for name in ["upper", "work", "host"] {
        fs::create_dir(dir.path().join(name))?;
    }
    let script = r#"set -eu
        cd "$1" && mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay host
        mkdir -p host/opt/test && cp "$3" host/opt/test/containerd && cp "$2/containerd-shim-coracle-v2" "$2/coracle" host/opt/test/
        list() { find upper -type f -o -type l -o -name "*coracle*" -not -type c | sort; }
        list >before
        installer="$4/deploy/install.sh"
        options="--root $1/host --containerd /opt/test/containerd --no-restart --config /etc/coracle-test/config.toml --bin-dir /opt/coracle-test/bin --state /opt/coracle-test-state --from $2"
        "$installer" install $options
        test -x upper/opt/coracle-test/bin/containerd-shim-coracle-v2
        grep -q io.containerd.coracle.v2 upper/etc/coracle-test/config.toml
        "$installer" uninstall --force $options
        list >after
        diff before after"#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]).arg(dir.path()).arg(paths::shim_dir()?);
    output(command.arg(Version::V16.program("containerd")?).arg(fs::canonicalize(paths::checkout())?)).map(drop)
}
