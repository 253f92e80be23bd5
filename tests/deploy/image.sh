#!/usr/bin/env bash
# Build an image and serve from it, without a daemon and without a registry: the base image is made
# by debootstrap, buildah builds, crun runs.  Takes some four minutes, less with a warm cache.
#
#   image.sh [CACHE]        the CPU image; CACHE (default .cache/image) keeps the base system and
#                           buildah's layers
#   image.sh CACHE cuda     the CUDA image, by the toolkit at /usr/local/cuda; it serves from CPUs here
#
# Needs root, a network, and the Debian packages buildah, crun, debootstrap; where something is
# missing it says so and passes.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=$(realpath -m "${1:-$root/.cache/image}")
model=$root/tests/models/needle-tiny
recipe=$root/deploy/container/Containerfile name=winnow toolkit=()

skip() { echo "image: skipped: $*"; exit 0; }
[ "$(id -u)" = 0 ] || skip 'needs root'
for tool in buildah crun debootstrap; do
    command -v "$tool" >/dev/null || skip "needs the Debian package $tool"
done

if [ "${2:-}" = cuda ]; then
    [ -x /usr/local/cuda/bin/nvcc ] || skip 'needs the CUDA toolkit at /usr/local/cuda'
    recipe+=.cuda name=winnow-cuda toolkit=(--volume "$(realpath /usr/local/cuda):/usr/local/cuda:ro")
fi

# crun refuses a machine that mounts cgroups of both versions; the container uses none.
if [ -d /sys/fs/cgroup/unified ]; then
    exec unshare --mount --propagation private sh -ec '
        umount -l -R /sys/fs/cgroup
        mount -t cgroup2 none /sys/fs/cgroup
        exec "$@"' sh "$0" "$@"
fi

work=$(mktemp -d)
export BUILDAH_ISOLATION=chroot
store=(--root "$cache/store" --runroot "$work/run" --storage-driver overlay)
container='' image=''
# shellcheck disable=SC2317 # the trap calls it
finish() {
    code=$?
    trap - EXIT
    [ -z "$container" ] || crun --root "$work/crun" delete -f "$container" 2>/dev/null || true
    [ -z "$image" ] || buildah "${store[@]}" rm "$image" >/dev/null || true
    rm -rf "$work"
    exit "$code"
}
trap finish EXIT

if [ ! -e "$cache/bookworm/.complete" ]; then
    mkdir -p "$cache"
    rm -rf "$cache/bookworm"
    debootstrap --variant=minbase bookworm "$cache/bookworm" >"$cache/debootstrap.log" 2>&1 ||
        skip "debootstrap failed: $(tail -n 1 "$cache/debootstrap.log")"
    touch "$cache/bookworm/.complete"
fi

echo '== build'
if ! buildah "${store[@]}" inspect --type image localhost/debian:12 >/dev/null 2>&1; then
    base=$(buildah "${store[@]}" from scratch)
    buildah "${store[@]}" add -q "$base" "$cache/bookworm" / >/dev/null
    buildah "${store[@]}" commit -q --rm "$base" localhost/debian:12 >/dev/null
fi
id=$(git -C "$root" rev-parse --short HEAD)
buildah "${store[@]}" build -q --layers --network host -f "$recipe" "${toolkit[@]}" \
    --build-arg BASE=localhost/debian:12 --build-arg BUILD_ID="$id" -t "$name" "$root"
buildah "${store[@]}" images "$name"
image=$(buildah "${store[@]}" from "$name")
rootfs=$(buildah "${store[@]}" mount "$image")

echo '== run: a read-only root, no capability, a user id that no file knows'
# A network of its own, in which there is the loopback interface alone.
mkdir "$work/bundle"
python3 - "$rootfs" "$model" >"$work/bundle/config.json" <<'END'
import json, sys
rootfs, model = sys.argv[1:]
mount = lambda to, kind, source, *options: {
    "destination": to, "type": kind, "source": source, "options": list(options)}
print(json.dumps({
    "ociVersion": "1.0.0",
    "root": {"path": rootfs, "readonly": True},
    "process": {
        "user": {"uid": 1000700000, "gid": 0}, "cwd": "/tmp", "noNewPrivileges": True,
        "env": ["PATH=/usr/bin"], "capabilities": {},
        "args": ["/usr/bin/winnow-coordinator", "--model", "/models/model", "--local-workers", "2",
                 "--kv-memory", "64M"]},
    "mounts": [mount("/proc", "proc", "proc"),
               mount("/dev", "tmpfs", "tmpfs", "nosuid", "mode=755", "size=65536k"),
               mount("/dev/shm", "tmpfs", "shm", "nosuid", "nodev", "mode=1777", "size=268435456"),
               mount("/tmp", "tmpfs", "tmpfs", "nosuid", "nodev", "mode=1777"),
               mount("/models/model", "bind", model, "bind", "ro")],
    "linux": {"namespaces": [{"type": t} for t in ("pid", "network", "ipc", "uts", "mount")]}}))
END
container=winnow-image-test-$$
crun=(crun --root "$work/crun" --cgroup-manager=disabled)
"${crun[@]}" run -d -b "$work/bundle" "$container" >"$work/out" 2>"$work/log" </dev/null ||
    { cat "$work/log"; exit 1; }
in_container() { "${crun[@]}" exec -u 1000700000:0 "$container" "$@"; }
for _ in $(seq 300); do
    in_container /usr/bin/winnow status 2>/dev/null | grep -qw ready && break
    sleep 0.2
done
in_container /usr/bin/winnow status || { cat "$work/log"; exit 1; }
grep -q "+$id" "$rootfs/usr/share/winnow/version.txt"
if in_container /bin/sh -c true 2>/dev/null; then echo 'image: there is a shell' >&2; exit 1; fi
in_container /usr/bin/winnow generate --prompt 'one two three' --max-tokens 4 --json |
    python3 -c 'import json, sys; assert json.load(sys.stdin)["usage"]["completion_tokens"] == 4'
"${crun[@]}" kill "$container" TERM
for _ in $(seq 100); do
    "${crun[@]}" state "$container" | grep -q '"stopped"' && break
    sleep 0.1
done
"${crun[@]}" state "$container" | grep -q '"stopped"' || { echo 'image: it does not stop' >&2; exit 1; }
echo 'image: built, served and stopped'
