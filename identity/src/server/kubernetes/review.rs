//! `ApiTokens`: the API server says whether a token is genuine, and whom it speaks for.

use std::fmt;

use k8s_openapi::api::authentication::v1::{TokenReview as Review, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::{Api, Client, api::PostParams};

use crate::server::{Bound, Proven, ReviewFault, TokenReview};

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// Of what the API server says, in messages and logs.
const LONGEST: usize = 300;

/// Asks the API server. Right: create TokenReviews. Whoever asks sees to the time.
pub(crate) struct ApiTokens(Api<Review>);

impl ApiTokens {
    pub(crate) fn new(client: Client) -> Self {
        Self(Api::all(client))
    }
}

impl TokenReview for ApiTokens {
    async fn review(&self, token: &str, audience: &str) -> Result<Proven, ReviewFault> {
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![audience.to_owned()]) };
        let review = Review { spec, ..Review::default() };
        let answer = self.0.create(&PostParams::default(), &review).await;
        let answer = answer.map_err(|error| ReviewFault::Unavailable(cut(&error.to_string())))?;
        judge(answer.status.unwrap_or_default(), audience)
    }
}

/// What the API server's answer proves.
fn judge(status: TokenReviewStatus, audience: &str) -> Result<Proven, ReviewFault> {
    let rejected = |why: String| Err(ReviewFault::Rejected(why));
    if let Some(error) = status.error.filter(|error| !error.is_empty()) {
        return rejected(format!("the API server says: {}", cut(&error)));
    }
    if status.authenticated != Some(true) {
        return rejected("the API server does not know it".to_owned());
    }
    // An API server that knows nothing of audiences names none.
    if !status.audiences.unwrap_or_default().iter().any(|named| named == audience) {
        return rejected(format!("the API server does not say that it is for {audience}"));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.clone().unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, service_account)) = account.filter(|(namespace, name)| is_part(namespace) && is_part(name))
    else {
        return rejected(format!("it is that of {:?}, which is no ServiceAccount", cut(&name)));
    };
    let (Some(name), Some(uid)) = (single(&user, POD_NAME), single(&user, POD_UID)) else {
        return rejected("it is bound to no pod: use a token that kubelet mounts".to_owned());
    };
    Ok(Proven {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod: Bound { name: name.to_owned(), uid: uid.to_owned() },
    })
}

fn is_part(text: &str) -> bool {
    !text.is_empty() && !text.contains(':')
}

/// The one value of an extra claim.
fn single<'a>(user: &'a UserInfo, claim: &str) -> Option<&'a str> {
    match user.extra.as_ref()?.get(claim)?.as_slice() {
        [one] if !one.is_empty() => Some(one),
        _ => None,
    }
}

fn cut(text: &str) -> String {
    text.chars().take(LONGEST).collect()
}

impl fmt::Debug for ApiTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiTokens")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "identity.hauberk.dev";

    fn good() -> TokenReviewStatus {
        let claim = |name: &str, value: &str| (name.to_owned(), vec![value.to_owned()]);
        TokenReviewStatus {
            audiences: Some(vec![OURS.to_owned()]),
            authenticated: Some(true),
            error: None,
            user: Some(UserInfo {
                username: Some("system:serviceaccount:shop:web.v2".to_owned()),
                extra: Some([claim(POD_NAME, "web-0"), claim(POD_UID, "u-1")].into()),
                ..UserInfo::default()
            }),
        }
    }

    #[test]
    fn takes_account_and_pod_from_the_answer() {
        let proven = judge(good(), OURS).expect("all of it right");
        assert_eq!((proven.namespace.as_str(), proven.service_account.as_str()), ("shop", "web.v2"));
        assert_eq!((proven.pod.name.as_str(), proven.pod.uid.as_str()), ("web-0", "u-1"));
    }

    #[test]
    fn refuses_an_answer_that_lacks_anything() {
        type Change = fn(&mut TokenReviewStatus);
        fn user(status: &mut TokenReviewStatus) -> &mut UserInfo {
            status.user.as_mut().expect("there")
        }
        let changes: [(Change, &str); 13] = [
            (|status| *status = TokenReviewStatus::default(), "does not know it"),
            (|status| status.authenticated = Some(false), "does not know it"),
            (|status| status.authenticated = None, "does not know it"),
            (|status| status.error = Some("token has expired".to_owned()), "the API server says: token has expired"),
            (|status| status.audiences = None, "does not say that it is for identity.hauberk.dev"),
            (|status| status.audiences = Some(vec!["api".to_owned()]), "does not say that it is for"),
            (|status| status.user = None, "is no ServiceAccount"),
            (|status| user(status).username = Some("system:admin".to_owned()), "\"system:admin\", which is no"),
            (|status| user(status).username = Some("system:serviceaccount:shop:".to_owned()), "is no ServiceAccount"),
            (|status| user(status).username = Some("system:serviceaccount:a:b:c".to_owned()), "is no ServiceAccount"),
            (|status| user(status).extra = None, "bound to no pod"),
            (|status| _ = user(status).extra.as_mut().expect("there").remove(POD_UID), "bound to no pod"),
            (
                |status| {
                    let extra = user(status).extra.as_mut().expect("there");
                    extra.insert(POD_NAME.to_owned(), vec!["web-0".to_owned(), "web-1".to_owned()]);
                },
                "bound to no pod",
            ),
        ];
        for (change, expected) in changes {
            let mut status = good();
            change(&mut status);
            match judge(status, OURS) {
                Err(ReviewFault::Rejected(why)) => assert!(why.contains(expected), "{why}"),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }
}
