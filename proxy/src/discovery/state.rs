//! `Resolution`: what the two streams of one address have said so far, made one [`Target`]. Pure.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use hauberk_mesh::LABEL_AFFINITY_SECONDS;
use linkerd2_proxy_api::destination::{
    AddrSet, DestinationProfile, Update, WeightedAddr, WeightedAddrSet, update::Update as Kind,
};

use super::target::{Endpoint, Malformed, Target, TargetKind, address, endpoint};

/// Endpoints of one address. About 1 KB each: 64 MB, more than any cluster's largest service.
const MAX_ENDPOINTS: usize = 65_536;

type Endpoints = BTreeMap<SocketAddr, Arc<Endpoint>>;

/// What is known so far. Survives its streams: what they said counts until the next ones say something.
#[derive(Debug, Default)]
pub(crate) struct Resolution {
    got: Option<Got>,
    profile: Option<Profile>,
    /// The open streams that have said nothing yet.
    silent: Silent,
}

#[derive(Debug, Default)]
struct Silent {
    get: bool,
    profile: bool,
}

#[derive(Debug)]
enum Got {
    Unknown,
    Known { affinity: Option<Duration>, endpoints: Endpoints },
}

#[derive(Debug)]
struct Profile {
    service: Option<Arc<str>>,
    /// Set if the address is that of a pod; without an endpoint if what was said of it could not be read.
    pod: Option<Option<Arc<Endpoint>>>,
}

impl Resolution {
    /// New streams are open: the first message of each replaces what the one before it said.
    pub(crate) fn reopened(&mut self) {
        self.silent = Silent { get: true, profile: true };
    }

    /// Whether each of the open streams has said something.
    pub(super) fn is_current(&self) -> bool {
        !self.silent.get && !self.silent.profile
    }

    /// Takes an update of `Get`, and returns what in it was left out.
    pub(crate) fn update(&mut self, update: Update) -> Vec<Malformed> {
        let Some(kind) = update.update else { return vec![Malformed::Update] };
        let first = std::mem::take(&mut self.silent.get);
        let before = self.got.take().filter(|_| !first);
        let mut faults = Vec::new();
        self.got = Some(match kind {
            Kind::Add(set) => add(before, set, &mut faults),
            Kind::Remove(set) => remove(before, set, &mut faults),
            Kind::NoEndpoints(none) if none.exists => Got::Known { affinity: None, endpoints: Endpoints::new() },
            Kind::NoEndpoints(_) => Got::Unknown,
        });
        faults
    }

    /// Takes a profile, and returns what in it was left out.
    pub(crate) fn profile(&mut self, profile: DestinationProfile) -> Option<Malformed> {
        self.silent.profile = false;
        let read = profile.endpoint.map(endpoint);
        let service = Some(profile.fully_qualified_name).filter(|name| !name.is_empty()).map(Arc::from);
        let (pod, fault) = match read {
            None => (None, None),
            Some(Ok(endpoint)) => (Some(Some(Arc::new(endpoint))), None),
            Some(Err(fault)) => (Some(None), Some(fault)),
        };
        self.profile = Some(Profile { service, pod });
        fault
    }

    /// The target, once both streams have answered.
    pub(crate) fn target(&self) -> Option<Target> {
        let (got, profile) = (self.got.as_ref()?, self.profile.as_ref()?);
        let service = profile.service.clone();
        Some(match (&profile.pod, got) {
            (Some(pod), _) => {
                Target { service, affinity: None, kind: TargetKind::Pod, endpoints: pod.iter().cloned().collect() }
            }
            (None, Got::Known { affinity, endpoints }) => {
                let endpoints = endpoints.values().cloned().collect();
                Target { service, affinity: *affinity, kind: TargetKind::Service, endpoints }
            }
            (None, Got::Unknown) => {
                // A name without endpoints: the streams see a new service one after the other.
                let kind = if service.is_some() { TargetKind::Service } else { TargetKind::Unknown };
                Target { service, affinity: None, kind, endpoints: Arc::default() }
            }
        })
    }
}

fn add(before: Option<Got>, set: WeightedAddrSet, faults: &mut Vec<Malformed>) -> Got {
    let mut endpoints = endpoints_of(before);
    for message in set.addrs {
        if let Err(fault) = insert(&mut endpoints, message) {
            faults.push(fault);
        }
    }
    let seconds = set.metric_labels.get(LABEL_AFFINITY_SECONDS).and_then(|text| text.parse().ok());
    Got::Known { affinity: seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs), endpoints }
}

/// An endpoint that cannot be read is taken out: what was said of its address before is no longer true.
fn insert(endpoints: &mut Endpoints, message: WeightedAddr) -> Result<(), Malformed> {
    let addr = address(message.addr)?;
    endpoints.remove(&addr);
    if endpoints.len() >= MAX_ENDPOINTS {
        return Err(Malformed::TooMany(endpoints.len()));
    }
    endpoints.insert(addr, Arc::new(endpoint(message)?));
    Ok(())
}

fn remove(before: Option<Got>, set: AddrSet, faults: &mut Vec<Malformed>) -> Got {
    let mut got = before.unwrap_or_else(|| Got::Known { affinity: None, endpoints: Endpoints::new() });
    if let Got::Known { endpoints, .. } = &mut got {
        for message in set.addrs {
            match address(Some(message)) {
                Ok(addr) => drop(endpoints.remove(&addr)),
                Err(fault) => faults.push(fault),
            }
        }
    }
    got
}

fn endpoints_of(got: Option<Got>) -> Endpoints {
    match got {
        Some(Got::Known { endpoints, .. }) => endpoints,
        Some(Got::Unknown) | None => Endpoints::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hauberk_destination::{Answer, Endpoint as Told, Mesh, Pod, profile, updates};
    use hauberk_mesh::{IdentityName, PortSet, Reason, TrustDomain};
    use linkerd2_proxy_api::destination::NoEndpoints;
    use proptest::{collection::vec, option, prelude::*};

    const NO_ACCOUNT: &str = "";

    /// Pod 10.1.0.`host`: of `account`, or unmeshed without one.
    fn told(host: u8, account: &str, terminating: bool) -> Told {
        let identity = TrustDomain::default().identity(account, "shop");
        let mesh = match account {
            NO_ACCOUNT => Mesh::Absent,
            _ => Mesh::Proxy { identity: identity.clone(), skip_inbound_ports: PortSet::default() },
        };
        let addr = SocketAddr::from(([10, 1, 0, host], 8080));
        let pod = Pod {
            name: "web-0".to_owned(),
            namespace: "shop".to_owned(),
            service_account: account.to_owned(),
            ips: vec![addr.ip()],
            mesh,
            terminating,
            weight: 1,
            labels: BTreeMap::new(),
            place: None,
        };
        Told { addr, pod: Some(Arc::new(pod)), identity: identity.map_err(|_| Reason::PeerNotMeshed) }
    }

    fn service(endpoints: impl IntoIterator<Item = Told>, affinity_seconds: Option<u32>) -> Answer {
        let endpoints = endpoints.into_iter().map(|endpoint| (endpoint.addr, endpoint)).collect();
        Answer::Service { fqdn: "web.shop.svc.cluster.local".to_owned(), affinity_seconds, endpoints }
    }

    /// What a proxy should know of `answer`: kind, affinity in seconds, and each endpoint's address, account and fate.
    type Known = (TargetKind, Option<u64>, Vec<(SocketAddr, Option<String>, bool)>);

    fn expected(answer: &Answer) -> Known {
        let endpoint = |(addr, told): (_, &Told)| {
            let account = told.identity.as_ref().ok().map(|name| name.service_account().to_owned());
            (addr, account, told.pod.as_ref().is_some_and(|pod| pod.terminating))
        };
        let endpoints = answer.endpoints().into_iter().map(endpoint).collect();
        match answer {
            Answer::Unknown => (TargetKind::Unknown, None, endpoints),
            Answer::Service { affinity_seconds, .. } => {
                let has_some = !answer.endpoints().is_empty();
                (TargetKind::Service, affinity_seconds.filter(|_| has_some).map(u64::from), endpoints)
            }
            Answer::Pod(Some(_)) => (TargetKind::Pod, None, endpoints),
            // There is no word for it but a service without endpoints: not unknown, and nowhere to go.
            Answer::Pod(None) => (TargetKind::Service, None, endpoints),
        }
    }

    fn known(target: &Target) -> Known {
        let endpoint = |it: &Arc<Endpoint>| {
            let account = it.identity.as_ref().map(|name| name.service_account().to_owned());
            assert_eq!(it.mesh_port.is_some(), it.identity.is_some());
            assert_eq!(it.reason.is_none(), it.identity.is_some());
            (it.addr, account, it.terminating)
        };
        (target.kind, target.affinity.map(|it| it.as_secs()), target.endpoints.iter().map(endpoint).collect())
    }

    fn say(kind: Kind) -> Update {
        Update { update: Some(kind) }
    }

    /// A resolution that has heard all of `answer` over its first streams.
    fn heard(answer: &Answer) -> Resolution {
        let mut resolution = Resolution::default();
        resolution.reopened();
        for update in updates(None, answer) {
            assert_eq!(resolution.update(update), []);
        }
        assert_eq!(resolution.profile(profile(answer)), None);
        resolution
    }

    fn add(endpoints: &[Told]) -> Update {
        updates(None, &service(endpoints.iter().cloned(), None)).remove(0)
    }

    #[test]
    fn a_target_is_known_when_both_streams_have_answered() {
        let answer = service([told(2, "web", false)], Some(60));
        let mut resolution = Resolution::default();
        resolution.reopened();
        assert_eq!(resolution.target(), None);
        resolution.update(updates(None, &answer).remove(0));
        assert!(resolution.target().is_none() && !resolution.is_current());
        resolution.profile(profile(&answer));
        assert_eq!(resolution.target().map(|target| known(&target)), Some(expected(&answer)));
        assert!(resolution.is_current());
    }

    #[test]
    fn the_first_message_of_a_new_stream_replaces_what_was_known_and_nothing_does_before() {
        let answer = service([told(2, "web", false), told(3, "web", false)], None);
        for (first, left) in [
            (add(&[told(4, "new", false)]), vec![4]),
            (say(Kind::Remove(AddrSet { addrs: vec![told(2, "web", false).addr.into()] })), vec![]),
            (say(Kind::NoEndpoints(NoEndpoints { exists: true })), vec![]),
        ] {
            let mut resolution = heard(&answer);
            resolution.reopened();
            assert_eq!(resolution.target().map(|target| known(&target)), Some(expected(&answer)), "stale, but held");
            resolution.update(first.clone());
            let target = resolution.target().expect("known before");
            let hosts = target.endpoints.iter().map(|it| it.addr);
            let left: Vec<_> = left.into_iter().map(|host| SocketAddr::from(([10, 1, 0, host], 8080))).collect();
            assert_eq!(hosts.collect::<Vec<_>>(), left, "{first:?}");
        }
    }

    #[test]
    fn removing_the_last_endpoint_leaves_a_known_service_without_any() {
        let mut resolution = heard(&service([told(2, "web", false)], None));
        resolution.update(say(Kind::Remove(AddrSet { addrs: vec![told(2, "web", false).addr.into()] })));
        let target = resolution.target().expect("known");
        assert_eq!((target.kind, target.endpoints.len()), (TargetKind::Service, 0));
    }

    #[test]
    fn a_meshed_endpoint_is_never_replaced_by_one_that_cannot_be_read() {
        let Some(Kind::Add(good)) = add(&[told(2, "web", false), told(3, "web", false)]).update else { unreachable!() };
        let broken = |breaks: fn(&mut WeightedAddr)| {
            let mut set = good.clone();
            breaks(&mut set.addrs[0]);
            say(Kind::Add(set))
        };
        for (what, update, hosts) in [
            ("no hint", broken(|it| it.protocol_hint = None), vec![3]),
            ("no name", broken(|it| it.tls_identity.as_mut().expect("set").strategy = None), vec![3]),
            ("weight 0", broken(|it| it.weight = 0), vec![3]),
            ("no address", broken(|it| it.addr = None), vec![2, 3]),
            ("port 65616", broken(|it| it.addr.as_mut().expect("set").port = 65616), vec![2, 3]),
        ] {
            let mut resolution = heard(&service([told(2, "web", false), told(3, "web", false)], None));
            assert_eq!(resolution.update(update).len(), 1, "{what}");
            let target = resolution.target().expect("known");
            let left: Vec<_> = hosts.into_iter().map(|host| SocketAddr::from(([10, 1, 0, host], 8080))).collect();
            assert_eq!(target.endpoints.iter().map(|it| it.addr).collect::<Vec<_>>(), left, "{what}");
            assert!(target.endpoints.iter().all(|it| it.identity.is_some()), "{what}");
        }
    }

    #[test]
    fn a_pod_whose_profile_cannot_be_read_is_a_pod_without_an_endpoint() {
        let answer = Answer::Pod(Some(told(2, "web", false)));
        let mut resolution = heard(&answer);
        let mut message = profile(&answer);
        message.endpoint.as_mut().expect("set").protocol_hint = None;
        assert_eq!(resolution.profile(message), Some(Malformed::NoMeshPort));
        let target = resolution.target().expect("known");
        assert_eq!((target.kind, target.endpoints.len()), (TargetKind::Pod, 0));
    }

    #[test]
    fn what_a_pods_address_may_lose_with_time_is_perishable() {
        for (answer, perishable) in [
            (Answer::Unknown, true),
            (Answer::Pod(Some(told(2, NO_ACCOUNT, false))), true),
            (Answer::Pod(Some(told(2, "web", false))), false),
            (Answer::Pod(None), false),
            (service([told(2, NO_ACCOUNT, false)], None), false),
            (service([], None), false),
        ] {
            assert_eq!(heard(&answer).target().expect("known").is_perishable(), perishable, "{answer:?}");
        }
    }

    fn any_answer() -> impl Strategy<Value = Answer> {
        let account = prop_oneof![Just(NO_ACCOUNT), Just("web"), Just("other")];
        let told = (0u8..6, account, any::<bool>()).prop_map(|(host, account, leaving)| told(host, account, leaving));
        prop_oneof![
            Just(Answer::Unknown),
            option::of(told.clone()).prop_map(Answer::Pod),
            (vec(told, 0..6), option::of(1u32..100)).prop_map(|(told, affinity)| service(told, affinity)),
        ]
    }

    /// A message with any part wrong or missing.
    fn any_message() -> impl Strategy<Value = WeightedAddr> {
        let port = prop_oneof![Just(0u32), Just(80), Just(65_535), Just(65_536), any::<u32>()];
        let parts = (any::<bool>(), port.clone(), port, any::<[bool; 4]>(), "[a-z.]{0,8}");
        (0u8..4, parts).prop_map(|(host, (meshed, addr_port, mesh_port, [addr, tls, hint, name], junk))| {
            let told = told(host, if meshed { "web" } else { NO_ACCOUNT }, false);
            let mut message = profile(&Answer::Pod(Some(told))).endpoint.expect("set");
            message.addr = message.addr.map(|it| linkerd2_proxy_api::net::TcpAddress { port: addr_port, ..it });
            message.addr = message.addr.filter(|_| addr);
            message.tls_identity = message.tls_identity.filter(|_| tls);
            message.protocol_hint = message.protocol_hint.filter(|_| hint);
            if let Some(transport) = message.protocol_hint.as_mut().and_then(|hint| hint.opaque_transport.as_mut()) {
                transport.inbound_port = mesh_port;
            }
            if let Some(tls) = message.tls_identity.as_mut().filter(|_| !name) {
                tls.server_name.as_mut().expect("set").name = junk;
            }
            message
        })
    }

    proptest! {
        #[test]
        fn what_the_service_tells_is_what_the_proxy_knows(
            answers in vec((any_answer(), any::<bool>()), 1..8),
        ) {
            let mut resolution = Resolution::default();
            let mut sent: Option<&Answer> = None;
            for (now, reconnect) in &answers {
                if *reconnect || sent.is_none() {
                    resolution.reopened();
                    sent = None;
                }
                let before = resolution.target().map(|target| target.endpoints.len()).unwrap_or_default();
                for update in updates(sent, now) {
                    prop_assert_eq!(resolution.update(update), []);
                    let emptied = resolution.target().is_some_and(|target| target.endpoints.is_empty());
                    prop_assert!(before == 0 || !emptied || now.endpoints().is_empty(), "an empty moment");
                }
                resolution.profile(profile(now));
                prop_assert_eq!(known(&resolution.target().expect("both answered")), expected(now));
                prop_assert!(resolution.is_current());
                sent = Some(now);
            }
        }

        #[test]
        fn no_message_makes_a_meshed_endpoint_look_unmeshed(messages in vec(any_message(), 1..8)) {
            let mut resolution = heard(&service([told(2, "web", false)], None));
            for message in messages {
                let meshed = message.tls_identity.is_some() || message.protocol_hint.is_some();
                let addr = address(message.addr);
                let set = WeightedAddrSet { addrs: vec![message], metric_labels: Default::default() };
                resolution.update(say(Kind::Add(set)));
                let target = resolution.target().expect("known");
                let found = target.endpoints.iter().find(|it| Ok(it.addr) == addr);
                prop_assert!(!meshed || found.is_none_or(|it| it.identity.is_some()));
                let whole = |it: &Arc<Endpoint>| it.identity.as_ref().map(IdentityName::as_str).is_some() == it.mesh_port.is_some();
                prop_assert!(target.endpoints.iter().all(whole));
            }
        }
    }
}
