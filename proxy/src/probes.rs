//! The probe listener: kubelet asks here for what the application's containers declared, because under redirection it
//! cannot ask them itself. Each probe is performed as kubelet would (`docs/probes.md`), and the answer is its outcome.
//!
//! Anybody may ask. Whoever does learns whether a probe succeeds, and no byte that the application said.

mod grpc;
mod http;
mod location;
mod perform;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use ::http::{Method, Request, Response, StatusCode, header::USER_AGENT};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use hauberk_identity::grpc::Sources;
use hauberk_mesh::Probe;
use http_body_util::Full;
use hyper::{body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinError, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::perform::{Asked, Outcome, perform};
use crate::metrics::{Metrics, PROBES};

/// Connections at once, and how many of them one address may have: kubelet has a few, and no stranger can hold them all.
const CONNECTIONS: usize = 128;
const PER_SOURCE: usize = 16;
/// For a request's header.
const HEADER: Duration = Duration::from_secs(3);
/// For a hook, which may take as long as kubelet waits: the grace period of the pod, or for ever.
const HOOK: Duration = Duration::from_secs(3600);
/// After an error of accept.
const PAUSE: Duration = Duration::from_millis(50);
/// Who kubelet says it is, if whoever asks does not say it.
const KUBELET: &str = "kube-probe/1";

/// A probe under way. Whoever asks for it meanwhile gets the same outcome, so that strangers cannot multiply what the
/// application is asked.
type Running = Shared<BoxFuture<'static, Outcome>>;

/// What was declared, and how it fares.
pub(crate) struct Probes {
    /// By path.
    declared: BTreeMap<String, Declared>,
    hooks: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

struct Declared {
    probe: Arc<Probe>,
    /// By the pod's address that was asked.
    running: Mutex<HashMap<IpAddr, WeakShared<BoxFuture<'static, Outcome>>>>,
    /// How it ended the last time.
    succeeds: Mutex<Option<bool>>,
}

impl Probes {
    pub(crate) fn new(probes: &[Probe], metrics: Arc<Metrics>) -> Self {
        let declared = probes.iter().map(|probe| {
            let running = Mutex::default();
            (probe.path(), Declared { probe: Arc::new(probe.clone()), running, succeeds: Mutex::default() })
        });
        Self { declared: declared.collect(), hooks: Arc::default(), metrics }
    }

    /// How many hooks are under way: the application's end waits for them.
    pub(crate) fn hooks(&self) -> usize {
        self.hooks.load(Relaxed)
    }

    /// Answers until `stop`.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let places = Sources::new(CONNECTIONS, PER_SOURCE);
        let mut open = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(ended) = open.join_next() => { note(ended); continue }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, from)) => match places.take(from.ip()) {
                    Some(place) => {
                        let shared = self.clone();
                        open.spawn(async move {
                            let _place = place;
                            shared.connection(tcp).await;
                        });
                    }
                    None => self.metrics.limit_reached(PROBES),
                },
                Err(error) => {
                    self.metrics.accept_error(PROBES);
                    warn!(%error, "cannot accept on the probe port");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn connection(&self, tcp: TcpStream) {
        let Ok(local) = tcp.local_addr() else { return };
        let service = service_fn(|request| self.answer(request, local.ip().to_canonical()));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER)
            .keep_alive(false)
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(tcp), service);
        // Whatever went wrong, the asker knows it.
        let _ = timeout(HOOK + 2 * HEADER, connection).await;
    }

    /// The answer for one request. An error ends the connection without one.
    async fn answer<B>(&self, request: Request<B>, own: IpAddr) -> Result<Response<Full<Bytes>>, NoAnswer> {
        if request.method() != Method::GET {
            return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "use GET\n".to_owned()));
        }
        let Some(declared) = self.declared.get(request.uri().path()) else {
            return Ok(plain(StatusCode::NOT_FOUND, self.not_found(request.uri().path())));
        };
        let agent = request.headers().get(USER_AGENT).and_then(|agent| agent.to_str().ok());
        let asked = Asked { own, agent: agent.filter(|agent| is_kubelet(agent)).unwrap_or(KUBELET).to_owned() };
        let _hook = declared.probe.kind.is_hook().then(|| Hook::begin(&self.hooks));
        let outcome = declared.run(asked).await;
        let Probe { container, kind, .. } = &*declared.probe;
        let succeeds = outcome.succeeds(*kind);
        self.metrics.probed(*kind, succeeds);
        if declared.changed(succeeds) {
            info!(container, %kind, outcome = %outcome, "a probe {}", if succeeds { "succeeds" } else { "fails" });
        }
        match outcome {
            Outcome::Done => Ok(plain(StatusCode::OK, "done\n".to_owned())),
            // No body: whatever the application said is for nobody.
            Outcome::Answered(status) => Ok(plain(status, String::new())),
            // To kubelet any answer is a hook that worked.
            Outcome::Failed(_) if kind.is_hook() => Err(NoAnswer),
            Outcome::Failed(why) => Ok(plain(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))),
        }
    }

    fn not_found(&self, path: &str) -> String {
        let paths: Vec<_> = self.declared.keys().map(String::as_str).collect();
        match paths.as_slice() {
            [] => format!("no probe is declared, also not {path:?}\n"),
            _ => format!("{path:?} is not declared; these are:\n{}\n", paths.join("\n")),
        }
    }
}

impl Declared {
    /// Joins the run that is under way, or begins one.
    fn run(&self, asked: Asked) -> Running {
        let mut running = lock(&self.running);
        let under_way = running.get(&asked.own).and_then(WeakShared::upgrade);
        if let Some(run) = under_way.filter(|run| run.peek().is_none()) {
            return run;
        }
        running.retain(|_, run| run.upgrade().is_some());
        let (own, probe) = (asked.own, self.probe.clone());
        let run = async move { perform(&probe, &asked, probe.timeout().unwrap_or(HOOK)).await }.boxed().shared();
        running.extend(run.downgrade().map(|run| (own, run)));
        run
    }

    fn changed(&self, succeeds: bool) -> bool {
        lock(&self.succeeds).replace(succeeds) != Some(succeeds)
    }
}

/// Counts a hook until it is dropped.
struct Hook(Arc<AtomicUsize>);

impl Hook {
    fn begin(hooks: &Arc<AtomicUsize>) -> Self {
        hooks.fetch_add(1, Relaxed);
        Self(hooks.clone())
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The connection ends without an answer, as that of an application which cannot be asked.
#[derive(Debug, thiserror::Error)]
#[error("the hook failed")]
struct NoAnswer;

/// Whether `agent` is a name that kubelet goes by; nothing else is passed on to the application.
fn is_kubelet(agent: &str) -> bool {
    let version = agent.strip_prefix("kube-probe/").or_else(|| agent.strip_prefix("kube-lifecycle/"));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".+-".contains(&byte);
    version.is_some_and(|version| version.len() <= 32 && version.bytes().all(plain))
}

fn plain(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
}

fn note(ended: Result<(), JoinError>) {
    if let Err(failed) = ended {
        error!(%failed, "a probe's task failed");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
