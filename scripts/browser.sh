#!/bin/sh
# Prints the path of a Chromium that runs without a screen, for the test of the report page. Installs Debian's
# where there is none.
set -eu

find_one() {
    for name in chromium chromium-browser google-chrome; do
        command -v "$name" && return 0
    done
    return 1
}
find_one && exit 0

if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "please install Chromium (Debian's name: chromium)" >&2
    exit 1
fi
echo "installing chromium" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >&2
apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null 2>&1 ||
    { echo "chromium could not be installed" >&2; exit 1; }
find_one
