//! Hand-written peers of a proxy: TLS with a certificate of the lab's CA, and on it bytes that no proxy of ours would
//! send. Frames are written and read here as `docs/wire.md` has them, not with the code under test.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::Arc,
    time::SystemTime,
};

use hauberk_identity::{
    Credentials, EndpointSessions,
    server::{Ca, Lifetimes},
    server_name,
};
use hauberk_lab::{Lab, Pod};
use hauberk_mesh::{IdentityName, MESH_PORT, TrustDomain};
use rustls::{ClientConnection, Connection, ServerConnection};

use crate::{
    common::dial,
    streams::{Port, reset},
};

pub(crate) const OPEN: u8 = 1;
pub(crate) const OPENED: u8 = 2;
pub(crate) const FAILED: u8 = 3;
pub(crate) const DATA: u8 = 4;
pub(crate) const END: u8 = 5;
pub(crate) const RESET: u8 = 6;

/// Our protocols, as TLS names them.
pub(crate) const HAUBERK: &str = "hauberk/1";
pub(crate) const LINKERD: &str = "transport.l5d.io/v1";

/// A frame: what it is, and its payload.
pub(crate) type Frame = (u8, Vec<u8>);

/// A TLS connection in the test's hand.
pub(crate) struct Tls {
    tls: Connection,
    tcp: TcpStream,
}

/// A certificate for the account of `pod`, from the lab's CA.
fn credentials(lab: &Lab, pod: &Pod) -> Credentials {
    lab_ca(lab, Lifetimes::default()).credentials(&identity_of(pod), 1, SystemTime::now()).expect("a valid name")
}

/// The lab's CA, with other lifetimes for what it signs.
pub(crate) fn lab_ca(lab: &Lab, lifetimes: Lifetimes) -> Ca {
    Ca::open_or_create(&lab.identity_dir(), lifetimes).expect("the control plane made it")
}

/// Whom the certificate of `pod` names.
pub(crate) fn identity_of(pod: &Pod) -> IdentityName {
    TrustDomain::default().identity(pod.account(), pod.namespace()).expect("a valid name")
}

/// Connects from `from`, as `from`, to the mesh port of `to`.
pub(crate) fn connect(lab: &Lab, from: &Pod, to: &Pod, alpn: &str) -> Tls {
    connect_as(&credentials(lab, from), from, to, alpn)
}

/// The same with a certificate of the test's choice.
pub(crate) fn connect_as(credentials: &Credentials, from: &Pod, to: &Pod, alpn: &str) -> Tls {
    let peer = identity_of(to);
    let config = credentials.mesh_client(&peer, Arc::new(EndpointSessions::default()));
    let mut config = (*config).clone();
    config.alpn_protocols = vec![alpn.into()];
    let tls = ClientConnection::new(Arc::new(config), server_name(&peer)).expect("a valid configuration");
    let tcp = dial(from, to.at(MESH_PORT)).expect("the mesh port accepts");
    Tls::handshake(tls.into(), tcp)
}

/// The mesh port of a meshed pod that has no proxy: the test is the proxy.
pub(crate) struct MeshPort {
    port: Port,
    config: Arc<rustls::ServerConfig>,
}

impl MeshPort {
    /// Listens in `pod`, as `pod`.
    pub(crate) fn listen(lab: &Lab, pod: &Pod, alpn: &str) -> Self {
        Self::listen_as(&credentials(lab, pod), pod, alpn)
    }

    /// The same with a certificate of the test's choice.
    pub(crate) fn listen_as(credentials: &Credentials, pod: &Pod, alpn: &str) -> Self {
        let mut config = (*credentials.mesh_server()).clone();
        config.alpn_protocols = vec![alpn.into()];
        Self { port: Port::listen(pod, MESH_PORT), config: Arc::new(config) }
    }

    /// The next mesh connection.
    pub(crate) fn accept(&self) -> Tls {
        let tls = ServerConnection::new(self.config.clone()).expect("a valid configuration");
        Tls::handshake(tls.into(), self.port.accept())
    }

    /// Accepts a connection that does not get through its handshake.
    pub(crate) fn accept_in_vain(&self) {
        let mut tls = ServerConnection::new(self.config.clone()).expect("a valid configuration");
        let mut tcp = self.port.accept();
        while tls.is_handshaking() {
            if tls.complete_io(&mut tcp).is_err() {
                return;
            }
        }
        panic!("the client is content with this certificate");
    }

    /// Whether no connection has come that was not accepted yet.
    pub(crate) fn is_quiet(&self) -> bool {
        self.port.is_quiet()
    }
}

impl Tls {
    fn handshake(mut tls: Connection, mut tcp: TcpStream) -> Self {
        while tls.is_handshaking() {
            tls.complete_io(&mut tcp).expect("the peer shakes hands");
        }
        Self { tls, tcp }
    }

    /// Sends a frame.
    pub(crate) fn send(&mut self, kind: u8, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let frame = [&[kind], &length[1..], payload].concat();
        self.write_all(&frame).expect("the peer is there");
    }

    /// Asks for a stream to `port`.
    pub(crate) fn open(&mut self, port: u16) {
        let [high, low] = port.to_be_bytes();
        self.send(OPEN, &[high, low, 0]);
    }

    /// The next frame; `Err` where the connection ends instead.
    pub(crate) fn frame(&mut self) -> io::Result<Frame> {
        let mut head = [0; 4];
        self.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[1], head[2], head[3]]);
        let mut payload = vec![0; length as usize];
        self.read_exact(&mut payload)?;
        Ok((head[0], payload))
    }

    /// The next frame, which must be of that kind; its payload.
    pub(crate) fn expect(&mut self, kind: u8) -> Vec<u8> {
        let (found, payload) = self.frame().expect("a frame comes");
        assert_eq!(found, kind, "{payload:?}");
        payload
    }

    /// DATA frames until they make `count` bytes.
    pub(crate) fn expect_data(&mut self, count: usize) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < count {
            data.extend(self.expect(DATA));
        }
        data
    }

    /// The port that the next frame, an OPEN, asks for.
    pub(crate) fn expect_open(&mut self) -> u16 {
        let payload = self.expect(OPEN);
        assert_eq!((payload.len(), payload[2]), (3, 0));
        u16::from_be_bytes([payload[0], payload[1]])
    }

    /// Waits until the peer has sent something, without reading it.
    pub(crate) fn await_bytes(&self) {
        let count = self.tcp.peek(&mut [0]).expect("bytes come");
        assert_eq!(count, 1, "bytes and not the end");
    }

    /// The peer's address.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.tcp.peer_addr().expect("connected")
    }

    /// Ends our direction in order: close_notify.
    pub(crate) fn close_notify(&mut self) {
        self.tls.send_close_notify();
        self.flush().expect("the peer is there");
    }

    /// Ends our direction without close_notify.
    pub(crate) fn fin(&self) {
        self.tcp.shutdown(Shutdown::Write).expect("open");
    }

    /// Breaks the connection: TCP reset.
    pub(crate) fn reset(self) {
        reset(self.tcp);
    }
}

impl Read for Tls {
    /// `Ok(0)` only after close_notify; a bare FIN is `UnexpectedEof`.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.tls.read_tls(&mut self.tcp)?;
                    self.tls.process_new_packets().map_err(io::Error::other)?;
                }
                done => return done,
            }
        }
    }
}

impl Write for Tls {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let taken = self.tls.writer().write(buf)?;
        self.flush()?;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.tcp)?;
        }
        Ok(())
    }
}
