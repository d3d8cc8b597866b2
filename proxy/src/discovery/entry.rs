//! `Entry`: what is held of one address, and whether it counts. The rule is [`Status::settles`].

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};
use tonic::{Code, Status as Answer};

use super::{
    metrics::{Held, Metrics},
    target::{Target, TargetKind},
};

/// One address: written by its task, read through receivers.
#[derive(Debug)]
pub(super) struct Entry {
    target: watch::Sender<Arc<Target>>,
    status: watch::Sender<Status>,
    _held: Held,
}

/// How the streams of one address fare.
#[derive(Debug, Clone, Default)]
pub(super) struct Status {
    phase: Phase,
    /// Whether what is known may become wrong with time.
    perishable: bool,
    failure: Option<Failure>,
}

#[derive(Debug, Clone, Copy, Default)]
enum Phase {
    /// Nothing is known yet.
    #[default]
    New,
    /// The streams are open, and both have answered.
    Current,
    /// They were, until then.
    Broken(Instant),
}

/// How the last attempt failed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    refused: bool,
    what: String,
}

impl Entry {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let nothing = Target { service: None, affinity: None, kind: TargetKind::Unknown, endpoints: Arc::default() };
        Self { target: watch::Sender::new(Arc::new(nothing)), status: watch::Sender::default(), _held: metrics.held() }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Target>> {
        self.target.subscribe()
    }

    pub(super) fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Whether somebody has a receiver of the target.
    pub(super) fn is_held(&self) -> bool {
        self.target.receiver_count() > 0
    }

    /// Waits until nobody has.
    pub(super) async fn unheld(&self) {
        self.target.closed().await;
    }

    /// Says what is known now, and whether both streams have said so. The target first: whoever waits for the status
    /// finds it.
    pub(super) fn publish(&self, target: Target, current: bool) {
        let perishable = target.is_perishable();
        self.target.send_if_modified(|held| {
            let differs = **held != target;
            if differs {
                *held = Arc::new(target);
            }
            differs
        });
        self.status.send_if_modified(|status| {
            status.perishable = perishable;
            let rises = current && !matches!(status.phase, Phase::Current);
            if rises {
                (status.phase, status.failure) = (Phase::Current, None);
            }
            rises
        });
    }

    /// Says that the streams broke, or could not be opened.
    pub(super) fn broke(&self, failure: Failure) {
        self.status.send_modify(|status| {
            if matches!(status.phase, Phase::Current) {
                status.phase = Phase::Broken(Instant::now());
            }
            status.failure = Some(failure);
        });
    }
}

impl Status {
    /// Whether there is nothing to wait for: the answer counts, or was refused. While the service is away, answers that
    /// are held go on counting; perishable ones for `stale` only.
    pub(super) fn settles(&self, stale: Duration) -> bool {
        match self.phase {
            Phase::New => self.refusal().is_some(),
            Phase::Current => true,
            Phase::Broken(since) => !self.perishable || since.elapsed() < stale,
        }
    }

    #[cfg(test)]
    pub(super) fn is_broken(&self) -> bool {
        matches!(self.phase, Phase::Broken(_))
    }

    /// What the service said, if nothing is known because it will not say.
    pub(super) fn refusal(&self) -> Option<String> {
        let failure = self.failure.as_ref().filter(|failure| failure.refused && matches!(self.phase, Phase::New));
        failure.map(|failure| failure.what.clone())
    }

    /// How the last attempt failed.
    pub(super) fn last_failure(&self) -> String {
        self.failure.as_ref().map_or_else(|| "no failure so far".to_owned(), |failure| failure.what.clone())
    }
}

impl From<Answer> for Failure {
    fn from(answer: Answer) -> Self {
        let away = matches!(
            answer.code(),
            Code::Unavailable
                | Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Unknown
                | Code::Internal
                | Code::Aborted
        );
        Self { refused: !away, what: describe(&answer) }
    }
}

/// Code, message, and what lies under it: tonic hides the handshake's error behind "transport error".
pub(super) fn describe(answer: &Answer) -> String {
    let causes = std::iter::successors(std::error::Error::source(answer), |cause| cause.source());
    causes.fold(format!("{:?}: {}", answer.code(), answer.message()), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALE: Duration = Duration::from_secs(10);

    fn target(kind: TargetKind) -> Target {
        Target { service: None, affinity: None, kind, endpoints: Arc::default() }
    }

    fn settles(entry: &Entry) -> bool {
        entry.status().borrow().settles(STALE)
    }

    fn away() -> Failure {
        Answer::unavailable("away").into()
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_service_is_away_a_service_counts_on_and_unknown_for_a_while() {
        for (kind, counts_on) in [(TargetKind::Service, true), (TargetKind::Unknown, false)] {
            let entry = Entry::new(&Metrics::default());
            entry.publish(target(kind), true);
            entry.broke(away());
            tokio::time::advance(STALE - Duration::from_millis(1)).await;
            entry.broke(away());
            assert!(settles(&entry), "{kind:?}");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert_eq!(settles(&entry), counts_on, "{kind:?}: from the first break on");
            entry.publish(target(kind), false);
            assert_eq!(settles(&entry), counts_on, "{kind:?}: one of two streams is not enough");
            entry.publish(target(kind), true);
            assert!(settles(&entry), "{kind:?}");
            assert!(entry.status().borrow().failure.is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_becomes_known_while_one_stream_is_missing_decides_whether_it_counts() {
        let entry = Entry::new(&Metrics::default());
        entry.publish(target(TargetKind::Service), true);
        entry.broke(away());
        tokio::time::advance(STALE).await;
        assert!(settles(&entry));
        entry.publish(target(TargetKind::Unknown), false);
        assert!(!settles(&entry));
    }

    #[test]
    fn a_new_address_waits_for_both_answers_or_a_refusal() {
        let entry = Entry::new(&Metrics::default());
        assert!(!settles(&entry));
        entry.broke(away());
        assert!(!settles(&entry) && entry.status().borrow().last_failure().contains("away"));
        entry.broke(Answer::resource_exhausted("enough").into());
        assert!(settles(&entry));
        assert_eq!(entry.status().borrow().refusal().as_deref(), Some("ResourceExhausted: enough"));
        entry.publish(target(TargetKind::Service), true);
        entry.broke(Answer::resource_exhausted("enough").into());
        assert_eq!(entry.status().borrow().refusal(), None, "what is known counts more");
        assert!(settles(&entry));
    }

    #[test]
    fn readers_are_woken_by_what_differs() {
        let entry = Entry::new(&Metrics::default());
        let mut reader = entry.subscribe();
        entry.publish(target(TargetKind::Service), true);
        assert!(reader.has_changed().expect("the entry lives"));
        reader.mark_unchanged();
        entry.publish(target(TargetKind::Service), true);
        assert!(!reader.has_changed().expect("the entry lives"));
    }
}
