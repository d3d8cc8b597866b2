//! `Limits`: every wait and every bound, by name, with its default. Text form: `connect=1s,open=3s`.

use std::time::Duration;

use crate::{format_duration, parse_duration};

/// A text that does not set limits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidLimits {
    /// Not `name=value`.
    #[error("{0:?} does not set a limit: write name=value, several with commas between")]
    Form(String),
    /// No limit of that name.
    #[error("there is no limit named {name:?}: the limits are {valid}")]
    Unknown {
        /// What was written.
        name: String,
        /// All names.
        valid: String,
    },
    /// The value does not fit.
    #[error("limit {name}={value:?}: {why}")]
    Value {
        /// The limit.
        name: &'static str,
        /// What was written.
        value: String,
        /// What is valid.
        why: String,
    },
}

/// What a proxy can do without: no pool, no tickets. Slower, for measurements and for those who want none.
const MAY_BE_ZERO: [&str; 2] = ["pool_total", "tickets"];

trait Value: Sized + PartialEq {
    fn read(name: &str, text: &str) -> Result<Self, String>;
    fn write(&self) -> String;
}

impl Value for Duration {
    fn read(_: &str, text: &str) -> Result<Self, String> {
        let duration = parse_duration(text).map_err(|error| error.to_string())?;
        if duration.is_zero() { Err("a wait must be longer than 0".to_owned()) } else { Ok(duration) }
    }
    fn write(&self) -> String {
        format_duration(*self)
    }
}

impl Value for usize {
    fn read(name: &str, text: &str) -> Result<Self, String> {
        let least = if MAY_BE_ZERO.contains(&name) { 0 } else { 1 };
        match text.parse() {
            Ok(number) if number >= least => Ok(number),
            _ => Err(format!("write a whole number from {least} on")),
        }
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

macro_rules! limits {
    ($($(#[$meta:meta])* $name:ident: $type:ty = $default:expr),+ $(,)?) => {
        /// Every wait and every bound of a proxy.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Limits { $($(#[$meta])* pub $name: $type),+ }

        impl Default for Limits {
            fn default() -> Self { Self { $($name: $default),+ } }
        }

        impl Limits {
            /// All names.
            pub const NAMES: &[&str] = &[$(stringify!($name)),+];

            /// Every limit: its name, and its value as [`Limits::parse`] reads it.
            pub fn entries(&self) -> Vec<(&'static str, String)> {
                vec![$((stringify!($name), self.$name.write())),+]
            }

            /// Reads `name=value,…` over the defaults.
            pub fn parse(text: &str) -> Result<Self, InvalidLimits> {
                let mut limits = Self::default();
                for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
                    let (name, value) = item.split_once('=').ok_or_else(|| InvalidLimits::Form(item.to_owned()))?;
                    match name {
                        $(stringify!($name) => limits.$name = Value::read(name, value).map_err(|why| InvalidLimits::Value {
                            name: stringify!($name), value: value.to_owned(), why,
                        })?,)+
                        _ => return Err(InvalidLimits::Unknown { name: name.to_owned(), valid: Self::NAMES.join(", ") }),
                    }
                }
                Ok(limits)
            }

            /// What differs from the defaults, as [`Limits::parse`] reads it.
            pub fn to_text(&self) -> String {
                let defaults = Self::default();
                let mut items = Vec::new();
                $(if self.$name != defaults.$name {
                    items.push(format!("{}={}", stringify!($name), self.$name.write()));
                })+
                items.join(",")
            }
        }
    };
}

limits! {
    /// First answer of discovery for an address.
    discovery: Duration = Duration::from_secs(3),
    /// TCP connect, to an endpoint or to the application: the kernel says a lost first packet again after 1 s, newer ones
    /// again after 2 s. Shorter than `open`, so that the peer's proxy can still say what came of it.
    connect: Duration = Duration::from_millis(2500),
    /// TLS handshake.
    handshake: Duration = Duration::from_secs(3),
    /// An address inside the cluster that nobody knows: once per address.
    unknown_in_cluster: Duration = Duration::from_millis(250),
    /// The opening frame or header, and the answer to it.
    open: Duration = Duration::from_secs(3),
    /// After FAILED the peer gets this long to read it: closing with unread bytes would make TCP throw it away.
    linger: Duration = Duration::from_secs(1),
    /// From SIGTERM to exit.
    drain: Duration = Duration::from_secs(120),
    /// An idle pooled connection is closed after this. The accepting side waits twice as long, so that it is the
    /// opening side that closes.
    pool_idle: Duration = Duration::from_secs(30),
    /// A mesh connection of this age serves no new stream.
    pool_age: Duration = Duration::from_secs(600),
    /// Idle pooled connections to one peer.
    pool_per_peer: usize = 16,
    /// Idle pooled connections in all. 0: none is kept.
    pool_total: usize = 256,
    /// Session tickets kept for each endpoint: a handshake takes one and brings one, so they are as many as handshakes
    /// were ever under way at once. About 4 KB each. 0: every handshake is a full one.
    tickets: usize = 16,
    /// Open inbound connections and streams, mesh and redirected each. 2 descriptors a connection; pods often have
    /// 20,000 or more.
    inbound: usize = 8192,
    /// Open outbound connections.
    outbound: usize = 8192,
    /// Handshakes and first frames under way on the mesh port: what strangers can hold.
    handshakes: usize = 1024,
    /// How long "this pod address is not meshed" counts while discovery is away.
    stale_unmeshed: Duration = Duration::from_secs(10),
    /// A discovery answer that nobody used for this long is given up.
    discovery_idle: Duration = Duration::from_secs(300),
    /// Addresses with a discovery answer. About 1 KB each without endpoints.
    discovery_addresses: usize = 4096,
    /// Series of endpoints that left are dropped after this.
    series_idle: Duration = Duration::from_secs(60),
    /// Labelled series per metric; what comes above is counted under `other`.
    series: usize = 2000,
    /// Closed connections that `/connections` still shows. About 500 bytes each.
    recent: usize = 1000,
    /// How often the socket tables are sampled for what bypasses the proxy.
    bypass_sample: Duration = Duration::from_secs(15),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let limits = Limits { connect: Duration::from_millis(1500), pool_total: 7, ..Limits::default() };
        assert_eq!(limits.to_text(), "connect=1500ms,pool_total=7");
        assert_eq!(Limits::parse(&limits.to_text()), Ok(limits));
        assert_eq!(Limits::default().to_text(), "");
        assert!(Limits::default().entries().contains(&("connect", "2500ms".to_owned())));
        let without = Limits::parse("pool_total=0,tickets=0").expect("a proxy can do without");
        assert_eq!((without.pool_total, without.tickets), (0, 0));
    }

    #[test]
    fn refuses_with_the_name_and_the_remedy() {
        for (text, message) in [
            ("connect", "\"connect\" does not set a limit"),
            ("conect=1s", "there is no limit named \"conect\": the limits are discovery, connect"),
            ("connect=0s", "limit connect=\"0s\": a wait must be longer than 0"),
            ("connect=1", "is not a duration"),
            ("inbound=0", "write a whole number from 1 on"),
            ("tickets=-1", "write a whole number from 0 on"),
        ] {
            let error = Limits::parse(text).expect_err(text).to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
