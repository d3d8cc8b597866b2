//! The CA's directory: made once, followed as it changes, never made over.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, SystemTime},
};

use hauberk_identity::{
    Credentials, SecretKey, TrustBundle,
    server::{Ca, CaFault, Lifetimes, rotation},
};
use tempfile::TempDir;

use crate::support::*;

fn open(dir: &TempDir) -> Result<Ca, CaFault> {
    Ca::open_or_create(dir.path(), Lifetimes::default())
}

fn fresh() -> (TempDir, Ca) {
    let dir = TempDir::new().expect("a directory");
    let ca = open(&dir).expect("made");
    (dir, ca)
}

#[test]
fn a_ca_is_made_once_and_for_its_owner_only() {
    let (dir, first) = fresh();
    let again = open(&dir).expect("opened");
    assert_eq!(again.bundle().roots(), first.bundle().roots());
    assert_eq!(again.bundle().generation(), 1);
    for file in std::fs::read_dir(dir.path()).expect("there") {
        let file = file.expect("there");
        let name = file.file_name().into_string().expect("text");
        let mode = file.metadata().expect("there").permissions().mode() & 0o777;
        assert!(mode == 0o600 || name == ".lock", "{name}: {mode:o}");
    }
}

#[test]
fn a_directory_that_lost_a_file_is_a_fault_and_never_a_first_start() {
    for lost in ["root.pem", "root.key", "issuer.pem", "issuer.key", "bundle.pem", "generation"] {
        let (dir, _) = fresh();
        std::fs::remove_file(dir.path().join(lost)).expect("removed");
        let error = open(&dir).expect_err(lost).to_string();
        assert!(error.contains(&format!("but not {lost}: restore what is missing")), "{error}");
        assert!(!dir.path().join(lost).exists(), "nothing was made");
    }
}

#[test]
fn a_change_of_the_bundle_is_a_new_generation_also_across_a_restart() {
    let (dir, ca) = fresh();
    assert!(!ca.reload().expect("unchanged"));
    let (lifetimes, now) = (Lifetimes::default(), SystemTime::now());
    rotation::publish_next_root(dir.path(), &lifetimes, now).expect("published");
    assert!(ca.reload().expect("changed"));
    assert_eq!((ca.bundle().generation(), ca.bundle().roots().len()), (2, 2));
    assert!(!ca.reload().expect("unchanged"));
    drop(ca);
    // While nobody looks.
    rotation::sign_under_next_root(dir.path(), &lifetimes, now).expect("signed");
    rotation::drop_other_roots(dir.path()).expect("dropped");
    for _ in 0..2 {
        let ca = open(&dir).expect("opened");
        assert_eq!((ca.bundle().generation(), ca.bundle().roots().len()), (3, 1));
    }
}

type Edit = fn(&Path);

#[test]
fn a_bad_edit_keeps_the_last_good_state_and_is_reported_once() {
    let edits: [(&str, Edit); 6] = [
        ("bundle.pem", |path| std::fs::write(path, "").expect("written")),
        ("bundle.pem", |path| std::fs::write(path, "hello").expect("written")),
        ("bundle.pem", |path| {
            let text = std::fs::read_to_string(path).expect("read");
            std::fs::write(path, format!("{text}{}", &text[..200])).expect("written");
        }),
        ("issuer.key", |path| {
            let key = SecretKey::generate().expect("a key");
            std::fs::write(path, key.to_pem().as_bytes()).expect("written");
        }),
        ("issuer.pem", |path| std::fs::remove_file(path).expect("removed")),
        // A root that is not the issuer's.
        ("bundle.pem", |path| {
            let other = Ca::in_memory(Lifetimes::default()).expect("a CA");
            std::fs::write(path, other.bundle().to_pem()).expect("written");
        }),
    ];
    for (number, (file, edit)) in edits.iter().enumerate() {
        let (dir, ca) = fresh();
        let path = dir.path().join(file);
        let good = std::fs::read(&path).expect("read");
        let before = ca.bundle();
        edit(&path);
        ca.reload().expect_err("a bad edit");
        assert!(!ca.reload().expect("reported already"), "edit {number}");
        assert_eq!((ca.bundle().generation(), ca.bundle().roots()), (1, before.roots()), "edit {number}");
        ca.credentials(&web(), 1, SystemTime::now()).expect("goes on signing");
        std::fs::write(&path, good).expect("written");
        assert!(ca.reload().expect("good again"), "edit {number}");
        assert_eq!(ca.bundle().generation(), 1, "the same roots are the same generation");
    }
}

#[test]
fn a_rotation_can_go_on_after_a_crash_at_any_step() {
    let (lifetimes, now) = (Lifetimes::default(), SystemTime::now());
    let (dir, ca) = fresh();
    let old = ca.bundle().roots()[0].clone();
    let at = |name: &str| dir.path().join(name);
    for _ in 0..2 {
        rotation::publish_next_root(dir.path(), &lifetimes, now).expect("published");
    }
    assert!(ca.reload().expect("changed"));
    assert_eq!(ca.bundle().roots().len(), 2, "twice is once");
    // As after a crash between replacing the root and its key.
    let next = [at("next-root.pem"), at("next-root.key")].map(|path| (std::fs::read(&path).expect("read"), path));
    rotation::sign_under_next_root(dir.path(), &lifetimes, now).expect("signed");
    for (bytes, path) in &next {
        std::fs::write(path, bytes).expect("written");
    }
    rotation::sign_under_next_root(dir.path(), &lifetimes, now).expect("signed");
    assert!(matches!(rotation::sign_under_next_root(dir.path(), &lifetimes, now), Err(CaFault::Step(_))));
    assert!(ca.reload().expect("changed"));
    rotation::drop_other_roots(dir.path()).expect("dropped");
    assert!(ca.reload().expect("changed"));
    assert_eq!(ca.bundle().roots().len(), 1);
    assert_ne!(ca.bundle().roots()[0], old);
    let credentials = ca.credentials(&web(), 1, now).expect("signs under the new root");
    assert_eq!(credentials.chain().len(), 3, "leaf, issuer, and the new root signed by the old");
    // So that those who know only the old root believe it too.
    let key = SecretKey::generate().expect("a key");
    let issued = ca.sign(&key.request(&web()).expect("a request"), &web(), now).expect("signed");
    let chain = std::iter::once(issued.leaf).chain(issued.intermediates).collect();
    let old = TrustBundle::new(1, vec![old]).expect("a root");
    Credentials::new(&web(), &key, chain, &old, 1, now).expect("believed");
}

#[test]
fn an_issuer_is_renewed_in_time_under_the_same_root() {
    let dir = TempDir::new().expect("a directory");
    let hour = Duration::from_secs(3600);
    let lifetimes = Lifetimes { issuer: hour, skew: hour, ..Lifetimes::default() };
    let ca = Ca::open_or_create(dir.path(), lifetimes).expect("made");
    let (bundle, first) = (ca.bundle(), ca.issuer_not_after());
    let now = SystemTime::now();
    ca.renew_issuer_if_due(now).expect("not due");
    assert!(!ca.reload().expect("unchanged"));
    let later = now + Duration::from_secs(2700);
    ca.renew_issuer_if_due(later).expect("due");
    assert!(ca.reload().is_ok_and(|changed| changed), "taken over");
    assert!(ca.issuer_not_after() > first);
    assert_eq!((ca.bundle().generation(), ca.bundle().roots()), (1, bundle.roots()));
}
