//! The wire: every connection on it must be one that can be explained, and look as its explanation says.

use std::net::SocketAddr;

use hauberk_lab::{Flow, tls};
use hauberk_mesh::{ADMIN_PORT, CONTROL_ADMIN_PORT, MESH_PORT};

use super::{Evidence, Exchange, Expected, PodFacts};

/// Fails with what is wrong with `flow`, and between whom.
pub(super) fn check(evidence: &Evidence, flow: &Flow) -> Result<(), String> {
    let [client, server] = [flow.client, flow.server].map(|addr| name(evidence, addr));
    whole(flow).and_then(|()| explained(evidence, flow)).map_err(|what| format!("{client} to {server}: {what}"))
}

fn whole(flow: &Flow) -> Result<(), String> {
    if !flow.syn_seen {
        return Err("it was open before the capture began".to_owned());
    }
    match flow.to_server.gap.or(flow.to_client.gap) {
        Some(gap) => Err(format!("the capture lacks bytes at {gap}")),
        None => Ok(()),
    }
}

fn explained(evidence: &Evidence, flow: &Flow) -> Result<(), String> {
    let server = evidence.pods.values().find(|pod| pod.ip == flow.server.ip());
    match (flow.server.port(), server) {
        (ADMIN_PORT | CONTROL_ADMIN_PORT, Some(_)) if flow.client.ip() == evidence.node => Ok(()),
        (MESH_PORT, Some(PodFacts { identity: Some(identity), .. })) => only_tls13(flow, Some(identity)),
        (port, Some(PodFacts { tls_port, .. })) if *tls_port == Some(port) => only_tls13(flow, None),
        _ if evidence.exchanges.iter().any(|exchange| is_of(evidence, exchange, flow)) => Ok(()),
        _ => Err("a connection on the wire that nobody expected".to_owned()),
    }
}

/// `server_name`, if given, is what a client that said anything must have asked for.
fn only_tls13(flow: &Flow, server_name: Option<&String>) -> Result<(), String> {
    let (client, server) = (tls::inspect(&flow.to_server.bytes), tls::inspect(&flow.to_client.bytes));
    for (view, side) in [(&client, "client"), (&server, "server")] {
        if let Some(offence) = &view.offence {
            return Err(format!("the {side} does not speak TLS 1.3, {offence}"));
        }
        if view.incomplete > 0 {
            return Err(format!("the last {} bytes of the {side} are no whole record", view.incomplete));
        }
    }
    let asked = client.server_name.as_ref();
    match server_name {
        Some(name) if !flow.to_server.bytes.is_empty() && asked != Some(name) => {
            Err(format!("the client asked for {asked:?}, not for {name}"))
        }
        _ => Ok(()),
    }
}

/// Whether `flow` is the plaintext of `exchange`, as it must be.
fn is_of(evidence: &Evidence, exchange: &Exchange, flow: &Flow) -> bool {
    let (from, to) = evidence.ends(exchange);
    let server = SocketAddr::new(to.ip, exchange.port);
    exchange.expected != Expected::Mtls && flow.client.ip() == from.ip && flow.server == server
}

fn name(evidence: &Evidence, addr: SocketAddr) -> String {
    let pod = evidence.pods.iter().find(|(_, pod)| pod.ip == addr.ip());
    pod.map_or_else(|| addr.to_string(), |(name, _)| format!("{name} ({addr})"))
}
