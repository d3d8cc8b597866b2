//! F06: many new connections a second to one port, from eight client addresses, with the same without a proxy beside it.

use std::{fs, net::IpAddr, time::Instant};

use hauberk_lab::{Lab, Pod};

use super::client::{Echo, Outcome, at_rate};
use crate::{
    common::closed,
    faults::form::{Form, report},
    scene::{PORT, meshed, plain},
    streams::metric,
};

/// More of the client's addresses: one address has only 28,232 ports.
const MORE: [&str; 7] = ["10.1.9.1", "10.1.9.2", "10.1.9.3", "10.1.9.4", "10.1.9.5", "10.1.9.6", "10.1.9.7"];

/// Sockets in TIME_WAIT in a pod.
fn time_wait(pod: &Pod) -> usize {
    let text = pod.enter(|| fs::read_to_string("/proc/thread-self/net/sockstat")).expect("the kernel has it");
    let line = text.lines().find_map(|line| line.strip_prefix("TCP: ")).expect("there is TCP");
    let mut words = line.split_whitespace().skip_while(|word| *word != "tw");
    words.nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

fn run(form: Form, client: &Pod, server: &Pod) -> (Outcome, [usize; 2]) {
    let _echo = Echo::start(server, PORT);
    let more = MORE.iter().map(|text| text.parse::<IpAddr>().expect("an address"));
    let from: Vec<_> = std::iter::once(client.ip()).chain(more).collect();
    let begin = Instant::now();
    let outcome = at_rate(client, &from, server.at(PORT), form.rate, || begin.elapsed() >= form.rate_for);
    let waiting = [client, server].map(time_wait);
    (outcome, waiting)
}

#[test]
fn new_connections_to_one_port_at_a_high_rate_for_minutes_never_fail() {
    let form = Form::now();
    let also_at =
        |options, ips: &[&str]| ips.iter().fold(options, |options: hauberk_lab::PodOptions, ip| options.also_at(ip));
    let lab = Lab::new().expect("root and iproute2");
    let pods = [also_at(meshed("client"), &MORE), meshed("server"), plain("direct-server")];
    let [client, server, direct_server] = pods.map(|options| lab.pod(options).expect("a pod"));
    lab.start_control_plane().expect("the control plane starts");
    [&client, &server].into_iter().for_each(|pod| lab.start_proxy(pod).expect("it starts"));
    let (mesh, waiting) = run(form, &client, &server);
    mesh.check("through the mesh");
    assert!(closed(&client, "a record", |it| it.state == Some(hauberk_mesh::TransportState::Mtls)).reason.is_none());
    let of = |kind| metric(&client, "hauberk_handshakes_total", &[("direction", "outbound"), ("result", kind)]);
    let handshakes = [of("full"), of("resumed")];

    let other = Lab::new().expect("root and iproute2");
    let direct_client = other.pod(also_at(plain("direct-client"), &MORE)).expect("a pod");
    let beside = other.pod(plain("beside")).expect("a pod");
    drop(direct_server);
    let (direct, direct_waiting) = run(form, &direct_client, &beside);
    direct.check("direct");
    report(
        "F06",
        &format!(
            "through the mesh: {}; TIME_WAIT at the end: {} in the client's pod, {} in the server's; {:.0} full and {:.0} \
             resumed handshakes, all other streams on connections that were used again. Direct: {}; TIME_WAIT: {} and {}",
            mesh.numbers(),
            waiting[0],
            waiting[1],
            handshakes[0],
            handshakes[1],
            direct.numbers(),
            direct_waiting[0],
            direct_waiting[1],
        ),
    );
}
