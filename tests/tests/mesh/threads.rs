//! Proxies of several threads, as they have with a CPU limit above one core: the same, to all that can be seen.

use std::{fs, thread};

use hauberk_lab::Pod;

use crate::{
    common::{Server, exchange},
    streams::{lab_of, meshed, metric, pattern},
};

const CLIENTS: usize = 16;
const EACH: usize = 20;
const LARGE: usize = 300_000;

fn threads_of(pod: &Pod) -> usize {
    let pid = pod.with_proxy(|proxy| Ok(proxy.pid())).expect("it runs");
    fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").count()
}

#[test]
fn many_clients_of_proxies_with_several_threads_get_their_own_answers() {
    let of = |name| meshed(name).proxy_args(["--threads", "3"]);
    let (_lab, [client, server]) = lab_of([of("client"), of("server")]);
    let _echo = Server::echo(&server, 7000);
    assert!(threads_of(&client) > 3 && threads_of(&server) > 3, "the workers, and the one that began");
    let sent = pattern(LARGE + CLIENTS * EACH);
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (sent, client, server) = (&sent, &client, &server);
            scope.spawn(move || {
                for round in 0..EACH {
                    // Short and long ones in turn, no two alike.
                    let from = number * EACH + round;
                    let length = if round % 4 == 0 { LARGE } else { 100 };
                    let message = &sent[from..from + length];
                    // Both sides send at once: the long ones fill every buffer on the way.
                    let got = exchange(client, server.at(7000), message).expect("the echo answers");
                    assert!(got == message, "client {number}, round {round}: {} of {length}", got.len());
                }
            });
        }
    });
    let clean = [("direction", "outbound"), ("cause", "clean"), ("state", "mtls")];
    let closed = || metric(&client, "hauberk_connections_closed_total", &clean);
    let all = (CLIENTS * EACH) as f64;
    hauberk_lab::wait_for("all are counted", crate::common::LIMIT, || {
        let closed = closed();
        Ok(if closed == all { Ok(()) } else { Err(format!("{closed} of {all}")) })
    })
    .expect("each once");
    assert_eq!(metric(&server, "hauberk_panics_total", &[]) + metric(&client, "hauberk_panics_total", &[]), 0.0);
}
