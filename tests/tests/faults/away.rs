//! The control plane is away for long, while traffic goes on.

use std::time::{Duration, Instant};

use hauberk_mesh::{CloseCause, Direction};

use super::{
    form::{Form, report},
    row::{NOTHING, Row, try_echo},
};
use crate::{
    common::{Server, pair},
    scene::PORT,
    streams::{Port, last_outbound, pass},
};

/// Between two new connections.
const PACE: Duration = Duration::from_millis(100);

#[test]
fn the_control_plane_is_gone_for_ten_minutes() {
    let row = Row::of("the_control_plane_is_gone_for_ten_minutes");
    let form = Form::now();
    let (lab, client, server) = pair();
    let _echo = Server::echo(&server, PORT);
    let port = Port::listen(&server, PORT + 1);
    let to = server.at(PORT);
    row.check_recovery(&client, to);
    let (at_client, at_server) = port.connection(&client);
    lab.stop_destination().expect("it ran");
    lab.stop_identity().expect("it ran");
    let (begin, mut served, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    while begin.elapsed() < form.away {
        let seen = try_echo(&client, to, b"still here?");
        row.check(&seen);
        (served, slowest) = (served + 1, slowest.max(seen.after));
        pass(&at_client, &at_server, b"and here?");
        std::thread::sleep(PACE);
    }
    row.check_cause(&last_outbound(&client, to));
    // What nobody has asked for before is not known, and fails with the cause.
    let new = server.at(PORT + 2);
    assert_ne!(try_echo(&client, new, b"new").what, NOTHING);
    let record = crate::streams::only(&client, Direction::Outbound, new);
    assert_eq!(record.close.map(|close| close.cause), Some(CloseCause::DiscoveryUnavailable));
    lab.start_identity().expect("it starts");
    lab.start_destination().expect("it starts");
    let _late = Server::echo(&server, PORT + 2);
    row.check_recovery(&client, new);
    let (away, slowest) = (form.away.as_secs(), slowest.as_millis());
    report(
        "F02",
        &format!(
            "the control plane was away for {away} s: {served} new connections, none failed, the slowest took {slowest} ms; one long connection went on"
        ),
    );
}
