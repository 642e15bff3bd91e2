#!/bin/sh
# Prints a folder with cc, c++, ar and ranlib that build for another architecture or an older glibc than this machine's:
# PyPI's zig, pinned. Usage: scripts/zig-toolchain.sh x86_64|aarch64
set -eu

version=0.15.2
glibc=2.28
arch=$1
# Baseline instructions; the kernels ask for more, target by target. Highway's AVX-512 code is older than the name that
# this clang has for 512-bit registers, which without AVX-512 means nothing.
case "$arch" in
x86_64) more="-mevex512" ;;
aarch64) more="" ;;
*) echo "$arch is none of x86_64, aarch64" >&2; exit 1 ;;
esac
zig="$("$(dirname "$0")/from-pypi.sh" "zig-$version" "ziglang==$version")/ziglang/zig"
tools="${XDG_CACHE_HOME:-$HOME/.cache}/lessismore/zig-$version-tools/$arch-$glibc"
mkdir -p "$tools"
# Go's binding for CUDA asks for this machine's own headers and libraries by name: they are left out.
write() { # NAME COMMAND: whole or not at all, and not anew where nothing changed (CMake would build again)
    cat >"$tools/.$1.$$" <<END
#!/bin/sh
for argument; do
    shift
    case "\$argument" in -I/usr/include | -L/usr/lib/*) ;; *) set -- "\$@" "\$argument" ;; esac
done
ZIG_GLOBAL_CACHE_DIR="${tools%/*}/cache" exec "$zig" $2 "\$@"
END
    chmod +x "$tools/.$1.$$"
    if cmp -s "$tools/.$1.$$" "$tools/$1"; then rm "$tools/.$1.$$"; else mv "$tools/.$1.$$" "$tools/$1"; fi
}
flags="-target $arch-linux-gnu.$glibc -g0 -fno-sanitize=undefined $more"
write cc "cc $flags"
write c++ "c++ $flags"
write ar ar
write ranlib ranlib
echo "$tools"
