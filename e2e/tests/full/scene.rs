//! The cluster that all share, a namespace for each test, and the applications in it.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use anyhow::Result;
use hauberk_e2e::{Images, Kind, Shape};
use hauberk_lab::wait_for;
use hauberk_mesh::{Connection, Direction, TransportState, TrustDomain};
use serde_json::{Value, json};

/// For what a cluster under load does in seconds.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

/// Made by the first test; deleted when the program ends.
static CLUSTER: LazyLock<Kind> = LazyLock::new(|| {
    let start = Instant::now();
    let images = Images::build().expect("the images");
    let kind = Kind::up(&format!("hauberk-e2e-{}", std::process::id()), Shape::Zones).expect("a cluster");
    kind.load(&images).expect("images on the nodes");
    kind.install(&[]).expect("Hauberk");
    println!("the cluster: {:?}", start.elapsed());
    kind
});

/// A namespace of the shared cluster. Dropped, it is deleted; in a panic, after what is in it was printed.
pub(crate) struct Scene {
    pub(crate) kind: &'static Kind,
    pub(crate) namespace: &'static str,
}

impl Scene {
    /// A new namespace whose pods are meshed, with more labels.
    pub(crate) fn meshed(namespace: &'static str, labels: &[(&str, &str)]) -> Self {
        let scene = Self { kind: &CLUSTER, namespace };
        let mut all = json!({ "hauberk.dev/inject": "enabled" });
        for (key, value) in labels {
            all[*key] = json!(value);
        }
        scene.apply(
            &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace, "labels": all } }),
        );
        scene
    }

    pub(crate) fn apply(&self, object: &Value) {
        self.try_apply(object).unwrap_or_else(|error| panic!("cannot apply {object}: {error:#}"));
    }

    pub(crate) fn try_apply(&self, object: &Value) -> Result<String> {
        self.kind.kubectl_with(&["apply", "-n", self.namespace, "--server-side", "-f", "-"], &object.to_string())
    }

    /// A ServiceAccount, and a pod of that name that runs as it, where `edit` may change the pod.
    pub(crate) fn pod(&self, name: &str, container: Value, edit: impl FnOnce(&mut Value)) {
        self.apply(&account(name));
        self.apply(&pod(name, container, edit));
    }

    /// An nginx that answers everything, behind a Service `web`; returns once it is ready.
    pub(crate) fn web(&self) {
        self.apply(&nginx_config());
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" },
            "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": 8080 }] },
        }));
        self.pod("web", nginx(), with_nginx_config);
        self.ready("web");
    }

    pub(crate) fn ready(&self, pod: &str) {
        self.kind.wait(self.namespace, &["pod", pod], "condition=Ready").expect("the pod gets ready");
    }

    /// The records of the pod's proxy that `wanted` takes, as soon as there are some.
    pub(crate) fn records(
        &self,
        pod: &str,
        what: &str,
        wanted: impl Fn(&Connection) -> bool,
    ) -> Result<Vec<Connection>> {
        wait_for(&format!("{pod}: {what}"), LIMIT, || {
            let all = self.kind.connections(self.namespace, pod, "app")?;
            let found: Vec<_> = all.closed.iter().chain(&all.live).filter(|record| wanted(record)).cloned().collect();
            Ok(if found.is_empty() { Err(format!("{all:?}")) } else { Ok(found) })
        })
    }

    /// Waits until the proxy of `server` says that `account` spoke with it by mTLS.
    pub(crate) fn spoke(&self, account: &str, server: &str) -> Result<()> {
        let client = TrustDomain::default().identity(account, self.namespace)?.to_string();
        self.records(server, &format!("{account} spoke with it by mTLS"), |record| {
            record.direction == Direction::Inbound
                && record.state == Some(TransportState::Mtls)
                && record.client_identity.as_ref() == Some(&client)
        })?;
        Ok(())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.kind.report(&[self.namespace, hauberk_mesh::CONTROL_NAMESPACE]));
        }
        let _ = self.kind.kubectl(&["delete", "namespace", self.namespace, "--wait=false"]);
    }
}

pub(crate) fn account(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name } })
}

/// A pod with the container `app` of the image of test applications.
pub(crate) fn pod(name: &str, mut container: Value, edit: impl FnOnce(&mut Value)) -> Value {
    container["name"] = json!("app");
    container["image"] = json!(Images::APPS);
    container["imagePullPolicy"] = json!("Never");
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": { "serviceAccountName": name, "terminationGracePeriodSeconds": 1, "containers": [container] },
    });
    edit(&mut pod);
    pod
}

/// nginx with the configuration of [`nginx_config`].
pub(crate) fn nginx() -> Value {
    json!({
        "command": ["nginx", "-c", "/etc/app/nginx.conf"],
        "ports": [{ "name": "http", "containerPort": 8080 }],
        "volumeMounts": [{ "name": "nginx", "mountPath": "/etc/app" }],
    })
}

pub(crate) fn with_nginx_config(pod: &mut Value) {
    pod["spec"]["volumes"] = json!([{ "name": "nginx", "configMap": { "name": "nginx" } }]);
}

/// Answers on 8080 in the clear; on 8443 by TLS where `/tls` is mounted, which the file `tls.conf` there makes it do.
pub(crate) fn nginx_config() -> Value {
    let config = r#"
        daemon off;
        worker_processes 1;
        pid /tmp/nginx.pid;
        error_log /dev/stderr;
        events {}
        http {
            access_log /dev/stdout;
            client_body_temp_path /tmp/body;
            proxy_temp_path /tmp/proxy;
            fastcgi_temp_path /tmp/fastcgi;
            uwsgi_temp_path /tmp/uwsgi;
            scgi_temp_path /tmp/scgi;
            include /tls/*.conf;
            server { listen 8080; listen [::]:8080; location / { return 200 "$request_uri\n"; } }
        }
    "#;
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "nginx" }, "data": { "nginx.conf": config } })
}
