#!/bin/sh
# Prints a folder that has pinned packages of PyPI in it, installing them if they are not there. It lies in the user's
# cache, outside the tree. Usage: scripts/from-pypi.sh NAME-VERSION REQUIREMENT…
set -eu

base="${XDG_CACHE_HOME:-$HOME/.cache}/lessismore"
folder="$base/$1"
shift
if [ ! -d "$folder" ]; then
    echo "installing $* into $folder" >&2
    mkdir -p "$base"
    partial="$folder.partial.$$"
    trap 'rm -rf "$partial" "$partial.venv"' EXIT
    python=python3
    if ! python3 -m pip --version >/dev/null 2>&1; then
        python3 -m venv "$partial.venv" >&2 || { echo "python3 has neither pip nor venv" >&2; exit 1; }
        python="$partial.venv/bin/python"
    fi
    "$python" -m pip install --quiet --no-compile --disable-pip-version-check --root-user-action=ignore \
        --target "$partial" "$@" >&2
    mv -T "$partial" "$folder" 2>/dev/null || [ -d "$folder" ] # another build may have been faster
fi
echo "$folder"
