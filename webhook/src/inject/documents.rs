//! `docs/annotations.md`, made from the table of settings.

use hauberk_mesh::Limits;

use super::{Place, SETTINGS};

/// The document, whole.
pub fn annotations() -> String {
    let mut text = String::from(HEAD);
    text += "\n| `hauberk.dev/…` | on a namespace | on a pod | what it does | valid | default | takes effect |\n";
    text += "| --- | --- | --- | --- | --- | --- | --- |\n";
    for setting in SETTINGS {
        text += &format!(
            "| `{}` | {} | {} | {} | {} | {} | {} |\n",
            setting.name,
            place(setting.namespace),
            place(setting.pod),
            setting.says,
            setting.valid,
            setting.default,
            setting.effect,
        );
    }
    text += LIMITS;
    text += &Limits::NAMES.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    text += ".\n";
    text += TAIL;
    text
}

fn place(place: Place) -> &'static str {
    match place {
        Place::Nowhere => "",
        Place::Label => "label",
        Place::Annotation => "annotation",
        Place::LabelOrAnnotation => "label or annotation",
    }
}

const HEAD: &str = "\
# Labels and annotations

Made from the table in `webhook/src/inject/settings.rs`; do not edit.
";

const LIMITS: &str = "
## Limits

The names: ";

const TAIL: &str = "";
