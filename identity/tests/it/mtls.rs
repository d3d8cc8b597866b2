//! The mesh port's TLS, both sides: whom each refuses, in a full handshake and in a resumed one.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use hauberk_identity::{
    Credentials, EndpointSessions, Peer, PeerFault, close_cause,
    server::{Ca, Lifetimes, rotation},
    server_name,
};
use hauberk_mesh::{ALPN_HAUBERK, CloseCause, IdentityName, TrustDomain};
use rustls::{
    HandshakeKind, NamedGroup,
    pki_types::{CertificateDer, ServerName, UnixTime},
    time_provider::TimeProvider,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::*;

/// What one side saw of a connection.
#[derive(Debug)]
struct Seen {
    kind: HandshakeKind,
    chain: Option<Vec<CertificateDer<'static>>>,
    group: NamedGroup,
    suite: rustls::CipherSuite,
    version: rustls::ProtocolVersion,
    alpn: Option<Vec<u8>>,
}

impl Seen {
    fn of(connection: &rustls::CommonState) -> Self {
        Self {
            kind: connection.handshake_kind().expect("done"),
            chain: connection.peer_certificates().map(<[_]>::to_vec),
            group: connection.negotiated_key_exchange_group().expect("done").name(),
            suite: connection.negotiated_cipher_suite().expect("done").suite(),
            version: connection.protocol_version().expect("done"),
            alpn: connection.alpn_protocol().map(<[_]>::to_vec),
        }
    }

    fn check(&self, own: &Credentials, expected: Option<&IdentityName>, now: SystemTime) -> Result<Peer, PeerFault> {
        own.check_peer(self.chain.as_deref(), expected, now)
    }
}

/// One connection: a byte each way, which also brings tickets and refusals to the client. Server's side, client's side.
async fn connect(
    server: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
    name: ServerName<'static>,
) -> (Result<Seen, rustls::Error>, Result<Seen, rustls::Error>) {
    let listener = TcpListener::bind(loopback()).await.expect("bound");
    let addr = listener.local_addr().expect("bound");
    let serve = async {
        let (tcp, _) = listener.accept().await.expect("accepted");
        let mut tls = TlsAcceptor::from(server).accept(tcp).await.map_err(tls_error)?;
        let byte = tls.read_u8().await.map_err(tls_error)?;
        tls.write_u8(byte).await.map_err(tls_error)?;
        tls.flush().await.map_err(tls_error)?;
        Ok(Seen::of(tls.get_ref().1))
    };
    let dial = async {
        let tcp = TcpStream::connect(addr).await.expect("connected");
        let mut tls = TlsConnector::from(client).connect(name, tcp).await.map_err(tls_error)?;
        tls.write_u8(7).await.map_err(tls_error)?;
        assert_eq!(tls.read_u8().await.map_err(tls_error)?, 7);
        Ok(Seen::of(tls.get_ref().1))
    };
    soon(async { tokio::join!(serve, dial) }).await
}

fn tls_error(error: std::io::Error) -> rustls::Error {
    let text = error.to_string();
    match error.into_inner().map(|inner| inner.downcast::<rustls::Error>()) {
        Some(Ok(error)) => *error,
        _ => rustls::Error::General(text),
    }
}

/// `client` towards `server`, which must prove `peer`.
async fn dial(
    server: &Credentials,
    client: &Credentials,
    peer: &IdentityName,
    sessions: &Arc<EndpointSessions>,
) -> (Result<Seen, rustls::Error>, Result<Seen, rustls::Error>) {
    connect(server.mesh_server(), client.mesh_client(peer, sessions.clone()), server_name(peer)).await
}

fn ca() -> Ca {
    Ca::in_memory(long_skew()).expect("a CA")
}

fn credentials(ca: &Ca, name: &IdentityName) -> Credentials {
    ca.credentials(name, 1, SystemTime::now()).expect("a certificate")
}

fn db() -> IdentityName {
    identity("db", "shop")
}

#[tokio::test]
async fn both_sides_prove_who_they_are() {
    let ca = ca();
    let (server, client) = (credentials(&ca, &db()), credentials(&ca, &web()));
    let (at_server, at_client) = dial(&server, &client, &db(), &Arc::default()).await;
    let (at_server, at_client) = (at_server.expect("accepted"), at_client.expect("connected"));
    let now = SystemTime::now();
    assert_eq!(at_server.check(&server, None, now).expect("known").name, web());
    let peer = at_client.check(&client, Some(&db()), now).expect("as expected");
    assert_eq!((peer.name, peer.not_after), (db(), server.not_after()));
    for seen in [at_server, at_client] {
        assert_eq!(seen.version, rustls::ProtocolVersion::TLSv1_3);
        assert_eq!(seen.suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(seen.group, NamedGroup::X25519MLKEM768);
        assert_eq!(seen.alpn.as_deref(), Some(ALPN_HAUBERK));
    }
}

#[tokio::test]
async fn the_next_connection_to_an_endpoint_is_resumed_and_still_says_who_the_peer_is() {
    let ca = ca();
    let (server, client) = (credentials(&ca, &db()), credentials(&ca, &web()));
    let sessions = Arc::default();
    let now = SystemTime::now();
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
        let (at_server, at_client) = dial(&server, &client, &db(), &sessions).await;
        let (at_server, at_client) = (at_server.expect("accepted"), at_client.expect("connected"));
        assert_eq!((at_server.kind, at_client.kind), (expected, expected));
        assert_eq!(at_server.check(&server, None, now).expect("known").name, web());
        assert_eq!(at_client.check(&client, Some(&db()), now).expect("as expected").name, db());
    }
    // Another replica of the same name has keys and sessions of its own.
    let replica = credentials(&ca, &db());
    let (at_server, _) = dial(&replica, &client, &db(), &Arc::default()).await;
    assert_eq!(at_server.expect("accepted").kind, HandshakeKind::Full);
    // A ticket of one is nothing to the other: a full handshake, no failure.
    let (at_server, _) = dial(&replica, &client, &db(), &sessions).await;
    assert_eq!(at_server.expect("accepted").kind, HandshakeKind::Full);
}

#[tokio::test]
async fn tickets_are_used_once_and_only_so_many_are_kept() {
    let ca = ca();
    let (server, client) = (credentials(&ca, &db()), credentials(&ca, &web()));
    let sessions = Arc::new(EndpointSessions::new(8));
    let config = client.mesh_client(&db(), sessions.clone());
    let giving = |tickets| {
        let mut server = (*server.mesh_server()).clone();
        server.send_tls13_tickets = tickets;
        Arc::new(server)
    };
    for _ in 0..3 {
        connect(giving(4), config.clone(), server_name(&db())).await.1.expect("connected");
    }
    assert!(format!("{sessions:?}").contains("tickets: 8,"), "{sessions:?}");
    // A server that gives none: each connection takes one of those that are left.
    let quiet = giving(0);
    for left in (0..8).rev() {
        let (seen, _) = connect(quiet.clone(), config.clone(), server_name(&db())).await;
        assert_eq!(seen.expect("accepted").kind, HandshakeKind::Resumed);
        assert!(format!("{sessions:?}").contains(&format!("tickets: {left},")), "{sessions:?}");
    }
    let (seen, _) = connect(quiet, config, server_name(&db())).await;
    assert_eq!(seen.expect("accepted").kind, HandshakeKind::Full);
}

#[tokio::test]
async fn a_handshake_takes_a_ticket_and_brings_one() {
    let ca = ca();
    let (server, client) = (credentials(&ca, &db()), credentials(&ca, &web()));
    let sessions = Arc::<EndpointSessions>::default();
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
        let (at_server, _) = dial(&server, &client, &db(), &sessions).await;
        assert_eq!(at_server.expect("accepted").kind, expected);
        assert!(format!("{sessions:?}").contains("tickets: 1,"), "{sessions:?}");
    }
}

#[tokio::test]
async fn a_chain_that_was_accepted_once_is_refused_when_it_has_ended() {
    let ca = ca();
    let (server, client) = (credentials(&ca, &db()), credentials(&ca, &web()));
    let sessions = Arc::new(EndpointSessions::new(0));
    let config = client.mesh_client(&db(), sessions);
    for _ in 0..2 {
        let (at_server, _) = connect(server.mesh_server(), config.clone(), server_name(&db())).await;
        assert_eq!(at_server.expect("accepted").kind, HandshakeKind::Full);
    }
    let late = server.not_after().max(client.not_after()) + Duration::from_secs(2);
    let clock = Arc::new(Clock(late));
    let (mut late_client, mut late_server) = ((*config).clone(), (*server.mesh_server()).clone());
    (late_client.time_provider, late_server.time_provider) = (clock.clone(), clock);
    let (_, at_client) = connect(server.mesh_server(), Arc::new(late_client), server_name(&db())).await;
    assert_eq!(close_cause(&at_client.expect_err("the server's has ended")), CloseCause::CertificateExpired);
    let (at_server, _) = connect(Arc::new(late_server), config, server_name(&db())).await;
    assert_eq!(close_cause(&at_server.expect_err("the client's has ended")), CloseCause::CertificateExpired);
}

/// A clock that stands.
#[derive(Debug)]
struct Clock(SystemTime);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.0.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970")))
    }
}

#[tokio::test]
async fn both_sides_refuse_a_peer_of_another_ca() {
    let (ours, theirs) = (ca(), ca());
    let (server, client) = (credentials(&ours, &db()), credentials(&theirs, &web()));
    // The client looks first.
    let (_, at_client) = dial(&server, &client, &db(), &Arc::default()).await;
    let error = at_client.expect_err("not of its CA");
    assert!(matches!(error, rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)), "{error:?}");
    assert_eq!(close_cause(&error), CloseCause::HandshakeFailed);
    // A client that looks away is refused by the server.
    let (at_server, _) = connect(server.mesh_server(), careless(&client), server_name(&db())).await;
    let error = at_server.expect_err("not of its CA");
    assert!(matches!(error, rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)), "{error:?}");
}

#[tokio::test]
async fn both_sides_refuse_another_identity() {
    let ca = ca();
    let (server, client) = (credentials(&ca, &db()), credentials(&ca, &web()));
    let (_, at_client) = dial(&server, &client, &identity("db", "bank"), &Arc::default()).await;
    assert_eq!(close_cause(&at_client.expect_err("another")), CloseCause::IdentityMismatch);
    // Whatever name the connection is opened with.
    let config = client.mesh_client(&identity("db", "bank"), Arc::default());
    let (_, at_client) = connect(server.mesh_server(), config, server_name(&db())).await;
    assert_eq!(close_cause(&at_client.expect_err("another")), CloseCause::IdentityMismatch);
    // The same CA, another mesh.
    let other = TrustDomain::new("hauberk", "other.local").expect("valid").identity("web", "shop").expect("valid");
    let client = credentials(&ca, &other);
    let (at_server, _) = connect(server.mesh_server(), careless(&client), server_name(&db())).await;
    let error = at_server.expect_err("another mesh");
    assert_eq!(close_cause(&error), CloseCause::IdentityMismatch, "{error:?}");
    // And after a handshake, by what was proven.
    let chain = Some(server.chain());
    let now = SystemTime::now();
    let (expected, found) = (identity("db", "bank"), db());
    let fault = PeerFault::Mismatch { expected: expected.clone(), found };
    assert_eq!(server.check_peer(chain, Some(&expected), now), Err(fault));
    assert!(matches!(server.check_peer(Some(client.chain()), None, now), Err(PeerFault::OtherTrustDomain { .. })));
}

#[tokio::test]
async fn a_resumed_connection_to_another_identity_is_refused() {
    let ca = ca();
    let (server, client) = (credentials(&ca, &db()), credentials(&ca, &web()));
    let sessions = Arc::<EndpointSessions>::default();
    dial(&server, &client, &db(), &sessions).await.1.expect("connected");
    assert!(format!("{sessions:?}").contains("tickets: 1,"), "{sessions:?}");
    // The pod's address is another's now: what was kept of the old one does not help.
    let (_, at_client) = dial(&server, &client, &identity("db", "bank"), &sessions).await;
    assert_eq!(close_cause(&at_client.expect_err("another")), CloseCause::IdentityMismatch);
    assert!(format!("{sessions:?}").contains("tickets: 0,"), "{sessions:?}");
    let (_, at_client) = dial(&server, &client, &db(), &sessions).await;
    assert_eq!(at_client.expect("connected").kind, HandshakeKind::Full);
}

#[tokio::test]
async fn both_sides_refuse_an_expired_leaf() {
    let ca = ca();
    let past = SystemTime::now() - Duration::from_secs(25 * 3600);
    let old = |name: &IdentityName| ca.credentials(name, 1, past).expect("was good then");
    let (_, at_client) = dial(&old(&db()), &credentials(&ca, &web()), &db(), &Arc::default()).await;
    assert_eq!(close_cause(&at_client.expect_err("ended")), CloseCause::CertificateExpired);
    let (at_server, _) = dial(&credentials(&ca, &db()), &old(&web()), &db(), &Arc::default()).await;
    assert_eq!(close_cause(&at_server.expect_err("ended")), CloseCause::CertificateExpired);
}

#[tokio::test]
async fn an_expired_leaf_is_refused_on_a_resumed_connection_too() {
    let ca = ca();
    let (server, client) = (credentials(&ca, &db()), credentials(&ca, &web()));
    let sessions = Arc::default();
    dial(&server, &client, &db(), &sessions).await.1.expect("connected");
    let (at_server, at_client) = dial(&server, &client, &db(), &sessions).await;
    let (at_server, at_client) = (at_server.expect("accepted"), at_client.expect("connected"));
    assert_eq!((at_server.kind, at_client.kind), (HandshakeKind::Resumed, HandshakeKind::Resumed));
    let late = server.not_after().max(client.not_after()) + Duration::from_secs(2);
    let early = SystemTime::now() - Duration::from_secs(80 * 3600);
    for (seen, own, peer) in [(at_server, &server, web()), (at_client, &client, db())] {
        let fault = seen.check(own, None, late).expect_err("ended");
        assert!(matches!(&fault, PeerFault::Expired { name, .. } if *name == peer), "{fault:?}");
        assert_eq!(fault.cause(), CloseCause::CertificateExpired);
        assert!(matches!(seen.check(own, None, early), Err(PeerFault::NotYetValid { .. })));
    }
}

#[tokio::test]
async fn a_ticket_from_before_the_old_root_was_dropped_is_refused() {
    let dir = TempDir::new().expect("a directory");
    let lifetimes = Lifetimes::default();
    let ca = Ca::open_or_create(dir.path(), lifetimes).expect("a CA");
    let (server, client) = (credentials(&ca, &db()), credentials(&ca, &web()));
    let sessions = Arc::default();
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let (at_server, _) = dial(&server, &client, &db(), &sessions).await;
        assert_eq!(at_server.expect("accepted").kind, expected);
    }

    let now = SystemTime::now();
    rotation::publish_next_root(dir.path(), &lifetimes, now).expect("published");
    rotation::sign_under_next_root(dir.path(), &lifetimes, now).expect("signed");
    rotation::drop_other_roots(dir.path()).expect("dropped");
    assert!(ca.reload().expect("taken over"));
    let moved_on = credentials(&ca, &db());

    // The client still has its ticket, and still believes the server, whose new root the old one cross-signed. The
    // server refuses the ticket, so that the client has to show its certificate, which nobody vouches for any more.
    let (at_server, at_client) = dial(&moved_on, &client, &db(), &sessions).await;
    let error = at_server.expect_err("the root was dropped");
    assert!(matches!(error, rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)), "{error:?}");
    assert!(at_client.is_err());
    // The other way round: a client that moved on has no tickets and refuses the old server.
    let (_, at_client) = dial(&server, &credentials(&ca, &web()), &db(), &sessions).await;
    let error = at_client.expect_err("the root was dropped");
    assert!(matches!(error, rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)), "{error:?}");
}

#[tokio::test]
async fn the_mesh_port_refuses_a_client_without_a_certificate() {
    let ca = ca();
    let (server, client) = (credentials(&ca, &db()), credentials(&ca, &web()));
    let mut config = (*client.mesh_client(&db(), Arc::default())).clone();
    config.client_auth_cert_resolver = Arc::new(Nothing);
    let (at_server, _) = connect(server.mesh_server(), Arc::new(config), server_name(&db())).await;
    assert_eq!(at_server.expect_err("nobody"), rustls::Error::NoCertificatesPresented);
    assert_eq!(server.check_peer(None, None, SystemTime::now()), Err(PeerFault::NoCertificate));
}

#[test]
fn a_certificate_that_names_no_identity_is_refused() {
    let own = credentials(&ca(), &web());
    let check = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::new(names).expect("names").self_signed(&key).expect("signed");
        own.check_peer(Some(&[certificate.der().clone()]), None, SystemTime::now()).expect_err("refused")
    };
    let (web, db) = (web(), db());
    for names in [&[][..], &["example.com"], &["10.1.0.1"], &[web.as_str(), db.as_str()], &[web.as_str(), "10.1.0.1"]] {
        let fault = check(names);
        assert!(matches!(&fault, PeerFault::NotAnIdentity { found } if found.len() == names.len()), "{fault:?}");
    }
    let garbage = own.check_peer(Some(&[CertificateDer::from(vec![1, 2, 3])]), None, SystemTime::now());
    assert!(matches!(garbage, Err(PeerFault::Unreadable { .. })), "{garbage:?}");
}

#[test]
fn credentials_never_print_their_key() {
    let text = format!("{:?}", credentials(&ca(), &web()));
    assert!(text.contains("redacted") && text.contains(web().as_str()), "{text}");
}

#[derive(Debug)]
struct Nothing;

impl rustls::client::ResolvesClientCert for Nothing {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// A client of ours in all, but it believes any server: so that it is the server's turn to refuse.
fn careless(client: &Credentials) -> Arc<rustls::ClientConfig> {
    let mut config = (*client.mesh_client(&db(), Arc::default())).clone();
    config.dangerous().set_certificate_verifier(Arc::new(Believer));
    Arc::new(config)
}

#[derive(Debug)]
struct Believer;

impl rustls::client::danger::ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
