#!/usr/bin/env bash
# Pack what tests/gpu/run.sh needs into one file, for machines with GPUs and nothing else:
# programs built with CUDA, their libraries (but not the C library and the driver), golden cases.
#
#   tests/gpu/bundle.sh [BUILD] [FILE]      default: build-cuda winnow-gpu-tests.tar.gz
#
# There: tar xzf winnow-gpu-tests.tar.gz && winnow-gpu-tests/tests/gpu/run.sh
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
build=${1:-build-cuda} file=${2:-winnow-gpu-tests.tar.gz}
programs=(winnow winnow-coordinator winnow-worker winnow-bench-plan winnow-bench-engine
    winnow-gpu-goldens winnow-gpu-attention)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
top=$work/winnow-gpu-tests
mkdir -p "$top/bin" "$top/lib" "$top/tests/goldens" "$top/tests/models"
for program in "${programs[@]}"; do cp "$build/bin/$program" "$top/bin/"; done
cp "$build"/bin/winnow-gpu-test_* "$top/bin/"
ldd "$top"/bin/* | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u |
    { grep -vE '/(libc|libm|libpthread|libdl|librt|libcuda)\.so' || true; } |
    while read -r library; do cp -L "$library" "$top/lib/"; done
cp -r tests/gpu "$top/tests/"
cp -r tests/goldens/data "$top/tests/goldens/"
cp -r tests/models/stories260k "$top/tests/models/"
tar -C "$work" -czf "$file" winnow-gpu-tests
echo "$file: $(du -h "$file" | cut -f1)"
