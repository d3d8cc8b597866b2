//! `Hub`: where the one source publishes and every stream listens. A stream is woken only by changes of its own topic,
//! and always finds the latest state: nothing is queued for a slow reader.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::watch;

use crate::{
    index::{Change, Index, Touched},
    subject::{ClusterNetworks, ServiceName, Topic},
    told::Resolved,
};

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
    topics: BTreeMap<Topic, watch::Sender<Arc<Resolved>>>,
    /// Those of addresses, by port.
    by_port: BTreeSet<(u16, IpAddr)>,
}

/// One listener's view of one topic.
#[derive(Debug)]
pub struct Subscription {
    hub: Arc<Hub>,
    topic: Topic,
    receiver: watch::Receiver<Arc<Resolved>>,
}

impl Hub {
    /// A hub that starts with `index`: nothing is answered before there is one.
    pub fn new(index: Index) -> Arc<Self> {
        let networks = watch::Sender::new(Arc::new(index.cluster_networks()));
        Arc::new(Self {
            state: Mutex::new(State { index, topics: BTreeMap::new(), by_port: BTreeSet::new() }),
            networks,
        })
    }

    /// Swaps the index, and wakes those whose subject differs. Costs a look at every topic: for sources that know only
    /// whole states.
    pub fn publish(&self, index: Index) {
        let mut state = self.state();
        state.index = index;
        let State { index, topics, .. } = &mut *state;
        topics.iter().for_each(|(topic, sender)| refresh(index, topic, sender));
        self.publish_networks(index);
    }

    /// Takes all these steps at once, and wakes those whose subject differs then. Costs a look at the topics that the
    /// changes touch.
    pub fn update(&self, changes: impl IntoIterator<Item = Change>) {
        let mut state = self.state();
        let mut touched = Touched::default();
        changes.into_iter().for_each(|change| state.index.apply(change, &mut touched));
        for topic in state.touched(&touched) {
            refresh(&state.index, &topic, &state.topics[&topic]);
        }
        if touched.networks {
            self.publish_networks(&state.index);
        }
    }

    /// Listens to `topic`.
    pub fn subscribe(self: &Arc<Self>, topic: Topic) -> Subscription {
        let mut state = self.state();
        let receiver = match state.topics.get(&topic) {
            Some(sender) => sender.subscribe(),
            None => {
                let sender = watch::Sender::new(Resolved::new(state.index.subject(&topic)));
                let receiver = sender.subscribe();
                state.topics.insert(topic.clone(), sender);
                if let Topic::Addr(addr) = &topic {
                    state.by_port.insert((addr.port(), addr.ip()));
                }
                receiver
            }
        };
        Subscription { hub: self.clone(), topic, receiver }
    }

    /// The cluster's networks, now and later.
    pub fn networks(&self) -> watch::Receiver<Arc<ClusterNetworks>> {
        self.networks.subscribe()
    }

    /// Under the lock of the state, so that of two publishers the later one is heard last.
    fn publish_networks(&self, index: &Index) {
        let networks = Arc::new(index.cluster_networks());
        self.networks.send_if_modified(|current| {
            let differs = *current != networks;
            *current = networks;
            differs
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the hub's state")
    }
}

impl State {
    /// The topics with a subscription that these changes may concern.
    fn touched(&self, touched: &Touched) -> BTreeSet<Topic> {
        let at_ip = |ip: &IpAddr| {
            let ip = *ip;
            let from = Topic::Addr(SocketAddr::new(ip, 0));
            let addrs = self.from(from, move |topic| matches!(topic, Topic::Addr(addr) if addr.ip() == ip));
            addrs.chain([Topic::Caller(ip)])
        };
        let named = |service: &ServiceName| {
            let from = Topic::Name { service: service.clone(), instance: None, port: None };
            let service = service.clone();
            self.from(from, move |topic| matches!(topic, Topic::Name { service: it, .. } if *it == service))
        };
        let at_port = |port: &u16| {
            let port = *port;
            let nothing: IpAddr = std::net::Ipv4Addr::UNSPECIFIED.into();
            let found = self.by_port.range((port, nothing)..).take_while(move |(it, _)| *it == port);
            found.map(|(port, ip)| Topic::Addr(SocketAddr::new(*ip, *port)))
        };
        let ips = touched.ips.iter().flat_map(at_ip);
        let addrs = touched.addrs.iter().map(|addr| Topic::Addr(*addr));
        let topics = ips.chain(addrs).chain(touched.names.iter().flat_map(named));
        let topics = topics.chain(touched.ports.iter().flat_map(at_port));
        topics.filter(|topic| self.topics.contains_key(topic)).collect()
    }

    /// The topics from `first` on, in order, while they fit.
    fn from(&self, first: Topic, fits: impl Fn(&Topic) -> bool) -> impl Iterator<Item = Topic> {
        self.topics.range(first..).map(|(topic, _)| topic).take_while(move |topic| fits(topic)).cloned()
    }
}

impl Subscription {
    /// What is known now; later [`Self::changed`] waits for something else.
    pub fn current(&mut self) -> Arc<Resolved> {
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
            if let Topic::Addr(addr) = &self.topic {
                state.by_port.remove(&(addr.port(), addr.ip()));
            }
        }
    }
}

fn refresh(index: &Index, topic: &Topic, sender: &watch::Sender<Arc<Resolved>>) {
    let subject = index.subject(topic);
    sender.send_if_modified(|current| {
        let differs = current.subject() != subject.as_ref();
        if differs {
            *current = Resolved::new(subject);
        }
        differs
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{subject::Subject, testing::MESH};
    use hauberk_mesh::{MeshFile, TrustDomain};

    fn index(yaml: &str) -> Index {
        Index::from_mesh(&MeshFile::parse(yaml).expect("a valid mesh"), &TrustDomain::default())
    }

    fn ip(text: &str) -> Topic {
        let addr = SocketAddr::new(text.parse().expect("an address"), 80);
        Topic::Addr(addr)
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
        assert_eq!(subscription.current().subject(), None);
        hub.publish(index(&MESH.replace("10.1.0.3", "10.1.0.9")));
        assert!(matches!(subscription.current().subject(), Some(Subject::Pod(pod, _)) if pod.name == "web-1"));
        hub.publish(index(MESH));
        assert_eq!(subscription.current().subject(), None);
    }

    #[test]
    fn a_topic_is_kept_while_somebody_listens() {
        let hub = Hub::new(index(MESH));
        let first = hub.subscribe(ip("10.1.0.2"));
        let second = hub.subscribe(ip("10.1.0.2"));
        drop(first);
        assert_eq!(hub.state().topics.len(), 1);
        drop(second);
        assert!(hub.state().topics.is_empty() && hub.state().by_port.is_empty());
    }
}
