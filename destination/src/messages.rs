//! Answers as the messages of Linkerd's API: a profile, and the updates that lead from one answer to the next. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
};

use hauberk_mesh::{
    IdentityName, LABEL_AFFINITY_SECONDS, LABEL_REASON, LABEL_TERMINATING, MESH_PORT, RESERVED_LABEL_PREFIX,
};
use linkerd2_proxy_api::destination::{
    AddrSet, DestinationProfile, NoEndpoints, ProtocolHint, TlsIdentity, Update, WeightedAddr, WeightedAddrSet,
    protocol_hint::OpaqueTransport,
    tls_identity::{DnsLikeIdentity, Strategy as Named},
    update::Update as Kind,
};

use crate::answer::{Answer, Endpoint};

/// Endpoints in one message: about 500 bytes each, and a message of 4 MiB is refused by most clients.
const ENDPOINTS_PER_MESSAGE: usize = 1000;

/// What has to be sent to a caller that was told `sent` (nothing yet: none), so that it knows `now`. Additions come
/// first, so that the caller never sees an empty set that is not meant.
pub fn updates(sent: Option<&Answer>, now: &Answer) -> Vec<Update> {
    let (before, after) = (sent.map(Answer::endpoints).unwrap_or_default(), now.endpoints());
    if after.is_empty() {
        let exists = *now != Answer::Unknown;
        let told = sent.is_some_and(|sent| before.is_empty() && (*sent != Answer::Unknown) == exists);
        return if told { Vec::new() } else { vec![update(Kind::NoEndpoints(NoEndpoints { exists }))] };
    }
    let set_labels = set_labels(now);
    let keep = sent.is_some_and(|sent| self::set_labels(sent) == set_labels);
    let added: Vec<_> = after.iter().filter(|(addr, it)| !keep || before.get(*addr) != Some(*it)).collect();
    let removed: Vec<_> = before.keys().filter(|addr| !after.contains_key(*addr)).collect();
    let adds = added.chunks(ENDPOINTS_PER_MESSAGE).map(|chunk| {
        let addrs = chunk.iter().map(|(_, endpoint)| weighted_addr(endpoint)).collect();
        update(Kind::Add(WeightedAddrSet { addrs, metric_labels: set_labels.clone() }))
    });
    let addrs = || removed.iter().map(|addr| SocketAddr::into(**addr)).collect();
    let remove = (!removed.is_empty()).then(|| update(Kind::Remove(AddrSet { addrs: addrs() })));
    adds.chain(remove).collect()
}

/// The profile of what was asked; the default one where nobody is known.
pub fn profile(answer: &Answer) -> DestinationProfile {
    match answer {
        Answer::Unknown => DestinationProfile::default(),
        Answer::Service { fqdn, .. } => {
            DestinationProfile { fully_qualified_name: fqdn.clone(), ..DestinationProfile::default() }
        }
        Answer::Pod(endpoint) => {
            DestinationProfile { endpoint: endpoint.as_ref().map(weighted_addr), ..DestinationProfile::default() }
        }
    }
}

fn update(kind: Kind) -> Update {
    Update { update: Some(kind) }
}

fn set_labels(answer: &Answer) -> HashMap<String, String> {
    let seconds = match answer {
        Answer::Service { affinity_seconds, .. } => *affinity_seconds,
        _ => None,
    };
    seconds.map(|seconds| (LABEL_AFFINITY_SECONDS.to_owned(), seconds.to_string())).into_iter().collect()
}

fn weighted_addr(endpoint: &Endpoint) -> WeightedAddr {
    let meshed = endpoint.identity.as_ref().ok();
    WeightedAddr {
        addr: Some(endpoint.addr.into()),
        weight: endpoint.pod.as_ref().map_or(1, |pod| pod.weight),
        metric_labels: labels(endpoint).into_iter().collect(),
        tls_identity: meshed.map(tls_identity),
        protocol_hint: meshed.map(|_| ProtocolHint {
            protocol: None,
            opaque_transport: Some(OpaqueTransport { inbound_port: MESH_PORT.into() }),
        }),
        ..WeightedAddr::default()
    }
}

fn tls_identity(name: &IdentityName) -> TlsIdentity {
    let name = DnsLikeIdentity { name: name.as_str().to_owned() };
    TlsIdentity { strategy: Some(Named::DnsLikeIdentity(name.clone())), server_name: Some(name) }
}

/// The pod's own labels first: none of them can pass for what we say.
fn labels(endpoint: &Endpoint) -> BTreeMap<String, String> {
    let pod = endpoint.pod.as_deref();
    let given = pod.into_iter().flat_map(|pod| &pod.labels).filter(|(key, _)| !key.starts_with(RESERVED_LABEL_PREFIX));
    let mut labels: BTreeMap<String, String> = given.map(|(key, value)| (key.clone(), value.clone())).collect();
    let mut say = |key: &str, value: &str| labels.insert(key.to_owned(), value.to_owned());
    if let Some(pod) = pod {
        say("pod", &pod.name);
        say("namespace", &pod.namespace);
        say("serviceaccount", &pod.service_account);
        if pod.terminating {
            say(LABEL_TERMINATING, "true");
        }
    }
    if let Err(reason) = endpoint.identity {
        say(LABEL_REASON, reason.as_str());
    }
    labels
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::subject::{Mesh, Pod};
    use hauberk_mesh::{PortSet, Reason, TrustDomain};
    use proptest::{prelude::*, strategy::Strategy};

    fn endpoint(host: u8, mesh: Mesh, terminating: bool) -> Endpoint {
        let addr = SocketAddr::from(([10, 1, 0, host], 8080));
        let identity = match &mesh {
            Mesh::Proxy { identity, .. } => Ok(identity.clone().expect("a valid name")),
            _ => Err(Reason::PeerNotMeshed),
        };
        let given = [("app", "web"), ("pod", "not-me"), (LABEL_REASON, "loopback"), ("hauberk.dev/inject", "enabled")];
        let pod = Pod {
            name: "web-0".to_owned(),
            namespace: "shop".to_owned(),
            service_account: "web".to_owned(),
            ips: vec![addr.ip()],
            mesh,
            terminating,
            weight: 3,
            labels: given.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            place: None,
        };
        Endpoint { addr, pod: Some(Arc::new(pod)), identity }
    }

    fn meshed(account: &str) -> Mesh {
        let identity = TrustDomain::default().identity(account, "shop");
        Mesh::Proxy { identity, skip_inbound_ports: PortSet::default() }
    }

    fn service(endpoints: impl IntoIterator<Item = Endpoint>, affinity_seconds: Option<u32>) -> Answer {
        let endpoints = endpoints.into_iter().map(|endpoint| (endpoint.addr, endpoint)).collect();
        Answer::Service { fqdn: "web.shop.svc.cluster.local".to_owned(), affinity_seconds, endpoints }
    }

    #[test]
    fn a_meshed_endpoint_says_who_it_is_and_where_its_proxy_listens() {
        let message = weighted_addr(&endpoint(2, meshed("web"), false));
        let name = "web.shop.serviceaccount.identity.hauberk.cluster.local";
        let identity = message.tls_identity.expect("set");
        assert_eq!(identity.server_name, Some(DnsLikeIdentity { name: name.to_owned() }));
        assert_eq!(identity.strategy, Some(Named::DnsLikeIdentity(DnsLikeIdentity { name: name.to_owned() })));
        let hint = message.protocol_hint.expect("set");
        assert_eq!((hint.protocol, hint.opaque_transport), (None, Some(OpaqueTransport { inbound_port: 4143 })));
        assert_eq!((message.addr, message.weight), (Some(SocketAddr::from(([10, 1, 0, 2], 8080)).into()), 3));
        let labels: BTreeMap<_, _> = message.metric_labels.into_iter().collect();
        let expected = [("app", "web"), ("namespace", "shop"), ("pod", "web-0"), ("serviceaccount", "web")];
        assert_eq!(labels, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn an_unmeshed_endpoint_says_why_and_a_leaving_one_that_it_leaves() {
        let message = weighted_addr(&endpoint(2, Mesh::Absent, true));
        assert_eq!((message.tls_identity, message.protocol_hint), (None, None));
        assert_eq!(message.metric_labels[LABEL_REASON], "peer-not-meshed", "a pod's own label does not count");
        assert_eq!(message.metric_labels[LABEL_TERMINATING], "true");
    }

    #[test]
    fn the_profile_names_the_service_or_the_endpoint() {
        let pod = endpoint(2, meshed("web"), false);
        assert_eq!(profile(&Answer::Unknown), DestinationProfile::default());
        assert_eq!(profile(&Answer::Pod(Some(pod.clone()))).endpoint, Some(weighted_addr(&pod)));
        let service = profile(&service([pod], None));
        assert_eq!((service.fully_qualified_name.as_str(), service.endpoint), ("web.shop.svc.cluster.local", None));
    }

    #[test]
    fn a_service_that_stays_empty_or_unknown_is_said_once() {
        let empty = service([], None);
        for (sent, now, expected) in [
            (None, &Answer::Unknown, Some(false)),
            (None, &empty, Some(true)),
            (None, &Answer::Pod(None), Some(true)),
            (Some(&Answer::Unknown), &Answer::Unknown, None),
            (Some(&empty), &empty, None),
            (Some(&empty), &Answer::Unknown, Some(false)),
            (Some(&Answer::Unknown), &empty, Some(true)),
        ] {
            let expected = expected.map(|exists| update(Kind::NoEndpoints(NoEndpoints { exists })));
            assert_eq!(updates(sent, now), expected.into_iter().collect::<Vec<_>>(), "{sent:?} {now:?}");
        }
    }

    #[test]
    fn a_large_service_comes_in_several_messages() {
        let many = (0..2500u16).map(|i| {
            let mut endpoint = endpoint(0, Mesh::Absent, false);
            endpoint.addr.set_port(i + 1);
            endpoint
        });
        let sizes: Vec<_> = updates(None, &service(many, None)).iter().map(|update| adds(update).len()).collect();
        assert_eq!(sizes, [1000, 1000, 500]);
    }

    fn adds(update: &Update) -> &[WeightedAddr] {
        match &update.update {
            Some(Kind::Add(set)) => &set.addrs,
            _ => &[],
        }
    }

    /// What a caller knows: none for "exists: false".
    type Known = Option<(HashMap<String, String>, BTreeMap<SocketAddr, WeightedAddr>)>;

    fn apply(known: &mut Known, update: &Update) {
        let addr = |addr: &Option<_>| SocketAddr::try_from(Option::clone(addr).expect("set")).expect("an address");
        match update.update.as_ref().expect("set") {
            Kind::Add(set) => {
                let mut endpoints = known.take().map(|(_, endpoints)| endpoints).unwrap_or_default();
                endpoints.extend(set.addrs.iter().map(|it| (addr(&it.addr), it.clone())));
                *known = Some((set.metric_labels.clone(), endpoints));
            }
            Kind::Remove(set) => {
                let (_, endpoints) = known.as_mut().expect("something was added before");
                set.addrs.iter().for_each(|it| {
                    assert!(endpoints.remove(&addr(&Some(*it))).is_some(), "only what is there is removed");
                });
            }
            Kind::NoEndpoints(none) => *known = none.exists.then(Default::default),
        }
    }

    fn any_answer() -> impl Strategy<Value = Answer> {
        let mesh = prop_oneof![Just(Mesh::Absent), Just(meshed("web")), Just(meshed("other"))];
        let endpoint = (0u8..6, mesh, any::<bool>()).prop_map(|(host, mesh, leaving)| endpoint(host, mesh, leaving));
        prop_oneof![
            Just(Answer::Unknown),
            proptest::option::of(endpoint.clone()).prop_map(Answer::Pod),
            (proptest::collection::vec(endpoint, 0..6), proptest::option::of(1u32..3))
                .prop_map(|(endpoints, affinity)| service(endpoints, affinity)),
        ]
    }

    proptest! {
        #[test]
        fn updates_lead_from_any_answer_to_any_other_without_an_empty_moment(
            answers in proptest::collection::vec(any_answer(), 1..6),
        ) {
            let mut known: Known = None;
            let mut sent: Option<&Answer> = None;
            for now in &answers {
                let messages = updates(sent, now);
                prop_assert!(sent.is_some() || !messages.is_empty(), "a stream starts with a message");
                for (i, message) in messages.iter().enumerate() {
                    apply(&mut known, message);
                    let empty = known.as_ref().is_none_or(|(_, endpoints)| endpoints.is_empty());
                    prop_assert!(!empty || (now.endpoints().is_empty() && i + 1 == messages.len()));
                }
                let fresh = updates(None, now).iter().fold(None, |mut known, message| {
                    apply(&mut known, message);
                    known
                });
                prop_assert_eq!(&known, &fresh, "as if it had been the first answer");
                prop_assert!(updates(Some(now), now).is_empty(), "nothing is said twice");
                sent = Some(now);
            }
        }
    }
}
