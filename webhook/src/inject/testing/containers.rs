//! Containers with every kind of probe, hook, variable and security context.

use serde_json::{Map, Value, json};

use super::Choices;

/// Init containers, and the others.
pub(super) fn some(choices: &mut Choices<'_>, volumes: &[Value], guaranteed: bool) -> (Vec<Value>, Vec<Value>) {
    let many = if choices.chance(2) { 0 } else { 1 + choices.pick(3) };
    let main = (0..many).map(|i| container(choices, &format!("app-{i}"), volumes, guaranteed, true));
    let main: Vec<_> = main.collect();
    let init = (0..choices.pick(3)).map(|i| {
        let sidecar = choices.chance(50);
        let mut container = container(choices, &format!("init-{i}"), volumes, guaranteed, sidecar);
        if sidecar {
            container["restartPolicy"] = json!("Always");
        }
        container
    });
    let mut init: Vec<_> = init.collect();
    if choices.chance(3) {
        // Somebody's own under our name.
        let name = choices.of(&["hauberk-proxy", "hauberk-init"]);
        init.push(container(choices, name, &[], guaranteed, false));
    }
    if choices.chance(2) {
        let name = choices.of(&["istio-proxy", "linkerd-init"]);
        init.push(container(choices, name, volumes, guaranteed, false));
    }
    (init, main)
}

fn container(choices: &mut Choices<'_>, name: &str, volumes: &[Value], guaranteed: bool, serves: bool) -> Value {
    let mut it = Map::from_iter([("name".to_owned(), json!(name)), ("image".to_owned(), json!("app:1"))]);
    choices.maybe(&mut it, 20, "imagePullPolicy", &[json!("Always"), json!("Never")]);
    choices.maybe(&mut it, 30, "command", &[json!(["sh", "-c", "exec app"]), json!([])]);
    choices.maybe(&mut it, 30, "args", &[json!(["--port=8080", "$(HOME)"]), json!(null)]);
    choices.maybe(&mut it, 10, "workingDir", &[json!("/srv")]);
    let odd = [json!([{"containerPort": 4191}]), json!([{"containerPort": 9999, "name": "hauberk-mesh"}])];
    choices.maybe_odd(&mut it, 60, "ports", &ports(name), &odd);
    choices.maybe(&mut it, 40, "env", &env());
    let from = json!([{"configMapRef": {"name": "a"}, "prefix": "A_"}, {"secretRef": {"name": "b", "optional": true}}]);
    choices.maybe(&mut it, 10, "envFrom", &[from, json!([])]);
    if guaranteed {
        let same = json!({"cpu": "0.5", "memory": "64Mi"});
        let both = [json!({"limits": same}), json!({"limits": same, "requests": {"cpu": "500m", "memory": "65536Ki"}})];
        it.insert("resources".to_owned(), choices.of(&both));
    } else {
        let some = [
            json!({}),
            json!({"requests": {"cpu": "100m"}}),
            json!({"limits": {"memory": "1Gi", "cpu": "1"}}),
            json!(null),
        ];
        choices.maybe(&mut it, 50, "resources", &some);
    }
    choices.maybe(&mut it, 10, "resizePolicy", &[json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"}])]);
    mounts(choices, &mut it, volumes);
    choices.maybe_odd(&mut it, 35, "securityContext", &security(), &[json!({"runAsUser": 2102})]);
    if serves {
        let ports = it.get("ports").and_then(Value::as_array);
        let named = ports.into_iter().flatten().any(|port| port["name"] == "http");
        let probes = probes(if named { json!("http") } else { json!(443) });
        for (percent, key) in [(60, "readinessProbe"), (50, "livenessProbe"), (30, "startupProbe")] {
            let odd = [
                json!({"httpGet": {"path": "/probe/app-0/liveness", "port": 4190}}),
                json!({"httpGet": {"port": "nobody"}}),
            ];
            choices.maybe_odd(&mut it, percent, key, &probes, &odd);
        }
        if choices.chance(30) {
            let mut lifecycle = Map::new();
            choices.maybe(&mut lifecycle, 70, "postStart", &hooks());
            choices.maybe(&mut lifecycle, 70, "preStop", &hooks());
            it.insert("lifecycle".to_owned(), Value::Object(lifecycle));
        }
    }
    choices.maybe(&mut it, 5, "stdin", &[json!(true)]);
    choices.maybe(&mut it, 5, "tty", &[json!(true)]);
    choices.maybe(&mut it, 10, "terminationMessagePath", &[json!("/tmp/last-words")]);
    choices.maybe(&mut it, 10, "terminationMessagePolicy", &[json!("FallbackToLogsOnError"), json!("File")]);
    Value::Object(it)
}

fn ports(name: &str) -> Vec<Value> {
    // hostPorts of one pod must differ.
    let host = 30000 + name.bytes().map(u32::from).sum::<u32>();
    vec![
        json!([{"containerPort": 8080, "name": "http"}, {"containerPort": 9000, "name": "grpc", "protocol": "TCP"}]),
        json!([{"containerPort": 8080, "name": "http"}]),
        json!([{"containerPort": 8080, "name": "http", "hostPort": host}]),
        json!([{"containerPort": 53, "name": "dns", "protocol": "UDP"}, {"containerPort": 8080, "name": "http"}]),
        json!([{"containerPort": 4190, "protocol": "UDP"}]),
        json!([{"containerPort": 8080, "name": "http"}, {"containerPort": 9000, "name": "grpc"}]),
        json!([{"containerPort": 8080, "name": "http"}]),
        json!([{"containerPort": 132, "protocol": "SCTP"}]),
        json!([]),
        json!(null),
    ]
}

fn env() -> Vec<Value> {
    let key = |kind: &str| json!({"name": "A", "valueFrom": {kind: {"name": "a", "key": "b"}}});
    vec![
        json!([{"name": "A", "value": "b"}, {"name": "B", "value": "$(A)-$$c"}]),
        json!([{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]),
        json!([{"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}]),
        json!([key("configMapKeyRef"), {"name": "E"}]),
        json!([key("secretKeyRef")]),
        json!([]),
    ]
}

fn mounts(choices: &mut Choices<'_>, it: &mut Map<String, Value>, volumes: &[Value]) {
    let mut mounts = Vec::new();
    for (i, volume) in volumes.iter().enumerate() {
        if choices.chance(60) {
            let mut mount = json!({"name": volume["name"], "mountPath": format!("/data/{i}")});
            let extra = [
                json!({"readOnly": true}),
                json!({"subPath": "a"}),
                json!({"mountPropagation": "HostToContainer"}),
                json!({}),
            ];
            for (key, value) in choices.of(&extra).as_object().into_iter().flatten() {
                mount[key] = value.clone();
            }
            mounts.push(mount);
        }
    }
    if !mounts.is_empty() || choices.chance(10) {
        it.insert("volumeMounts".to_owned(), Value::Array(mounts));
    }
}

fn security() -> Vec<Value> {
    vec![
        json!({"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": true}),
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}),
        json!({"privileged": true}),
        json!({"readOnlyRootFilesystem": true, "procMount": "Default"}),
        json!({"seccompProfile": {"type": "Unconfined"}, "seLinuxOptions": {"level": "s0"}}),
        json!({"appArmorProfile": {"type": "RuntimeDefault"}}),
        json!({}),
        json!(null),
    ]
}

fn probes(port: Value) -> Vec<Value> {
    let headers =
        json!([{"name": "X-A", "value": "$(1)"}, {"name": "Host", "value": "health"}, {"name": "X-A", "value": "2"}]);
    vec![
        json!({"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 2}),
        json!({"httpGet": {"port": port, "scheme": "HTTPS", "httpHeaders": headers}, "timeoutSeconds": 3}),
        json!({"httpGet": {"path": "live?deep=1#top", "port": 8080, "host": "health.example", "scheme": "HTTP"}}),
        json!({"tcpSocket": {"port": 5432}, "timeoutSeconds": 2147483647, "initialDelaySeconds": 5}),
        json!({"tcpSocket": {"port": 8080, "host": "192.0.2.9"}, "httpGet": null}),
        json!({"grpc": {"port": 9000, "service": "shop.Cart"}, "failureThreshold": 9}),
        json!({"grpc": {"port": 9000}}),
        json!({"exec": {"command": ["true"]}, "timeoutSeconds": 1}),
        json!({"httpGet": {"port": 80}, "timeoutSeconds": 10, "periodSeconds": 10, "failureThreshold": 1, "successThreshold": 1}),
        json!({"tcpSocket": {"port": 1}, "exec": null}),
    ]
}

fn hooks() -> Vec<Value> {
    vec![
        json!({"httpGet": {"path": "/hook", "port": 8080}}),
        json!({"httpGet": {"path": "/hook", "port": 8443, "scheme": "HTTPS", "host": "192.0.2.9"}}),
        json!({"exec": {"command": ["true"]}}),
        json!({"sleep": {"seconds": 3}}),
    ]
}
