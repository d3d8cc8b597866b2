//! Writes `mesh.yaml`: the inverse of `MeshFile::parse`.

use std::fmt::Display;

use hauberk_mesh::{MeshFile, Pod, Service};

/// `mesh` as a file that `MeshFile::parse` reads back as the same.
pub(crate) fn to_yaml(mesh: &MeshFile) -> String {
    let pods: String = mesh.pods.values().map(pod).collect();
    let services: String = mesh.services.values().map(service).collect();
    let list = |name, items: String| if items.is_empty() { String::new() } else { format!("{name}:\n{items}") };
    format!("networks: {}\n{}{}", quote(&mesh.networks), list("pods", pods), list("services", services))
}

/// What is the default is left out: a parser takes only so much.
fn pod(pod: &Pod) -> String {
    let mut text = format!(
        "  - name: {}\n    namespace: {}\n    uid: {}\n    serviceAccount: {}\n    ips: {}\n",
        quote(&pod.name),
        quote(&pod.namespace),
        quote(&pod.uid),
        quote(&pod.service_account),
        list(&pod.ips)
    );
    if let Some(proxy) = &pod.proxy {
        let skipped = quote(&proxy.skip_inbound_ports);
        let skipped =
            if proxy.skip_inbound_ports.is_empty() { String::new() } else { format!(", skipInboundPorts: {skipped}") };
        text += &format!("    proxy: {{tls: {}{skipped}}}\n", proxy.tls);
    }
    for (name, value, default) in
        [("terminating", pod.terminating, false), ("ended", pod.ended, false), ("ready", pod.ready, true)]
    {
        if value != default {
            text += &format!("    {name}: {value}\n");
        }
    }
    if pod.weight != 1 {
        text += &format!("    weight: {}\n", pod.weight);
    }
    if !pod.labels.is_empty() {
        let labels: Vec<_> =
            pod.labels.iter().map(|(name, value)| format!("{}: {}", quote(name), quote(value))).collect();
        text += &format!("    labels: {{{}}}\n", labels.join(", "));
    }
    text
}

fn service(service: &Service) -> String {
    let ports = service.ports.iter().map(|port| match port.target {
        Some(target) => format!("{{port: {}, target: {target}}}", port.port),
        None => format!("{{port: {}}}", port.port),
    });
    let affinity = service.affinity_seconds.map(|seconds| format!("    affinitySeconds: {seconds}\n"));
    format!(
        "  - name: {}\n    namespace: {}\n    ips: {}\n    ports: [{}]\n    endpoints: {}\n{}",
        quote(&service.name),
        quote(&service.namespace),
        list(&service.ips),
        ports.collect::<Vec<_>>().join(", "),
        list(&service.endpoints),
        affinity.unwrap_or_default()
    )
}

fn list<T: Display>(items: &[T]) -> String {
    format!("[{}]", items.iter().map(quote).collect::<Vec<_>>().join(", "))
}

/// A JSON string is a double-quoted YAML scalar.
fn quote(text: impl Display) -> String {
    serde_json::Value::from(text.to_string()).to_string()
}

#[cfg(test)]
mod tests {
    use hauberk_mesh::{PodProxy, ServicePort, TlsMode};

    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut mesh = MeshFile { networks: "10.1.0.0/16,fd00::/64".parse().expect("valid"), ..MeshFile::default() };
        assert_eq!(MeshFile::parse(&to_yaml(&mesh)), Ok(mesh.clone()));
        let plain = Pod {
            name: "plain".to_owned(),
            namespace: "shop".to_owned(),
            uid: "17".to_owned(),
            service_account: "true".to_owned(),
            ips: vec!["10.1.0.2".parse().expect("an address"), "fd00::2".parse().expect("an address")],
            proxy: None,
            ready: true,
            terminating: false,
            ended: false,
            weight: 1,
            labels: [].into(),
        };
        let proxy = PodProxy { tls: TlsMode::Required, skip_inbound_ports: "22,80-90".parse().expect("valid") };
        let full = Pod {
            name: "full".to_owned(),
            uid: "\"u': {}\n".to_owned(),
            ips: vec![],
            proxy: Some(proxy),
            ready: false,
            terminating: true,
            ended: true,
            weight: 7,
            labels: [("zone: x".to_owned(), "#1".to_owned())].into(),
            ..plain.clone()
        };
        let service = Service {
            name: "web".to_owned(),
            namespace: "shop".to_owned(),
            ips: vec!["10.2.0.2".parse().expect("an address")],
            ports: vec![ServicePort { port: 80, target: Some(8080) }, ServicePort { port: 81, target: None }],
            endpoints: vec!["plain".to_owned(), "shop/full".to_owned()],
            affinity_seconds: Some(9),
        };
        mesh.pods = [("shop/plain".to_owned(), plain), ("shop/full".to_owned(), full)].into();
        mesh.services = [("shop/web".to_owned(), service)].into();
        assert_eq!(MeshFile::parse(&to_yaml(&mesh)), Ok(mesh));
    }
}
