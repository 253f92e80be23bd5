#!/bin/sh
# tidy.sh - the rules grep can check: layers, banned names, #ifdef, width.  Prints offenders; fails if any.
cd "${1:-$(dirname "$0")/..}" || exit 1
bad=0
src() { find "$@" -name '*.[ch]' -o -name '*.cu'; }
forbid() { # forbid "why" "regex" files...
    why=$1 regex=$2
    shift 2
    [ $# -gt 0 ] || return 0
    if grep -nHE "$regex" "$@"; then
        echo "tidy: $why" >&2
        bad=1
    fi
}
dirs=$(ls -d common coordinator worker kernels cli 2>/dev/null)
forbid "common knows nothing above it" '#include "(coordinator|worker|kernels)/' $(src common)
[ -d coordinator ] && forbid "coordinator meets worker only in proto/" '#include "(worker|kernels)/' $(src coordinator)
[ -d worker ] && forbid "worker sees kernels through op.h and device.h" '#include "(coordinator/|kernels/(backend\.h|cpu/|cuda/))' $(src worker)
[ -d kernels ] && forbid "kernels know nothing above them" '#include "(coordinator|worker)/' $(src kernels)
forbid "options come from options.c" '\bgetenv\(' $(src $dirs | grep -v '/options\.c$')
forbid "use the bounded or checked form" '\b(strcpy|strcat|sprintf|vsprintf|gets|strtok|atoi|atol|atof)\(' $(src $dirs)
forbid "a second file instead of #ifdef" '^ *# *if' $(src $dirs | grep -v '\.h$')
[ -d cli ] && forbid "the client knows common and proto/ only" '#include "(coordinator|worker|kernels)/' $(src cli)
forbid "stderr belongs to log.c, and in the client to print.c" '\bprintf\(|fprintf\(' $(src $dirs | grep -vE '(common/log|cli/print)\.c$|/main\.c$')
forbid "100 columns" '^.{101,}$' $(src $dirs)
exit $bad
