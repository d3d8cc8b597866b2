//! The watches: list, then follow, again and again. Objects become rows as they arrive.

use std::{
    fmt::Debug,
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream, stream::BoxStream};
use hauberk_mesh::TrustDomain;
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt as _,
        utils::Backoff,
        watcher::{self, Config, watcher},
    },
};
use serde::de::DeserializeOwned;

use super::{prune, relist::Event, world::Seen};

/// Objects in one page of a list: pods of 20 KB make 5 MB.
const PAGE: u32 = 250;
/// After a failure, doubled with each one that follows.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What came of one watch.
pub(super) type Result = std::result::Result<Seen, (&'static str, watcher::Error)>;

/// All that the watches say, for ever. Lists are read page by page and are never older than the question: a streamed
/// list of the version that the client asks for may come from a cache that lags, and bring pods back that have ended.
pub(super) fn everything(client: &Client, domain: &TrustDomain) -> impl Stream<Item = Result> + Send + use<> {
    let domain = domain.clone();
    let pods = kind("pods", Api::all(client.clone()), Seen::Pod, move |it: &Pod| prune::pod(it, &domain));
    let services = kind("services", Api::all(client.clone()), Seen::Service, prune::service as fn(&Service) -> _);
    let slices = kind("endpointslices", Api::all(client.clone()), Seen::Slice, |it: &EndpointSlice| prune::slice(it));
    let nodes = kind("nodes", Api::all(client.clone()), Seen::Node, |it: &Node| Some(prune::node(it)));
    let namespaces =
        kind("namespaces", Api::all(client.clone()), Seen::Namespace, |it: &Namespace| Some(prune::namespace(it)));
    stream::select_all([pods, services, slices, nodes, namespaces])
}

fn kind<K, R: 'static>(
    what: &'static str,
    api: Api<K>,
    seen: fn(Event<R>) -> Seen,
    row: impl Fn(&K) -> Option<R> + Send + 'static,
) -> BoxStream<'static, Result>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let event = move |event: watcher::Event<K>| match event {
        watcher::Event::Init => Event::Begin,
        watcher::Event::InitApply(object) => Event::Listed(prune::name(object.meta()), row(&object)),
        watcher::Event::InitDone => Event::Done,
        watcher::Event::Apply(object) => Event::Set(prune::name(object.meta()), row(&object)),
        watcher::Event::Delete(object) => Event::Set(prune::name(object.meta()), None),
    };
    let events = watcher(api, Config::default().page_size(PAGE)).backoff(Pauses::default());
    events.map(move |came| came.map(|came| seen(event(came))).map_err(|error| (what, error))).boxed()
}

/// Pauses between attempts, bounded, and not the same for all replicas.
#[derive(Debug)]
struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST_PAUSE);
        // Each RandomState is another: 0 to 255 parts of 1024.
        let part = u32::from(RandomState::new().hash_one(0).to_be_bytes()[0]);
        Some(pause - pause * part / 1024)
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        *self = Self::default();
    }
}
