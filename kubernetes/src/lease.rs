//! `Lease`: one leader among the replicas of a part, by a Lease of coordination.k8s.io. Nobody's clock has to be right:
//! a leader counts from before its last renewal, the others from when they saw it. So work that is done through
//! [`Leadership::lead`] has ended before another replica can lead.

mod turn;

use std::{fmt, time::Duration};

use k8s_openapi::{api::coordination::v1::Lease as Object, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use self::turn::{Seen, Turn};

/// Longest wait for one answer of the API server.
const ANSWER: Duration = Duration::from_secs(2);
/// After a failure: several tries before a leader has to stop.
const AGAIN: Duration = Duration::from_millis(500);
/// Longest wait, at the end, for the leader's work to stop and for the Lease to be given back.
const LEAVE: Duration = Duration::from_secs(2);
/// The answer to a write over what has changed since it was read, or to creating what is there.
const CONFLICT: u16 = 409;

/// How long what lasts. `renew` is less than `lease` by more than clocks drift and a busy machine delays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTimes {
    /// A leader that shows no sign of life for so long is followed by another. Whole seconds.
    pub lease: Duration,
    /// A leader that cannot renew stops so long after its last renewal.
    pub renew: Duration,
    /// Between two looks.
    pub retry: Duration,
}

impl Default for LeaseTimes {
    /// Another leads 10 to 12 s after a leader was killed, 2 s after one left.
    fn default() -> Self {
        Self { lease: Duration::from_secs(10), renew: Duration::from_secs(7), retry: Duration::from_secs(2) }
    }
}

/// A candidate; see [`Lease::run`]. Rights: get, create and update Leases in the namespace.
pub struct Lease {
    api: Api<Object>,
    name: String,
    me: String,
    times: LeaseTimes,
    seen: Seen,
    failures: u32,
    /// Until when we lead; none if we do not.
    until: watch::Sender<Option<Instant>>,
    work: TaskTracker,
}

/// Whether this replica leads. Clones say the same.
#[derive(Clone)]
pub struct Leadership {
    until: watch::Receiver<Option<Instant>>,
    work: TaskTracker,
}

impl Lease {
    /// A candidate called `me` (the pod's name: no two replicas share one) for the Lease `name`, and the handle for
    /// those who do the leader's work.
    pub fn new(client: Client, namespace: &str, name: &str, me: &str, times: LeaseTimes) -> (Self, Leadership) {
        let until = watch::Sender::new(None);
        let work = TaskTracker::new();
        let leadership = Leadership { until: until.subscribe(), work: work.clone() };
        let (name, me) = (name.to_owned(), me.to_owned());
        let api = Api::namespaced(client, namespace);
        (Self { api, name, me, times, seen: Seen::default(), failures: 0, until, work }, leadership)
    }

    /// Tries to lead, and goes on leading, until `stop`; then waits shortly for the leader's work to end, and gives the
    /// Lease back, so that another need not wait for it to run out. Failures are tried again, without an end.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let wait = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                wait = self.round() => wait,
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = sleep(wait) => {}
            }
        }
        self.until.send_replace(None);
        self.work.close();
        // Work that goes on is as good as a leader that was killed: the others have to wait.
        if timeout(LEAVE, self.work.wait()).await.is_err() {
            return warn!(lease = self.name, "the leader's work has not ended; the Lease is left to run out");
        }
        match timeout(LEAVE, self.release()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(lease = self.name, %error, "the Lease could not be given back; it runs out"),
            Err(_) => warn!(lease = self.name, "the Lease could not be given back in time; it runs out"),
        }
    }

    /// One look and what follows from it; says when to look again.
    async fn round(&mut self) -> Duration {
        let longest = self.left().map_or(ANSWER, |left| left.min(ANSWER));
        let ended = match timeout(longest, self.look()).await {
            Ok(Ok(wait)) => {
                self.failures = 0;
                return wait;
            }
            Ok(Err(kube::Error::Api(status))) if status.code == CONFLICT => "another replica was faster".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        self.failures = self.failures.saturating_add(1);
        match self.failures {
            1 => info!(lease = self.name, why = ended, "the Lease could not be renewed or looked at; again"),
            failures => debug!(lease = self.name, why = ended, failures, "again"),
        }
        if self.until.borrow().is_some() && self.left().is_none() {
            warn!(lease = self.name, me = self.me, why = ended, "leads no longer: could not renew in time");
            self.until.send_replace(None);
        }
        self.left().map_or(AGAIN, |left| left.min(AGAIN))
    }

    async fn look(&mut self) -> kube::Result<Duration> {
        let found = self.api.get_opt(&self.name).await?;
        let mut object = found.unwrap_or_else(|| Object {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            spec: None,
        });
        let spec = object.spec.take().unwrap_or_default();
        match self.seen.turn(spec, &self.me, &self.times, Instant::now(), Timestamp::now()) {
            Turn::Wait(left) => {
                if self.until.send_replace(None).is_some() {
                    warn!(lease = self.name, me = self.me, "leads no longer: another took the Lease");
                }
                Ok(left.min(self.times.retry))
            }
            Turn::Write(spec) => {
                // Before it is sent: whoever sees it sees it later.
                let started = Instant::now();
                object.spec = Some(spec);
                let params = PostParams::default();
                match object.metadata.resource_version {
                    None => self.api.create(&params, &object).await?,
                    Some(_) => self.api.replace(&self.name, &params, &object).await?,
                };
                if self.until.send_replace(Some(started + self.times.renew)).is_none() {
                    info!(lease = self.name, me = self.me, "leads");
                }
                Ok(self.times.retry)
            }
        }
    }

    async fn release(&self) -> kube::Result<()> {
        let Some(mut object) = self.api.get_opt(&self.name).await? else { return Ok(()) };
        let Some(spec) = turn::released(object.spec.take().unwrap_or_default(), &self.me) else { return Ok(()) };
        object.spec = Some(spec);
        self.api.replace(&self.name, &PostParams::default(), &object).await?;
        info!(lease = self.name, me = self.me, "gave the Lease back");
        Ok(())
    }

    /// How long we still lead.
    fn left(&self) -> Option<Duration> {
        let until = *self.until.borrow();
        until.map(|until| until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }
}

impl Leadership {
    /// Whether we lead at this moment.
    pub fn holds(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Waits until we lead. Never returns once the [`Lease`] is gone.
    pub async fn acquired(&mut self) {
        loop {
            if self.holds() {
                return;
            }
            if self.until.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until we do not lead.
    pub async fn lost(&mut self) {
        loop {
            let until = *self.until.borrow_and_update();
            let Some(until) = until.filter(|until| Instant::now() < *until) else { return };
            tokio::select! {
                // Another deadline, or none. Without the `Lease` nobody renews: the deadline stands.
                Ok(()) = self.until.changed() => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// Does `work` as the leader: begins when we lead, and is dropped at its next await when we lead no longer; then
    /// None. What must not happen twice is guarded by the object's resourceVersion as well: a request that was sent
    /// cannot be called back.
    pub async fn lead<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        self.acquired().await;
        let _working = self.work.token();
        tokio::select! {
            biased;
            () = self.lost() => None,
            done = work => Some(done),
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("name", &self.name).field("me", &self.me).finish_non_exhaustive()
    }
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leadership").field("holds", &self.holds()).finish()
    }
}
