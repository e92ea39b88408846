//! What a cgroup has used, as the `Any` that `Stats` answers: `io.containerd.cgroups.v1.Metrics` or `.v2`, under their bare names.

mod v1;
mod v2;

use proto::protobuf::well_known_types::any::Any;
use proto::protobuf::{Message, MessageField};
use runtime_core::cgroup::Stats;
use runtime_core::error::{Error, ErrorKind, Result};
use runtime_core::net::{self, Traffic};

/// The names of the messages. They are constants because the descriptors that know them take half a megabyte, for as long as the daemon lives.
const V1: &str = "io.containerd.cgroups.v1.Metrics";
const V2: &str = "io.containerd.cgroups.v2.Metrics";

/// `stats`, and what has been carried by a network of the node's, as containerd and its clients read it; they tell the version of the message by its type URL.
///
/// # Errors
/// [`ErrorKind::Internal`] for a message that is too large to encode (2 GiB).
pub fn encode(stats: &Stats, traffic: Option<Traffic>) -> Result<Any> {
    match stats {
        Stats::V1(metrics) => {
            let mut message: proto::cgroups::metrics::Metrics = metrics.as_ref().convert();
            message.network.extend(traffic.as_ref().map(Traffic::convert));
            pack(V1, &message)
        }
        Stats::V2(metrics) => {
            let mut message: proto::cgroups_v2::metrics::Metrics = metrics.as_ref().convert();
            message.network.extend(traffic.as_ref().map(Traffic::convert));
            pack(V2, &message)
        }
    }
}

macro_rules! network_stat {
    ($($message:path),*) => {
        $(impl Convert<$message> for Traffic {
            fn convert(&self) -> $message {
                let Self { rx_bytes, rx_packets, rx_errors, rx_dropped, tx_bytes, tx_packets, tx_errors, tx_dropped } = *self;
                let name = net::INSIDE.to_owned();
                let mut message = <$message>::default();
                (message.name, message.rx_bytes, message.rx_packets, message.rx_errors, message.rx_dropped) =
                    (name, rx_bytes, rx_packets, rx_errors, rx_dropped);
                (message.tx_bytes, message.tx_packets, message.tx_errors, message.tx_dropped) = (tx_bytes, tx_packets, tx_errors, tx_dropped);
                message
            }
        })*
    };
}

network_stat!(proto::cgroups::metrics::NetworkStat, proto::cgroups_v2::metrics::NetworkStat);

fn pack(name: &str, message: &impl Message) -> Result<Any> {
    let type_url = name.to_owned();
    let value = message.write_to_bytes().map_err(|error| Error::new(ErrorKind::Internal, format!("encode {type_url}: {error}")))?;
    Ok(Any { type_url, value, ..Any::default() })
}

/// [`From`] for two foreign types.
trait Convert<T> {
    fn convert(&self) -> T;
}

macro_rules! unchanged {
    ($($scalar:ty),*) => {
        $(impl Convert<$scalar> for $scalar {
            fn convert(&self) -> $scalar {
                self.clone()
            }
        })*
    };
}

unchanged!(u32, u64, f64, String);

impl<T, S: Convert<T>> Convert<Vec<T>> for Vec<S> {
    fn convert(&self) -> Vec<T> {
        self.iter().map(S::convert).collect()
    }
}

impl<T, S: Convert<T>> Convert<MessageField<T>> for Option<S> {
    fn convert(&self) -> MessageField<T> {
        MessageField::from_option(self.as_ref().map(S::convert))
    }
}

/// The conversion of a struct to the message of the same field names. The pattern is complete: a field that the struct gains does not
/// compile until it is listed.
macro_rules! convert {
    ($source:path => $message:path { $($field:ident),* $(,)? }) => {
        impl super::Convert<$message> for $source {
            fn convert(&self) -> $message {
                let Self { $($field),* } = self;
                $message { $($field: super::Convert::convert($field),)* ..Default::default() }
            }
        }
    };
}

/// [`convert!`], and for the tests a value of the struct with something in every field.
macro_rules! message {
    ($source:path => $message:path { $($field:ident),* $(,)? }) => {
        convert!($source => $message { $($field),* });

        #[cfg(test)]
        impl super::tests::Fill for $source {
            fn fill(next: &mut u32) -> Self {
                Self { $($field: super::tests::Fill::fill(next)),* }
            }
        }
    };
}

use {convert, message};

#[cfg(test)]
mod tests;
