//! A service that says what a test tells it to.

use std::time::Duration;

use hauberk_api::networks::{
    ClusterNetworks, WatchRequest,
    networks_server::{Networks, NetworksServer},
};
use hauberk_mesh::Limits;
use linkerd2_proxy_api::destination::{
    DestinationProfile, GetDestination, NoEndpoints, Update, WeightedAddr, WeightedAddrSet,
    destination_server::{Destination, DestinationServer},
    update::Update as Kind,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Request, Response, Status,
    transport::{Endpoint, Server},
};

use super::{addr, becomes, within};
use crate::discovery::{Discovery, TargetKind, Unavailable};

const WEB: &str = "10.2.0.10:80";

type Say<T> = mpsc::Sender<Result<T, Status>>;

/// A call that was made, and the way to answer it.
enum Call {
    Get(String, Say<Update>),
    Profile(String, Say<DestinationProfile>),
    Networks(Say<ClusterNetworks>),
}

/// Hands every call to the test; refuses where the test wants that.
#[derive(Clone)]
struct Script {
    calls: mpsc::Sender<Call>,
    refuse: Option<Status>,
}

impl Script {
    async fn called<T>(
        &self,
        call: impl FnOnce(Say<T>) -> Call,
    ) -> Result<Response<ReceiverStream<Result<T, Status>>>, Status> {
        if let Some(status) = &self.refuse {
            return Err(status.clone());
        }
        let (say, said) = mpsc::channel(8);
        self.calls.send(call(say)).await.map_err(|_| Status::unavailable("the test has ended"))?;
        Ok(Response::new(ReceiverStream::new(said)))
    }
}

#[tonic::async_trait]
impl Destination for Script {
    type GetStream = ReceiverStream<Result<Update, Status>>;
    type GetProfileStream = ReceiverStream<Result<DestinationProfile, Status>>;

    async fn get(&self, request: Request<GetDestination>) -> Result<Response<Self::GetStream>, Status> {
        self.called(|say| Call::Get(request.into_inner().path, say)).await
    }

    async fn get_profile(&self, request: Request<GetDestination>) -> Result<Response<Self::GetProfileStream>, Status> {
        self.called(|say| Call::Profile(request.into_inner().path, say)).await
    }
}

#[tonic::async_trait]
impl Networks for Script {
    type WatchStream = ReceiverStream<Result<ClusterNetworks, Status>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.called(Call::Networks).await
    }
}

/// A test's side: discovery, and the calls that it makes.
struct Stage {
    discovery: Discovery,
    calls: mpsc::Receiver<Call>,
    driver: AbortHandle,
    tasks: JoinSet<()>,
}

impl Stage {
    async fn set(limits: Limits, refuse: Option<Status>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let at = listener.local_addr().expect("bound");
        let (sender, calls) = mpsc::channel(64);
        let script = Script { calls: sender, refuse };
        let server = Server::builder()
            .add_service(DestinationServer::new(script.clone()))
            .add_service(NetworksServer::new(script))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { server.await.expect("serves until it is dropped") });
        let channel = Endpoint::from_shared(format!("http://{at}")).expect("a URI").connect_lazy();
        let (discovery, driver) = Discovery::new(channel, &limits, "10.9.0.0/16".parse().expect("valid"));
        let driver = tasks.spawn(driver);
        Self { discovery, calls, driver, tasks }
    }

    /// Asks about `text` beside the test.
    fn ask(&mut self, text: &'static str) -> mpsc::Receiver<Result<Held, Unavailable>> {
        let (answered, answer) = mpsc::channel(1);
        let discovery = self.discovery.clone();
        self.tasks.spawn(async move {
            let _ = answered.send(discovery.target(addr(text)).await).await;
        });
        answer
    }

    /// The two calls about `text`, neither of them answered yet.
    async fn calls_for(&mut self, text: &str) -> (Say<Update>, Say<DestinationProfile>) {
        let (mut get, mut profile) = (None, None);
        while get.is_none() || profile.is_none() {
            match within("both calls", self.calls.recv()).await.expect("the server runs") {
                Call::Get(path, say) if path == text => get = Some(say),
                Call::Profile(path, say) if path == text => profile = Some(say),
                _ => {}
            }
        }
        get.zip(profile).expect("both")
    }

    async fn networks(&mut self) -> Say<ClusterNetworks> {
        loop {
            if let Call::Networks(say) = within("a call", self.calls.recv()).await.expect("the server runs") {
                return say;
            }
        }
    }

    fn metrics(&self) -> String {
        let (mut registry, mut text) = (Registry::default(), String::new());
        self.discovery.register(&mut registry);
        encode(&mut text, &registry).expect("text");
        text
    }
}

type Held = tokio::sync::watch::Receiver<std::sync::Arc<crate::discovery::Target>>;

async fn answered(answer: &mut mpsc::Receiver<Result<Held, Unavailable>>) -> Result<Held, Unavailable> {
    within("an answer", answer.recv()).await.expect("the task lives")
}

fn add(hosts: &[u8]) -> Update {
    let addrs = hosts.iter().map(|host| WeightedAddr {
        addr: Some(std::net::SocketAddr::from(([10, 1, 0, *host], 8080)).into()),
        weight: 1,
        ..WeightedAddr::default()
    });
    Update { update: Some(Kind::Add(WeightedAddrSet { addrs: addrs.collect(), ..WeightedAddrSet::default() })) }
}

fn none(exists: bool) -> Update {
    Update { update: Some(Kind::NoEndpoints(NoEndpoints { exists })) }
}

fn named() -> DestinationProfile {
    DestinationProfile { fully_qualified_name: "web.shop.svc.cluster.local".to_owned(), ..Default::default() }
}

async fn say<T>(to: &Say<T>, message: T) {
    assert!(to.send(Ok(message)).await.is_ok(), "discovery still listens");
}

fn hosts(held: &Held) -> Vec<String> {
    held.borrow().endpoints.iter().map(|endpoint| endpoint.addr.ip().to_string()).collect()
}

#[tokio::test]
async fn both_questions_are_asked_at_once_and_the_answer_is_complete() {
    let mut stage = Stage::set(Limits::default(), None).await;
    let mut answer = stage.ask(WEB);
    let (get, profile) = stage.calls_for(WEB).await;
    say(&get, add(&[2])).await;
    say(&profile, named()).await;
    let held = answered(&mut answer).await.expect("known");
    assert_eq!((held.borrow().kind, hosts(&held)), (TargetKind::Service, vec!["10.1.0.2".to_owned()]));
    let mut again = stage.ask(WEB);
    assert!(answered(&mut again).await.is_ok(), "what is held is not asked for again");
    while let Ok(call) = stage.calls.try_recv() {
        assert!(matches!(call, Call::Networks(_)));
    }
}

#[tokio::test]
async fn what_is_not_answered_whole_in_time_fails_with_the_wait() {
    let limits = Limits { discovery: Duration::from_millis(50), ..Limits::default() };
    let mut stage = Stage::set(limits, None).await;
    let mut answer = stage.ask(WEB);
    let (get, _profile) = stage.calls_for(WEB).await;
    say(&get, add(&[2])).await;
    let error = answered(&mut answer).await.expect_err("half an answer");
    assert!(matches!(error, Unavailable::TimedOut { waited, .. } if waited == Duration::from_millis(50)), "{error}");
}

#[tokio::test]
async fn what_is_held_is_replaced_by_the_first_message_of_a_new_stream_and_not_before() {
    let mut stage = Stage::set(Limits::default(), None).await;
    let mut answer = stage.ask(WEB);
    let (get, profile) = stage.calls_for(WEB).await;
    say(&get, add(&[2, 3])).await;
    say(&profile, named()).await;
    let mut held = answered(&mut answer).await.expect("known");
    held.mark_unchanged();
    drop((get, profile));
    let (get, _profile) = stage.calls_for(WEB).await;
    assert_eq!(hosts(&held).len(), 2, "the new streams have said nothing yet");
    assert!(!held.has_changed().expect("held"), "nor was anything else said between");
    say(&get, add(&[4])).await;
    let now = becomes(&mut held, "the first message", |target| target.endpoints.len() == 1).await;
    assert_eq!(now.endpoints[0].addr, addr("10.1.0.4:8080"));
}

#[tokio::test]
async fn a_refusal_is_told_at_once_and_in_its_words() {
    let refuse = Status::resource_exhausted("8192 streams are open");
    let mut stage = Stage::set(Limits::default(), Some(refuse)).await;
    let error = answered(&mut stage.ask(WEB)).await.expect_err("refused");
    let why = "ResourceExhausted: 8192 streams are open".to_owned();
    assert_eq!(error, Unavailable::Refused { addr: addr(WEB), why });
}

#[tokio::test]
async fn what_cannot_be_read_is_left_out_and_counted() {
    let mut stage = Stage::set(Limits::default(), None).await;
    let mut answer = stage.ask(WEB);
    let (get, profile) = stage.calls_for(WEB).await;
    let Some(Kind::Add(mut set)) = add(&[2, 3]).update else { unreachable!("an add") };
    set.addrs[0].protocol_hint = Some(linkerd2_proxy_api::destination::ProtocolHint {
        opaque_transport: Some(linkerd2_proxy_api::destination::protocol_hint::OpaqueTransport { inbound_port: 4143 }),
        protocol: None,
    });
    say(&get, Update { update: Some(Kind::Add(set)) }).await;
    say(&profile, named()).await;
    let held = answered(&mut answer).await.expect("known");
    assert_eq!(hosts(&held), ["10.1.0.3"]);
    let metrics = stage.metrics();
    assert!(metrics.contains("discovery_malformed_total 1") && metrics.contains("discovery_addresses 1"), "{metrics}");
}

#[tokio::test]
async fn an_address_gives_way_to_another_only_when_nobody_holds_it() {
    let mut stage = Stage::set(Limits { discovery_addresses: 1, ..Limits::default() }, None).await;
    let mut answer = stage.ask(WEB);
    let (get, profile) = stage.calls_for(WEB).await;
    say(&get, none(false)).await;
    say(&profile, DestinationProfile::default()).await;
    let held = answered(&mut answer).await.expect("known to be nobody");
    let error = answered(&mut stage.ask("10.2.0.11:80")).await.expect_err("full");
    assert_eq!(error, Unavailable::Full { addr: addr("10.2.0.11:80"), held: 1 });
    drop(held);
    let _answer = stage.ask("10.2.0.11:80");
    stage.calls_for("10.2.0.11:80").await;
    within("the end of its streams", async { tokio::join!(get.closed(), profile.closed()) }).await;
}

#[tokio::test]
async fn an_address_that_nobody_uses_is_given_up_and_its_streams_closed() {
    let mut stage = Stage::set(Limits { discovery_idle: Duration::from_millis(20), ..Limits::default() }, None).await;
    let mut answer = stage.ask(WEB);
    let (get, profile) = stage.calls_for(WEB).await;
    say(&get, none(true)).await;
    say(&profile, named()).await;
    drop(answered(&mut answer).await.expect("known"));
    within("the end of its streams", async { tokio::join!(get.closed(), profile.closed()) }).await;
    assert!(stage.metrics().contains("discovery_addresses 0"), "{}", stage.metrics());
}

#[tokio::test]
async fn networks_that_cannot_be_read_whole_change_nothing() {
    let mut stage = Stage::set(Limits::default(), None).await;
    let mut networks = stage.discovery.networks();
    let told = stage.networks().await;
    let message =
        |nets: &[&str]| ClusterNetworks { networks: nets.iter().map(|it| (*it).to_owned()).collect(), outside: vec![] };
    say(&told, message(&["10.1.0.0/16", "10.2.0.0/99"])).await;
    say(&told, message(&["10.3.0.0/16"])).await;
    within("a change", networks.changed()).await.expect("the sender lives");
    assert!(networks.borrow().is_inside(addr("10.3.0.1:1").ip()), "the first change is that of the second message");
    assert!(stage.metrics().contains("discovery_malformed_total 1"));
}

#[tokio::test]
async fn without_its_driver_discovery_says_that_it_has_stopped() {
    let mut stage = Stage::set(Limits::default(), None).await;
    let mut waiting = stage.ask(WEB);
    let _calls = stage.calls_for(WEB).await;
    stage.driver.abort();
    assert_eq!(answered(&mut waiting).await.err(), Some(Unavailable::Stopped), "whoever waits is told");
    assert_eq!(answered(&mut stage.ask(WEB)).await.err(), Some(Unavailable::Stopped), "and whoever comes later");
}
