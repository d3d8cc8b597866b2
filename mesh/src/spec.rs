//! `ProxySpec`: all that a proxy is told at start. The webhook writes it into the pod, the proxy reads it from its
//! environment, discovery reads it back from the pod's spec to know what the pod is.

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use crate::{
    Egress, Exception, IdentityName, InvalidLimits, Limits, Networks, PROXY_UID, PortSet, Probe, TlsMode, TrustDomain,
    service_links::is_service_link,
};

/// A variable that is missing or not valid.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidSpec {
    /// Not set, and without a default.
    #[error("{0} is not set: it is part of what the proxy must be told at start")]
    Missing(&'static str),
    /// Set, and not valid.
    #[error("{name}: {why}")]
    Value {
        /// The variable.
        name: &'static str,
        /// What is wrong, and what is valid.
        why: String,
    },
    /// Starts like one of ours and is none.
    #[error("{0} is not a variable of the proxy: remove it or mend its name")]
    Unknown(String),
}

/// How the proxy's container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SidecarKind {
    /// An init container with `restartPolicy: Always`: it is told to stop after the application's containers ended.
    #[default]
    Native,
    /// A container beside the application's: it is told to stop together with them.
    Plain,
}

/// What `hauberk-proxy init` sets up in the kernel, and the proxy must know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirection {
    /// Packets of this uid pass.
    pub proxy_uid: u32,
    /// Connections to these ports of the pod pass.
    pub skip_inbound_ports: PortSet,
    /// Connections to these ports of others pass.
    pub skip_outbound_ports: PortSet,
    /// Connections from and to these networks pass.
    pub skip_subnets: Networks,
}

impl Default for Redirection {
    fn default() -> Self {
        Self {
            proxy_uid: PROXY_UID,
            skip_inbound_ports: PortSet::default(),
            skip_outbound_ports: PortSet::default(),
            skip_subnets: Networks::default(),
        }
    }
}

/// All that a proxy is told at start. Literal values only: nothing here is resolved later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxySpec {
    /// Who the pod is.
    pub identity: IdentityName,
    /// How strict it is about mTLS.
    pub tls: TlsMode,
    /// What a `required` pod may send outside the cluster.
    pub egress: Egress,
    /// Who may come to a `required` pod without mTLS: the client's network, and the pod's ports.
    pub allow_unmeshed_from: Vec<Exception>,
    /// Where a `required` pod may go without mTLS.
    pub allow_unmeshed_to: Vec<Exception>,
    /// What the kernel's rules redirect and let pass.
    pub redirection: Redirection,
    /// Pod, Service and node networks of the cluster, until `Networks.Watch` has told better.
    pub networks: Networks,
    /// The cluster's DNS resolvers: DNS over TCP to them is always forwarded.
    pub resolvers: Vec<IpAddr>,
    /// The API server: always forwarded.
    pub api_server: Option<SocketAddr>,
    /// How the container runs, which decides how it drains.
    pub sidecar: SidecarKind,
    /// Where the identity server answers.
    pub identity_addr: SocketAddr,
    /// Where the destination service answers.
    pub destination_addr: SocketAddr,
    /// File of the ServiceAccount token for [`crate::TOKEN_AUDIENCE`]; kubelet replaces it.
    pub token_file: String,
    /// Memory-backed directory for key, certificate and trust bundle: a restarted container finds them there.
    pub identity_dir: String,
    /// Trust roots, PEM, as they were when the pod was made.
    pub trust_roots: String,
    /// What the application's containers declared; kubelet asks the proxy instead.
    pub probes: Vec<Probe>,
    /// Waits and bounds.
    pub limits: Limits,
}

impl ProxySpec {
    /// What a pod of `identity` is told when nothing but the addresses of the control plane is set.
    pub fn new(
        identity: IdentityName,
        identity_addr: SocketAddr,
        destination_addr: SocketAddr,
        trust_roots: String,
    ) -> Self {
        Self {
            identity,
            tls: TlsMode::Optional,
            egress: Egress::Allow,
            allow_unmeshed_from: Vec::new(),
            allow_unmeshed_to: Vec::new(),
            redirection: Redirection::default(),
            networks: Networks::default(),
            resolvers: Vec::new(),
            api_server: None,
            sidecar: SidecarKind::Native,
            identity_addr,
            destination_addr,
            token_file: "/var/run/secrets/hauberk/token".to_owned(),
            identity_dir: "/var/run/hauberk/identity".to_owned(),
            trust_roots,
            probes: Vec::new(),
            limits: Limits::default(),
        }
    }

    /// Control namespace and trust domain.
    pub fn trust_domain(&self) -> TrustDomain {
        self.identity.trust_domain()
    }

    fn probes_to_json(&self) -> String {
        if self.probes.is_empty() {
            return String::new();
        }
        let json = serde_json::to_string(&self.probes).expect("probes hold nothing that JSON cannot");
        // kubelet would take $(NAME) in the value of a variable for another variable, and $$ for $. In JSON a $ can only
        // be part of a string, where it may be written as its number.
        json.replace('$', "\\u0024")
    }

    /// The environment that [`ProxySpec::from_env`] reads back; empty values are left out.
    pub fn to_env(&self) -> Vec<(&'static str, String)> {
        let redirection = &self.redirection;
        let all = [
            (IDENTITY, self.identity.to_string()),
            (TLS, self.tls.to_string()),
            (EGRESS, self.egress.to_string()),
            (ALLOW_FROM, join(&self.allow_unmeshed_from, " ")),
            (ALLOW_TO, join(&self.allow_unmeshed_to, " ")),
            (PROXY_UID_VAR, redirection.proxy_uid.to_string()),
            (SKIP_INBOUND, redirection.skip_inbound_ports.to_string()),
            (SKIP_OUTBOUND, redirection.skip_outbound_ports.to_string()),
            (SKIP_SUBNETS, redirection.skip_subnets.to_string()),
            (NETWORKS, self.networks.to_string()),
            (RESOLVERS, join(&self.resolvers, ",")),
            (API_SERVER, self.api_server.map(|addr| addr.to_string()).unwrap_or_default()),
            (SIDECAR, if self.sidecar == SidecarKind::Native { "native" } else { "plain" }.to_owned()),
            (IDENTITY_ADDR, self.identity_addr.to_string()),
            (DESTINATION_ADDR, self.destination_addr.to_string()),
            (TOKEN_FILE, self.token_file.clone()),
            (IDENTITY_DIR, self.identity_dir.clone()),
            (TRUST_ROOTS, self.trust_roots.clone()),
            (PROBES, self.probes_to_json()),
            (LIMITS, self.limits.to_text()),
        ];
        all.into_iter().filter(|(_, value)| !value.is_empty()).collect()
    }

    /// Reads the variables that start with `HAUBERK_`; others are not ours, nor are those that kubelet makes of Services
    /// whose name starts so. Every error names the variable.
    pub fn from_env(vars: impl IntoIterator<Item = (String, String)>) -> Result<Self, InvalidSpec> {
        let ours = |name: &str| name.starts_with(PREFIX) && !is_service_link(name);
        let vars: Vec<_> = vars.into_iter().filter(|(name, _)| ours(name)).collect();
        if let Some((name, _)) = vars.iter().find(|(name, _)| !ALL.contains(&name.as_str())) {
            return Err(InvalidSpec::Unknown(name.clone()));
        }
        let env = Env(&vars);
        let mut spec = Self::new(
            env.required(IDENTITY)?,
            env.required(IDENTITY_ADDR)?,
            env.required(DESTINATION_ADDR)?,
            env.required(TRUST_ROOTS)?,
        );
        env.set(TLS, &mut spec.tls)?;
        env.set(EGRESS, &mut spec.egress)?;
        spec.allow_unmeshed_from = env.list(ALLOW_FROM, |c: char| c.is_whitespace())?;
        spec.allow_unmeshed_to = env.list(ALLOW_TO, |c: char| c.is_whitespace())?;
        env.set(PROXY_UID_VAR, &mut spec.redirection.proxy_uid)?;
        env.set(SKIP_INBOUND, &mut spec.redirection.skip_inbound_ports)?;
        env.set(SKIP_OUTBOUND, &mut spec.redirection.skip_outbound_ports)?;
        env.set(SKIP_SUBNETS, &mut spec.redirection.skip_subnets)?;
        env.set(NETWORKS, &mut spec.networks)?;
        spec.resolvers = env.list(RESOLVERS, |c: char| c == ',')?;
        spec.api_server = env.list(API_SERVER, |_| false)?.pop();
        spec.sidecar = match env.get(SIDECAR) {
            None | Some("native") => SidecarKind::Native,
            Some("plain") => SidecarKind::Plain,
            Some(other) => {
                return Err(InvalidSpec::Value { name: SIDECAR, why: format!("{other:?}: use native or plain") });
            }
        };
        env.set(TOKEN_FILE, &mut spec.token_file)?;
        env.set(IDENTITY_DIR, &mut spec.identity_dir)?;
        if let Some(text) = env.get(PROBES) {
            spec.probes = serde_json::from_str(text).map_err(|error| describe(PROBES, text, error))?;
        }
        if let Some(text) = env.get(LIMITS) {
            spec.limits = Limits::parse(text).map_err(|error: InvalidLimits| value(LIMITS, error))?;
        }
        Ok(spec)
    }
}

const PREFIX: &str = "HAUBERK_";
const IDENTITY: &str = "HAUBERK_IDENTITY";
const TLS: &str = "HAUBERK_TLS";
const EGRESS: &str = "HAUBERK_EGRESS";
const ALLOW_FROM: &str = "HAUBERK_ALLOW_UNMESHED_FROM";
const ALLOW_TO: &str = "HAUBERK_ALLOW_UNMESHED_TO";
const PROXY_UID_VAR: &str = "HAUBERK_PROXY_UID";
const SKIP_INBOUND: &str = "HAUBERK_SKIP_INBOUND_PORTS";
const SKIP_OUTBOUND: &str = "HAUBERK_SKIP_OUTBOUND_PORTS";
const SKIP_SUBNETS: &str = "HAUBERK_SKIP_SUBNETS";
const NETWORKS: &str = "HAUBERK_NETWORKS";
const RESOLVERS: &str = "HAUBERK_RESOLVERS";
const API_SERVER: &str = "HAUBERK_API_SERVER";
const SIDECAR: &str = "HAUBERK_SIDECAR";
const IDENTITY_ADDR: &str = "HAUBERK_IDENTITY_ADDR";
const DESTINATION_ADDR: &str = "HAUBERK_DESTINATION_ADDR";
const TOKEN_FILE: &str = "HAUBERK_TOKEN_FILE";
const IDENTITY_DIR: &str = "HAUBERK_IDENTITY_DIR";
const TRUST_ROOTS: &str = "HAUBERK_TRUST_ROOTS";
const PROBES: &str = "HAUBERK_PROBES";
const LIMITS: &str = "HAUBERK_LIMITS";
const ALL: [&str; 20] = [
    IDENTITY,
    TLS,
    EGRESS,
    ALLOW_FROM,
    ALLOW_TO,
    PROXY_UID_VAR,
    SKIP_INBOUND,
    SKIP_OUTBOUND,
    SKIP_SUBNETS,
    NETWORKS,
    RESOLVERS,
    API_SERVER,
    SIDECAR,
    IDENTITY_ADDR,
    DESTINATION_ADDR,
    TOKEN_FILE,
    IDENTITY_DIR,
    TRUST_ROOTS,
    PROBES,
    LIMITS,
];

struct Env<'a>(&'a [(String, String)]);

impl Env<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    fn required<T: FromStr<Err: Display>>(&self, name: &'static str) -> Result<T, InvalidSpec> {
        let text = self.get(name).ok_or(InvalidSpec::Missing(name))?;
        text.parse().map_err(|error| describe(name, text, error))
    }

    fn set<T: FromStr<Err: Display>>(&self, name: &'static str, target: &mut T) -> Result<(), InvalidSpec> {
        if let Some(text) = self.get(name) {
            *target = text.parse().map_err(|error| describe(name, text, error))?;
        }
        Ok(())
    }

    fn list<T: FromStr<Err: Display>>(
        &self,
        name: &'static str,
        separator: impl Fn(char) -> bool,
    ) -> Result<Vec<T>, InvalidSpec> {
        let items = self.get(name).unwrap_or_default().split(separator).filter(|item| !item.is_empty());
        items.map(|item| item.parse().map_err(|error| describe(name, item, error))).collect()
    }
}

/// The errors of the standard library do not name the input; ours do, once.
fn describe(name: &'static str, text: &str, error: impl Display) -> InvalidSpec {
    let error = error.to_string();
    let quoted = format!("{text:?}");
    value(name, if error.contains(&quoted) { error } else { format!("{quoted}: {error}") })
}

fn value(name: &'static str, why: impl Display) -> InvalidSpec {
    InvalidSpec::Value { name, why: why.to_string() }
}

fn join<T: Display>(items: &[T], separator: &str) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ProbeAction, ProbeKind};
    use proptest::prelude::*;

    fn spec() -> ProxySpec {
        let identity = TrustDomain::default().identity("web.v2", "shop").expect("valid");
        ProxySpec::new(
            identity,
            "10.2.0.2:8080".parse().expect("an address"),
            "[fd00::2]:8086".parse().expect("an address"),
            "-----BEGIN CERTIFICATE-----\n…\n".to_owned(),
        )
    }

    fn probes() -> Vec<Probe> {
        let actions = [
            ProbeAction::HttpGet {
                https: true,
                host: Some("health.example".to_owned()),
                port: 8443,
                path: "/live?deep=1".to_owned(),
                headers: vec![("X-A".to_owned(), "1".to_owned()), ("X-A".to_owned(), "2".to_owned())],
            },
            ProbeAction::TcpSocket { host: None, port: 5432 },
            ProbeAction::Grpc { port: 9000, service: "shop.Cart".to_owned() },
        ];
        let probe = |(kind, action): (&ProbeKind, ProbeAction)| Probe {
            container: "app".to_owned(),
            kind: *kind,
            action,
            timeout_seconds: 1,
        };
        ProbeKind::ALL.iter().zip(actions).map(probe).collect()
    }

    fn env(spec: &ProxySpec) -> Vec<(String, String)> {
        spec.to_env().into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    #[test]
    fn what_the_webhook_writes_the_proxy_reads() {
        let mut full = spec();
        full.tls = TlsMode::Required;
        full.egress = Egress::TlsOnly;
        full.allow_unmeshed_from =
            vec!["10.9.0.0/16@22,80-90".parse().expect("valid"), "fd00::/8".parse().expect("valid")];
        full.allow_unmeshed_to = vec!["192.0.2.1/32@5432".parse().expect("valid")];
        full.redirection.proxy_uid = 7;
        full.redirection.skip_inbound_ports = "22".parse().expect("valid");
        full.redirection.skip_outbound_ports = "25,587".parse().expect("valid");
        full.redirection.skip_subnets = "169.254.0.0/16".parse().expect("valid");
        full.networks = "10.1.0.0/16,fd00:1::/64".parse().expect("valid");
        full.resolvers = vec!["10.2.0.10".parse().expect("an address"), "fd00::a".parse().expect("an address")];
        full.api_server = Some("10.2.0.1:443".parse().expect("an address"));
        full.sidecar = SidecarKind::Plain;
        full.token_file = "/t".to_owned();
        full.identity_dir = "/d".to_owned();
        full.probes = probes();
        full.limits.pool_total = 3;
        for spec in [spec(), full] {
            assert_eq!(ProxySpec::from_env(env(&spec)), Ok(spec));
        }
    }

    #[test]
    fn every_variable_is_named_in_its_error() {
        let valid = env(&spec());
        for name in [IDENTITY, IDENTITY_ADDR, DESTINATION_ADDR, TRUST_ROOTS] {
            let vars = valid.iter().filter(|(key, _)| key != name).cloned();
            assert_eq!(ProxySpec::from_env(vars), Err(InvalidSpec::Missing(name)));
        }
        let textual = [TOKEN_FILE, IDENTITY_DIR, TRUST_ROOTS];
        for name in ALL.into_iter().filter(|name| !textual.contains(name)) {
            let mut vars = valid.clone();
            vars.retain(|(key, _)| key != name);
            vars.push((name.to_owned(), "x?".to_owned()));
            let error = ProxySpec::from_env(vars).expect_err(name).to_string();
            assert!(error.contains(name) && error.contains("x?"), "{error}");
        }
        let unknown = valid.iter().cloned().chain([("HAUBERK_TSL".to_owned(), "required".to_owned())]);
        assert_eq!(ProxySpec::from_env(unknown), Err(InvalidSpec::Unknown("HAUBERK_TSL".to_owned())));
    }

    #[test]
    fn services_whose_name_starts_like_our_variables_are_not_ours() {
        let spec = spec();
        let link = ("HAUBERK_DEMO_SERVICE_HOST".to_owned(), "10.2.0.9".to_owned());
        assert_eq!(ProxySpec::from_env(env(&spec).into_iter().chain([link])), Ok(spec));
        assert!(!ALL.iter().any(|name| is_service_link(name)));
    }

    #[test]
    fn kubelet_finds_no_variable_to_expand_in_a_probe() {
        let mut spec = spec();
        let action = ProbeAction::Grpc { port: 1, service: "$(HOME) $$x".to_owned() };
        spec.probes = vec![Probe { action, ..probes().remove(0) }];
        assert!(env(&spec).iter().all(|(_, value)| !value.contains('$')));
        assert_eq!(ProxySpec::from_env(env(&spec)), Ok(spec));
    }

    proptest! {
        #[test]
        fn no_value_panics(name in 0..ALL.len(), text in ".{0,80}") {
            let mut vars = env(&spec());
            vars.retain(|(key, _)| key != ALL[name]);
            vars.push((ALL[name].to_owned(), text));
            let _ = ProxySpec::from_env(vars);
        }
    }
}
