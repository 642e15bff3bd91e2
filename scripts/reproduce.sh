#!/bin/sh
# Builds the commit that is checked out again, in another folder, and compares: wheels, source distribution and archives
# are the same bytes. Usage: scripts/reproduce.sh, after `make wheels dist`.
set -eu
cd "$(dirname "$0")/.."

[ -z "$(git status --porcelain)" ] || { echo "there is something that is not committed" >&2; exit 1; }
again=$(mktemp -d)
trap 'rm -rf "$again"' EXIT
git clone --quiet . "$again/other"
make --no-print-directory -C "$again/other" wheels dist
different=0
for file in build/dist/*; do
    cmp "$file" "$again/other/$file" || different=1
done
[ "$(ls build/dist)" = "$(ls "$again/other/build/dist")" ] || { echo "other files" >&2; different=1; }
[ $different = 0 ] && echo "the same bytes in all files of build/dist"
exit $different
