#!/usr/bin/env bash
# Collect what winnow's programs need at run time, and nothing else, into a root file system.
#
#   rootfs.sh BIN OUT [LIBRARY...]
#
#   BIN        folder with winnow-coordinator, winnow-worker and winnow
#   OUT        folder to make: the contents of an image made FROM scratch
#   LIBRARY    more shared objects (paths or names the loader knows), found at run time by dlopen
#
# The programs, the loader and the libraries that ldd names are copied, with their packages'
# licences and a list of their versions.  There is no shell and no package manager.  Any user id
# can run it, and nothing in it is ever written: /tmp and /dev/shm come from whoever runs it.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2; }
bin=$(realpath -e "$1") out=$(realpath -m "$2")
shift 2
[ ! -e "$out" ] || { echo "rootfs: $out exists" >&2; exit 1; }
umask 022

mkdir -p "$out"/{dev,etc/ssl/certs,etc/winnow,models,proc,sys,tmp,usr/bin,usr/lib,usr/share/winnow/licences}
chmod 1777 "$out/tmp"
for name in bin lib lib64; do ln -s "usr/${name%64}" "$out/$name"; done

programs=()
for name in winnow-coordinator winnow-worker winnow; do
    install -m 0755 -s "$bin/$name" "$out/usr/bin/$name"
    programs+=("$bin/$name")
done

# Paths of every library, as the loader resolves them here.
libraries() {
    local missing
    missing=$(ldd "$@" | grep 'not found' || true)
    [ -z "$missing" ] || { echo "rootfs: $missing" >&2; return 1; }
    ldd "$@" | sed -nE 's/^\s*(\S+ => )?(\/\S+) \(0x.*/\2/p'
}
extra=()
for name in "$@"; do
    path=$name
    [ -e "$path" ] || path=$(ldconfig -p | sed -nE "s/^\s*$name \(libc6,x86-64.* => (.*)/\1/p" | head -n 1)
    [ -e "$path" ] || { echo "rootfs: $name: no such library" >&2; exit 1; }
    extra+=("$path")
done
mapfile -t found < <({ libraries "${programs[@]}" "${extra[@]}"; printf '%s\n' "${extra[@]}"; } |
    grep . | sort -u)
[ "${#found[@]}" -gt 5 ] || { echo "rootfs: ldd names no libraries" >&2; exit 1; }
for path in "${found[@]}"; do
    # by the name under which the loader looks for it; the loader itself has its own folder
    install -m 0755 "$(readlink -f "$path")" "$out/usr/lib/$(basename "$path")"
done

# Which package each library is from, with its licence; "-" where it is of no package.
packages=$out/usr/share/winnow/packages.txt
for path in "${found[@]}"; do
    real=$(readlink -f "$path")
    package=$(dpkg-query -S "$real" 2>/dev/null || dpkg-query -S "${real#/usr}" 2>/dev/null ||
        echo "$(basename "$path"): $path")
    echo "${package%%: *}"
done | sort -u | while read -r package; do
    copyright=/usr/share/doc/${package%%:*}/copyright
    version=$(dpkg-query -W -f '${Version}' "$package" 2>/dev/null || echo '-')
    [ ! -e "$copyright" ] || cp -L "$copyright" "$out/usr/share/winnow/licences/${package%%:*}"
    echo "$package $version"
done >"$packages"

echo 'root:x:0:0::/:/nonexistent
winnow:x:65532:65532::/tmp:/nonexistent' >"$out/etc/passwd"
echo 'root:x:0:
winnow:x:65532:' >"$out/etc/group"
echo 'hosts: files dns' >"$out/etc/nsswitch.conf"
certificates=/etc/ssl/certs/ca-certificates.crt
[ ! -e "$certificates" ] || cp -L "$certificates" "$out/etc/ssl/certs/"
"${programs[0]}" --version >"$out/usr/share/winnow/version.txt"
du -sh "$out" | sed 's/^/rootfs: /' >&2
