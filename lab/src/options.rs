//! What pods, services and the control plane of a lab are to be. Literals of tests: a text that is not valid panics.

use std::{collections::BTreeMap, fmt::Display, net::IpAddr, str::FromStr, time::Duration};

use hauberk_mesh::{Egress, Limits, ProxySpec, Service, ServicePort, TlsMode, TrustDomain};

use crate::WireOptions;

/// What a pod is to be. Without more: namespace `default`, account `default`, one IPv4 address, not meshed.
#[derive(Debug, Clone)]
pub struct PodOptions {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) account: String,
    pub(crate) v4: bool,
    pub(crate) v6: bool,
    pub(crate) also_at: Vec<IpAddr>,
    pub(crate) sysctls: Vec<(String, String)>,
    pub(crate) wire: Option<WireOptions>,
    pub(crate) listed: bool,
    pub(crate) meshed: bool,
    pub(crate) ready: bool,
    pub(crate) weight: u32,
    pub(crate) labels: BTreeMap<String, String>,
    /// Identity, addresses, files and roots are filled in when the proxy starts.
    pub(crate) spec: ProxySpec,
    pub(crate) proxy_env: Vec<(String, String)>,
    pub(crate) clock: Option<i64>,
    pub(crate) proxy_args: Vec<String>,
}

impl PodOptions {
    /// A pod of that name, unique in its namespace.
    pub fn new(name: &str) -> Self {
        let identity = TrustDomain::default().identity("default", "default").expect("a valid identity");
        let unset = ([0, 0, 0, 0], 0).into();
        Self {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            account: "default".to_owned(),
            v4: true,
            v6: false,
            also_at: Vec::new(),
            sysctls: Vec::new(),
            wire: None,
            listed: true,
            meshed: false,
            ready: true,
            weight: 1,
            labels: BTreeMap::new(),
            spec: ProxySpec::new(identity, unset, unset, String::new()),
            proxy_env: Vec::new(),
            clock: None,
            proxy_args: Vec::new(),
        }
    }

    /// Its namespace (of the mesh).
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// Its ServiceAccount.
    pub fn account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.account);
        self
    }

    /// An IPv6 address beside the IPv4 one.
    pub fn dual_stack(mut self) -> Self {
        (self.v4, self.v6) = (true, true);
        self
    }

    /// An IPv6 address only.
    pub fn ipv6_only(mut self) -> Self {
        (self.v4, self.v6) = (false, true);
        self
    }

    /// One more address, which may lie outside the cluster's networks; `mesh.yaml` does not have it.
    pub fn also_at(mut self, ip: &str) -> Self {
        self.also_at.push(literal(ip));
        self
    }

    /// A setting of its network namespace, such as `net.ipv4.tcp_congestion_control`.
    pub fn sysctl(mut self, name: &str, value: &str) -> Self {
        self.sysctls.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Its link to the others is a wire that keeps frames. Without, it is as fast as the machine.
    pub fn wire(mut self, wire: WireOptions) -> Self {
        self.wire = Some(wire);
        self
    }

    /// Not in `mesh.yaml`: an address inside the cluster that nobody knows.
    pub fn unlisted(mut self) -> Self {
        self.listed = false;
        self
    }

    /// Has a proxy, once [`crate::Lab::start_proxy`] has started it.
    pub fn meshed(mut self) -> Self {
        self.meshed = true;
        self
    }

    /// Has no proxy. The default.
    pub fn unmeshed(mut self) -> Self {
        self.meshed = false;
        self
    }

    /// How strict its proxy is.
    pub fn tls(self, mode: TlsMode) -> Self {
        self.spec(|spec| spec.tls = mode)
    }

    /// What it may send outside the cluster if its mode is `required`.
    pub fn egress(self, egress: Egress) -> Self {
        self.spec(|spec| spec.egress = egress)
    }

    /// One more exception of `required`: the client's network, and this pod's ports.
    pub fn allow_unmeshed_from(self, exception: &str) -> Self {
        self.spec(|spec| spec.allow_unmeshed_from.push(literal(exception)))
    }

    /// One more exception of `required`: the server's network and ports.
    pub fn allow_unmeshed_to(self, exception: &str) -> Self {
        self.spec(|spec| spec.allow_unmeshed_to.push(literal(exception)))
    }

    /// Ports of this pod that its rules let pass.
    pub fn skip_inbound(self, ports: &str) -> Self {
        self.spec(|spec| spec.redirection.skip_inbound_ports = literal(ports))
    }

    /// Ports of others that its rules let pass.
    pub fn skip_outbound(self, ports: &str) -> Self {
        self.spec(|spec| spec.redirection.skip_outbound_ports = literal(ports))
    }

    /// Networks that its rules let pass.
    pub fn skip_subnets(self, networks: &str) -> Self {
        self.spec(|spec| spec.redirection.skip_subnets = literal(networks))
    }

    /// Waits and bounds of its proxy, over the defaults: `connect=2s,pool_total=3`.
    pub fn limits(self, limits: &str) -> Self {
        let limits = Limits::parse(limits).unwrap_or_else(|error| panic!("{error}"));
        self.spec(|spec| spec.limits = limits)
    }

    /// Anything else that a proxy is told at start.
    pub fn spec(mut self, change: impl FnOnce(&mut ProxySpec)) -> Self {
        change(&mut self.spec);
        self
    }

    /// One more variable in its proxy's environment, such as `RUST_LOG`.
    pub fn proxy_env(mut self, name: &str, value: &str) -> Self {
        self.proxy_env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Its proxy's clock is off by so many seconds; waits are as long as ever.
    pub fn clock(mut self, seconds: i64) -> Self {
        self.clock = Some(seconds);
        self
    }

    /// More arguments of its proxy, behind `run`.
    pub fn proxy_args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.proxy_args.extend(args.into_iter().map(str::to_owned));
        self
    }

    /// A label for metrics.
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Share of a service's connections, relative to its other endpoints.
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Whether it gets traffic of services.
    pub fn ready(mut self, ready: bool) -> Self {
        self.ready = ready;
        self
    }
}

/// What a service is to be. Without more: namespace `default`, no address, no port, no endpoint.
#[derive(Debug, Clone)]
pub struct ServiceOptions(pub(crate) Service);

impl ServiceOptions {
    /// A service of that name, unique in its namespace.
    pub fn new(name: &str) -> Self {
        Self(Service {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            ips: Vec::new(),
            ports: Vec::new(),
            endpoints: Vec::new(),
            affinity_seconds: None,
        })
    }

    /// Its namespace.
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.0.namespace);
        self
    }

    /// One more address that it answers on.
    pub fn ip(mut self, ip: &str) -> Self {
        self.0.ips.push(literal(ip));
        self
    }

    /// One more port, and the port of the endpoints behind it.
    pub fn port(mut self, port: u16, target: u16) -> Self {
        self.0.ports.push(ServicePort { port, target: Some(target) });
        self
    }

    /// More pods behind it: `name`, or `namespace/name`.
    pub fn endpoints<'a>(mut self, pods: impl IntoIterator<Item = &'a str>) -> Self {
        self.0.endpoints.extend(pods.into_iter().map(str::to_owned));
        self
    }

    /// Seconds for which one client stays with one endpoint.
    pub fn affinity(mut self, seconds: u32) -> Self {
        self.0.affinity_seconds = Some(seconds);
        self
    }
}

/// How the control plane is to run.
#[derive(Debug, Clone)]
pub struct ControlOptions {
    /// How long a leaf certificate lives.
    pub leaf_lifetime: Duration,
    /// More arguments for the identity server.
    pub identity_args: Vec<String>,
    /// More arguments for the destination service.
    pub destination_args: Vec<String>,
    /// What both log.
    pub log: String,
}

impl Default for ControlOptions {
    fn default() -> Self {
        Self {
            leaf_lifetime: Duration::from_secs(24 * 3600),
            identity_args: Vec::new(),
            destination_args: Vec::new(),
            log: "info".to_owned(),
        }
    }
}

fn literal<T: FromStr<Err: Display>>(text: &str) -> T {
    text.parse().unwrap_or_else(|error| panic!("{text:?}: {error}"))
}
