//! What a pod is to the mesh: read from its spec, which cannot be changed while it runs, never from its labels or
//! annotations. Pure.

use hauberk_mesh::{InvalidSpec, PROXY_CONTAINER, ProxySpec};
use k8s_openapi::api::core::v1::{Container, PodSpec};

/// What the pod's proxy was told at start, or why that cannot be read; none where the pod has no proxy.
///
/// Native sidecars (init containers that restart always) and plain ones count alike. An ordinary init container of the
/// proxy's name is no proxy: it has ended before the application starts.
pub fn proxy_of(spec: &PodSpec) -> Option<Result<ProxySpec, InvalidSpec>> {
    let native = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let mut containers = spec.init_containers.iter().flatten().filter(native).chain(&spec.containers);
    let proxy = containers.find(|container| container.name == PROXY_CONTAINER)?;
    let literal = proxy.env.iter().flatten().filter_map(|var| Some((var.name.clone(), var.value.clone()?)));
    Some(ProxySpec::from_env(literal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hauberk_mesh::TrustDomain;
    use k8s_openapi::api::core::v1::EnvVar;

    fn told() -> ProxySpec {
        let identity = TrustDomain::default().identity("web", "shop").expect("valid");
        let addr = |text: &str| text.parse().expect("an address");
        ProxySpec::new(identity, addr("10.2.0.2:8080"), addr("10.2.0.3:8086"), "PEM".to_owned())
    }

    fn container(name: &str) -> Container {
        let var =
            |(name, value): (&str, String)| EnvVar { name: name.to_owned(), value: Some(value), ..EnvVar::default() };
        Container {
            name: name.to_owned(),
            env: Some(told().to_env().into_iter().map(var).collect()),
            ..Container::default()
        }
    }

    #[test]
    fn native_and_plain_sidecars_are_proxies_and_others_are_not() {
        let native = |name: &str, policy: &str| PodSpec {
            init_containers: Some(vec![Container { restart_policy: Some(policy.to_owned()), ..container(name) }]),
            ..PodSpec::default()
        };
        let plain = |name: &str| PodSpec { containers: vec![container(name)], ..PodSpec::default() };
        assert_eq!(proxy_of(&native("hauberk-proxy", "Always")), Some(Ok(told())));
        assert_eq!(proxy_of(&plain("hauberk-proxy")), Some(Ok(told())));
        assert_eq!(proxy_of(&native("hauberk-proxy", "Never")), None);
        assert_eq!(proxy_of(&native("app", "Always")), None);
        assert_eq!(proxy_of(&plain("app")), None);
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let mut spec = PodSpec { containers: vec![container("hauberk-proxy")], ..PodSpec::default() };
        spec.containers[0].env.as_mut().expect("set").retain(|var| var.name != "HAUBERK_IDENTITY");
        assert_eq!(proxy_of(&spec), Some(Err(InvalidSpec::Missing("HAUBERK_IDENTITY"))));
    }
}
