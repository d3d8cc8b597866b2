//! The gRPC services. Each stream is pulled: it looks at the hub only when its reader has taken what came before, so a
//! slow reader is told of the latest state and costs no memory meanwhile.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt as _, stream};
use hauberk_api::networks::{self, WatchRequest, networks_server::Networks};
use hauberk_identity::grpc::ConnectInfo;
use hauberk_mesh::TrustDomain;
use linkerd2_proxy_api::destination::{DestinationProfile, GetDestination, Update, destination_server::Destination};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    answer::Answer,
    hub::{Hub, Subscription},
    index::ClusterNetworks,
    messages::{profile, updates},
    metrics::{Call, Metrics, OpenStream, Refused},
    query::Query,
    slots::{Bounds, Slot, Slots},
};

/// `Destination` and `Networks`, over one hub. Clones are the same.
#[derive(Debug, Clone)]
pub struct Api(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    hub: Arc<Hub>,
    domain: TrustDomain,
    slots: Arc<Slots>,
    metrics: Metrics,
    stop: CancellationToken,
}

/// What one stream holds while it is open.
#[derive(Debug)]
struct Place(#[expect(dead_code, reason = "held for its drop")] (Slot, OpenStream));

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Api {
    /// Answers from `hub`, in the mesh of `domain`. Streams end when `stop` is cancelled.
    pub fn new(hub: Arc<Hub>, domain: TrustDomain, bounds: Bounds, metrics: Metrics, stop: CancellationToken) -> Self {
        Self(Arc::new(Shared { hub, domain, slots: Slots::new(bounds), metrics, stop }))
    }

    /// How many streams it serves.
    pub fn bounds(&self) -> Bounds {
        self.0.slots.bounds()
    }

    /// A place for one more stream of this caller, whose certificate was checked when it connected.
    fn place<T>(&self, request: &Request<T>, call: Call) -> Result<Place, Status> {
        let caller = request.extensions().get::<ConnectInfo>().filter(|info| info.peer.is_some());
        let caller = caller.ok_or_else(|| Status::unauthenticated("a certificate of this mesh is required"))?;
        let slot = self.0.slots.take(caller.remote).map_err(|error| {
            self.0.metrics.refused(Refused::TooMany);
            Status::resource_exhausted(error.to_string())
        })?;
        Ok(Place((slot, self.0.metrics.stream(call))))
    }

    fn query(&self, text: &str) -> Result<Query, Status> {
        Query::parse(text, &self.0.domain).map_err(|error| {
            self.0.metrics.refused(Refused::Invalid);
            Status::invalid_argument(error.to_string())
        })
    }

    /// Tells of the subject of `query` and of its changes, in the words of `tell`.
    fn follow<T: Send + 'static>(
        &self,
        query: Query,
        place: Place,
        mut tell: impl FnMut(&Answer) -> Vec<T> + Send + 'static,
    ) -> Messages<T> {
        let domain = self.0.domain.clone();
        let subscription = self.0.hub.subscribe(query.topic());
        let say = move |subscription: &mut Subscription| {
            let subject = subscription.current();
            tell(&Answer::of(subject.as_ref(), &query, &domain))
        };
        let batches =
            stream::unfold((subscription, say, place, true), async |(mut subscription, mut say, place, first)| {
                let mut messages = if first { say(&mut subscription) } else { Vec::new() };
                while messages.is_empty() {
                    subscription.changed().await;
                    messages = say(&mut subscription);
                }
                Some((messages, (subscription, say, place, false)))
            });
        self.until_stop(batches.flat_map(stream::iter))
    }

    fn until_stop<T: Send + 'static>(&self, messages: impl Stream<Item = T> + Send + 'static) -> Messages<T> {
        messages.map(Ok).take_until(self.0.stop.clone().cancelled_owned()).boxed()
    }
}

#[tonic::async_trait]
impl Destination for Api {
    type GetStream = Messages<Update>;
    type GetProfileStream = Messages<DestinationProfile>;

    async fn get(&self, request: Request<GetDestination>) -> Result<Response<Self::GetStream>, Status> {
        let place = self.place(&request, Call::Get)?;
        let query = self.query(&request.get_ref().path)?;
        let mut sent = None;
        let tell = move |answer: &Answer| {
            let messages = updates(sent.as_ref(), answer);
            sent = Some(answer.clone());
            messages
        };
        Ok(Response::new(self.follow(query, place, tell)))
    }

    async fn get_profile(&self, request: Request<GetDestination>) -> Result<Response<Self::GetProfileStream>, Status> {
        let place = self.place(&request, Call::GetProfile)?;
        let query = self.query(&request.get_ref().path)?;
        let mut sent = None;
        let tell = move |answer: &Answer| {
            let message = profile(answer);
            let changed = sent.as_ref() != Some(&message);
            sent = Some(message.clone());
            changed.then_some(message).into_iter().collect()
        };
        Ok(Response::new(self.follow(query, place, tell)))
    }
}

#[tonic::async_trait]
impl Networks for Api {
    type WatchStream = Messages<networks::ClusterNetworks>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let place = self.place(&request, Call::WatchNetworks)?;
        let mut watched = self.0.hub.networks();
        watched.mark_changed();
        let states = stream::unfold((watched, place), async |(mut watched, place)| {
            watched.changed().await.ok()?;
            let message = networks_message(&watched.borrow_and_update());
            Some((message, (watched, place)))
        });
        Ok(Response::new(self.until_stop(states)))
    }
}

fn networks_message(state: &ClusterNetworks) -> networks::ClusterNetworks {
    networks::ClusterNetworks {
        networks: state.networks.iter().map(ToString::to_string).collect(),
        outside: state.outside.iter().map(ToString::to_string).collect(),
    }
}
