//! The sidecar: outbound, inbound and mesh-port listeners, and the pure parts that they are made of.

mod admin;
mod balance;
pub mod bypass;
mod connections;
pub mod discovery;
mod drain;
mod endpoint;
pub mod first_bytes;
#[doc(hidden)]
pub mod fuzzing;
mod inbound;
pub mod init;
mod leg;
pub mod linkerd;
mod listen;
mod mesh_leg;
mod mesh_port;
mod metrics;
mod outbound;
mod places;
mod policy;
mod pool;
mod probes;
mod proxy;
pub mod records;
mod relay;
mod run;
mod secure;
mod series;
mod silence;
mod socket;
mod threads;
mod upstream;
pub mod wire;

pub use run::{RunError, run};
pub use secure::RecordLayer;
pub use threads::threads;
