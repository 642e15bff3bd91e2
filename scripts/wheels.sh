#!/bin/sh
# Packs the libraries that `make release-libraries` built into wheels, and the source distribution and the demo's wheel beside
# them, into build/dist: the same bytes from the same commit, wherever the checkout lies. Checks all. Usage: scripts/wheels.sh ARCH…
set -eu
cd "$(dirname "$0")/.."
umask 022

out=$PWD/build/dist
largest=$((12 * 1024 * 1024))
requirements=scripts/release-requirements.txt
tools=$(scripts/from-pypi.sh "release-$(sha256sum $requirements | cut -c1-12)" -r $requirements)
export PYTHONPATH="$tools" PYTHONDONTWRITEBYTECODE=1
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}"
mkdir -p "$out"
rm -f "$out"/*.whl "$out"/lessismore-*.tar.gz

pack() { # KIND FOLDER
    python3 -m build "--$1" --no-isolation --outdir "$out" "$2" >build/wheels/pack.log 2>&1 || { cat build/wheels/pack.log >&2; exit 1; }
}
for arch; do
    export LESSISMORE_LIBRARY="$PWD/build/wheels/$arch/liblessismore.so"
    pack wheel bindings/python
done
unset LESSISMORE_LIBRARY
pack sdist bindings/python
pack wheel demo
for wheel in "$out"/lessismore-*.whl; do
    size=$(wc -c <"$wheel")
    [ "$size" -le "$largest" ] || { echo "$wheel has $size bytes, more than $largest" >&2; exit 1; }
done
python3 -m twine check --strict "$out"/*.whl "$out"/*.tar.gz
python3 scripts/check-wheel.py "$out"/lessismore-*.whl
(cd "$out" && sha256sum ./*.whl ./*.tar.gz)
