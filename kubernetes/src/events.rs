//! `Events`: tells people what happened to an object, by Events of `events.k8s.io`. Telling never waits and never
//! fails: what is too much is dropped and counted. The same event again is a count in its series, not another event.

mod ledger;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        events::v1::{Event as Object, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use ledger::{Key, Ledger, Limits, Repetition, Verdict};
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Events that wait for the API server: what the limit on calls at once lets through, and as many again.
const QUEUE: usize = 400;
/// Of a call.
const CALL: Duration = Duration::from_secs(5);
/// How often counts are looked at.
const TICK: Duration = Duration::from_secs(10);
/// What the API server takes of a note.
const NOTE: usize = 1024;
/// What the API server takes of a name, less our suffix.
const NAME: usize = 220;

/// Something that happened to an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The object: kind, apiVersion and name at least, the uid where known. Without a namespace (a cluster-wide object),
    /// the event stands in `default`.
    pub regarding: ObjectReference,
    /// Whether somebody should look at it.
    pub severity: Severity,
    /// One word in capitals, such as `Injected`.
    pub reason: &'static str,
    /// What was being done, such as `Inject`.
    pub action: &'static str,
    /// A sentence. What differs between events that are really the same has no place in it; cut after 1 KiB.
    pub note: String,
}

/// Whether somebody should look at an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Nobody.
    Normal,
    /// Somebody.
    Warning,
}

/// What became of events, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventCounts {
    /// New ones that the API server took.
    pub told: u64,
    /// Those that were the same as one before.
    pub repeated: u64,
    /// Dropped because of a limit.
    pub limited: u64,
    /// Not taken by the API server.
    pub failed: u64,
}

/// The handle; clones tell together.
#[derive(Debug, Clone)]
pub struct Events {
    queue: mpsc::Sender<Event>,
    counts: Arc<Counts>,
}

/// Tells what the handles were given; [`EventTeller::run`] is a task of its own.
#[derive(Debug)]
pub struct EventTeller {
    queue: mpsc::Receiver<Event>,
    counts: Arc<Counts>,
    controller: &'static str,
    instance: String,
}

#[derive(Debug, Default)]
struct Counts {
    told: AtomicU64,
    repeated: AtomicU64,
    limited: AtomicU64,
    failed: AtomicU64,
}

impl Events {
    /// `controller` is who tells (`hauberk.dev/webhook`), `instance` which of its replicas: the pod's name.
    pub fn new(controller: &'static str, instance: &str) -> (Self, EventTeller) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let counts = Arc::<Counts>::default();
        let teller = EventTeller { queue, counts: counts.clone(), controller, instance: cut(instance, 128).to_owned() };
        (Self { queue: sender, counts }, teller)
    }

    /// Tells it soon, or drops and counts it.
    pub fn tell(&self, event: Event) {
        if self.queue.try_send(event).is_err() {
            self.counts.limited.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What became of events so far.
    pub fn counts(&self) -> EventCounts {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counts { told, repeated, limited, failed } = &*self.counts;
        EventCounts { told: of(told), repeated: of(repeated), limited: of(limited), failed: of(failed) }
    }
}

impl EventTeller {
    /// Tells events until `stop`, or until the last handle is gone. What still waits then is not told.
    ///
    /// Needs the verbs `create` and `patch` on `events` of `events.k8s.io`.
    pub async fn run(mut self, client: Client, stop: CancellationToken) {
        let mut ledger = Ledger::new(Limits::default(), Instant::now());
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = tick.tick() => {
                    for repetition in ledger.due(Instant::now()) {
                        self.count(&client, &mut ledger, repetition, &stop).await;
                    }
                }
                event = self.queue.recv() => {
                    let Some(event) = event else { return };
                    self.first(&client, &mut ledger, event, &stop).await;
                }
            }
        }
    }

    async fn first(&self, client: &Client, ledger: &mut Ledger, event: Event, stop: &CancellationToken) {
        let key = key(&event);
        let object = object(event, self.controller, &self.instance, Timestamp::now(), rand::random());
        match ledger.record(&key, object.metadata.name.as_deref().unwrap_or_default(), Instant::now()) {
            Verdict::Repeated => bump(&self.counts.repeated),
            Verdict::Limited => bump(&self.counts.limited),
            Verdict::New => {
                let api = Api::<Object>::namespaced(client.clone(), &key.namespace);
                let params = PostParams::default();
                match call(stop, api.create(&params, &object)).await {
                    Ok(_) => bump(&self.counts.told),
                    Err(fault) => {
                        bump(&self.counts.failed);
                        ledger.forget(&key);
                        // A namespace that ends takes no events: nobody has to look at that.
                        debug!(
                            namespace = key.namespace,
                            name = key.name,
                            reason = key.reason,
                            fault,
                            "event not told"
                        );
                    }
                }
            }
        }
    }

    async fn count(&self, client: &Client, ledger: &mut Ledger, repetition: Repetition, stop: &CancellationToken) {
        let Repetition { key, object, count } = repetition;
        let series = EventSeries { count, last_observed_time: MicroTime(Timestamp::now()) };
        let api = Api::<Object>::namespaced(client.clone(), &key.namespace);
        let (params, patch) = (PatchParams::default(), Patch::Merge(json!({ "series": series })));
        if let Err(fault) = call(stop, api.patch(&object, &params, &patch)).await {
            // Events live for an hour, unless the cluster says otherwise.
            ledger.forget(&key);
            debug!(namespace = key.namespace, object, fault, "count not told");
        }
    }
}

async fn call<T>(stop: &CancellationToken, call: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    tokio::select! {
        () = stop.cancelled() => Err("stopped".to_owned()),
        answer = timeout(CALL, call) => match answer {
            Ok(Ok(taken)) => Ok(taken),
            Ok(Err(fault)) => Err(fault.to_string()),
            Err(_) => {
                warn!("the API server did not take an event within {CALL:?}");
                Err("no answer in time".to_owned())
            }
        },
    }
}

fn bump(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

/// The object as the API server takes it.
fn object(event: Event, controller: &str, instance: &str, now: Timestamp, random: u32) -> Object {
    let Event { regarding, severity, reason, action, note } = event;
    let name = regarding.name.as_deref().filter(|name| !name.is_empty()).unwrap_or("unnamed");
    let name = cut(name, NAME).trim_end_matches(['-', '.']);
    let namespace = regarding.namespace.clone().unwrap_or_else(|| "default".to_owned());
    Object {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}{random:08x}", now.as_millisecond())),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some(if severity == Severity::Normal { "Normal" } else { "Warning" }.to_owned()),
        reason: Some(reason.to_owned()),
        action: Some(action.to_owned()),
        note: Some(cut(&note, NOTE).to_owned()),
        regarding: Some(regarding),
        reporting_controller: Some(controller.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        ..Object::default()
    }
}

fn key(event: &Event) -> Key {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let ObjectReference { namespace, kind, name, uid, .. } = &event.regarding;
    Key {
        namespace: namespace.clone().unwrap_or_else(|| "default".to_owned()),
        kind: text(kind),
        name: text(name),
        uid: text(uid),
        reason: event.reason,
        note: cut(&event.note, NOTE).to_owned(),
    }
}

/// At most so many bytes, whole characters.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, note: &str) -> Event {
        let regarding = ObjectReference {
            api_version: Some("apps/v1".to_owned()),
            kind: Some("ReplicaSet".to_owned()),
            namespace: Some("shop".to_owned()),
            name: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        Event { regarding, severity: Severity::Warning, reason: "Refused", action: "Inject", note: note.to_owned() }
    }

    #[test]
    fn an_object_keeps_the_bounds_of_the_api_server() {
        let event = event(&format!("{}.b", "a".repeat(NAME - 1)), &"é".repeat(NOTE));
        let object = object(event, "hauberk.dev/webhook", "pod", Timestamp::UNIX_EPOCH, 1);
        let name = object.metadata.name.expect("set");
        assert!(name.len() <= 253 && name.ends_with("a.000000001"), "{name}");
        assert_eq!(object.metadata.namespace.as_deref(), Some("shop"));
        assert_eq!(object.note.expect("set").len(), NOTE);
        assert_eq!(object.type_.as_deref(), Some("Warning"));
    }

    #[test]
    fn an_object_without_name_or_namespace_has_an_event_nevertheless() {
        let mut event = event("", "note");
        event.regarding.namespace = None;
        assert_eq!(key(&event).namespace, "default");
        let object = object(event, "hauberk.dev/webhook", "pod", Timestamp::UNIX_EPOCH, 0xab);
        assert_eq!(object.metadata.name.as_deref(), Some("unnamed.0000000ab"));
        assert_eq!(object.metadata.namespace.as_deref(), Some("default"));
    }

    #[tokio::test]
    async fn telling_never_waits_and_counts_what_is_too_much() {
        let (events, teller) = Events::new("hauberk.dev/webhook", "pod");
        for note in 0..QUEUE + 3 {
            events.tell(event("web", &note.to_string()));
        }
        assert_eq!(events.counts(), EventCounts { limited: 3, ..EventCounts::default() });
        drop(teller);
    }
}
