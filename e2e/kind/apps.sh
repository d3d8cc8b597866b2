#!/usr/bin/env bash
# apps.sh OUT: what test applications are made of, collected into the directory OUT: clients and servers of Debian, etcd
# (a gRPC server with health checks), and busybox for the rest.
set -euo pipefail
. "$(dirname "$0")/env.sh"
out=$1
. "$here/../../deploy/collect.sh"

layout
echo 'nobody:x:65534:65534::/:/sbin/nologin' >>"$out/etc/passwd"
echo 'nogroup:x:65534:' >>"$out/etc/group"
mkdir -p "$out"/var/{lib,log}/nginx
for program in /usr/bin/{curl,redis-cli,redis-server} /usr/sbin/nginx; do put "$program"; done
put "$bin/etcd" /usr/bin/etcd
put /bin/busybox
for applet in $(busybox --list); do
    [[ $applet == busybox || -e $out/usr/bin/$applet ]] || ln -s busybox "$out/usr/bin/$applet"
done
