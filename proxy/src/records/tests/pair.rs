//! Two ends of a connection in memory, each ours or rustls', and the bytes between them.

use std::{
    io::{IoSlice, Read as _, Write as _},
    sync::{Arc, LazyLock},
};

use proptest::prelude::*;
use rustls::{
    AlertDescription, CipherSuite, ClientConfig, ClientConnection, Connection, Error, RootCertStore, ServerConfig,
    ServerConnection,
    client::UnbufferedClientConnection,
    crypto::aws_lc_rs::{self, ALL_CIPHER_SUITES, Ticketer},
    pki_types::{PrivatePkcs8KeyDer, ServerName},
    server::UnbufferedServerConnection,
    version::TLS13,
};
use tokio::io::ReadBuf;

use crate::records::{
    Negotiated, RecordError,
    handshake::{Handshake, Need, Side},
    inbox::Inbox,
    keys::Gather,
    session::{LARGEST_WRITE, Request, Session},
};

pub(super) const SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
];

pub(super) fn any_suite() -> impl Strategy<Value = CipherSuite> {
    proptest::sample::select(&SUITES[..])
}

#[derive(Clone)]
pub(super) struct Configs {
    pub(super) client: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
}

pub(super) fn server_name() -> ServerName<'static> {
    ServerName::try_from("server.test").expect("a name")
}

/// Only `suite`; nothing shared with other tests but the certificate.
pub(super) fn configs(suite: CipherSuite) -> Configs {
    static CERTIFIED: LazyLock<rcgen::CertifiedKey<rcgen::KeyPair>> =
        LazyLock::new(|| rcgen::generate_simple_self_signed(["server.test".to_owned()]).expect("a certificate"));
    let provider = Arc::new(rustls::crypto::CryptoProvider {
        cipher_suites: ALL_CIPHER_SUITES.iter().filter(|known| known.suite() == suite).copied().collect(),
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    });
    let mut roots = RootCertStore::empty();
    roots.add(CERTIFIED.cert.der().clone()).expect("a root");
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .expect("a provider of TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let key = PrivatePkcs8KeyDer::from(CERTIFIED.signing_key.serialize_der());
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("a provider of TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![CERTIFIED.cert.der().clone()], key.into())
        .expect("a key and its certificate");
    server.ticketer = Ticketer::new().expect("a ticketer");
    (client.enable_secret_extraction, server.enable_secret_extraction) = (true, true);
    Configs { client: client.into(), server: server.into() }
}

/// Who is at which end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Who {
    Ours,
    Rustls,
}

/// All pairs in which ours takes part.
pub(super) const PAIRS: [(Who, Who); 3] = [(Who::Ours, Who::Ours), (Who::Ours, Who::Rustls), (Who::Rustls, Who::Ours)];

/// Our end, without I/O.
pub(super) struct Ours {
    pub(super) session: Session,
    pub(super) inbox: Inbox,
    pub(super) negotiated: Negotiated,
}

pub(super) enum End {
    Ours(Box<Ours>),
    Rustls(Box<Connection>),
}

/// What came of received bytes.
#[derive(Debug)]
pub(super) struct Got {
    pub(super) data: Vec<u8>,
    pub(super) result: Result<Ended, RecordError>,
}

pub(super) type Ended = bool;

impl Ours {
    pub(super) fn seal(&mut self, slices: &[IoSlice<'_>]) -> Vec<u8> {
        let (mut wire, mut content) = (Vec::new(), Gather::new(slices));
        while content.left() > 0 {
            let mut out = vec![0; LARGEST_WRITE];
            let sealed = self.session.seal(&mut content, &mut out).expect("keys are not used up");
            wire.extend_from_slice(&out[..sealed]);
        }
        wire
    }

    /// Receives `wire`, reading with a buffer of `room`.
    pub(super) fn receive(&mut self, wire: &[u8], room: usize) -> Got {
        let mut data = Vec::new();
        let bytes = [self.inbox.partial(), wire].concat();
        let mut space = vec![0xee; room];
        let mut buf = ReadBuf::new(&mut space);
        let mut answer = self.inbox.receive(&mut self.session, &bytes, &mut buf);
        loop {
            let filled = buf.filled();
            data.extend_from_slice(filled);
            match answer {
                Ok(true) if filled.is_empty() => return Got { data, result: Ok(true) },
                Ok(false) => return Got { data, result: Ok(false) },
                Err(error) => {
                    assert!(filled.is_empty(), "whoever gets an error looks at no bytes");
                    return Got { data, result: Err(error) };
                }
                Ok(true) => {}
            }
            buf = ReadBuf::new(&mut space);
            answer = self.inbox.deliver(&mut self.session, &mut buf);
        }
    }
}

impl End {
    pub(super) fn seal(&mut self, data: &[u8]) -> Vec<u8> {
        match self {
            Self::Ours(ours) => ours.seal(&[IoSlice::new(data)]),
            Self::Rustls(tls) => {
                tls.set_buffer_limit(None);
                tls.writer().write_all(data).expect("no limit");
                written(tls)
            }
        }
    }

    /// New keys before the next data.
    pub(super) fn update_keys(&mut self, request: Request) {
        match self {
            Self::Ours(ours) => ours.session.update_keys(request),
            Self::Rustls(tls) => tls.refresh_traffic_keys().expect("TLS 1.3"),
        }
    }

    pub(super) fn close(&mut self) -> Vec<u8> {
        match self {
            Self::Ours(ours) => {
                let mut wire = Vec::new();
                ours.session.seal_alert(AlertDescription::CloseNotify, &mut wire).expect("keys are not used up");
                wire
            }
            Self::Rustls(tls) => {
                tls.send_close_notify();
                written(tls)
            }
        }
    }

    pub(super) fn receive(&mut self, wire: &[u8], room: usize) -> Got {
        match self {
            Self::Ours(ours) => ours.receive(wire, room),
            Self::Rustls(tls) => rustls_receive(tls, wire),
        }
    }

    pub(super) fn into_ours(self) -> Ours {
        match self {
            Self::Ours(ours) => *ours,
            Self::Rustls(_) => panic!("rustls' end"),
        }
    }

    pub(super) fn ours(&mut self) -> &mut Ours {
        match self {
            Self::Ours(ours) => ours,
            Self::Rustls(_) => panic!("rustls' end"),
        }
    }
}

pub(super) fn written(tls: &mut Connection) -> Vec<u8> {
    let mut wire = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut wire).expect("a Vec takes it");
    }
    wire
}

fn rustls_receive(tls: &mut Connection, mut wire: &[u8]) -> Got {
    let (mut data, mut ended) = (Vec::new(), false);
    while !wire.is_empty() {
        tls.read_tls(&mut wire).expect("a slice gives it");
        match tls.process_new_packets() {
            Ok(state) => ended = state.peer_has_closed(),
            Err(error) => {
                let _ = tls.reader().read_to_end(&mut data);
                return Got { data, result: Err(error.into()) };
            }
        }
        // What it holds, or `WouldBlock`.
        let _ = tls.reader().read_to_end(&mut data);
        if ended {
            break;
        }
    }
    Got { data, result: Ok(ended) }
}

/// Either side of a handshake.
enum Shaking {
    Client(Handshake<UnbufferedClientConnection>),
    Server(Handshake<UnbufferedServerConnection>),
    Rustls(Box<Connection>),
}

impl Shaking {
    /// Takes what has come and gives what is to be sent.
    fn turn(&mut self, mut wire: &[u8]) -> Result<Vec<u8>, Error> {
        match self {
            Self::Client(client) => turn(client, wire),
            Self::Server(server) => turn(server, wire),
            Self::Rustls(tls) => {
                while !wire.is_empty() {
                    tls.read_tls(&mut wire).expect("a slice gives it");
                    tls.process_new_packets()?;
                }
                Ok(written(tls))
            }
        }
    }

    fn finish(self) -> End {
        match self {
            Self::Client(client) => finish(client),
            Self::Server(server) => finish(server),
            Self::Rustls(tls) => End::Rustls(tls),
        }
    }
}

pub(super) fn turn<S: Side>(handshake: &mut Handshake<S>, wire: &[u8]) -> Result<Vec<u8>, Error> {
    handshake.received.extend_from_slice(wire);
    let mut out = Vec::new();
    loop {
        match handshake.advance() {
            Ok(Need::Send) => out.append(&mut handshake.outgoing),
            Ok(Need::Receive) => return Ok(out),
            Ok(Need::Nothing) => {
                out.append(&mut handshake.outgoing);
                return Ok(out);
            }
            Err(RecordError::Tls(error)) => return Err(error),
            Err(error) => panic!("no error of the handshake: {error}"),
        }
    }
}

fn finish<S: Side>(handshake: Handshake<S>) -> End {
    let (session, negotiated, received) = handshake.finish().expect("the handshake is over");
    End::Ours(Box::new(Ours { session, inbox: Inbox::new(received), negotiated }))
}

/// A connection after its handshake, tickets taken.
pub(super) fn connected(who: (Who, Who), configs: &Configs) -> (End, End) {
    let mut client = match who.0 {
        Who::Ours => Shaking::Client(Handshake::client(&configs.client, server_name()).expect("a client")),
        Who::Rustls => {
            let client = ClientConnection::new(configs.client.clone(), server_name());
            Shaking::Rustls(Box::new(client.expect("a client").into()))
        }
    };
    let mut server = match who.1 {
        Who::Ours => Shaking::Server(Handshake::server(&configs.server).expect("a server")),
        Who::Rustls => {
            let server = ServerConnection::new(configs.server.clone());
            Shaking::Rustls(Box::new(server.expect("a server").into()))
        }
    };
    let mut wire = client.turn(&[]).expect("a hello");
    while !wire.is_empty() {
        let answer = server.turn(&wire).expect("the client is in order");
        wire = client.turn(&answer).expect("the server is in order");
    }
    let (mut client, server) = (client.finish(), server.finish());
    let tickets = client.receive(&[], 1);
    assert!(matches!(tickets.result, Ok(false)) && tickets.data.is_empty(), "{tickets:?}");
    (client, server)
}
