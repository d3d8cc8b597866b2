//! Redirected inbound connections: clients without mTLS. Forwarded at once, or refused, with the reason; what they
//! carry is read off the bytes as they pass.

use std::net::SocketAddr;

use hauberk_mesh::{CloseCause, ClosedBy, Direction};
use tokio::net::TcpStream;
use tracing::debug;

use crate::{
    connections::Settled,
    leg::ByteLeg,
    listen::Rest,
    policy,
    proxy::Proxy,
    relay::{Prelude, relay},
    socket,
};

/// Gets one redirected connection to the application.
pub(crate) async fn accept(proxy: &Proxy, tcp: TcpStream, client: SocketAddr) -> Option<Rest<'_>> {
    // Not redirected: somebody dialled the listener itself, which is a port of ours.
    let target = socket::original_dst(&tcp, client).or_else(|_| tcp.local_addr()).unwrap_or(client);
    let mut record = proxy.track(Direction::Inbound, client, target);
    let reason = match policy::inbound(&proxy.spec, client.ip(), target) {
        Ok(reason) => reason,
        Err((cause, reason)) => {
            socket::arm_reset(&tcp);
            record.reason(reason);
            record.close(cause, ClosedBy::Proxy);
            return None;
        }
    };
    match proxy.connect_own(target, Direction::Inbound).await {
        Ok(app) => {
            record.settle(Settled { how: Err(reason), peer: None, local: None, endpoint: None });
            let (mut client, mut app) = (ByteLeg::new(tcp), ByteLeg::new(app));
            Some(Box::pin(async move {
                let ended = relay(&mut client, &mut app, &mut record, Prelude::default()).await;
                record.relayed(&ended);
            }))
        }
        Err(error) => {
            debug!(%error, "application");
            socket::arm_reset(&tcp);
            record.reason(reason);
            let by = if error.cause() == CloseCause::ConnectRefused { ClosedBy::Server } else { ClosedBy::Proxy };
            record.close(error.cause(), by);
            None
        }
    }
}
