//! `--set key=value`: the mesh's settings by name, each checked when it is set. Pure.

use std::{fmt::Write, net::IpAddr, str::FromStr};

use anyhow::{Result, anyhow, bail};
use hauberk_kubernetes::{MeshConfig, PullPolicy};
use hauberk_mesh::KEY_PREFIX;
use hauberk_webhook::inject::SETTINGS;

/// One `key=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    key: String,
    value: String,
}

impl FromStr for Setting {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
        Ok(Self { key: key.trim().to_owned(), value: value.trim().to_owned() })
    }
}

type Set = fn(&mut MeshConfig, &str) -> Result<()>;

/// Every key but the defaults of annotations.
const KEYS: [(&str, &str, Set); 13] = [
    ("controlNamespace", "namespace of the control plane", |config, text| put(&mut config.control_namespace, text)),
    ("trustDomain", "trust domain, also that of service names", |config, text| put(&mut config.trust_domain, text)),
    ("tls", "mode of namespaces that say nothing", |config, text| put(&mut config.tls, text)),
    ("networks", "networks of pods, Services and nodes, with commas between", |config, text| {
        put(&mut config.networks, text)
    }),
    ("resolvers", "addresses of the cluster's DNS, with commas between", |config, text| {
        config.resolvers = list(text)?;
        Ok(())
    }),
    ("proxyImage", "image of proxy and init", |config, text| put(&mut config.proxy_image, text)),
    ("controllerImage", "image of identity, destination and webhook", |config, text| {
        put(&mut config.controller_image, text)
    }),
    ("imagePullPolicy", "Always, IfNotPresent or Never", |config, text| {
        config.image_pull_policy = match text {
            "Always" => PullPolicy::Always,
            "IfNotPresent" => PullPolicy::IfNotPresent,
            "Never" => PullPolicy::Never,
            _ => bail!("use Always, IfNotPresent or Never"),
        };
        Ok(())
    }),
    ("highAvailability", "true: three replicas of each part", |config, text| put(&mut config.high_availability, text)),
    ("proxyResources.cpuRequest", "CPU that a proxy requests", |config, text| {
        put(&mut config.proxy_resources.cpu_request, quantity(text)?)
    }),
    ("proxyResources.memoryRequest", "memory that a proxy requests", |config, text| {
        put(&mut config.proxy_resources.memory_request, quantity(text)?)
    }),
    ("proxyResources.cpuLimit", "most CPU that a proxy gets; none if empty", |config, text| {
        config.proxy_resources.cpu_limit = optional(text)?;
        Ok(())
    }),
    ("proxyResources.memoryLimit", "most memory that a proxy gets; none if empty", |config, text| {
        config.proxy_resources.memory_limit = optional(text)?;
        Ok(())
    }),
];

/// What keys of annotations' defaults begin with: `defaults.hauberk.dev/…`.
const DEFAULTS: &str = "defaults.";

impl Setting {
    /// Sets it; an error names the key, the value and what is valid.
    pub(crate) fn apply(&self, config: &mut MeshConfig) -> Result<()> {
        let Self { key, value } = self;
        if let Some(annotation) = key.strip_prefix(DEFAULTS) {
            if !annotation.starts_with(KEY_PREFIX) {
                bail!("--set {key}={value}: write defaults.{KEY_PREFIX}… for the default of an annotation");
            }
            if !SETTINGS.iter().any(|setting| setting.key() == annotation) {
                let names: Vec<_> = SETTINGS.iter().map(|setting| setting.name).collect();
                bail!("--set {key}={value}: there is no such annotation; {KEY_PREFIX}… may be {}", names.join(", "));
            }
            config.defaults.insert(annotation.to_owned(), value.clone());
            return Ok(());
        }
        let known = KEYS.iter().find(|(name, _, _)| name == key);
        let (_, _, set) = known.ok_or_else(|| {
            let names: Vec<_> = KEYS.iter().map(|(name, _, _)| *name).collect();
            anyhow!(
                "--set {key}={value}: there is no such setting; there are {} and {DEFAULTS}{KEY_PREFIX}…",
                names.join(", ")
            )
        })?;
        set(config, value).map_err(|why| anyhow!("--set {key}={value}: {why}"))
    }
}

/// The list of all keys, as `--help` shows it.
pub(crate) fn help() -> String {
    let mut text = "Settings (--set KEY=VALUE):\n".to_owned();
    for (name, what, _) in KEYS {
        let _ = writeln!(text, "  {name:<29} {what}");
    }
    let _ = writeln!(
        text,
        "  {:<29} default of an annotation, where neither pod nor namespace has it",
        format!("{DEFAULTS}{KEY_PREFIX}…")
    );
    text
}

fn put<T: FromStr<Err: std::fmt::Display>>(field: &mut T, text: &str) -> Result<()> {
    *field = text.parse().map_err(|why| anyhow!("{why}"))?;
    Ok(())
}

fn list(text: &str) -> Result<Vec<IpAddr>> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items.map(|item| item.parse().map_err(|_| anyhow!("{item:?} is no address"))).collect()
}

fn optional(text: &str) -> Result<Option<String>> {
    if text.is_empty() { Ok(None) } else { Ok(Some(quantity(text)?.to_owned())) }
}

/// A quantity as Kubernetes writes it: digits, a fraction, one of its suffixes.
fn quantity(text: &str) -> Result<&str> {
    const SUFFIXES: [&str; 14] = ["", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let whole = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') && number.parse::<f64>().is_ok();
    if whole && SUFFIXES.contains(&&text[number.len()..]) {
        Ok(text)
    } else {
        bail!("write a quantity, such as 100m or 64Mi")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn set(text: &str) -> Result<MeshConfig> {
        let mut config = MeshConfig::default();
        text.parse::<Setting>().map_err(|why| anyhow!(why))?.apply(&mut config)?;
        Ok(config)
    }

    #[test]
    fn every_field_of_the_settings_has_a_key() {
        let config: Value = serde_json::from_str(&MeshConfig::default().to_text()).expect("JSON");
        let mut fields: Vec<_> = config.as_object().expect("an object").keys().map(String::as_str).collect();
        fields.retain(|field| *field != "proxyResources" && *field != "defaults");
        fields.extend(["cpuRequest", "memoryRequest", "cpuLimit", "memoryLimit"]);
        let keys = KEYS.map(|(name, _, _)| name.rsplit('.').next().expect("a last part"));
        assert!(fields.iter().all(|field| keys.contains(field)) && fields.len() == keys.len(), "{fields:?} {keys:?}");
    }

    #[test]
    fn each_key_sets_its_field() {
        let cases = [
            ("controlNamespace=mesh", "controlNamespace", "\"mesh\""),
            ("trustDomain=example.org", "trustDomain", "\"example.org\""),
            ("tls=required", "tls", "\"required\""),
            ("networks=10.0.0.0/8,fd00::/8", "networks", "\"10.0.0.0/8,fd00::/8\""),
            ("resolvers=10.96.0.10, fd00::a", "resolvers", "[\"10.96.0.10\",\"fd00::a\"]"),
            ("proxyImage=a/b:c", "proxyImage", "\"a/b:c\""),
            ("controllerImage=a/d:c", "controllerImage", "\"a/d:c\""),
            ("imagePullPolicy=Never", "imagePullPolicy", "\"Never\""),
            ("highAvailability=true", "highAvailability", "true"),
            ("defaults.hauberk.dev/log=debug", "defaults", r#"{"hauberk.dev/log":"debug"}"#),
            (
                "proxyResources.cpuLimit=1.5",
                "proxyResources",
                r#"{"cpuLimit":"1.5","cpuRequest":"10m","memoryRequest":"24Mi"}"#,
            ),
            ("proxyResources.cpuRequest=100m", "proxyResources", r#"{"cpuRequest":"100m","memoryRequest":"24Mi"}"#),
            ("proxyResources.memoryRequest=1Gi", "proxyResources", r#"{"cpuRequest":"10m","memoryRequest":"1Gi"}"#),
            ("proxyResources.memoryLimit=", "proxyResources", r#"{"cpuRequest":"10m","memoryRequest":"24Mi"}"#),
        ];
        for (text, field, expected) in cases {
            let config: Value = serde_json::from_str(&set(text).expect(text).to_text()).expect("JSON");
            assert_eq!(config[field].to_string(), expected, "{text}");
        }
    }

    #[test]
    fn refuses_with_the_key_and_what_is_valid() {
        for (text, message) in [
            (
                "tsl=required",
                "--set tsl=required: there is no such setting; there are controlNamespace, trustDomain, tls",
            ),
            ("tls=strict", "use one of optional, required, disabled"),
            ("networks=10.0.0.0/99", "--set networks=10.0.0.0/99"),
            ("resolvers=dns", "\"dns\" is no address"),
            ("imagePullPolicy=never", "use Always, IfNotPresent or Never"),
            ("highAvailability=yes", "--set highAvailability=yes"),
            ("proxyResources.cpuLimit=many", "write a quantity, such as 100m or 64Mi"),
            ("proxyResources.cpuRequest=", "write a quantity"),
            ("defaults.hauberk.dev/lgo=debug", "there is no such annotation; hauberk.dev/… may be inject, tls"),
            ("defaults.log=debug", "write defaults.hauberk.dev/…"),
            ("tls", "write KEY=VALUE"),
        ] {
            let error = format!("{:#}", set(text).expect_err(text));
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
