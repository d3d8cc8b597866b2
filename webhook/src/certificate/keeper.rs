//! The leader's work: makes CA and leaf, keeps them in the Secret, and their CAs in the registration. Each round reads
//! both anew and does one thing; every write is over the version that was read, so that one who leads no longer, and
//! does not know it yet, changes nothing.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures_util::{StreamExt, stream::BoxStream};
use hauberk_kubernetes::{Bucket, Leadership, Rate};
use hauberk_mesh::{WEBHOOK_ACCOUNT, WEBHOOK_CONFIGURATION, WEBHOOK_SECRET};
use k8s_openapi::{
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher::watch_object},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use super::{
    bundle,
    held::{CertificateFault, Held, Lifetimes},
    step::{Step, step},
};
use crate::metrics::Metrics;

/// Of a call to the API server.
const CALL: Duration = Duration::from_secs(5);
/// Between two rounds in which nothing was to do, at most: a watch may have missed something.
const LOOK: Duration = Duration::from_secs(60);
/// Between two rounds after a failure: at first, and at most.
const AGAIN: Duration = Duration::from_millis(200);
const AGAIN_MOST: Duration = Duration::from_secs(10);
/// Somebody else who writes the same field must not make us a flood.
const PATCHES: Rate = Rate { burst: 10, every: Duration::from_secs(2) };
/// The answer to a write over what has changed since it was read.
const CONFLICT: u16 = 409;

/// Does the leader's work.
pub(crate) struct Keeper {
    pub(crate) client: Client,
    /// The control namespace.
    pub(crate) namespace: String,
    /// Of the leaf.
    pub(crate) names: Vec<String>,
    pub(crate) lifetimes: Lifetimes,
    /// What this replica read last from the Secret.
    pub(crate) last: watch::Receiver<Option<Arc<Held>>>,
    pub(crate) metrics: Metrics,
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("somebody else wrote it first")]
    Conflict,
    #[error("the API server did not answer in time")]
    Timeout,
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Certificate(#[from] CertificateFault),
}

/// What a round ends with.
enum Round {
    /// Something was done: there may be more.
    Done,
    /// Nothing is to do until then.
    Wait(Duration),
}

impl Keeper {
    /// Works whenever this replica leads.
    pub(crate) async fn run(self, mut leadership: Leadership) -> &'static str {
        loop {
            self.metrics.leads(false);
            leadership.lead(self.lead()).await;
        }
    }

    async fn lead(&self) {
        self.metrics.leads(true);
        let mut last = self.last.clone();
        let registrations = Api::<MutatingWebhookConfiguration>::all(self.client.clone());
        let mut changes: BoxStream<'_, _> =
            watch_object(registrations, WEBHOOK_CONFIGURATION).default_backoff().boxed();
        let mut patches = Bucket::new(PATCHES, Instant::now());
        let mut again = AGAIN;
        loop {
            let wait = match self.round(&mut patches).await {
                Ok(Round::Done) => {
                    again = AGAIN;
                    continue;
                }
                Ok(Round::Wait(wait)) => {
                    again = AGAIN;
                    wait
                }
                Err(fault) => {
                    match fault {
                        Fault::Conflict => info!("the certificate's keeping was overtaken; again"),
                        fault => warn!(%fault, "the certificate cannot be kept now; again"),
                    }
                    sleep(again).await;
                    again = (again * 2).min(AGAIN_MOST);
                    continue;
                }
            };
            tokio::select! {
                // Errors of the watch are the watch's: it tries again. An end of it would be a bug, and time helps.
                Some(_) = changes.next() => {}
                Ok(()) = last.changed() => {}
                () = sleep(wait.min(LOOK)) => {}
            }
        }
    }

    async fn round(&self, patches: &mut Bucket) -> Result<Round, Fault> {
        let now = SystemTime::now();
        let secrets = Api::<Secret>::namespaced(self.client.clone(), &self.namespace);
        let secret = call(secrets.get_opt(WEBHOOK_SECRET)).await?;
        let held = secret.as_ref().map(|secret| Held::read(secret.data.as_ref().unwrap_or(&Default::default())));
        let held = match held {
            Some(Ok(held)) => held,
            other => {
                let why = other.map_or_else(
                    || "not there".to_owned(),
                    |broken| broken.err().map(|e| e.to_string()).unwrap_or_default(),
                );
                let next = self.anew(now)?;
                info!(why, rotation = next.next.is_some(), "the Secret is made anew");
                self.write(&secrets, secret, &next).await?;
                return Ok(Round::Done);
            }
        };
        let published = self.publish(&held, patches).await?;
        // What was published is published by now, not by when the round began.
        let now = SystemTime::now();
        match step(&held, published, &self.names, &self.lifetimes, now) {
            Step::Wait(until) | Step::Publish(until) => {
                Ok(Round::Wait(until.duration_since(now).unwrap_or_default() + Duration::from_millis(10)))
            }
            step => {
                let next = apply(held, step, &self.names, &self.lifetimes, now)?;
                self.write(&secrets, secret, &next).await?;
                info!(?step, "certificate");
                Ok(Round::Done)
            }
        }
    }

    /// What takes the place of a Secret that is gone or broken. What this replica remembers is still served and
    /// believed, so that it is the beginning of a rotation: who deletes the Secret rotates, and no review fails.
    fn anew(&self, now: SystemTime) -> Result<Held, Fault> {
        let last = self.last.borrow().clone();
        match last.filter(|last| last.ca.not_after > now && last.leaf.not_after > now) {
            Some(last) if last.next.is_none() && last.old.is_none() => {
                Ok(Held::clone(&last).with_next(&self.lifetimes, now)?)
            }
            Some(last) => Ok(Held::clone(&last)),
            None => Ok(Held::fresh(&self.names, &self.lifetimes, now)?),
        }
    }

    async fn write(&self, secrets: &Api<Secret>, read: Option<Secret>, held: &Held) -> Result<(), Fault> {
        let params = PostParams { field_manager: Some(WEBHOOK_ACCOUNT.to_owned()), ..PostParams::default() };
        let create = read.is_none();
        let mut secret = read.unwrap_or_else(|| Secret {
            metadata: ObjectMeta {
                name: Some(WEBHOOK_SECRET.to_owned()),
                labels: Some(crate::registration::labels()),
                ..ObjectMeta::default()
            },
            ..Secret::default()
        });
        secret.data = Some(held.data());
        if create {
            call(secrets.create(&params, &secret)).await?;
        } else {
            call(secrets.replace(WEBHOOK_SECRET, &params, &secret)).await?;
        }
        Ok(())
    }

    /// Puts the bundle into the registration where it is not; whether it is in force there. Where nothing is registered,
    /// no API server asks us, and none has to be waited for.
    async fn publish(&self, held: &Held, patches: &mut Bucket) -> Result<bool, Fault> {
        let registrations = Api::<MutatingWebhookConfiguration>::all(self.client.clone());
        let Some(registration) = call(registrations.get_opt(WEBHOOK_CONFIGURATION)).await? else { return Ok(true) };
        let wanted = held.bundle();
        let Some(patch) = bundle::patch(&registration, &wanted) else { return Ok(true) };
        if !patches.take(Instant::now()) {
            self.metrics.bundle_patch("limited");
            warn!("somebody else writes caBundle of {WEBHOOK_CONFIGURATION} again and again; waiting");
            return Ok(false);
        }
        let params = PatchParams { field_manager: Some(WEBHOOK_ACCOUNT.to_owned()), ..PatchParams::default() };
        let patched = call(registrations.patch(WEBHOOK_CONFIGURATION, &params, &Patch::Strategic(patch))).await;
        self.metrics.bundle_patch(match &patched {
            Ok(_) => "patched",
            Err(Fault::Conflict) => "conflict",
            Err(_) => "failed",
        });
        let patched = patched?;
        info!(bytes = wanted.len(), "caBundle of {WEBHOOK_CONFIGURATION} is up to date");
        Ok(bundle::holds(&patched, &wanted))
    }
}

/// Does a step that changes what is held.
pub(crate) fn apply(
    mut held: Held,
    step: Step,
    names: &[String],
    lifetimes: &Lifetimes,
    now: SystemTime,
) -> Result<Held, CertificateFault> {
    match step {
        Step::Wait(_) | Step::Publish(_) => Ok(held),
        Step::Fresh => Held::fresh(names, lifetimes, now),
        Step::Leaf => held.with_leaf(names, lifetimes, now),
        Step::Next => held.with_next(lifetimes, now),
        Step::Adopt => held.adopt(names, lifetimes, now),
        Step::Published => {
            if let Some(next) = &mut held.next {
                next.published = Some(now);
            }
            Ok(held)
        }
        Step::DropOld => {
            held.old = None;
            Ok(held)
        }
    }
}

async fn call<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Fault> {
    match timeout(CALL, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) if status.code == CONFLICT => Err(Fault::Conflict),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(Fault::Timeout),
    }
}
