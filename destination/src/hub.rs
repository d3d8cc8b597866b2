//! `Hub`: where the one source publishes and every stream listens. A stream is woken only by changes of its own topic,
//! and always finds the latest state: nothing is queued for a slow reader.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::watch;

use crate::index::{ClusterNetworks, Index, Subject, Topic};

/// The latest index, and who listens.
#[derive(Debug)]
pub struct Hub {
    state: Mutex<State>,
    networks: watch::Sender<Arc<ClusterNetworks>>,
}

#[derive(Debug)]
struct State {
    index: Index,
    /// Topics with a subscription: at most as many as there are streams.
    topics: HashMap<Topic, watch::Sender<Option<Subject>>>,
}

/// One listener's view of one topic.
#[derive(Debug)]
pub struct Subscription {
    hub: Arc<Hub>,
    topic: Topic,
    receiver: watch::Receiver<Option<Subject>>,
}

impl Hub {
    /// A hub that starts with `index`: nothing is answered before there is one.
    pub fn new(index: Index) -> Arc<Self> {
        let networks = watch::Sender::new(Arc::new(index.cluster_networks()));
        Arc::new(Self { state: Mutex::new(State { index, topics: HashMap::new() }), networks })
    }

    /// Swaps the index, and wakes those whose subject differs.
    pub fn publish(&self, index: Index) {
        let networks = Arc::new(index.cluster_networks());
        self.networks.send_if_modified(|current| replace(current, networks));
        let mut state = self.state();
        state.index = index;
        for (topic, sender) in &state.topics {
            let subject = state.index.subject(topic);
            sender.send_if_modified(|current| replace(current, subject));
        }
    }

    /// Listens to `topic`.
    pub fn subscribe(self: &Arc<Self>, topic: Topic) -> Subscription {
        let mut state = self.state();
        let receiver = match state.topics.get(&topic) {
            Some(sender) => sender.subscribe(),
            None => {
                let sender = watch::Sender::new(state.index.subject(&topic));
                let receiver = sender.subscribe();
                state.topics.insert(topic.clone(), sender);
                receiver
            }
        };
        Subscription { hub: self.clone(), topic, receiver }
    }

    /// The cluster's networks, now and later.
    pub fn networks(&self) -> watch::Receiver<Arc<ClusterNetworks>> {
        self.networks.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the hub's state")
    }
}

impl Subscription {
    /// The subject now; later [`Self::changed`] waits for another.
    pub fn current(&mut self) -> Option<Subject> {
        self.receiver.borrow_and_update().clone()
    }

    /// Waits until the subject is not what was last read.
    pub async fn changed(&mut self) {
        self.receiver.changed().await.expect("the hub keeps the sender of every topic with a subscription");
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = self.hub.state();
        // The receiver of this subscription still counts. Subscribing needs the same lock, so nobody comes between.
        if state.topics.get(&self.topic).is_some_and(|sender| sender.receiver_count() <= 1) {
            state.topics.remove(&self.topic);
        }
    }
}

fn replace<T: PartialEq>(current: &mut T, new: T) -> bool {
    let differs = *current != new;
    if differs {
        *current = new;
    }
    differs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MESH;
    use hauberk_mesh::{MeshFile, TrustDomain};

    fn index(yaml: &str) -> Index {
        Index::from_mesh(&MeshFile::parse(yaml).expect("a valid mesh"), &TrustDomain::default())
    }

    fn ip(text: &str) -> Topic {
        Topic::Ip(text.parse().expect("an address"))
    }

    #[test]
    fn only_those_whose_subject_differs_are_woken() {
        let hub = Hub::new(index(MESH));
        let mut topics = ["10.1.0.3", "10.2.0.10", "10.1.0.2", "10.2.0.11", "10.9.9.9"].map(|text| {
            let mut subscription = hub.subscribe(ip(text));
            subscription.current();
            subscription
        });
        let networks = hub.networks();
        hub.publish(index(&MESH.replace("serviceAccount: old", "serviceAccount: new")));
        let woken = topics.each_mut().map(|it| it.receiver.has_changed().expect("the hub lives"));
        assert_eq!(woken, [true, true, false, false, false], "the pod and the service that it stands behind");
        assert!(!networks.has_changed().expect("the hub lives"));
        hub.publish(index(&MESH.replace("10.1.0.0/16,", "")));
        assert!(networks.has_changed().expect("the hub lives"));
    }

    #[test]
    fn who_listens_to_nobody_hears_when_somebody_comes_and_goes() {
        let hub = Hub::new(index(MESH));
        let mut subscription = hub.subscribe(ip("10.1.0.9"));
        assert_eq!(subscription.current(), None);
        hub.publish(index(&MESH.replace("10.1.0.3", "10.1.0.9")));
        assert!(matches!(subscription.current(), Some(Subject::Pod(pod)) if pod.name == "web-1"));
        hub.publish(index(MESH));
        assert_eq!(subscription.current(), None);
    }

    #[test]
    fn a_topic_is_kept_while_somebody_listens() {
        let hub = Hub::new(index(MESH));
        let first = hub.subscribe(ip("10.1.0.2"));
        let second = hub.subscribe(ip("10.1.0.2"));
        drop(first);
        assert_eq!(hub.state().topics.len(), 1);
        drop(second);
        assert!(hub.state().topics.is_empty());
    }
}
