#!/usr/bin/env bash
# cluster.sh BINARIES: what `make cluster` does: a kind cluster with Hauberk and an application, and what to try there.
set -euo pipefail
. "$(dirname "$0")/env.sh"
binaries=$1 name=hauberk
kubectl() { "$here/in.sh" "$name" kubectl "$@"; }
step() { echo "cluster: $* ($SECONDS s)"; }

if ! engine_runs || ! kind get clusters 2>/dev/null | grep -qx "$name"; then
    step "making a cluster of a control plane and two workers"
    "$here/up.sh" "$name"
fi
step "making the images and putting them on the nodes"
images=$(mktemp --directory)
trap 'rm -rf "$images"' EXIT
"$here/images.sh" "$binaries" "$images"
"$here/load.sh" "$name" "$images"/*.tar

step "hauberk install | kubectl apply -f -"
fresh=true again=()
# Over a mesh that is there it only installs when told to.
if kubectl get namespace hauberk >/dev/null 2>&1; then fresh=false again=(--force); fi
"$here/in.sh" "$name" "$binaries/hauberk" install "${again[@]}" | kubectl apply --server-side -f - >/dev/null
# The images have the same name as before.
$fresh || kubectl rollout restart --namespace hauberk deployment >/dev/null
for part in identity destination webhook; do
    kubectl rollout status --namespace hauberk "deployment/hauberk-$part" --timeout=180s >/dev/null
done

step "an application in the namespace shop, which is labelled hauberk.dev/inject=enabled"
kubectl apply --server-side -f "$top/e2e/demo.yaml" >/dev/null
$fresh || kubectl rollout restart --namespace shop deployment >/dev/null
for deployment in web cache client; do
    kubectl rollout status --namespace shop "deployment/$deployment" --timeout=180s >/dev/null
done
step "ready"
kubectl get pods --namespace shop --output wide

in="$here/in.sh $name"
cat <<TEXT

The API server is reached only from the engine's network: begin commands with
  $in

What the application's client says of its connections, with the identities of both ends:
  $in kubectl exec -n shop deploy/client -c app -- curl -s http://127.0.0.1:4192/connections
What passes on the network between the nodes: TLS where pods are meshed, HTTP where they are not (namespace plain):
  $in docker exec $name-worker tcpdump -c 20 -nAi any tcp port 4143
  $in docker exec $name-worker tcpdump -c 20 -nAi any tcp port 8080
A namespace of your own, meshed:
  $in kubectl create namespace mine
  $in kubectl label namespace mine hauberk.dev/inject=enabled
  $in kubectl create deployment web -n mine --image=hauberk.test/apps:1 -- httpd -f -p 8080
Its end:
  make cluster-down
TEXT
