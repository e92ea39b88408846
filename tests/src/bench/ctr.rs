//! `ctr run --rm` from end to end, on a containerd 1.6 of the worker's own.

use std::path::PathBuf;
use std::time::Instant;

use crate::containerd::{Containerd, Version};
use crate::{Result, image, paths, proc};

use super::place::{self, Cgroups};
use super::worker::Contender;
use super::{Sample, micros, peer};

/// One runtime on one containerd.
pub struct Ctr {
    containerd: Containerd,
    /// Arguments up to the id.
    args: Vec<String>,
    /// Arguments after the id.
    command: Vec<String>,
    count: u32,
}

impl Ctr {
    /// The runtime under test by `TEST_RUNTIME`; `runtime` is the OCI runtime of containerd's shim, by its name in Debian's bookworm.
    ///
    /// With the host's cgroups an image is run from an overlay snapshot with ctr's default specification and seccomp profile. With a bare
    /// tree runc and crun refuse ctr's cpu shares, so that all get the same specification by `--config`, on a plain directory.
    pub fn new(cgroups: Cgroups, runtime: Option<&str>) -> Result<Ctr> {
        place::enter(cgroups)?;
        place::add_libraries(&peer::libraries()?)?;
        place::data_on_tmpfs()?;
        let containerd = Containerd::start(Version::V16)?;
        let mut args: Vec<String> = ["run", "--rm", "--runtime", paths::runtime()].map(str::to_owned).to_vec();
        if let Some(name) = runtime {
            args.extend(["--runc-binary".to_owned(), peer::program(name)?.display().to_string()]);
        }
        let mut command = Vec::new();
        match cgroups {
            Cgroups::Host => {
                containerd.import(&[1])?;
                args.extend(["--seccomp".to_owned(), image::name(1)]);
                command.push("/bin/true".to_owned());
            }
            Cgroups::Bare => args.extend(["--config".to_owned(), config()?.display().to_string()]),
        }
        Ok(Ctr { containerd, args, command, count: 0 })
    }
}

/// The benchmark's bundle as a file for `--config`: its root is the shared system.
fn config() -> Result<PathBuf> {
    let mut bundle = place::bundle(&paths::data_dir()?, "ctr", "/true", Cgroups::Bare, None)?;
    let system = crate::bundle::system()?.display().to_string();
    bundle.edit(|spec| spec["root"]["path"] = system.into())?;
    Ok(bundle.dir.join("config.json"))
}

impl Contender for Ctr {
    fn sample(&mut self) -> Result<Sample> {
        self.count += 1;
        let id = format!("{}-r{}", paths::tag(), self.count);
        let words: Vec<&str> =
            self.args.iter().map(String::as_str).chain([id.as_str()]).chain(self.command.iter().map(String::as_str)).collect();
        let begin = Instant::now();
        self.containerd.ctr().ok(&words)?;
        Ok(Sample::from([("ctr run".to_owned(), micros(begin))]))
    }

    fn life(&mut self) -> Result<()> {
        self.sample().map(drop)
    }
}

impl Drop for Ctr {
    fn drop(&mut self) {
        for root in proc::cgroup_roots() {
            let _ = std::fs::remove_dir(root.join(paths::tag()));
        }
    }
}
