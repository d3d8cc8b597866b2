//! Tokens that identity does not take: the pod's proxy gets no certificate, says so, and lets nothing pass unprotected.

use std::{fs, time::Duration};

use hauberk_identity::server::LocalTokens;
use hauberk_lab::{Lab, Pod, wait_for};
use hauberk_mesh::TOKEN_AUDIENCE;

use super::row::{Row, try_echo};
use crate::{
    common::{LIMIT, Server},
    scene::PORT,
    streams::{lab_with, last_outbound, meshed},
};

const LIFE: Duration = Duration::from_secs(3600);

/// Mints a token for the listed pod `name`.
fn mint(lab: &Lab, tokens: &LocalTokens, name: &str, audience: &str) -> String {
    let mesh = lab.mesh();
    tokens.mint(&mesh.pods[&format!("shop/{name}")], audience, LIFE)
}

fn own_tokens(lab: &Lab) -> LocalTokens {
    LocalTokens::open_or_create(&lab.identity_dir()).expect("the control plane made it")
}

/// A new client's proxy has the token that `wrong` makes; `says` is in what its readiness page says.
fn check(row: &Row, says: &str, wrong: impl FnOnce(&Lab) -> String) {
    let pods = [meshed("client"), meshed("server")];
    let (lab, [client, server]) = lab_with(pods, [], |pod| pod.name() == "server");
    let _echo = Server::echo(&server, PORT);
    lab.launch_proxy(&client).expect("it starts");
    client.kill_proxy().expect("it runs");
    let token = client.dir().join("token");
    fs::write(&token, wrong(&lab)).expect("writable");
    forget_certificate(&client);
    client.launch_proxy().expect("it starts");
    client.with_proxy(|proxy| client.wait_listening(hauberk_mesh::OUTBOUND_PORT, proxy)).expect("it listens");
    row.check(&try_echo(&client, server.at(PORT), b"anybody?"));
    row.check_cause(&last_outbound(&client, server.at(PORT)));
    wait_for("the log says why", LIMIT, || {
        let log = client.with_proxy(|proxy| Ok(proxy.log()))?;
        Ok(if log.contains(says) { Ok(()) } else { Err(log) })
    })
    .expect("it does");
    fs::write(&token, mint(&lab, &own_tokens(&lab), "client", TOKEN_AUDIENCE)).expect("writable");
    row.check_recovery(&client, server.at(PORT));
}

/// As in a pod that has just been made.
fn forget_certificate(pod: &Pod) {
    for file in fs::read_dir(pod.dir().join("identity")).expect("there") {
        fs::remove_file(file.expect("readable").path()).expect("a file");
    }
}

#[test]
fn a_proxys_token_is_for_another_audience() {
    let row = Row::of("a_proxys_token_is_for_another_audience");
    check(&row, "audience", |lab| mint(lab, &own_tokens(lab), "client", "another"));
}

#[test]
fn a_proxys_token_is_of_another_issuer() {
    let row = Row::of("a_proxys_token_is_of_another_issuer");
    let dir = tempfile::tempdir().expect("a directory");
    let others = LocalTokens::open_or_create(dir.path()).expect("a key can be made");
    check(&row, "issuer", |lab| mint(lab, &others, "client", TOKEN_AUDIENCE));
}

#[test]
fn a_proxys_token_is_of_another_identity() {
    let row = Row::of("a_proxys_token_is_of_another_identity");
    check(&row, "no certificate", |lab| mint(lab, &own_tokens(lab), "server", TOKEN_AUDIENCE));
}

#[test]
fn a_proxys_token_is_missing() {
    let row = Row::of("a_proxys_token_is_missing");
    check(&row, "token", |_| String::new());
}
