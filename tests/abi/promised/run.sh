#!/bin/sh
# What was promised holds: for each header that was, the host that was compiled against it then, and one that is compiled against
# it now, run on the library; its functions are the first ones of today's, its fields and numbers where and what they were.
# LESSISMORE_LIBRARY: the library; CC: the compiler; BUILD: where programs go.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
library=${LESSISMORE_LIBRARY:-$root/build/liblessismore.so}
build=${BUILD:-$root/build/abi}/promised
cc="${CC:-cc} -std=gnu11 -O1 -Wall -Wextra -Werror"
mkdir -p "$build"

# The exported symbols are those in the list, no more and no fewer.
nm -D --defined-only "$library" | awk '{ print $3 }' | LC_ALL=C sort >"$build/exported"
diff -u "$here/../symbols" "$build/exported" || { echo "the library exports other symbols than tests/abi/symbols says" >&2; exit 1; }

# shellcheck disable=SC2086 # $cc is a list of words
python3 "$here/layout.py" "$root/include/lessismore.h" >"$build/layout.c" && $cc -DEND_CHECKED "-I$root/include" "$build/layout.c" -o "$build/layout"
"$build/layout" >"$build/now" || { tail -n 1 "$build/now" >&2; exit 1; }

functions() { sed -n 's/^    X(\(.*[^ ]\) *\\*$/\1/p' "$1/lessismore.h" | sed 's/ *\\$//'; }
for header in "$here"/*/lessismore.h; do
    then=${header%/*}
    [ -z "$(LC_ALL=C comm -23 "$then/symbols" "$here/../symbols")" ] || { echo "$then/symbols has what the library no longer exports" >&2; exit 1; }

    functions "$then" >"$build/then"
    functions "$root/include" | head -n "$(wc -l <"$build/then")" >"$build/now"
    diff -u "$build/then" "$build/now" || { echo "the table's functions have changed since $header" >&2; exit 1; }

    python3 "$here/layout.py" "$header" >"$build/layout.c"
    for side in kept today; do
        include=$then
        [ $side = kept ] || include=$root/include
        # shellcheck disable=SC2086
        $cc "-I$include" "$build/layout.c" -o "$build/layout-$side"
        "$build/layout-$side" >"$build/$side"
    done
    diff -u "$build/kept" "$build/today" | awk '/^[-+]LIM_MAX/ { n[$1 $2] = 1; v[$1] = $NF; next } /^[-+][^-+]/ { print; bad = 1 }
        END { for (k in v) if (k ~ /^-/) { m = "+" substr(k, 2); if (v[m] + 0 < v[k] + 0) { print substr(k, 2), "is less than", v[k]; bad = 1 } } exit bad }' ||
        { echo "fields or numbers have changed since $header" >&2; exit 1; }

    for include in "$then" "$root/include"; do
        # shellcheck disable=SC2086
        $cc "-I$include" "$here/host.c" -o "$build/host" -lm -ldl
        "$build/host" "$library"
    done
    host=$then/host.$(uname -m)
    if [ -x "$host" ]; then "$host" "$library"; else echo "no executable of then for $(uname -m)"; fi
done
