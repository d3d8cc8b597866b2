//! `Trust.Watch`: whoever verified us may follow the trust bundle, and says which generation it has adopted.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{Stream, stream};
use hauberk_api::trust::{
    Bundle, WatchRequest,
    trust_server::{Trust, TrustServer},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use super::{Ca, Metrics, ca::State};
use crate::{
    TrustBundle,
    grpc::{ConnectInfo, Sources, Taken},
};

/// One for each pod of a large cluster; each holds some 10 KB.
const MOST_STREAMS: usize = 8192;
const STREAMS_PER_SOURCE: usize = 16;
const LARGEST_REQUEST: usize = 1024;

/// The service.
#[derive(Debug)]
pub struct TrustWatch {
    ca: Arc<Ca>,
    sources: Sources,
    adopted: Adopted,
    stop: CancellationToken,
}

impl TrustWatch {
    /// Streams the bundles of `ca` until `stop`.
    pub fn new(ca: Arc<Ca>, metrics: Metrics, stop: CancellationToken) -> Self {
        let adopted = Adopted { streams: Arc::default(), next: Arc::default(), metrics };
        Self { ca, sources: Sources::new(MOST_STREAMS, STREAMS_PER_SOURCE), adopted, stop }
    }

    /// The service as tonic routes to it.
    pub fn into_server(self) -> TrustServer<Self> {
        TrustServer::new(self).max_decoding_message_size(LARGEST_REQUEST)
    }
}

#[tonic::async_trait]
impl Trust for TrustWatch {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<Bundle, Status>> + Send>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let info = request.extensions().get::<ConnectInfo>();
        let remote = info.ok_or_else(|| Status::internal("the connection is not known"))?.remote;
        let full = || Status::resource_exhausted("too many streams, from this address or in all: close some");
        let place = self.sources.take(remote.ip()).ok_or_else(full)?;
        let mut bundles = self.ca.changes();
        bundles.mark_changed();
        let follower = Follower {
            bundles,
            said: Some(request.into_inner()),
            adopted: self.adopted.enter(),
            stop: self.stop.clone(),
            _place: place,
        };
        let stream = stream::unfold(follower, |mut follower| async move {
            follower.next().await.map(|bundle| (Ok(bundle), follower))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

/// One stream.
struct Follower {
    bundles: watch::Receiver<Arc<State>>,
    /// What the caller says; none once it has said all it will.
    said: Option<Streaming<WatchRequest>>,
    adopted: Entry,
    stop: CancellationToken,
    _place: Taken,
}

impl Follower {
    /// The next bundle; a slow reader gets the latest. Ends when we stop or the caller breaks off.
    async fn next(&mut self) -> Option<Bundle> {
        loop {
            let said = async {
                match &mut self.said {
                    Some(said) => said.message().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => return None,
                said = said => match said {
                    Ok(Some(request)) => self.adopted.set(request.adopted_generation),
                    Ok(None) => self.said = None,
                    Err(error) => {
                        debug!(%error, "a stream of trust bundles broke off");
                        return None;
                    }
                },
                changed = self.bundles.changed() => {
                    changed.ok()?;
                    return Some(message(&self.bundles.borrow_and_update().bundle));
                }
            }
        }
    }
}

fn message(bundle: &TrustBundle) -> Bundle {
    Bundle { generation: bundle.generation(), roots: bundle.roots().iter().map(|root| root.to_vec()).collect() }
}

/// Which generation each stream's caller has adopted. As large as there are streams.
#[derive(Debug, Clone)]
struct Adopted {
    streams: Arc<Mutex<HashMap<u64, u64>>>,
    next: Arc<AtomicU64>,
    metrics: Metrics,
}

/// One stream's; gone with it.
#[derive(Debug)]
struct Entry {
    all: Adopted,
    id: u64,
}

impl Adopted {
    fn enter(&self) -> Entry {
        let entry = Entry { all: self.clone(), id: self.next.fetch_add(1, Ordering::Relaxed) };
        entry.set(0);
        entry
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<u64, u64>)) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut streams);
        self.metrics.followers(streams.len(), streams.values().min().copied());
    }
}

impl Entry {
    fn set(&self, generation: u64) {
        self.all.change(|streams| _ = streams.insert(self.id, generation));
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.all.change(|streams| _ = streams.remove(&self.id));
    }
}
