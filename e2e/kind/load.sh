#!/usr/bin/env bash
# load.sh NAME ARCHIVE...: puts images on every node of cluster NAME.
set -euo pipefail
. "$(dirname "$0")/env.sh"
name=$1
shift
for archive in "$@"; do "$here/in.sh" "$name" kind load image-archive "$archive" --name "$name" --quiet; done
