//! A stream of YAML documents as pieces of text that, joined, are the stream again. Pure.

use serde_json::Value;

/// One document: its text, from behind the line `---` to before the next.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Document {
    /// The separator before it; empty before the first, where there is none.
    pub(crate) separator: String,
    /// The document itself.
    pub(crate) text: String,
}

/// Cuts at lines `---`. Inside a document there can be none: not even a block of text may hold one.
pub(crate) fn split(stream: &str) -> Vec<Document> {
    let mut documents = vec![Document { separator: String::new(), text: String::new() }];
    for line in stream.split_inclusive('\n') {
        // What follows on the same line belongs to the document, and no manifest is written so: it is left whole.
        let separator = line.strip_prefix("---").is_some_and(|rest| {
            let rest = rest.trim();
            rest.is_empty() || rest.starts_with('#')
        });
        if separator {
            documents.push(Document { separator: line.to_owned(), text: String::new() });
        } else if let Some(last) = documents.last_mut() {
            last.text.push_str(line);
        }
    }
    documents
}

/// Reads one document as the API server's tools do: `0644` is octal.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str_with_options(text, options()).map_err(|error| error.to_string())
}

pub(crate) fn options() -> serde_saphyr::Options {
    serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cuts_at_separators_and_nowhere_else() {
        let texts = |stream: &str| split(stream).into_iter().map(|document| document.text).collect::<Vec<_>>();
        assert_eq!(texts("a: 1\n---\nb: |\n  ---\n  x\n--- # two\nc: 3\n"), ["a: 1\n", "b: |\n  ---\n  x\n", "c: 3\n"]);
        assert_eq!(texts("---\na: 1\n"), ["", "a: 1\n"]);
        assert_eq!(texts("---not\n----\n"), ["---not\n----\n"]);
    }

    #[test]
    fn numbers_are_read_as_the_api_servers_tools_read_them() {
        assert_eq!(parse("mode: 0644\n").expect("valid")["mode"], 420);
    }

    proptest! {
        #[test]
        fn the_pieces_are_the_stream(stream in "(---|a: 1|#|\n| |\r\n){0,12}") {
            let joined: String = split(&stream).into_iter().map(|document| document.separator + &document.text).collect();
            prop_assert_eq!(joined, stream);
        }
    }
}
