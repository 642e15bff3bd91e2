#!/bin/sh
# Packs a library for people without Python: lessismore-VERSION-linux-ARCH.tar.xz, the same bytes from the same library.
# Usage: scripts/dist.sh LIBRARY ARCH FOLDER; prints the archive's path.
set -eu

library=$1 arch=$2
mkdir -p "$3"
out=$(cd "$3" && pwd)
root=$(cd "$(dirname "$0")/.." && pwd)
parts=$root/scripts/dist
version=$(sed -n 's/^#define LIM_VERSION_STRING "\(.*\)"$/\1/p' "$root/include/lessismore.h")
name=lessismore-$version-linux-$arch
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

install -d "$scratch/$name/lib/pkgconfig" "$scratch/$name/lib/cmake/lessismore" "$scratch/$name/include"
install -m 755 "$library" "$scratch/$name/lib/liblessismore.so"
install -m 644 "$root/include/lessismore.h" "$scratch/$name/include"
install -m 644 "$root/LICENSE" "$root/THIRD_PARTY_LICENSES" "$scratch/$name"
fill() { sed -e "s/@VERSION@/$version/g" -e "s/@ARCH@/$arch/g" "$parts/$1" >"$scratch/$name/$2"; }
fill README README
fill lessismore.pc lib/pkgconfig/lessismore.pc
fill lessismore-config.cmake lib/cmake/lessismore/lessismore-config.cmake
fill lessismore-config-version.cmake lib/cmake/lessismore/lessismore-config-version.cmake
tar -C "$scratch" --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw \
    --mtime="@${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct)}" -cf "$scratch/tar" "$name"
xz -6 -T1 <"$scratch/tar" >"$out/$name.tar.xz"
echo "$out/$name.tar.xz"
