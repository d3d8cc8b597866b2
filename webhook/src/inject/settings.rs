//! Labels and annotations `hauberk.dev/…`: what one is, and how values are read. The table of all is [`SETTINGS`]: code,
//! `docs/annotations.md` and `hauberk inject --help` are made from it.

mod table;

use std::{fmt::Display, str::FromStr};

use hauberk_mesh::{Exception, KEY_PREFIX};

use super::{
    plan::{Amounts, Plan},
    quantity::Quantity,
};
pub use table::SETTINGS;

/// One label or annotation.
#[derive(Debug)]
pub struct Setting {
    /// What follows `hauberk.dev/`.
    pub name: &'static str,
    /// Where it may stand on a namespace.
    pub namespace: Place,
    /// Where it may stand on a pod.
    pub pod: Place,
    /// What is valid.
    pub valid: &'static str,
    /// What holds where nothing is set.
    pub default: &'static str,
    /// When it takes effect.
    pub effect: Effect,
    /// What it does: one sentence.
    pub says: &'static str,
    /// A valid value that is not the default.
    pub example: &'static str,
    /// A value that is refused.
    pub counterexample: &'static str,
    pub(super) apply: fn(&mut Plan, &str) -> Result<(), String>,
    /// Whether the second is less strict than the first: then a pod may not ask for it where `required` holds.
    pub(super) loosens: fn(&Plan, &Plan) -> bool,
}

/// Where a setting may stand on an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Not on this kind of object.
    Nowhere,
    /// As a label: the API server selects by labels only.
    Label,
    /// As an annotation.
    Annotation,
    /// As either.
    LabelOrAnnotation,
}

/// When a setting takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// When the pod is next made: restart its workload.
    Restart,
    /// At once, in pods that run.
    Live,
}

impl Setting {
    /// The whole key.
    pub fn key(&self) -> String {
        format!("{KEY_PREFIX}{}", self.name)
    }

    /// Where it may stand, for people.
    pub fn places(&self) -> String {
        let on = |place: Place, object: &str| match place {
            Place::Nowhere => None,
            Place::Label => Some(format!("{object} (label)")),
            Place::Annotation => Some(format!("{object} (annotation)")),
            Place::LabelOrAnnotation => Some(format!("{object} (label or annotation)")),
        };
        let places = [on(self.namespace, "namespace"), on(self.pod, "pod")];
        places.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    pub(super) fn is(&self, key: &str) -> bool {
        key.strip_prefix(KEY_PREFIX) == Some(self.name)
    }
}

impl Place {
    pub(super) fn allows(self, kind: &str) -> bool {
        match self {
            Self::Nowhere => false,
            Self::Label => kind == "label",
            Self::Annotation => kind == "annotation",
            Self::LabelOrAnnotation => true,
        }
    }
}

impl Display for Effect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Restart => "restart",
            Self::Live => "live",
        })
    }
}

/// Kubernetes' own bound of ports in a pod is far lower; this keeps rules and messages small.
const MOST_ITEMS: usize = 200;

/// The key in the table that is nearest to a misspelled one.
pub(super) fn nearest(key: &str) -> String {
    let name: String = key.strip_prefix(KEY_PREFIX).unwrap_or(key).chars().take(64).collect();
    let near = SETTINGS.iter().min_by_key(|setting| distance(&name, setting.name));
    near.expect("the table is not empty").key()
}

/// How many characters must be changed, added or left out to make one of the other.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.chars().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.chars().count()]
}

pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "enabled" => Ok(true),
        "disabled" => Ok(false),
        _ => Err("it is neither yes nor no".to_owned()),
    }
}

fn parse<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn set<T: FromStr<Err: Display>>(target: &mut T, text: &str) -> Result<(), String> {
    *target = parse(text)?;
    Ok(())
}

fn too_many(found: usize) -> String {
    format!("{found} are too many: at most {MOST_ITEMS}; write wider networks")
}

fn exceptions(text: &str) -> Result<Vec<Exception>, String> {
    let items: Vec<_> = text.split_whitespace().collect();
    if items.len() > MOST_ITEMS { Err(too_many(items.len())) } else { items.into_iter().map(parse).collect() }
}

fn covered(base: &[Exception], pod: &[Exception]) -> bool {
    pod.iter().all(|inner| base.iter().any(|outer| outer.includes(inner)))
}

fn accounts(text: &str) -> Result<Vec<String>, String> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let checked = items.map(|item| {
        let ok = item.len() <= 253 && item.chars().all(valid);
        if ok { Ok(item.to_owned()) } else { Err(format!("{item:?} is no name of a ServiceAccount")) }
    });
    checked.collect()
}

fn image(text: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "./:@_-".contains(c);
    let ok = (1..=512).contains(&text.len())
        && text.chars().all(valid)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if ok { Ok(text.to_owned()) } else { Err("it is no name of an image".to_owned()) }
}

/// Checked here, since the filter itself takes any word for the name of a module.
fn log(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    if text.len() > 500 {
        return Err("it is longer than 500 characters".to_owned());
    }
    for item in text.split(',') {
        let (module, level) = item.rsplit_once('=').map_or(("", item), |(module, level)| (module, level));
        let named = !item.contains('=') || !module.is_empty();
        if !LEVELS.contains(&level) || !named || !module.chars().all(|c| c.is_ascii_alphanumeric() || "_:".contains(c))
        {
            return Err(format!("{item:?} is no level, and no module=level"));
        }
    }
    Ok(text.to_owned())
}

fn amount(text: &str) -> Result<Quantity, String> {
    let quantity = Quantity::parse(text)?;
    if quantity.is_zero() { Err("it must be more than 0".to_owned()) } else { Ok(quantity) }
}

fn request(amounts: &mut Amounts, text: &str) -> Result<(), String> {
    amounts.request = Some(amount(text)?);
    amounts.request_is_set = true;
    Ok(())
}

fn limit(amounts: &mut Amounts, text: &str) -> Result<(), String> {
    amounts.limit = Some(amount(text)?);
    Ok(())
}
