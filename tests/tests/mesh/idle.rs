//! A real client's proxy between its application and a hand-written server's proxy, both in the test's hand: what
//! becomes of a mesh connection after a stream.

use std::net::{Shutdown, SocketAddr, TcpStream};

use hauberk_lab::{Lab, Pod, wait_for};
use hauberk_mesh::{CloseCause, Connection, HandshakeKind};

use crate::{
    common::{LIMIT, dial},
    peers::{DATA, END, HAUBERK, MeshPort, OPENED, Tls},
    streams::{End, cause, handshake, lab_with, last_outbound, meshed, pass, rest},
};

/// One request to an echo; by what handshake its mesh connection came about.
pub(crate) fn request(client: &Pod, to: SocketAddr) -> HandshakeKind {
    let mut stream = dial(client, to).expect("the proxy accepts");
    pass(&stream, &stream, b"a request");
    stream.shutdown(Shutdown::Write).expect("open");
    assert_eq!(rest(&mut stream), (vec![], End::Clean));
    let record = last_outbound(client, to);
    assert_eq!(cause(&record), CloseCause::Clean);
    handshake(&record)
}

/// A real client's proxy, and a hand-written server's.
pub(crate) struct Scene {
    pub(crate) client: Pod,
    pub(crate) mesh: MeshPort,
    server: Pod,
    _lab: Lab,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let pods = [meshed("client"), meshed("server")];
        let (lab, [client, server]) = lab_with(pods, [], |pod| pod.name() == "client");
        let mesh = MeshPort::listen(&lab, &server, HAUBERK);
        Self { _lab: lab, client, server, mesh }
    }

    pub(crate) fn dial(&self) -> TcpStream {
        dial(&self.client, self.server.at(7000)).expect("the proxy accepts")
    }

    /// Serves the stream that comes next on `peer`, to a clean end; the peer ends first.
    pub(crate) fn serve(&self, peer: &mut Tls, app: &mut TcpStream) {
        assert_eq!(peer.expect_open(), 7000);
        peer.send(OPENED, &[]);
        peer.send(DATA, b"served");
        peer.send(END, &[]);
        assert_eq!(rest(app), (b"served".to_vec(), End::Clean));
        app.shutdown(Shutdown::Write).expect("open");
        peer.expect(END);
        self.closed();
    }

    /// Waits for the last connection's record, and how it ended: by then its mesh connection is kept, or not.
    pub(crate) fn closed(&self) -> CloseCause {
        cause(&self.record())
    }

    /// The record of the last connection, once it has closed.
    pub(crate) fn record(&self) -> Connection {
        last_outbound(&self.client, self.server.at(7000))
    }

    /// A mesh connection that has served one stream and is idle.
    pub(crate) fn idle(&self) -> Tls {
        let mut app = self.dial();
        let mut peer = self.mesh.accept();
        self.serve(&mut peer, &mut app);
        peer
    }

    /// Waits until what was sent to the idle connection of `peer` is in the socket of the client's proxy.
    pub(crate) fn await_arrival(&self, peer: &Tls) {
        let from = peer.peer();
        wait_for("the proxy's socket is no longer open and empty", LIMIT, || {
            let table = self.client.enter(|| std::fs::read_to_string("/proc/thread-self/net/tcp"))?;
            Ok(if is_open_and_empty(&table, from.port()) { Err(table) } else { Ok(()) })
        })
        .expect("it arrives");
    }

    /// Closes an idle connection, so that the client's proxy knows.
    pub(crate) fn end_idle(&self, mut peer: Tls) {
        peer.close_notify();
        peer.fin();
        self.await_arrival(&peer);
    }
}

/// `sl local_address rem_address st tx_queue:rx_queue …`, hexadecimal.
fn is_open_and_empty(table: &str, local_port: u16) -> bool {
    const ESTABLISHED: &str = "01";
    let local = format!(":{local_port:04X}");
    table.lines().skip(1).any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[1].ends_with(&local) && fields[3] == ESTABLISHED && fields[4].ends_with(":00000000")
    })
}
