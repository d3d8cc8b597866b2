//! F08 and F09: certificates and roots change under load, and no connection is lost.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant, SystemTime},
};

use hauberk_identity::server::{Lifetimes, rotation};
use hauberk_lab::{ControlOptions, Lab, Pod, wait_for};

use super::client::{Echo, Outcome, Streams, at_rate};
use crate::{
    faults::form::{Form, report},
    scene::{PORT, at, meshed, service},
    streams::metric,
};

/// Renewed at 65 to 75 % of its life: what is left then is what a busy machine may take for it.
const LEAF: Duration = Duration::from_secs(8);
const LIMIT: Duration = Duration::from_secs(90);
const SERVICE: &str = "10.2.0.10";

/// A client, and a service of so many servers: the more proxies there are, the oftener one of them renews.
struct Scene {
    lab: Lab,
    client: Pod,
    servers: Vec<Pod>,
    _echos: Vec<Echo>,
}

impl Scene {
    fn new(form: Form) -> Self {
        let lab = Lab::new().expect("root and iproute2");
        let client = lab.pod(meshed("client")).expect("a pod");
        let names: Vec<_> = (0..form.servers).map(|number| format!("server-{number}")).collect();
        let servers: Vec<_> = names.iter().map(|name| lab.pod(meshed(name)).expect("a pod")).collect();
        lab.service(service(SERVICE, names.iter().map(String::as_str))).expect("valid");
        let options = ControlOptions { leaf_lifetime: LEAF, ..ControlOptions::default() };
        lab.start_control_plane_with(options).expect("the control plane starts");
        std::iter::once(&client).chain(&servers).for_each(|pod| lab.start_proxy(pod).expect("it starts"));
        let echos = servers.iter().map(|server| Echo::start(server, PORT)).collect();
        Self { lab, client, servers, _echos: echos }
    }

    fn all(&self) -> impl Iterator<Item = &Pod> {
        std::iter::once(&self.client).chain(&self.servers)
    }

    /// A metric of every proxy.
    fn each(&self, name: &str) -> Vec<f64> {
        self.all().map(|pod| metric(pod, name, &[])).collect()
    }

    /// Waits until it is at least so much in each.
    fn wait(&self, what: &str, name: &str, least: &[f64]) {
        wait_for(what, LIMIT, || {
            let found = self.each(name);
            let there = found.iter().zip(least).all(|(found, least)| found >= least);
            Ok(if there { Ok(()) } else { Err(format!("{found:?}, not {least:?}")) })
        })
        .unwrap_or_else(|error| panic!("{error}"));
    }

    fn wait_trust(&self, what: &str, generation: f64) {
        self.wait(what, "hauberk_trust_generation", &vec![generation; self.servers.len() + 1]);
    }

    fn wait_renewals(&self, what: &str, count: f64) {
        let least: Vec<_> = self.each(LEAFS).iter().map(|now| now + count).collect();
        self.wait(what, LEAFS, &least);
    }
}

const LEAFS: &str = "hauberk_certificate_generation";

/// Long streams and new connections while `work` is done.
fn under_load(form: Form, client: &Pod, work: impl FnOnce() + Send) -> (Outcome, usize, usize) {
    let to = at(SERVICE);
    let streams = Streams::open(client, to, form.streams);
    let enough = AtomicBool::new(false);
    let outcome = thread::scope(|scope| {
        let load = scope.spawn(|| at_rate(client, &[client.ip()], to, form.new_a_second, || enough.load(Relaxed)));
        // Also where the work fails: nobody waits for ever.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        enough.store(true, Relaxed);
        let outcome = load.join().expect("no panic");
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        outcome
    });
    let (words, broken) = streams.end();
    (outcome, words, broken)
}

/// What the handshakes were, and how many streams needed none.
fn kinds(client: &Pod, streams: usize) -> String {
    let of = |kind| metric(client, "hauberk_handshakes_total", &[("direction", "outbound"), ("result", kind)]);
    let (full, resumed, failed) = (of("full"), of("resumed"), of("failed"));
    let reused = streams as f64 - full - resumed;
    assert_eq!(failed, 0.0, "handshakes that failed");
    assert!(full > 0.0);
    format!("{full:.0} full, {resumed:.0} resumed handshakes, {reused:.0} streams on connections that were used again")
}

fn check(what: &str, form: Form, (outcome, words, broken): &(Outcome, usize, usize)) {
    outcome.check(what);
    assert_eq!(*broken, 0, "{what}: long streams that broke");
    assert!(*words >= form.streams, "{what}: {words}");
}

#[test]
fn leafs_are_renewed_all_the_time_under_load_and_no_connection_is_lost() {
    let form = Form::now();
    let scene = Scene::new(form);
    let before = scene.each(LEAFS);
    let begin = Instant::now();
    // The load is what takes time here; nothing else has to happen in it.
    let load = under_load(form, &scene.client, || thread::sleep(form.rotation));
    let took = begin.elapsed().as_secs_f64();
    check("renewal", form, &load);
    let renewed: Vec<_> = scene.each(LEAFS).iter().zip(before).map(|(after, before)| after - before).collect();
    assert!(renewed.iter().all(|renewed| *renewed >= 1.0), "{renewed:?}");
    let renewals = renewed.iter().sum::<f64>();
    let every = took / renewals;
    report(
        "F08",
        &format!(
            "{} long streams ({} words, none broke) and {}; in {took:.0} s {} proxies renewed their leafs {renewals} times, \
             one every {every:.1} s; {}",
            form.streams,
            load.1,
            load.0.numbers(),
            renewed.len(),
            kinds(&scene.client, load.0.served + form.streams),
        ),
    );
}

#[test]
fn the_root_is_added_signs_and_the_old_one_is_dropped_under_load_and_no_connection_is_lost() {
    let form = Form::now();
    let scene = Scene::new(form);
    let (dir, lifetimes) = (scene.lab.identity_dir(), Lifetimes { leaf: LEAF, ..Lifetimes::default() });
    let load = under_load(form, &scene.client, || {
        rotation::publish_next_root(&dir, &lifetimes, SystemTime::now()).expect("the CA is there");
        scene.wait_trust("all trust the next root", 2.0);
        rotation::sign_under_next_root(&dir, &lifetimes, SystemTime::now()).expect("it was published");
        // The first of them may have been under way.
        scene.wait_renewals("all have leafs under it", 2.0);
        rotation::drop_other_roots(&dir).expect("the CA is there");
        scene.wait_trust("all have dropped the old root", 3.0);
        scene.wait_renewals("all is renewed once more", 1.0);
    });
    check("rotation", form, &load);
    let kinds = kinds(&scene.client, load.0.served + form.streams);
    report(
        "F09",
        &format!(
            "add, sign, drop under {} long streams ({} words, none broke) and {}; {kinds}",
            form.streams,
            load.1,
            load.0.numbers(),
        ),
    );
}
