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
    scene::{PORT, meshed},
    streams::metric,
};

/// Renewed at 65 to 75 % of its life, which is rounded down to whole seconds.
const LEAF: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_secs(60);

fn scene() -> (Lab, Pod, Pod) {
    let lab = Lab::new().expect("root and iproute2");
    let [client, server] = [meshed("client"), meshed("server")].map(|options| lab.pod(options).expect("a pod"));
    let options = ControlOptions { leaf_lifetime: LEAF, ..ControlOptions::default() };
    lab.start_control_plane_with(options).expect("the control plane starts");
    [&client, &server].into_iter().for_each(|pod| lab.start_proxy(pod).expect("it starts"));
    (lab, client, server)
}

fn generation(pod: &Pod) -> f64 {
    metric(pod, "hauberk_certificate_generation", &[])
}

/// Long streams and new connections while `work` is done.
fn under_load(form: Form, client: &Pod, server: &Pod, work: impl FnOnce() + Send) -> (Outcome, usize, usize) {
    let _echo = Echo::start(server, PORT);
    let to = server.at(PORT);
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
    let (_lab, client, server) = scene();
    let before = [&client, &server].map(generation);
    let begin = Instant::now();
    // The load is what takes time here; nothing else has to happen in it.
    let load = under_load(form, &client, &server, || thread::sleep(form.rotation));
    let took = begin.elapsed().as_secs_f64();
    check("renewal", form, &load);
    let renewed: Vec<_> = [&client, &server].iter().zip(before).map(|(pod, before)| generation(pod) - before).collect();
    assert!(renewed.iter().all(|renewed| *renewed >= 2.0), "{renewed:?}");
    let every = took / (renewed[0] + renewed[1]);
    report(
        "F08",
        &format!(
            "{} long streams ({} words, none broke) and {}; in {took:.0} s the two proxies renewed their leafs {} and {} \
             times, one every {every:.1} s; {}",
            form.streams,
            load.1,
            load.0.numbers(),
            renewed[0],
            renewed[1],
            kinds(&client, load.0.served + form.streams),
        ),
    );
}

#[test]
fn the_root_is_added_signs_and_the_old_one_is_dropped_under_load_and_no_connection_is_lost() {
    let form = Form::now();
    let (lab, client, server) = scene();
    let (dir, lifetimes) = (lab.identity_dir(), Lifetimes { leaf: LEAF, ..Lifetimes::default() });
    let both = |what: &str, name: &str, least: [f64; 2]| {
        wait_for(what, LIMIT, || {
            let found = [&client, &server].map(|pod| metric(pod, name, &[]));
            let there = found.iter().zip(least).all(|(found, least)| *found >= least);
            Ok(if there { Ok(()) } else { Err(format!("{found:?}, not {least:?}")) })
        })
        .unwrap_or_else(|error| panic!("{error}"));
    };
    let renewed_by = |count: f64| [&client, &server].map(|pod| generation(pod) + count);
    let load = under_load(form, &client, &server, || {
        rotation::publish_next_root(&dir, &lifetimes, SystemTime::now()).expect("the CA is there");
        both("all trust the next root", "hauberk_trust_generation", [2.0; 2]);
        // The control plane's own proxies' time: one leaf lifetime.
        both("a leaf lifetime passes", "hauberk_certificate_generation", renewed_by(2.0));
        rotation::sign_under_next_root(&dir, &lifetimes, SystemTime::now()).expect("it was published");
        both("all have leafs under it", "hauberk_certificate_generation", renewed_by(3.0));
        rotation::drop_other_roots(&dir).expect("the CA is there");
        both("all have dropped the old root", "hauberk_trust_generation", [3.0; 2]);
        both("a leaf lifetime passes", "hauberk_certificate_generation", renewed_by(2.0));
    });
    check("rotation", form, &load);
    let kinds = kinds(&client, load.0.served + form.streams);
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
