//! The demo's pods, what they say to each other, and how that is gathered as evidence.

use std::{
    collections::BTreeMap,
    io::Write,
    net::{IpAddr, SocketAddr},
    process::Command,
};

use anyhow::{Context, Result, anyhow};
use hauberk_lab::{Capture, Lab, NODE_IP, Pod, PodOptions, Process, ServiceOptions};
use hauberk_mesh::{
    ADMIN_PORT, DESTINATION_PORT, Direction, IDENTITY_PORT, LOCAL_ADMIN_PORT, PortSet, Reason, TrustDomain,
};

use super::{
    applications::{curl, nginx, redis, scan_ssh, set_and_get, sshd},
    check::{Evidence, Exchange, Expected, PodFacts},
};
use crate::interrupt::Interrupt;

const NAMESPACE: &str = "shop";
/// nginx behind the service, on a pod's own address, and on the port that is opted out.
const HTTP: u16 = 8080;
const DIRECT: u16 = 8081;
const OPTED_OUT: u16 = 9000;
const REDIS: u16 = 6379;
const SSH: u16 = 2222;
const WEB_IP: &str = "10.2.0.10";
const CACHE_IP: &str = "10.2.0.11";
const SHELL_IP: &str = "10.2.0.12";
const LEGACY_IP: &str = "10.2.0.13";
/// Balancing is by chance: that this many connections all go to one of two replicas does not happen.
const TRIES: u32 = 100;

const HELLO: &str = "hello-from-the-shopper";
const SECRET: &str = "secret-kept-in-redis";
const GREETING: &str = "greeting-of-sshd";
const DIRECT_HELLO: &str = "hello-to-a-pod-address";
const DIRECT_ANSWER: &str = "answer-at-a-pod-address";
const LEGACY_HELLO: &str = "hello-from-an-unmeshed-client";
const LEGACY_ANSWER: &str = "answer-of-an-unmeshed-server";
const OPTED_OUT_HELLO: &str = "hello-to-an-opted-out-port";
const OPTED_OUT_ANSWER: &str = "answer-of-an-opted-out-port";

/// Everything up and ready, the capture running.
pub(crate) struct Scene {
    pods: BTreeMap<String, Pod>,
    _applications: Vec<Process>,
    /// Dropped last: it takes down everything else.
    lab: Lab,
}

impl Scene {
    /// Sets up pods, control plane, proxies and applications.
    pub(crate) fn set(skip_outbound: &PortSet, interrupt: &Interrupt) -> Result<Self> {
        let lab = Lab::new()?;
        let skip = skip_outbound.to_string();
        let meshed = |name: &str, account: &str| {
            let pod = PodOptions::new(name).namespace(NAMESPACE).account(account).meshed().skip_outbound(&skip);
            lab.pod(if name == "web-0" { pod.skip_inbound(&OPTED_OUT.to_string()) } else { pod })
        };
        let unmeshed = |name: &str| lab.pod(PodOptions::new(name).namespace(NAMESPACE).account(name));
        let pods = [
            meshed("shopper", "frontend")?,
            meshed("web-0", "web")?,
            meshed("web-1", "web")?,
            meshed("cache", "cache")?,
            meshed("shell", "shell")?,
            unmeshed("legacy-client")?,
            unmeshed("legacy-server")?,
        ];
        let pods = pods.into_iter().map(|pod| (pod.name().to_owned(), pod)).collect();
        let service = |name: &str, ip: &str, port: u16, target: u16, endpoints: &[&str]| {
            let service = ServiceOptions::new(name).namespace(NAMESPACE).ip(ip).port(port, target);
            lab.service(service.endpoints(endpoints.iter().copied()))
        };
        service("web", WEB_IP, 80, HTTP, &["web-0", "web-1"])?;
        service("cache", CACHE_IP, REDIS, REDIS, &["cache"])?;
        service("shell", SHELL_IP, 22, SSH, &["shell"])?;
        service("legacy", LEGACY_IP, 80, HTTP, &["legacy-server"])?;
        interrupt.check()?;
        Ok(Self { pods, _applications: Vec::new(), lab })
    }

    /// Starts everything, captured from the first packet on; has the pods talk; and gathers what is known afterwards.
    pub(crate) fn play(&mut self, interrupt: &Interrupt) -> Result<Evidence> {
        let capture = self.lab.capture()?;
        step("control plane", || self.lab.start_control_plane())?;
        interrupt.check()?;
        let meshed: Vec<_> = self.pods.values().filter(|pod| pod.is_meshed()).collect();
        step(&format!("{} proxies", meshed.len()), || meshed.iter().try_for_each(|pod| self.lab.start_proxy(pod)))?;
        interrupt.check()?;
        self._applications = step("nginx, Redis, sshd", || self.start_applications())?;
        interrupt.check()?;
        let exchanges = step("traffic", || Ok(self.talk()))?;
        interrupt.check()?;
        step("evidence", || self.gather(capture, exchanges))
    }
}
