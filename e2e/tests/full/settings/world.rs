//! The pods that the settings are seen in, and what is seen of them.

use std::{ffi::OsStr, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use hauberk_e2e::Kind;
use hauberk_mesh::{CloseCause, Connection, Direction, KEY_PREFIX, PROXY_CONTAINER, Reason, TransportState};
use hauberk_webhook::inject::SETTINGS;
use serde_json::{Value, json};

use super::{Area, NAMESPACE_UID, SECOND_IMAGE, UNMESHED, case};
use crate::scene::{Scene, account, nginx, nginx_config, pod, with_nginx_config};

/// curl's exit code where nobody said anything.
const CURL_TIMEOUT: u8 = 28;

/// All pods of all cases.
pub(super) struct World {
    pub(super) meshed: Scene,
    required: Scene,
    silent: Scene,
}

impl World {
    pub(super) fn new() -> Self {
        let meshed = Scene::meshed("settings", &[]);
        let other = |namespace| Scene { kind: meshed.kind, namespace };
        let (required, silent) = (other("settings-required"), other("settings-silent"));
        let metadata = json!({
            "name": required.namespace,
            "labels": { "hauberk.dev/inject": "enabled", "hauberk.dev/tls": "required" },
            "annotations": {
                "hauberk.dev/proxy-uid": NAMESPACE_UID.to_string(),
                "hauberk.dev/allow-uninjected": "legacy",
            },
        });
        required.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata }));
        let metadata = json!({ "name": silent.namespace });
        silent.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata }));
        Self { meshed, required, silent }
    }

    /// Makes all pods, then waits for all that are to get ready.
    pub(super) fn fill(&self) {
        second_image(self.meshed.kind).expect("an image");
        let mut objects = Vec::new();
        let all = [&self.meshed, &self.required, &self.silent];
        for scene in all {
            objects.push((scene, nginx_config()));
        }
        let mut add = |area: Area, name: &str, settings: &[(&str, &str)]| {
            let scene = self.of(area);
            objects.push((scene, account(name)));
            objects.push((
                scene,
                pod(name, nginx(), |pod| {
                    with_nginx_config(pod);
                    annotate(pod, settings);
                    pod["metadata"]["labels"]["starts"] = json!((area != Area::Doomed).to_string());
                }),
            ));
        };
        add(Area::Meshed, UNMESHED, &[("inject", "disabled")]);
        add(Area::Meshed, "web", &[]);
        for case in SETTINGS.iter().filter_map(|setting| case(setting.name)) {
            for (name, settings) in case.pods {
                add(case.area, name, settings);
            }
        }
        for scene in all {
            let items: Vec<_> = objects.iter().filter(|(of, _)| std::ptr::eq(*of, scene)).map(|(_, it)| it).collect();
            scene.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }));
        }
        for scene in all {
            let selected = ["pod", "--selector", "starts=true"];
            scene.kind.wait(scene.namespace, &selected, "condition=Ready").expect("they get ready");
        }
    }

    pub(super) fn of(&self, area: Area) -> &Scene {
        match area {
            Area::Meshed | Area::Doomed => &self.meshed,
            Area::Required => &self.required,
            Area::Silent => &self.silent,
        }
    }

    /// The scene where the pod of that name is.
    pub(super) fn scene(&self, pod: &str) -> &Scene {
        let mut cases = SETTINGS.iter().filter_map(|setting| case(setting.name));
        let found = cases.find(|case| case.pods.iter().any(|(name, _)| *name == pod));
        found.map_or(&self.meshed, |case| self.of(case.area))
    }

    pub(super) fn get(&self, pod: &str) -> Result<Value> {
        let scene = self.scene(pod);
        scene.kind.get(&["pod", "-n", scene.namespace, pod])
    }

    pub(super) fn proxy_status(&self, pod: &str) -> Result<Value> {
        status(&self.get(pod)?, PROXY_CONTAINER).cloned().with_context(|| format!("{pod} has no proxy"))
    }

    /// Whether a proxy runs in the pod.
    pub(super) fn has_proxy(&self, pod: &str) -> Result<bool> {
        Ok(status(&self.get(pod)?, PROXY_CONTAINER).is_some_and(|status| status["state"]["running"].is_object()))
    }

    /// curl's exit code, and what it said.
    pub(super) fn curl(&self, from: &str, address: &str) -> Result<(u8, String)> {
        let scene = self.scene(from);
        let script = format!("curl -sS --fail --max-time 5 http://{address}:8080/ 2>&1; echo \"exit=$?\"");
        let said = scene.kind.exec(scene.namespace, from, "app", &["sh", "-c", &script])?;
        let code = said.rsplit_once("exit=").context("it ends with that")?.1.trim().parse()?;
        Ok((code, said))
    }

    pub(super) fn ip(&self, pod: &str) -> Result<String> {
        Ok(self.scene(pod).kind.ip(self.scene(pod).namespace, pod)?.to_string())
    }

    pub(super) fn answers(&self, from: &str, to: &str) -> Result<()> {
        let (code, said) = self.curl(from, &self.ip(to)?)?;
        ensure!(code == 0, "{from} to {to}: {said}");
        Ok(())
    }

    /// The proxy, which one of the two has, ends the connection because it is not mTLS.
    pub(super) fn refuses(&self, from: &str, to: &str) -> Result<()> {
        let (code, said) = self.curl(from, &self.ip(to)?)?;
        // How curl says it depends on where the reset finds it (7, 52, 55, 56); that the proxy sent it, the record says.
        ensure!(![0, CURL_TIMEOUT].contains(&code), "{from} to {to}: {said}");
        let inbound = self.has_proxy(to)?;
        let (by, peer) = if inbound { (to, from) } else { (from, to) };
        let theirs = self.between(peer)?;
        self.scene(by).records(by, &format!("{from} to {to} is refused"), |record| {
            (record.direction == Direction::Inbound) == inbound
                && theirs(record)
                && record.close.as_ref().is_some_and(|close| close.cause == CloseCause::Refused)
        })?;
        Ok(())
    }

    pub(super) fn between(&self, client: &str) -> Result<impl Fn(&Connection) -> bool + use<>> {
        let ip = self.ip(client)?;
        Ok(move |record: &Connection| record.client.ip().to_string() == ip || record.target.ip().to_string() == ip)
    }

    /// Waits until the proxy of `server` has a record of `client` that says so.
    pub(super) fn inbound_state(
        &self,
        server: &str,
        client: &str,
        state: TransportState,
        reason: Option<Reason>,
    ) -> Result<()> {
        let theirs = self.between(client)?;
        self.scene(server).records(server, &format!("{client} came {state} {reason:?}"), |record| {
            record.direction == Direction::Inbound
                && theirs(record)
                && record.state == Some(state)
                && record.reason == reason
        })?;
        Ok(())
    }

    /// The proxy of `pod` carries nothing of what `pod` and `peer` say to each other.
    pub(super) fn no_record(&self, pod: &str, peer: &str) -> Result<()> {
        let theirs = self.between(peer)?;
        let all = self.scene(pod).kind.connections(self.scene(pod).namespace, pod, "app")?;
        let carried = all.closed.iter().chain(&all.live).find(|record| theirs(record));
        ensure!(carried.is_none(), "{carried:?}");
        Ok(())
    }

    /// A file of `/proc/PID` of the container's first process.
    pub(super) fn proc(&self, pod: &str, container: &str, file: &str) -> Result<String> {
        let (node, pid) = process(self.scene(pod), pod, container)?;
        self.meshed.kind.on_node(&node, &["cat", &format!("/proc/{pid}/{file}")])
    }

    /// What the kernel holds the proxy's container to.
    pub(super) fn cgroup(&self, pod: &str, file: &str, expected: &str) -> Result<()> {
        let found = self.proc(pod, PROXY_CONTAINER, &format!("root/sys/fs/cgroup/{file}"))?;
        ensure!(found.trim() == expected, "{file} is {found}, not {expected}");
        Ok(())
    }

    /// What kubelet has set aside for the proxy that runs: the kernel is told nothing of it.
    pub(super) fn set_aside(&self, pod: &str, resource: &str, expected: &str) -> Result<()> {
        let status = self.proxy_status(pod)?;
        let found = &status["allocatedResources"][resource];
        ensure!(found == expected && status["state"]["running"].is_object(), "{status}");
        Ok(())
    }
}

/// Makes [`SECOND_IMAGE`] and puts it on every node.
fn second_image(kind: &Kind) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (tree, archive) = (dir.path().join("tree"), dir.path().join("second.tar"));
    let binaries = hauberk_lab::find_binary("hauberk-proxy")?;
    let binaries = binaries.parent().context("a binary is in a directory")?;
    let run = |script: &str, args: &[&OsStr]| {
        let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(script)).args(args).output()?;
        ensure!(output.status.success(), "{script}: {output:?}");
        Ok(())
    };
    run("../deploy/rootfs", &["proxy".as_ref(), binaries.as_ref(), tree.as_ref()])?;
    std::fs::write(tree.join("second"), "")?;
    let dockerfile = concat!("--dockerfile=", env!("CARGO_MANIFEST_DIR"), "/../deploy/proxy.Dockerfile");
    let options = ["--tree".as_ref(), tree.as_ref(), dockerfile.as_ref()];
    run("kind/archive.py", &[&[archive.as_ref(), SECOND_IMAGE.as_ref()], &options[..]].concat())?;
    run("kind/load.sh", &[kind.name().as_ref(), archive.as_ref()])
}

/// Where `container` runs: its node, and its first process there.
pub(super) fn process(scene: &Scene, pod: &str, container: &str) -> Result<(String, String)> {
    let pod = scene.kind.get(&["pod", "-n", scene.namespace, pod])?;
    let node = pod["spec"]["nodeName"].as_str().context("it has a node")?;
    let status = status(&pod, container).with_context(|| format!("it has no {container}: {pod}"))?;
    let id = status["containerID"].as_str().and_then(|id| id.strip_prefix("containerd://")).context("it has an ID")?;
    let tasks = scene.kind.on_node(node, &["ctr", "--namespace", "k8s.io", "tasks", "list"])?;
    let rest = tasks.lines().find_map(|line| line.strip_prefix(id)).with_context(|| format!("{id}: {tasks}"))?;
    let pid = rest.split_whitespace().next().context("it has a process")?;
    Ok((node.to_owned(), pid.to_owned()))
}

/// What kubelet says of a container.
fn status<'a>(pod: &'a Value, container: &str) -> Option<&'a Value> {
    let lists = ["initContainerStatuses", "containerStatuses"].map(|list| pod["status"][list].as_array());
    lists.into_iter().flatten().flatten().find(|status| status["name"] == container)
}

/// `inject` is a label, so that it is seen in a namespace that says nothing.
pub(super) fn annotate(pod: &mut Value, settings: &[(&str, &str)]) {
    for (name, value) in settings {
        let place = if *name == "inject" { "labels" } else { "annotations" };
        pod["metadata"][place][format!("{KEY_PREFIX}{name}")] = json!(value);
    }
}
