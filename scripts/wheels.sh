#!/bin/sh
# Packs the libraries that `make release-libraries` built into wheels, and the source distribution beside them, into
# build/dist: the same bytes from the same commit, wherever the checkout lies. Checks both. Usage: scripts/wheels.sh ARCH…
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

for arch; do
    LESSISMORE_LIBRARY="$PWD/build/wheels/$arch/liblessismore.so" \
        python3 -m build --wheel --no-isolation --outdir "$out" bindings/python >"build/wheels/$arch/wheel.log" 2>&1 ||
        { cat "build/wheels/$arch/wheel.log" >&2; exit 1; }
done
python3 -m build --sdist --no-isolation --outdir "$out" bindings/python >build/wheels/sdist.log 2>&1 ||
    { cat build/wheels/sdist.log >&2; exit 1; }
for wheel in "$out"/*.whl; do
    size=$(wc -c <"$wheel")
    [ "$size" -le "$largest" ] || { echo "$wheel has $size bytes, more than $largest" >&2; exit 1; }
done
python3 -m twine check --strict "$out"/*.whl "$out"/*.tar.gz
python3 scripts/check-wheel.py "$out"/*.whl
(cd "$out" && sha256sum ./*.whl ./*.tar.gz)
