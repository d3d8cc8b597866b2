//! The control plane is away: at the start, and later. What needs no discovery goes on, and so does what was known.

use std::net::SocketAddr;

use hauberk_lab::{Lab, Pod, PodOptions, wait_for};
use hauberk_mesh::{CloseCause, Direction, OUTBOUND_PORT, Reason, TransportState};

use crate::{
    common::{LIMIT, identity},
    scene::{PORT, at, meshed, outbound, plain, prepared, service},
    talk::{assert_refused, host_anywhere, visit},
};

const OUTSIDE: &str = "192.0.2.7";
const WEB: &str = "10.2.0.10";
/// A client that does not wait long for an answer.
const BRIEF: &str = "discovery=300ms";
const OLD: &str = "10.2.0.11";
const NEW: &str = "10.2.0.12";
/// Another port of the same servers: addresses are asked about with their port.
const OTHER: u16 = 7001;

fn outside() -> SocketAddr {
    SocketAddr::new(OUTSIDE.parse().expect("an address"), PORT)
}

/// What `client`'s proxy passes on without discovery.
fn assert_needs_no_discovery(client: &Pod, api: &Pod) {
    for (to, reason) in [(outside(), Reason::OutsideCluster), (api.at(PORT), Reason::Exception)] {
        let visit = visit(client, to);
        assert!(!visit.host().is_empty(), "{to}");
        let record = outbound(client, &visit);
        assert_eq!((record.state, record.reason), (Some(TransportState::Cleartext), Some(reason)), "{to}");
    }
}

/// Waits until discovery has answered for these: each is asked about by itself.
fn wait_known(client: &Pod, addrs: impl IntoIterator<Item = SocketAddr>) {
    for addr in addrs {
        let served = || visit(client, addr).broken.map_or(Ok(()), |error| Err(error.to_string()));
        wait_for(&format!("discovery of {addr}"), LIMIT, || Ok(served())).expect("it answers");
    }
}

/// What it cannot know anything of.
fn assert_unavailable(client: &Pod, to: SocketAddr) {
    let visit = visit(client, to);
    assert_refused(client, Direction::Outbound, &visit, (CloseCause::DiscoveryUnavailable, None), &to.to_string());
}

fn assert_mtls(client: &Pod, to: SocketAddr, account: &str) {
    let visit = visit(client, to);
    assert_eq!(visit.host(), account, "{to}");
    let record = outbound(client, &visit);
    assert_eq!((record.state, record.reason), (Some(TransportState::Mtls), None), "{to}");
    assert_eq!(record.server_identity, Some(identity(account)), "{to}");
}

fn assert_plain(client: &Pod, to: SocketAddr, host: &str) {
    let visit = visit(client, to);
    assert_eq!(visit.host(), host, "{to}");
    assert_eq!(outbound(client, &visit).reason, Some(Reason::PeerNotMeshed), "{to}");
}

/// The same pods for each test, behind a client with these limits.
fn pods(limits: &str) -> [PodOptions; 5] {
    let client = meshed("client").limits(limits);
    [client, meshed("web"), plain("old"), plain("api"), plain("outside").unlisted().also_at(OUTSIDE)]
}

#[test]
fn with_no_control_plane_from_the_start_outside_and_api_server_are_reached_and_the_rest_once_it_is_there() {
    let lab = Lab::new().expect("root and iproute2");
    let [client, web, old, api, out] = pods(BRIEF).map(|options| lab.pod(options).expect("a pod"));
    lab.service(service(WEB, ["web"])).expect("a service");
    let _hosts = [&web, &old, &api, &out].map(|pod| host_anywhere(pod, PORT));
    lab.start_control_plane().expect("it starts");
    lab.start_proxy(&web).expect("it starts");
    lab.stop_identity().expect("it ran");
    lab.stop_destination().expect("it ran");
    client.edit_spec(|spec| spec.api_server = Some(api.at(PORT)));
    lab.launch_proxy(&client).expect("it starts");
    client.with_proxy(|proxy| client.wait_listening(OUTBOUND_PORT, proxy)).expect("it listens");

    assert_needs_no_discovery(&client, &api);
    [at(WEB), old.at(PORT)].into_iter().for_each(|to| assert_unavailable(&client, to));

    lab.start_identity().expect("it starts");
    lab.start_destination().expect("it starts");
    client.wait_proxy_ready().expect("it gets its certificate");
    wait_known(&client, [at(WEB), old.at(PORT)]);
    assert_mtls(&client, at(WEB), "web");
    assert_plain(&client, old.at(PORT), "old");
    assert_needs_no_discovery(&client, &api);
}

#[test]
fn when_the_control_plane_goes_later_all_that_was_known_goes_on_and_what_is_new_is_refused() {
    let services = [service(WEB, ["web"]), service(OLD, ["old"]), service(NEW, ["web"])];
    let limits = format!("{BRIEF},stale_unmeshed=1h");
    let (lab, [client, web, old, api, out]) = prepared(pods(&limits), services, |[client, _, _, api, _]| {
        client.edit_spec(|spec| spec.api_server = Some(api.at(PORT)));
    });
    let _hosts = [&web, &old, &api, &out].map(|pod| host_anywhere(pod, PORT));
    let known = || {
        assert_mtls(&client, at(WEB), "web");
        assert_mtls(&client, web.at(PORT), "web");
        assert_plain(&client, at(OLD), "old");
        assert_plain(&client, old.at(PORT), "old");
        assert_needs_no_discovery(&client, &api);
    };
    wait_known(&client, [at(WEB), web.at(PORT), at(OLD), old.at(PORT)]);
    known();
    lab.stop_destination().expect("it ran");
    lab.stop_identity().expect("it ran");
    known();
    for new in [at(NEW), web.at(OTHER), old.at(OTHER)] {
        assert_unavailable(&client, new);
    }
    known();
    assert_eq!(client.admin("/ready").expect("ready"), "ready\n");
}

#[test]
fn while_discovery_is_away_that_a_pod_address_is_not_meshed_counts_for_a_while_only() {
    let services = [service(WEB, ["web"]), service(OLD, ["old"])];
    let limits = format!("{BRIEF},stale_unmeshed=200ms");
    let (lab, [client, web, old, ..]) = prepared(pods(&limits), services, |_| {});
    let _hosts = [&web, &old].map(|pod| host_anywhere(pod, PORT));
    wait_known(&client, [old.at(PORT), at(OLD), web.at(PORT)]);
    lab.stop_destination().expect("it ran");
    wait_for("its time is over", LIMIT, || {
        Ok(visit(&client, old.at(PORT)).broken.map(drop).ok_or_else(|| "still counts".to_owned()))
    })
    .expect("it ends");
    assert_unavailable(&client, old.at(PORT));
    assert_plain(&client, at(OLD), "old");
    assert_mtls(&client, web.at(PORT), "web");
    lab.start_destination().expect("it starts");
    wait_known(&client, [old.at(PORT)]);
    assert_plain(&client, old.at(PORT), "old");
}
