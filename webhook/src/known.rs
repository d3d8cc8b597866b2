//! What the webhook knows of the mesh: settings, trust roots, addresses of identity and destination, and what kubelets
//! can do. Each is watched by itself; what cannot be read, or is gone, leaves what was known before in force.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use hauberk_kubernetes::{Latch, MeshConfig, Readiness};
use hauberk_mesh::{CONFIG_KEY, CONFIG_MAP, DESTINATION_ACCOUNT, IDENTITY_ACCOUNT, TRUST_MAP, TRUST_ROOTS_KEY};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, Service},
};
use kube::{
    Api, Client, Resource,
    runtime::{WatchStreamExt, watcher::watch_object},
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::de::DeserializeOwned;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use crate::{inject::Cluster, metrics::Metrics};

/// Of a question about the API server's version.
const CALL: Duration = Duration::from_secs(5);
/// Between two such questions, and after one that failed.
const VERSION_EVERY: Duration = Duration::from_secs(300);
const VERSION_AGAIN: Duration = Duration::from_secs(2);
/// The first minor version whose kubelets know native sidecars.
const NATIVE_SINCE: u32 = 29;
/// By how many minor versions a kubelet may be older than the API server.
const SKEW: u32 = 3;

/// Whether pods get native sidecars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum NativeSidecars {
    /// If every kubelet that this API server may have knows them: from 1.32 on. Nodes are not among the webhook's
    /// rights, and their oldest version of today says nothing about the node that joins tomorrow.
    Auto,
    /// Yes: all kubelets, now and later, are 1.29 or newer.
    Always,
    /// No.
    Never,
}

/// What is known by now.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Known {
    config: Option<Arc<MeshConfig>>,
    trust_roots: Option<String>,
    identity_addr: Option<SocketAddr>,
    destination_addr: Option<SocketAddr>,
    native_sidecars: Option<bool>,
    api_server: Option<SocketAddr>,
}

impl Known {
    /// What a decision needs, or the names of what is missing.
    pub(crate) fn inputs(&self) -> Result<(Arc<MeshConfig>, Cluster), String> {
        let Self { config, trust_roots, identity_addr, destination_addr, native_sidecars, api_server } = self;
        if let (Some(config), Some(trust_roots), Some(identity_addr), Some(destination_addr), Some(native_sidecars)) =
            (config, trust_roots, identity_addr, destination_addr, native_sidecars)
        {
            let cluster = Cluster {
                trust_roots: trust_roots.clone(),
                identity_addr: *identity_addr,
                destination_addr: *destination_addr,
                api_server: *api_server,
                native_sidecars: *native_sidecars,
            };
            return Ok((config.clone(), cluster));
        }
        let all = [
            (config.is_none(), Input::Settings),
            (trust_roots.is_none(), Input::TrustRoots),
            (identity_addr.is_none(), Input::Identity),
            (destination_addr.is_none(), Input::Destination),
            (native_sidecars.is_none(), Input::Version),
        ];
        let missing: Vec<_> = all.iter().filter(|(missing, _)| *missing).map(|(_, input)| input.as_str()).collect();
        Err(format!("the mesh's {} not known yet", missing.join(", ")))
    }
}

/// What is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Input {
    /// ConfigMap `hauberk-config`.
    Settings,
    /// ConfigMap `hauberk-trust`.
    TrustRoots,
    /// Service `hauberk-identity`.
    Identity,
    /// Service `hauberk-destination`.
    Destination,
    /// `/version`.
    Version,
}

impl Input {
    /// All of them.
    pub(crate) const ALL: [Self; 5] =
        [Self::Settings, Self::TrustRoots, Self::Identity, Self::Destination, Self::Version];

    /// The spelling.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::TrustRoots => "trust-roots",
            Self::Identity => "identity-address",
            Self::Destination => "destination-address",
            Self::Version => "api-server-version",
        }
    }
}

/// Where it is read from.
#[derive(Debug, Clone)]
pub struct Source {
    /// The control namespace.
    pub namespace: String,
    /// ClusterIP and port of the API server.
    pub api_server: Option<SocketAddr>,
    /// What decides about native sidecars.
    pub native_sidecars: NativeSidecars,
}

/// Follows all inputs in tasks of `parts`. Ready once each was read once.
pub(crate) fn follow(
    parts: &mut JoinSet<&'static str>,
    client: &Client,
    source: &Source,
    readiness: &Readiness,
    metrics: &Metrics,
) -> watch::Receiver<Arc<Known>> {
    let known = Known { api_server: source.api_server, ..Known::default() };
    let (sender, receiver) = watch::channel(Arc::new(known));
    let follower = |input: Input| Follower {
        input,
        latch: readiness.latch(input.as_str()),
        known: sender.clone(),
        metrics: metrics.clone(),
    };
    let (client, namespace) = (|| client.clone(), || source.namespace.clone());
    let control_namespace = namespace();
    parts.spawn(follower(Input::Settings).watch(client(), namespace(), CONFIG_MAP, move |map, known| {
        known.config = Some(read_settings(map, &control_namespace)?.into());
        Ok(())
    }));
    parts.spawn(follower(Input::TrustRoots).watch(client(), namespace(), TRUST_MAP, |map, known| {
        known.trust_roots = Some(read_trust_roots(map)?);
        Ok(())
    }));
    parts.spawn(follower(Input::Identity).watch(client(), namespace(), IDENTITY_ACCOUNT, |service, known| {
        known.identity_addr = Some(read_address(service)?);
        Ok(())
    }));
    parts.spawn(follower(Input::Destination).watch(client(), namespace(), DESTINATION_ACCOUNT, |service, known| {
        known.destination_addr = Some(read_address(service)?);
        Ok(())
    }));
    parts.spawn(follower(Input::Version).ask_for_version(client(), source.native_sidecars));
    receiver
}

struct Follower {
    input: Input,
    latch: Latch,
    known: watch::Sender<Arc<Known>>,
    metrics: Metrics,
}

impl Follower {
    async fn watch<K>(
        self,
        client: Client,
        namespace: String,
        name: &'static str,
        read: impl Fn(&K, &mut Known) -> Result<(), String> + Send,
    ) -> &'static str
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        let api = Api::<K>::namespaced(client, &namespace);
        let mut objects = watch_object(api, name).default_backoff().boxed();
        while let Some(seen) = objects.next().await {
            match seen {
                Ok(Some(object)) => self.take(|known| read(&object, known)),
                Ok(None) => self.take(|_| Err(format!("there is no {} {name}", K::kind(&())))),
                Err(error) => warn!(input = self.input.as_str(), %error, "cannot be watched; again"),
            }
        }
        "the watch of an input"
    }

    /// `/version` is open to every authenticated user by default. A cluster's API servers may differ while it is
    /// upgraded: the answer of one is good for a while only.
    async fn ask_for_version(self, client: Client, native: NativeSidecars) -> &'static str {
        loop {
            let minor = match native {
                NativeSidecars::Auto => match timeout(CALL, client.apiserver_version()).await {
                    Ok(Ok(version)) => minor(&version.minor),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err("no answer in time".to_owned()),
                },
                NativeSidecars::Always | NativeSidecars::Never => Ok(0),
            };
            let wait = if minor.is_ok() { VERSION_EVERY } else { VERSION_AGAIN };
            self.take(|known| {
                known.native_sidecars = Some(match native {
                    NativeSidecars::Auto => minor? >= NATIVE_SINCE + SKEW,
                    NativeSidecars::Always => true,
                    NativeSidecars::Never => false,
                });
                Ok(())
            });
            sleep(wait).await;
        }
    }

    fn take(&self, read: impl FnOnce(&mut Known) -> Result<(), String>) {
        let mut taken = Ok(());
        let changed = self.known.send_if_modified(|known| {
            let mut next = Known::clone(known);
            taken = read(&mut next);
            let changed = taken.is_ok() && next != **known;
            if changed {
                *known = Arc::new(next);
            }
            changed
        });
        let input = self.input.as_str();
        self.metrics.input(self.input, taken.is_ok());
        match taken {
            Ok(()) => {
                if changed {
                    info!(input, "taken over");
                }
                self.latch.open();
            }
            Err(why) => warn!(input, why, "what was known before stays in force"),
        }
    }
}

fn read_settings(map: &ConfigMap, control_namespace: &str) -> Result<MeshConfig, String> {
    let text = value(map, CONFIG_KEY)?;
    let config = MeshConfig::parse(text).map_err(|error| error.to_string())?;
    if config.control_namespace != control_namespace {
        let other = config.control_namespace;
        return Err(format!("the mesh's settings are those of control namespace {other}, not {control_namespace}"));
    }
    Ok(config)
}

/// Every proxy would fail over what cannot be read.
fn read_trust_roots(map: &ConfigMap) -> Result<String, String> {
    let text = value(map, TRUST_ROOTS_KEY)?;
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match roots {
        Ok(roots) if !roots.is_empty() => Ok(text.to_owned()),
        Ok(_) => Err(format!("{TRUST_ROOTS_KEY} holds no certificate")),
        Err(error) => Err(format!("{TRUST_ROOTS_KEY} is not PEM: {error}")),
    }
}

fn value<'m>(map: &'m ConfigMap, key: &str) -> Result<&'m str, String> {
    let value = map.data.as_ref().and_then(|data| data.get(key));
    value.map(String::as_str).ok_or_else(|| format!("the ConfigMap has no key {key}"))
}

fn read_address(service: &Service) -> Result<SocketAddr, String> {
    let spec = service.spec.as_ref().ok_or("the Service has no spec")?;
    let text = spec.cluster_ip.as_deref().unwrap_or_default();
    let ip: IpAddr = text.parse().map_err(|_| format!("the Service needs a ClusterIP, and has {text:?}"))?;
    let port = spec.ports.iter().flatten().next().ok_or("the Service has no port")?.port;
    let port = u16::try_from(port).map_err(|_| format!("{port} is no port"))?;
    Ok(SocketAddr::new(ip, port))
}

/// Some providers write `34+`.
fn minor(text: &str) -> Result<u32, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    digits.parse().map_err(|_| format!("the API server's minor version is {text:?}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};

    use super::*;

    fn map(key: &str, value: &str) -> ConfigMap {
        ConfigMap { data: Some(BTreeMap::from([(key.to_owned(), value.to_owned())])), ..ConfigMap::default() }
    }

    #[test]
    fn settings_of_another_mesh_are_not_taken() {
        let text = MeshConfig::default().to_text();
        assert_eq!(read_settings(&map(CONFIG_KEY, &text), "hauberk"), Ok(MeshConfig::default()));
        assert!(read_settings(&map(CONFIG_KEY, &text), "mesh").expect_err("other").contains("hauberk, not mesh"));
        assert!(read_settings(&map("other", &text), "hauberk").expect_err("no key").contains(CONFIG_KEY));
    }

    #[test]
    fn only_certificates_are_trust_roots() {
        assert!(read_trust_roots(&map(TRUST_ROOTS_KEY, "")).expect_err("empty").contains("no certificate"));
        let broken = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
        assert!(read_trust_roots(&map(TRUST_ROOTS_KEY, broken)).expect_err("broken").contains("not PEM"));
    }

    #[test]
    fn an_address_is_a_cluster_ip_and_the_services_port() {
        let service = |ip: &str| Service {
            spec: Some(ServiceSpec {
                cluster_ip: Some(ip.to_owned()),
                ports: Some(vec![ServicePort { port: 8080, ..ServicePort::default() }]),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        };
        assert_eq!(read_address(&service("10.96.0.7")), Ok("10.96.0.7:8080".parse().expect("an address")));
        assert_eq!(read_address(&service("fd00::7")), Ok("[fd00::7]:8080".parse().expect("an address")));
        assert!(read_address(&service("None")).expect_err("headless").contains("None"));
        assert!(read_address(&Service::default()).is_err());
    }

    #[test]
    fn minors_are_read_as_providers_write_them() {
        assert_eq!((minor("34"), minor("31+")), (Ok(34), Ok(31)));
        assert!(minor("").is_err() && minor("+").is_err());
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut known = Known { identity_addr: Some("10.0.0.1:8080".parse().expect("an address")), ..Known::default() };
        let missing = known.inputs().expect_err("missing");
        assert_eq!(missing, "the mesh's settings, trust-roots, destination-address, api-server-version not known yet");
        known.config = Some(Arc::default());
        known.trust_roots = Some("PEM".to_owned());
        known.destination_addr = known.identity_addr;
        known.native_sidecars = Some(true);
        assert!(known.inputs().expect("all there").1.native_sidecars);
    }
}
