#!/usr/bin/env bash
# images.sh BINARIES OUT: makes archives of the images without a registry, from the directory of our binaries into the
# directory OUT: proxy.tar and controller.tar, as their Dockerfiles say, and apps.tar for test applications.
set -euo pipefail
. "$(dirname "$0")/env.sh"
binaries=$1 out=$2
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$top/Cargo.toml")
scratch=$(mktemp --directory)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$out"

for image in proxy controller; do
    "$top/deploy/rootfs" "$image" "$binaries" "$scratch/$image"
    "$here/archive.py" "$out/$image.tar" "hauberk.dev/hauberk-$image:$version" \
        --tree "$scratch/$image" --dockerfile "$top/deploy/$image.Dockerfile"
done
"$here/apps.sh" "$scratch/apps"
"$here/archive.py" "$out/apps.tar" hauberk.test/apps:1 --tree "$scratch/apps"
