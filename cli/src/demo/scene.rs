//! The demo's pods, what they say to each other, and how that is gathered as evidence.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use anyhow::{Result, bail, ensure};
use hauberk_lab::{BRIDGE, Capture, Lab, NODE_V4, Pod, PodOptions, Process, ServiceOptions};
use hauberk_mesh::{
    ADMIN_PORT, DESTINATION_PORT, Direction, IDENTITY_PORT, LOCAL_ADMIN_PORT, MESH_PORT, PortSet, Reason,
};

use super::{
    applications::{curl, nginx, redis, scan_ssh, set_and_get, sshd},
    check::{Evidence, Exchange, PodFacts},
};
use crate::interrupt::Interrupt;

const NAMESPACE: &str = "shop";
/// nginx behind the service, on a pod's own address, for the unmeshed client, and on the port that is opted out.
const HTTP: u16 = 8080;
const DIRECT: u16 = 8081;
const PUBLIC: u16 = 8082;
const OPTED_OUT: u16 = 9000;
const REDIS: u16 = 6379;
const SSH: u16 = 2222;
const WEB: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 10));
const CACHE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 11));
const SHELL: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 12));
const OLD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 13));
/// Balancing is by chance: that so many connections all go to one of two replicas does not happen.
const TRIES: u32 = 100;

/// What the applications say, and nothing else on the machine does.
const HELLO: &str = "hello-from-shopper";
const WEB_0: &str = "answer-of-web-0";
const WEB_1: &str = "answer-of-web-1";
const SECRET: &str = "secret-kept-in-redis";
const GREETING: &str = "greeting-of-sshd";
const DIRECT_HELLO: &str = "hello-to-a-pod";
const DIRECT_ANSWER: &str = "answer-of-a-pod";
const OLD_HELLO: &str = "hello-from-old-client";
const PUBLIC_ANSWER: &str = "answer-to-old-client";
const OLD_CALL: &str = "hello-to-old-server";
const OLD_ANSWER: &str = "answer-of-old-server";
const OPTED_OUT_HELLO: &str = "hello-to-port-9000";
const OPTED_OUT_ANSWER: &str = "answer-of-port-9000";

/// The pods and their services. Nothing runs yet.
pub(crate) struct Scene {
    /// Dropped first: it takes everything down at once.
    lab: Lab,
    pods: BTreeMap<&'static str, Pod>,
    applications: Vec<Process>,
}

impl Scene {
    /// Makes pods and services.
    pub(crate) fn set(skip_outbound: &PortSet) -> Result<Self> {
        let lab = Lab::new()?;
        let skip = skip_outbound.to_string();
        let pod = |name: &str, account: &str| PodOptions::new(name).namespace(NAMESPACE).account(account);
        let meshed = |name, account| pod(name, account).meshed().skip_outbound(&skip);
        let pods = [
            ("shopper", meshed("shopper", "frontend")),
            ("web-0", meshed("web-0", "web").skip_inbound(&OPTED_OUT.to_string())),
            ("web-1", meshed("web-1", "web")),
            ("cache", meshed("cache", "cache")),
            ("shell", meshed("shell", "shell")),
            ("old-client", pod("old-client", "old-client")),
            ("old-server", pod("old-server", "old-server")),
        ];
        let pods = pods.into_iter().map(|(name, options)| Ok((name, lab.pod(options)?)));
        let pods = pods.collect::<Result<_>>()?;
        for (name, ip, port, target, endpoints) in [
            ("web", WEB, 80, HTTP, &["web-0", "web-1"][..]),
            ("cache", CACHE, REDIS, REDIS, &["cache"]),
            ("shell", SHELL, 22, SSH, &["shell"]),
            ("old-server", OLD, 80, HTTP, &["old-server"]),
        ] {
            let service = ServiceOptions::new(name).namespace(NAMESPACE).ip(&ip.to_string()).port(port, target);
            lab.service(service.endpoints(endpoints.iter().copied()))?;
        }
        Ok(Self { lab, pods, applications: Vec::new() })
    }

    /// Starts everything, captured from the first packet on; has the pods talk; and gathers what is known afterwards.
    pub(crate) fn play(&mut self, interrupt: &Interrupt) -> Result<Evidence> {
        let step = |what: &str| {
            println!("  {what} …");
            interrupt.check()
        };
        println!("Seven pods on one bridge, each a network namespace of its own:");
        let capture = self.lab.capture()?;
        step("control plane: identity and discovery")?;
        self.lab.start_control_plane()?;
        step("redirection and a proxy in five of the pods")?;
        self.meshed().try_for_each(|pod| self.lab.start_proxy(pod))?;
        step("nginx, Redis and sshd, who know nothing of it")?;
        self.applications = self.start_applications()?;
        step("they talk, and every packet between the pods is captured")?;
        let exchanges = self.talk();
        step("what both ends and the wire say")?;
        self.gather(capture, exchanges)
    }

    fn pod(&self, name: &str) -> &Pod {
        &self.pods[name]
    }

    fn meshed(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values().filter(|pod| pod.is_meshed())
    }

    fn start_applications(&self) -> Result<Vec<Process>> {
        Ok(vec![
            nginx(
                self.pod("web-0"),
                &[(HTTP, WEB_0), (DIRECT, DIRECT_ANSWER), (PUBLIC, PUBLIC_ANSWER), (OPTED_OUT, OPTED_OUT_ANSWER)],
            )?,
            nginx(self.pod("web-1"), &[(HTTP, WEB_1)])?,
            nginx(self.pod("old-server"), &[(HTTP, OLD_ANSWER)])?,
            redis(self.pod("cache"), REDIS)?,
            sshd(self.pod("shell"), SSH, GREETING)?,
        ])
    }

    /// Every exchange of the demo. A client that fails is part of what is shown.
    fn talk(&self) -> Vec<Exchange> {
        let (shopper, old_client) = (self.pod("shopper"), self.pod("old-client"));
        let web_0 = self.pod("web-0").ip();
        let browsed = self.browse();
        let exchange = Exchange::between;
        vec![
            exchange("shopper", "web-0", "HTTP", (WEB, 80), HTTP).saying(&[HELLO, WEB_0], &browsed),
            exchange("shopper", "web-1", "HTTP", (WEB, 80), HTTP).saying(&[HELLO, WEB_1], &browsed),
            exchange("shopper", "web-0", "HTTP to the pod's address", (web_0, DIRECT), DIRECT)
                .saying(&[DIRECT_HELLO, DIRECT_ANSWER], &get(shopper, web_0, DIRECT, DIRECT_HELLO, DIRECT_ANSWER)),
            exchange("shopper", "cache", "Redis", (CACHE, REDIS), REDIS)
                .saying(&[SECRET], &set_and_get(shopper, CACHE, REDIS, SECRET)),
            exchange("shopper", "shell", "SSH: the server speaks first", (SHELL, 22), SSH)
                .saying(&[GREETING], &scan_ssh(shopper, SHELL, 22, GREETING)),
            exchange("old-client", "web-0", "HTTP to the pod's address", (web_0, PUBLIC), PUBLIC)
                .saying(&[OLD_HELLO, PUBLIC_ANSWER], &get(old_client, web_0, PUBLIC, OLD_HELLO, PUBLIC_ANSWER))
                .in_the_clear(Direction::Inbound, Reason::UnmeshedClient, "old-client has no proxy"),
            exchange("shopper", "old-server", "HTTP", (OLD, 80), HTTP)
                .saying(&[OLD_CALL, OLD_ANSWER], &get(shopper, OLD, 80, OLD_CALL, OLD_ANSWER))
                .in_the_clear(Direction::Outbound, Reason::PeerNotMeshed, "old-server has no proxy"),
            exchange("shopper", "web-0", "HTTP to port 9000", (web_0, OPTED_OUT), OPTED_OUT)
                .saying(
                    &[OPTED_OUT_HELLO, OPTED_OUT_ANSWER],
                    &get(shopper, web_0, OPTED_OUT, OPTED_OUT_HELLO, OPTED_OUT_ANSWER),
                )
                .in_the_clear(Direction::Outbound, Reason::PeerNotMeshed, "web-0 opted port 9000 out"),
        ]
    }

    /// Asks the service for a page until both replicas have answered.
    fn browse(&self) -> Result<()> {
        let mut missing = vec![WEB_0, WEB_1];
        for _ in 0..TRIES {
            let answer = curl(self.pod("shopper"), &format!("http://{WEB}/{HELLO}"))?;
            missing.retain(|replica| !answer.contains(replica));
            if missing.is_empty() {
                return Ok(());
            }
        }
        bail!("after {TRIES} connections there was still no {missing:?}")
    }

    /// Waits until every proxy has closed its books, and ends the capture.
    fn gather(&self, capture: Capture<'_>, exchanges: Vec<Exchange>) -> Result<Evidence> {
        for pod in self.meshed() {
            pod.wait_connections("no connection is open any more", |all| all.live.is_empty().then_some(()))?;
        }
        let captured = capture.stop()?;
        let mut pods = BTreeMap::new();
        for (&name, pod) in &self.pods {
            let connections = pod.is_meshed().then(|| pod.connections()).transpose()?;
            let identity = pod.is_meshed().then(|| pod.spec().identity.to_string());
            pods.insert(name, PodFacts { ip: pod.ip(), identity, connections, tls_port: None });
        }
        let (identity, destination) = self.lab.control_pods()?;
        for (name, pod, port) in [("identity", identity, IDENTITY_PORT), ("destination", destination, DESTINATION_PORT)]
        {
            pods.insert(name, PodFacts { ip: pod.ip(), identity: None, connections: None, tls_port: Some(port) });
        }
        let markers = exchanges.iter().flat_map(|exchange| exchange.markers).copied();
        let seen = markers.filter(|marker| captured.contains(marker.as_bytes())).collect();
        let (dropped, flows) = (captured.dropped, captured.flows);
        Ok(Evidence { pods, node: NODE_V4.into(), exchanges, flows, dropped, seen })
    }

    /// Says what can be tried, and waits for Ctrl-C.
    pub(crate) fn stay(&self, interrupt: &Interrupt) -> Result<()> {
        // Somebody has to be in the node's namespace for others to find it.
        let node = self.lab.spawn("anchor", self.lab.command("sleep").arg("infinity"))?.pid();
        let shopper = self.pod("shopper").with_proxy(|proxy| Ok(proxy.pid()))?;
        println!("\nThe mesh stays up until Ctrl-C. To try in another terminal, as root:");
        for (pid, what, command) in [
            (shopper, "HTTP by mTLS, to one of two replicas", format!("curl -s http://{WEB}/{HELLO}")),
            (shopper, "Redis by mTLS", format!("redis-cli -h {CACHE} get demo")),
            (
                shopper,
                "what the proxy did, and why",
                format!("curl -s http://127.0.0.1:{LOCAL_ADMIN_PORT}/connections"),
            ),
            (shopper, "its metrics", format!("curl -s http://{}:{ADMIN_PORT}/metrics", self.pod("shopper").ip())),
            (node, "what the wire shows of it", format!("tcpdump -ni {BRIDGE} -A port {MESH_PORT}")),
        ] {
            println!("\n  # {what}\n  nsenter -t {pid} -n {command}");
        }
        let (mesh, dir) = (self.lab.mesh_path(), self.lab.dir());
        println!(
            "\nPods and services: {}: changes there count at once.\nLogs: {}/*.log",
            mesh.display(),
            dir.display()
        );
        interrupt.wait()
    }
}

/// GETs `path` from `server` and wants `answer`.
fn get(client: &Pod, server: IpAddr, port: u16, path: &str, answer: &str) -> Result<()> {
    let said = curl(client, &format!("http://{}/{path}", SocketAddr::new(server, port)))?;
    ensure!(said.contains(answer), "the answer was {said:?}");
    Ok(())
}
