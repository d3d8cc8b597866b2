//! `IdentityName`: which ServiceAccount a certificate speaks for. One function, shared by CA, webhook and discovery,
//! says whether a name is valid, and why not.

use std::{fmt, sync::Arc};

/// What stands between the ServiceAccount's namespace and the control namespace.
const MARKER: &str = ".serviceaccount.identity.";
/// Of a DNS name.
const LONGEST: usize = 253;

/// Why a text or an account cannot be an identity.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum InvalidIdentity {
    /// The form is not that of an identity.
    #[error(
        "{0:?} is not an identity: the form is <serviceaccount>.<namespace>.serviceaccount.identity.<control-namespace>.<trust-domain>"
    )]
    Form(String),
    /// One part is not a DNS label, or a ServiceAccount name is not made of them.
    #[error(
        "{part:?} in identity {name:?} is not a DNS label: use 1 to 63 of a-z, 0-9 and '-', the first and last not '-'"
    )]
    Label {
        /// The part at fault.
        part: String,
        /// The whole name.
        name: String,
    },
    /// The whole is longer than a DNS name may be.
    #[error("identity {name:?} has {length} characters, a DNS name at most 253: shorten the ServiceAccount's name")]
    TooLong {
        /// The whole name.
        name: String,
        /// Its length.
        length: usize,
    },
}

/// Control namespace and trust domain: the right-hand end of every identity of one mesh.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrustDomain {
    control_namespace: String,
    domain: String,
}

impl TrustDomain {
    /// Checks both parts: one DNS label, and a DNS name.
    pub fn new(control_namespace: &str, domain: &str) -> Result<Self, InvalidIdentity> {
        let name = format!("{control_namespace}.{domain}");
        check_label(control_namespace, &name)?;
        for label in domain.split('.') {
            check_label(label, &name)?;
        }
        if format!(".{name}.").contains(MARKER) {
            return Err(InvalidIdentity::Form(name));
        }
        Ok(Self { control_namespace: control_namespace.to_owned(), domain: domain.to_owned() })
    }

    /// The namespace that the control plane runs in.
    pub fn control_namespace(&self) -> &str {
        &self.control_namespace
    }

    /// The domain, such as `cluster.local`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The identity of a ServiceAccount, or why it can have none.
    pub fn identity(&self, service_account: &str, namespace: &str) -> Result<IdentityName, InvalidIdentity> {
        let name = format!("{service_account}.{namespace}{MARKER}{}.{}", self.control_namespace, self.domain);
        check_label(namespace, &name)?;
        IdentityName::parse(&name)
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self::new(crate::CONTROL_NAMESPACE, crate::TRUST_DOMAIN).expect("the defaults are valid")
    }
}

/// `<serviceaccount>.<namespace>.serviceaccount.identity.<control-namespace>.<trust-domain>`, a valid DNS name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdentityName {
    name: Arc<str>,
    /// Where the ServiceAccount's name ends; it may hold dots.
    account_end: u8,
    /// Where the namespace ends.
    namespace_end: u8,
}

impl IdentityName {
    /// Parses from the right: the ServiceAccount's name is what remains, and may hold dots.
    pub fn parse(name: &str) -> Result<Self, InvalidIdentity> {
        let form = || InvalidIdentity::Form(name.to_owned());
        let namespace_end = name.rfind(MARKER).ok_or_else(form)?;
        let account_end = name[..namespace_end].rfind('.').ok_or_else(form)?;
        if !name[namespace_end + MARKER.len()..].contains('.') {
            return Err(form());
        }
        for label in name.split('.') {
            check_label(label, name)?;
        }
        if name.len() > LONGEST {
            return Err(InvalidIdentity::TooLong { name: name.to_owned(), length: name.len() });
        }
        Ok(Self { name: name.into(), account_end: account_end as u8, namespace_end: namespace_end as u8 })
    }

    /// The whole name: also the certificate's one DNS SAN and the SNI.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The same, for those that hold it for each of many connections.
    pub fn shared(&self) -> Arc<str> {
        self.name.clone()
    }

    /// The ServiceAccount.
    pub fn service_account(&self) -> &str {
        &self.name[..usize::from(self.account_end)]
    }

    /// The ServiceAccount's namespace.
    pub fn namespace(&self) -> &str {
        &self.name[usize::from(self.account_end) + 1..usize::from(self.namespace_end)]
    }

    /// The control namespace and trust domain that the identity belongs to.
    pub fn trust_domain(&self) -> TrustDomain {
        let rest = &self.name[usize::from(self.namespace_end) + MARKER.len()..];
        let (control_namespace, domain) = rest.split_once('.').expect("parse checked that there is a dot");
        TrustDomain { control_namespace: control_namespace.to_owned(), domain: domain.to_owned() }
    }

    /// Whether the identity belongs to the mesh of `domain`.
    pub fn is_in(&self, domain: &TrustDomain) -> bool {
        self.trust_domain() == *domain
    }
}

impl fmt::Display for IdentityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

impl fmt::Debug for IdentityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.name, f)
    }
}

impl std::str::FromStr for IdentityName {
    type Err = InvalidIdentity;
    fn from_str(name: &str) -> Result<Self, InvalidIdentity> {
        Self::parse(name)
    }
}

fn check_label(part: &str, name: &str) -> Result<(), InvalidIdentity> {
    let chars_ok = part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let ok = chars_ok && (1..=63).contains(&part.len()) && !part.starts_with('-') && !part.ends_with('-');
    if ok { Ok(()) } else { Err(InvalidIdentity::Label { part: part.to_owned(), name: name.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_namespace_is_parsed_from_the_right() {
        let name = TrustDomain::default().identity("web.v2.serviceaccount.identity.x", "shop").expect("valid");
        assert_eq!(name.service_account(), "web.v2.serviceaccount.identity.x");
        assert_eq!(name.namespace(), "shop");
        assert!(name.is_in(&TrustDomain::default()));
        assert!(!name.is_in(&TrustDomain::new("hauberk", "other.local").expect("valid")));
    }

    #[test]
    fn a_label_may_have_63_characters_and_a_name_253() {
        let domain = TrustDomain::default();
        let rest = ".shop.serviceaccount.identity.hauberk.cluster.local".len();
        let account = |length: usize| {
            let mut text = "a".repeat(length);
            (1..=length / 64).for_each(|i| text.replace_range(i * 64 - 1..i * 64, "."));
            text
        };
        assert!(domain.identity(&"a".repeat(63), "shop").is_ok());
        assert!(matches!(domain.identity(&"a".repeat(64), "shop"), Err(InvalidIdentity::Label { .. })));
        assert_eq!(domain.identity(&account(253 - rest), "shop").expect("253 fit").as_str().len(), 253);
        let error = domain.identity(&account(254 - rest), "shop").expect_err("254 do not");
        assert!(error.to_string().contains("has 254 characters, a DNS name at most 253"), "{error}");
    }

    #[test]
    fn refuses_with_the_part_at_fault() {
        let domain = TrustDomain::default();
        for (account, namespace, part) in
            [("Web", "shop", "Web"), ("-a", "shop", "-a"), ("a..b", "shop", ""), ("a", "sh.op", "sh.op"), ("", "x", "")]
        {
            match domain.identity(account, namespace) {
                Err(InvalidIdentity::Label { part: found, .. }) => assert_eq!(found, part),
                other => panic!("{account}/{namespace}: {other:?}"),
            }
        }
        for text in [
            "",
            "web",
            "web.shop",
            "web.serviceaccount.identity.hauberk.cluster.local",
            "a.b.serviceaccount.identity.x",
        ] {
            assert!(matches!(IdentityName::parse(text), Err(InvalidIdentity::Form(_))), "{text:?}");
        }
        assert!(TrustDomain::new("hauberk", "a.serviceaccount.identity.b").is_err());
    }

    proptest! {
        #[test]
        fn parsing_gives_back_what_was_put_in(
            account in "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\\.[a-z0-9]{1,9}){0,3}",
            namespace in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?",
        ) {
            let name = TrustDomain::default().identity(&account, &namespace).expect("valid parts");
            prop_assert_eq!(name.service_account(), account.as_str());
            prop_assert_eq!(name.namespace(), namespace.as_str());
            prop_assert_eq!(IdentityName::parse(name.as_str()), Ok(name.clone()));
        }

        #[test]
        fn no_text_panics_the_parser(text in ".{0,300}") {
            let _ = IdentityName::parse(&text);
        }
    }
}
