//! P03: what connections held goes back to the node.

use hauberk_lab::wait_for;

use crate::{
    common::{LIMIT, pair, proxy_pid, resident},
    scene::PORT,
    streams::{Port, pass},
};

#[test]
fn what_connections_held_goes_back_when_they_have_closed() {
    const CONNECTIONS: usize = 600;
    let (_lab, client, server) = pair();
    let port = Port::listen(&server, PORT);
    let open = |count| {
        let open: Vec<_> = (0..count).map(|_| port.connection(&client)).collect();
        open.iter().for_each(|(at_client, at_server)| pass(at_client, at_server, b"awake"));
        open
    };
    drop(open(1));
    let pids = [proxy_pid(&client), proxy_pid(&server)];
    let before = pids.map(resident);
    let connections = open(CONNECTIONS);
    let held: Vec<_> = pids.iter().zip(before).map(|(pid, before)| resident(*pid).saturating_sub(before)).collect();
    assert!(held.iter().all(|held| *held > CONNECTIONS as u64), "{held:?} KiB for {CONNECTIONS} connections");
    drop(connections);
    wait_for("most of it goes back", LIMIT, || {
        let left: Vec<_> = pids.iter().zip(before).map(|(pid, before)| resident(*pid).saturating_sub(before)).collect();
        let most = left.iter().zip(&held).all(|(left, held)| left * 2 <= *held);
        Ok(if most { Ok(()) } else { Err(format!("{left:?} KiB are left of {held:?}")) })
    })
    .expect("memory goes back");
}
