//! `Keeper`: what the leader does for the CA in Secrets: makes it once, renews the issuer, rotates the root, publishes
//! the bundle. Each look does at most one step, and each step can be done again after a crash.

use std::time::{Duration, SystemTime};

use hauberk_kubernetes::{Leadership, Severity};
use hauberk_mesh::{ISSUER_SECRET, ROOT_SECRET};
use tokio::time::sleep;
use tracing::{info, warn};

use super::{
    secrets::{FaultKind, Held, Secrets, SecretsFault},
    told::Told,
};
use crate::server::{
    CaFault, Lifetimes, Metrics,
    ca::{
        self,
        material::{self, Material, Roots, Step},
    },
};

/// How often the leader looks.
const POLL: Duration = Duration::from_secs(2);
/// The faults that the leader finds; the others are found by every replica.
const FOUND_HERE: [FaultKind; 2] = [FaultKind::RootMissing, FaultKind::RootUnusable];

/// The leader's work.
pub(crate) struct Keeper {
    pub(crate) secrets: Secrets,
    pub(crate) lifetimes: Lifetimes,
    pub(crate) told: Told,
    pub(crate) metrics: Metrics,
}

/// What a look came to, for people.
struct Done {
    reason: &'static str,
    action: &'static str,
    note: String,
}

impl Keeper {
    /// Never ends; works while this replica leads.
    pub(crate) async fn run(self, mut leadership: Leadership) {
        loop {
            leadership.lead(self.keep()).await;
            self.metrics.leads(false);
            self.metrics.faults(None, &FOUND_HERE);
        }
    }

    async fn keep(&self) {
        self.metrics.leads(true);
        let mut last = None;
        loop {
            let looked = self.look(SystemTime::now()).await;
            let fault = looked.as_ref().err().and_then(SecretsFault::kind);
            self.metrics.faults(fault, &FOUND_HERE);
            match looked {
                Ok(done) => {
                    last = None;
                    if let Some(Done { reason, action, note }) = done {
                        info!(reason, "{note}");
                        self.told.authority(Severity::Normal, reason, action, note);
                        // There may be more to do.
                        continue;
                    }
                }
                // By another replica, or a person: look again.
                Err(fault @ SecretsFault::Conflict { .. }) => info!(%fault, "again"),
                Err(fault) => {
                    let text = fault.to_string();
                    if last.as_ref() != Some(&text) {
                        warn!(%fault, "the CA cannot be looked after");
                        self.told.authority(Severity::Warning, reason(&fault), "KeepAuthority", text.clone());
                        last = Some(text);
                    }
                }
            }
            sleep(POLL).await;
        }
    }

    async fn look(&self, now: SystemTime) -> Result<Option<Done>, SecretsFault> {
        let Some(held) = self.secrets.issuer().await? else { return self.create(now).await.map(Some) };
        ca::check(&held.parts, &self.lifetimes, now).map_err(SecretsFault::issuer)?;
        let material = Material::read(&held.parts).map_err(SecretsFault::issuer)?;
        if !material.is_settled() {
            return self.settle(held, material).await.map(Some);
        }
        let bundle = material.bundle().map_err(SecretsFault::issuer)?;
        if self.secrets.publish(&bundle).await? {
            info!(generation = bundle.generation(), "the trust bundle is published");
        }
        let gate = self.lifetimes.leaf + self.lifetimes.skew;
        let step = material.step(gate, now).map_err(SecretsFault::issuer)?;
        if step.is_none() && !material::issuer_is_due(&held.parts, now).map_err(SecretsFault::issuer)? {
            let there = self.secrets.has_root().await?;
            return if there { Ok(None) } else { Err(self.no_root()) };
        }
        self.sign(held, material, step, now).await.map(Some)
    }

    fn no_root(&self) -> SecretsFault {
        SecretsFault::Missing { secret: ROOT_SECRET, evidence: "Secret hauberk-identity-issuer" }
    }

    /// The first start, or the rest of one that was broken off after the root was made.
    async fn create(&self, now: SystemTime) -> Result<Done, SecretsFault> {
        if let Some(evidence) = self.secrets.evidence().await? {
            return Err(SecretsFault::Missing { secret: ISSUER_SECRET, evidence });
        }
        let roots = match self.secrets.roots().await? {
            Some(held) => Roots::read(&held.parts).map_err(SecretsFault::root)?,
            None => {
                let roots = Roots::create(&self.lifetimes, now).map_err(SecretsFault::root)?;
                self.secrets.create(ROOT_SECRET, roots.parts()).await?;
                roots
            }
        };
        let material = Material::create(&roots.root, &self.lifetimes, now).map_err(SecretsFault::issuer)?;
        self.secrets.create(ISSUER_SECRET, material.parts()).await?;
        Ok(done("AuthorityCreated", "CreateAuthority", "made a root and an issuer: there were none"))
    }

    /// Somebody changed the roots: writes down which generation they are, and only then is anybody told of them.
    async fn settle(&self, held: Held, mut material: Material) -> Result<Done, SecretsFault> {
        material.settle();
        self.secrets.replace(held, material.parts()).await?;
        let note = format!("the trusted roots were changed by hand: generation {}", material.generation());
        Ok(done("TrustChanged", "SettleTrust", note))
    }

    /// What needs the root's key.
    async fn sign(
        &self,
        held: Held,
        mut material: Material,
        step: Option<Step>,
        now: SystemTime,
    ) -> Result<Done, SecretsFault> {
        let held_roots = self.secrets.roots().await?.ok_or_else(|| self.no_root())?;
        let mut roots = Roots::read(&held_roots.parts).map_err(SecretsFault::root)?;
        if roots.next.is_some() && matches!(material.rotation, Some((Step::Sign, _))) {
            // Broken off between the two Secrets.
            roots.advance();
            self.secrets.replace(held_roots, roots.parts()).await?;
            return Ok(done("RootRotation", "RotateRoot", "went on with a rotation that was broken off"));
        }
        let finished = self.change(&mut material, &mut roots, step, now).map_err(SecretsFault::root)?;
        material.settle();
        // The next root's key has to be safe before anybody trusts it; the old one's before nothing is signed by it.
        match step {
            Some(Step::Publish) => {
                self.secrets.replace(held_roots, roots.parts()).await?;
                self.secrets.replace(held, material.parts()).await?;
            }
            Some(Step::Sign) => {
                self.secrets.replace(held, material.parts()).await?;
                roots.advance();
                self.secrets.replace(held_roots, roots.parts()).await?;
            }
            Some(Step::Drop) | None => self.secrets.replace(held, material.parts()).await?,
        }
        Ok(finished)
    }

    fn change(
        &self,
        material: &mut Material,
        roots: &mut Roots,
        step: Option<Step>,
        now: SystemTime,
    ) -> Result<Done, CaFault> {
        let lifetimes = &self.lifetimes;
        match step {
            None => {
                material.renew_issuer(&roots.root, lifetimes, now)?;
                return Ok(done("IssuerRenewed", "RenewIssuer", "the issuer was at 70 % of its life: a new one signs"));
            }
            Some(Step::Publish) => material.publish(roots.prepare(lifetimes, now)?),
            Some(Step::Sign) => {
                let next = roots.next.as_ref().ok_or(CaFault::Step("a rotation has begun, and its root is gone"))?;
                material.sign_under(next, &roots.root, lifetimes, now)?;
            }
            Some(Step::Drop) => material.drop_others(&roots.root.certificate),
        }
        let (step, note) = match step {
            Some(Step::Publish) => (Step::Publish, "the root is at 70 % of its life: the next one is trusted as well"),
            Some(Step::Sign) => (Step::Sign, "the issuer is under the next root"),
            _ => (Step::Drop, "the old root is not trusted any more"),
        };
        material.rotation = (step != Step::Drop).then_some((step, now));
        Ok(done("RootRotation", "RotateRoot", note))
    }
}

fn done(reason: &'static str, action: &'static str, note: impl Into<String>) -> Done {
    Done { reason, action, note: note.into() }
}

fn reason(fault: &SecretsFault) -> &'static str {
    match fault.kind() {
        Some(FaultKind::IssuerMissing) => "IssuerMissing",
        Some(FaultKind::IssuerUnusable) => "IssuerUnusable",
        Some(FaultKind::RootMissing) => "RootMissing",
        Some(FaultKind::RootUnusable) => "RootUnusable",
        Some(FaultKind::Unavailable) | None => "AuthorityUnavailable",
    }
}
