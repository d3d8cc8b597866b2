//! What the application is asked.

use rustls::version::{TLS12, TLS13};

use super::{Kubelet, application::Application, http, readiness, secure, with_headers};
use hauberk_mesh::ProbeAction;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\na secret";

/// Path, headers as declared, lines of the request.
type Case = (&'static str, &'static [(&'static str, &'static str)], &'static [&'static str]);

#[tokio::test]
async fn http_is_asked_as_kubelet_asks() {
    let app = Application::saying(&[OK]).await;
    let port = app.port;
    let declared: [Case; 4] = [
        (
            "/live?deep=1",
            &[],
            &["GET /live?deep=1 HTTP/1.1", "User-Agent: kube-probe/1.34", "Accept: */*", "Host: 127.0.0.1:"],
        ),
        (
            "/",
            &[("X-Second", "2"), ("x-first", "1"), ("X-Second", "3"), ("Accept", "text/plain"), ("User-Agent", "mine")],
            &["X-Second: 2", "X-Second: 3", "X-First: 1", "Accept: text/plain", "User-Agent: mine"],
        ),
        ("/", &[("Host", "shop.example"), ("host", "other.example")], &["Host: shop.example"]),
        (
            "no-slash and space",
            &[("Accept", ""), ("Connection", "keep-alive"), ("Content-Length", "5")],
            &["GET /no-slash%20and%20space HTTP/1.1"],
        ),
    ];
    for (number, (path, headers, expected)) in declared.into_iter().enumerate() {
        let probe = readiness(with_headers(http(port, path), headers));
        let kubelet = Kubelet::new(std::slice::from_ref(&probe));
        assert_eq!(kubelet.ask(&probe).await, Some((200, String::new())), "{path} {headers:?}");
        let head = app.heads()[number].clone();
        for line in expected {
            let line = if line.ends_with(':') { format!("{line}{port}\r\n") } else { format!("{line}\r\n") };
            assert!(head.contains(&line), "{line:?} in {head}");
        }
        assert_eq!(head.matches("Host: ").count(), 1, "{head}");
        assert!(head.contains("Connection: close\r\n") && !head.contains("Content-Length"), "{head}");
        assert_eq!(head.matches("Accept: ").count(), usize::from(number != 3), "{head}");
    }
    let order = app.heads()[1].clone();
    assert!(order.find("X-Second: 2") < order.find("X-Second: 3"), "{order}");
}

#[tokio::test]
async fn only_kubelets_own_name_is_passed_on() {
    let app = Application::saying(&[OK]).await;
    let probe = readiness(http(app.port, "/"));
    let kubelet = Kubelet::new(std::slice::from_ref(&probe));
    let mut expected = Vec::new();
    for (agent, passed_on) in [
        ("kube-probe/1.35+", "kube-probe/1.35+"),
        ("kube-lifecycle/1.29", "kube-lifecycle/1.29"),
        ("curl/8", "kube-probe/1"),
        ("kube-probe/1 (and more)", "kube-probe/1"),
    ] {
        let request = format!("GET {} HTTP/1.1\r\nHost: x\r\nUser-Agent: {agent}\r\nX-Mine: 1\r\n\r\n", probe.path());
        assert_eq!(kubelet.say(&request).await.map(|(status, _)| status), Some(200));
        expected.push(format!("User-Agent: {passed_on}\r\n"));
    }
    for (head, expected) in app.heads().iter().zip(&expected) {
        assert!(head.contains(expected) && !head.contains("X-Mine"), "{expected} in {head}");
    }
}

#[tokio::test]
async fn https_is_asked_whoever_answers() {
    for version in [&TLS12, &TLS13] {
        let app = Application::saying_by_tls(version, &[OK]).await;
        let probe = readiness(secure(http(app.port, "/live")));
        let kubelet = Kubelet::new(std::slice::from_ref(&probe));
        assert_eq!(kubelet.ask(&probe).await, Some((200, String::new())), "{version:?}");
        assert!(app.heads()[0].starts_with("GET /live HTTP/1.1\r\n"), "{:?}", app.heads());
    }
}

#[tokio::test]
async fn a_declared_host_is_asked_instead_of_the_pod() {
    let app = Application::saying(&[OK]).await;
    for (host, authority) in [("localhost", "localhost"), ("127.0.0.1", "127.0.0.1")] {
        let ProbeAction::HttpGet { https, port, path, headers, .. } = http(app.port, "/") else { unreachable!() };
        let probe = readiness(ProbeAction::HttpGet { https, host: Some(host.to_owned()), port, path, headers });
        let kubelet = Kubelet::new(std::slice::from_ref(&probe));
        assert_eq!(kubelet.ask(&probe).await.map(|(status, _)| status), Some(200), "{host}");
        let head = app.heads().pop().expect("asked");
        assert!(head.contains(&format!("Host: {authority}:{}\r\n", app.port)), "{head}");
    }
}

#[tokio::test]
async fn redirects_are_followed_on_the_same_host_only() {
    let last = "HTTP/1.1 204 No Content\r\n\r\n";
    let to = |location: &str| format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
    let app = Application::saying(&[&to("/b?c=d"), &to("e"), last]).await;
    let probe = readiness(with_headers(http(app.port, "/a/a"), &[("Host", "shop.example"), ("X-Key", "k")]));
    let kubelet = Kubelet::new(std::slice::from_ref(&probe));
    assert_eq!(kubelet.ask(&probe).await, Some((204, String::new())));
    let heads = app.heads();
    let paths: Vec<_> = heads.iter().map(|head| head.lines().next().expect("a line")).collect();
    assert_eq!(paths, ["GET /a/a HTTP/1.1", "GET /b?c=d HTTP/1.1", "GET /e HTTP/1.1"]);
    assert!(heads.iter().all(|head| head.contains("Host: shop.example\r\n") && head.contains("X-Key: k\r\n")));

    let elsewhere = Application::saying(&[&to("http://elsewhere.example/"), last]).await;
    let probe = readiness(http(elsewhere.port, "/"));
    let kubelet = Kubelet::new(std::slice::from_ref(&probe));
    assert_eq!(kubelet.ask(&probe).await, Some((302, String::new())), "kubelet takes it for a success");
    assert_eq!(elsewhere.accepted(), 1);

    let round = Application::saying(&[&to("/")]).await;
    let probe = readiness(http(round.port, "/"));
    let kubelet = Kubelet::new(std::slice::from_ref(&probe));
    assert_eq!(kubelet.ask(&probe).await, Some((503, "10 redirects and no end\n".to_owned())));
    assert_eq!(round.accepted(), 10);
}
