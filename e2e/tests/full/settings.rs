//! Every label and annotation does what it says to a proxy that runs; the table of all is walked, so that a new one needs
//! its place here.

#[path = "settings/world.rs"]
mod world;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use hauberk_lab::wait_for;
use hauberk_mesh::{CloseCause, PROXY_CONTAINER, Reason, TransportState};
use hauberk_webhook::inject::{Place, SETTINGS};
use serde_json::json;

use self::world::{World, annotate, process};
use crate::scene::{LIMIT, Scene, account, pod};

/// Has no proxy: peer of those whose setting is about such peers.
const UNMESHED: &str = "inject-disabled";
/// Sets nothing but `tls: required`: what others with one more setting are compared with.
const STRICT: &str = "tls-required";
/// Whom nobody has, outside the cluster's networks.
const OUTSIDE: &str = "192.0.2.10";
/// As the proxy's image, with one more file: where kubelet has two names for one image, it does not say by which a
/// container was made.
const SECOND_IMAGE: &str = "hauberk.dev/hauberk-proxy:second";
/// Where kubelet mounts the token for the API server.
const API_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Of the namespace whose label requires mTLS.
const NAMESPACE_UID: u32 = 10021;

/// A pod of a case: its name, and what it sets.
type Given = (&'static str, &'static [(&'static str, &'static str)]);

/// One setting: the pods that have it, and what must be seen of them.
struct Case {
    area: Area,
    pods: &'static [Given],
    see: fn(&World) -> Result<()>,
}

/// Which namespace the pods are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Area {
    /// Its pods are meshed.
    Meshed,
    /// As before; they do not get ready, or do not stay so.
    Doomed,
    /// Its label requires mTLS; what only a namespace may say, it says.
    Required,
    /// It says nothing.
    Silent,
}

fn case(setting: &str) -> Option<Case> {
    let case = |pods, see| Case { area: Area::Meshed, pods, see };
    Some(match setting {
        "inject" => Case {
            area: Area::Silent,
            pods: &[("inject-enabled", &[("inject", "enabled")]), ("inject-unset", &[])],
            see: |world| {
                ensure!(world.has_proxy("inject-enabled")?, "enabled: no proxy");
                ensure!(!world.has_proxy("inject-unset")?, "not set: a proxy");
                ensure!(!world.has_proxy(UNMESHED)?, "disabled: a proxy");
                world.answers("inject-enabled", "web")?;
                world.inbound_state("web", "inject-enabled", TransportState::Mtls, None)
            },
        },
        "tls" => case(&[(STRICT, &[("tls", "required")]), ("tls-disabled", &[("tls", "disabled")])], |world| {
            world.answers("web", STRICT)?;
            world.inbound_state(STRICT, "web", TransportState::Mtls, None)?;
            world.refuses(UNMESHED, STRICT)?;
            world.refuses(STRICT, UNMESHED)?;
            world.answers(UNMESHED, "web").context("optional")?;
            world.answers("tls-disabled", "web")?;
            world.inbound_state("web", "tls-disabled", TransportState::Cleartext, Some(Reason::UnmeshedClient))
        }),
        "egress" => case(&[("egress", &[("tls", "required"), ("egress", "deny")])], |world| {
            for (pod, denied) in [("egress", true), (STRICT, false)] {
                world.curl(pod, OUTSIDE)?;
                let records = world.scene(pod).records(pod, "a record of what went outside", |record| {
                    record.target.ip().to_string() == OUTSIDE && record.close.is_some()
                })?;
                let causes: Vec<_> = records.iter().filter_map(|record| Some(record.close.as_ref()?.cause)).collect();
                ensure!(causes.iter().all(|cause| (*cause == CloseCause::EgressDenied) == denied), "{pod}: {causes:?}");
            }
            Ok(())
        }),
        "allow-unmeshed-from" => case(
            &[("allow-unmeshed-from", &[("tls", "required"), ("allow-unmeshed-from", "10.244.0.0/16@8080")])],
            |world| {
                world.answers(UNMESHED, "allow-unmeshed-from")?;
                let why = Some(Reason::Exception);
                world.inbound_state("allow-unmeshed-from", UNMESHED, TransportState::Cleartext, why)?;
                world.refuses("allow-unmeshed-from", UNMESHED).context("the other way")
            },
        ),
        "allow-unmeshed-to" => case(
            &[("allow-unmeshed-to", &[("tls", "required"), ("allow-unmeshed-to", "10.244.0.0/16@8080")])],
            |world| {
                world.answers("allow-unmeshed-to", UNMESHED)?;
                world.refuses(UNMESHED, "allow-unmeshed-to").context("the other way")
            },
        ),
        "allow-uninjected" => Case {
            area: Area::Required,
            pods: &[("legacy", &[("inject", "disabled")])],
            see: |world| {
                ensure!(!world.has_proxy("legacy")?, "a proxy");
                world.refuses("legacy", "proxy-uid")?;
                let other = pod("other", json!({}), |pod| annotate(pod, &[("inject", "disabled")]));
                let scene = world.scene("legacy");
                scene.apply(&account("other"));
                let refusal = scene.try_apply(&other).unwrap_or_else(|error| error.to_string());
                ensure!(refusal.contains("hauberk.dev/allow-uninjected"), "{refusal}");
                Ok(())
            },
        },
        // Past the proxy: what the same without it refuses is answered, and the proxy knows nothing of it.
        "skip-inbound-ports" => {
            case(&[("skip-inbound-ports", &[("tls", "required"), ("skip-inbound-ports", "8080")])], |world| {
                world.answers(UNMESHED, "skip-inbound-ports")?;
                world.no_record("skip-inbound-ports", UNMESHED)?;
                world.refuses("skip-inbound-ports", UNMESHED).context("the other way")
            })
        }
        "skip-outbound-ports" => {
            case(&[("skip-outbound-ports", &[("tls", "required"), ("skip-outbound-ports", "8080")])], |world| {
                world.answers("skip-outbound-ports", UNMESHED)?;
                world.no_record("skip-outbound-ports", UNMESHED)?;
                world.refuses(UNMESHED, "skip-outbound-ports").context("the other way")
            })
        }
        "skip-subnets" => {
            case(&[("skip-subnets", &[("tls", "required"), ("skip-subnets", "10.244.0.0/16")])], |world| {
                world.answers("skip-subnets", UNMESHED)?;
                world.answers(UNMESHED, "skip-subnets")?;
                world.no_record("skip-subnets", UNMESHED)
            })
        }
        "sidecar" => {
            case(&[("sidecar-native", &[("sidecar", "native")]), ("sidecar-plain", &[("sidecar", "plain")])], |world| {
                for (pod, list) in [("sidecar-native", "initContainerStatuses"), ("sidecar-plain", "containerStatuses")]
                {
                    let status = &world.get(pod)?["status"][list];
                    let all = status.as_array().into_iter().flatten();
                    let proxy = all.clone().find(|status| status["name"] == PROXY_CONTAINER);
                    ensure!(proxy.is_some_and(|proxy| proxy["state"]["running"].is_object()), "{pod}: {status}");
                    world.answers(pod, "web")?;
                    world.inbound_state("web", pod, TransportState::Mtls, None)?;
                }
                Ok(())
            })
        }
        "proxy-image" => case(&[("proxy-image", &[("proxy-image", SECOND_IMAGE)])], |world| {
            let status = world.proxy_status("proxy-image")?;
            world.proc("proxy-image", PROXY_CONTAINER, "root/second")?;
            ensure!(status["image"] == SECOND_IMAGE && status["state"]["running"].is_object(), "{status}");
            world.answers("proxy-image", "web")?;
            world.inbound_state("web", "proxy-image", TransportState::Mtls, None)
        }),
        // There is no registry: kubelet cannot pull what it has, and does not try to pull what it has not.
        "image-pull-policy" => Case {
            area: Area::Doomed,
            pods: &[
                ("image-pull-policy-always", &[("image-pull-policy", "Always")]),
                ("image-pull-policy-never", &[("image-pull-policy", "Never"), ("proxy-image", "hauberk.dev/none:1")]),
            ],
            see: |world| {
                for (pod, reasons) in [
                    ("image-pull-policy-always", &["ErrImagePull", "ImagePullBackOff"][..]),
                    ("image-pull-policy-never", &["ErrImageNeverPull"]),
                ] {
                    wait_for(&format!("{pod}: {reasons:?}"), LIMIT, || {
                        let status = world.get(pod)?["status"].take();
                        let reason = &status["initContainerStatuses"][0]["state"]["waiting"]["reason"];
                        let found = reasons.iter().any(|wanted| reason == wanted);
                        Ok(if found { Ok(()) } else { Err(status.to_string()) })
                    })?;
                }
                Ok(())
            },
        },
        "proxy-cpu-request" => case(&[("proxy-cpu-request", &[("proxy-cpu-request", "50m")])], |world| {
            world.cgroup("proxy-cpu-request", "cpu/cpu.shares", "51")
        }),
        "proxy-cpu-limit" => case(&[("proxy-cpu-limit", &[("proxy-cpu-limit", "300m")])], |world| {
            world.cgroup("proxy-cpu-limit", "cpu/cpu.cfs_quota_us", "30000")
        }),
        "proxy-memory-request" => case(&[("proxy-memory-request", &[("proxy-memory-request", "40Mi")])], |world| {
            world.set_aside("proxy-memory-request", "memory", "40Mi")
        }),
        "proxy-memory-limit" => case(&[("proxy-memory-limit", &[("proxy-memory-limit", "96Mi")])], |world| {
            world.cgroup("proxy-memory-limit", "memory/memory.limit_in_bytes", &(96 << 20).to_string())
        }),
        "proxy-ephemeral-storage-request" => {
            case(&[("proxy-ephemeral-storage-request", &[("proxy-ephemeral-storage-request", "10Mi")])], |world| {
                world.set_aside("proxy-ephemeral-storage-request", "ephemeral-storage", "10Mi")
            })
        }
        "proxy-ephemeral-storage-limit" => Case {
            area: Area::Doomed,
            pods: &[("proxy-ephemeral-storage-limit", &[("proxy-ephemeral-storage-limit", "1Ki"), ("log", "trace")])],
            see: |world| {
                // The limits of a pod's containers are also that of the whole pod: here only the proxy has one.
                wait_for("the proxy's log is too long for kubelet", LIMIT, || {
                    let of = "--field-selector=reason=Evicted,involvedObject.name=proxy-ephemeral-storage-limit";
                    let events = world.meshed.kind.kubectl(&["get", "events", "-n", world.meshed.namespace, of])?;
                    Ok(if events.contains("limit of containers 1Ki") { Ok(()) } else { Err(events) })
                })
            },
        },
        "proxy-uid" => Case {
            area: Area::Required,
            pods: &[("proxy-uid", &[])],
            see: |world| {
                let status = world.proc("proxy-uid", PROXY_CONTAINER, "status")?;
                let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).context("it has uids")?;
                ensure!(uids.split_whitespace().all(|uid| uid == NAMESPACE_UID.to_string()), "{uids}");
                // Were its packets redirected like any other's, it would reach nobody.
                world.answers("proxy-uid", "web")?;
                world.inbound_state("web", "proxy-uid", TransportState::Mtls, None)
            },
        },
        "log" => case(&[("log", &[("log", "info,hauberk_proxy=debug")])], |world| {
            for pod in ["log", "web"] {
                world.answers(pod, UNMESHED)?;
                let log = world.scene(pod).kind.kubectl(&[
                    "logs",
                    "-n",
                    world.scene(pod).namespace,
                    pod,
                    "-c",
                    PROXY_CONTAINER,
                ])?;
                ensure!(log.contains(" INFO "), "{pod}: {log}");
                ensure!(log.contains(" DEBUG hauberk_proxy") == (pod == "log"), "{pod}: {log}");
            }
            Ok(())
        }),
        "limits" => case(&[("limits", &[("limits", "recent=2,drain=30s")])], |world| {
            for _ in 0..4 {
                world.answers("limits", "web")?;
            }
            let closed =
                world.scene("limits").kind.connections(world.scene("limits").namespace, "limits", "app")?.closed;
            ensure!(closed.len() == 2, "{closed:?}");
            // Of the drain nothing is seen before the end; the process was told.
            let environment = world.proc("limits", PROXY_CONTAINER, "environ")?;
            ensure!(environment.split('\0').any(|it| it == "HAUBERK_LIMITS=drain=30s,recent=2"), "{environment}");
            Ok(())
        }),
        _ => return None,
    })
}

#[test]
fn each_setting_does_to_a_running_proxy_what_it_says() {
    let world = World::new();
    world.fill();
    let mut wrong = Vec::new();
    for setting in SETTINGS {
        let start = Instant::now();
        let seen = case(setting.name).context("it is not looked at: give it a case").and_then(|case| {
            let set = case.pods.iter().any(|(_, settings)| settings.iter().any(|(name, _)| *name == setting.name));
            ensure!(set || setting.pod == Place::Nowhere, "none of its pods sets it");
            (case.see)(&world)
        });
        match seen {
            Ok(()) => println!("{}: seen within {:?}", setting.name, start.elapsed()),
            Err(error) => wrong.push(format!("{}: {error:#}", setting.name)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Of a process in /proc: its file system.
const ROOT: &str = "root";

#[test]
fn a_running_proxy_has_not_the_applications_token_for_the_api_server() {
    let scene = Scene::meshed("api-token", &[]);
    for kind in ["native", "plain"] {
        scene.pod(kind, json!({ "command": ["sleep", "1000000"] }), |pod| annotate(pod, &[("sidecar", kind)]));
    }
    for kind in ["native", "plain"] {
        scene.ready(kind);
        let files = |container: &str| {
            let (node, pid) = process(&scene, kind, container).expect("it runs");
            scene.kind.on_node(&node, &["ls", &format!("/proc/{pid}/{ROOT}{API_TOKEN}")]).expect("a directory")
        };
        assert!(files("app").lines().any(|file| file == "token"), "{kind}: {}", files("app"));
        assert_eq!(files(PROXY_CONTAINER), "", "{kind}");
    }
}
