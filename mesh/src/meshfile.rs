//! `mesh.yaml`: the pods and services of a mesh that no Kubernetes describes. Read by identity (which pods exist) and
//! by destination (who answers where). Text in, a checked description or an error with its line out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use crate::{Networks, PortSet, TlsMode};

/// What is wrong with a `mesh.yaml`, and where.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line}, column {column}: {what}")]
pub struct InvalidMesh {
    /// From 1 on; 0 where the file as a whole is at fault.
    pub line: u64,
    /// From 1 on; 0 where the file as a whole is at fault.
    pub column: u64,
    /// What is wrong, and the remedy.
    pub what: String,
}

/// A checked description: names are unique, every endpoint exists, no address has two owners.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MeshFile {
    /// Pod, Service and node networks.
    pub networks: Networks,
    /// By `namespace/name`.
    pub pods: BTreeMap<String, Pod>,
    /// By `namespace/name`.
    pub services: BTreeMap<String, Service>,
}

/// A pod, or a machine that is treated as one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Pod {
    /// Name, unique in its namespace.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Unique for all time: tokens are bound to it.
    pub uid: String,
    /// The account that it runs as.
    pub service_account: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its proxy; a pod without one is not meshed.
    #[serde(default)]
    pub proxy: Option<PodProxy>,
    /// Whether it gets traffic of services.
    #[serde(default = "yes")]
    pub ready: bool,
    /// Whether it is being deleted.
    #[serde(default)]
    pub terminating: bool,
    /// Whether it has ended: it has no address any more and gets no certificate.
    #[serde(default)]
    pub ended: bool,
    /// Share of a service's connections, relative to its other endpoints.
    #[serde(default = "one")]
    pub weight: u32,
    /// Labels for metrics.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// What others must know of a pod's proxy.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PodProxy {
    /// Its mode. A `disabled` proxy takes no mTLS.
    #[serde(default = "optional")]
    pub tls: TlsMode,
    /// Ports that its rules let pass: not meshed.
    #[serde(default)]
    pub skip_inbound_ports: PortSet,
}

/// A service: addresses in front of endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Service {
    /// Name, unique in its namespace.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Every address that it answers on.
    pub ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Its pods: `name`, or `namespace/name`.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Seconds for which one client stays with one endpoint (`sessionAffinity: ClientIP`).
    #[serde(default)]
    pub affinity_seconds: Option<u32>,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServicePort {
    /// On the service's addresses.
    pub port: u16,
    /// On its endpoints; the same if absent.
    #[serde(default)]
    pub target: Option<u16>,
}

impl MeshFile {
    /// Reads and checks `yaml`. An empty file is an error: it is more likely half written than meant.
    pub fn parse(yaml: &str) -> Result<Self, InvalidMesh> {
        let raw: Raw = serde_saphyr::from_str(yaml).map_err(|error| {
            let at = error.location();
            let what = error.without_snippet().to_string();
            let what = what.split(" at line ").next().unwrap_or_default();
            let (line, column) = at.map_or((0, 0), |at| (at.line(), at.column()));
            let written = yaml.lines().nth(line.saturating_sub(1) as usize).unwrap_or_default().trim();
            InvalidMesh { line, column, what: format!("{what}: {written:?}") }
        })?;
        raw.check()
    }

    /// The pod of that name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        self.pods.get(&key(namespace, name))
    }

    /// The pod that has `ip` now.
    pub fn pod_at(&self, ip: IpAddr) -> Option<&Pod> {
        let ip = ip.to_canonical();
        self.pods.values().find(|pod| !pod.ended && pod.ips.contains(&ip))
    }
}

impl Service {
    /// The keys in [`MeshFile::pods`] of the service's endpoints.
    pub fn pod_keys(&self) -> impl Iterator<Item = String> {
        self.endpoints.iter().map(|name| pod_key(&self.namespace, name))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    networks: Networks,
    #[serde(default)]
    pods: Vec<Spanned<Pod>>,
    #[serde(default)]
    services: Vec<Spanned<Service>>,
}

impl Raw {
    fn check(self) -> Result<MeshFile, InvalidMesh> {
        let mut mesh = MeshFile { networks: self.networks, ..MeshFile::default() };
        let mut owners: BTreeMap<IpAddr, String> = BTreeMap::new();
        let mut uids = BTreeSet::new();
        for Spanned { value: pod, referenced: at, .. } in self.pods {
            let name = key(&pod.namespace, &pod.name);
            if !uids.insert(pod.uid.clone()) {
                return Err(fault(
                    at,
                    format!("pod {name}: uid {:?} is another pod's: every pod has its own", pod.uid),
                ));
            }
            if pod.weight == 0 {
                return Err(fault(at, format!("pod {name}: weight 0: write 1 or more, or ready: false")));
            }
            if !pod.ended {
                claim(&mut owners, &pod.ips, format!("pod {name}"), at)?;
            }
            if mesh.pods.insert(name.clone(), pod).is_some() {
                return Err(fault(at, format!("pod {name} stands here twice: names are unique in a namespace")));
            }
        }
        for Spanned { value: service, referenced: at, .. } in self.services {
            let name = key(&service.namespace, &service.name);
            claim(&mut owners, &service.ips, format!("service {name}"), at)?;
            let mut ports = BTreeSet::new();
            for port in &service.ports {
                if port.port == 0 || port.target == Some(0) || !ports.insert(port.port) {
                    let what = format!("service {name}: port {} is 0 or stands here twice", port.port);
                    return Err(fault(at, what));
                }
            }
            if let Some(missing) = service.pod_keys().find(|key| !mesh.pods.contains_key(key)) {
                return Err(fault(at, format!("service {name}: there is no pod {missing}: add it, or mend the name")));
            }
            if mesh.services.insert(name.clone(), service).is_some() {
                return Err(fault(at, format!("service {name} stands here twice: names are unique in a namespace")));
            }
        }
        Ok(mesh)
    }
}

fn claim(
    owners: &mut BTreeMap<IpAddr, String>,
    ips: &[IpAddr],
    owner: String,
    at: Location,
) -> Result<(), InvalidMesh> {
    for ip in ips {
        if let Some(other) = owners.insert(*ip, owner.clone()) {
            return Err(fault(
                at,
                format!("{owner}: address {ip} is also that of {other}: every address has one owner"),
            ));
        }
    }
    Ok(())
}

fn fault(at: Location, what: String) -> InvalidMesh {
    InvalidMesh { line: at.line(), column: at.column(), what }
}

fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

fn pod_key(namespace: &str, name: &str) -> String {
    if name.contains('/') { name.to_owned() } else { key(namespace, name) }
}

fn yes() -> bool {
    true
}

fn one() -> u32 {
    1
}

fn optional() -> TlsMode {
    TlsMode::Optional
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "\
networks: 10.1.0.0/16,10.2.0.0/16
pods:
  - name: web-0
    namespace: shop
    uid: u0
    serviceAccount: web
    ips: [10.1.0.2, 'fd00::2']
    proxy: {skipInboundPorts: '9000'}
  - name: old
    namespace: shop
    uid: u1
    serviceAccount: old
    ips: [10.1.0.3]
services:
  - name: web
    namespace: shop
    ips: [10.2.0.10]
    ports: [{port: 80, target: 8080}]
    endpoints: [web-0, shop/old]
";

    #[test]
    fn reads_pods_and_services() {
        let mesh = MeshFile::parse(GOOD).expect("valid");
        let web = mesh.pod("shop", "web-0").expect("there");
        assert_eq!(mesh.pod_at("fd00::2".parse().expect("an address")), Some(web));
        assert!(web.proxy.as_ref().expect("meshed").skip_inbound_ports.contains(9000));
        assert!(mesh.pod("shop", "old").expect("there").proxy.is_none());
        assert_eq!(mesh.services["shop/web"].pod_keys().collect::<Vec<_>>(), ["shop/web-0", "shop/old"]);
    }

    #[test]
    fn the_example_of_the_document_is_valid() {
        let document = include_str!("../../docs/mesh-yaml.md");
        let yaml = document.split("```").nth(1).and_then(|block| block.strip_prefix("yaml\n")).expect("an example");
        let mesh = MeshFile::parse(yaml).expect("valid");
        assert_eq!((mesh.pods.len(), mesh.services.len()), (3, 1));
    }

    #[test]
    fn a_bad_edit_is_refused_with_its_line() {
        for (from, to, line, what) in [
            ("uid: u1", "uid: u0", 9, "another pod's"),
            ("10.1.0.3", "10.1.0.2", 9, "address 10.1.0.2 is also that of pod shop/web-0"),
            ("10.2.0.10", "10.1.0.2", 15, "every address has one owner"),
            ("shop/old]", "web-9]", 15, "there is no pod shop/web-9"),
            ("target: 8080", "target: 80800", 18, "80800"),
            ("name: old", "name: web-0", 9, "stands here twice"),
            ("10.1.0.3", "10.1.0", 13, "IP address"),
            ("'9000'", "'0'", 8, "is not a port"),
            ("proxy:", "porxy:", 8, "porxy"),
            ("networks: 10", "networks: x10", 1, "is not a network"),
        ] {
            let error = MeshFile::parse(&GOOD.replace(from, to)).expect_err(to);
            assert!(error.line == line && error.what.contains(what), "{to}: {error:?}");
        }
        assert!(MeshFile::parse("").is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics_the_parser(text in ".{0,200}", at in 0..GOOD.len(), cut in 0usize..20) {
            let _ = MeshFile::parse(&text);
            let _ = MeshFile::parse(&format!("{}{text}{}", &GOOD[..at], &GOOD[(at + cut).min(GOOD.len())..]));
        }
    }
}
