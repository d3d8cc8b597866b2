//! Labels and annotations of namespaces: a cache by a watch, and one question to the API server where the cache lacks a
//! namespace, or contradicts what the API server must have seen in it to send the pod by this entry.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use hauberk_kubernetes::{Bucket, Latch, Rate};
use hauberk_mesh::{INJECT_KEY, KEY_PREFIX, TLS_KEY};
use k8s_openapi::api::core::v1;
use kube::{
    Api, Client,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use tokio::time::timeout;
use tracing::warn;

use crate::{inject::Namespace, metrics::Metrics, registration::Entry};

type Object = PartialObjectMeta<v1::Namespace>;

/// Of one question: the API server waits for our answer for 5 s.
const ANSWER: Duration = Duration::from_secs(2);
/// Whoever reaches the webhook can name namespaces, so questions are limited. Namespaces are in the cache milliseconds
/// after they were made.
const QUESTIONS: Rate = Rate { burst: 50, every: Duration::from_millis(50) };
/// Longest name of a namespace.
const NAME: usize = 63;

/// Where namespaces are looked up.
pub(crate) struct Namespaces {
    cache: Store<Object>,
    api: Api<Object>,
    questions: Mutex<Bucket>,
    metrics: Metrics,
}

/// The lookup, and the task that fills its cache.
pub(crate) fn follow(
    client: &Client,
    latch: Latch,
    metrics: Metrics,
) -> (Namespaces, impl Future<Output = &'static str> + use<>) {
    let api = Api::<Object>::all(client.clone());
    let (cache, writer) = reflector::store();
    let events = watcher(api.clone(), watcher::Config::default()).default_backoff().modify(prune);
    let fill = async move {
        let mut events = reflector::reflector(writer, events).boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::InitDone) => latch.open(),
                Ok(_) => {}
                Err(error) => warn!(%error, "namespaces cannot be watched; again"),
            }
        }
        "the watch of namespaces"
    };
    let questions = Mutex::new(Bucket::new(QUESTIONS, Instant::now()));
    (Namespaces { cache, api, questions, metrics }, fill)
}

impl Namespaces {
    /// The namespace that a pod is to be made in, or why it is not known.
    pub(crate) async fn find(&self, name: &str, entry: Entry) -> Result<Namespace, String> {
        if !is_name(name) {
            return Err("the review names no valid namespace".to_owned());
        }
        let cached = self.cache.get(&ObjectRef::new(name)).map(|object| namespace(&object));
        match cached {
            Some(cached) if agrees(&cached, entry) => Ok(cached),
            // What is cached may lag by a moment; better than nothing.
            Some(cached) => Ok(self.ask(name).await.unwrap_or(cached)),
            None => self.ask(name).await,
        }
    }

    async fn ask(&self, name: &str) -> Result<Namespace, String> {
        if !self.questions.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()) {
            self.metrics.namespace_question("limited");
            return Err(format!("namespace {name} is not known, and too many such were asked for"));
        }
        let (result, found) = match timeout(ANSWER, self.api.get_opt(name)).await {
            Ok(Ok(Some(object))) => ("found", Ok(namespace(&object))),
            Ok(Ok(None)) => ("absent", Err(format!("there is no namespace {name}"))),
            Ok(Err(error)) => ("failed", Err(format!("namespace {name} is not known: {error}"))),
            Err(_) => ("failed", Err(format!("namespace {name} is not known, and the API server did not answer"))),
        };
        self.metrics.namespace_question(result);
        found
    }
}

/// Whether the API server, seeing these labels, would send a pod by this entry.
fn agrees(namespace: &Namespace, entry: Entry) -> bool {
    let label = |key: &str| namespace.labels.get(key).map(String::as_str);
    let (inject, tls) = (label(INJECT_KEY), label(TLS_KEY));
    match entry {
        Entry::Namespace => inject == Some("enabled") && tls != Some("required"),
        Entry::Pod => !matches!(inject, Some("enabled" | "disabled")) && tls != Some("required"),
        Entry::Required => inject != Some("disabled") && tls == Some("required"),
        Entry::RequiredByDefault => {
            inject == Some("enabled") && !matches!(tls, Some("optional" | "required" | "disabled"))
        }
    }
}

fn namespace(object: &Object) -> Namespace {
    Namespace {
        name: object.metadata.name.clone().unwrap_or_default(),
        labels: object.metadata.labels.clone().unwrap_or_default(),
        annotations: object.metadata.annotations.clone().unwrap_or_default(),
    }
}

/// Annotations can be large, and others' say nothing to us.
fn prune(object: &mut Object) {
    let metadata = &mut object.metadata;
    metadata.managed_fields = None;
    metadata.owner_references = None;
    metadata.finalizers = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|key, _| key.starts_with(KEY_PREFIX));
    }
}

/// It becomes part of a path.
fn is_name(name: &str) -> bool {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty() && name.len() <= NAME && name.chars().all(valid)
}

impl std::fmt::Debug for Namespaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Namespaces").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_of_a_namespace_is_never_asked_for() {
        assert!(is_name("shop-2"));
        for text in ["", "a/../b", "Shop", "a.b", &"a".repeat(64)] {
            assert!(!is_name(text), "{text:?}");
        }
    }

    #[test]
    fn an_entry_contradicts_labels_that_would_not_have_led_to_it() {
        let labelled = |pairs: &[(&str, &str)]| Namespace {
            labels: pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..Namespace::default()
        };
        let agreeing = |namespace: &Namespace| {
            Entry::ALL.into_iter().filter(|entry| agrees(namespace, *entry)).collect::<Vec<_>>()
        };
        assert_eq!(agreeing(&labelled(&[])), [Entry::Pod]);
        let enabled = (INJECT_KEY, "enabled");
        assert_eq!(agreeing(&labelled(&[enabled])), [Entry::Namespace, Entry::RequiredByDefault]);
        assert_eq!(agreeing(&labelled(&[enabled, (TLS_KEY, "optional")])), [Entry::Namespace]);
        assert_eq!(agreeing(&labelled(&[enabled, (TLS_KEY, "required")])), [Entry::Required]);
        assert_eq!(agreeing(&labelled(&[(TLS_KEY, "required")])), [Entry::Required]);
        assert_eq!(agreeing(&labelled(&[(INJECT_KEY, "disabled")])), []);
    }

    #[test]
    fn the_cache_keeps_only_what_is_read() {
        let mut object = Object::default();
        let annotations = [("hauberk.dev/tls", "optional"), ("example.com/big", "…")];
        let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned()));
        object.metadata.annotations = Some(annotations.into());
        object.metadata.managed_fields = Some(Vec::new());
        prune(&mut object);
        assert_eq!(
            object.metadata.annotations.map(|kept| kept.into_keys().collect::<Vec<_>>()),
            Some(vec!["hauberk.dev/tls".to_owned()])
        );
        assert!(object.metadata.managed_fields.is_none());
    }
}
