#!/bin/sh
# Builds the library: its C++ parts by CMake, everything by Go. It installs nothing but, for --arch, that compiler.
#
#   scripts/library.sh [--build=FOLDER] [--arch=ARCH] [--cuda=INCLUDE] [--highway=INCLUDE]
#
# --build    where it goes: FOLDER/liblessismore.so (build)
# --arch     x86_64, aarch64: for this architecture and glibc 2.28, with the pinned compiler of zig-toolchain.sh;
#            without it this machine's own compilers
# --cuda     the folder with cuda.h: with the CUDA engine, whose kernels must be in plugin/internal/cuda/kernels.fatbin
# --highway  the folder with hwy/highway.h, if it is not where the compiler looks
set -eu
cd "$(dirname "$0")/.."

build=build arch="" cuda="" highway=""
for option; do
    case "$option" in
    --build=*) build=${option#*=} ;;
    --arch=*) arch=${option#*=} ;;
    --cuda=*) cuda=${option#*=} ;;
    --highway=*) highway=${option#*=} ;;
    *) echo "$option is none of --build=, --arch=, --cuda=, --highway=" >&2; exit 1 ;;
    esac
done
mkdir -p "$build"
build=$(cd "$build" && pwd)
tags=netgo,osusergo
set -- -DCMAKE_BUILD_TYPE=Release
if [ -n "$arch" ]; then
    tools=$(scripts/zig-toolchain.sh "$arch")
    export CC="$tools/cc" CXX="$tools/c++" AR="$tools/ar"
    export CGO_ENABLED=1 GOOS=linux
    case "$arch" in
    x86_64) export GOARCH=amd64 GOAMD64=v1 ;;
    aarch64) export GOARCH=arm64 GOARM64=v8.0 ;;
    esac
    tags=$tags,libcxx
    # The rest of /usr/include is for this machine's own compiler.
    if [ -z "$highway" ]; then
        mkdir -p "$build/include"
        ln -sfn "${HIGHWAY:-/usr/include}/hwy" "$build/include/hwy"
        highway=$build/include
    fi
    set -- "$@" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR="$arch" -DCMAKE_AR="$AR" -DCMAKE_RANLIB="$tools/ranlib" \
        -DLESSISMORE_TESTS=OFF
fi
[ -z "$highway" ] || set -- "$@" -DHIGHWAY_INCLUDE_DIR="$highway"
command -v make >/dev/null || set -- "$@" -G Ninja
cmake -S . -B "$build/cmake" "$@" >"$build/cmake.log" || { cat "$build/cmake.log" >&2; exit 1; }
cmake --build "$build/cmake" -j "$(nproc)"

if [ -n "$cuda" ]; then
    tags=$tags,cuda
    export CGO_CFLAGS="-O2 -g '-I$PWD/plugin/internal/cudrv/include' '-I$cuda'"
fi
[ "$build" = "$PWD/build" ] || export CGO_LDFLAGS="'-L$build/cmake/lib'" # found before what the sources name
scripts/archives.sh "$build/cmake/lib"
set -x
go build -trimpath -buildvcs=false -buildmode=c-shared -tags "$tags" \
    -ldflags="-s -w -buildid= -B none '-extldflags=\"-Wl,--version-script=$PWD/capi/exports.map,--as-needed,-soname,liblessismore.so\" -static-libgcc'" \
    -o "$build/liblessismore.so" ./capi
rm -f "$build/liblessismore.h"
