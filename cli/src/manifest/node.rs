//! A document as a tree that knows where in the text each part stands. Pure.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

use super::documents::options;

/// A value, and where its text begins and ends. Of a block mapping or sequence neither is relied on.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) body: Body,
}

/// A value.
#[derive(Debug)]
pub(crate) enum Body {
    /// Nothing: an empty value, or `null`.
    Null,
    /// Any other scalar.
    Scalar,
    /// Keys in the order of the text.
    Mapping(Vec<(Key, Node)>),
    /// Items.
    Sequence(Vec<Node>),
}

/// A key of a mapping, and where it stands.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Node {
    /// Reads one document.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let root: Spanned<Raw> =
            serde_saphyr::from_str_with_options(text, options()).map_err(|error| error.to_string())?;
        let root = Self::try_from(root)?;
        if root.fits(text) { Ok(root) } else { Err("its places in the text are not known".to_owned()) }
    }

    /// Whether all places are places of this text.
    fn fits(&self, text: &str) -> bool {
        let all = match &self.body {
            Body::Null | Body::Scalar => true,
            Body::Mapping(entries) => {
                entries.iter().all(|(key, node)| text.get(key.start..key.end).is_some() && node.fits(text))
            }
            Body::Sequence(items) => items.iter().all(|item| item.fits(text)),
        };
        all && text.get(self.start..self.end).is_some()
    }

    /// The value of a key.
    pub(crate) fn get(&self, name: &str) -> Option<(&Key, &Self)> {
        self.entries().iter().find(|(key, _)| key.name == name).map(|(key, node)| (key, node))
    }

    /// Keys and values; none where this is no mapping.
    pub(crate) fn entries(&self) -> &[(Key, Self)] {
        if let Body::Mapping(entries) = &self.body { entries } else { &[] }
    }

    /// Whether the text of this mapping or sequence is in braces or brackets.
    pub(crate) fn is_flow(&self, text: &str) -> bool {
        text[self.start..].starts_with(['{', '['])
    }
}

enum Raw {
    Null,
    Scalar,
    Mapping(Vec<(Spanned<String>, Spanned<Raw>)>),
    Sequence(Vec<Spanned<Raw>>),
}

impl TryFrom<Spanned<Raw>> for Node {
    type Error = String;
    fn try_from(raw: Spanned<Raw>) -> Result<Self, String> {
        let (start, end) = range(raw.referenced, raw.defined)?;
        let body = match raw.value {
            Raw::Null => Body::Null,
            Raw::Scalar => Body::Scalar,
            Raw::Mapping(entries) => {
                let entry = |(key, value): (Spanned<String>, Spanned<Raw>)| {
                    let (start, end) = range(key.referenced, key.defined)?;
                    Ok((Key { name: key.value, start, end }, Self::try_from(value)?))
                };
                Body::Mapping(entries.into_iter().map(entry).collect::<Result<_, String>>()?)
            }
            Raw::Sequence(items) => Body::Sequence(items.into_iter().map(Self::try_from).collect::<Result<_, _>>()?),
        };
        Ok(Self { start, end, body })
    }
}

/// Where it is used, not where an alias was defined: that text belongs to others too.
fn range(referenced: Location, _defined: Location) -> Result<(usize, usize), String> {
    let span = referenced.span();
    let range = span.byte_offset().zip(span.byte_len()).and_then(|(start, length)| {
        let start = usize::try_from(start).ok()?;
        Some((start, start + usize::try_from(length).ok()?))
    });
    range.ok_or_else(|| "its places in the text are not known".to_owned())
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Raw, E> {
        Ok(Raw::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Raw, E> {
        Ok(Raw::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Raw, E> {
        Ok(Raw::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<Raw, E> {
        Ok(Raw::Scalar)
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element()? {
            all.push(item);
        }
        Ok(Raw::Sequence(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut all = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            all.push(entry);
        }
        Ok(Raw::Mapping(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_knows_its_place() {
        let text = "# é first\nmetadata:\n  labels: {app: 'web' }\nitems:\n- a: x y\n  b:\n";
        let root = Node::parse(text).expect("valid");
        let (key, metadata) = root.get("metadata").expect("there");
        assert_eq!(&text[key.start..key.end], "metadata");
        let labels = metadata.get("labels").expect("there").1;
        assert!(labels.is_flow(text) && !metadata.is_flow(text));
        let (app, web) = labels.get("app").expect("there");
        assert_eq!((&text[app.start..app.end], &text[web.start..web.end]), ("app", "'web'"));
        let Body::Sequence(items) = &root.get("items").expect("there").1.body else { panic!("a sequence") };
        let a = items[0].get("a").expect("there").1;
        assert_eq!(&text[a.start..a.end], "x y");
        assert!(matches!(items[0].get("b").expect("there").1.body, Body::Null));
    }
}
