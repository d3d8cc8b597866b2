//! `Follower`: every replica signs with the issuer of the Secret, and tells its bundle. Compares bytes, as the one of
//! directories does. What it holds goes on serving, whatever becomes of the Secret.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use hauberk_kubernetes::Latch;
use hauberk_mesh::ISSUER_SECRET;
use tokio::time::sleep;
use tracing::warn;
use zeroize::Zeroizing;

use super::secrets::{FaultKind, Secrets, SecretsFault};
use crate::{
    server::{
        Ca, CaFault, Lifetimes, Metrics,
        ca::{
            self,
            material::{Material, Parts},
        },
    },
    volume::hex,
};

/// How often the Secret is looked at.
const POLL: Duration = Duration::from_secs(1);
const FOUND_HERE: [FaultKind; 3] = [FaultKind::IssuerMissing, FaultKind::IssuerUnusable, FaultKind::Unavailable];

/// Follows the issuer's Secret.
pub(crate) struct Follower {
    secrets: Secrets,
    lifetimes: Lifetimes,
    metrics: Metrics,
    latch: Latch,
    /// Digest of the Secret that is in force.
    held: Option<String>,
    /// The fault that was last reported.
    fault: Option<String>,
}

impl Follower {
    pub(crate) fn new(secrets: Secrets, lifetimes: Lifetimes, metrics: Metrics, latch: Latch) -> Self {
        Self { secrets, lifetimes, metrics, latch, held: None, fault: None }
    }

    /// Waits until there is a CA that can be used.
    pub(crate) async fn first(&mut self) -> Arc<Ca> {
        loop {
            match self.look(Ca::of).await {
                Some(ca) => {
                    self.latch.open();
                    self.metrics.of_ca(&ca);
                    return ca.into();
                }
                None => sleep(POLL).await,
            }
        }
    }

    /// Keeps `ca` as the Secret is. Never ends.
    pub(crate) async fn follow(mut self, ca: Arc<Ca>) {
        loop {
            sleep(POLL).await;
            if self.look(|material, _, now| ca.adopt(material, now)).await.is_some() {
                self.metrics.reloaded("ca", true);
            }
            self.metrics.of_ca(&ca);
        }
    }

    /// Has what is new in the Secret taken over by `take`; reports what cannot be.
    async fn look<T>(&mut self, take: impl FnOnce(Material, Lifetimes, SystemTime) -> Result<T, CaFault>) -> Option<T> {
        let taken = match self.read().await {
            Ok(Some((material, digest))) => take(material, self.lifetimes, SystemTime::now())
                .map(|taken| {
                    self.held = Some(digest);
                    Some(taken)
                })
                .map_err(SecretsFault::issuer),
            Ok(None) => Ok(None),
            Err(fault) => Err(fault),
        };
        self.report(taken.as_ref().err());
        taken.ok().flatten()
    }

    /// The material and its digest, if it is another than what is held.
    async fn read(&self) -> Result<Option<(Material, String)>, SecretsFault> {
        let Some(found) = self.secrets.issuer().await? else {
            let lost = |evidence| SecretsFault::Missing { secret: ISSUER_SECRET, evidence };
            return Err(self.secrets.evidence().await?.map_or(SecretsFault::NotYet, lost));
        };
        let digest = digest(&found.parts);
        if self.held.as_ref() == Some(&digest) {
            return Ok(None);
        }
        let material = Material::read(&found.parts).map_err(SecretsFault::issuer)?;
        if material.is_settled() {
            return Ok(Some((material, digest)));
        }
        // What is of no use is never settled.
        ca::check(&found.parts, &self.lifetimes, SystemTime::now()).map_err(SecretsFault::issuer)?;
        Err(SecretsFault::Unsettled)
    }

    /// Once for each fault, and until it is over in the metrics.
    fn report(&mut self, fault: Option<&SecretsFault>) {
        self.metrics.faults(fault.and_then(SecretsFault::kind), &FOUND_HERE);
        let text = fault.map(ToString::to_string);
        if self.fault != text {
            if let Some(text) = &text {
                warn!(fault = text, "the CA stays as it was");
                self.latch.because(text);
            }
            if fault.and_then(SecretsFault::kind) == Some(FaultKind::IssuerUnusable) {
                self.metrics.reloaded("ca", false);
            }
            self.fault = text;
        }
    }
}

fn digest(parts: &Parts) -> String {
    let mut all = Zeroizing::new(Vec::new());
    for (name, bytes) in parts {
        all.extend_from_slice(name.as_bytes());
        all.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        all.extend_from_slice(bytes);
    }
    hex(&all)
}
