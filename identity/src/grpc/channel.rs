//! The client's side.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hauberk_mesh::IdentityName;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

use crate::{Store, credentials::grpc_client, server_name};

/// TCP and TLS together.
const CONNECT: Duration = Duration::from_secs(5);
/// A server that is gone without a word is noticed after the sum of both.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);

/// A channel to `server` at `addr` that connects when first used, and again after a failure. Each connection believes
/// the roots that `store` then holds and presents the certificate that it then holds, if any. Inside a runtime only.
pub fn channel(addr: SocketAddr, server: IdentityName, store: Store) -> Channel {
    let connect = tower::service_fn(move |_: Uri| connect(addr, server.clone(), store.clone()));
    Endpoint::from_shared(format!("http://{addr}"))
        .expect("an address makes a URI")
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_ANSWER)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connect)
}

async fn connect(addr: SocketAddr, server: IdentityName, store: Store) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
    let tcp = TcpStream::connect(addr).await?;
    tcp.set_nodelay(true)?;
    let config = grpc_client(&server, &store.trust(), store.current().as_deref());
    let tls = TlsConnector::from(Arc::new(config)).connect(server_name(&server), tcp).await?;
    Ok(TokioIo::new(tls))
}
