//! Discovery from `mesh.yaml`, as the traffic of real proxies shows it.

use std::fs;

use hauberk_lab::{Lab, wait_for};
use hauberk_mesh::{CloseCause, Direction, Reason};

use crate::{
    common::{LIMIT, identity},
    scene::{PORT, at, meshed, outbound, scene, service, set_endpoints},
    talk::{assert_refused, host, visit},
};

const WEB: &str = "10.2.0.10";
const ALSO_WEB: &str = "10.2.0.11";
const EMPTY: &str = "10.2.0.12";
const NOBODYS: &str = "10.2.0.99";

/// What the destination service has logged.
fn log(lab: &Lab) -> String {
    fs::read_to_string(lab.dir().join("hauberk-destination-run.log")).expect("it runs")
}

#[test]
fn after_a_bad_edit_the_last_state_serves_also_what_is_new_and_the_log_names_the_line() {
    let services = [service(WEB, ["one"]), service(ALSO_WEB, ["one"])];
    let (lab, [client, one, two]) = scene([meshed("client"), meshed("one"), meshed("two")], services);
    let _hosts = [&one, &two].map(|pod| host(pod, PORT));
    assert_eq!(visit(&client, at(WEB)).host(), "one");

    let good = fs::read_to_string(lab.mesh_path()).expect("it is there");
    let bad = good.replace("uid: \"two-2\"", "uid: \"one-1\"");
    assert_ne!(good, bad);
    let entry = good.lines().position(|line| line.contains("name: \"two\"")).expect("it is there");
    lab.write_mesh_yaml(&bad).expect("written");
    let said = format!("line {}, column", entry + 1);
    let names_it = |line: &str| line.contains(&said) && line.contains("the last good state stays in force");
    wait_for("the line", LIMIT, || Ok(log(&lab).lines().any(names_it).then_some(()).ok_or_else(|| log(&lab))))
        .expect("it is named");
    for known_or_new in [at(WEB), at(ALSO_WEB), one.at(PORT)] {
        let visit = visit(&client, known_or_new);
        assert_eq!(visit.host(), "one", "{known_or_new}");
        assert_eq!(outbound(&client, &visit).server_identity, Some(identity("one")), "{known_or_new}");
    }

    set_endpoints(&lab, WEB, &["two"]);
    wait_for("the good edit is seen", LIMIT, || {
        let host = visit(&client, at(WEB)).host();
        Ok(if host == "two" { Ok(()) } else { Err(host) })
    })
    .expect("it counts");
}

#[test]
fn an_empty_service_and_an_address_that_nobody_has_are_told_apart() {
    let services = [service(EMPTY, [])];
    let (lab, [client, web]) = scene([meshed("client"), meshed("web")], services);
    let _host = host(&web, PORT);
    let empty = visit(&client, at(EMPTY));
    assert_refused(&client, Direction::Outbound, &empty, (CloseCause::NoEndpoints, None), "empty");
    assert!(outbound(&client, &empty).service.is_some(), "it is known");
    let nobody = visit(&client, at(NOBODYS));
    let expected = (CloseCause::ConnectUnreachable, Some(Reason::UnknownInCluster));
    assert_refused(&client, Direction::Outbound, &nobody, expected, "nobody's: it was tried as it came");
    assert_eq!(outbound(&client, &nobody).service, None);

    set_endpoints(&lab, EMPTY, &["web"]);
    wait_for("its first endpoint", LIMIT, || {
        let visit = visit(&client, at(EMPTY));
        Ok(visit.broken.map_or(Ok(()), |error| Err(error.to_string())))
    })
    .expect("it is served");
}
