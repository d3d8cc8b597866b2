//! A pod whose clock is wrong. Its proxy runs with a library that shifts the time of day and leaves waits alone.

use hauberk_lab::{ControlOptions, Lab, Pod};

use super::row::{Row, try_echo};
use crate::{
    common::{LIMIT, Server},
    scene::PORT,
    streams::{last_outbound, meshed},
};

/// A client whose clock is off by so many seconds, before a server whose clock is right.
fn scene(seconds: i64, control: ControlOptions) -> (Lab, Pod, Pod, Server) {
    let lab = Lab::new().expect("root and iproute2");
    let client = lab.pod(meshed("client").clock(seconds)).expect("a pod");
    let server = lab.pod(meshed("server")).expect("a pod");
    lab.start_control_plane_with(control).expect("it starts");
    lab.start_proxy(&server).expect("it starts");
    lab.launch_proxy(&client).expect("it starts");
    client.with_proxy(|proxy| client.wait_listening(hauberk_mesh::OUTBOUND_PORT, proxy)).expect("it listens");
    let echo = Server::echo(&server, PORT);
    (lab, client, server, echo)
}

/// Whether its clock is really off: what its records say.
fn assert_off(client: &Pod, record: &hauberk_mesh::Connection, seconds: i64) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs() as i64;
    let off = (record.opened_at_ms / 1000) as i64 - now;
    assert!((off - seconds).abs() < LIMIT.as_secs() as i64, "the clock of {} is off by {off} s", client.name());
}

fn check_works(row: &Row, seconds: i64, control: ControlOptions) {
    let (_lab, client, server, _echo) = scene(seconds, control);
    client.wait_proxy_ready().expect("it gets its certificate");
    row.check(&try_echo(&client, server.at(PORT), b"what time is it?"));
    let record = last_outbound(&client, server.at(PORT));
    row.check_cause(&record);
    assert_off(&client, &record, seconds);
}

#[test]
fn the_pods_clock_is_ten_minutes_ahead() {
    check_works(&Row::of("the_pods_clock_is_ten_minutes_ahead"), 600, ControlOptions::default());
}

#[test]
fn the_pods_clock_is_ten_minutes_behind() {
    let row = Row::of("the_pods_clock_is_ten_minutes_behind");
    let (_lab, client, server, _echo) = scene(-600, ControlOptions::default());
    row.check(&try_echo(&client, server.at(PORT), b"what time is it?"));
    let record = last_outbound(&client, server.at(PORT));
    row.check_cause(&record);
    assert_off(&client, &record, -600);
}

#[test]
fn the_pods_clock_is_ten_minutes_behind_and_identity_allows_for_it() {
    let row = Row::of("the_pods_clock_is_ten_minutes_behind_and_identity_allows_for_it");
    let identity_args = ["--clock-skew", "15m"].map(str::to_owned).to_vec();
    check_works(&row, -600, ControlOptions { identity_args, ..ControlOptions::default() });
}
