//! Manifests as people keep them: YAML or JSON, several documents in one text. Labels and annotations are set and
//! removed in the text itself, so that comments, order and style stay; what cannot be edited so is written anew. Pure.

mod documents;
mod edit;
mod node;
mod targets;

pub(crate) use documents::{parse, split};
pub(crate) use edit::{Change, edit};
pub(crate) use targets::{Kind, Target, at, targets};
