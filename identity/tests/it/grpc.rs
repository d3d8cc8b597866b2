//! gRPC over mTLS, and the ports of the server.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use hauberk_api::trust::{WatchRequest, trust_client::TrustClient};
use hauberk_identity::{
    Store,
    grpc::{self, ClientAuth, IncomingLimits},
    server::{Ca, Lifetimes},
    server_name,
};
use tokio::net::TcpStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::support::*;

fn store(ca: &Ca, name: &hauberk_mesh::IdentityName) -> Store {
    Store::fixed(ca.credentials(name, 1, SystemTime::now()).expect("a certificate").into())
}

async fn watch(
    addr: std::net::SocketAddr,
    store: Store,
    sessions: tokio::sync::mpsc::Receiver<WatchRequest>,
) -> Result<Streaming<hauberk_api::trust::Bundle>, Status> {
    let channel = grpc::channel(addr, server_identity(), store);
    soon(TrustClient::new(channel).watch(ReceiverStream::new(sessions))).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn the_server_knows_who_calls() {
    let ca = Arc::new(Ca::in_memory(long_skew()).expect("a CA"));
    for (auth, own) in
        [(ClientAuth::Optional, None), (ClientAuth::Optional, Some(web())), (ClientAuth::Required, Some(web()))]
    {
        let mut script = Script::start(ca.clone(), auth).await;
        let (_say, said) = tokio::sync::mpsc::channel(1);
        let store = match &own {
            Some(name) => store(&ca, name),
            None => stranger(&ca),
        };
        watch(script.addr, store, said).await.expect("served");
        let caller = soon(script.callers.recv()).await.expect("a call");
        assert_eq!(caller.peer.map(|peer| peer.name), own);
        assert!(caller.remote.ip().is_loopback());
    }
}

#[tokio::test]
async fn a_required_certificate_is_required_and_a_bad_one_never_accepted() {
    let (ca, other) = (Ca::in_memory(long_skew()).expect("a CA"), Ca::in_memory(long_skew()).expect("a CA"));
    let ca = Arc::new(ca);
    for auth in [ClientAuth::Required, ClientAuth::Optional] {
        let mut script = Script::start(ca.clone(), auth).await;
        let (_say, said) = tokio::sync::mpsc::channel(1);
        if auth == ClientAuth::Required {
            watch(script.addr, stranger(&ca), said).await.expect_err("without a certificate");
        }
        // Believes us, and shows a certificate of another CA: as after a rotation that it missed.
        let mut config = client_config(&ca);
        config.client_auth_cert_resolver = client_config(&other).client_auth_cert_resolver;
        let tcp = TcpStream::connect(script.addr).await.expect("connected");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let refused = async {
            use tokio::io::AsyncReadExt as _;
            let mut tls = connector.connect(server_name(&server_identity()), tcp).await?;
            tls.read_u8().await
        };
        let error = soon(refused).await.expect_err("refused");
        assert!(error.to_string().contains("UnknownCA"), "{error}");
        assert!(script.callers.try_recv().is_err());
    }
}

fn stranger(ca: &Ca) -> Store {
    let roots = ca.bundle().to_pem();
    let config = hauberk_identity::AgentConfig::new(web(), loopback(), "token".into(), None, roots);
    hauberk_identity::Agent::new(config).expect("valid").1
}

#[tokio::test]
async fn strangers_that_never_speak_do_not_keep_others_out() {
    let ca = Arc::new(Ca::in_memory(long_skew()).expect("a CA"));
    let limits = IncomingLimits { handshakes: 8, handshake: Duration::from_millis(100), ..IncomingLimits::default() };
    let mut script = Script::start_as(ca.clone(), store(&ca, &server_identity()), ClientAuth::Required, limits).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(script.addr).await.expect("connected"));
    }
    let (_say, said) = tokio::sync::mpsc::channel(1);
    watch(script.addr, store(&ca, &web()), said).await.expect("served, once the silent ones were given up");
    assert_eq!(soon(script.callers.recv()).await.expect("a call").peer.expect("known").name, web());
}

#[tokio::test]
async fn one_address_holds_only_its_share_of_the_connections() {
    let ca = Arc::new(Ca::in_memory(long_skew()).expect("a CA"));
    let limits = IncomingLimits { per_source: 1, ..IncomingLimits::default() };
    let script = Script::start_as(ca.clone(), store(&ca, &server_identity()), ClientAuth::Required, limits).await;
    let (say, said) = tokio::sync::mpsc::channel(1);
    let first = watch(script.addr, store(&ca, &web()), said).await.expect("served");
    let (_say, said) = tokio::sync::mpsc::channel(1);
    watch(script.addr, store(&ca, &web()), said).await.expect_err("its share is taken");
    drop((first, say));
    let again = async {
        loop {
            let (_say, said) = tokio::sync::mpsc::channel(1);
            if watch(script.addr, store(&ca, &web()), said).await.is_ok() {
                return;
            }
        }
    };
    soon(again).await;
}

#[tokio::test]
async fn the_server_renews_its_own_certificate_while_it_serves() {
    let world = World::start_with(Lifetimes { leaf: Duration::from_secs(3), ..Lifetimes::default() }).await;
    let mut leafs = std::collections::BTreeSet::new();
    let renewed = async {
        while leafs.len() < 3 {
            // Now and then one ends between being made and being looked at.
            if let Ok(chain) = shown(world.addr, &world.ca).await {
                leafs.insert(chain[0].to_vec());
            }
        }
    };
    soon(renewed).await;
    world.stop().await;
}

#[tokio::test]
async fn a_connection_ends_when_its_certificate_is_renewed_and_the_next_shows_the_new_one() {
    let world = World::start_with(Lifetimes { leaf: Duration::from_secs(3), ..Lifetimes::default() }).await;
    let agent = Running::start(world.agent());
    soon(agent.store.ready()).await;
    // Of the same CA, with a certificate that outlives the test.
    let ca = Ca::open_or_create(&world.ca_dir(), Lifetimes::default()).expect("the CA of the world");
    let mut script = Script::start(Arc::new(ca), ClientAuth::Required).await;
    let channel = grpc::channel(script.addr, server_identity(), agent.store.clone());
    let mut ends = Vec::new();
    while ends.len() < 3 {
        let (_say, said) = tokio::sync::mpsc::channel(1);
        let mut stream = match soon(TrustClient::new(channel.clone()).watch(ReceiverStream::new(said))).await {
            Ok(stream) => stream.into_inner(),
            // The connection may end in the middle of the call: then the certificate has just been renewed.
            Err(_) if SystemTime::now() < ends.last().copied().unwrap_or(SystemTime::now()) => continue,
            Err(error) => panic!("{error:?}"),
        };
        let peer = soon(script.callers.recv()).await.expect("a call").peer.expect("a certificate");
        ends.push(peer.not_after);
        soon(stream.message()).await.expect_err("the stream ends with its connection");
        assert!(SystemTime::now() < peer.not_after, "before its certificate does");
    }
    ends.dedup();
    assert_eq!(ends.len(), 3, "each connection had a certificate of its own: {ends:?}");
    agent.stop().await;
    world.stop().await;
}

#[tokio::test]
async fn admin_says_live_ready_and_the_metrics() {
    let world = World::start().await;
    for (path, expected) in [("/live", "live\n"), ("/ready", "ready\n")] {
        let answer = get(world.admin, path).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(expected), "{answer}");
    }
    assert!(get(world.admin, "/connections").await.starts_with("HTTP/1.1 404"));
    let metrics = world.metrics().await;
    for line in [
        "# TYPE hauberk_identity_certificates_issued counter\n",
        "hauberk_identity_certificates_refused_total{reason=\"no-pod\"} 0\n",
        "hauberk_identity_trust_generation 1\n",
        "hauberk_identity_trust_streams 0\n",
        "hauberk_identity_certificate_end_seconds{certificate=\"issuer\"} ",
        "hauberk_identity_certificate_end_seconds{certificate=\"own\"} ",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
    world.stop().await;
}
