//! `MeshConfig`: the mesh's effective values. `install` writes them into the ConfigMap [`hauberk_mesh::CONFIG_MAP`];
//! the webhook and the command line read them. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use hauberk_mesh::{CONTROL_NAMESPACE, InvalidIdentity, Networks, TRUST_DOMAIN, TlsMode, TrustDomain};
use serde::{Deserialize, Serialize};

/// Why a text is not the mesh's settings.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    /// Not of the form.
    #[error("the mesh's settings: {0}")]
    Form(#[from] serde_json::Error),
    /// Control namespace or trust domain.
    #[error("the mesh's settings: {0}")]
    Domain(#[from] InvalidIdentity),
}

/// The mesh's effective values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct MeshConfig {
    /// Namespace of the control plane.
    pub control_namespace: String,
    /// Trust domain, also that of service names.
    pub trust_domain: String,
    /// The mode of namespaces that say nothing.
    pub tls: TlsMode,
    /// Pod, Service and node networks.
    pub networks: Networks,
    /// The cluster's DNS resolvers.
    pub resolvers: Vec<IpAddr>,
    /// Image of proxy and init.
    pub proxy_image: String,
    /// Image of identity, destination and webhook.
    pub controller_image: String,
    /// Of both.
    pub image_pull_policy: PullPolicy,
    /// Of the proxy's container, where no annotation says otherwise.
    pub proxy_resources: Resources,
    /// Three replicas of each part of the control plane.
    #[serde(default)]
    pub high_availability: bool,
    /// Defaults of what annotations set, by annotation (`hauberk.dev/…`).
    #[serde(default)]
    pub defaults: BTreeMap<String, String>,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum PullPolicy {
    /// Each time.
    Always,
    /// Where the node lacks it.
    #[default]
    IfNotPresent,
    /// Never: it is on the node.
    Never,
}

/// Requests and limits of the proxy's container, as Kubernetes writes quantities. Requests are always set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Resources {
    /// CPU that is set aside.
    pub cpu_request: String,
    /// Memory that is set aside.
    pub memory_request: String,
    /// Most CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit: Option<String>,
    /// Most memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<String>,
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpu_request: "10m".to_owned(), memory_request: "24Mi".to_owned(), cpu_limit: None, memory_limit: None }
    }
}

impl MeshConfig {
    /// Reads what `install` wrote.
    pub fn parse(text: &str) -> Result<Self, InvalidConfig> {
        let config: Self = serde_json::from_str(text)?;
        config.domain()?;
        Ok(config)
    }

    /// The text that [`MeshConfig::parse`] reads: the same bytes for the same values.
    pub fn to_text(&self) -> String {
        serde_json::to_string_pretty(self).expect("settings hold nothing that JSON cannot") + "\n"
    }

    /// Control namespace and trust domain.
    pub fn domain(&self) -> Result<TrustDomain, InvalidIdentity> {
        TrustDomain::new(&self.control_namespace, &self.trust_domain)
    }
}

impl Default for MeshConfig {
    fn default() -> Self {
        let version = env!("CARGO_PKG_VERSION");
        Self {
            control_namespace: CONTROL_NAMESPACE.to_owned(),
            trust_domain: TRUST_DOMAIN.to_owned(),
            tls: TlsMode::Optional,
            networks: Networks::default(),
            resolvers: Vec::new(),
            proxy_image: format!("hauberk.dev/hauberk-proxy:{version}"),
            controller_image: format!("hauberk.dev/hauberk-controller:{version}"),
            image_pull_policy: PullPolicy::default(),
            proxy_resources: Resources::default(),
            high_availability: false,
            defaults: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_install_writes_is_read_back() {
        let mut config = MeshConfig { tls: TlsMode::Required, ..MeshConfig::default() };
        config.networks = "10.244.0.0/16,fd00:10::/56".parse().expect("valid");
        config.resolvers = vec!["10.96.0.10".parse().expect("an address")];
        config.defaults.insert("hauberk.dev/log".to_owned(), "debug".to_owned());
        config.proxy_resources.cpu_limit = Some("1".to_owned());
        assert_eq!(MeshConfig::parse(&config.to_text()).expect("valid"), config);
    }

    #[test]
    fn refuses_unknown_keys_and_names_that_no_identity_can_hold() {
        let text = MeshConfig::default().to_text();
        let error = MeshConfig::parse(&text.replace("\"tls\"", "\"tsl\"")).expect_err("misspelled").to_string();
        assert!(error.contains("tsl"), "{error}");
        let error = MeshConfig::parse(&text.replace("\"hauberk\"", "\"Hau berk\"")).expect_err("no label").to_string();
        assert!(error.contains("Hau berk"), "{error}");
    }
}
