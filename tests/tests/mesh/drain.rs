//! How a pod leaves: its peers stop using it as soon as discovery says so, its proxy finishes what is open and sends
//! everything else elsewhere, and ends with 0.

use std::net::{Shutdown, TcpStream};

use hauberk_lab::{Lab, Pod, wait_for};
use hauberk_mesh::{CloseCause, Direction, HandshakeKind, SidecarKind};

use crate::{
    common::{LIMIT, Server, dial},
    idle::request,
    probes::wait_draining,
    scene::{PORT, at, meshed, scene, service, set_endpoints},
    streams::{End, cause, last_outbound, metric, pass, rest},
};

const SHOP: &str = "10.2.0.10";

/// A connection through `client`'s proxy to the echo at the service, in use.
fn stream(client: &Pod) -> TcpStream {
    let stream = dial(client, at(SHOP)).expect("the proxy accepts");
    pass(&stream, &stream, b"in use");
    stream
}

fn end(mut stream: TcpStream) {
    pass(&stream, &stream, b"still in use");
    stream.shutdown(Shutdown::Write).expect("open");
    assert_eq!(rest(&mut stream), (vec![], End::Clean));
}

fn wait_idle(client: &Pod, expected: f64) {
    wait_for("idle mesh connections", LIMIT, || {
        let idle = metric(client, "hauberk_pool_idle", &[]);
        Ok(if idle == expected { Ok(()) } else { Err(format!("{idle} are idle")) })
    })
    .expect("as many as expected");
}

fn wait_end(pod: &Pod) {
    let status = pod.with_proxy(|proxy| proxy.wait_exit(LIMIT)).expect("it ends");
    assert_eq!(status.code(), Some(0), "{}", pod.name());
}

/// Marks `pod` as deleted in discovery's eyes.
fn delete(lab: &Lab, pod: &Pod) {
    let key = pod.key();
    lab.edit(|mesh| mesh.pods.get_mut(&key).expect("listed").terminating = true).expect("valid");
}

#[test]
fn connections_to_an_endpoint_that_discovery_removed_are_not_kept_while_another_stream_to_it_is_open() {
    let pods = [meshed("client").limits("pool_idle=1h"), meshed("old"), meshed("new")];
    let (lab, [client, old, new]) = scene(pods, [service(SHOP, ["old"])]);
    let _echo = [&old, &new].map(|pod| Server::echo(pod, PORT));
    let (open, ends_later, idle) = (stream(&client), stream(&client), stream(&client));
    end(idle);
    wait_idle(&client, 1.0);
    set_endpoints(&lab, SHOP, &["new"]);
    wait_idle(&client, 0.0);
    end(ends_later);
    let record = last_outbound_to(&client, &old);
    assert_eq!(record, CloseCause::Clean);
    let fresh = stream(&client);
    end(fresh);
    // The one to the new endpoint is kept, that to the old one is not.
    wait_idle(&client, 1.0);
    let named = client.connections().expect("it answers").closed.pop().expect("just closed");
    assert_eq!(named.endpoint, Some(new.at(PORT)));
    // What was open goes on.
    end(open);
}

/// How the connection to `pod` that closed last ended.
fn last_outbound_to(client: &Pod, pod: &Pod) -> CloseCause {
    let endpoint = Some(pod.at(PORT));
    let find = |all: &hauberk_mesh::Connections| {
        let mut of_pod = all.closed.iter().filter(|it| it.endpoint == endpoint);
        (of_pod.clone().count() == 2).then(|| of_pod.next_back().cloned()).flatten()
    };
    cause(&client.wait_connections("the second connection closes", find).expect("a record"))
}

#[test]
fn a_pod_that_is_being_deleted_keeps_no_mesh_connection_and_serves_on() {
    let (lab, [client, old]) = scene([meshed("client").limits("pool_idle=1h"), meshed("old")], []);
    let _echo = Server::echo(&old, PORT);
    assert_eq!(request(&client, old.at(PORT)), HandshakeKind::Full);
    assert_eq!(request(&client, old.at(PORT)), HandshakeKind::Reused);
    delete(&lab, &old);
    let told = || old.with_proxy(|proxy| Ok(proxy.log().contains("the pod is being deleted")));
    wait_for("it learns of its deletion", LIMIT, || Ok(if told()? { Ok(()) } else { Err("not yet".to_owned()) }))
        .expect("discovery says so");
    // Until it ends it may be the only one that serves.
    for _ in 0..2 {
        assert_eq!(request(&client, old.at(PORT)), HandshakeKind::Resumed);
    }
}

#[test]
fn a_native_sidecar_finishes_what_is_open_and_sends_the_rest_elsewhere() {
    let client = meshed("client").proxy_env("RUST_LOG", "hauberk_proxy=debug");
    // Every connection goes to the old one first.
    let pods = [client, meshed("old").weight(1000), meshed("new")];
    let (_lab, [client, old, new]) = scene(pods, [service(SHOP, ["old", "new"])]);
    let _echo = [&old, &new].map(|pod| Server::echo(pod, PORT));
    let open = stream(&client);
    old.terminate_proxy().expect("it runs");
    wait_draining(&old);
    for _ in 0..5 {
        end(stream(&client));
    }
    let others = client.connections().expect("it answers").closed;
    assert!(others.iter().rev().take(5).all(|it| it.endpoint == Some(new.at(PORT))), "{others:#?}");
    end(open);
    assert_eq!(cause(&last_outbound(&client, at(SHOP))), CloseCause::Clean);
    wait_end(&old);
}

#[test]
fn a_plain_sidecar_refuses_streams_and_serves_its_application_until_that_has_ended() {
    let plain = |name| meshed(name).spec(|spec| spec.sidecar = SidecarKind::Plain);
    let pods = [meshed("client"), plain("old").weight(1000), meshed("new")];
    let (_lab, [client, old, new]) = scene(pods, [service(SHOP, ["old", "new"])]);
    let _echo = [&old, &new].map(|pod| Server::echo(pod, PORT));
    let open = stream(&client);
    old.terminate_proxy().expect("it runs");
    wait_draining(&old);
    for _ in 0..5 {
        end(stream(&client));
    }
    let refused = metric(&old, "hauberk_connections_closed_total", &[("cause", "peer-draining")]);
    assert!(refused > 0.0, "it was asked, and said that it drains");
    // Its own application still gets through, to somebody whom it had never asked before.
    assert_eq!(request(&old, new.at(PORT)), HandshakeKind::Full);
    end(open);
    assert!(old.connections().expect("it still runs").closed.iter().any(|it| it.direction == Direction::Outbound));
    wait_end(&old);
}

#[test]
fn what_is_still_open_when_the_drain_is_over_is_reset() {
    let pods = [meshed("client"), meshed("old").limits("drain=500ms")];
    let (_lab, [client, old]) = scene(pods, [service(SHOP, ["old"])]);
    let _echo = Server::echo(&old, PORT);
    let mut open = stream(&client);
    old.terminate_proxy().expect("it runs");
    assert_eq!(rest(&mut open), (vec![], End::Reset));
    wait_end(&old);
}
