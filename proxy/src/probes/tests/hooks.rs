//! Lifecycle hooks: to kubelet every answer is a success, so a failure must be none.

use hauberk_mesh::ProbeKind;
use rustls::version::TLS13;

use super::{Kubelet, application::Application, closed_port, http, probe, secure, with_headers};

const HOOKS: [ProbeKind; 2] = [ProbeKind::PostStart, ProbeKind::PreStop];

#[tokio::test]
async fn whatever_the_application_answers_is_passed_on() {
    let app = Application::saying(&["HTTP/1.1 500 Oh\r\n\r\n"]).await;
    for kind in HOOKS {
        let hook = probe(kind, http(app.port, "/shutdown"));
        let kubelet = Kubelet::new(std::slice::from_ref(&hook));
        assert_eq!(kubelet.ask(&hook).await, Some((500, String::new())), "{kind}");
        let counted = format!(r#"hauberk_probes_total{{probe="{kind}",result="success"}} 1"#);
        assert!(kubelet.metrics().contains(&counted), "{}", kubelet.metrics());
    }
    assert_eq!(app.accepted(), 2);
}

#[tokio::test]
async fn a_hook_that_cannot_be_asked_gets_no_answer() {
    let (_held, port) = closed_port();
    for kind in HOOKS {
        let hook = probe(kind, http(port, "/"));
        let kubelet = Kubelet::new(std::slice::from_ref(&hook));
        assert_eq!(kubelet.ask(&hook).await, None, "{kind}");
    }
}

#[tokio::test]
async fn a_hook_by_https_falls_back_to_http_without_credentials_as_kubelet_does() {
    let plain = Application::saying(&["HTTP/1.1 400 Bad\r\n\r\n", "HTTP/1.1 202 Accepted\r\n\r\n"]).await;
    let action = with_headers(secure(http(plain.port, "/stop")), &[("Authorization", "Basic s"), ("X-A", "1")]);
    let hook = probe(ProbeKind::PreStop, action.clone());
    let kubelet = Kubelet::new(std::slice::from_ref(&hook));
    assert_eq!(kubelet.ask(&hook).await, Some((202, String::new())));
    let head = plain.heads().pop().expect("asked");
    assert!(head.contains("X-A: 1\r\n") && !head.contains("Authorization"), "{head}");

    let readiness = probe(ProbeKind::Readiness, action);
    let kubelet = Kubelet::new(std::slice::from_ref(&readiness));
    let why = "the application answers HTTPS with something else\n".to_owned();
    assert_eq!(kubelet.ask(&readiness).await, Some((503, why)), "a probe does not");

    let tls = Application::saying_by_tls(&TLS13, &["HTTP/1.1 200 OK\r\n\r\n"]).await;
    let hook = probe(ProbeKind::PreStop, with_headers(secure(http(tls.port, "/")), &[("Authorization", "Basic s")]));
    assert_eq!(Kubelet::new(std::slice::from_ref(&hook)).ask(&hook).await, Some((200, String::new())));
    assert!(tls.heads()[0].contains("Authorization: Basic s\r\n"));
}
