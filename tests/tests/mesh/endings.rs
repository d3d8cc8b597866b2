//! D10: how a connection ends at one application is how it ends at the other, in both directions; whatever else ends
//! the mesh's part of it is a reset, never an end of file.

use std::{
    io::Write,
    net::{Shutdown, TcpStream},
    thread,
};

use hauberk_lab::{Lab, Pod, PodOptions};
use hauberk_mesh::{CloseCause, ClosedBy, Connection, Direction};

use crate::{
    common::{dial, pair},
    peers::{DATA, END, HAUBERK, MeshPort, OPENED, RESET, Tls, connect},
    scene::PORT,
    streams::{End, Port, cause, fill, inbound, lab_of, lab_with, meshed, only, pass, pattern, reset, rest, take},
};

/// Enough to fill every buffer on the way several times.
const LARGE: usize = 20_000_000;

/// Who does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Actor {
    Client,
    Server,
}

const ACTORS: [Actor; 2] = [Actor::Client, Actor::Server];

impl Actor {
    /// The actor's end, and the other.
    fn of<T>(self, client: T, server: T) -> (T, T) {
        match self {
            Self::Client => (client, server),
            Self::Server => (server, client),
        }
    }

    fn party(self) -> ClosedBy {
        match self {
            Self::Client => ClosedBy::Client,
            Self::Server => ClosedBy::Server,
        }
    }
}

/// How both proxies say that the connection to `port` ended.
fn records(client: &Pod, server: &Pod, port: &Port) -> [Connection; 2] {
    [only(client, Direction::Outbound, port.addr()), only(server, Direction::Inbound, port.addr())]
}

fn check_close(records: &[Connection], cause: CloseCause, by: ClosedBy, what: &str) {
    for record in records {
        let close = record.close.as_ref().expect("closed");
        assert_eq!((close.cause, close.by), (cause, by), "{what}: {record:#?}");
    }
}

#[test]
fn a_reset_reaches_the_other_application_though_that_reads_nothing() {
    for actor in ACTORS {
        let (_lab, client, server) = pair();
        let port = Port::listen(&server, PORT);
        let (at_client, at_server) = port.connection(&client);
        pass(&at_client, &at_server, b"awake");
        let (from, mut to) = actor.of(at_client, at_server);
        // Neither proxy reads from it any more: nobody would take what it says.
        fill(&from);
        reset(from);
        check_close(&records(&client, &server, &port), CloseCause::Reset, actor.party(), &format!("{actor:?}"));
        let (_, end) = rest(&mut to);
        assert_eq!(end, End::Reset, "{actor:?}");
    }
}

#[test]
fn a_half_closed_connection_goes_on_in_the_other_direction() {
    let (_lab, client, server) = pair();
    let large = pattern(LARGE);
    for (actor, number) in ACTORS.into_iter().zip(7000..) {
        let port = Port::listen(&server, number);
        let (at_client, at_server) = port.connection(&client);
        let (mut halved, mut other) = actor.of(at_client, at_server);
        pass(&halved, &other, b"a request");
        halved.shutdown(Shutdown::Write).expect("open");
        assert_eq!(rest(&mut other), (vec![], End::Clean), "{actor:?}: the end arrives");
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                other.write_all(&large).expect("the other direction is open");
                other.shutdown(Shutdown::Write).expect("open");
            });
            let (got, end) = rest(&mut halved);
            assert!(got == large, "{actor:?}: {} bytes of {LARGE}", got.len());
            assert_eq!(end, End::Clean);
            sending.join().expect("sent");
        });
        let records = records(&client, &server, &port);
        check_close(&records, CloseCause::Clean, actor.party(), "who ended first");
        let bytes = actor.of(9, LARGE as u64);
        for record in records {
            assert_eq!((record.bytes_to_server, record.bytes_to_client), bytes, "{actor:?}");
        }
    }
}

#[test]
fn a_direction_that_was_never_used_ends_by_itself() {
    let (_lab, client, server) = pair();
    for (actor, number) in ACTORS.into_iter().zip(7000..) {
        let port = Port::listen(&server, number);
        let (at_client, at_server) = port.connection(&client);
        let (halved, mut other) = actor.of(at_client, at_server);
        halved.shutdown(Shutdown::Write).expect("open");
        assert_eq!(rest(&mut other), (vec![], End::Clean));
        pass(&other, &halved, b"goes on");
        drop(other);
        assert_eq!(rest(&mut &halved), (vec![], End::Clean));
        check_close(&records(&client, &server, &port), CloseCause::Clean, actor.party(), "a half-close");
    }
}

#[test]
fn a_reset_of_one_application_reaches_the_other_as_a_reset() {
    let (_lab, client, server) = pair();
    for (actor, number) in ACTORS.into_iter().zip(7000..) {
        let port = Port::listen(&server, number);
        let (at_client, at_server) = port.connection(&client);
        let (breaking, mut other) = actor.of(at_client, at_server);
        pass(&breaking, &other, b"to and");
        pass(&other, &breaking, b"fro");
        reset(breaking);
        assert_eq!(rest(&mut other), (vec![], End::Reset), "{actor:?}");
        check_close(&records(&client, &server, &port), CloseCause::Reset, actor.party(), "a reset");
    }
}

#[test]
fn a_reset_reaches_the_other_application_while_it_sends() {
    let (_lab, client, server) = pair();
    for (actor, number) in ACTORS.into_iter().zip(7000..) {
        let port = Port::listen(&server, number);
        let (at_client, at_server) = port.connection(&client);
        let (breaking, mut other) = actor.of(at_client, at_server);
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                loop {
                    if let Err(error) = other.write_all(&[7; 65_536]) {
                        return error.kind();
                    }
                }
            });
            take(&mut &breaking, 1_000_000);
            // Bytes are unread: a plain close is a reset too.
            drop(breaking);
            let error = sending.join().expect("no panic");
            assert!(is_broken(error), "{actor:?}: {error:?}");
        });
        check_close(&records(&client, &server, &port), CloseCause::Reset, actor.party(), "a reset");
    }
}

fn is_broken(error: std::io::ErrorKind) -> bool {
    matches!(error, std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe)
}

#[test]
fn a_reset_after_a_half_close_reaches_the_other_application_as_a_reset() {
    let (_lab, client, server) = pair();
    for (actor, number) in ACTORS.into_iter().zip(7000..) {
        let port = Port::listen(&server, number);
        let (at_client, at_server) = port.connection(&client);
        let (breaking, other) = actor.of(at_client, at_server);
        breaking.shutdown(Shutdown::Write).expect("open");
        assert_eq!(rest(&mut &other), (vec![], End::Clean), "{actor:?}: the half-close arrives");
        reset(breaking);
        await_broken(&other);
        check_close(&records(&client, &server, &port), CloseCause::Reset, actor.party(), "a reset");
    }
}

/// Waits, without sending anything, until the kernel says that the connection is broken.
fn await_broken(stream: &TcpStream) {
    hauberk_lab::wait_for("the connection is broken", crate::common::LIMIT, || {
        Ok(match stream.take_error()? {
            Some(error) if is_broken(error.kind()) => Ok(()),
            other => Err(format!("{other:?}")),
        })
    })
    .expect("the reset arrives");
}

#[test]
fn a_peers_proxy_that_is_killed_leaves_a_reset_never_an_end() {
    for victim in ACTORS {
        let (_lab, client, server) = pair();
        let port = Port::listen(&server, 7000);
        let (at_client, at_server) = port.connection(&client);
        // The application beside the proxy that dies, and the one that must not take that for an end.
        let (mut beside, mut other) = victim.of(at_client, at_server);
        let mut sent = pattern(1_000_000);
        thread::scope(|scope| {
            scope.spawn(|| beside.write_all(&sent).expect("open"));
            assert!(take(&mut other, 1_000_000) == sent);
        });
        sent.clear();
        let (dies, lives) = victim.of(&client, &server);
        dies.kill_proxy().expect("it runs");
        assert_eq!(rest(&mut other), (vec![], End::Reset), "the {victim:?}'s proxy");
        let record = match victim {
            Actor::Client => inbound(lives, port.addr()),
            Actor::Server => only(lives, Direction::Outbound, port.addr()),
        };
        let close = record.close.expect("closed");
        assert!([CloseCause::Truncated, CloseCause::Reset].contains(&close.cause), "{close:?}");
        assert_eq!(close.by, victim.party());
    }
}

/// A hand-written peer at one end of a stream, an application behind a real proxy at the other.
struct Half {
    _lab: Lab,
    proxied: Pod,
    port: Port,
    mesh: Option<MeshPort>,
    rogue: Pod,
}

impl Half {
    /// `actor` is the hand-written one.
    fn new(actor: Actor) -> Self {
        let (client, server): (PodOptions, PodOptions) = (meshed("client"), meshed("server"));
        match actor {
            Actor::Client => {
                let (lab, [rogue, proxied]) = lab_of([client.unmeshed(), server]);
                let port = Port::listen(&proxied, 7000);
                Self { _lab: lab, proxied, port, mesh: None, rogue }
            }
            Actor::Server => {
                let (lab, [proxied, rogue]) = lab_with([client, server], [], |pod| pod.name() == "client");
                let mesh = Some(MeshPort::listen(&lab, &rogue, HAUBERK));
                // Nobody comes to it: the mesh port is where the proxy goes.
                let port = Port::listen(&rogue, 7000);
                Self { _lab: lab, proxied, port, mesh, rogue }
            }
        }
    }

    /// An open stream: the peer's end, and the application's.
    fn stream(&self) -> (Tls, TcpStream) {
        let (mut peer, app) = match &self.mesh {
            None => {
                let mut peer = connect(&self._lab, &self.rogue, &self.proxied, HAUBERK);
                peer.open(7000);
                peer.expect(OPENED);
                (peer, self.port.accept())
            }
            Some(mesh) => {
                let app = dial(&self.proxied, self.port.addr()).expect("the proxy accepts");
                let mut peer = mesh.accept();
                assert_eq!(peer.expect_open(), 7000);
                peer.send(OPENED, &[]);
                (peer, app)
            }
        };
        peer.send(DATA, b"half of");
        assert_eq!(take(&mut &app, 7), b"half of");
        (peer, app)
    }

    /// The record of the stream that closed last.
    fn record(&self, count: usize) -> Connection {
        self.proxied
            .wait_connections("the stream closes", |all| {
                (all.closed.len() == count && all.live.is_empty()).then(|| all.closed.last().cloned()).flatten()
            })
            .expect("one record for each stream")
    }
}

/// What had ended in order before.
#[derive(Debug, Clone, Copy)]
enum SoFar {
    Open,
    AppEnded,
    PeerEnded,
}

const SO_FAR: [SoFar; 3] = [SoFar::Open, SoFar::AppEnded, SoFar::PeerEnded];

/// How a hand-written peer ends what has no END.
type Ending = (&'static str, fn(Tls) -> Option<Tls>, CloseCause);

const ENDINGS: [Ending; 5] = [
    (
        "FIN without close_notify",
        |peer| {
            peer.fin();
            Some(peer)
        },
        CloseCause::Truncated,
    ),
    (
        "close_notify",
        |mut peer| {
            peer.close_notify();
            Some(peer)
        },
        CloseCause::Truncated,
    ),
    (
        "close_notify and FIN",
        |mut peer| {
            peer.close_notify();
            peer.fin();
            Some(peer)
        },
        CloseCause::Truncated,
    ),
    (
        "RESET",
        |mut peer| {
            peer.send(RESET, &[]);
            Some(peer)
        },
        CloseCause::Reset,
    ),
    (
        "TCP reset",
        |peer| {
            peer.reset();
            None
        },
        CloseCause::Reset,
    ),
];

#[test]
fn whatever_ends_a_mesh_connection_without_the_streams_end_is_a_reset() {
    for actor in ACTORS {
        let half = Half::new(actor);
        let mut streams = 0;
        for (what, end, cause_of) in ENDINGS {
            for so_far in SO_FAR {
                let (mut peer, mut app) = half.stream();
                match so_far {
                    SoFar::Open => {}
                    SoFar::AppEnded => {
                        app.shutdown(Shutdown::Write).expect("open");
                        peer.expect(END);
                    }
                    SoFar::PeerEnded => {
                        peer.send(END, &[]);
                        assert_eq!(rest(&mut app), (vec![], End::Clean));
                    }
                }
                // Held until the record is there, so that nothing else ends the connection.
                let _held = end(peer);
                match so_far {
                    SoFar::PeerEnded => await_broken(&app),
                    _ => assert_eq!(rest(&mut app), (vec![], End::Reset), "{what} by the {actor:?}, {so_far:?}"),
                }
                streams += 1;
                let record = half.record(streams);
                check_close(&[record], cause_of, actor.party(), what);
            }
        }
        assert_eq!(streams, 5 * 3);
    }
}

#[test]
fn an_end_and_a_reset_of_the_application_cross_as_such() {
    for actor in ACTORS {
        let half = Half::new(actor);
        let (mut peer, app) = half.stream();
        app.shutdown(Shutdown::Write).expect("open");
        assert_eq!(peer.frame().expect("a frame"), (END, vec![]), "an end of file is END, to the {actor:?}");
        peer.send(DATA, b"goes on");
        assert_eq!(take(&mut &app, 7), b"goes on");
        peer.send(END, &[]);
        assert_eq!(rest(&mut &app), (vec![], End::Clean), "and END is an end of file");
        assert_eq!(cause(&half.record(1)), CloseCause::Clean);

        // The client's proxy would use the connection again.
        drop(peer);
        let (mut peer, app) = half.stream();
        reset(app);
        assert_eq!(peer.frame().expect("a frame"), (RESET, vec![]), "a reset is RESET, to the {actor:?}");
        let after = peer.frame().expect_err("the connection goes with it");
        assert_ne!(after.kind(), std::io::ErrorKind::TimedOut);
        let (_, other) = actor.of(ClosedBy::Client, ClosedBy::Server);
        check_close(&[half.record(2)], CloseCause::Reset, other, "the application's reset");
    }
}
