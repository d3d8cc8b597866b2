//! `hauberk_kubernetes::Lease`: one leader at a time, whatever happens to it.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::TryStreamExt as _;
use hauberk_e2e::ControlPlane;
use hauberk_kubernetes::{Leadership, Lease, LeaseTimes};
use k8s_openapi::api::coordination::v1::Lease as Object;
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Short, so that the tests are; the relations are those of the default.
const TIMES: LeaseTimes =
    LeaseTimes { lease: Duration::from_secs(4), renew: Duration::from_secs(2), retry: Duration::from_millis(500) };

/// What takes so long does not happen.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), what).await.expect("not within 60 s")
}

/// A candidate that runs until it is stopped or dropped.
struct Candidate {
    leadership: Leadership,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Candidate {
    fn start(client: Client, name: &str, me: &str, times: LeaseTimes) -> Self {
        let (lease, leadership) = Lease::new(client, "default", name, me, times);
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(lease.run(stop.clone()));
        Self { leadership, stop, tasks }
    }

    /// An orderly end.
    async fn stop(mut self) {
        self.stop.cancel();
        soon(self.tasks.join_next()).await.expect("one task").expect("no panic");
    }

    async fn leads(&mut self) -> Instant {
        soon(self.leadership.acquired()).await;
        Instant::now()
    }
}

/// Waits until the Lease has been renewed so many times more: the leader does it once in each `retry`, in which the others
/// look at it once.
async fn renewed(plane: &ControlPlane, times: u32) {
    let leases = Api::<Object>::namespaced(plane.client(), "default");
    let only = watcher::Config::default().fields("metadata.name=part");
    let mut changes = pin!(watcher(leases, only).applied_objects());
    // What it is now comes first.
    for _ in 0..=times {
        soon(changes.try_next()).await.expect("a watch").expect("it goes on");
    }
}

/// Stands between a candidate and the API server, and can keep everything to itself.
struct Relay {
    client: Client,
    cut: watch::Sender<bool>,
    _connections: JoinSet<()>,
}

impl Relay {
    async fn start(plane: &ControlPlane) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let addr = listener.local_addr().expect("bound");
        let kubeconfig = Kubeconfig::read_from(plane.kubeconfig()).expect("a kubeconfig");
        let mut config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("valid");
        let server = config.cluster_url.authority().expect("an address").to_string();
        config.tls_server_name = Some(config.cluster_url.host().expect("a host").to_owned());
        config.cluster_url = format!("https://{addr}").parse().expect("valid");
        let (cut, is_cut) = watch::channel(false);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.expect("accepted");
                let mut far = TcpStream::connect(&server).await.expect("connected");
                let mut is_cut = is_cut.clone();
                connections.spawn(async move {
                    let cut = async { drop(is_cut.wait_for(|cut| *cut).await) };
                    tokio::select! {
                        biased;
                        // Held open: nobody is told.
                        () = cut => std::future::pending().await,
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                    }
                });
            }
        });
        Self { client: Client::try_from(config).expect("a client"), cut, _connections: accepting }
    }
}

#[tokio::test]
async fn one_of_two_leads_and_the_other_follows_at_once_when_it_leaves() {
    let plane = ControlPlane::start().await.expect("it starts");
    let [mut a, mut b] = ["a", "b"].map(|me| Candidate::start(plane.client(), "part", me, TIMES));
    let a_first = soon(async {
        tokio::select! {
            () = a.leadership.acquired() => true,
            () = b.leadership.acquired() => false,
        }
    })
    .await;
    let (first, mut second) = if a_first { (a, b) } else { (b, a) };
    // For longer than a Lease lasts.
    renewed(&plane, TIMES.lease.div_duration_f32(TIMES.retry) as u32 + 1).await;
    assert!(first.leadership.holds() && !second.leadership.holds());

    let work = {
        let mut leadership = first.leadership.clone();
        let stop = first.stop.clone();
        async move {
            let done = leadership.lead(std::future::pending::<()>()).await;
            (done, stop.is_cancelled())
        }
    };
    let mut working = JoinSet::new();
    working.spawn(work);
    let left = Instant::now();
    first.stop().await;
    assert_eq!(soon(working.join_next()).await.expect("one").expect("no panic"), (None, true), "the work was dropped");
    let took = second.leads().await - left;
    assert!(took < TIMES.lease, "it was given back, so nobody had to wait for its end: {took:?}");

    let lease = Api::<Object>::namespaced(plane.client(), "default").get("part").await.expect("there");
    let spec = lease.spec.expect("written");
    assert_eq!(spec.lease_transitions, Some(2), "{spec:?}");
    second.stop().await;
    let lease = Api::<Object>::namespaced(plane.client(), "default").get("part").await.expect("there");
    assert_eq!(lease.spec.expect("written").holder_identity, None);
}

#[tokio::test]
async fn a_killed_leader_is_followed_within_15_seconds_and_not_before_its_time() {
    let plane = ControlPlane::start().await.expect("it starts");
    let times = LeaseTimes::default();
    let mut first = Candidate::start(plane.client(), "part", "first", times);
    first.leads().await;
    let mut second = Candidate::start(plane.client(), "part", "second", times);
    // Long enough to be seen by the second; and right after a renewal.
    renewed(&plane, 2).await;
    let killed = Instant::now();
    first.tasks.shutdown().await;
    let took = second.leads().await - killed;
    println!("another leads {took:?} after the leader was killed");
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert!(took > times.lease - times.retry / 4, "{took:?}");
    assert!(!first.leadership.holds(), "nobody renews");
}

#[tokio::test]
async fn a_leader_that_reaches_no_api_server_stops_before_another_begins() {
    let plane = ControlPlane::start().await.expect("it starts");
    let relay = Relay::start(&plane).await;
    let mut cut_off = Candidate::start(relay.client.clone(), "part", "cut-off", TIMES);
    cut_off.leads().await;
    let mut other = Candidate::start(plane.client(), "part", "other", TIMES);
    renewed(&plane, 2).await;
    relay.cut.send_replace(true);
    let mut leadership = cut_off.leadership.clone();
    let stopped = async {
        let begun = leadership.lead(std::future::pending::<()>()).await;
        assert_eq!(begun, None);
        Instant::now()
    };
    let (stopped, began) = tokio::join!(soon(stopped), other.leads());
    println!("it stopped {:?} before the other began", began.saturating_duration_since(stopped));
    assert!(stopped < began, "two led at once, for {:?}", stopped - began);
    assert!(!cut_off.leadership.holds() && other.leadership.holds());
}

#[tokio::test]
async fn a_leader_whose_lease_another_took_stops_at_its_next_look() {
    let plane = ControlPlane::start().await.expect("it starts");
    let mut leader = Candidate::start(plane.client(), "part", "leader", TIMES);
    leader.leads().await;
    let api = Api::<Object>::namespaced(plane.client(), "default");
    let taken = json!({ "spec": { "holderIdentity": "another" } });
    api.patch("part", &PatchParams::default(), &Patch::Merge(taken)).await.expect("patched");
    let started = Instant::now();
    soon(leader.leadership.lost()).await;
    assert!(started.elapsed() < TIMES.renew, "{:?}", started.elapsed());
    // And waits its turn, like everybody.
    let took = leader.leads().await - started;
    assert!(took >= TIMES.lease - TIMES.retry, "{took:?}");
}
