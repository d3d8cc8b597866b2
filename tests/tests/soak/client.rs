//! Clients and servers by the thousand: one thread and one runtime for each pod.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use hauberk_lab::Pod;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::{Builder, Runtime},
    sync::oneshot,
    task::JoinSet,
    time,
};

/// Longer than anything that works takes, on a machine that does other things too.
const LIMIT: Duration = Duration::from_secs(30);
const WORDS: &[u8] = b"thirty-two bytes of conversation";

pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("threads and descriptors are free")
}

/// An echo in a pod. Dropped, it ends.
pub(crate) struct Echo {
    _stop: oneshot::Sender<()>,
}

impl Echo {
    pub(crate) fn start(pod: &Pod, port: u16) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, listening) = std::sync::mpsc::channel();
        let (pod, addr) = (pod.clone(), pod.at(port));
        std::thread::spawn(move || {
            pod.enter(|| {
                runtime().block_on(async {
                    let socket = TcpSocket::new_v4().expect("a descriptor");
                    socket.set_reuseaddr(true).expect("an option");
                    socket.bind(addr).expect("the port is free");
                    let listener = socket.listen(4096).expect("it listens");
                    ready.send(()).expect("the test waits");
                    tokio::select! {
                        () = accept(listener) => {}
                        _ = stopped => {}
                    }
                });
            });
        });
        listening.recv().expect("it listens");
        Self { _stop: stop }
    }
}

async fn accept(listener: TcpListener) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = open.join_next() => {}
            accepted = listener.accept() => {
                let (mut stream, _) = accepted.expect("descriptors are free");
                open.spawn(async move {
                    let mut buf = [0; 64];
                    while let Ok(count @ 1..) = stream.read(&mut buf).await {
                        if stream.write_all(&buf[..count]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }
    }
}

/// Connects from `from`, an address of the pod that the calling thread is in.
pub(crate) async fn connect(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    let stream = time::timeout(LIMIT, socket.connect(to)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Says something and gets it back.
pub(crate) async fn echo(stream: &mut TcpStream) -> io::Result<()> {
    let mut back = [0; WORDS.len()];
    stream.write_all(WORDS).await?;
    time::timeout(LIMIT, stream.read_exact(&mut back)).await??;
    if back == WORDS { Ok(()) } else { Err(io::Error::other("other bytes came back")) }
}

/// One connection from its beginning to a clean end.
async fn visit(from: IpAddr, to: SocketAddr) -> io::Result<()> {
    let mut stream = connect(from, to).await?;
    echo(&mut stream).await?;
    stream.shutdown().await?;
    match time::timeout(LIMIT, stream.read(&mut [0; 1])).await?? {
        0 => Ok(()),
        _ => Err(io::Error::other("more than was said came back")),
    }
}

/// What came of many connections.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) served: usize,
    pub(crate) failed: Vec<String>,
    pub(crate) took: Duration,
    pub(crate) slowest: Duration,
}

impl Outcome {
    fn add(&mut self, (result, after): (io::Result<()>, Duration)) {
        self.slowest = self.slowest.max(after);
        match result {
            Ok(()) => self.served += 1,
            Err(error) => self.failed.push(format!("{error} after {after:?}")),
        }
    }

    /// Fails if any connection did.
    pub(crate) fn check(&self, what: &str) {
        let some: Vec<_> = self.failed.iter().take(5).collect();
        assert!(self.failed.is_empty(), "{what}: {} of {} failed: {some:?}", self.failed.len(), self.served);
    }

    /// For the report.
    pub(crate) fn numbers(&self) -> String {
        let rate = self.served as f64 / self.took.as_secs_f64();
        let slowest = self.slowest.as_millis();
        format!(
            "{} new connections, {rate:.0} a second, {} failed, the slowest took {slowest} ms",
            self.served,
            self.failed.len()
        )
    }
}

/// `rate` new connections a second from each of these addresses of `pod` in turn, until `until` says that it is enough.
pub(crate) fn at_rate(
    pod: &Pod,
    from: &[IpAddr],
    to: SocketAddr,
    rate: usize,
    until: impl Fn() -> bool + Send + Sync,
) -> Outcome {
    const TICK: Duration = Duration::from_millis(10);
    /// Open at once: where the machine does not keep up, the rate falls, and descriptors do not run out.
    const AT_ONCE: usize = 1000;
    pod.enter(|| {
        runtime().block_on(async {
            let (begin, mut outcome, mut visits) = (Instant::now(), Outcome::default(), JoinSet::new());
            let mut ticks = time::interval(TICK);
            let mut started = 0;
            while !until() {
                ticks.tick().await;
                let due = (begin.elapsed().as_secs_f64() * rate as f64) as usize;
                let due = due.min(started + AT_ONCE.saturating_sub(visits.len()));
                for number in started..due {
                    let from = from[number % from.len()];
                    visits.spawn(async move {
                        let begin = Instant::now();
                        (visit(from, to).await, begin.elapsed())
                    });
                }
                started = due.max(started);
                while let Some(done) = visits.try_join_next() {
                    outcome.add(done.expect("no panic"));
                }
            }
            while let Some(done) = visits.join_next().await {
                outcome.add(done.expect("no panic"));
            }
            outcome.took = begin.elapsed();
            outcome
        })
    })
}

/// Long connections that talk all the time. How many words each has exchanged without a failure.
pub(crate) struct Streams {
    stop: Arc<AtomicBool>,
    broken: Arc<AtomicUsize>,
    thread: JoinHandle<usize>,
}

impl Streams {
    /// Opens `count` from `pod`; returns once all have talked.
    pub(crate) fn open(pod: &Pod, to: SocketAddr, count: usize) -> Self {
        let (stop, broken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (ready, opened) = std::sync::mpsc::channel();
        let (inner, pod) = ((stop.clone(), broken.clone()), pod.clone());
        let thread = std::thread::spawn(move || {
            let (stop, broken) = inner;
            pod.enter(|| {
                runtime().block_on(async {
                    let mut talking = JoinSet::new();
                    for _ in 0..count {
                        let mut stream = connect(pod.ip(), to).await.expect("the proxy accepts");
                        echo(&mut stream).await.expect("it is served");
                        let (stop, broken) = (stop.clone(), broken.clone());
                        talking.spawn(async move {
                            let mut words = 0;
                            while !stop.load(Relaxed) {
                                if echo(&mut stream).await.is_err() {
                                    broken.fetch_add(1, Relaxed);
                                    break;
                                }
                                words += 1;
                                time::sleep(Duration::from_millis(100)).await;
                            }
                            words
                        });
                    }
                    ready.send(()).expect("the test waits");
                    talking.join_all().await.into_iter().sum()
                })
            })
        });
        opened.recv().expect("all are open");
        Self { stop, broken, thread }
    }

    /// Ends them; the words that were exchanged, and how many streams broke.
    pub(crate) fn end(self) -> (usize, usize) {
        self.stop.store(true, Relaxed);
        let words = self.thread.join().expect("no panic");
        (words, self.broken.load(Relaxed))
    }
}
