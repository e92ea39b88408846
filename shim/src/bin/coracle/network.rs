//! The node's networks, for its operator.

use std::path::Path;

use runtime_core::error::{Error, ErrorKind, Result};
use runtime_core::net::{self, node};
use serde_json::{Value, json};
use shim::bootstrap::network_file;

use crate::args::{Format, NetworkCommand};
use crate::log::print;

/// `coracle network`.
///
/// # Errors
/// The file or the state cannot be read; there is no such network; what the kernel refuses.
pub fn run(file: Option<&Path>, command: &NetworkCommand) -> Result<()> {
    let path = file.map_or_else(network_file, Path::to_owned);
    let node = node::Node::load(&path)?
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("{path:?} does not exist: there are no networks")))?;
    match command {
        NetworkCommand::Ls { format } => list(&node, *format),
        NetworkCommand::Inspect { name } => {
            node.network(name)?;
            print(&format!("{:#}\n", described(&node, name)?))?;
            Ok(())
        }
        NetworkCommand::Prune => {
            net::prune(&node)?.iter().try_for_each(|name| print(&format!("{name}\n")))?;
            Ok(())
        }
    }
}

fn list(node: &node::Node, format: Format) -> Result<()> {
    let all = node.networks.keys().map(|name| described(node, name)).collect::<Result<Vec<Value>>>()?;
    if format == Format::Json {
        print(&format!("{}\n", Value::Array(all)))?;
        return Ok(());
    }
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let row = |network: &Value| {
        let subnets: Vec<String> = network["subnets"].as_array().into_iter().flatten().map(text).collect();
        let containers = network["containers"].as_array().map_or(0, Vec::len).to_string();
        [text(&network["name"]), text(&network["driver"]), text(&network["device"]), subnets.join(","), containers]
    };
    let head = ["NAME", "DRIVER", "DEVICE", "SUBNETS", "CONTAINERS"].map(str::to_owned);
    let rows: Vec<[String; 5]> = std::iter::once(head).chain(all.iter().map(row)).collect();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    for row in &rows {
        let cells: Vec<String> = row.iter().enumerate().map(|(column, cell)| format!("{cell:<0$}", width(column))).collect();
        print(&format!("{}\n", cells.join("  ").trim_end()))?;
    }
    Ok(())
}

fn described(node: &node::Node, name: &str) -> Result<Value> {
    let network = node.network(name)?;
    let containers: Vec<Value> = net::leases(&node.state)?
        .iter()
        .filter(|lease| lease.network == name)
        .map(|lease| {
            json!({
                "container": lease.key,
                "names": lease.names,
                "addresses": lease.addresses,
                "ports": lease.ports.iter().map(|port| format!("{port} -> {}", port.port)).collect::<Vec<_>>(),
                "device": lease.device,
            })
        })
        .collect();
    Ok(json!({
        "name": name,
        "driver": if network.macvlan.is_some() { "macvlan" } else { "bridge" },
        "device": network.macvlan.as_deref().unwrap_or_else(|| network.device(name)),
        "subnets": network.subnets,
        "internal": network.internal,
        "containers": containers,
    }))
}
