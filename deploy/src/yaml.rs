//! Writes JSON values as YAML in block style, the way people read manifests. Pure, and the same bytes for the same
//! value: keys of a mapping come in the order of kubectl (`apiVersion`, `kind`, `metadata`, then the alphabet).

use serde_json::{Map, Value};

/// Documents, each after a line `---`.
pub fn stream<'a>(objects: impl IntoIterator<Item = &'a Value>) -> String {
    objects.into_iter().map(|object| format!("---\n{}", document(object))).collect()
}

/// One document, with a line break at its end.
pub fn document(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => mapping(&mut text, map, 0),
        Value::Array(items) if !items.is_empty() => sequence(&mut text, items, 0),
        other => text += &(scalar(other) + "\n"),
    }
    text
}

fn mapping(text: &mut String, map: &Map<String, Value>, indent: usize) {
    for (i, key) in keys(map).into_iter().enumerate() {
        // The first key of a sequence's item stands behind its dash.
        if i > 0 || !text.ends_with("- ") {
            text.push_str(&" ".repeat(indent));
        }
        text.push_str(&quote(key));
        text.push(':');
        match &map[key] {
            Value::Object(inner) if !inner.is_empty() => {
                text.push('\n');
                mapping(text, inner, indent + 2);
            }
            Value::Array(items) if !items.is_empty() => {
                text.push('\n');
                sequence(text, items, indent);
            }
            Value::String(lines) if is_block(lines) => block(text, lines, indent + 2),
            other => text.push_str(&format!(" {}\n", scalar(other))),
        }
    }
}

fn sequence(text: &mut String, items: &[Value], indent: usize) {
    for (i, item) in items.iter().enumerate() {
        if i > 0 || !text.ends_with("- ") {
            text.push_str(&" ".repeat(indent));
        }
        text.push_str("- ");
        match item {
            Value::Object(inner) if !inner.is_empty() => mapping(text, inner, indent + 2),
            Value::Array(inner) if !inner.is_empty() => sequence(text, inner, indent + 2),
            other => text.push_str(&(scalar(other) + "\n")),
        }
    }
}

fn keys(map: &Map<String, Value>) -> Vec<&String> {
    let rank = |key: &str| ["apiVersion", "kind", "metadata"].iter().position(|first| *first == key).unwrap_or(3);
    let mut keys: Vec<_> = map.keys().collect();
    keys.sort_by(|a, b| (rank(a), a).cmp(&(rank(b), b)));
    keys
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text),
        // Empty collections are written alike in JSON and YAML, as are numbers, booleans and null.
        other => other.to_string(),
    }
}

/// A text as a scalar: plain where no reader can take it for anything else.
pub(crate) fn quote(text: &str) -> String {
    if is_plain(text) {
        return text.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            ' '..='~' => quoted.push(c),
            c if is_printable(c) => quoted.push(c),
            c => quoted.push_str(&format!("\\U{:08X}", u32::from(c))),
        }
    }
    quoted + "\""
}

fn is_plain(text: &str) -> bool {
    /// What some reader of YAML takes for a boolean or for nothing.
    const WORDS: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    let starts = |c: char| c.is_ascii_alphabetic() || c == '/';
    let goes_on = |c: char| c.is_ascii_alphanumeric() || "/._- ".contains(c);
    text.starts_with(starts)
        && text.chars().all(goes_on)
        && !text.ends_with(' ')
        && !WORDS.contains(&text.to_ascii_lowercase().as_str())
}

fn is_printable(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{85}' | '\u{a0}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// Whether a text can be written as lines: several of them, none that would be read back otherwise.
fn is_block(text: &str) -> bool {
    let lines = text.strip_suffix('\n').unwrap_or_default();
    let odd = |line: &str| line.is_empty() || line.ends_with(' ') || !line.chars().all(is_printable);
    lines.contains('\n') && !lines.starts_with(' ') && !lines.split('\n').any(odd)
}

fn block(text: &mut String, lines: &str, indent: usize) {
    text.push_str(" |\n");
    for line in lines.lines() {
        text.push_str(&format!("{}{line}\n", " ".repeat(indent)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn writes_what_people_would() {
        let value = json!({
            "spec": { "ports": [{ "port": 80, "name": "http" }], "args": ["--a=b", "on"], "none": {}, "nested": [["a"], []] },
            "kind": "Thing",
            "data": { "config.json": "{\n  \"a\": 1\n}\n" },
            "apiVersion": "v1",
        });
        insta::assert_snapshot!(document(&value), @r#"
        apiVersion: v1
        kind: Thing
        data:
          config.json: |
            {
              "a": 1
            }
        spec:
          args:
          - "--a=b"
          - "on"
          nested:
          - - a
          - []
          none: {}
          ports:
          - name: http
            port: 80
        "#);
    }

    fn values() -> impl Strategy<Value = Value> {
        let text = prop_oneof!["[a-z0-9:# \"'\\-{}\\[\\]\n\t|>&*!%@,?~.]{0,12}", any::<String>(), "(a|  b|\n){0,5}\n"];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            text.prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[a-zA-Z./:# \\-]{1,8}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(value in values()) {
            let text = document(&value);
            let read: Value = serde_saphyr::from_str(&text).map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
            prop_assert_eq!(read, value, "{}", text);
        }
    }
}
