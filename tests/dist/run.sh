#!/bin/sh
# The archive for people without Python: unpacked in a fresh folder, a C program builds against it by pkg-config and by
# CMake, and computes. Then what only the archive can get wrong. LESSISMORE_LIBRARY: the library; CC: the compiler.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
library=${LESSISMORE_LIBRARY:-$root/build/liblessismore.so}
arch=$(uname -m)
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
fail() { echo "dist: $1" >&2; exit 1; }

archive=$("$root/scripts/dist.sh" "$library" "$arch" "$fresh/one")
again=$("$root/scripts/dist.sh" "$library" "$arch" "$fresh/two")
cmp "$archive" "$again" || fail "two archives of one library differ"
mkdir "$fresh/with space"
tar -C "$fresh/with space" -xf "$archive"
dist=$(echo "$fresh/with space"/lessismore-*)
version=${dist##*/lessismore-}
version=${version%-linux-*}
for file in LICENSE THIRD_PARTY_LICENSES README include/lessismore.h; do
    [ -s "$dist/$file" ] || fail "$file is missing"
done
modules=$(go version -m "$library" | awk '$1 == "dep" { print $2 }')
[ -n "$modules" ] || fail "the library does not say which Go modules are linked in"
for module in $modules; do
    grep -q "^##* $module\$" "$dist/THIRD_PARTY_LICENSES" || fail "$module is linked in, but not in THIRD_PARTY_LICENSES"
done
[ "$(wc -l <"$dist/README")" -le 10 ] || fail "README is longer than ten lines"
! grep -rn '@[A-Z]*@' "$dist/README" "$dist/lib/pkgconfig" "$dist/lib/cmake" || fail "a name was not filled in"

mkdir "$fresh/program"
cp "$here/program.c" "$fresh/program"
cd "$fresh/program"
export PKG_CONFIG_PATH="$dist/lib/pkgconfig"
[ "$(pkg-config --modversion lessismore)" = "$version" ] || fail "pkg-config states another version"
eval "${CC:-cc} -std=c11 -Wall -Wextra -Wpedantic -Werror program.c $(pkg-config --cflags --libs lessismore) -lm -o program"
LD_LIBRARY_PATH="$dist/lib" ./program

sed "s/@VERSION@/$version/" "$here/CMakeLists.txt" >CMakeLists.txt
configure() { cmake -S . -B build -DCMAKE_PREFIX_PATH="$dist" >log 2>&1; }
if ! configure || ! cmake --build build >>log 2>&1; then cat log; exit 1; fi
build/program

takes() { # VERSION: whether a project that asks for it, and compiles nothing, is given this one
    rm -rf build
    printf 'cmake_minimum_required(VERSION 3.22)\nproject(p NONE)\nfind_package(lessismore %s REQUIRED)\n' "$1" >CMakeLists.txt
    configure
}
if ! takes "$version" || ! takes ""; then cat log; exit 1; fi
for wrong in 1.0 0.0.1 "$version.1"; do
    ! takes "$wrong" || fail "CMake takes version $version where $wrong is asked for"
done
