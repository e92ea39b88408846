//! The driver of who is not root.

use std::path::Path;
use std::process::Command;

use runtime_core::cgroup::{Host, Intent};
use runtime_core::spec::Resources;
use runtime_core::systemd::{Address, Blocking, Instance, Manager, New, Scope, block_on};
use tests::hand::Hand;
use tests::{Result, command, containerd::eventually, ensure_eq};

use crate::{SOON, cgroup_of, systemctl, tree};

/// What makes this program the client of a user's manager.
pub const AS_USER: &str = "--as-user";
const USER: &str = "65534";

/// The driver without the shim, in a unit of somebody who is not root: their manager makes the scope.
pub fn the_manager_of_a_user(hand: &mut Hand) -> Result<()> {
    let runtime = format!("/run/user/{USER}");
    std::fs::create_dir_all(&runtime)?;
    std::os::unix::fs::chown(&runtime, Some(USER.parse()?), Some(USER.parse()?))?;
    let program = std::env::temp_dir().join(hand.watch("client"));
    std::fs::copy(std::env::current_exe()?, &program)?;
    let manager = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"].into_iter().find(|path| Path::new(path).exists());
    let unit = format!("coracle-user-{}.service", std::process::id());
    let environment = format!("Environment=HOME=/ XDG_RUNTIME_DIR={runtime}");
    let mut begin = Command::new("systemd-run");
    begin.args(["--quiet", "--uid", USER, "--gid", USER, "-p", "Delegate=yes", "-p", "Type=notify", "-p", &environment, "--unit", &unit]);
    command::output(begin.args([manager.unwrap_or_default(), "--user", "--unit=basic.target"]))?;
    // Should there be a bus: systemd's own socket does as well, and is what is left without one.
    let _ = std::fs::remove_file(Path::new(&runtime).join("bus"));
    let mut client = Command::new("setpriv");
    client.args(["--reuid", USER, "--regid", USER, "--clear-groups", "env", &format!("XDG_RUNTIME_DIR={runtime}")]);
    let answer = program.with_extension("answer");
    // Not --wait, which needs a bus: systemd's own socket may be all there is.
    client.args(["systemd-run", "--user", "--quiet", "--"]).arg(&program).arg(AS_USER).arg(&answer);
    let begun = command::output(&mut client);
    let told = || std::fs::read_to_string(&answer).unwrap_or_default();
    let ended = begun.and_then(|_| eventually("the user's client has answered", SOON * 3, || told().ends_with('\n')));
    let told = told();
    systemctl(&["stop", &unit])?;
    std::fs::remove_file(&program)?;
    let _ = std::fs::remove_file(&answer);
    ended?;
    ensure_eq!(told.trim(), format!("/system.slice/{unit}/user.slice/coracle-of-a-user.scope"), "cgroup of the scope");
    Ok(())
}

/// What that client does: the cgroup of the scope that it got.
pub fn as_user() -> Result<String> {
    let host = Host::detect()?;
    let instance = Instance::of_this_process();
    ensure_eq!(instance, Instance::User, "instance");
    let manager = Manager::new(instance, Blocking::new(Address::of(instance)?));
    let scope = Scope::new(None, "of-a-user", instance)?;
    let path = block_on(manager.path(&scope))?;
    let intent = Intent::new(&host, &Resources::default(), None)?;
    let mut guest = Command::new("sleep").arg("1000").spawn()?;
    let new = New { scope: &scope, path: &path, id: "of-a-user", pid: guest.id(), intent: &intent, extra: &[] };
    let started = block_on(manager.start(&host, &new)).map_err(tests::Failure::from);
    let place = started.and_then(|()| cgroup_of(guest.id()));
    guest.kill()?;
    guest.wait()?;
    block_on(manager.stop(&scope))?;
    let place = place?;
    eventually("the scope's cgroup is gone", SOON, || !Path::new(&format!("{}{place}", tree())).exists())?;
    Ok(place)
}
