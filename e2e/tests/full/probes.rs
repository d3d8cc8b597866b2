//! Probes go on meaning what they meant: asked by a real kubelet, answered for by the proxy.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use hauberk_lab::wait_for;
use serde_json::{Value, json};

use crate::scene::{LIMIT, Scene, nginx_config};

/// Seconds from one probe to the next.
const PERIOD: u64 = 2;
/// What a probe may take, and what kubelet and API server need to say so on a machine that has other things to do.
const SLACK: Duration = Duration::from_secs(10);

/// A server, what is asked of it, and what kills it without its container.
struct Server {
    name: &'static str,
    command: &'static str,
    probe: Value,
    process: &'static str,
    port: u16,
}

fn servers() -> [Server; 4] {
    [
        Server {
            name: "http",
            command: "nginx -c /etc/app/nginx.conf",
            probe: json!({ "httpGet": { "path": "/ready", "port": "app", "httpHeaders": [{ "name": "X-Asked", "value": "yes" }] } }),
            process: "nginx",
            port: 8080,
        },
        Server {
            name: "https",
            command: "nginx -c /etc/app/nginx.conf",
            probe: json!({ "httpGet": { "path": "/ready", "port": "app", "scheme": "HTTPS" } }),
            process: "nginx",
            port: 8443,
        },
        Server {
            name: "tcp",
            command: "redis-server --protected-mode no --save '' --dir /tmp",
            probe: json!({ "tcpSocket": { "port": "app" } }),
            process: "redis-server",
            port: 6379,
        },
        Server {
            name: "grpc",
            command: "etcd --data-dir /tmp/etcd --log-level error --listen-client-urls http://0.0.0.0:2379 --advertise-client-urls http://0.0.0.0:2379",
            probe: json!({ "grpc": { "port": 2379 } }),
            process: "etcd",
            port: 2379,
        },
    ]
}

impl Server {
    /// The server is a child of the container's shell, which outlives it: kubelet sees no container end.
    fn container(&self) -> Value {
        let mut probe = self.probe.clone();
        probe["periodSeconds"] = json!(PERIOD);
        probe["failureThreshold"] = json!(1);
        json!({
            "command": ["sh", "-c", format!("{} & wait; exec sleep 1000000", self.command)],
            "ports": [{ "name": "app", "containerPort": self.port }],
            "readinessProbe": probe,
            "volumeMounts": [{ "name": "nginx", "mountPath": "/etc/app" }, { "name": "tls", "mountPath": "/tls" }],
        })
    }
}

fn volumes(pod: &mut Value) {
    pod["spec"]["volumes"] = json!([
        { "name": "nginx", "configMap": { "name": "nginx" } },
        { "name": "tls", "secret": { "secretName": "tls" } },
    ]);
}

/// A certificate that nobody has reason to trust: kubelet does not ask, and neither may the proxy.
fn tls() -> Value {
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(["app".to_owned()]).and_then(|params| params.self_signed(&key));
    let server = "server { listen 8443 ssl; listen [::]:8443 ssl; ssl_certificate /tls/app.crt; \
                  ssl_certificate_key /tls/app.key; location / { return 200 \"$request_uri\\n\"; } }";
    let data = json!({
        "app.crt": certificate.expect("a certificate").pem(), "app.key": key.serialize_pem(), "server.conf": server,
    });
    json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "tls" }, "stringData": data })
}

/// Whether the container `app` is ready, as kubelet says.
fn is_ready(pod: &Value) -> bool {
    let all = pod["status"]["containerStatuses"].as_array();
    all.into_iter().flatten().any(|status| status["name"] == "app" && status["ready"] == true)
}

#[test]
fn each_kind_of_probe_fails_within_its_period_once_only_the_application_is_dead() {
    let scene = Scene::meshed("probes", &[]);
    scene.apply(&nginx_config());
    scene.apply(&tls());
    for server in servers() {
        scene.pod(server.name, server.container(), volumes);
    }
    for server in servers() {
        scene.ready(server.name);
    }
    for server in servers() {
        let pod = || scene.kind.get(&["pod", "-n", scene.namespace, server.name]).expect("the pod");
        assert!(is_ready(&pod()), "{}: {}", server.name, pod());
        let killed = Instant::now();
        let kill = format!("kill -9 $(pidof {})", server.process);
        scene.kind.exec(scene.namespace, server.name, "app", &["sh", "-c", &kill]).expect("it is killed");
        let what = format!("{} is found dead", server.name);
        wait_for(&what, Duration::from_secs(PERIOD) + SLACK, || {
            let pod = pod();
            Ok(if is_ready(&pod) { Err(pod["status"].to_string()) } else { Ok(()) })
        })
        .expect("kubelet learns it through the proxy");
        println!("{}: unready {:?} after its end, asked every {PERIOD} s", server.name, killed.elapsed());
        let restarts = pod()["status"]["containerStatuses"][0]["restartCount"].clone();
        assert_eq!(restarts, 0, "only the application was dead");
    }
}

#[test]
fn where_mtls_is_required_a_probed_port_answers_kubelet_through_the_proxy_and_nobody_else_on_the_node() {
    let scene = Scene::meshed("strict", &[("hauberk.dev/tls", "required")]);
    scene.apply(&nginx_config());
    scene.apply(&tls());
    let servers = servers();
    let http = &servers[0];
    scene.pod(http.name, http.container(), volumes);
    scene.ready(http.name);
    let ip = scene.kind.ip(scene.namespace, http.name).expect("an address");
    let pod = scene.kind.get(&["pod", "-n", scene.namespace, http.name]).expect("the pod");
    let node = scene.kind.node(pod["spec"]["nodeName"].as_str().expect("a node")).expect("its network");
    let curl = |port: u16| {
        let mut curl: Command = node.command("curl", None);
        // It says how a connect has failed only when it says everything.
        curl.args(["-sSv", "--max-time", "20", &format!("http://{ip}:{port}/ready")]).output().expect("curl runs")
    };
    let refused = curl(8080);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    // Before or after it knows that it is connected, or has sent its request.
    assert!(!refused.status.success() && said.contains("Connection reset by peer"), "{refused:?}");

    // And the pod is still ready: kubelet asks the proxy.
    wait_for("it has been asked again", LIMIT, || {
        let log = scene.kind.kubectl(&["logs", "-n", scene.namespace, http.name, "-c", "app"])?;
        let asked = log.lines().filter(|line| line.contains("GET /ready")).count();
        Ok(if asked >= 3 { Ok(()) } else { Err(log) })
    })
    .expect("kubelet goes on asking");
    let pod = scene.kind.get(&["pod", "-n", scene.namespace, http.name]).expect("the pod");
    assert!(is_ready(&pod), "{pod}");
}
