//! haproxy as a pair: Debian's package with its defaults, one thread like ours, TLS 1.3 with AES-128-GCM, both sides
//! verified.

use std::{fmt::Write, fs, net::SocketAddr, path::Path};

use anyhow::Result;
use hauberk_lab::{Pod, Process};
use hauberk_mesh::{MESH_PORT, OUTBOUND_PORT, PROXY_UID};

use super::{
    Scene,
    certificates::{OWN, ROOTS, identity},
};
use crate::app;

/// The client's side: what was redirected goes to one of `peers`; `full`: no TLS session is used again.
pub(super) fn outbound(scene: &Scene, pod: &Pod, peers: &[SocketAddr], full: bool) -> Result<Process> {
    let dir = scene.proxy_dir(pod, "client")?;
    start(pod, &dir, &outbound_config(&dir, peers, full), OUTBOUND_PORT)
}

/// The servers' side: from the mesh port to the application.
pub(super) fn inbound(scene: &Scene, pod: &Pod) -> Result<Process> {
    let dir = scene.proxy_dir(pod, "server")?;
    start(pod, &dir, &inbound_config(&dir, pod.at(MESH_PORT), pod.at(app::PORT)), MESH_PORT)
}

fn start(pod: &Pod, dir: &Path, config: &str, port: u16) -> Result<Process> {
    let path = dir.join("haproxy.cfg");
    fs::write(&path, config)?;
    let process = pod.spawn("haproxy", pod.command_as(PROXY_UID, "haproxy").arg("-db").arg("-f").arg(path))?;
    pod.wait_listening(port, &process)?;
    Ok(process)
}

const COMMON: &str = "global
    nbthread 1
    maxconn 9500
    ssl-default-bind-options ssl-min-ver TLSv1.3
    ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
    ssl-default-server-options ssl-min-ver TLSv1.3
    ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256
defaults
    mode tcp
    maxconn 9500
    timeout connect 5s
    timeout client 1h
    timeout server 1h
";

fn outbound_config(dir: &Path, peers: &[SocketAddr], full: bool) -> String {
    let (own, roots) = (dir.join(OWN), dir.join(ROOTS));
    let (own, roots, name) = (own.display(), roots.display(), identity("server"));
    let reuse = if full { " no-ssl-reuse" } else { "" };
    let mut text = format!(
        "{COMMON}frontend app\n    bind 127.0.0.1:{OUTBOUND_PORT}\n    default_backend peers\nbackend peers\n    balance roundrobin\n"
    );
    for (number, peer) in peers.iter().enumerate() {
        writeln!(
            text,
            "    server peer{number} {peer} ssl crt {own} ca-file {roots} verify required verifyhost {name} sni str({name}){reuse}"
        )
        .expect("writing to a String cannot fail");
    }
    text
}

fn inbound_config(dir: &Path, listen: SocketAddr, app: SocketAddr) -> String {
    let (own, roots) = (dir.join(OWN), dir.join(ROOTS));
    let (own, roots) = (own.display(), roots.display());
    format!(
        "{COMMON}frontend peers\n    bind {listen} ssl crt {own} ca-file {roots} verify required\n    default_backend app\nbackend app\n    server app {app}\n"
    )
}
