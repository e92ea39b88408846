//! The poststop hooks of a container whose daemon is gone: `delete` runs them instead.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim::Flags;
use runtime_core::container::hooks::Point;
use runtime_core::container::own_file;
use runtime_core::error::{Context as _, Result};
use runtime_core::plan::launcher::Launcher;
use runtime_core::spec::Spec;
use tokio::sync::watch;

use crate::bootstrap::{Bootstrap, Environment};
use crate::daemon::Config;
use crate::events::Events;
use crate::group::Grouping;
use crate::idle::Clients;
use crate::serve::{Context, Shutdown};
use crate::task::hooks::Hooks;
use crate::task::node::Node;

/// Runs the hooks that the bundle's configuration names, for no longer than `bound`. To be called by a process of one thread, for it forks
/// a launcher.
///
/// # Errors
/// The first hook that failed or was not done in time.
pub fn run(flags: &Flags, bundle: &Path, bound: Duration) -> Result<()> {
    let path = bundle.join("config.json");
    let spec = Spec::parse(&own_file::read(&path).context(|| format!("read {path:?}"))?).context(|| format!("{path:?}"))?;
    let hooks = Hooks::of(&spec, &flags.id, bundle);
    if !hooks.has(Point::Poststop) {
        return Ok(());
    }
    let bootstrap = Bootstrap::resolve(flags, &[], &Environment::default())?;
    let launcher = Launcher::spawn()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context(|| "make the async runtime")?;
    runtime.block_on(async {
        let config = Config { bundle: bundle.to_path_buf(), options: Default::default(), grouping: Grouping::Pod, group: None, bootstrap };
        let events = Events::new("", &config.bootstrap.namespace);
        let context = Context { config: Arc::new(config), events, clients: Clients::default(), shutdown: Shutdown::default() };
        let node = Node::new(context, launcher)?;
        let (give_up, given_up) = watch::channel(false);
        let late = async {
            tokio::time::sleep(bound).await;
            give_up.send_replace(true);
            // The hook is killed and waited for by who runs it.
            std::future::pending().await
        };
        let hooks = hooks.until(given_up);
        tokio::select! {
            ran = hooks.run(&node, Point::Poststop, 0, None) => ran,
            () = late => Ok(()),
        }
    })
}
