//! Pods of the namespace `shop` and services in front of them, all of which the mesh knows before the first proxy asks.

use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
};

use hauberk_lab::{Lab, Pod, PodOptions, ServiceOptions};
use hauberk_mesh::{Connection, Direction};

use crate::talk::{Visit, record};

/// Where the pods' servers listen.
pub(crate) const PORT: u16 = 7000;

/// A pod with a proxy, of an account of its own.
pub(crate) fn meshed(name: &str) -> PodOptions {
    PodOptions::new(name).namespace("shop").account(name).meshed()
}

/// A pod without one.
pub(crate) fn plain(name: &str) -> PodOptions {
    PodOptions::new(name).namespace("shop").account(name)
}

/// A lab with these pods and services, the control plane, and the proxies of those pods that are meshed. All is known
/// before the first proxy asks.
pub(crate) fn scene<const N: usize>(
    options: [PodOptions; N],
    services: impl IntoIterator<Item = ServiceOptions>,
) -> (Lab, [Pod; N]) {
    prepared(options, services, |_| {})
}

/// The same, with `prepare` done before the first proxy starts.
pub(crate) fn prepared<const N: usize>(
    options: [PodOptions; N],
    services: impl IntoIterator<Item = ServiceOptions>,
    prepare: impl FnOnce(&[Pod; N]),
) -> (Lab, [Pod; N]) {
    let lab = Lab::new().expect("root and iproute2");
    let pods = options.map(|options| lab.pod(options).expect("a pod"));
    services.into_iter().for_each(|options| lab.service(options).expect("a service"));
    prepare(&pods);
    lab.start_control_plane().expect("the control plane starts");
    for pod in pods.iter().filter(|pod| pod.is_meshed()) {
        lab.start_proxy(pod).expect("the proxy starts");
    }
    (lab, pods)
}

/// A service whose port 80 is the endpoints' [`PORT`].
pub(crate) fn service<'a>(ip: &str, endpoints: impl IntoIterator<Item = &'a str>) -> ServiceOptions {
    ServiceOptions::new(&name_of(ip)).namespace("shop").ip(ip).port(80, PORT).endpoints(endpoints)
}

/// Its name.
pub(crate) fn name_of(ip: &str) -> String {
    format!("at-{}", ip.replace('.', "-"))
}

/// The port of the service at `ip`.
pub(crate) fn at(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), 80)
}

/// What `client`'s proxy says of a visit.
pub(crate) fn outbound(client: &Pod, visit: &Visit) -> Connection {
    record(client, Direction::Outbound, visit.local)
}

/// The name that the server says first.
pub(crate) fn host_of(mut stream: &TcpStream) -> String {
    let mut name = [0; 16];
    let count = stream.read(&mut name).expect("the server speaks first");
    String::from_utf8(name[..count].to_vec()).expect("a name")
}

/// Gives the service at `ip` other endpoints.
pub(crate) fn set_endpoints(lab: &Lab, ip: &str, endpoints: &[&str]) {
    let endpoints = endpoints.iter().map(|name| (*name).to_owned()).collect();
    let key = format!("shop/{}", name_of(ip));
    lab.edit(|mesh| mesh.services.get_mut(&key).expect("there").endpoints = endpoints).expect("valid");
}
