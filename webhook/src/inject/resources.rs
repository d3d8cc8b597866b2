//! Requests and limits of our containers.

use hauberk_mesh::RefusalReason;
use serde_json::{Map, Value, json};

use super::{
    Refusal,
    plan::{Amounts, Plan},
    quantity::Quantity,
    view::{Container, Resources, Spec},
};

/// What a proxy gets in a Guaranteed pod, where limits equal requests and nothing is set: less would throttle it, or
/// kill it under load.
const GUARANTEED: [(&str, &str); 2] = [("cpu", "100m"), ("memory", "64Mi")];

/// `resources` of both our containers. The init container's add nothing: it has ended when the others run.
pub(super) fn ours(plan: &Plan, spec: &Spec) -> Result<Value, Refusal> {
    let guaranteed = is_guaranteed(spec);
    let (mut requests, mut limits) = (Map::new(), Map::new());
    for (resource, amounts) in
        [("cpu", &plan.cpu), ("memory", &plan.memory), ("ephemeral-storage", &plan.ephemeral_storage)]
    {
        let (request, limit) = amounts_of(resource, amounts, guaranteed, spec.resources.as_ref())?;
        requests.extend(request.map(|it| (resource.to_owned(), json!(it.to_string()))));
        limits.extend(limit.map(|it| (resource.to_owned(), json!(it.to_string()))));
    }
    let mut resources = Map::new();
    for (key, amounts) in [("limits", limits), ("requests", requests)] {
        if !amounts.is_empty() {
            resources.insert(key.to_owned(), Value::Object(amounts));
        }
    }
    Ok(Value::Object(resources))
}

fn amounts_of(
    resource: &str,
    amounts: &Amounts,
    guaranteed: bool,
    pod: Option<&Resources>,
) -> Result<(Option<Quantity>, Option<Quantity>), Refusal> {
    let of_pod = pod.into_iter().flat_map(|pod| [&pod.requests, &pod.limits]).flatten();
    // The pod as a whole has a budget: ours come out of it, and requests of our own could exceed it.
    if of_pod.into_iter().any(|budget| budget.contains_key(resource)) && !amounts.request_is_set {
        return Ok((None, None));
    }
    if guaranteed && let Some((_, least)) = GUARANTEED.iter().find(|(name, _)| *name == resource) {
        let least = Quantity::parse(least).expect("the constants are quantities");
        let default =
            amounts.request.clone().map(|request| if amounts.request_is_set { request } else { request.max(least) });
        let both = amounts.limit.clone().or(default);
        return Ok((both.clone(), both));
    }
    match (&amounts.request, &amounts.limit) {
        (Some(request), Some(limit)) if request > limit && amounts.request_is_set => {
            let message = format!(
                "the proxy's {resource} request {request} is above its limit {limit}: lower \
                 hauberk.dev/proxy-{resource}-request, or raise hauberk.dev/proxy-{resource}-limit"
            );
            Err(Refusal::new(RefusalReason::Resources, message))
        }
        // Only the limit was set, below the mesh's default request.
        (Some(request), Some(limit)) if request > limit => Ok((Some(limit.clone()), Some(limit.clone()))),
        (request, limit) => Ok((request.clone(), limit.clone())),
    }
}

/// Whether every container of the application has limits for CPU and memory, and requests equal to them.
fn is_guaranteed(spec: &Spec) -> bool {
    spec.applications().all(|(_, container)| GUARANTEED.iter().all(|(name, _)| is_fixed(container, name)))
}

fn is_fixed(container: &Container, resource: &str) -> bool {
    let Some(resources) = &container.resources else { return false };
    let of =
        |map: &Option<std::collections::BTreeMap<String, Value>>| map.as_ref()?.get(resource).and_then(Quantity::of);
    of(&resources.limits).is_some_and(|limit| {
        // A request that is absent is set to the limit.
        !limit.is_zero() && of(&resources.requests).is_none_or(|request| request == limit)
    })
}
