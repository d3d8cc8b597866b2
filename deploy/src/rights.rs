//! What each part of the control plane may do in the API: one table, from which the Roles and `docs/rights.md` are
//! made. Least: no wildcard, nothing in other namespaces but what the part cannot do without, and named objects
//! wherever the API can restrict by name (it cannot for `create`). Pure.

use hauberk_mesh::{
    CONFIG_MAP, DESTINATION_ACCOUNT, IDENTITY_ACCOUNT, ISSUER_SECRET, ROOT_SECRET, TRUST_MAP, WEBHOOK_ACCOUNT,
    WEBHOOK_CONFIGURATION, WEBHOOK_SECRET,
};
use serde_json::{Map, Value, json};

use crate::objects::{labels, metadata};

/// What one part may do.
#[derive(Debug)]
pub struct Rights {
    /// Its ServiceAccount, which its Roles are named after.
    pub account: &'static str,
    /// In the whole cluster.
    pub cluster: &'static [Rule],
    /// In the control namespace.
    pub own: &'static [Rule],
}

/// One line of a Role.
#[derive(Debug)]
pub struct Rule {
    /// API group; empty is the core.
    pub group: &'static str,
    /// Resources of it.
    pub resources: &'static [&'static str],
    /// The only objects; empty is all.
    pub names: &'static [&'static str],
    /// What may be done.
    pub verbs: &'static [&'static str],
    /// What for.
    pub why: &'static str,
}

/// The rights of identity, destination and webhook.
pub const RIGHTS: &[Rights] = &[
    Rights {
        account: IDENTITY_ACCOUNT,
        cluster: &[
            Rule {
                group: "authentication.k8s.io",
                resources: &["tokenreviews"],
                names: &[],
                verbs: &["create"],
                why: "ask whether a token is genuine",
            },
            Rule {
                group: "",
                resources: &["pods"],
                names: &[],
                verbs: &["get"],
                why: "see that the pod of a token exists, has our proxy and has not ended",
            },
            EVENTS,
        ],
        own: &[
            Rule {
                group: "",
                resources: &["secrets"],
                names: &[ROOT_SECRET, ISSUER_SECRET],
                verbs: &["get", "update"],
                why: "root and issuer keys, and the state of their rotation",
            },
            Rule {
                group: "",
                resources: &["secrets", "configmaps"],
                names: &[],
                verbs: &["create"],
                why: "their first creation",
            },
            Rule {
                group: "",
                resources: &["configmaps"],
                names: &[TRUST_MAP],
                verbs: &["get", "update"],
                why: "publish the trust roots",
            },
            lease(&[IDENTITY_ACCOUNT]),
            NEW_LEASE,
        ],
    },
    Rights {
        account: DESTINATION_ACCOUNT,
        cluster: &[
            Rule {
                group: "",
                resources: &["namespaces", "nodes", "pods", "services"],
                names: &[],
                verbs: &["list", "watch"],
                why: "know who is behind an address",
            },
            Rule {
                group: "discovery.k8s.io",
                resources: &["endpointslices"],
                names: &[],
                verbs: &["list", "watch"],
                why: "know who is behind a Service",
            },
        ],
        own: &[],
    },
    Rights {
        account: WEBHOOK_ACCOUNT,
        cluster: &[
            Rule {
                group: "",
                resources: &["namespaces"],
                names: &[],
                verbs: &["get", "list", "watch"],
                why: "read the labels and annotations that set how a namespace's pods are injected",
            },
            Rule {
                group: "admissionregistration.k8s.io",
                resources: &["mutatingwebhookconfigurations"],
                names: &[WEBHOOK_CONFIGURATION],
                verbs: &["get", "list", "watch", "patch"],
                why: "keep the caBundle of its own registration up to date",
            },
            EVENTS,
        ],
        own: &[
            Rule {
                group: "",
                resources: &["configmaps"],
                names: &[CONFIG_MAP, TRUST_MAP],
                verbs: &["get", "list", "watch"],
                why: "the mesh's settings and trust roots, which it writes into pods",
            },
            Rule {
                group: "",
                resources: &["services"],
                names: &[IDENTITY_ACCOUNT, DESTINATION_ACCOUNT],
                verbs: &["get", "list", "watch"],
                why: "the addresses of identity and destination, which it writes into pods",
            },
            Rule {
                group: "",
                resources: &["secrets"],
                names: &[WEBHOOK_SECRET],
                verbs: &["get", "list", "watch", "update", "patch"],
                why: "its CA and certificate",
            },
            Rule { group: "", resources: &["secrets"], names: &[], verbs: &["create"], why: "their first creation" },
            lease(&[WEBHOOK_ACCOUNT]),
            NEW_LEASE,
        ],
    },
];

const EVENTS: Rule = Rule {
    group: "events.k8s.io",
    resources: &["events"],
    names: &[],
    verbs: &["create", "patch"],
    why: "tell people, at the pod or its owner, what was decided and why",
};

const NEW_LEASE: Rule = Rule {
    group: "coordination.k8s.io",
    resources: &["leases"],
    names: &[],
    verbs: &["create"],
    why: "its first creation",
};

const fn lease(names: &'static [&'static str]) -> Rule {
    Rule {
        group: "coordination.k8s.io",
        resources: &["leases"],
        names,
        verbs: &["get", "update", "patch"],
        why: "agree with its other replicas on who leads",
    }
}

/// ClusterRoles, Roles and their bindings.
pub fn rbac(control_namespace: &str) -> Vec<Value> {
    RIGHTS.iter().flat_map(|rights| rights.objects(control_namespace)).collect()
}

/// What `docs/rights.md` holds.
pub fn rights_page() -> String {
    let mut page = "# What the control plane may do\n\n\
        Made from `deploy/src/rights.rs`, as are the Roles that `hauberk install` prints: nothing but this is granted. \
        The API cannot restrict\n`create` by name. The proxy in the pods has no rights at all.\n"
        .to_owned();
    for rights in RIGHTS {
        page += &format!(
            "\n## {}\n\n| where | what | only | may | what for |\n| --- | --- | --- | --- | --- |\n",
            rights.account
        );
        for (place, rules) in [("cluster", rights.cluster), ("own namespace", rights.own)] {
            for rule in rules {
                page += &format!("| {place} | {} |\n", rule.cells().join(" | "));
            }
        }
    }
    page
}

impl Rights {
    fn objects(&self, namespace: &str) -> Vec<Value> {
        let mut objects = Vec::new();
        for (scope, namespace_of, rules) in [("ClusterRole", None, self.cluster), ("Role", Some(namespace), self.own)] {
            if rules.is_empty() {
                continue;
            }
            let kind = |kind: &str, rest: Value| {
                let mut object = json!({
                    "apiVersion": "rbac.authorization.k8s.io/v1",
                    "kind": kind,
                    "metadata": metadata(self.account, namespace_of, labels(self.account)),
                });
                object
                    .as_object_mut()
                    .expect("made as an object")
                    .extend(rest.as_object().cloned().unwrap_or_default());
                object
            };
            objects.push(kind(scope, json!({ "rules": rules.iter().map(Rule::object).collect::<Vec<_>>() })));
            objects.push(kind(
                &format!("{scope}Binding"),
                json!({
                    "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": scope, "name": self.account },
                    "subjects": [{ "kind": "ServiceAccount", "name": self.account, "namespace": namespace }],
                }),
            ));
        }
        objects
    }
}

impl Rule {
    fn object(&self) -> Value {
        let mut object = Map::new();
        object.insert("apiGroups".to_owned(), json!([self.group]));
        object.insert("resources".to_owned(), json!(self.resources));
        if !self.names.is_empty() {
            object.insert("resourceNames".to_owned(), json!(self.names));
        }
        object.insert("verbs".to_owned(), json!(self.verbs));
        Value::Object(object)
    }

    fn cells(&self) -> [String; 4] {
        let resource = |resource: &&str| {
            if self.group.is_empty() { (*resource).to_owned() } else { format!("{resource}.{}", self.group) }
        };
        [
            self.resources.iter().map(resource).collect::<Vec<_>>().join(", "),
            self.names.join(", "),
            self.verbs.join(", "),
            self.why.to_owned(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_rights_is_what_is_granted() {
        let page = include_str!("../../docs/rights.md");
        assert_eq!(page, rights_page(), "write what rights_page() says into docs/rights.md, and say why in the commit");
    }

    #[test]
    fn no_right_is_a_wildcard_and_keys_are_named() {
        for rights in RIGHTS {
            for rule in rights.cluster.iter().chain(rights.own) {
                let words = [&[rule.group], rule.resources, rule.names, rule.verbs].concat();
                assert!(!words.iter().any(|word| word.contains('*')), "{}: {rule:?}", rights.account);
                let keys = rule.resources.contains(&"secrets");
                assert!(!keys || !rule.names.is_empty() || rule.verbs == ["create"], "{}: {rule:?}", rights.account);
                assert!(!rule.verbs.contains(&"delete"), "{}: {rule:?}", rights.account);
            }
            assert!(!rights.cluster.iter().any(|rule| rule.resources.contains(&"secrets")), "{}", rights.account);
        }
    }
}
