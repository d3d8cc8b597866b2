//! The metrics of running proxies: what `docs/metrics.md` lists, the numbers of what happened, series that go when their
//! endpoint has left, and the bound on all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::UdpSocket,
};

use hauberk_lab::{Pod, wait_for};
use hauberk_mesh::{CloseCause, ClosedBy, Direction, FirstBytes, Reason, TransportState};

use crate::{
    common::{LIMIT, dial, identity},
    scene::{PORT, at, host_of, meshed, plain, scene, service, set_endpoints},
    talk::{HELLO, Sample, Samples, client_hello, host, tell, visit},
};

const DOCUMENT: &str = include_str!("../../../docs/metrics.md");
const WEB: &str = "10.2.0.10";
const ALSO_WEB: &str = "10.2.0.11";

/// What the document says of one metric: its type, and the labels in the words of the document.
#[derive(Debug)]
struct Documented {
    kind: String,
    labels: BTreeSet<String>,
}

/// The rows of the document's first table, by name without the suffix of counters.
fn documented() -> BTreeMap<String, Documented> {
    let rows = DOCUMENT.lines().filter(|line| line.starts_with("| `hauberk_"));
    let read = |row: &str| {
        let cells: Vec<_> = row.split('|').map(|cell| cell.trim().replace('`', "")).collect();
        let [_, name, kind, labels, ..] = cells.as_slice() else { panic!("not a row: {row}") };
        let labels = labels.split(',').map(|label| label.trim().to_owned()).filter(|label| !label.is_empty());
        let name = name.strip_suffix("_total").unwrap_or(name);
        (name.to_owned(), Documented { kind: kind.clone(), labels: labels.collect() })
    };
    rows.map(read).collect()
}

/// The labels that the document's table under `**group**` lists.
fn group(name: &str) -> BTreeSet<String> {
    let section = DOCUMENT.split(&format!("**{name}**")).nth(1).expect("it is there");
    let rows = section.lines().skip_while(|line| !line.starts_with("| --")).skip(1);
    let label = |row: &str| row.split('|').nth(1).map(|cell| cell.trim().replace('`', "")).expect("a cell");
    rows.take_while(|line| line.starts_with('|')).map(label).collect()
}

impl Documented {
    fn groups(&self) -> BTreeSet<String> {
        let expand = |label: &String| match label.as_str() {
            "subject" | "kind" => group(label),
            _ => [label.clone()].into(),
        };
        self.labels.iter().flat_map(expand).collect()
    }

    /// Checks that `sample` has the labels that are listed, and no others.
    fn assert_labels(&self, sample: &Sample) {
        const WHERE_THERE_IS_ONE: [&str; 2] = ["endpoint", "endpoint_…"];
        let mut listed = self.groups();
        if sample.name.ends_with("_bucket") {
            listed.insert("le".to_owned());
        }
        let of_endpoint = |key: &str| key.starts_with("endpoint_").then(|| "endpoint_…".to_owned());
        let found = sample.labels.keys().map(|key| of_endpoint(key).unwrap_or_else(|| key.clone())).collect();
        let mut missing = listed.difference(&found).filter(|label| !WHERE_THERE_IS_ONE.contains(&label.as_str()));
        assert!(missing.next().is_none() && found.is_subset(&listed), "{sample:?} has not the labels {listed:?}");
    }
}

/// Checks what Prometheus checks, and that all is as the document says.
fn assert_documented(text: &str) {
    let documented = documented();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let mut types: Vec<_> = types.collect();
    types.sort_unstable();
    let expected: Vec<_> = documented.iter().map(|(name, it)| (name.as_str(), it.kind.as_str())).collect();
    assert_eq!(types, expected, "those of the document, each once");
    let samples = Samples::parse(text);
    let mut series = BTreeSet::new();
    for sample in &samples.0 {
        let suffix = ["_total", "_bucket", "_sum", "_count"].into_iter().find(|suffix| sample.name.ends_with(suffix));
        let name = suffix.and_then(|suffix| sample.name.strip_suffix(suffix)).unwrap_or(&sample.name);
        documented.get(name).unwrap_or_else(|| panic!("{name} is not in the document")).assert_labels(sample);
        assert!(series.insert((&sample.name, &sample.labels)), "{sample:?} stands there twice");
        assert_terms(sample);
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut keys: Vec<_> = line.split(['{', ',']).filter_map(|part| Some(part.split_once("=\"")?.0)).collect();
        let count = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), count, "a label stands there twice: {line}");
    }
    assert!(text.ends_with("# EOF\n"));
}

/// Labels whose values are a closed list have no others.
fn assert_terms(sample: &Sample) {
    let is = |key, parses: &dyn Fn(&str) -> bool| {
        let value = sample.label(key);
        assert!(value.is_empty() || parses(value), "{sample:?}: {key}");
    };
    is("direction", &|value| value.parse::<Direction>().is_ok());
    is("reason", &|value| value.parse::<Reason>().is_ok());
    is("state", &|value| value.parse::<TransportState>().is_ok());
    is("first_bytes", &|value| value.parse::<FirstBytes>().is_ok());
    is("cause", &|value| value.parse::<CloseCause>().is_ok());
    is("by", &|value| value.parse::<ClosedBy>().is_ok());
}

#[test]
fn a_running_proxy_writes_the_metrics_that_the_document_lists_with_their_labels_and_what_happened() {
    const TIMES: usize = 7;
    let meshed = |name| meshed(name).limits("bypass_sample=200ms");
    let web = meshed("web").label("app.kubernetes.io/name", "web").label("app-kubernetes-io-name", "twin");
    let (_lab, [client, web, old]) = scene([meshed("client"), web, plain("old")], [service(WEB, ["web"])]);
    let _hosts = [&web, &old].map(|pod| host(pod, PORT));
    for _ in 0..TIMES {
        assert_eq!(visit(&client, at(WEB)).host(), "web");
        assert_eq!(visit(&client, old.at(PORT)).host(), "old");
        assert_eq!(tell(&client, old.at(PORT), &client_hello("old.example")).host(), "old");
        assert_eq!(visit(&old, web.at(PORT)).host(), "web");
    }
    // Refused: nothing listens there.
    assert!(visit(&client, old.at(PORT + 1)).broken.is_some() && visit(&client, web.at(PORT + 1)).broken.is_some());
    // Past the proxies: there is nothing to tell of it before it happens.
    let [here, there] = [&client, &web].map(|pod| pod.enter(|| UdpSocket::bind(pod.at(PORT))).expect("it is free"));
    there.set_read_timeout(Some(LIMIT)).expect("valid");
    here.send_to(b"datagram", web.at(PORT)).expect("sent");
    there.recv(&mut [0; 8]).expect("it arrives");
    for pod in [&client, &web] {
        let bypassed = || Samples::of(pod).sum("hauberk_bypassed_total", &[]);
        wait_for("a sample", LIMIT, || Ok((bypassed() > 0.0).then_some(()).ok_or_else(String::new))).expect("counted");
    }
    client.wait_connections("all have closed", |all| all.live.is_empty().then_some(())).expect("they close");
    web.wait_connections("all have closed", |all| all.live.is_empty().then_some(())).expect("they close");
    for pod in [&client, &web] {
        assert_documented(&pod.metrics().expect("it answers"));
    }

    let (up, down) = (TIMES * HELLO.len(), TIMES * "web".len());
    let endpoint = web.at(PORT).to_string();
    let (us, it) = (identity("client"), identity("web"));
    let mtls = [("state", "mtls"), ("reason", ""), ("first_bytes", "other")];
    let name = ("endpoint_app_kubernetes_io_name", "web");
    let described = [("endpoint_pod", "web"), ("endpoint_namespace", "shop"), ("endpoint_serviceaccount", "web"), name];
    let outbound = [("direction", "outbound"), ("peer_identity", &it), ("endpoint", &endpoint)];
    let inbound = [("direction", "inbound"), ("peer_identity", &us)];
    assert_flow(&client, &[&outbound[..], &described, &mtls].concat(), [TIMES, up, down]);
    assert_flow(&web, &[&inbound[..], &mtls].concat(), [TIMES, up, down]);
    let clear = [("state", "cleartext"), ("first_bytes", "other")];
    let to_old = [("endpoint_pod", "old"), ("reason", "peer-not-meshed"), ("peer_identity", "")];
    assert_flow(&client, &[&to_old[..], &clear].concat(), [TIMES, up, down]);
    let hello = TIMES * client_hello("old.example").len();
    let own_tls = [("state", "own-tls"), ("first_bytes", "tls")];
    assert_flow(&client, &[&to_old[..], &own_tls].concat(), [TIMES, hello, down]);
    let from_old = [("direction", "inbound"), ("reason", "unmeshed-client"), ("peer_identity", "")];
    assert_flow(&web, &[&from_old[..], &clear].concat(), [TIMES, up, down]);

    let samples = Samples::of(&client);
    let opened = |labels: &[_]| samples.sum("hauberk_connections_opened_total", labels);
    assert_eq!(opened(&outbound), TIMES as f64);
    assert_eq!(opened(&to_old), 2.0 * TIMES as f64);
    let refused = samples.sum("hauberk_connections_closed_total", &[("cause", "connect-refused")]);
    assert_eq!((refused, opened(&[])), (2.0, 3.0 * TIMES as f64 + 2.0), "those that failed are counted too");
    assert_eq!(samples.sum("hauberk_connections_open", &[]), 0.0);
    let handshakes = samples.sum("hauberk_handshakes_total", &[("direction", "outbound")]);
    assert_eq!(handshakes, samples.sum("hauberk_handshake_seconds_count", &[("direction", "outbound")]));
    assert!((1.0..=TIMES as f64 + 1.0).contains(&handshakes), "{handshakes}");
}

/// Checks the number of connections that ended cleanly, by the client, and the bytes each way.
fn assert_flow(pod: &Pod, labels: &[(&str, &str)], expected: [usize; 3]) {
    let samples = Samples::of(pod);
    let ended = [labels, &[("cause", "clean"), ("by", "client")]].concat();
    let found = [
        samples.sum("hauberk_connections_closed_total", &ended),
        samples.sum("hauberk_bytes_to_server_total", labels),
        samples.sum("hauberk_bytes_to_client_total", labels),
    ];
    assert_eq!(found, expected.map(|count| count as f64), "{}: {labels:?}", pod.name());
}

/// The endpoints that have series of their own.
fn endpoints(pod: &Pod) -> BTreeSet<String> {
    let samples = Samples::of(pod);
    let opened = samples.with("hauberk_connections_opened_total", &[]);
    opened.map(|sample| sample.label("endpoint").to_owned()).filter(|endpoint| !endpoint.is_empty()).collect()
}

#[test]
fn series_of_endpoints_that_left_go_with_their_last_connection_and_others_stay() {
    const ALL: [&str; 4] = ["staying", "leaving", "busy", "shared"];
    let pods = [meshed("client").limits("series_idle=1s"), plain(ALL[0]), plain(ALL[1]), plain(ALL[2]), plain(ALL[3])];
    let services = [service(WEB, ALL), service(ALSO_WEB, ["shared"])];
    let (lab, [client, staying, leaving, busy, shared]) = scene(pods, services);
    let _hosts = [&staying, &leaving, &busy, &shared].map(|pod| host(pod, PORT));
    let of = |pods: &[&Pod]| pods.iter().map(|pod| pod.at(PORT).to_string()).collect::<BTreeSet<_>>();
    let mut open = None;
    wait_for("visits to all", LIMIT, || {
        let stream = dial(&client, at(WEB)).expect("one of them answers");
        if host_of(&stream) == "busy" {
            open = Some(stream);
        }
        let seen = endpoints(&client);
        Ok(if seen.len() == ALL.len() { Ok(()) } else { Err(format!("{seen:?}")) })
    })
    .expect("each is chosen");
    // Another service names it too.
    visit(&client, at(ALSO_WEB));
    // The last to be used: when its time is over, so is that of the others.
    wait_for("a visit", LIMIT, || {
        let host = visit(&client, at(WEB)).host();
        Ok(if host == "leaving" { Ok(()) } else { Err(host) })
    })
    .expect("it is chosen");

    set_endpoints(&lab, WEB, &["staying"]);
    wait_for("its series go", LIMIT, || {
        let left = endpoints(&client);
        Ok(if left.is_disjoint(&of(&[&leaving])) { Ok(()) } else { Err(format!("{left:?}")) })
    })
    .expect("it has left");
    assert_eq!(endpoints(&client), of(&[&staying, &busy, &shared]), "named, in use, named by another service");
    drop(open);
    wait_for("its series go", LIMIT, || {
        let left = endpoints(&client);
        Ok(if left == of(&[&staying, &shared]) { Ok(()) } else { Err(format!("{left:?}")) })
    })
    .expect("its last connection has ended");
    let samples = Samples::of(&client);
    let gone = samples.0.iter().find(|sample| ["leaving", "busy"].contains(&sample.label("endpoint_pod")));
    assert_eq!(gone, None, "of no metric");
}

#[test]
fn the_bound_on_series_holds_and_what_is_over_it_is_counted_as_other() {
    const BOUND: usize = 3;
    const TIMES: usize = 2;
    let names = ["a", "b", "c", "d", "e"];
    let [a, b, c, d, e] = names.map(plain);
    let pods = [meshed("client").limits(&format!("series={BOUND}")), meshed("web"), a, b, c, d, e];
    let (_lab, [client, pods @ ..]) = scene(pods, []);
    let _hosts: Vec<_> = pods.iter().map(|pod| host(pod, PORT)).collect();
    for pod in &pods {
        (0..TIMES).for_each(|_| assert_eq!(visit(&client, pod.at(PORT)).host(), pod.name()));
    }
    assert_eq!(endpoints(&client), pods[..BOUND].iter().map(|pod| pod.at(PORT).to_string()).collect());
    let samples = Samples::of(&client);
    let opened = |labels: &[_]| samples.sum("hauberk_connections_opened_total", labels);
    let other = [("direction", "outbound"), ("peer_identity", "other"), ("reason", "peer-not-meshed")];
    assert_eq!(opened(&other), (TIMES * (pods.len() - BOUND)) as f64);
    assert_eq!(opened(&[]), (TIMES * pods.len()) as f64, "none is lost");
    assert_eq!(opened(&[("peer_identity", &identity("web"))]), TIMES as f64, "the first have their own");
}
