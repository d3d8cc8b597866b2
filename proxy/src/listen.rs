//! Accept loops: one for each listener, with a permit before each connection and an owner for each task.

use std::{fs::File, io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::{inbound, mesh_port, metrics::Metrics, outbound, places::Handshakes, proxy::Proxy, socket};

/// After an error of accept: descriptors may have run out, and others need time to give some back.
const PAUSE: Duration = Duration::from_millis(50);
/// One address may hold this share of the handshakes under way: twice what a proxy of ours ever has, whose own end of a
/// handshake comes before ours.
const SHARE: usize = 4;

/// What serves a connection once its other side is there.
pub(crate) type Rest<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Outbound,
    Inbound,
    Mesh,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Mesh => "mesh",
        }
    }
}

/// Accepts until `stop`, then waits for the open connections to end; the caller ends them by dropping this.
pub(crate) async fn serve(proxy: Arc<Proxy>, listener: TcpListener, role: Role, stop: CancellationToken) {
    let limits = &proxy.spec.limits;
    let most = match role {
        Role::Outbound => limits.outbound,
        Role::Inbound => limits.inbound,
        Role::Mesh => limits.handshakes,
    };
    let metrics = proxy.metrics.clone();
    if role == Role::Mesh {
        let places = Handshakes::new(most, (most / SHARE).max(1));
        let take = |addr: SocketAddr| places.take(addr.ip());
        let serve = |tcp, addr, place| mesh_port::serve(proxy.clone(), tcp, addr, place);
        return accept_each(&metrics, listener, role, take, stop, serve).await;
    }
    let places = Arc::new(Semaphore::new(most));
    let take = |_| places.clone().try_acquire_owned().ok();
    let serve = |tcp, addr, place| redirected(proxy.clone(), role, tcp, addr, place);
    accept_each(&metrics, listener, role, take, stop, serve).await;
}

/// Serves one redirected connection, in `place`. What it takes to get to the other side is large, and gone before the rest
/// begins: each has a box of its own.
#[expect(clippy::manual_async_fn, reason = "an async fn would hold its arguments twice")]
fn redirected(
    proxy: Arc<Proxy>,
    role: Role,
    tcp: TcpStream,
    addr: SocketAddr,
    place: OwnedSemaphorePermit,
) -> impl Future<Output = ()> + Send {
    async move {
        let _place = &place;
        let rest = match role {
            Role::Inbound => Box::pin(inbound::accept(&proxy, tcp, addr)).await,
            _ => Box::pin(outbound::accept(&proxy, tcp, addr)).await,
        };
        if let Some(rest) = rest {
            rest.await;
        }
    }
}

/// The loop itself. Each connection gets a task of `connection`, and one that panics ends alone.
async fn accept_each<P, F: Future<Output = ()> + Send + 'static>(
    metrics: &Metrics,
    listener: TcpListener,
    role: Role,
    place: impl Fn(SocketAddr) -> Option<P>,
    stop: CancellationToken,
    connection: impl Fn(TcpStream, SocketAddr, P) -> F,
) {
    let mut open = JoinSet::new();
    let mut spare = Spare::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = open.join_next() => { note(metrics, ended); continue }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, addr)) => match place(addr) {
                Some(place) => {
                    if role != Role::Outbound {
                        socket::spread_probes(&tcp);
                    }
                    open.spawn(connection(tcp, addr, place));
                }
                None => refuse(metrics, role, &tcp),
            },
            Err(error) => failed(metrics, role, &listener, &mut spare, &error).await,
        }
    }
    drop(listener);
    while let Some(ended) = open.join_next().await {
        note(metrics, ended);
    }
}

fn refuse(metrics: &Metrics, role: Role, tcp: &TcpStream) {
    metrics.limit_reached(role.name());
    socket::arm_reset(tcp);
}

/// Where descriptors have run out, the connection is reset: left in the kernel's queue, it would wait for nobody knows
/// how long.
async fn failed(metrics: &Metrics, role: Role, listener: &TcpListener, spare: &mut Spare, error: &io::Error) {
    if socket::out_of_descriptors(error) && spare.is_there() {
        // None: the kernel looks for a descriptor first, and nobody had come.
        if let Some(tcp) = spare.lend(listener) {
            metrics.accept_error(role.name());
            refuse(metrics, role, &tcp);
        }
        return spare.refill();
    }
    metrics.accept_error(role.name());
    // The peer left before it was accepted: the next one may be fine.
    if error.kind() != io::ErrorKind::ConnectionAborted {
        warn!(listener = role.name(), %error, "cannot accept");
        tokio::time::sleep(PAUSE).await;
        spare.refill();
    }
}

/// A descriptor that is held back, to take and reset a connection with when there is no other. To be refilled before
/// anybody else can run.
struct Spare(Option<File>);

impl Spare {
    fn new() -> Self {
        Self(File::open("/dev/null").ok())
    }

    fn is_there(&self) -> bool {
        self.0.is_some()
    }

    fn lend(&mut self, listener: &TcpListener) -> Option<TcpStream> {
        self.0 = None;
        listener.accept().now_or_never()?.ok().map(|(tcp, _)| tcp)
    }

    fn refill(&mut self) {
        if self.0.is_none() {
            *self = Self::new();
        }
    }
}

fn note(metrics: &Metrics, ended: Result<(), JoinError>) {
    if let Err(failed) = ended
        && failed.is_panic()
    {
        metrics.panics.inc();
        error!(%failed, "a connection's task panicked");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use hauberk_mesh::{CloseCause, ClosedBy, Direction, Limits, Reason};
    use prometheus_client::registry::Registry;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::{
        connections::{self, Settled, Tracked},
        leg::ByteLeg,
        places::Place,
        relay::{Observer, Prelude, relay},
    };

    const POISON: &[u8] = b"poison";

    /// Panics where it sees the poison, as a fault in the proxy would.
    struct Faulty(Tracked);

    impl Observer for Faulty {
        fn to_server(&mut self, bytes: &[u8]) {
            assert!(bytes != POISON, "a fault");
            self.0.to_server(bytes);
        }
        fn to_client(&mut self, bytes: &[u8]) {
            self.0.to_client(bytes);
        }
    }

    async fn local() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("loopback");
        let addr = listener.local_addr().expect("bound");
        (listener, addr)
    }

    async fn dial(addr: SocketAddr, words: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(addr).await.expect("it accepts");
        stream.write_all(words).await.expect("open");
        stream
    }

    async fn echoed(stream: &mut TcpStream, words: &[u8]) {
        let mut got = vec![0; words.len()];
        stream.read_exact(&mut got).await.expect("it comes back");
        assert_eq!(got, words);
    }

    /// Every application here: gives back what comes, and says how the connection ended.
    async fn application(listener: TcpListener, broken: Arc<AtomicUsize>) {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a descriptor");
            let broken = broken.clone();
            tokio::task::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                if tokio::io::copy(&mut reader, &mut writer).await.is_err() {
                    broken.fetch_add(1, Relaxed);
                }
            });
        }
    }

    fn size_of_mesh<F: Future>(_: impl FnOnce(Arc<Proxy>, TcpStream, SocketAddr, Place) -> F) -> usize {
        size_of::<F>()
    }

    fn size_of_redirected<F: Future>(
        _: impl FnOnce(Arc<Proxy>, Role, TcpStream, SocketAddr, OwnedSemaphorePermit) -> F,
    ) -> usize {
        size_of::<F>()
    }

    /// Every open connection holds one of these to its end, and a box for the phase that it is in.
    #[test]
    fn what_serves_a_connection_is_small() {
        let sizes = [size_of_mesh(mesh_port::serve), size_of_redirected(redirected)];
        assert!(sizes.iter().all(|size| *size <= 192), "mesh, redirected: {sizes:?} bytes");
    }

    #[tokio::test]
    async fn a_panic_ends_its_own_connection_with_resets_and_is_counted() {
        let metrics = Arc::new(Metrics::register(&mut Registry::default(), &Limits::default()));
        let records = connections::Registry::new(metrics.table.clone(), 10);
        let (listener, addr) = local().await;
        let (app, target) = local().await;
        let (stop, broken) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        tasks.spawn(application(app, broken.clone()));
        let (counting, tracking, until) = (metrics.clone(), records.clone(), stop.clone());
        tasks.spawn(async move {
            accept_each(
                &counting,
                listener,
                Role::Outbound,
                |_| Some(()),
                until,
                |tcp, from, ()| {
                    let mut record = tracking.track(Direction::Outbound, from, target);
                    async move {
                        let server = TcpStream::connect(target).await.expect("it accepts");
                        // As every connection of an application is, until both directions have ended.
                        [&tcp, &server].into_iter().for_each(socket::arm_reset);
                        record.settle(Settled { how: Err(Reason::Exception), peer: None, local: None, endpoint: None });
                        let mut faulty = Faulty(record);
                        let (mut client, mut server) = (ByteLeg::new(tcp), ByteLeg::new(server));
                        let ended = relay(&mut client, &mut server, &mut faulty, Prelude::default()).await;
                        faulty.0.relayed(&ended);
                    }
                },
            )
            .await;
        });

        let mut bystander = dial(addr, b"before").await;
        echoed(&mut bystander, b"before").await;
        let mut victim = dial(addr, b"innocent").await;
        echoed(&mut victim, b"innocent").await;
        victim.write_all(POISON).await.expect("open");
        let end = victim.read_u8().await.expect_err("nothing comes back");
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset, "never an end of file");
        bystander.write_all(b"after").await.expect("open");
        echoed(&mut bystander, b"after").await;
        echoed(&mut dial(addr, b"a new one").await, b"a new one").await;

        let closed = records.document(None).closed;
        let cut = closed.iter().filter_map(|record| record.close.as_ref()).map(|close| (close.cause, close.by));
        assert_eq!(
            cut.filter(|(cause, _)| *cause == CloseCause::Panic).collect::<Vec<_>>(),
            [(CloseCause::Panic, ClosedBy::Proxy)]
        );
        assert_eq!((metrics.panics.get(), broken.load(Relaxed)), (1, 1), "counted; and a reset to the application");
        drop(bystander);
        stop.cancel();
    }
}
