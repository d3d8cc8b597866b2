//! nginx as a pair, with its stream module: Debian's package, one worker like ours, TLS 1.3 with AES-128-GCM, both
//! sides verified.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::Result;
use hauberk_lab::{Pod, Process};
use hauberk_mesh::{MESH_PORT, OUTBOUND_PORT, PROXY_UID};

use super::{
    Scene,
    certificates::{OWN, ROOTS, identity},
};
use crate::app;

/// The client's side: what was redirected goes to one of `peers`.
pub(super) fn outbound(scene: &Scene, pod: &Pod, peers: &[SocketAddr]) -> Result<Process> {
    let dir = scene.proxy_dir(pod, "client")?;
    let name = identity("server");
    let upstream: String = peers.iter().map(|peer| format!("server {peer}; ")).collect();
    let stream = format!(
        "upstream peers {{ {upstream} }}
server {{
    listen 127.0.0.1:{OUTBOUND_PORT} backlog=4096;
    proxy_pass peers;
    proxy_ssl on;
    proxy_ssl_protocols TLSv1.3;
    proxy_ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
    proxy_ssl_certificate {OWN};
    proxy_ssl_certificate_key {OWN};
    proxy_ssl_trusted_certificate {ROOTS};
    proxy_ssl_verify on;
    proxy_ssl_verify_depth 2;
    proxy_ssl_name {name};
    proxy_ssl_server_name on;
    proxy_ssl_session_reuse on;
}}"
    );
    start(pod, &dir, &stream, OUTBOUND_PORT)
}

/// The servers' side: from the mesh port to the application.
pub(super) fn inbound(scene: &Scene, pod: &Pod) -> Result<Process> {
    let dir = scene.proxy_dir(pod, "server")?;
    let (listen, app): (SocketAddr, SocketAddr) = (pod.at(MESH_PORT), pod.at(app::PORT));
    let stream = format!(
        "server {{
    listen {listen} ssl backlog=4096;
    proxy_pass {app};
    ssl_protocols TLSv1.3;
    ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
    ssl_certificate {OWN};
    ssl_certificate_key {OWN};
    ssl_client_certificate {ROOTS};
    ssl_verify_client on;
    ssl_verify_depth 2;
    ssl_session_cache shared:sessions:10m;
}}"
    );
    start(pod, &dir, &stream, MESH_PORT)
}

fn start(pod: &Pod, dir: &Path, stream: &str, port: u16) -> Result<Process> {
    let path = dir.join("nginx.conf");
    fs::write(
        &path,
        format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr;
events {{ worker_connections 19000; }}
stream {{
proxy_timeout 1h;
{stream}
}}
"
        ),
    )?;
    let mut command = pod.command_as(PROXY_UID, "nginx");
    command.arg("-p").arg(dir).args(["-e", "stderr", "-c"]).arg(path);
    let process = pod.spawn("nginx", &mut command)?;
    pod.wait_listening(port, &process)?;
    Ok(process)
}
