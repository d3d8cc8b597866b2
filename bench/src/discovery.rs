//! What it costs to know many endpoints: one service with so many, all of them one pod that answers on every address.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use anyhow::{Context, Result};
use hauberk_lab::{Lab, Pod, PodOptions};
use hauberk_mesh::{Service, ServicePort};

use crate::{
    app::{self, App, Mode},
    congestion, load, process,
    rows::Metric,
};

/// Addresses that the server's pod takes besides its own: the upper half of the pods' network.
const ADDRESSES: &str = "10.1.128.0/17";
const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 2, 0, 10)), 80);
const MIB: f64 = 1024.0 * 1024.0;

/// A proxy that has just become ready, and its first connection to a service of `endpoints` endpoints.
pub(crate) fn turn(congestion: &str, endpoints: usize) -> Result<Vec<(Metric, f64)>> {
    let (lab, app) = (Lab::new()?, App::new()?);
    let pod = |name: &str| {
        congestion::allow(congestion)?;
        let options = PodOptions::new(name).account(name).sysctl(congestion::SYSCTL, congestion);
        lab.pod(options.meshed().proxy_env("RUST_LOG", "warn"))
    };
    let (client, server) = (pod("client")?, pod("server")?);
    server.run("ip", ["route", "add", "local", ADDRESSES, "dev", "lo"])?;
    list(&lab, &server, endpoints)?;
    lab.start_control_plane()?;
    lab.start_proxy(&client)?;
    lab.start_proxy(&server)?;
    app.behave(Mode::EchoOnce);
    app.serve(&server)?;
    let begin = Instant::now();
    client.enter(|| load::exchange_once(SERVICE))?;
    let first = begin.elapsed();
    Ok(vec![
        (Metric::FirstAnswer, first.as_secs_f64() * 1e3),
        (Metric::ProxyMemory, client.with_proxy(|proxy| anonymous(proxy.pid()))?),
        (Metric::DestinationMemory, anonymous(lab.destination_pid()?)?),
    ])
}

/// In MiB.
fn anonymous(pid: u32) -> Result<f64> {
    Ok(process::anonymous(pid)? as f64 / MIB)
}

/// A service whose endpoints are `server` and pods beside it that are `server` too, under another address each.
fn list(lab: &Lab, server: &Pod, endpoints: usize) -> Result<()> {
    lab.edit(|mesh| {
        let original = mesh.pods[&server.key()].clone();
        let mut names = vec![server.name().to_owned()];
        for number in 1..endpoints {
            let name = format!("endpoint-{number}");
            let [high, low] = u16::try_from(number).expect("the addresses are fewer").to_be_bytes();
            let ips = vec![IpAddr::from([10, 1, 128 + high, low])];
            let pod = hauberk_mesh::Pod { uid: name.clone(), name: name.clone(), ips, ..original.clone() };
            mesh.pods.insert(format!("{}/{name}", server.namespace()), pod);
            names.push(name);
        }
        let service = Service {
            name: "many".to_owned(),
            namespace: server.namespace().to_owned(),
            ips: vec![SERVICE.ip()],
            ports: vec![ServicePort { port: SERVICE.port(), target: Some(app::PORT) }],
            endpoints: names,
            affinity_seconds: None,
        };
        mesh.services.insert(format!("{}/many", server.namespace()), service);
    })
    .with_context(|| format!("a mesh of {endpoints} endpoints"))
}
