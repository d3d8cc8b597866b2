//! From the bytes of a request to those of its answer: finds out what the decision needs, within limits, and tells
//! people what was decided.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use hauberk_kubernetes::Events;
use serde_json::Value;
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tracing::{debug, error, info};

use crate::{
    decide::{self, Decided, Decision, Undecided},
    known::Known,
    metrics::{Metrics, Rejected},
    namespaces::Namespaces,
    registration::Entry,
    review::{self, Request},
};

/// Pods that are held as trees at once: the worst of bodies, all numbers, takes 16 times its bytes.
const DECIDING: usize = 4;
/// For one of those places. A decision takes well under a millisecond.
const PLACE: Duration = Duration::from_secs(2);

/// What answers are made of.
#[derive(Debug)]
pub(crate) struct App {
    known: watch::Receiver<Arc<Known>>,
    namespaces: Namespaces,
    events: Events,
    pub(crate) metrics: Metrics,
    places: Semaphore,
}

impl App {
    pub(crate) fn new(
        known: watch::Receiver<Arc<Known>>,
        namespaces: Namespaces,
        events: Events,
        metrics: Metrics,
    ) -> Self {
        Self { known, namespaces, events, metrics, places: Semaphore::new(DECIDING) }
    }

    /// The answer to a review; or why it is none.
    pub(crate) async fn answer(&self, entry: Entry, body: &[u8]) -> Result<Vec<u8>, String> {
        let request = Request::parse(body).map_err(|error| {
            self.metrics.rejected(Rejected::Unparsable);
            error.to_string()
        })?;
        let decision = self.decide(entry, &request, body).await;
        // Whoever asks without wanting it done leaves nothing behind.
        if !request.dry_run() {
            self.metrics.review(entry, decision.decided);
            if let Some(event) = decision.event.clone() {
                self.events.tell(event);
            }
        }
        Ok(decision.answer.to_bytes(&request.uid))
    }

    async fn decide(&self, entry: Entry, request: &Request, body: &[u8]) -> Decision {
        if !request.makes_a_pod() {
            return decide::not_a_pod();
        }
        let known = self.known.borrow().clone();
        let found = match known.inputs() {
            Err(missing) => Err((Undecided::Settings, missing)),
            Ok(inputs) => match self.namespaces.find(request.namespace.as_deref().unwrap_or_default(), entry).await {
                Ok(namespace) => Ok((inputs, namespace)),
                Err(why) => Err((Undecided::Namespace, why)),
            },
        };
        let Ok(Ok(_place)) = timeout(PLACE, self.places.acquire()).await else {
            let detail = "the webhook is asked too much at once";
            return decide::undecided(request, &Value::Null, entry, Undecided::Busy, detail);
        };
        let pod = review::pod(body);
        let decision = match found {
            Err((why, detail)) => decide::undecided(request, &pod, entry, why, &detail),
            Ok(((mesh, cluster), namespace)) => {
                let deciding = || decide::decide(request, &pod, &mesh, &cluster, &namespace);
                // A pod that gets no answer because of a bug of ours would be let in, without a word, where it may be.
                catch_unwind(AssertUnwindSafe(deciding)).unwrap_or_else(|_| {
                    error!(uid = request.uid, "a decision panicked: please report this with the pod");
                    decide::undecided(request, &pod, entry, Undecided::Fault, "a bug in the webhook, see its log")
                })
            }
        };
        log(entry, request, &pod, &decision);
        decision
    }
}

fn log(entry: Entry, request: &Request, pod: &Value, decision: &Decision) {
    let (workload, dry_run) = (decide::workload(request, pod), request.dry_run());
    let Decision { decided, message, .. } = decision;
    let (entry, reason) = (entry.name(), decided.reason());
    match decided {
        Decided::Skipped(_) => debug!(workload, entry, reason, message, dry_run, "{}", decided.decision()),
        _ => info!(workload, entry, reason, message, dry_run, "{}", decided.decision()),
    }
}
