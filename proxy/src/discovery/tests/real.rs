//! The real service, on real sockets.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hauberk_destination::{Api, Bounds, Hub, Index, Metrics, serve};
use hauberk_identity::{
    Store, grpc,
    server::{Ca, Lifetimes},
};
use hauberk_mesh::{DESTINATION_ACCOUNT, IdentityName, Limits, MeshFile, Reason, TrustDomain};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{addr, becomes, within};
use crate::discovery::{Discovery, Shared, Target, TargetKind, Unavailable};

const MESH: &str = "\
networks: 10.1.0.0/16,10.2.0.0/16
pods:
  - {name: web-0, namespace: shop, uid: u0, serviceAccount: web, ips: [10.1.0.2], proxy: {}, weight: 3}
  - {name: web-1, namespace: shop, uid: u1, serviceAccount: web, ips: [10.1.0.3]}
services:
  - name: web
    namespace: shop
    ips: [10.2.0.10]
    ports: [{port: 80, target: 8080}]
    endpoints: [web-0, web-1]
    affinitySeconds: 60
";
const SERVICE: &str = "10.2.0.10:80";
const MESHED: &str = "10.1.0.2:8080";
const UNMESHED: &str = "10.1.0.3:8080";
const NOBODY: &str = "10.2.0.99:80";

/// A destination service that can go away and come back. Its port stays bound: who connects meanwhile hears nothing.
struct Service {
    ca: Ca,
    listener: std::net::TcpListener,
    running: Option<(Arc<Hub>, CancellationToken)>,
    tasks: JoinSet<()>,
}

impl Service {
    fn start() -> Self {
        let ca = Ca::in_memory(Lifetimes::default()).expect("a CA");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        listener.set_nonblocking(true).expect("a socket");
        let mut service = Self { ca, listener, running: None, tasks: JoinSet::new() };
        service.come_back(MESH);
        service
    }

    fn come_back(&mut self, yaml: &str) {
        let listener = self.listener.try_clone().and_then(TcpListener::from_std).expect("a socket");
        let (hub, stop) = (Hub::new(index(yaml)), CancellationToken::new());
        let api = Api::new(hub.clone(), TrustDomain::default(), Bounds::default(), Metrics::default(), stop.clone());
        self.tasks.spawn(serve(listener, self.store(DESTINATION_ACCOUNT, "hauberk"), api, stop.clone()));
        self.running = Some((hub, stop));
    }

    async fn go_away(&mut self) {
        self.running.take().expect("running").1.cancel();
        within("the end of the service", self.tasks.join_next()).await.expect("it ran").expect("it did not panic");
    }

    fn publish(&self, yaml: &str) {
        self.running.as_ref().expect("running").0.publish(index(yaml));
    }

    /// A proxy's discovery, its driver running.
    fn discovery(&mut self, limits: &Limits) -> Discovery {
        let server = TrustDomain::default().identity(DESTINATION_ACCOUNT, "hauberk").expect("valid");
        let channel = grpc::channel(self.listener.local_addr().expect("bound"), server, self.store("client", "shop"));
        let networks = "10.9.0.0/16".parse().expect("valid");
        let (discovery, driver) = Discovery::new(channel, limits, networks);
        self.tasks.spawn(driver);
        discovery
    }

    fn store(&self, account: &str, namespace: &str) -> Store {
        let name = TrustDomain::default().identity(account, namespace).expect("valid");
        Store::fixed(self.ca.credentials(&name, 1, SystemTime::now()).expect("signed").into())
    }
}

fn index(yaml: &str) -> Index {
    Index::from_mesh(&MeshFile::parse(yaml).expect("a valid mesh"), &TrustDomain::default())
}

/// The same discovery, for which perishable answers end at once, and which hardly waits.
fn hurried(of: &Discovery) -> Discovery {
    let limits =
        Limits { stale_unmeshed: Duration::from_nanos(1), discovery: Duration::from_millis(1), ..of.0.limits.clone() };
    Discovery(Arc::new(Shared {
        entries: of.0.entries.clone(),
        networks: of.0.networks.clone(),
        client: of.0.client.clone(),
        tasks: of.0.tasks.clone(),
        limits,
    }))
}

async fn target(discovery: &Discovery, text: &str) -> Result<Arc<Target>, Unavailable> {
    discovery.target(addr(text)).await.map(|held| held.borrow().clone())
}

fn web() -> IdentityName {
    TrustDomain::default().identity("web", "shop").expect("valid")
}

fn addrs(target: &Target) -> Vec<String> {
    target.endpoints.iter().map(|endpoint| endpoint.addr.to_string()).collect()
}

#[tokio::test]
async fn a_service_a_pod_and_nobody_are_known_for_what_they_are() {
    let mut service = Service::start();
    let discovery = service.discovery(&Limits::default());

    let found = target(&discovery, SERVICE).await.expect("known");
    assert_eq!(found.kind, TargetKind::Service);
    assert_eq!(found.service.as_deref(), Some("web.shop.svc.cluster.local"));
    assert_eq!(found.affinity, Some(Duration::from_secs(60)));
    assert_eq!(addrs(&found), [MESHED, UNMESHED]);
    let [meshed, unmeshed] = &found.endpoints[..] else { panic!("{found:?}") };
    assert_eq!((meshed.identity.clone(), meshed.mesh_port, meshed.reason), (Some(web()), Some(4143), None));
    assert_eq!((meshed.weight, meshed.labels["pod"].as_str()), (3, "web-0"));
    let expected = (None, None, Some(Reason::PeerNotMeshed));
    assert_eq!((unmeshed.identity.clone(), unmeshed.mesh_port, unmeshed.reason), expected);
    assert!(unmeshed.labels.keys().all(|key| !key.starts_with("hauberk.dev/")), "{:?}", unmeshed.labels);

    for (text, identity) in [(MESHED, Some(web())), (UNMESHED, None)] {
        let found = target(&discovery, text).await.expect("known");
        assert_eq!((found.kind, addrs(&found)), (TargetKind::Pod, vec![text.to_owned()]));
        assert_eq!(found.endpoints[0].identity, identity);
    }
    let mapped = target(&discovery, "[::ffff:10.1.0.2]:8080").await.expect("known");
    assert_eq!(addrs(&mapped), [MESHED], "as a dual-stack socket writes it");
    assert_eq!(discovery.0.entries.len(), 3, "the same address");
    let nobody = target(&discovery, NOBODY).await.expect("known to be nobody");
    assert_eq!((nobody.kind, nobody.endpoints.len()), (TargetKind::Unknown, 0));
}

#[tokio::test]
async fn who_holds_a_target_sees_it_change() {
    let mut service = Service::start();
    let discovery = service.discovery(&Limits::default());
    let mut web = discovery.target(addr(SERVICE)).await.expect("known");
    let mut nobody = discovery.target(addr(NOBODY)).await.expect("known to be nobody");
    service.publish(
        &MESH.replace("endpoints: [web-0, web-1]", "endpoints: [web-1]").replace("10.2.0.10", "10.2.0.10, 10.2.0.99"),
    );
    becomes(&mut web, "web-0 leaves", |target| addrs(target) == [UNMESHED]).await;
    becomes(&mut nobody, "a service comes", |target| target.kind == TargetKind::Service && target.service.is_some())
        .await;
    service.publish(&MESH.replace("endpoints: [web-0, web-1]", "endpoints: []"));
    becomes(&mut web, "all leave", |target| target.kind == TargetKind::Service && target.endpoints.is_empty()).await;
    becomes(&mut nobody, "the service goes", |target| target.kind == TargetKind::Unknown).await;
}

#[tokio::test]
async fn what_is_held_counts_on_while_the_service_is_away_but_not_unmeshed_and_unknown() {
    let mut service = Service::start();
    let patient = service.discovery(&Limits::default());
    let hurried = hurried(&patient);
    for text in [SERVICE, MESHED, UNMESHED, NOBODY] {
        assert!(target(&patient, text).await.is_ok(), "{text}");
        assert!(target(&hurried, text).await.is_ok(), "{text}");
    }
    service.go_away().await;
    for text in [SERVICE, MESHED, UNMESHED, NOBODY] {
        let mut status = patient.0.entries.find(addr(text)).expect("held").status;
        within("the break", status.wait_for(|status| status.is_broken())).await.expect("the entry lives");
    }
    for text in [SERVICE, MESHED] {
        assert!(target(&hurried, text).await.is_ok(), "{text}");
    }
    for text in [UNMESHED, NOBODY] {
        assert!(target(&patient, text).await.is_ok(), "{text}: for a while");
        let error = target(&hurried, text).await.expect_err("what may be wrong by now does not count");
        assert!(matches!(error, Unavailable::TimedOut { .. }), "{text}: {error}");
    }
    let error = target(&hurried, "10.1.0.77:80").await.expect_err("nothing is known").to_string();
    assert!(error.contains("10.1.0.77:80") && error.contains("is the destination service running?"), "{error}");

    let mut web = patient.target(addr(SERVICE)).await.expect("held");
    service.come_back(&MESH.replace("endpoints: [web-0, web-1]", "endpoints: [web-1]"));
    becomes(&mut web, "the first answer replaces what was held", |target| addrs(target) == [UNMESHED]).await;
    let mut status = hurried.0.entries.find(addr(UNMESHED)).expect("held").status;
    within("the answer", status.wait_for(|status| !status.is_broken())).await.expect("the entry lives");
    assert!(target(&hurried, UNMESHED).await.is_ok());
}

#[tokio::test]
async fn the_pods_own_removal_is_noticed() {
    let mut service = Service::start();
    let discovery = service.discovery(&Limits::default());
    let mut leaving = discovery.terminating(addr("10.1.0.2:4143"));
    service.publish(&MESH.replace("{name: web-0", "{terminating: true, name: web-0"));
    becomes(&mut leaving, "the removal", |leaving| *leaving).await;
    service.go_away().await;
    assert!(*leaving.borrow());
}

#[tokio::test]
async fn networks_are_those_given_at_start_until_the_service_tells_of_others() {
    let mut service = Service::start();
    let discovery = service.discovery(&Limits::default());
    let mut networks = discovery.networks();
    assert!(networks.borrow().is_inside(addr("10.9.0.1:1").ip()), "before a word was said");
    becomes(&mut networks, "the first", |it| it.is_inside(addr(MESHED).ip()) && !it.is_inside(addr("10.9.0.1:1").ip()))
        .await;
    service.publish(&MESH.replace("10.2.0.0/16", "10.3.0.0/16"));
    becomes(&mut networks, "the next", |it| it.is_inside(addr("10.3.0.1:1").ip()) && it.is_inside(addr(SERVICE).ip()))
        .await;
    assert!(!networks.borrow().is_inside(addr(NOBODY).ip()), "only what is known of the rest");
}

#[tokio::test]
async fn one_proxy_may_hold_as_many_addresses_as_its_limit_says() {
    let mut service = Service::start();
    let limits = Limits { discovery: super::LONG, ..Limits::default() };
    let discovery = service.discovery(&limits);
    let _leaving = discovery.terminating(addr("10.1.0.2:4143"));
    let mut asked = JoinSet::new();
    for i in 0..limits.discovery_addresses {
        let discovery = discovery.clone();
        let text = SocketAddr::from(([10, 2, (i >> 8) as u8, i as u8], 8080));
        asked.spawn(async move { discovery.target(text).await });
    }
    let held = within("all answers", asked.join_all()).await;
    assert_eq!(held.into_iter().filter_map(Result::ok).count(), limits.discovery_addresses);
}
