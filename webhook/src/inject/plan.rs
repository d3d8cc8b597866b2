//! What is to be injected, as far as settings say it: the mesh's defaults, over them the namespace's labels and
//! annotations, over them the pod's. One loop over [`SETTINGS`] does all three.

use std::collections::BTreeMap;

use hauberk_kubernetes::{MeshConfig, PullPolicy};
use hauberk_mesh::{
    Egress, Exception, INJECT_KEY, KEY_PREFIX, Limits, Redirection, RefusalReason, SidecarKind, TLS_KEY, TlsMode,
};

use super::{
    Cluster, Namespace, Refusal,
    quantity::Quantity,
    settings::{self, Place, SETTINGS, Setting},
    view::View,
};

/// All that settings set.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) inject: Option<bool>,
    pub(super) tls: TlsMode,
    pub(super) egress: Egress,
    pub(super) allow_unmeshed_from: Vec<Exception>,
    pub(super) allow_unmeshed_to: Vec<Exception>,
    pub(super) allow_uninjected: Vec<String>,
    pub(super) redirection: Redirection,
    /// None: native where the cluster's nodes know it.
    pub(super) sidecar: Option<SidecarKind>,
    pub(super) image: String,
    pub(super) pull_policy: PullPolicy,
    pub(super) cpu: Amounts,
    pub(super) memory: Amounts,
    pub(super) ephemeral_storage: Amounts,
    pub(super) log: String,
    /// As written, each over what stands before it.
    pub(super) limits_text: String,
    pub(super) limits: Limits,
    pub(super) warnings: Vec<String>,
}

/// What is asked for of one resource.
#[derive(Debug, Clone, Default)]
pub(super) struct Amounts {
    pub(super) request: Option<Quantity>,
    pub(super) limit: Option<Quantity>,
    /// Whether the request is more than the mesh's default.
    pub(super) request_is_set: bool,
}

/// Whose labels and annotations are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level<'a> {
    Mesh,
    Namespace(&'a str),
    Pod,
}

impl Level<'_> {
    fn place(self, setting: &Setting) -> Place {
        match self {
            // Whether pods join is no default: the API server's selectors are by labels of namespace and pod.
            Self::Mesh if setting.is(INJECT_KEY) => Place::Nowhere,
            Self::Mesh => Place::Annotation,
            Self::Namespace(_) => setting.namespace,
            Self::Pod => setting.pod,
        }
    }

    fn describe(self, kind: &str, key: &str) -> String {
        match self {
            Self::Mesh => format!("the mesh's default {key}"),
            Self::Namespace(name) => format!("{kind} {key} of namespace {name}"),
            Self::Pod => format!("{kind} {key} of the pod"),
        }
    }
}

impl Plan {
    fn of_mesh(config: &MeshConfig) -> Result<Self, Refusal> {
        let quantity = |text: &str| {
            let wrong = |why| Refusal::new(RefusalReason::MeshConfig, format!("the mesh's proxyResources: {why}"));
            Quantity::parse(text).map_err(wrong)
        };
        let amounts = |request: &str, limit: &Option<String>| {
            let limit = limit.as_deref().map(quantity).transpose()?;
            Ok(Amounts { request: Some(quantity(request)?), limit, request_is_set: false })
        };
        let resources = &config.proxy_resources;
        let mut plan = Self {
            inject: None,
            tls: config.tls,
            egress: Egress::Allow,
            allow_unmeshed_from: Vec::new(),
            allow_unmeshed_to: Vec::new(),
            allow_uninjected: Vec::new(),
            redirection: Redirection::default(),
            sidecar: None,
            image: config.proxy_image.clone(),
            pull_policy: config.image_pull_policy,
            cpu: amounts(&resources.cpu_request, &resources.cpu_limit)?,
            memory: amounts(&resources.memory_request, &resources.memory_limit)?,
            ephemeral_storage: Amounts::default(),
            log: "info".to_owned(),
            limits_text: String::new(),
            limits: Limits::default(),
            warnings: Vec::new(),
        };
        let (_, warnings) = plan.overlay(Level::Mesh, std::iter::empty(), pairs(&config.defaults))?;
        plan.warnings.extend(warnings);
        Ok(plan)
    }

    /// The mesh's defaults and what the namespace says.
    pub(super) fn of_namespace(config: &MeshConfig, namespace: &Namespace) -> Result<Self, Refusal> {
        let mut plan = Self::of_mesh(config)?;
        if namespace.annotations.get(INJECT_KEY).is_some_and(|value| value.trim() == "enabled") {
            let message = format!(
                "annotation {INJECT_KEY} of namespace {} is \"enabled\", which must be a label: the API server selects \
                 by labels. Run kubectl label namespace {} {INJECT_KEY}=enabled, and remove the annotation",
                namespace.name, namespace.name
            );
            return Err(Refusal::new(RefusalReason::MisplacedSetting, message));
        }
        let level = Level::Namespace(&namespace.name);
        let (_, warnings) = plan.overlay(level, pairs(&namespace.labels), pairs(&namespace.annotations))?;
        plan.warnings.extend(warnings);
        Ok(plan)
    }

    /// Puts the pod's own settings over the namespace's, unless they ask for less than `required`.
    pub(super) fn of_pod(&self, view: &View) -> Result<Plan, Refusal> {
        let mut plan = self.clone();
        let (set, _) = plan.overlay(Level::Pod, view.labels(), view.annotations())?;
        if self.tls == TlsMode::Required
            && let Some(setting) = set.into_iter().find(|setting| (setting.loosens)(self, &plan))
        {
            let key = setting.key();
            let message = format!(
                "{key} of the pod asks for less than its namespace, where mTLS is required: remove it, or set {key} on \
                 the namespace so that it covers what the pod asks for"
            );
            return Err(Refusal::new(RefusalReason::LoosensRequired, message));
        }
        Ok(plan)
    }

    /// Whether the namespace's pods must all be meshed: it says `required` itself, or it has joined a mesh that does.
    pub(super) fn requires_every_pod(&self, namespace: &Namespace) -> bool {
        self.tls == TlsMode::Required && (namespace.labels.contains_key(TLS_KEY) || self.inject == Some(true))
    }

    /// Which kind of sidecar it will be.
    pub(super) fn sidecar_of(&self, cluster: &Cluster, owner_kind: Option<&str>) -> Result<SidecarKind, Refusal> {
        let refuse = |message: &str| Err(Refusal::new(RefusalReason::Sidecar, message));
        let kind = match (self.sidecar, cluster.native_sidecars) {
            (Some(SidecarKind::Native), false) => {
                return refuse(
                    "hauberk.dev/sidecar is native, but not every node's kubelet is 1.29 or newer: the pod would never \
                     start there. Use auto or plain, or upgrade the nodes",
                );
            }
            (Some(kind), _) => kind,
            (None, true) => SidecarKind::Native,
            (None, false) => SidecarKind::Plain,
        };
        if kind == SidecarKind::Plain && owner_kind == Some("Job") {
            return refuse(
                "the pod belongs to a Job, and a plain sidecar would keep it from ever finishing: use native sidecars \
                 (kubelet 1.29 or newer, hauberk.dev/sidecar: native), or give the pods the label hauberk.dev/inject=disabled",
            );
        }
        Ok(kind)
    }

    /// Puts the settings of one level over those before: which were set, and what is worth a warning.
    fn overlay<'s>(
        &mut self,
        level: Level<'_>,
        labels: impl Iterator<Item = (&'s str, &'s str)>,
        annotations: impl Iterator<Item = (&'s str, &'s str)>,
    ) -> Result<(Vec<&'static Setting>, Vec<String>), Refusal> {
        let kinds = labels.map(|pair| ("label", pair)).chain(annotations.map(|pair| ("annotation", pair)));
        let ours: Vec<_> = kinds.filter(|(_, (key, _))| key.starts_with(KEY_PREFIX)).collect();
        let mut warnings = Vec::new();
        for (kind, (key, _)) in &ours {
            if !SETTINGS.iter().any(|setting| setting.is(key)) {
                warnings.push(unknown(level, kind, key)?);
            }
        }
        let mut set = Vec::new();
        for setting in SETTINGS {
            for (kind, (key, value)) in ours.iter().filter(|(_, (key, _))| setting.is(key)) {
                if !level.place(setting).allows(kind) {
                    return Err(misplaced(level, kind, key, setting));
                }
                let value = value.trim();
                (setting.apply)(self, value).map_err(|why| invalid(level, kind, setting, value, &why))?;
                set.push(setting);
            }
        }
        Ok((set, warnings))
    }
}

fn pairs(map: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    map.iter().map(|(key, value)| (key.as_str(), value.as_str()))
}

/// The pod's own word on being injected. One `disabled` outweighs.
pub(super) fn asks(view: &View) -> Result<Option<bool>, Refusal> {
    let setting = SETTINGS.iter().find(|setting| setting.is(INJECT_KEY)).expect("the table has it");
    let mut asks = None;
    for (kind, value) in [("label", view.label(INJECT_KEY)), ("annotation", view.annotation(INJECT_KEY))] {
        if let Some(value) = value {
            let said = settings::switch(value.trim()).map_err(|why| invalid(Level::Pod, kind, setting, value, &why))?;
            asks = Some(asks.unwrap_or(true) && said);
        }
    }
    Ok(asks)
}

fn invalid(level: Level<'_>, kind: &str, setting: &Setting, value: &str, why: &str) -> Refusal {
    let reason = if level == Level::Mesh { RefusalReason::MeshConfig } else { RefusalReason::InvalidSetting };
    let (what, value, why) = (level.describe(kind, &setting.key()), shorten(value, 60), shorten(why, 300));
    Refusal::new(reason, format!("{what} = {value:?} is not valid: {why}. Valid: {}", setting.valid))
}

fn misplaced(level: Level<'_>, kind: &str, key: &str, setting: &Setting) -> Refusal {
    let what = level.describe(kind, key);
    let message = format!("{what} has no effect there, so it is refused. It belongs here: {}", setting.places());
    Refusal::new(RefusalReason::MisplacedSetting, message)
}

/// A misspelling must not silently do nothing. On a namespace it is a warning only: keys of a newer version must not
/// keep an older one from letting pods in.
fn unknown(level: Level<'_>, kind: &str, key: &str) -> Result<String, Refusal> {
    let nearest = settings::nearest(key);
    let what = level.describe(kind, &shorten(key, 80));
    let message = format!("{what} is none that Hauberk knows: did you mean {nearest}? See docs/annotations.md");
    match level {
        Level::Namespace(_) => Ok(message),
        Level::Mesh => Err(Refusal::new(RefusalReason::MeshConfig, message)),
        Level::Pod => Err(Refusal::new(RefusalReason::UnknownSetting, message)),
    }
}

/// Texts from outside go into messages up to a bound.
pub(super) fn shorten(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
