//! The applications that talk through the mesh: a table of real servers, each with a conversation. Whatever the
//! protocol, both proxies must name both identities and the wire must show only TLS 1.3.

use std::{any::Any, fs, net::SocketAddr, os::unix::fs::chown, path::PathBuf};

use hauberk_lab::{Lab, Pod, PodOptions, Process};

use crate::{
    common::{Server, exchange},
    evidence::{Ends, assert_mtls_both_ends, assert_only_tls13, assert_unseen},
    grpc, mariadb, nginx, postgresql, redis, ssh, websocket,
};

/// Debian's `nobody`: applications need no rights.
pub(crate) const USER: u32 = 65534;
/// Seconds that a client program may take.
const PATIENCE: &str = "60";
/// Said to a pod without a proxy: the capture must have it, or it would have nothing.
const CONTROL: &str = "said-in-the-clear-7f3c";

/// Every protocol of these tests.
const ALL: [&Application; 7] = [
    &nginx::HTTP,
    &websocket::WEBSOCKET,
    &redis::REDIS,
    &postgresql::POSTGRESQL,
    &mariadb::MARIADB,
    &ssh::SSH,
    &grpc::GRPC,
];

/// A server of Debian or of ours, and a client's conversation with it.
pub(crate) struct Application {
    /// Of the server's pod and account.
    pub(crate) name: &'static str,
    /// Where the server listens.
    pub(crate) port: u16,
    /// Starts the server, at every address of the pod; it ends with what is returned.
    pub(crate) start: fn(&Pod, u16) -> Vec<Box<dyn Any>>,
    /// Talks to it from the first pod, at an address of the second, and panics unless all is answered as it should be.
    pub(crate) talk: fn(&Pod, &Pod, SocketAddr),
    /// How many connections that takes.
    pub(crate) connections: usize,
    /// What the two say to each other in the clear.
    pub(crate) markers: &'static [&'static str],
}

#[test]
fn both_proxies_name_both_identities_for_every_protocol_over_both_families() {
    show(&ALL, PodOptions::dual_stack);
}

/// Runs `application` alone, between pods with IPv4 addresses, and shows what [`show`] does.
pub(crate) fn show_alone(application: &Application) -> Ends {
    show(&[application], |options| options).remove(0)
}

/// Runs each application in a meshed pod of its own. A meshed client talks to it, at each of its addresses; then both
/// proxies must name both identities for every connection, and the wire must have shown nothing but TLS 1.3.
fn show(applications: &[&Application], addresses: fn(PodOptions) -> PodOptions) -> Vec<Ends> {
    let lab = Lab::new().expect("root and iproute2");
    let pod = |name: &str| addresses(PodOptions::new(name).namespace("shop").account(name));
    let client = lab.pod(pod("client").meshed()).expect("a pod");
    let outsider = lab.pod(pod("outsider").unmeshed()).expect("a pod");
    let servers: Vec<_> =
        applications.iter().map(|application| lab.pod(pod(application.name).meshed()).expect("a pod")).collect();
    lab.start_control_plane().expect("the control plane starts");
    servers.iter().chain([&client]).for_each(|pod| lab.start_proxy(pod).expect("the proxy starts"));
    let _running: Vec<_> =
        applications.iter().zip(&servers).map(|(app, server)| (app.start)(server, app.port)).collect();
    let _outside = Server::echo(&outsider, 7000);

    let capture = lab.capture().expect("tcpdump starts");
    exchange(&client, outsider.at(7000), CONTROL.as_bytes()).expect("the outsider answers");
    let mut shown = Vec::new();
    for (application, server) in applications.iter().zip(&servers) {
        for ip in server.ips() {
            let at = SocketAddr::new(*ip, application.port);
            (application.talk)(&client, server, at);
            let ends = assert_mtls_both_ends(&client, server, at);
            assert_eq!(ends.client.len(), application.connections, "{}: {:#?}", application.name, ends.client);
            shown.push(ends);
        }
    }
    let captured = capture.stop().expect("tcpdump ends");
    assert!(captured.contains(CONTROL.as_bytes()), "the capture has what is said in the clear");
    for (at, (application, server)) in applications.iter().zip(&servers).enumerate() {
        let of_server = &shown[at * server.ips().len()..][..server.ips().len()];
        assert_only_tls13(&captured, &client, server, of_server.iter().map(Ends::bytes).sum());
        assert_unseen(&captured, application.markers);
    }
    shown
}

/// Runs a client program in `pod`; what it said.
pub(crate) fn run(pod: &Pod, program: &[&str]) -> String {
    let all = [&[PATIENCE], program].concat();
    pod.run("timeout", all).expect("the client succeeds")
}

/// Starts a server as `nobody` and waits until it listens.
pub(crate) fn serve(pod: &Pod, port: u16, program: &[&str]) -> Process {
    let mut command = pod.command_as(USER, program[0]);
    listening(pod, port, pod.spawn("server", command.args(&program[1..])).expect("the server starts"))
}

/// `process`, once it listens.
pub(crate) fn listening(pod: &Pod, port: u16, process: Process) -> Process {
    pod.wait_listening(port, &process).expect("the server listens");
    process
}

/// A directory of the pod that its servers may write to.
pub(crate) fn directory(pod: &Pod) -> PathBuf {
    let dir = pod.dir().join("app");
    fs::create_dir_all(&dir).expect("the lab's directory is writable");
    give(&dir);
    dir
}

/// Makes a file the servers' own.
pub(crate) fn give(path: impl AsRef<std::path::Path>) {
    chown(path, Some(USER), Some(USER)).expect("the tests run as root");
}
