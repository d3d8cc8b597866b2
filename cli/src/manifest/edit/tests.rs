//! Styles that people write, each there and back; and the laws of all of them.

use proptest::prelude::*;

use super::*;

fn label(value: Option<&str>) -> Change {
    Change {
        path: vec!["spec".to_owned(), "template".to_owned()],
        field: "labels",
        key: "hauberk.dev/inject",
        value: value.map(str::to_owned),
    }
}

/// What a label makes of a text, and that taking it away again gives the text of before.
fn there_and_back(text: &str) -> String {
    let with = edit(text, &[label(Some("enabled"))]).expect("valid");
    assert!(!with.anew, "{}", with.text);
    assert_eq!(edit(&with.text, &[label(Some("enabled"))]).expect("valid").text, with.text, "once is enough");
    let without = edit(&with.text, &[label(None)]).expect("valid");
    assert!(!without.anew, "{}", without.text);
    assert_eq!(without.text, text);
    with.text
}

#[test]
fn comments_order_and_style_stay() {
    let text = "# web\nspec:\n  template:\n    metadata: # ours\n      labels:\n        # first\n        app: web # here\n      name: x\n    spec: {}\n";
    let with = "# web\nspec:\n  template:\n    metadata: # ours\n      labels:\n        hauberk.dev/inject: enabled\n        # first\n        app: web # here\n      name: x\n    spec: {}\n";
    assert_eq!(there_and_back(text), with);
}

#[test]
fn what_is_missing_is_added_at_its_depth() {
    let text = "spec:\n    template:\n        spec: {}\n";
    assert_eq!(
        there_and_back(text),
        "spec:\n    template:\n        metadata:\n          labels:\n            hauberk.dev/inject: enabled\n        spec: {}\n"
    );
    let text = "spec:\n  template:\n    metadata:\n      annotations:\n        a: b\n    spec: {}";
    assert_eq!(
        there_and_back(text),
        "spec:\n  template:\n    metadata:\n      labels:\n        hauberk.dev/inject: enabled\n      annotations:\n        a: b\n    spec: {}"
    );
}

#[test]
fn line_breaks_of_windows_stay() {
    let text = "spec:\r\n  template:\r\n    metadata:\r\n      labels:\r\n        app: web\r\n";
    assert!(
        there_and_back(text).contains("      labels:\r\n        hauberk.dev/inject: enabled\r\n        app: web\r\n")
    );
}

#[test]
fn json_stays_json() {
    let text = "{\n  \"spec\": {\n    \"template\": {\n      \"metadata\": {\n        \"labels\": {\n          \"app\": \"web\"\n        }\n      }\n    }\n  }\n}\n";
    let with = there_and_back(text);
    assert!(
        with.contains("\"labels\": {\n          \"hauberk.dev/inject\": \"enabled\",\n          \"app\": \"web\"\n"),
        "{with}"
    );
    serde_json::from_str::<Value>(&with).expect("JSON");
    let with = there_and_back(r#"{"spec":{"template":{"spec":{"a":1}}}}"#);
    assert_eq!(
        with,
        r#"{"spec":{"template":{"metadata":{"labels":{"hauberk.dev/inject":"enabled"}},"spec":{"a":1}}}}"#
    );
}

#[test]
fn braces_stay_braces() {
    let with = there_and_back("spec:\n  template:\n    metadata: {labels: {app: web, tier: 'x'}, name: y}\n");
    assert_eq!(
        with,
        "spec:\n  template:\n    metadata: {labels: {hauberk.dev/inject: enabled, app: web, tier: 'x'}, name: y}\n"
    );
}

#[test]
fn a_value_that_is_there_is_replaced_in_its_own_quotes() {
    let text =
        "spec:\n  template:\n    metadata:\n      labels:\n        'hauberk.dev/inject': \"disabled\" # for now\n";
    let with = edit(text, &[label(Some("enabled"))]).expect("valid");
    assert_eq!(with, Edited { text: text.replace("disabled", "enabled"), anew: false });
}

#[test]
fn what_cannot_be_edited_in_place_is_written_anew_and_said() {
    for text in [
        "spec:\n  template: &t\n    metadata:\n      labels: {}\n  other: *t\n",
        "spec: {template: &t {metadata: {labels: {a: b}}}, other: *t}\n",
        "spec:\n  template:\n    metadata:\n      labels: null\n",
        "spec:\n  template:\n    ? metadata\n    : labels:\n        a: b\n",
    ] {
        let with = edit(text, &[label(Some("enabled"))]).expect(text);
        let mut expected = parse(text).expect(text);
        label(Some("enabled")).apply(&mut expected);
        assert_eq!(parse(&with.text).as_ref(), Ok(&expected), "{}", with.text);
    }
}

/// A template in one of many styles, with text around it that is in the way.
fn manifests() -> impl Strategy<Value = String> {
    let labels = prop_oneof![
        Just(""),
        Just("      labels:\n        app: web\n"),
        Just("      labels:\n      # é\n      - x\n"),
        Just("      labels:   # none yet\n"),
        Just("      \"labels\": {'app': \"w\u{e9}b\" , b: c}\n"),
        Just("      labels: {\n        app: web,\n      }\n"),
        Just("      labels: {}\n"),
        Just("      labels: &l {app: web}\n      annotations: *l\n"),
        Just("      labels: !!map\n        app: web\n"),
        Just("      labels: ~\n"),
    ];
    let before =
        prop_oneof![Just(""), Just("# ünï\n"), Just("\u{feff}"), Just("%YAML 1.2\n---\n"), Just("a: |\n  labels:\n")];
    let after = prop_oneof![Just(""), Just("      name: x"), Just("    spec: {}\n"), Just("...\n"), Just("  # end\n")];
    (before, labels, after, any::<bool>()).prop_map(|(before, labels, after, windows)| {
        let text = format!("{before}spec:\n  template:\n    metadata:\n{labels}{after}");
        if windows { text.replace('\n', "\r\n") } else { text }
    })
}

proptest! {
    #[test]
    fn whatever_the_style_the_meaning_is_the_wanted_one_and_comes_back(text in manifests()) {
        let Ok(before) = parse(&text) else { return Ok(()) };
        let with = edit(&text, &[label(Some("enabled"))]).map_err(TestCaseError::fail)?;
        let mut expected = before.clone();
        label(Some("enabled")).apply(&mut expected);
        prop_assert_eq!(parse(&with.text), Ok(expected.clone()), "{}", with.text);
        let without = edit(&with.text, &[label(None)]).map_err(TestCaseError::fail)?;
        label(None).apply(&mut expected);
        prop_assert_eq!(parse(&without.text), Ok(expected), "{}", without.text);
    }

    #[test]
    fn no_text_panics(text in "[a-z{}\\[\\]:,&*!|>#'\"%@? \u{e9}\u{feff}\r\n\t-]{0,60}", joined in any::<bool>()) {
        let text = if joined { format!("spec: {{template: {text}}}") } else { format!("spec:\n  template:\n    {text}") };
        let _ = edit(&text, &[label(Some("enabled"))]);
        let _ = edit(&text, &[label(None)]);
    }
}
