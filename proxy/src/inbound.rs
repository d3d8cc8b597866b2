//! Redirected inbound connections: clients without mTLS. Forwarded at once, or refused, with the reason; what they
//! carry is read off the bytes as they pass.

use std::net::SocketAddr;

use hauberk_mesh::{CloseCause, ClosedBy, Direction};
use tokio::net::TcpStream;
use tracing::debug;

use crate::{
    connections::Settled,
    leg::ByteLeg,
    policy,
    proxy::Proxy,
    relay::{Prelude, relay},
    socket,
};

/// Serves one redirected connection to the application.
pub(crate) async fn serve(proxy: &Proxy, tcp: TcpStream, client: SocketAddr) {
    // Not redirected: somebody dialled the listener itself, which is a port of ours.
    let target = socket::original_dst(&tcp).or_else(|_| tcp.local_addr()).unwrap_or(client);
    let mut record = proxy.track(Direction::Inbound, client, target);
    let reason = match policy::inbound(&proxy.spec, client.ip(), target) {
        Ok(reason) => reason,
        Err((cause, reason)) => {
            socket::arm_reset(&tcp);
            record.reason(reason);
            return record.close(cause, ClosedBy::Proxy);
        }
    };
    let app = match proxy.connect_own(target, Direction::Inbound).await {
        Ok(app) => app,
        Err(error) => {
            debug!(%error, "application");
            socket::arm_reset(&tcp);
            record.reason(reason);
            let by = if error.cause() == CloseCause::ConnectRefused { ClosedBy::Server } else { ClosedBy::Proxy };
            return record.close(error.cause(), by);
        }
    };
    record.settle(Settled { how: Err(reason), peer: None, local: None, endpoint: None });
    let ended = relay(&mut ByteLeg::new(tcp), &mut ByteLeg::new(app), &mut record, Prelude::default()).await;
    record.relayed(&ended);
}
