//! Laws of the balancer as a state machine: discovery's words, choices, streams and failures in any order, no sockets.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;

/// What may happen.
#[derive(Debug, Clone)]
enum Step {
    /// Discovery names these hosts.
    Named(Vec<u8>),
    Pick,
    /// A stream ends.
    End(Index),
    /// A pick fails, or works.
    Failed(Index),
    Worked(Index),
    Seconds(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => vec(0u8..6, 0..6).prop_map(Step::Named),
        4 => Just(Step::Pick),
        2 => any::<Index>().prop_map(Step::End),
        1 => any::<Index>().prop_map(Step::Failed),
        1 => any::<Index>().prop_map(Step::Worked),
        1 => (0u64..40).prop_map(Step::Seconds),
    ]
}

fn addr(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 1, 0, host], 80))
}

/// Even hosts are meshed.
fn endpoint(host: u8) -> Arc<Endpoint> {
    let meshed = host.is_multiple_of(2);
    let identity = hauberk_mesh::TrustDomain::default().identity("web", "shop").expect("valid");
    Arc::new(Endpoint {
        addr: addr(host),
        weight: 1 + u32::from(host),
        identity: meshed.then_some(identity),
        mesh_port: meshed.then_some(4143),
        reason: (!meshed).then_some(Reason::PeerNotMeshed),
        labels: BTreeMap::new(),
        terminating: false,
    })
}

fn target(hosts: &[u8], affinity: Option<Duration>) -> Arc<Target> {
    let mut hosts = hosts.to_vec();
    hosts.sort_unstable();
    hosts.dedup();
    let endpoints = hosts.into_iter().map(endpoint).collect();
    Arc::new(Target { service: None, affinity, kind: TargetKind::Service, endpoints })
}

proptest! {
    #[test]
    fn only_what_is_named_is_chosen_and_what_stays_named_keeps_its_load_and_its_peer(
        steps in vec(step(), 0..120), affinity in proptest::option::of(1u64..60), seeds in vec(any::<usize>(), 1..8),
    ) {
        let affinity = affinity.map(Duration::from_secs);
        let sender = watch::Sender::new(target(&[], affinity));
        let (balancer, peers) = (Balancer::new(sender.subscribe()), Peers::default());
        let mut seeds = seeds.into_iter().cycle();
        let mut now = Instant::now();
        let mut named: Vec<u8> = Vec::new();
        let mut open: Vec<(Arc<EndpointState>, Load)> = Vec::new();
        let mut held: Option<(SocketAddr, Instant)> = None;
        for step in steps {
            match step {
                Step::Named(hosts) => {
                    sender.send_replace(target(&hosts, affinity));
                    let before: Vec<_> = named.iter().filter(|host| hosts.contains(host)).copied().collect();
                    let kept: Vec<_> = before.iter().map(|host| balancer.pick(|it| it.addr() == addr(*host), now, |_| 0)).collect();
                    balancer.refresh(&peers);
                    for (host, kept) in before.iter().zip(kept) {
                        let again = balancer.pick(|it| it.addr() == addr(*host), now, |_| 0).expect("still named");
                        prop_assert!(Arc::ptr_eq(&again, &kept.expect("named before")), "load, failures and tickets stay");
                        held = affinity.map(|_| (again.addr(), now));
                    }
                    named = hosts;
                }
                Step::Pick => {
                    let chosen = balancer.pick(|_| true, now, |below| seeds.next().unwrap_or(0) % below);
                    prop_assert_eq!(chosen.is_some(), !named.is_empty());
                    let Some(chosen) = chosen else { continue };
                    prop_assert!(named.iter().any(|host| addr(*host) == chosen.addr()));
                    prop_assert_eq!(chosen.peer().is_some(), chosen.endpoint.identity.is_some());
                    match (affinity, held) {
                        (Some(lasts), Some((addr_held, used))) if now.duration_since(used) < lasts
                            && named.iter().any(|host| addr(*host) == addr_held) => prop_assert_eq!(chosen.addr(), addr_held),
                        _ => {
                            let others = named.iter().filter_map(|host| balancer.state.lock().expect("held by nobody")
                                .endpoints.iter().find(|it| it.0.addr() == addr(*host)).map(|it| it.0.clone()));
                            let healthy = others.into_iter().any(|it| !it.candidate(now).cooling);
                            prop_assert!(!chosen.candidate(now).cooling || !healthy, "what failed lately comes last");
                        }
                    }
                    held = affinity.map(|_| (chosen.addr(), now));
                    let load = chosen.load();
                    open.push((chosen, load));
                }
                Step::End(index) if !open.is_empty() => drop(open.remove(index.index(open.len()))),
                Step::Failed(index) if !open.is_empty() => open[index.index(open.len())].0.failed(now),
                Step::Worked(index) if !open.is_empty() => open[index.index(open.len())].0.worked(),
                Step::Seconds(seconds) => now += Duration::from_secs(seconds),
                Step::End(_) | Step::Failed(_) | Step::Worked(_) => {}
            }
            for (endpoint, _) in &open {
                let streams = open.iter().filter(|(other, _)| Arc::ptr_eq(other, endpoint)).count();
                prop_assert_eq!(endpoint.candidate(now).open, streams);
            }
        }
    }
}
