//! Over TCP, with tokio-rustls at the other end, or ours.

use std::{
    future::poll_fn,
    io,
    net::Ipv4Addr,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, SystemTime},
};

use hauberk_identity::{
    Credentials, EndpointSessions,
    server::{Ca, Lifetimes},
};
use hauberk_mesh::{HandshakeKind, TrustDomain};
use nix::sys::socket::getsockopt;
use rand::RngExt as _;
use rustls::{
    AlertDescription, ClientConfig, SignatureScheme, client::ResolvesClientCert, pki_types::ServerName,
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpStream},
    task::unconstrained,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::pair::{Configs, PAIRS, SUITES, Who, configs, server_name};
use crate::{
    leg::Carrier as _,
    records::{self, Negotiated, RecordStream, accept, keys::LARGEST_RECORD, stream::SCRATCH_SIZE},
    silence::Info,
};

/// No test waits longer for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let (client, server) =
        tokio::join!(TcpStream::connect(listener.local_addr().expect("an address")), listener.accept());
    let (client, (server, _)) = (client.expect("connected"), server.expect("accepted"));
    client.set_nodelay(true).expect("set");
    server.set_nodelay(true).expect("set");
    (client, server)
}

/// Shakes hands as the client, to the very end.
async fn connect(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    tcp: TcpStream,
) -> io::Result<(RecordStream, Negotiated)> {
    let (mut stream, negotiated) = records::connect(config, name, tcp).await?;
    stream.flush().await?;
    Ok((stream, negotiated))
}

async fn streams(
    who: (Who, Who),
    configs: &Configs,
    tcp: (TcpStream, TcpStream),
) -> (Box<dyn Stream>, Box<dyn Stream>) {
    let client = async {
        let config = configs.client.clone();
        match who.0 {
            Who::Ours => Box::new(connect(config, server_name(), tcp.0).await.expect("shaken").0) as Box<dyn Stream>,
            Who::Rustls => Box::new(TlsConnector::from(config).connect(server_name(), tcp.0).await.expect("shaken")),
        }
    };
    let server = async {
        let config = configs.server.clone();
        match who.1 {
            Who::Ours => Box::new(accept(config, tcp.1).await.expect("shaken").0) as Box<dyn Stream>,
            Who::Rustls => Box::new(TlsAcceptor::from(config).accept(tcp.1).await.expect("shaken")),
        }
    };
    tokio::join!(client, server)
}

async fn ours() -> (RecordStream, RecordStream) {
    let (configs, (client, server)) = (configs(SUITES[0]), tcp().await);
    let (client, server) = tokio::join!(connect(configs.client, server_name(), client), accept(configs.server, server));
    (client.expect("shaken").0, server.expect("shaken").0)
}

/// Ours as the client, rustls' server taken apart.
async fn with_rustls() -> (RecordStream, TcpStream, rustls::ServerConnection) {
    let (configs, (client, server)) = (configs(SUITES[0]), tcp().await);
    let (client, server) =
        tokio::join!(connect(configs.client, server_name(), client), TlsAcceptor::from(configs.server).accept(server));
    let (tcp, tls) = server.expect("shaken").into_inner();
    (client.expect("shaken").0, tcp, tls)
}

/// Passes bytes on in pieces of any size, until the end.
async fn chop(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut piece = [0; 20_000];
    loop {
        let most = if rand::rng().random_bool(0.5) { 30 } else { piece.len() };
        let len = rand::rng().random_range(1..=most);
        match from.read(&mut piece[..len]).await.expect("no reset") {
            0 => break,
            count => to.write_all(&piece[..count]).await.expect("no reset"),
        }
    }
    to.shutdown().await.expect("no reset");
}

fn some_bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

async fn write_in_pieces(stream: &mut (impl AsyncWrite + Unpin + ?Sized), mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let most = if rand::rng().random_bool(0.5) { 100 } else { 70_000 };
        let len = rand::rng().random_range(1..=most).min(bytes.len());
        let written = stream.write(&bytes[..len]).await.expect("the peer reads");
        bytes = &bytes[written..];
    }
    stream.flush().await.expect("the peer reads");
}

/// Reads all, with a buffer of any size each time.
async fn read_all(stream: &mut (impl AsyncRead + Unpin + ?Sized)) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buf = vec![0; 70_000];
    loop {
        let most = if rand::rng().random_bool(0.5) { 100 } else { buf.len() };
        let len = rand::rng().random_range(1..=most);
        match stream.read(&mut buf[..len]).await.expect("a clean end") {
            0 => return all,
            count => all.extend_from_slice(&buf[..count]),
        }
    }
}

#[tokio::test]
async fn bytes_cross_both_ways_through_a_network_that_chops_them_and_each_way_ends_alone() {
    let (up, down, late) = (some_bytes(400_000), some_bytes(300_001), b"after the client's end");
    for (suite, who) in SUITES.into_iter().flat_map(|suite| PAIRS.map(|who| (suite, who))) {
        let ((client, near), (far, server)) = (tcp().await, tcp().await);
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        let ends = async {
            let (client, server) = streams(who, &configs(suite), (client, server)).await;
            let (mut client_read, mut client_write) = tokio::io::split(client);
            let (mut server_read, mut server_write) = tokio::io::split(server);
            let client = async {
                write_in_pieces(&mut client_write, &up).await;
                client_write.shutdown().await.expect("the server reads");
            };
            let server = async {
                let (got, ()) = tokio::join!(read_all(&mut server_read), write_in_pieces(&mut server_write, &down));
                assert!(got == up, "{suite:?} {who:?}: up");
                write_in_pieces(&mut server_write, late).await;
                server_write.shutdown().await.expect("the client reads");
            };
            let (got, (), ()) = tokio::join!(read_all(&mut client_read), client, server);
            assert!(got == [&down[..], late].concat(), "{suite:?} {who:?}: down");
        };
        let network = async { tokio::join!(chop(near_read, far_write), chop(far_read, near_write)) };
        timeout(PATIENCE, async { tokio::join!(ends, network) }).await.expect("in time");
    }
}

#[tokio::test]
async fn a_slow_reader_makes_a_stream_hold_one_write_and_no_more() {
    let (mut client, mut server) = ours().await;
    let bytes = some_bytes(100_000);
    let (mut sent, mut writes) = (Vec::new(), 0);
    loop {
        // Pending must mean that the kernel takes no more, not that it is somebody else's turn.
        let written = poll_fn(|cx| Poll::Ready(Pin::new(&mut client).poll_write(cx, &bytes)));
        let written = unconstrained(written).await;
        let Poll::Ready(written) = written else { break };
        sent.extend_from_slice(&bytes[..written.expect("the server is there")]);
        writes += 1;
        assert!(client.heap() <= SCRATCH_SIZE, "{} bytes held", client.heap());
    }
    assert!(writes > 0 && client.heap() > 0, "the kernel took all of {writes} writes");
    let ending = poll_fn(|cx| Poll::Ready(Pin::new(&mut client).poll_shutdown(cx))).await;
    assert!(ending.is_pending());
    let after = poll_fn(|cx| Poll::Ready(Pin::new(&mut client).poll_write(cx, b"more"))).await;
    let refused = matches!(&after, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe);
    assert!(refused, "close_notify waits to be sent, nothing may follow it: {after:?}");
    let (got, ()) = tokio::join!(read_all(&mut server), async { client.shutdown().await.expect("the server reads") });
    assert!(got == sent);
}

#[tokio::test]
async fn a_reader_leaves_a_part_of_a_record_behind_and_a_small_one_a_record_more() {
    for (step, most) in [(1, 2 * LARGEST_RECORD), (1000, 2 * LARGEST_RECORD), (65_536, LARGEST_RECORD)] {
        let (mut client, mut server) = ours().await;
        let bytes = some_bytes(500_000);
        let send = async {
            client.write_all(&bytes).await.expect("the server reads");
            client.shutdown().await.expect("the server reads");
        };
        let receive = async {
            let (mut all, mut buf) = (Vec::new(), vec![0; step]);
            loop {
                let count = server.read(&mut buf).await.expect("a clean end");
                assert!(server.heap() <= most, "{} bytes held", server.heap());
                all.extend_from_slice(&buf[..count]);
                if count == 0 {
                    return all;
                }
            }
        };
        let ((), got) = tokio::join!(send, receive);
        assert!(got == bytes);
    }
}

#[tokio::test]
async fn an_idle_stream_holds_no_buffer() {
    let (mut client, mut server) = ours().await;
    let bytes = some_bytes(1_000_000);
    for step in [7, 70_000] {
        let mut got = vec![0; bytes.len()];
        let (_, ()) = tokio::join!(write_in_pieces(&mut client, &bytes), async {
            for part in got.chunks_mut(step) {
                server.read_exact(part).await.expect("enough");
            }
        });
        assert!(got == bytes);
        server.write_all(b"answer").await.expect("written");
        client.read_exact(&mut got[..6]).await.expect("read");
        let pending = poll_fn(|cx| Poll::Ready(Pin::new(&mut client).poll_read(cx, &mut ReadBuf::new(&mut got)))).await;
        assert!(pending.is_pending());
        assert_eq!((client.heap(), server.heap()), (0, 0));
    }
    assert!(size_of::<RecordStream>() <= 352, "{} bytes", size_of::<RecordStream>());
}

#[tokio::test]
async fn the_end_of_tcp_without_close_notify_is_truncation() {
    let (mut stream, mut tcp, mut tls) = with_rustls().await;
    io::Write::write_all(&mut tls.writer(), b"some").expect("room");
    let mut wire = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut wire).expect("a Vec takes it");
    }
    tcp.write_all(&wire).await.expect("sent");
    tcp.shutdown().await.expect("ended");
    let mut buf = [0; 10];
    assert_eq!(stream.read(&mut buf).await.expect("data"), 4);
    for _ in 0..2 {
        let error = stream.read(&mut buf).await.expect_err("no close_notify");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
    }
    stream.write_all(b"the other way goes on").await.expect("sent");
}

#[tokio::test]
async fn each_side_sends_a_flight_and_then_the_rest_with_its_first_words() {
    let (configs, (client, server)) = (configs(SUITES[0]), tcp().await);
    let client = async {
        let (mut stream, _) = records::connect(configs.client, server_name(), client).await.expect("shaken");
        stream.write_all(b"question").await.expect("sent");
        stream
    };
    let server = async {
        let (mut stream, _) = accept(configs.server, server).await.expect("shaken");
        stream.write_all(b"answer").await.expect("sent");
        stream
    };
    let (mut client, mut server) = tokio::join!(client, server);
    let (mut question, mut answer) = ([0; 8], [0; 6]);
    server.read_exact(&mut question).await.expect("read");
    client.read_exact(&mut answer).await.expect("read");
    assert_eq!((&question, &answer), (b"question", b"answer"));
    let segments = [&client, &server].map(|stream| getsockopt(stream.tcp(), Info).expect("open").tcpi_data_segs_out);
    assert_eq!(segments, [2, 2]);
}

#[tokio::test]
async fn a_client_that_only_listens_ends_its_handshake_too() {
    let (configs, (client, server)) = (configs(SUITES[0]), tcp().await);
    let client = async {
        let (mut stream, _) = records::connect(configs.client, server_name(), client).await.expect("shaken");
        let mut greeting = [0; 8];
        stream.read_exact(&mut greeting).await.expect("read");
        greeting
    };
    let server = async {
        let (mut stream, _) = accept(configs.server, server).await.expect("shaken");
        stream.write_all(b"greeting").await.expect("sent");
        stream
    };
    let (greeting, _server) = timeout(PATIENCE, async { tokio::join!(client, server) }).await.expect("nobody hangs");
    assert_eq!(&greeting, b"greeting");
}

#[tokio::test]
async fn the_end_of_tcp_during_the_handshake_is_an_error() {
    let (mut client, server) = tcp().await;
    client.write_all(&[22, 3, 1, 0, 200, 1]).await.expect("sent");
    drop(client);
    let error = accept(configs(SUITES[0]).server, server).await.expect_err("half a hello");
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
}

#[tokio::test]
async fn the_peer_is_told_what_was_wrong_and_nothing_more_is_sent() {
    let (mut stream, mut tcp, mut tls) = with_rustls().await;
    tcp.write_all(&[23, 3, 3, 0, 30].into_iter().chain([7; 30]).collect::<Vec<u8>>()).await.expect("sent");
    let mut buf = [0; 10];
    for _ in 0..2 {
        let error = stream.read(&mut buf).await.expect_err("no such key");
        assert_eq!(error.downcast::<rustls::Error>().expect("rustls'"), rustls::Error::DecryptError);
    }
    let error = stream.write(b"more").await.expect_err("the connection is over");
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    stream.shutdown().await.expect("TCP ends");
    let mut wire = Vec::new();
    tcp.read_to_end(&mut wire).await.expect("an end");
    tls.read_tls(&mut &wire[..]).expect("a slice gives it");
    let heard = tls.process_new_packets().expect_err("an alert");
    assert_eq!(heard, rustls::Error::AlertReceived(AlertDescription::BadRecordMac));
    assert_eq!(wire.len(), 2 + 22, "the alert alone");
}

#[tokio::test]
async fn after_the_end_of_its_direction_a_stream_takes_no_data_and_still_reads() {
    let (mut client, mut server) = ours().await;
    client.shutdown().await.expect("ended");
    client.shutdown().await.expect("again");
    let error = client.write(b"more").await.expect_err("ended");
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    server.write_all(b"late").await.expect("sent");
    let mut buf = [0; 10];
    assert_eq!(client.read(&mut buf).await.expect("data"), 4);
    assert_eq!(server.read(&mut buf).await.expect("the end"), 0);
    assert_eq!(server.read(&mut buf).await.expect("still"), 0);
}

fn tls_error(error: io::Error) -> rustls::Error {
    error.downcast().expect("an error of rustls")
}

#[tokio::test]
async fn a_client_refused_after_its_handshake_reads_why() {
    #[derive(Debug)]
    struct NoCertificate;
    impl ResolvesClientCert for NoCertificate {
        fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
            None
        }
        fn has_certs(&self) -> bool {
            false
        }
    }
    let [a, b] = mesh();
    let mut config = ClientConfig::clone(&a.mesh_client(b.name(), Arc::default()));
    config.client_auth_cert_resolver = Arc::new(NoCertificate);
    let (client, server) = tcp().await;
    let name = hauberk_identity::server_name(b.name());
    let (client, server) = tokio::join!(connect(config.into(), name, client), accept(b.mesh_server(), server));
    assert_eq!(tls_error(server.expect_err("no certificate")), rustls::Error::NoCertificatesPresented);
    let error = client.expect("it has finished").0.read(&mut [0; 10]).await.expect_err("refused");
    assert_eq!(tls_error(error), rustls::Error::AlertReceived(AlertDescription::CertificateRequired));
}

#[tokio::test]
async fn a_server_refused_in_the_handshake_is_told_why() {
    let ([a, _], [_, stranger]) = (mesh(), mesh());
    let (client, server) = tcp().await;
    let name = hauberk_identity::server_name(stranger.name());
    let config = a.mesh_client(stranger.name(), Arc::default());
    let (client, server) = tokio::join!(connect(config, name, client), accept(stranger.mesh_server(), server));
    let error = tls_error(client.expect_err("another CA"));
    assert!(matches!(error, rustls::Error::InvalidCertificate(_)), "{error}");
    let error = tls_error(server.expect_err("refused"));
    assert!(matches!(error, rustls::Error::AlertReceived(_)), "{error}");
}

/// Two identities of one CA.
fn mesh() -> [Credentials; 2] {
    let ca = Ca::in_memory(Lifetimes::default()).expect("a CA");

    ["a", "b"].map(|account| {
        let name = TrustDomain::default().identity(account, "default").expect("a name");
        ca.credentials(&name, 1, SystemTime::now()).expect("credentials")
    })
}

#[tokio::test]
async fn mesh_peers_prove_themselves_in_full_and_resumed_handshakes() {
    let [a, b] = mesh();
    let sessions = Arc::new(EndpointSessions::default());
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
        let (client, server) = tcp().await;
        let config = a.mesh_client(b.name(), sessions.clone());
        let name = hauberk_identity::server_name(b.name());
        let (client, server) = tokio::join!(connect(config, name, client), accept(b.mesh_server(), server));
        let ((mut client, to_b), (mut server, to_a)) = (client.expect("shaken"), server.expect("shaken"));
        let now = SystemTime::now();
        assert_eq!(a.check_peer(to_b.peer.as_deref(), Some(b.name()), now).expect("b").name, *b.name());
        assert_eq!(b.check_peer(to_a.peer.as_deref(), None, now).expect("a").name, *a.name());
        assert_eq!(to_a.agreed.details(), to_b.agreed.details());
        assert_eq!(to_a.agreed.handshake, expected);
        assert_eq!(to_a.agreed.details().protocol, "hauberk/1");
        assert_eq!(to_a.agreed.details().cipher, "TLS13_AES_128_GCM_SHA256");
        assert_eq!(to_a.agreed.details().group, "X25519MLKEM768");
        // Tickets come before the data.
        server.write_all(b"x").await.expect("sent");
        client.read_exact(&mut [0]).await.expect("read");
    }
}
