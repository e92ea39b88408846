//! The `delete` verb: cleans up after a daemon that died, and tells containerd how its container ended.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use containerd_shim::Flags;
use proto::api::DeleteResponse;
use proto::protobuf::{Message, MessageField};
use runtime_core::container::own_file;
use runtime_core::error::{Context, Error, ErrorKind, Result};

use crate::bootstrap::check_identifier;
use crate::cleanup::{Exit, cleanup};
use crate::clock::timestamp;
use crate::start::address_file;
use crate::{bundle, poststop, socket};

/// What is left of the five seconds that containerd gives the verb.
const POSTSTOP: Duration = Duration::from_secs(2);
/// How long a daemon that may be dying is given to answer or to be gone.
const DYING: Duration = Duration::from_millis(200);

/// Runs `delete` with what the command line gave. May be called for a container that was never created, or twice.
///
/// # Errors
/// The step that failed.
pub fn delete(flags: &Flags) -> Result<()> {
    check_identifier("-id", &flags.id)?;
    check_identifier("-namespace", &flags.namespace)?;
    let bundle = bundle::dir(&flags.bundle)?;
    let exit = cleanup(&bundle, &flags.id, |record| {
        if record.init.is_some()
            && let Err(error) = poststop::run(flags, &bundle, POSTSTOP)
        {
            // What containerd finds on standard error becomes a warning of its own log.
            eprintln!("containerd-shim-coracle-v2: delete: {error}, ignoring");
        }
    })?;
    if let Err(error) = remove_socket(&bundle) {
        eprintln!("containerd-shim-coracle-v2: delete: {error}, ignoring");
    }
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&encode(exit)?).and_then(|()| stdout.flush()).context(|| "write the answer to standard output")
}

/// Removes the socket that the bundle names, unless its daemon lives: a group's may outlive this container.
fn remove_socket(bundle: &Path) -> Result<()> {
    let path = address_file(bundle);
    match own_file::read(&path) {
        Ok(address) => {
            let address = String::from_utf8_lossy(&address);
            // A daemon that dies closes its descriptors one by one, and containerd may call before the listener is. One that lives, as that of
            // a pod does for each of its containers, answers at once.
            if socket::remove_dead(address.trim())? && !socket::is_served(address.trim(), DYING)? {
                socket::remove_dead(address.trim())?;
            }
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(format!("read {path:?}"), &error)),
    }
}

fn encode(exit: Exit) -> Result<Vec<u8>> {
    let response = DeleteResponse {
        pid: exit.pid,
        exit_status: exit.status,
        exited_at: MessageField::some(timestamp(exit.at)),
        ..DeleteResponse::default()
    };
    response.write_to_bytes().map_err(|error| Error::new(ErrorKind::Internal, format!("encode DeleteResponse: {error}")))
}
