//! A small mesh on one machine: each pod a network namespace with its own address, joined by a bridge in a namespace of
//! its own, the real binaries as processes, captures on the bridge. Used by `hauberk demo`, by the integration tests
//! and by the benchmarks.
//!
//! Nothing in the machine's own network namespace is touched. Namespaces have no name: they last as long as the lab and
//! its processes, and these end with the process that owns the lab, however it ends. Needs root.
//!
//! ```no_run
//! use hauberk_lab::{Lab, PodOptions, ServiceOptions};
//!
//! let lab = Lab::new()?;
//! let client = lab.pod(PodOptions::new("client").account("client").meshed())?;
//! let server = lab.pod(PodOptions::new("server").account("server").meshed())?;
//! lab.service(ServiceOptions::new("server").ip("10.2.0.10").port(80, 8080).endpoints(["server"]))?;
//! let capture = lab.capture()?;
//! lab.start_control_plane()?;
//! lab.start_proxy(&client)?;
//! lab.start_proxy(&server)?;
//! let nginx = server.spawn("nginx", server.command("nginx").args(["-c", "/etc/nginx/nginx.conf"]))?;
//! server.wait_listening(8080, &nginx)?;
//! client.run("curl", ["http://10.2.0.10"])?;
//! server.wait_connections("the request", |all| all.closed.first().cloned())?;
//! capture.stop()?.check_whole()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod binaries;
mod capture;
mod control;
mod flows;
mod http;
mod lab;
mod mesh_yaml;
mod netns;
mod options;
mod packets;
mod pod;
mod process;
mod processes;
mod proxy;
mod spawner;
pub mod tls;
mod wait;
mod wire;

pub use binaries::find as find_binary;
pub use capture::{Capture, Captured, Tcpdump};
pub use flows::{Flow, Stream, flows};
pub use lab::{BRIDGE, Lab, NODE_V4, NODE_V6, SERVICE_NETWORK_V4, SERVICE_NETWORK_V6};
pub use netns::Netns;
pub use nix::sys::signal::Signal;
pub use options::{ControlOptions, PodOptions, ServiceOptions};
pub use pod::Pod;
pub use process::Process;
pub use processes::Processes;
pub use wait::wait_for;
pub use wire::WireOptions;
