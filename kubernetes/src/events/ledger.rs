//! Which events are told to the API server, and when: the same event is told once and then counted, and what is new is
//! limited by namespace and in all. Pure: the clock is an argument.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::{Bucket, Rate};

/// How much is told. Strangers can cause events, so these bound what they can make of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Different events that are remembered.
    pub(crate) remembered: usize,
    /// An event that was not seen for so long is forgotten; its next time is a first time.
    pub(crate) idle: Duration,
    /// Repetitions of one event are told at most this often.
    pub(crate) repeats: Duration,
    /// Calls for all namespaces together.
    pub(crate) all: Rate,
    /// For one namespace.
    pub(crate) namespace: Rate,
}

impl Default for Limits {
    /// A rollout of 100 workloads at once is told whole; a flood is five calls a second.
    fn default() -> Self {
        Self {
            remembered: 4096,
            idle: Duration::from_secs(360),
            repeats: Duration::from_secs(60),
            all: Rate { burst: 200, every: Duration::from_millis(200) },
            namespace: Rate { burst: 50, every: Duration::from_secs(1) },
        }
    }
}

/// What makes two events the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) reason: &'static str,
    pub(crate) note: String,
}

/// What to do about an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Tell it.
    New,
    /// It is counted; [`Ledger::due`] says when the count is told.
    Repeated,
    /// A limit is reached.
    Limited,
}

/// A count to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Repetition {
    pub(crate) key: Key,
    /// Of the event's object in the API server.
    pub(crate) object: String,
    /// How often it was seen, the first time included.
    pub(crate) count: i32,
}

#[derive(Debug)]
struct Entry {
    object: String,
    count: i32,
    told: i32,
    told_at: Instant,
    seen_at: Instant,
}

/// What was told.
#[derive(Debug)]
pub(crate) struct Ledger {
    limits: Limits,
    entries: HashMap<Key, Entry>,
    all: Bucket,
    namespaces: HashMap<String, Bucket>,
}

impl Ledger {
    pub(crate) fn new(limits: Limits, now: Instant) -> Self {
        Self { limits, entries: HashMap::new(), all: Bucket::new(limits.all, now), namespaces: HashMap::new() }
    }

    /// An event happened; `object` is the name it gets if it is new.
    pub(crate) fn record(&mut self, key: &Key, object: &str, now: Instant) -> Verdict {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.count = entry.count.saturating_add(1);
            entry.seen_at = now;
            return Verdict::Repeated;
        }
        if self.entries.len() >= self.limits.remembered || !self.may_call(&key.namespace, now) {
            return Verdict::Limited;
        }
        let entry = Entry { object: object.to_owned(), count: 1, told: 1, told_at: now, seen_at: now };
        self.entries.insert(key.clone(), entry);
        Verdict::New
    }

    /// The counts to tell now; they pass for told. Forgets what has not been seen for long.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Repetition> {
        let Limits { idle, repeats, .. } = self.limits;
        let mut due = Vec::new();
        for (key, entry) in &mut self.entries {
            let untold = entry.count > entry.told;
            if untold && now.duration_since(entry.told_at) >= repeats && self.all.take(now) {
                (entry.told, entry.told_at) = (entry.count, now);
                due.push(Repetition { key: key.clone(), object: entry.object.clone(), count: entry.count });
            }
        }
        self.entries.retain(|_, entry| now.duration_since(entry.seen_at) < idle);
        self.namespaces.retain(|_, bucket| !bucket.is_full(now));
        due
    }

    /// The API server does not have this event (any more): its next time is a first time.
    pub(crate) fn forget(&mut self, key: &Key) {
        self.entries.remove(key);
    }

    fn may_call(&mut self, namespace: &str, now: Instant) -> bool {
        let limit = self.limits.namespace;
        // Full buckets are swept, and each that is not cost a call, so that they are no more than the calls of a while.
        let bucket = self.namespaces.entry(namespace.to_owned()).or_insert_with(|| Bucket::new(limit, now));
        bucket.has(now) && self.all.take(now) && bucket.take(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(namespace: &str, note: &str) -> Key {
        Key {
            namespace: namespace.to_owned(),
            kind: "ReplicaSet".to_owned(),
            name: "web-7d9".to_owned(),
            uid: String::new(),
            reason: "Injected",
            note: note.to_owned(),
        }
    }

    fn small() -> Limits {
        Limits {
            remembered: 8,
            idle: Duration::from_secs(360),
            repeats: Duration::from_secs(60),
            all: Rate { burst: 6, every: Duration::from_secs(1) },
            namespace: Rate { burst: 3, every: Duration::from_secs(2) },
        }
    }

    #[test]
    fn an_event_is_told_once_and_then_counted() {
        let start = Instant::now();
        let mut ledger = Ledger::new(small(), start);
        assert_eq!(ledger.record(&key("shop", "a"), "web.1", start), Verdict::New);
        for _ in 0..99 {
            assert_eq!(ledger.record(&key("shop", "a"), "web.2", start), Verdict::Repeated);
        }
        assert_eq!(ledger.due(start + Duration::from_secs(59)), []);
        let minute = start + Duration::from_secs(60);
        let told = Repetition { key: key("shop", "a"), object: "web.1".to_owned(), count: 100 };
        assert_eq!(ledger.due(minute), [told]);
        assert_eq!(ledger.due(minute + Duration::from_secs(60)), [], "nothing new to tell");
    }

    #[test]
    fn what_was_not_seen_for_long_or_is_gone_is_told_anew() {
        let start = Instant::now();
        let mut ledger = Ledger::new(small(), start);
        assert_eq!(ledger.record(&key("shop", "a"), "web.1", start), Verdict::New);
        ledger.forget(&key("shop", "a"));
        assert_eq!(ledger.record(&key("shop", "a"), "web.2", start), Verdict::New);
        let later = start + Duration::from_secs(360);
        ledger.due(later);
        assert_eq!(ledger.record(&key("shop", "a"), "web.3", later), Verdict::New);
    }

    #[test]
    fn one_namespace_cannot_silence_another() {
        let start = Instant::now();
        let mut ledger = Ledger::new(small(), start);
        let told = |ledger: &mut Ledger, namespace: &str, at| {
            let verdicts = (0..20).map(|note: u32| ledger.record(&key(namespace, &note.to_string()), "e", at));
            verdicts.filter(|verdict| *verdict == Verdict::New).count()
        };
        assert_eq!(told(&mut ledger, "loud", start), 3);
        assert_eq!(told(&mut ledger, "shop", start), 3);
        assert_eq!(told(&mut ledger, "third", start), 0, "all namespaces have a limit too");
        assert_eq!(told(&mut ledger, "third", start + Duration::from_secs(1)), 1);
    }

    proptest! {
        #[test]
        fn no_sequence_of_events_makes_it_tell_or_keep_more_than_its_limits(
            events in proptest::collection::vec((0u8..40, 0u16..50, 0u64..3000), 0..400),
        ) {
            let (start, limits) = (Instant::now(), small());
            let (mut now, mut ledger, mut calls) = (start, Ledger::new(limits, start), 0u32);
            for (namespace, note, wait) in events {
                now += Duration::from_millis(wait);
                if ledger.record(&key(&namespace.to_string(), &note.to_string()), "e", now) == Verdict::New {
                    calls += 1;
                }
                if note % 7 == 0 {
                    calls += u32::try_from(ledger.due(now).len()).expect("few");
                }
                prop_assert!(ledger.entries.len() <= limits.remembered);
                let most = f64::from(limits.all.burst) + now.duration_since(start).as_secs_f64();
                prop_assert!(f64::from(calls) <= most + 1e-6, "{calls} calls, at most {most}");
            }
        }
    }
}
