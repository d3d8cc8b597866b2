//! `World`: the cluster's objects, who refers to whom, and what has to be said again after a change. One change costs
//! work in proportion to what refers to it. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use hauberk_mesh::Networks;
use ipnet::IpNet;

use super::{
    coverage::{self, Unmeshed},
    join::{Who, join},
    relist::{Event, Relist},
    rows::{EndpointRow, NamespaceRow, NodeRow, ObjectName, PodRow, ServiceRow, SliceRow},
};
use crate::{
    index::Change,
    subject::{HostPort, Mesh, Place, Pod, Service},
};

/// What the watches say.
#[derive(Debug)]
pub(super) enum Seen {
    Pod(Event<PodRow>),
    Service(Event<ServiceRow>),
    Slice(Event<SliceRow>),
    Node(Event<NodeRow>),
    Namespace(Event<NamespaceRow>),
}

/// All that is held of the cluster.
#[derive(Debug)]
pub(super) struct World {
    configured: Networks,
    pods: Table<PodRow>,
    services: Table<ServiceRow>,
    slices: Table<SliceRow>,
    nodes: Table<NodeRow>,
    namespaces: Table<NamespaceRow>,
    /// The pods that say they have an address.
    claims: HashMap<IpAddr, BTreeSet<Arc<ObjectName>>>,
    /// Who has it.
    at: HashMap<IpAddr, Arc<Pod>>,
    /// Addresses of nodes, by what says so: the Node, and pods that share its network.
    hosts: HashMap<IpAddr, BTreeSet<Arc<ObjectName>>>,
    /// The nodes that say they have an address.
    nodes_at: HashMap<IpAddr, BTreeSet<Arc<str>>>,
    slices_of: HashMap<ObjectName, BTreeSet<Arc<ObjectName>>>,
    /// Ordered, to find those of a network.
    slices_at: BTreeMap<IpAddr, BTreeSet<Arc<ObjectName>>>,
    host_ports: HashMap<(Arc<str>, u16), BTreeSet<Arc<ObjectName>>>,
    /// Each pod that is counted as unmeshed, and why.
    unmeshed: HashMap<Arc<ObjectName>, Unmeshed>,
    counts: [usize; Unmeshed::ALL.len()],
    nameless: BTreeSet<Arc<ObjectName>>,
    faults: Vec<String>,
    dirty: Dirty,
}

#[derive(Debug)]
struct Table<R> {
    rows: BTreeMap<Arc<ObjectName>, R>,
    list: Relist<R>,
}

/// What has to be said again.
#[derive(Debug, Default)]
struct Dirty {
    ips: BTreeSet<IpAddr>,
    nodes_at: BTreeSet<IpAddr>,
    host_ports: BTreeSet<(Arc<str>, u16)>,
    services: BTreeSet<ObjectName>,
    networks: bool,
}

impl<R> Default for Table<R> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), list: Relist::default() }
    }
}

impl<R: PartialEq> Table<R> {
    fn take(&mut self, event: Event<R>) -> Vec<(Arc<ObjectName>, Option<R>)> {
        self.list.take(event, self.rows.keys())
    }

    /// Replaces a row; none if it stays as it was.
    fn replace(&mut self, name: &Arc<ObjectName>, row: Option<R>) -> Option<Option<R>> {
        if self.rows.get(name) == row.as_ref() {
            return None;
        }
        Some(match row {
            Some(row) => self.rows.insert(name.clone(), row),
            None => self.rows.remove(name),
        })
    }
}

impl World {
    /// An empty one, with the networks that are known from the start.
    pub(super) fn new(configured: Networks) -> Self {
        Self {
            configured,
            pods: Table::default(),
            services: Table::default(),
            slices: Table::default(),
            nodes: Table::default(),
            namespaces: Table::default(),
            claims: HashMap::new(),
            at: HashMap::new(),
            hosts: HashMap::new(),
            nodes_at: HashMap::new(),
            slices_of: HashMap::new(),
            slices_at: BTreeMap::new(),
            host_ports: HashMap::new(),
            unmeshed: HashMap::new(),
            counts: [0; Unmeshed::ALL.len()],
            nameless: BTreeSet::new(),
            faults: Vec::new(),
            dirty: Dirty { networks: true, ..Dirty::default() },
        }
    }

    /// The kinds of which no list was read yet.
    pub(super) fn unsynced(&self) -> Vec<&'static str> {
        let kinds = [
            ("pods", self.pods.list.synced()),
            ("services", self.services.list.synced()),
            ("endpointslices", self.slices.list.synced()),
            ("nodes", self.nodes.list.synced()),
            ("namespaces", self.namespaces.list.synced()),
        ];
        kinds.into_iter().filter(|(_, synced)| !synced).map(|(kind, _)| kind).collect()
    }

    /// How many pods are not meshed that should be, by reason.
    pub(super) fn unmeshed(&self) -> [(Unmeshed, usize); Unmeshed::ALL.len()] {
        Unmeshed::ALL.map(|why| (why, self.counts[why as usize]))
    }

    /// How many pods have a proxy and can have no identity.
    pub(super) fn nameless(&self) -> usize {
        self.nameless.len()
    }

    /// What is wrong with pods, each said once.
    pub(super) fn take_faults(&mut self) -> Vec<String> {
        std::mem::take(&mut self.faults)
    }

    /// Takes what a watch says.
    pub(super) fn apply(&mut self, seen: Seen) {
        match seen {
            Seen::Pod(event) => self.pods.take(event).into_iter().for_each(|(name, row)| self.pod(&name, row)),
            Seen::Service(event) => self.services.take(event).into_iter().for_each(|(name, row)| {
                if self.services.replace(&name, row).is_some() {
                    self.dirty.services.insert((*name).clone());
                }
            }),
            Seen::Slice(event) => self.slices.take(event).into_iter().for_each(|(name, row)| self.slice(&name, row)),
            Seen::Node(event) => self.nodes.take(event).into_iter().for_each(|(name, row)| self.node(&name, row)),
            Seen::Namespace(event) => {
                self.namespaces.take(event).into_iter().for_each(|(name, row)| self.namespace(&name, row));
            }
        }
    }

    /// What has changed since the last call, as steps of the index. What is said twice is said once.
    pub(super) fn flush(&mut self) -> Vec<Change> {
        let dirty = std::mem::take(&mut self.dirty);
        let (mut changes, mut services) = (Vec::new(), dirty.services);
        if dirty.networks {
            changes.push(Change::Networks(self.networks()));
        }
        for ip in dirty.ips {
            let pod = self.owner(ip);
            let changed = pod.as_ref() != self.at.get(&ip);
            if changed {
                match &pod {
                    Some(pod) => drop(self.at.insert(ip, pod.clone())),
                    None => drop(self.at.remove(&ip)),
                }
                changes.push(Change::Pod(ip, pod.clone()));
            }
            // Where nobody is, what has changed may be whether somebody is to come.
            if changed || pod.is_none() {
                services.extend(self.services_at(ip));
            }
        }
        for ip in dirty.nodes_at {
            changes.push(Change::Node(ip, self.nodes_at.get(&ip).and_then(|nodes| nodes.first().cloned())));
        }
        for (node, port) in dirty.host_ports {
            let pods = self.host_port(&node, port);
            changes.push(Change::HostPort { node, port, pods });
        }
        for name in services {
            let service = self.service(&name).map(Arc::new);
            changes.push(Change::Service(name, service));
        }
        changes
    }

    fn pod(&mut self, name: &Arc<ObjectName>, mut row: Option<PodRow>) {
        if let Some(row) = &mut row {
            self.place(row);
            // Who compares pods is quickest with the same one.
            if let Some(held) = self.pods.rows.get(name).filter(|held| held.pod == row.pod) {
                row.pod = held.pod.clone();
            }
        }
        let Some(before) = self.pods.replace(name, row) else { return };
        let now = self.pods.rows.get(name);
        for (row, held) in [(before.as_ref(), false), (now, true)] {
            let Some(row) = row.filter(|row| !row.ended) else { continue };
            let of = if row.host_network { &mut self.hosts } else { &mut self.claims };
            for ip in &row.pod.ips {
                mark(of, *ip, name, held);
                self.dirty.ips.insert(*ip);
            }
            for port in &row.host_ports {
                if let Some(node) = &row.node {
                    let key = (node.clone(), port.port);
                    mark(&mut self.host_ports, key.clone(), name, held);
                    self.dirty.host_ports.insert(key);
                }
            }
        }
        let fault = now.filter(|row| !row.ended).and_then(|row| row.fault.as_ref());
        if let Some(fault) = fault.filter(|fault| before.as_ref().and_then(|row| row.fault.as_ref()) != Some(fault)) {
            self.faults.push(format!("pod {}/{}: {fault}", name.namespace, name.name));
        }
        let nameless =
            now.is_some_and(|row| !row.ended && matches!(row.pod.mesh, Mesh::Proxy { identity: Err(_), .. }));
        if nameless {
            self.nameless.insert(name.clone());
        } else {
            self.nameless.remove(name);
        }
        self.count(name);
    }

    fn slice(&mut self, name: &Arc<ObjectName>, row: Option<SliceRow>) {
        let Some(before) = self.slices.replace(name, row) else { return };
        for (row, held) in [(before.as_ref(), false), (self.slices.rows.get(name), true)] {
            let Some(row) = row else { continue };
            mark(&mut self.slices_of, row.service.clone(), name, held);
            for endpoint in &row.endpoints {
                let at = self.slices_at.entry(endpoint.ip).or_default();
                if held {
                    at.insert(name.clone());
                } else {
                    at.remove(name);
                }
                if at.is_empty() {
                    self.slices_at.remove(&endpoint.ip);
                }
            }
            self.dirty.services.insert(row.service.clone());
        }
    }

    fn node(&mut self, name: &Arc<ObjectName>, row: Option<NodeRow>) {
        let Some(before) = self.nodes.replace(name, row) else { return };
        let now = self.nodes.rows.get(name).cloned();
        let node: Arc<str> = name.name.as_str().into();
        for (row, held) in [(before.as_ref(), false), (now.as_ref(), true)] {
            for ip in row.into_iter().flat_map(|row| &row.addresses) {
                mark(&mut self.nodes_at, *ip, &node, held);
                mark(&mut self.hosts, *ip, name, held);
                self.dirty.nodes_at.insert(*ip);
                self.dirty.ips.insert(*ip);
            }
        }
        let networks = |row: &Option<NodeRow>| row.as_ref().map(|row| row.pod_networks.clone()).unwrap_or_default();
        let (old, new) = (networks(&before), networks(&now));
        if old != new {
            self.dirty.networks = true;
            // Addresses that are nobody's yet may now be those of pods.
            for net in old.iter().chain(&new) {
                self.dirty.ips.extend(self.slices_at.range(net.network()..=net.broadcast()).map(|(ip, _)| *ip));
            }
        }
        let zone = |row: &Option<NodeRow>| row.as_ref().and_then(|row| row.zone.clone());
        if zone(&before) != zone(&now) {
            self.moved(&node);
        }
    }

    /// Nodes get their zone before they get pods: looking at all pods is rare.
    fn moved(&mut self, node: &Arc<str>) {
        let there = self.pods.rows.iter().filter(|(_, row)| row.node.as_ref() == Some(node));
        let there: Vec<_> = there.map(|(name, row)| (name.clone(), row.clone())).collect();
        there.into_iter().for_each(|(name, row)| self.pod(&name, Some(row)));
    }

    fn namespace(&mut self, name: &Arc<ObjectName>, row: Option<NamespaceRow>) {
        if self.namespaces.replace(name, row).is_none() {
            return;
        }
        let first = ObjectName { namespace: name.name.clone(), name: String::new() };
        let within = self.pods.rows.range(first..).map(|(pod, _)| pod).take_while(|pod| pod.namespace == name.name);
        let within: Vec<_> = within.cloned().collect();
        within.iter().for_each(|pod| self.count(pod));
    }

    fn count(&mut self, name: &Arc<ObjectName>) {
        let namespace = ObjectName { namespace: String::new(), name: name.namespace.clone() };
        let namespace = self.namespaces.rows.get(&namespace);
        let now = self.pods.rows.get(name).and_then(|row| coverage::counts(row, namespace));
        let before = match now {
            Some(why) => self.unmeshed.insert(name.clone(), why),
            None => self.unmeshed.remove(name),
        };
        before.into_iter().for_each(|why| self.counts[why as usize] -= 1);
        now.into_iter().for_each(|why| self.counts[why as usize] += 1);
    }

    fn place(&self, row: &mut PodRow) {
        let Some(node) = &row.node else { return };
        let named = ObjectName { namespace: String::new(), name: node.to_string() };
        let zone = self.nodes.rows.get(&named).and_then(|node| node.zone.clone());
        let place = Some(Arc::new(Place { node: node.to_string(), zone }));
        if row.pod.place != place {
            Arc::make_mut(&mut row.pod).place = place;
        }
    }

    /// Who has an address. Two that have not ended can both say so for a moment, when one has gone and its node has not
    /// said so yet. Then the meshed one counts, as the other error could be plaintext to who is meshed; of two such the
    /// one that stays; then the younger one.
    fn owner(&self, ip: IpAddr) -> Option<Arc<Pod>> {
        let claims = self.claims.get(&ip)?.iter().filter_map(|name| self.pods.rows.get(name));
        let rank =
            |row: &&PodRow| (!matches!(row.pod.mesh, Mesh::Absent), !row.pod.terminating, row.created, row.uid.clone());
        claims.max_by_key(rank).map(|row| row.pod.clone())
    }

    fn host_port(&self, node: &Arc<str>, port: u16) -> Vec<HostPort> {
        let names = self.host_ports.get(&(node.clone(), port)).into_iter().flatten();
        let mut rows: Vec<_> = names.filter_map(|name| self.pods.rows.get(name)).collect();
        rows.sort_by_key(|row| std::cmp::Reverse((!row.pod.terminating, row.created, row.uid.clone())));
        let ports = rows.iter().flat_map(|row| row.host_ports.iter().map(move |it| (*row, it)));
        let here = ports.filter(|(row, it)| it.port == port && !row.pod.ips.is_empty());
        here.map(|(row, it)| HostPort { pod: row.pod.clone(), port: it.target, ip: it.ip }).collect()
    }

    fn service(&self, name: &ObjectName) -> Option<Service> {
        let row = self.services.rows.get(name)?;
        let slices = self.slices_of.get(name).into_iter().flatten();
        let slices: Vec<_> = slices.filter_map(|slice| self.slices.rows.get(slice)).collect();
        Some(join(name, row, &slices, |endpoint| self.who(endpoint)))
    }

    /// A slice is believed as to addresses, never as to whose they are: whoever may write slices could name any pod. But
    /// an address that is to be a pod's, and is nobody's yet, is left out until the pod is seen, or a slice that comes
    /// a moment before its pod would have it reached in plaintext.
    fn who(&self, endpoint: &EndpointRow) -> Who {
        let ip = endpoint.ip;
        match self.at.get(&ip) {
            Some(pod) => Who::Pod(pod.clone()),
            None if self.hosts.contains_key(&ip) => Who::Stranger,
            None if endpoint.says_pod || self.is_for_pods(ip) => Who::Unseen,
            None => Who::Stranger,
        }
    }

    fn is_for_pods(&self, ip: IpAddr) -> bool {
        self.nodes.rows.values().any(|node| node.pod_networks.iter().any(|net| net.contains(&ip)))
    }

    fn services_at(&self, ip: IpAddr) -> impl Iterator<Item = ObjectName> {
        let slices = self.slices_at.get(&ip).into_iter().flatten();
        slices.filter_map(|slice| self.slices.rows.get(slice)).map(|slice| slice.service.clone())
    }

    fn networks(&self) -> Networks {
        let of_nodes = self.nodes.rows.values().flat_map(|node| &node.pod_networks);
        let all: Vec<IpNet> = self.configured.iter().chain(of_nodes).copied().collect();
        IpNet::aggregate(&all).into_iter().collect()
    }
}

/// Puts `value` into the set of `key`, or takes it out; empty sets are not kept.
fn mark<K: std::hash::Hash + Eq, V: Ord + Clone>(map: &mut HashMap<K, BTreeSet<V>>, key: K, value: &V, held: bool) {
    use std::collections::hash_map::Entry;
    match map.entry(key) {
        Entry::Occupied(mut values) if !held => {
            values.get_mut().remove(value);
            if values.get().is_empty() {
                values.remove();
            }
        }
        entry if held => drop(entry.or_default().insert(value.clone())),
        _ => {}
    }
}
