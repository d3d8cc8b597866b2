//! AdmissionReview v1, as far as it is read and written here. Own types: the API server may send fields that no binding
//! knows, and the pod goes on as the JSON that it came as. Pure.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// The API server drops what is longer, and all of them over 4 KiB.
const WARNING: usize = 250;
const WARNINGS: usize = 12;
/// Of a refusal's message.
const MESSAGE: usize = 4096;

/// Why bytes are not a review.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unparsable {
    /// Not JSON, or not of the form.
    #[error("not an AdmissionReview of {API_VERSION}: {0}")]
    Form(#[from] serde_json::Error),
    /// Something else.
    #[error("kind {kind:?} of {api_version:?}: expected {KIND} of {API_VERSION}")]
    Other {
        /// What stands there.
        kind: String,
        /// What stands there.
        api_version: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    request: Option<Request>,
}

/// What the API server asks, without the pod: that is read where it is decided about, see [`pod`].
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Request {
    /// The answer carries it back.
    pub(crate) uid: String,
    /// Of the object.
    pub(crate) kind: Option<Kind>,
    /// `status`, `ephemeralcontainers`; none for the pod itself.
    pub(crate) sub_resource: Option<String>,
    /// None where the API server still has to make one of `generateName`.
    pub(crate) name: Option<String>,
    /// The pod itself need not say it.
    pub(crate) namespace: Option<String>,
    /// `CREATE`, …
    pub(crate) operation: Option<String>,
    /// Nothing may be left behind by this request.
    pub(crate) dry_run: Option<bool>,
}

/// The pod of a review that [`Request::parse`] took; null where there is none. It takes up to 16 times the memory of its
/// text, so the callers of this are limited.
pub(crate) fn pod(body: &[u8]) -> Value {
    #[derive(Deserialize)]
    struct Review {
        request: Request,
    }
    #[derive(Deserialize)]
    struct Request {
        #[serde(default)]
        object: Value,
    }
    serde_json::from_slice::<Review>(body).map_or(Value::Null, |review| review.request.object)
}

/// Group and kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Kind {
    /// Empty is the core.
    #[serde(default)]
    pub(crate) group: String,
    /// Such as `Pod`.
    #[serde(default)]
    pub(crate) kind: String,
}

impl Request {
    /// Reads a review. Never panics, whatever the bytes.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Unparsable> {
        let review: Review = serde_json::from_slice(body)?;
        match review {
            Review { api_version, kind, request: Some(request) } if api_version == API_VERSION && kind == KIND => {
                Ok(request)
            }
            Review { api_version, kind, request: None } if api_version == API_VERSION && kind == KIND => {
                Err(Unparsable::Form(serde::de::Error::missing_field("request")))
            }
            Review { api_version, kind, .. } => {
                let short = |text: String| text.chars().take(64).collect();
                Err(Unparsable::Other { kind: short(kind), api_version: short(api_version) })
            }
        }
    }

    /// Whether a pod is to be made: all that is decided about.
    pub(crate) fn makes_a_pod(&self) -> bool {
        let pod = self.kind.as_ref().is_some_and(|kind| kind.group.is_empty() && kind.kind == "Pod");
        pod && self.sub_resource.as_deref().unwrap_or_default().is_empty()
            && self.operation.as_deref() == Some("CREATE")
    }

    /// Whether nothing may be left behind.
    pub(crate) fn dry_run(&self) -> bool {
        self.dry_run.unwrap_or_default()
    }
}

/// What the API server is answered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// The pod may be made, changed like this; none leaves it as it is.
    Allow(Option<json_patch::Patch>),
    /// It may not, with what to say to whoever makes it.
    Refuse(String),
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    /// Yes or no.
    pub(crate) verdict: Verdict,
    /// For whoever makes the pod.
    pub(crate) warnings: Vec<String>,
    /// For the audit log: key and value.
    pub(crate) audit: BTreeMap<&'static str, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<ByteString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    audit_annotations: &'a BTreeMap<&'static str, String>,
}

impl Answer {
    /// The review that answers the one with this `uid`.
    pub(crate) fn to_bytes(&self, uid: &str) -> Vec<u8> {
        let patch = match &self.verdict {
            Verdict::Allow(Some(patch)) if !patch.is_empty() => {
                Some(ByteString(serde_json::to_vec(patch).expect("operations are JSON")))
            }
            Verdict::Allow(_) | Verdict::Refuse(_) => None,
        };
        let status = match &self.verdict {
            Verdict::Refuse(message) => {
                Some(json!({ "code": 403, "reason": "Forbidden", "message": line(message, MESSAGE) }))
            }
            Verdict::Allow(_) => None,
        };
        let response = Response {
            uid,
            allowed: status.is_none(),
            patch_type: patch.as_ref().map(|_| "JSONPatch"),
            patch,
            status,
            warnings: self.warnings.iter().take(WARNINGS).map(|warning| line(warning, WARNING)).collect(),
            audit_annotations: &self.audit,
        };
        let review = json!({ "apiVersion": API_VERSION, "kind": KIND, "response": response });
        serde_json::to_vec(&review).expect("a response is JSON")
    }
}

/// One line of at most so many bytes: warnings travel in HTTP headers.
fn line(text: &str, most: usize) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.len() <= most { clean } else { format!("{}…", &clean[..clean.floor_char_boundary(most - 3)]) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn review(request: Value) -> Vec<u8> {
        json!({ "apiVersion": API_VERSION, "kind": KIND, "request": request, "unknown": 1 }).to_string().into_bytes()
    }

    #[test]
    fn fields_that_nobody_knows_and_absent_ones_are_read_over() {
        let body = review(json!({
            "uid": "u", "kind": { "group": "", "version": "v1", "kind": "Pod", "more": [] }, "operation": "CREATE",
            "namespace": "shop", "name": null, "later": {}, "object": { "spec": { "newField": null } },
        }));
        let request = Request::parse(&body).expect("valid");
        assert!(request.makes_a_pod() && !request.dry_run() && request.name.is_none());
        assert_eq!(pod(&body), json!({ "spec": { "newField": null } }));
        let body = review(json!({ "uid": "u" }));
        assert!(!Request::parse(&body).expect("valid").makes_a_pod() && pod(&body).is_null());
    }

    #[test]
    fn what_is_no_review_is_said() {
        let said = |body: &[u8]| Request::parse(body).expect_err("no review").to_string();
        assert!(said(b"").contains("EOF"));
        assert!(said(&review(json!({}))).contains("uid"));
        assert!(said(&review(Value::Null)).contains("request"));
        let other =
            said(br#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"u"}}"#);
        assert!(
            other.contains("v1beta1") && other.contains("expected AdmissionReview of admission.k8s.io/v1"),
            "{other}"
        );
    }

    #[test]
    fn only_the_making_of_a_pod_is_decided_about() {
        let of = |kind: &str, operation: &str, sub: Option<&str>| {
            let request = json!({
                "uid": "u", "kind": { "group": "", "kind": kind }, "operation": operation, "subResource": sub,
            });
            Request::parse(&review(request)).expect("valid").makes_a_pod()
        };
        assert!(of("Pod", "CREATE", None) && of("Pod", "CREATE", Some("")));
        assert!(
            !of("Deployment", "CREATE", None) && !of("Pod", "UPDATE", None) && !of("Pod", "CREATE", Some("eviction"))
        );
    }

    fn written(answer: &Answer) -> Value {
        serde_json::from_slice(&answer.to_bytes("u-1")).expect("JSON")
    }

    #[test]
    fn answers_are_as_the_api_server_reads_them() {
        let patch = serde_json::from_value(json!([{ "op": "add", "path": "/spec/x", "value": 1 }])).expect("a patch");
        let mut answer = Answer {
            verdict: Verdict::Allow(Some(patch)),
            warnings: vec!["two\nlines".to_owned(), "w".repeat(500)],
            audit: [("decision", "injected".to_owned())].into(),
        };
        let review = written(&answer);
        assert_eq!((&review["apiVersion"], &review["kind"]), (&json!(API_VERSION), &json!(KIND)));
        let response = &review["response"];
        assert_eq!(
            (&response["uid"], &response["allowed"], &response["patchType"]),
            (&json!("u-1"), &json!(true), &json!("JSONPatch"))
        );
        assert_eq!(response["patch"], json!("W3sib3AiOiJhZGQiLCJwYXRoIjoiL3NwZWMveCIsInZhbHVlIjoxfV0="));
        assert_eq!(response["warnings"][0], json!("two lines"));
        assert!(response["warnings"][1].as_str().expect("text").len() <= WARNING);
        assert_eq!(response["auditAnnotations"], json!({ "decision": "injected" }));

        answer.verdict = Verdict::Refuse("no".to_owned());
        let response = &written(&answer)["response"];
        assert_eq!((&response["allowed"], &response["status"]["code"]), (&json!(false), &json!(403)));
        assert_eq!(response["status"]["message"], json!("no"));
        assert!(response.get("patch").is_none());

        answer.verdict = Verdict::Allow(Some(json_patch::Patch::default()));
        assert!(written(&answer)["response"].get("patchType").is_none(), "nothing to change is no patch");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = (Request::parse(&body), pod(&body));
        }

        #[test]
        fn a_line_is_one_line_within_its_bound(text in "\\PC{0,40}[\\x00-\\x1f]{0,3}.{0,400}") {
            let line = line(&text, WARNING);
            prop_assert!(line.len() <= WARNING && !line.chars().any(char::is_control));
        }
    }
}
