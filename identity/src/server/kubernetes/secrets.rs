//! `Secrets`: where the CA stands in Kubernetes, and the requests to read and write it. Everything is created only
//! where nothing is, and replaced only as it was read.

use std::{collections::BTreeMap, time::Duration};

use hauberk_mesh::{IDENTITY_ACCOUNT, ISSUER_SECRET, ROOT_SECRET, TRUST_GENERATION_KEY, TRUST_MAP, TRUST_ROOTS_KEY};
use k8s_openapi::{
    ByteString,
    api::{
        coordination::v1::Lease,
        core::v1::{ConfigMap, Secret},
    },
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::{
    TrustBundle,
    server::{
        CaFault,
        ca::material::{
            BUNDLE, GENERATION, ISSUER, ISSUER_KEY, NEXT_ROOT, NEXT_ROOT_KEY, Parts, ROOT, ROOT_KEY, ROTATION,
        },
    },
};

/// On the Lease: that there is a CA. A Secret that is missing then has been lost.
const CREATED: &str = "hauberk.dev/ca-created";
/// Longest wait for one answer of the API server.
const ANSWER: Duration = Duration::from_secs(5);
const CONFLICT: u16 = 409;

/// Why the CA in Secrets cannot be used or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretsFault {
    #[error(
        "Secret {secret} is missing, but {evidence} says that there was one: restore it from a backup; nothing is made anew, because that would lock every pod out. Only for a mesh that starts over, delete ConfigMap {TRUST_MAP}, Lease {IDENTITY_ACCOUNT} and both Secrets {ROOT_SECRET} and {ISSUER_SECRET}"
    )]
    Missing { secret: &'static str, evidence: &'static str },
    #[error("Secret {ISSUER_SECRET} is not there yet: the leader of {IDENTITY_ACCOUNT} makes it")]
    NotYet,
    #[error("Secret {ISSUER_SECRET} has other roots than its generation was written for: the leader looks at them")]
    Unsettled,
    #[error("Secret {secret}: {source}")]
    Unusable { secret: &'static str, source: CaFault },
    #[error("{object} was changed by another at the same time")]
    Conflict { object: &'static str },
    #[error("{object}: {source}")]
    Api { object: &'static str, source: Box<kube::Error> },
    #[error("{object}: no answer from the API server in time")]
    Late { object: &'static str },
}

/// What is wrong, for metrics and events: a closed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum FaultKind {
    IssuerMissing,
    IssuerUnusable,
    RootMissing,
    RootUnusable,
    Unavailable,
}

impl FaultKind {
    pub(crate) const ALL: [Self; 5] =
        [Self::IssuerMissing, Self::IssuerUnusable, Self::RootMissing, Self::RootUnusable, Self::Unavailable];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::IssuerMissing => "issuer-missing",
            Self::IssuerUnusable => "issuer-unusable",
            Self::RootMissing => "root-missing",
            Self::RootUnusable => "root-unusable",
            Self::Unavailable => "unavailable",
        }
    }
}

impl SecretsFault {
    /// None for what passes by itself.
    pub(crate) fn kind(&self) -> Option<FaultKind> {
        match self {
            Self::Missing { secret: ROOT_SECRET, .. } => Some(FaultKind::RootMissing),
            Self::Missing { .. } => Some(FaultKind::IssuerMissing),
            Self::Unusable { secret: ROOT_SECRET, .. } => Some(FaultKind::RootUnusable),
            Self::Unusable { .. } => Some(FaultKind::IssuerUnusable),
            Self::Api { .. } | Self::Late { .. } => Some(FaultKind::Unavailable),
            Self::NotYet | Self::Unsettled | Self::Conflict { .. } => None,
        }
    }

    pub(crate) fn issuer(source: CaFault) -> Self {
        Self::Unusable { secret: ISSUER_SECRET, source }
    }

    pub(crate) fn root(source: CaFault) -> Self {
        Self::Unusable { secret: ROOT_SECRET, source }
    }
}

/// A Secret as it was read.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) parts: Parts,
    name: &'static str,
    metadata: ObjectMeta,
}

/// The requests.
#[derive(Clone)]
pub(crate) struct Secrets {
    secrets: Api<Secret>,
    maps: Api<ConfigMap>,
    leases: Api<Lease>,
}

impl Secrets {
    pub(crate) fn new(client: &Client, namespace: &str) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            maps: Api::namespaced(client.clone(), namespace),
            leases: Api::namespaced(client.clone(), namespace),
        }
    }

    /// The issuer's Secret.
    pub(crate) async fn issuer(&self) -> Result<Option<Held>, SecretsFault> {
        self.read(ISSUER_SECRET, &[ISSUER, ISSUER_KEY, BUNDLE, GENERATION, ROTATION]).await
    }

    /// The root's Secret, with its key.
    pub(crate) async fn roots(&self) -> Result<Option<Held>, SecretsFault> {
        self.read(ROOT_SECRET, &[ROOT, ROOT_KEY, NEXT_ROOT, NEXT_ROOT_KEY]).await
    }

    /// Whether the root's Secret is there; its key does not leave the API server for that.
    pub(crate) async fn has_root(&self) -> Result<bool, SecretsFault> {
        Ok(ask(ROOT_SECRET, self.secrets.get_metadata_opt(ROOT_SECRET)).await?.is_some())
    }

    async fn read(&self, name: &'static str, parts: &[&'static str]) -> Result<Option<Held>, SecretsFault> {
        let Some(secret) = ask(name, self.secrets.get_opt(name)).await? else { return Ok(None) };
        // Nothing is copied, so that what is wiped later is all there was.
        let mut data: BTreeMap<_, _> =
            secret.data.unwrap_or_default().into_iter().map(|(name, bytes)| (name, Zeroizing::new(bytes.0))).collect();
        let parts = parts.iter().filter_map(|part| Some((*part, data.remove(*part)?))).collect();
        Ok(Some(Held { parts, name, metadata: secret.metadata }))
    }

    /// Creates a Secret; a conflict if there is one.
    pub(crate) async fn create(
        &self,
        name: &'static str,
        parts: Vec<(&'static str, Zeroizing<Vec<u8>>)>,
    ) -> Result<(), SecretsFault> {
        let secret = secret(ours(name), parts);
        ask(name, self.secrets.create(&PostParams::default(), &secret)).await.map(drop)
    }

    /// Replaces what was `held`; a conflict if it is not the same any more.
    pub(crate) async fn replace(
        &self,
        held: Held,
        parts: Vec<(&'static str, Zeroizing<Vec<u8>>)>,
    ) -> Result<(), SecretsFault> {
        let secret = secret(held.metadata, parts);
        ask(held.name, self.secrets.replace(held.name, &PostParams::default(), &secret)).await.map(drop)
    }

    /// What says that there has been a CA, if anything does.
    pub(crate) async fn evidence(&self) -> Result<Option<&'static str>, SecretsFault> {
        if ask(TRUST_MAP, self.maps.get_opt(TRUST_MAP)).await?.is_some() {
            return Ok(Some("ConfigMap hauberk-trust"));
        }
        let lease = ask(IDENTITY_ACCOUNT, self.leases.get_opt(IDENTITY_ACCOUNT)).await?;
        Ok(lease.is_some_and(|lease| is_marked(&lease)).then_some("Lease hauberk-identity"))
    }

    /// Publishes `bundle` for people and tools, and writes down on the Lease that there is a CA. Says whether anything
    /// was different.
    pub(crate) async fn publish(&self, bundle: &TrustBundle) -> Result<bool, SecretsFault> {
        let data = BTreeMap::from([
            (TRUST_ROOTS_KEY.to_owned(), bundle.to_pem()),
            (TRUST_GENERATION_KEY.to_owned(), bundle.generation().to_string()),
        ]);
        let params = PostParams::default();
        let published = match ask(TRUST_MAP, self.maps.get_opt(TRUST_MAP)).await? {
            Some(map) if map.data.as_ref() == Some(&data) && map.binary_data.is_none() => false,
            Some(map) => {
                let map = ConfigMap { data: Some(data), binary_data: None, ..map };
                ask(TRUST_MAP, self.maps.replace(TRUST_MAP, &params, &map)).await?;
                true
            }
            None => {
                let map = ConfigMap { metadata: ours(TRUST_MAP), data: Some(data), ..ConfigMap::default() };
                ask(TRUST_MAP, self.maps.create(&params, &map)).await?;
                true
            }
        };
        let lease = ask(IDENTITY_ACCOUNT, self.leases.get_opt(IDENTITY_ACCOUNT)).await?;
        if lease.is_some_and(|lease| !is_marked(&lease)) {
            let mark = Patch::Merge(json!({"metadata": {"annotations": {CREATED: "true"}}}));
            ask(IDENTITY_ACCOUNT, self.leases.patch(IDENTITY_ACCOUNT, &PatchParams::default(), &mark)).await?;
        }
        Ok(published)
    }
}

fn is_marked(lease: &Lease) -> bool {
    lease.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(CREATED))
}

fn ours(name: &str) -> ObjectMeta {
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let labels = [label("app.kubernetes.io/part-of", "hauberk"), label("app.kubernetes.io/name", IDENTITY_ACCOUNT)];
    ObjectMeta { name: Some(name.to_owned()), labels: Some(labels.into()), ..ObjectMeta::default() }
}

fn secret(metadata: ObjectMeta, parts: Vec<(&'static str, Zeroizing<Vec<u8>>)>) -> Secret {
    let data = parts.into_iter().map(|(name, mut bytes)| (name.to_owned(), ByteString(std::mem::take(&mut *bytes))));
    Secret { metadata, data: Some(data.collect()), ..Secret::default() }
}

async fn ask<T>(object: &'static str, call: impl Future<Output = kube::Result<T>>) -> Result<T, SecretsFault> {
    match timeout(ANSWER, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) if status.code == CONFLICT => Err(SecretsFault::Conflict { object }),
        Ok(Err(source)) => Err(SecretsFault::Api { object, source: source.into() }),
        Err(_) => Err(SecretsFault::Late { object }),
    }
}
