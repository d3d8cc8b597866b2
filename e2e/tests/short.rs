//! What `make test` shows of Hauberk on a real cluster: from nothing to encrypted pods, and back to nothing.

#[path = "short/images.rs"]
mod images;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use hauberk_e2e::{Images, Kind, PodCapture, Shape};
use hauberk_lab::{Captured, tls, wait_for};
use hauberk_mesh::{ADMIN_PORT, Direction, MESH_PORT, PROBES_PORT, TransportState, TrustDomain};

/// What the pods say to each other; nobody else may read it.
const MARKER: &str = "chain-mail-4c1f";
/// How long a record of a connection may take to show up once the connection is over.
const RECORD_LIMIT: Duration = Duration::from_secs(10);

#[test]
fn an_installed_mesh_encrypts_what_pods_say_and_a_pod_without_it_shows_that_the_capture_sees() {
    let clock = Clock(Instant::now());
    let images = Images::build().expect("the images");
    let name = format!("hauberk-test-{}", std::process::id());
    let kind = Kind::up(&name, Shape::Single).expect("a cluster");
    kind.load(&images).expect("images on the node");
    clock.says("a cluster with the images");
    kind.install(&[]).expect("Hauberk");
    clock.says("Hauberk installed");
    kind.apply(include_str!("../demo.yaml")).expect("the application");
    for namespace in ["shop", "plain"] {
        kind.wait(namespace, &["deployment", "--all"], "condition=Available").expect("the application runs");
    }
    clock.says("the application runs");

    let plain = Overheard::of(&kind, "plain", &["web"]).expect("a capture");
    assert!(plain.saw(MARKER), "what is not encrypted is seen where the capture looks");
    let shop = Overheard::of(&kind, "shop", &["web", "cache"]).expect("captures");
    shop.assert_only_tls();
    clock.says("packets captured");
    for server in ["web", "cache"] {
        assert_both_name_both(&kind, server);
    }

    drop(kind);
    clock.says("and gone");
    assert_eq!(hauberk_e2e::nodes_of(&name).expect("the engine answers, or is gone"), Vec::<String>::new());
}

/// What was on the wires of the servers while a client that was not there before spoke with them.
struct Overheard {
    client: IpAddr,
    captures: Vec<Captured>,
}

impl Overheard {
    fn of(kind: &Kind, namespace: &str, servers: &[&str]) -> Result<Self> {
        // No connection is older than the capture: every byte of each is seen.
        kind.kubectl(&["scale", "-n", namespace, "deployment/client", "--replicas=0"])?;
        kind.wait(namespace, &["pod", "-l", "app=client"], "delete")?;
        let begin = |server: &&str| kind.capture(namespace, &kind.pod(namespace, &format!("app={server}"))?, "app");
        let captures = servers.iter().map(begin).collect::<Result<Vec<_>>>()?;
        kind.kubectl(&["scale", "-n", namespace, "deployment/client", "--replicas=1"])?;
        kind.kubectl(&["rollout", "status", "-n", namespace, "deployment/client", "--timeout=90s"])?;
        let client = kind.pod(namespace, "app=client")?;
        for server in servers {
            let say = match *server {
                "web" => vec!["curl", "-sS", "--fail", "--max-time", "20", "http://web/chain-mail-4c1f"],
                _ => vec!["redis-cli", "-h", "cache", "ECHO", MARKER],
            };
            let answer = kind.exec(namespace, &client, "app", &say)?;
            assert!(answer.contains(MARKER), "{answer}");
        }
        let client = kind.ip(namespace, &client)?;
        let captures = captures.into_iter().map(PodCapture::stop).collect::<Result<_>>()?;
        Ok(Self { client, captures })
    }

    fn saw(&self, marker: &str) -> bool {
        self.captures.iter().any(|captured| captured.contains(marker.as_bytes()))
    }

    /// On each server's wire the client has only TLS 1.3 to the mesh port. What else is there is kubelet, asking the
    /// proxy, or TLS of the proxy's own.
    fn assert_only_tls(&self) {
        assert!(!self.saw(MARKER), "in the clear on a pod's wire: {MARKER}");
        for captured in &self.captures {
            assert_eq!(captured.dropped, 0, "the capture missed packets");
            let mut carried = 0;
            for flow in &captured.flows {
                let sides = [tls::inspect(&flow.to_server.bytes), tls::inspect(&flow.to_client.bytes)];
                let about = format!("{} to {}: {sides:?}", flow.client, flow.server);
                if flow.client.ip() == self.client {
                    assert!(flow.syn_seen && flow.server.port() == MESH_PORT, "{about}");
                    carried += sides[0].encrypted_bytes.min(sides[1].encrypted_bytes);
                }
                let kubelet = [PROBES_PORT, ADMIN_PORT].contains(&flow.server.port());
                let older = !flow.syn_seen;
                assert!(kubelet || older || sides.iter().all(tls::TlsView::only_tls13), "{about}");
            }
            assert!(carried > 0, "the client spoke with the server");
        }
    }
}

/// The client's proxy and the server's each name both ends, from their certificates.
fn assert_both_name_both(kind: &Kind, server: &str) {
    let name = |account| TrustDomain::default().identity(account, "shop").expect("valid").to_string();
    let ends = (Some(name("client")), Some(name(server)));
    for (app, direction) in [("client", Direction::Outbound), (server, Direction::Inbound)] {
        let pod = kind.pod("shop", &format!("app={app}")).expect("one pod");
        wait_for(&format!("{app} says who spoke"), RECORD_LIMIT, || {
            let all = kind.connections("shop", &pod, "app")?;
            let found = all.closed.iter().chain(&all.live).any(|record| {
                record.direction == direction
                    && record.state == Some(TransportState::Mtls)
                    && (record.client_identity.clone(), record.server_identity.clone()) == ends
            });
            Ok(if found { Ok(()) } else { Err(format!("{all:?}")) })
        })
        .expect("it does");
    }
}

/// Says what took how long; asserts nothing.
struct Clock(Instant);

impl Clock {
    fn says(&self, what: &str) {
        println!("{:6.1} s: {what}", self.0.elapsed().as_secs_f32());
    }
}
