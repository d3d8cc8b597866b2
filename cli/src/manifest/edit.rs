//! Sets and removes labels and annotations in the text of a document, and touches nothing else in it. Pure.
//!
//! The parser says where things stand; only lines or braces of the mapping in question are changed. What came out is
//! read again and compared with what should have: where they differ (an anchor that others use too, a style that was
//! not foreseen) the text is not used, and the document is written anew, without its comments.

use std::ops::Range;

use serde_json::{Map, Value, json};

use super::{
    documents::parse,
    node::{Body, Key, Node},
    targets::at,
};

/// What is to be so in `metadata.<field>` of the object at `path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// Keys, and indices of sequences.
    pub(crate) path: Vec<String>,
    /// `labels` or `annotations`.
    pub(crate) field: &'static str,
    /// The label or annotation.
    pub(crate) key: &'static str,
    /// Its value; none removes it.
    pub(crate) value: Option<String>,
}

/// A document after changes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Edited {
    pub(crate) text: String,
    /// Whether the text is written anew: then comments, order and style are not those of before.
    pub(crate) anew: bool,
}

/// Makes the changes. The text has to be a document that can be read.
pub(crate) fn edit(text: &str, changes: &[Change]) -> Result<Edited, String> {
    let mut edited = Edited { text: text.to_owned(), anew: false };
    for change in changes {
        let before = parse(&edited.text)?;
        let mut after = before.clone();
        change.apply(&mut after);
        if after == before {
            continue;
        }
        let in_place = change.splice(&edited.text).filter(|text| parse(text).as_ref() == Ok(&after));
        edited = match in_place {
            Some(text) => Edited { text, ..edited },
            None => Edited { text: hauberk_deploy::document(&after), anew: true },
        };
    }
    Ok(edited)
}

impl Change {
    /// What the change means.
    fn apply(&self, document: &mut Value) {
        let Some(owner) = at(document, &self.path).and_then(Value::as_object_mut) else { return };
        match &self.value {
            Some(value) => {
                let metadata = child(owner, "metadata");
                child(metadata, self.field).insert(self.key.to_owned(), json!(value));
            }
            None => self.remove(owner),
        }
    }

    /// Removes also what is empty then: nobody wrote it but for this.
    fn remove(&self, owner: &mut Map<String, Value>) {
        let Some(metadata) = owner.get_mut("metadata").and_then(Value::as_object_mut) else { return };
        let Some(field) = metadata.get_mut(self.field).and_then(Value::as_object_mut) else { return };
        if field.remove(self.key).is_none() || !field.is_empty() {
            return;
        }
        metadata.remove(self.field);
        if metadata.is_empty() {
            owner.remove("metadata");
        }
    }

    /// The text with the change in it; none where it cannot be made in place.
    fn splice(&self, text: &str) -> Option<String> {
        let root = Node::parse(text).ok()?;
        let mut owner = (None, &root);
        for step in &self.path {
            owner = match &owner.1.body {
                Body::Sequence(items) => (None, items.get(step.parse::<usize>().ok()?)?),
                _ => owner.1.get(step).map(|(key, node)| (Some(key), node))?,
            };
        }
        let levels = [owner, level(owner, "metadata")?, level(level(owner, "metadata")?, self.field)?];
        let splice = match &self.value {
            Some(value) => self.insertion(text, levels, value)?,
            None => self.removal(text, levels)?,
        };
        let (before, after) = (text.get(..splice.0.start)?, text.get(splice.0.end..)?);
        (splice.0.start <= splice.0.end).then(|| format!("{before}{}{after}", splice.1))
    }

    /// Into the innermost of the three mappings that is there.
    fn insertion(&self, text: &str, [owner, metadata, field]: [Level<'_>; 3], value: &str) -> Option<Splice> {
        if let Some((_, old)) = field.1.get(self.key) {
            let scalar = matches!(old.body, Body::Scalar);
            return scalar.then(|| (old.start..old.end, like(&text[old.start..old.end], value)));
        }
        let levels: [(Level<'_>, &[&str]); 3] =
            [(field, &[]), (metadata, &[self.field]), (owner, &["metadata", self.field])];
        let (place, missing) = levels.into_iter().find(|(level, _)| level.1.start != NOWHERE)?;
        if place.1.is_flow(text) {
            Some(self.braces_into(text, place.1, missing, value))
        } else {
            self.lines_into(text, place, missing, value)
        }
    }

    /// Lines after that of the mapping's own key, as far in as the mapping's first key.
    fn lines_into(&self, text: &str, (key, node): Level<'_>, missing: &[&str], value: &str) -> Option<Splice> {
        let key = key?;
        let line = line_of(text, key.start);
        let rest = text.get(key.end..line.end)?.trim_start_matches(['"', '\'', ' ']).strip_prefix(':')?.trim();
        if !(rest.is_empty() || rest.starts_with(['#', '&'])) {
            return None;
        }
        let column = match node.entries().first() {
            Some((first, _)) => column(text, first.start),
            None => column(text, key.start) + 2,
        };
        let ending = if text[line.clone()].ends_with("\r\n") { "\r\n" } else { "\n" };
        let mut lines = if text[line.clone()].ends_with('\n') { String::new() } else { ending.to_owned() };
        for (depth, key) in missing.iter().enumerate() {
            lines += &format!("{}{key}:{ending}", " ".repeat(column + 2 * depth));
        }
        lines += &format!("{}{}: {}{ending}", " ".repeat(column + 2 * missing.len()), self.key, like("", value));
        Some((line.end..line.end, lines))
    }

    /// First behind the opening brace, in the style of the document: quoted where it is JSON, with the space that the
    /// first key has before it.
    fn braces_into(&self, text: &str, node: &Node, missing: &[&str], value: &str) -> Splice {
        let at = node.start + 1;
        let json = text.trim_start().starts_with('{');
        let colon = if json && !text.contains("\": ") { ":" } else { ": " };
        let word = |word: &str| if json { json!(word).to_string() } else { like("", word) };
        let entry = format!("{}{colon}{}", word(self.key), word(value));
        let entry = missing.iter().rev().fold(entry, |inner, key| format!("{}{colon}{{{inner}}}", word(key)));
        let Some((first, _)) = node.entries().first() else { return (at..at, entry) };
        let space = text.get(at..first.start).unwrap_or_default();
        let between = if space.contains('\n') || colon == ":" { "" } else { " " };
        // The first key's own space comes before ours, and what stands between comes before the first key.
        if space.trim().is_empty() && !space.is_empty() {
            (at..first.start, format!("{space}{entry},{}", if space.contains('\n') { space } else { between }))
        } else {
            (at..at, format!("{entry},{between}"))
        }
    }

    /// The line or the entry of the key, or of the mapping that would be empty without it.
    fn removal(&self, text: &str, [owner, metadata, field]: [Level<'_>; 3]) -> Option<Splice> {
        let mut gone = (field.1, self.key);
        if field.1.entries().len() == 1 {
            gone = (metadata.1, self.field);
            if metadata.1.entries().len() == 1 {
                gone = (owner.1, "metadata");
            }
        }
        let (mapping, name) = gone;
        let index = mapping.entries().iter().position(|(key, _)| key.name == name)?;
        let (key, _) = &mapping.entries()[index];
        let value = field.1.get(self.key)?.1;
        let next = mapping.entries().get(index + 1).map(|(key, _)| key.start);
        if mapping.is_flow(text) {
            let start = key.start;
            return Some(match (next, index) {
                (Some(next), _) => (start..next, String::new()),
                (None, 0) => (mapping.start + 1..closing(text, value.end, mapping, field.1)?, String::new()),
                (None, _) => {
                    let comma = text[..start].rfind(',')?;
                    (comma..closing(text, value.end, mapping, field.1)?, String::new())
                }
            });
        }
        let lines = line_of(text, key.start).start..line_of(text, value.end.max(key.end)).end;
        // A key behind a dash begins the item: its line cannot go.
        text[lines.start..key.start].trim().is_empty().then(|| (lines, String::new()))
    }
}

type Level<'a> = (Option<&'a Key>, &'a Node);
type Splice = (Range<usize>, String);

/// The start of a mapping that is not there.
const NOWHERE: usize = usize::MAX;
static MISSING: Node = Node { start: NOWHERE, end: NOWHERE, body: Body::Null };

/// The mapping under a key, or that it is missing; none where something else stands there.
fn level<'a>((_, parent): Level<'a>, name: &str) -> Option<Level<'a>> {
    match parent.get(name) {
        None => Some((None, &MISSING)),
        Some((key, node)) => matches!(node.body, Body::Mapping(_) | Body::Null).then_some((Some(key), node)),
    }
}

fn child<'a>(map: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let value = map.entry(name).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("made one if it was none")
}

/// A value, quoted as the one that it replaces is. Values of ours are words; as such `disabled` and `true` differ.
fn like(old: &str, value: &str) -> String {
    match old.chars().next() {
        Some(quote @ ('"' | '\'')) => format!("{quote}{value}{quote}"),
        _ => hauberk_deploy::document(&json!(value)).trim_end().to_owned(),
    }
}

/// The line that holds this place, with its line break.
fn line_of(text: &str, at: usize) -> Range<usize> {
    let start = text[..at].rfind('\n').map_or(0, |end| end + 1);
    let end = text[at..].find('\n').map_or(text.len(), |length| at + length + 1);
    start..end
}

fn column(text: &str, at: usize) -> usize {
    text[line_of(text, at).start..at].chars().count()
}

/// Behind the value, or behind the brace of the mapping that held it alone. Where more braces stand between, too little
/// is cut, which is seen when the text is read again.
fn closing(text: &str, end: usize, mapping: &Node, innermost: &Node) -> Option<usize> {
    if std::ptr::eq(mapping, innermost) {
        return Some(end);
    }
    Some(end + text[end..].find('}')? + 1)
}

#[cfg(test)]
mod tests;
