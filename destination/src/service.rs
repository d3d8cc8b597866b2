//! The gRPC services. Each stream is pulled: it looks at the hub only when its reader has taken what came before, so a
//! slow reader is told of the latest state and costs no memory meanwhile.

use std::{net::IpAddr, pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt as _, stream};
use hauberk_api::networks::{self, WatchRequest, networks_server::Networks};
use hauberk_identity::grpc::ConnectInfo;
use hauberk_mesh::{IdentityName, TrustDomain};
use linkerd2_proxy_api::destination::{DestinationProfile, GetDestination, Update, destination_server::Destination};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    choice::Caller,
    hub::{Hub, Subscription},
    messages::profile,
    metrics::{Call, Metrics, OpenStream, Refused},
    query::Query,
    slots::{Bounds, Slot, Slots},
    subject::{ClusterNetworks, Mesh, Subject, Topic},
    told::Told,
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

/// What one stream listens to: its topic, and the pod that asks.
#[derive(Debug)]
struct Listening {
    topic: Subscription,
    caller: Subscription,
    remote: IpAddr,
    name: IdentityName,
    domain: TrustDomain,
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Listening {
    /// What this caller is told now.
    fn told(&mut self) -> Arc<Told> {
        let caller = self.caller.current();
        // Where it runs is what is known of the pod that has its address, if that is who the certificate names: not what
        // it says itself.
        let place = match caller.subject() {
            Some(Subject::Caller(pod)) => match &pod.mesh {
                Mesh::Proxy { identity: Ok(name), .. } if *name == self.name => pod.place.clone(),
                _ => None,
            },
            _ => None,
        };
        self.topic.current().told(&Caller { ip: Some(self.remote), place }, &self.domain)
    }

    async fn changed(&mut self) {
        tokio::select! {
            () = self.topic.changed() => {}
            () = self.caller.changed() => {}
        }
    }
}

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
    fn place<T>(&self, request: &Request<T>, call: Call) -> Result<(Place, IpAddr, IdentityName), Status> {
        let caller = request.extensions().get::<ConnectInfo>();
        let caller = caller.and_then(|info| Some((info.remote, info.peer.as_ref()?.name.clone())));
        let (remote, name) = caller.ok_or_else(|| Status::unauthenticated("a certificate of this mesh is required"))?;
        let slot = self.0.slots.take(remote).map_err(|error| {
            self.0.metrics.refused(Refused::TooMany);
            Status::resource_exhausted(error.to_string())
        })?;
        Ok((Place((slot, self.0.metrics.stream(call))), remote.ip().to_canonical(), name))
    }

    fn query(&self, text: &str) -> Result<Query, Status> {
        Query::parse(text, &self.0.domain).map_err(|error| {
            self.0.metrics.refused(Refused::Invalid);
            Status::invalid_argument(error.to_string())
        })
    }

    /// Answers the question of `request` now and whenever the answer changes, in the words of `tell`.
    fn follow<T: Send + 'static>(
        &self,
        request: &Request<GetDestination>,
        call: Call,
        mut tell: impl FnMut(Arc<Told>) -> Vec<T> + Send + 'static,
    ) -> Result<Response<Messages<T>>, Status> {
        let (place, remote, name) = self.place(request, call)?;
        let query = self.query(&request.get_ref().path)?;
        let (topic, caller) = (self.0.hub.subscribe(query.topic()), self.0.hub.subscribe(Topic::Caller(remote)));
        let listening = Listening { topic, caller, remote, name, domain: self.0.domain.clone() };
        let say = move |listening: &mut Listening| tell(listening.told());
        let batches = stream::unfold((listening, say, place, true), async |(mut listening, mut say, place, first)| {
            let mut messages = if first { say(&mut listening) } else { Vec::new() };
            while messages.is_empty() {
                listening.changed().await;
                messages = say(&mut listening);
            }
            Some((messages, (listening, say, place, false)))
        });
        Ok(Response::new(self.until_stop(batches.flat_map(stream::iter))))
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
        let mut sent = None;
        self.follow(&request, Call::Get, move |told| {
            let messages = told.since(sent.as_ref()).to_vec();
            sent = Some(told);
            messages
        })
    }

    async fn get_profile(&self, request: Request<GetDestination>) -> Result<Response<Self::GetProfileStream>, Status> {
        let mut sent = None;
        self.follow(&request, Call::GetProfile, move |told| {
            let message = profile(told.answer());
            let changed = sent.as_ref() != Some(&message);
            sent = Some(message.clone());
            changed.then_some(message).into_iter().collect()
        })
    }
}

#[tonic::async_trait]
impl Networks for Api {
    type WatchStream = Messages<networks::ClusterNetworks>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (place, ..) = self.place(&request, Call::WatchNetworks)?;
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

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::SystemTime};

    use super::*;
    use crate::{Index, testing::MESH};
    use hauberk_identity::Peer;
    use hauberk_mesh::MeshFile;
    use linkerd2_proxy_api::destination::{NoEndpoints, update::Update as Kind};
    use tonic::Code;

    fn index(yaml: &str) -> Index {
        Index::from_mesh(&MeshFile::parse(yaml).expect("a valid mesh"), &TrustDomain::default())
    }

    fn api(yaml: &str, bounds: Bounds) -> Api {
        let stop = CancellationToken::new();
        Api::new(Hub::new(index(yaml)), TrustDomain::default(), bounds, Metrics::default(), stop)
    }

    /// What a caller of connection `number` sends.
    fn from<T>(number: u16, message: T) -> Request<T> {
        let name = TrustDomain::default().identity("client", "shop").expect("valid");
        let peer = Some(Peer { name, not_after: SystemTime::now() });
        let mut request = Request::new(message);
        request.extensions_mut().insert(ConnectInfo { remote: SocketAddr::from(([127, 0, 0, 1], number)), peer });
        request
    }

    fn ask(path: &str) -> Request<GetDestination> {
        from(1, GetDestination { path: path.to_owned(), ..GetDestination::default() })
    }

    async fn get(api: &Api, path: &str) -> Messages<Update> {
        api.get(ask(path)).await.expect("a stream").into_inner()
    }

    async fn next<T>(stream: &mut Messages<T>) -> T {
        stream.next().await.expect("a message").expect("no fault")
    }

    /// One line for each update: `+` and `-` with the hosts' last number.
    async fn line(stream: &mut Messages<Update>) -> String {
        let host = |addr: Option<_>| SocketAddr::try_from(addr.expect("set")).expect("valid").to_string();
        let host = |addr| host(addr).trim_start_matches("10.1.0.").trim_end_matches(":8080").to_owned();
        match next(stream).await.update.expect("set") {
            Kind::Add(set) => {
                format!("+{}", set.addrs.into_iter().map(|it| host(it.addr)).collect::<Vec<_>>().join(","))
            }
            Kind::Remove(set) => {
                format!("-{}", set.addrs.into_iter().map(|it| host(Some(it))).collect::<Vec<_>>().join(","))
            }
            Kind::NoEndpoints(NoEndpoints { exists }) => format!("exists: {exists}"),
        }
    }

    #[tokio::test]
    async fn a_stream_says_what_is_and_then_what_differs() {
        let api = api(MESH, Bounds::default());
        let mut stream = get(&api, "10.2.0.10:80").await;
        assert_eq!(line(&mut stream).await, "+2,3");
        api.0.hub.publish(index(&MESH.replace("endpoints: [web-0, web-1]", "endpoints: [web-1, open]")));
        assert_eq!(line(&mut stream).await, "+4");
        assert_eq!(line(&mut stream).await, "-2");
        api.0.hub.publish(index(&MESH.replace("endpoints: [web-0, web-1]", "endpoints: []")));
        assert_eq!(line(&mut stream).await, "exists: true");
        api.0.hub.publish(index(&MESH.replace("10.2.0.10", "10.2.0.12")));
        assert_eq!(line(&mut stream).await, "exists: false");
        api.0.hub.publish(index(MESH));
        assert_eq!(line(&mut stream).await, "+2,3");
    }

    #[tokio::test]
    async fn a_slow_reader_gets_the_latest_state_and_nothing_between() {
        let api = api(MESH, Bounds::default());
        let mut stream = get(&api, "web.shop").await;
        assert_eq!(line(&mut stream).await, "+2,3");
        for endpoints in ["[]", "[open]", "[web-1]", "[web-1, open]"] {
            api.0.hub.publish(index(&MESH.replace("[web-0, web-1]", endpoints)));
        }
        assert_eq!(line(&mut stream).await, "+4");
        assert_eq!(line(&mut stream).await, "-2");
        api.0.stop.cancel();
        assert!(stream.next().await.is_none(), "nothing was left to say");
    }

    #[tokio::test]
    async fn what_comes_and_goes_between_two_reads_is_not_said() {
        let api = api(MESH, Bounds::default());
        let mut stream = get(&api, "web.shop").await;
        assert_eq!(line(&mut stream).await, "+2,3");
        api.0.hub.publish(index(&MESH.replace("[web-0, web-1]", "[]")));
        api.0.hub.publish(index(MESH));
        api.0.hub.publish(index(&MESH.replace("[web-0, web-1]", "[web-0]")));
        assert_eq!(line(&mut stream).await, "-3");
    }

    #[tokio::test]
    async fn the_profile_of_a_pods_own_address_says_when_it_is_leaving() {
        let api = api(MESH, Bounds::default());
        let mut stream = api.get_profile(ask("10.1.0.2:4143")).await.expect("a stream").into_inner();
        let labels = next(&mut stream).await.endpoint.expect("an endpoint").metric_labels;
        assert_eq!((labels["pod"].as_str(), labels.get("hauberk.dev/terminating")), ("web-0", None));
        let leaving = MESH.replace("name: web-0", "terminating: true\n    name: web-0");
        api.0.hub.publish(index(&leaving));
        let labels = next(&mut stream).await.endpoint.expect("an endpoint").metric_labels;
        assert_eq!(labels["hauberk.dev/terminating"], "true");
        api.0.hub.publish(index(&leaving.replace("terminating:", "ended:")));
        assert_eq!(next(&mut stream).await, DestinationProfile::default());
    }

    #[tokio::test]
    async fn networks_are_told_at_once_and_when_they_change() {
        let api = api(MESH, Bounds::default());
        let mut stream = api.watch(from(1, WatchRequest {})).await.expect("a stream").into_inner();
        let told = next(&mut stream).await;
        assert_eq!(
            (told.networks.join(","), told.outside),
            ("10.1.0.0/16,10.2.0.0/16,fd01::/64,fd02::/64".to_owned(), vec![])
        );
        api.0.hub.publish(index(&MESH.replace("serviceAccount: web", "serviceAccount: other")));
        api.0.hub.publish(index(&MESH.replace(",fd02::/64", "")));
        assert_eq!(next(&mut stream).await.outside, ["fd02::10"], "the first change was none of the networks");
    }

    #[tokio::test]
    async fn a_bad_question_is_refused_with_itself_and_what_is_valid() {
        let api = api(MESH, Bounds::default());
        for path in ["", "web", "10.2.0.10", "10.2.0.10:0", "ipfs://x"] {
            let status = api.get(ask(path)).await.err().expect("refused");
            assert_eq!(status.code(), Code::InvalidArgument);
            let said = status.message();
            assert!(said.contains(&format!("{path:?}")) && said.contains("<service>.<namespace>"), "{said}");
            assert_eq!(api.get_profile(ask(path)).await.err().map(|it| it.code()), Some(Code::InvalidArgument));
        }
        let status = api.get(ask(&"a".repeat(1 << 20))).await.err().expect("refused");
        assert!(status.code() == Code::InvalidArgument && status.message().len() < 200, "{status}");
        assert!(api.0.metrics.text().contains("hauberk_destination_refused_total{why=\"invalid\"} 11"));
    }

    #[tokio::test]
    async fn who_proved_no_identity_is_told_nothing() {
        let api = api(MESH, Bounds::default());
        let mut anonymous = ask("web.shop");
        anonymous.extensions_mut().get_mut::<ConnectInfo>().expect("set").peer = None;
        for request in [anonymous, Request::new(GetDestination::default())] {
            assert_eq!(api.get(request).await.err().map(|it| it.code()), Some(Code::Unauthenticated));
        }
    }

    #[tokio::test]
    async fn streams_are_bounded_on_a_connection_and_in_all_and_counted() {
        let api = api(MESH, Bounds { per_connection: 2, total: 3 });
        let first = get(&api, "web.shop").await;
        let _second = api.get_profile(ask("web.shop")).await.expect("a stream");
        let refused = |status: Option<Status>| status.map(|it| (it.code(), it.message().contains("as many as")));
        assert_eq!(refused(api.get(ask("web.shop")).await.err()), Some((Code::ResourceExhausted, true)));
        let _third = api.watch(from(2, WatchRequest {})).await.expect("a stream");
        assert_eq!(refused(api.watch(from(3, WatchRequest {})).await.err()), Some((Code::ResourceExhausted, true)));
        drop(first);
        let fourth = get(&api, "web.shop").await;
        let text = api.0.metrics.text();
        assert!(text.contains("hauberk_destination_streams{call=\"get\"} 1"), "{text}");
        assert!(text.contains("hauberk_destination_refused_total{why=\"too-many\"} 2"), "{text}");
        drop(fourth);
        assert!(api.0.metrics.text().contains("hauberk_destination_streams{call=\"get\"} 0"));
    }

    #[tokio::test]
    async fn streams_end_when_told_to_stop() {
        let api = api(MESH, Bounds::default());
        let mut stream = get(&api, "web.shop").await;
        assert_eq!(line(&mut stream).await, "+2,3");
        api.0.stop.cancel();
        assert!(stream.next().await.is_none());
    }
}
