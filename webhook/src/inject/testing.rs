//! Pods for tests: any bytes become one, so that proptest and a plain generator of numbers can both make them, and a byte
//! that is 0 or missing is the simplest choice. They cover the schema of a pod's spec; most are such as a real API server
//! takes.

mod containers;
mod volumes;

use serde_json::{Map, Value, json};

use super::{Namespace, Place, SETTINGS};

/// A pod, and what it is to be decided with.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The pod, as a person may write it: not defaulted.
    pub pod: Value,
    /// Its namespace.
    pub namespace: Namespace,
    /// What [`super::Cluster`] is to say.
    pub native_sidecars: bool,
}

/// Makes a sample of `bytes`; a few hundred are used.
pub fn sample(bytes: &[u8]) -> Sample {
    let mut choices = Choices(bytes);
    let namespace = namespace(&mut choices);
    let native_sidecars = !choices.chance(15);
    Sample { pod: pod(&mut choices), namespace, native_sidecars }
}

/// The sample of a number: for tests that want the same ones each time.
pub fn numbered(number: u64) -> Sample {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::new();
    for _ in 0..200 {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend((mixed ^ (mixed >> 31)).to_le_bytes());
    }
    sample(&bytes)
}

/// Puts fields that nobody knows, nulls, and empty arrays and objects into objects of `value`, also deep inside.
pub fn sprinkle(value: &mut Value, bytes: &[u8]) {
    fn walk(value: &mut Value, choices: &mut Choices<'_>) {
        match value {
            Value::Object(map) => {
                map.values_mut().for_each(|inner| walk(inner, choices));
                if choices.chance(25) {
                    let odd = [json!(null), json!([]), json!({}), json!({"deep": [null, {"er": []}]}), json!("é")];
                    let picked = choices.of(&odd);
                    map.insert(format!("x-unknown-{}", choices.pick(3)), picked);
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|inner| walk(inner, choices)),
            _ => {}
        }
    }
    walk(value, &mut Choices(bytes));
}

/// Takes one byte for each choice.
pub(super) struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// From 0 to below `many`.
    pub(super) fn pick(&mut self, many: usize) -> usize {
        usize::from(self.byte()) % many
    }

    /// In so many cases of a hundred.
    pub(super) fn chance(&mut self, percent: u32) -> bool {
        u32::from(self.byte()) * 100 >= (100 - percent) * 256
    }

    pub(super) fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.pick(all.len())].clone()
    }

    /// Sets one of `values` in so many cases of a hundred.
    pub(super) fn maybe(&mut self, map: &mut Map<String, Value>, percent: u32, key: &str, values: &[Value]) {
        if self.chance(percent) {
            map.insert(key.to_owned(), self.of(values));
        }
    }

    /// The same, but seldom one of `odd`.
    pub(super) fn maybe_odd(
        &mut self,
        map: &mut Map<String, Value>,
        percent: u32,
        key: &str,
        values: &[Value],
        odd: &[Value],
    ) {
        let seldom = self.chance(1);
        self.maybe(map, percent, key, if seldom { odd } else { values });
    }
}

fn namespace(choices: &mut Choices<'_>) -> Namespace {
    let mut namespace = Namespace { name: "shop".to_owned(), ..Namespace::default() };
    if !choices.chance(6) {
        namespace.labels.insert("hauberk.dev/inject".to_owned(), "enabled".to_owned());
    }
    if choices.chance(15) {
        let mode = choices.of(&["required", "optional", "disabled"]);
        namespace.labels.insert("hauberk.dev/tls".to_owned(), mode.to_owned());
    }
    if choices.chance(2) {
        namespace.labels.insert("hauberk.dev/inject".to_owned(), "disabled".to_owned());
    }
    if choices.chance(2) {
        let level = choices.of(&["baseline", "restricted", "privileged"]);
        namespace.labels.insert("pod-security.kubernetes.io/enforce".to_owned(), level.to_owned());
    }
    if choices.chance(2) {
        namespace.name = choices.of(&["kube-system", "hauberk"]).to_owned();
    }
    if choices.chance(15) {
        let setting = &SETTINGS[choices.pick(SETTINGS.len())];
        if setting.namespace == Place::Annotation {
            namespace.annotations.insert(setting.key(), setting.example.to_owned());
        }
    }
    namespace
}

fn pod(choices: &mut Choices<'_>) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata(choices), "spec": spec(choices)});
    if choices.chance(2) {
        pod["status"] = json!({});
    }
    pod
}

fn metadata(choices: &mut Choices<'_>) -> Value {
    let mut metadata = Map::from_iter([("generateName".to_owned(), json!("web-"))]);
    let mut labels = Map::from_iter([("app".to_owned(), json!("web"))]);
    let mut annotations = Map::new();
    choices.maybe(&mut labels, 6, "hauberk.dev/inject", &[json!("enabled"), json!("disabled"), json!("yes")]);
    choices.maybe(&mut labels, 1, "istio.io/dataplane-mode", &[json!("ambient"), json!("none")]);
    choices.maybe(&mut annotations, 1, "kubernetes.io/config.mirror", &[json!("0123456789abcdef")]);
    choices.maybe(&mut annotations, 10, "kubectl.kubernetes.io/default-container", &[json!("app-0")]);
    choices.maybe(&mut annotations, 20, "prometheus.io/scrape", &[json!("true")]);
    for _ in 0..choices.pick(3) {
        let setting = &SETTINGS[choices.pick(SETTINGS.len())];
        let value = if choices.chance(4) { setting.counterexample } else { setting.example };
        if choices.chance(2) {
            annotations.insert(format!("{}s", setting.key()), json!(value));
        } else if choices.chance(12) || [Place::Annotation, Place::LabelOrAnnotation].contains(&setting.pod) {
            annotations.insert(setting.key(), json!(value));
        }
    }
    if choices.chance(1) {
        annotations.insert("hauberk.dev/proxy-memory-request".to_owned(), json!("1Gi"));
        annotations.insert("hauberk.dev/proxy-memory-limit".to_owned(), json!("128Mi"));
    }
    match choices.pick(8) {
        0..=4 => drop(metadata.insert("labels".to_owned(), Value::Object(labels))),
        5 => drop(metadata.insert("labels".to_owned(), Value::Null)),
        _ => {}
    }
    if !annotations.is_empty() || choices.chance(20) {
        metadata.insert("annotations".to_owned(), Value::Object(annotations));
    }
    if choices.chance(20) {
        let owner = json!({
            "apiVersion": "batch/v1", "kind": choices.of(&["ReplicaSet", "Job", "DaemonSet", "StatefulSet"]), "name": "web",
            "uid": "5f1a2f8e-8c1e-4f7e-9d0e-1f2a3b4c5d6e", "controller": true, "blockOwnerDeletion": true,
        });
        metadata.insert("ownerReferences".to_owned(), json!([owner]));
    }
    choices.maybe(&mut metadata, 5, "finalizers", &[json!(["example.dev/keep"])]);
    Value::Object(metadata)
}

fn spec(choices: &mut Choices<'_>) -> Value {
    let mut spec = Map::new();
    let volumes = volumes::some(choices);
    let guaranteed = choices.chance(15);
    let (init, main) = containers::some(choices, &volumes, guaranteed);
    spec.insert("containers".to_owned(), Value::Array(main));
    match (init.is_empty(), choices.pick(3)) {
        (true, 0) => {}
        (true, 1) => drop(spec.insert("initContainers".to_owned(), Value::Null)),
        _ => drop(spec.insert("initContainers".to_owned(), Value::Array(init))),
    }
    match (volumes.is_empty(), choices.pick(3)) {
        (true, 0) => {}
        (true, 1) => drop(spec.insert("volumes".to_owned(), Value::Null)),
        _ => drop(spec.insert("volumes".to_owned(), Value::Array(volumes))),
    }
    pod_level(choices, &mut spec);
    placing(choices, &mut spec);
    Value::Object(spec)
}

fn pod_level(choices: &mut Choices<'_>, spec: &mut Map<String, Value>) {
    let security = [
        json!({}),
        json!(null),
        json!({"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000, "fsGroupChangePolicy": "OnRootMismatch"}),
        json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}}),
        json!({"runAsNonRoot": true, "runAsUser": 65534, "supplementalGroups": [1, 2], "supplementalGroupsPolicy": "Strict"}),
        json!({"seLinuxOptions": {"level": "s0:c1,c2"}, "appArmorProfile": {"type": "RuntimeDefault"}}),
        json!({"sysctls": [{"name": "net.ipv4.ip_local_port_range", "value": "1024 65000"}]}),
    ];
    choices.maybe_odd(spec, 40, "securityContext", &security, &[json!({"runAsUser": 2102})]);
    choices.maybe(spec, 4, "hostNetwork", &[json!(true), json!(false)]);
    choices.maybe(spec, 4, "hostPID", &[json!(true), json!(false)]);
    choices.maybe(spec, 4, "hostIPC", &[json!(true)]);
    choices.maybe(spec, 4, "hostUsers", &[json!(true), json!(false)]);
    choices.maybe(spec, 10, "shareProcessNamespace", &[json!(true), json!(false)]);
    choices.maybe(spec, 20, "restartPolicy", &[json!("Always"), json!("OnFailure"), json!("Never")]);
    choices.maybe(spec, 30, "terminationGracePeriodSeconds", &[json!(0), json!(30), json!(3600)]);
    choices.maybe(spec, 5, "activeDeadlineSeconds", &[json!(600)]);
    choices.maybe(
        spec,
        30,
        "serviceAccountName",
        &[json!("web"), json!("builder.v2"), json!("a".repeat(64)), json!("")],
    );
    choices.maybe(spec, 20, "automountServiceAccountToken", &[json!(false), json!(true)]);
    choices.maybe(spec, 15, "imagePullSecrets", &[json!([{"name": "registry"}]), json!([])]);
    choices.maybe(spec, 20, "enableServiceLinks", &[json!(false), json!(true)]);
    choices.maybe(spec, 3, "os", &[json!({"name": "windows"}), json!({"name": "linux"})]);
    let budget = json!({"limits": {"cpu": "8", "memory": "8Gi"}, "requests": {"cpu": "8", "memory": "8Gi"}});
    choices.maybe(spec, 4, "resources", &[budget, json!({"requests": {"cpu": "8"}})]);
    let debug = |name: &str| json!([{"name": name, "image": "debug:1"}]);
    choices.maybe(spec, 2, "ephemeralContainers", &[debug("debug"), json!([]), debug("hauberk-proxy")]);
}

fn placing(choices: &mut Choices<'_>, spec: &mut Map<String, Value>) {
    let dns = json!({"nameservers": ["192.0.2.1"], "searches": ["shop.example"], "options": [{"name": "ndots", "value": "2"}]});
    match choices.pick(8) {
        6 => drop(spec.insert("dnsPolicy".to_owned(), json!("Default"))),
        7 => {
            spec.insert("dnsPolicy".to_owned(), json!("None"));
            spec.insert("dnsConfig".to_owned(), dns);
        }
        _ => {}
    }
    choices.maybe(spec, 10, "nodeName", &[json!("node-1")]);
    let selectors = [json!({"kubernetes.io/os": "linux"}), json!({"kubernetes.io/os": "windows"}), json!({})];
    choices.maybe(spec, 6, "nodeSelector", &selectors);
    let term = json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}});
    let affinity = json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term}]}});
    choices.maybe(spec, 10, "affinity", &[affinity, json!({})]);
    let toleration = json!({"key": "spot", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5});
    choices.maybe(spec, 10, "tolerations", &[json!([toleration]), json!([])]);
    let spread = json!({
        "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app": "web"}},
    });
    choices.maybe(spec, 10, "topologySpreadConstraints", &[json!([spread])]);
    choices.maybe(spec, 5, "priorityClassName", &[json!("")]);
    choices.maybe(spec, 5, "preemptionPolicy", &[json!("PreemptLowerPriority")]);
    choices.maybe(spec, 5, "schedulerName", &[json!("other-scheduler")]);
    choices.maybe(spec, 5, "schedulingGates", &[json!([{"name": "example.dev/wait"}])]);
    choices.maybe(spec, 5, "readinessGates", &[json!([{"conditionType": "example.dev/ready"}])]);
    choices.maybe(spec, 10, "hostAliases", &[json!([{"ip": "192.0.2.7", "hostnames": ["db.example"]}])]);
    choices.maybe(spec, 5, "hostname", &[json!("web-0")]);
    choices.maybe(spec, 5, "subdomain", &[json!("web")]);
    choices.maybe(spec, 5, "setHostnameAsFQDN", &[json!(true)]);
    let claim = json!([{"name": "gpu", "resourceClaimTemplateName": "gpu"}]);
    choices.maybe(spec, 3, "resourceClaims", &[claim]);
}
