//! The checker fails on every fault that it knows, and on no document without one.

use super::*;

const LINES: usize = 72;

/// A document of all lines, each `not-done`, but for what `edit` makes of the text of one.
fn document(id: &str, edit: impl Fn(&str) -> String) -> Proof {
    let mut text = String::new();
    for (letter, count, issue) in SECTIONS {
        for number in 1..=count {
            let this = format!("{letter}{number:02}");
            let line =
                format!("[[line]]\nid = \"{this}\"\nissue = \"{issue}\"\nsays = \"It holds.\"\nnot-done = \"later\"\n");
            text.push_str(&if this == id { edit(&line) } else { line });
        }
    }
    Proof::parse(&text).expect("a document")
}

/// The whole document, in which `D02` names these tests.
fn naming(tests: &str) -> Proof {
    document("D02", |line| line.replace("not-done = \"later\"", &format!("tests = [{tests}]")))
}

fn messages(faults: &[Fault]) -> Vec<String> {
    faults.iter().map(ToString::to_string).collect()
}

fn functions(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_whole_document_is_in_order() {
    let proof = naming("\"demo it_runs\", \"hauberk_proxy wire::tests::it_holds\"");
    assert_eq!(proof.lint(&functions(&["it_runs", "it_holds", "another"])), []);
    assert_eq!(proof.shown(), (1, LINES));
}

#[test]
fn every_line_must_be_there_once_and_in_order() {
    for (id, edit, message) in [
        ("D02", "", "line 2 is D03, D02 expected"),
        ("E01", "", "line 72 is nothing, E01 expected"),
        ("D02", "{}{}", "line 3 is D02, D03 expected"),
        ("D02", "{}[[line]]\nid = \"X1\"\nissue = \"traffic\"\nsays = \"a\"\nnot-done = \"b\"\n", "line 3 is X1"),
        (
            "E01",
            "{}[[line]]\nid = \"E02\"\nissue = \"e2e\"\nsays = \"a\"\nnot-done = \"b\"\n",
            "line 73 is E02, nothing",
        ),
    ] {
        let faults = messages(&document(id, |line| edit.replace("{}", line)).lint(&BTreeSet::new()));
        assert!(faults.len() == 1 && faults[0].contains(message), "{message}: {faults:?}");
    }
}

#[test]
fn a_line_must_say_what_and_have_either_tests_or_a_reason() {
    for (from, to, message) in [
        ("not-done = \"later\"", "", "I01: has neither tests nor a reason"),
        ("not-done = \"later\"", "tests = []", "I01: has neither tests nor a reason"),
        ("\"later\"", "\" \"", "I01: has neither tests nor a reason"),
        ("\"later\"", "\"later\"\ntests = [\"demo it_runs\"]", "I01: has tests, and a reason"),
        ("\"later\"", "\"\"\ntests = [\"demo it_runs\"]", "I01: has tests, and a reason"),
        ("It holds.", "", "I01: says nothing"),
        ("traffic", "faults", "I01: issue is \"faults\", \"traffic\" expected"),
    ] {
        let faults = messages(&document("I01", |line| line.replace(from, to)).lint(&functions(&["it_runs"])));
        assert!(faults.len() == 1 && faults[0].contains(message), "{message}: {faults:?}");
    }
}

#[test]
fn a_named_test_must_be_a_name_and_exist() {
    for (tests, message) in [
        ("\"demo it_walks\"", "D02: no source has the test \"demo it_walks\""),
        ("\"demo tests::it_walks\"", "D02: no source has the test"),
        ("\"it_runs\"", "D02: \"it_runs\" is not the name of a test"),
        ("\"demo  it_runs\"", "is not the name of a test"),
        ("\"demo a b::it_runs\"", "is not the name of a test"),
        ("\" it_runs\"", "is not the name of a test"),
        ("\"demo it_runs\", \"demo it_runs\"", "D02: names \"demo it_runs\" twice"),
    ] {
        let faults = messages(&naming(tests).lint(&functions(&["it_runs"])));
        assert!(faults.len() == 1 && faults[0].contains(message), "{message}: {faults:?}");
    }
}

#[test]
fn a_document_of_another_format_is_refused() {
    for text in ["line = 1", "[[line]]\nid = \"D01\"", "[[line]]\nid = \"D01\"\nissue = \"a\"\nsays = \"b\"\ntest = []"]
    {
        let error = Proof::parse(text).expect_err(text).to_string();
        assert!(error.starts_with("docs/proof.toml: TOML parse error"), "{error}");
    }
}

#[test]
fn only_functions_below_a_test_attribute_are_tests() {
    let source = "
        #[test]
        fn plain() { helper(); }
        fn helper() {}
        #[tokio::test(flavor = \"current_thread\")]
        async fn with_a_runtime() {}
        /// Why.
        #[test]
        #[cfg(unix)]
        // A comment.
        pub fn with_more_above() {}
        proptest! {
            #[test]
            fn a_law(bytes: Vec<u8>) { }
            fn no_law(bytes: Vec<u8>) { }
        }
        #[test]
        mod between { }
        fn after_another_item() {}
        #[latest]
        fn with_another_attribute() {}
        #[cfg(test)]
        fn only_built_for_tests() {}
        // #[test]
        fn switched_off() {}
    ";
    assert_eq!(test_functions(source), functions(&["plain", "with_a_runtime", "with_more_above", "a_law"]));
}

const LOG: &str = "   Compiling hauberk-tests v0.1.0
warning: `demo` (test) generated 1 warning
     Running unittests src/lib.rs (/cache/target/debug/deps/hauberk_proxy-027ba4b2a8ff4622)

running 4 tests
test wire::tests::it_holds ... ok
test wire::tests::it_fails ... FAILED
test wire::tests::it_waits ... ignored
test wire::tests::it_panics - should panic ... ok
     Running tests/two-words.rs (target/debug/deps/two-words-1122334455667788)
test it_runs ... ok
test cut_off ...
   Doc-tests hauberk_mesh
test mesh/src/lib.rs - (line 3) ... ok
test it_is_documented ... ok
";

#[test]
fn what_passed_is_read_from_the_output_of_cargo() {
    let expected = ["hauberk_proxy wire::tests::it_holds", "hauberk_proxy wire::tests::it_panics", "two-words it_runs"];
    assert_eq!(passed(LOG), functions(&expected));
    assert_eq!(passed(""), BTreeSet::new());
}

#[test]
fn a_named_test_must_have_run_and_passed_in_its_own_binary() {
    let passed = passed(LOG);
    assert_eq!(
        naming("\"two-words it_runs\", \"hauberk_proxy wire::tests::it_holds\"").not_run(Run::Test, &passed),
        []
    );
    for name in [
        "two-words wire::tests::it_holds",
        "hauberk_proxy it_holds",
        "hauberk_proxy wire::tests::it_fails",
        "hauberk_proxy wire::tests::it_waits",
        "two-words cut_off",
        "two-words it_is_documented",
        "other it_runs",
    ] {
        let faults = messages(&naming(&format!("\"{name}\", \"two-words it_runs\"")).not_run(Run::Test, &passed));
        assert_eq!(faults, [format!("D02: the test {name:?} did not run and pass")]);
    }
}

#[test]
fn what_make_e2e_runs_is_looked_for_there_and_nowhere_else() {
    let proof = document("K06", |line| line.replace("not-done = \"later\"", "e2e = [\"full it_runs\"]"));
    assert_eq!(proof.lint(&functions(&["it_runs"])), []);
    assert_eq!(proof.shown(), (1, LINES));
    assert_eq!(messages(&proof.lint(&functions(&[]))), ["K06: no source has the test \"full it_runs\""]);
    assert_eq!(proof.not_run(Run::Test, &BTreeSet::new()), []);
    assert_eq!(
        messages(&proof.not_run(Run::E2e, &BTreeSet::new())),
        ["K06: the test \"full it_runs\" did not run and pass"]
    );
}
