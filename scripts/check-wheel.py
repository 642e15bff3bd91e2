#!/usr/bin/env python3
"""Checks what a wheel's library asks of a system: check-wheel.py WHEEL…

It needs libc and its kin only, no newer glibc than the wheel's tag states, and auditwheel agrees. Prints one line for
each wheel. Needs auditwheel and pyelftools (scripts/release-requirements.txt).
"""

import io
import pathlib
import re
import subprocess
import sys
import zipfile

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

KIN = re.compile(r"(libc|libm|libdl|libpthread|librt)\.so\.\d|ld-linux-[\w-]+\.so\.\d")
TAG = re.compile(r"manylinux_(\d+)_(\d+)_(\w+)\.whl")


def check(wheel: pathlib.Path) -> str:
    """What was found, in a line; raises ValueError."""
    match = TAG.search(wheel.name)
    if not match:
        raise ValueError("has no manylinux tag")
    stated = tuple(map(int, match.groups()[:2]))
    with zipfile.ZipFile(wheel) as z:
        elf = ELFFile(io.BytesIO(z.read("lessismore/liblessismore.so")))
    needed, versions = [], {}
    for section in elf.iter_sections():
        if isinstance(section, DynamicSection):
            needed = [tag.needed for tag in section.iter_tags("DT_NEEDED")]
        elif isinstance(section, GNUVerNeedSection):
            names = [aux.name for _, of_library in section.iter_versions() for aux in of_library]
            versions = {tuple(map(int, n[6:].split("."))) for n in names if n.startswith("GLIBC_")}
    if strangers := [name for name in needed if not KIN.fullmatch(name)]:
        raise ValueError(f"needs {', '.join(strangers)}")
    newest = max(versions)
    if newest > stated:
        raise ValueError(f"needs GLIBC_{'.'.join(map(str, newest))}, more than its tag states")
    shown = subprocess.run([sys.executable, "-m", "auditwheel", "show", wheel], capture_output=True, text=True)
    said = re.search(r'platform tag:\s+"(\w+)"', shown.stdout)
    if not said:
        raise ValueError(f"auditwheel: {shown.stdout}{shown.stderr}")
    audited = re.fullmatch(r"manylinux_(\d+)_(\d+)_(\w+)", said[1])
    if not audited or tuple(map(int, audited.groups()[:2])) > stated or audited[3] != match[3]:
        raise ValueError(f"auditwheel says {said[1]}")
    size = wheel.stat().st_size / 1e6
    return f"{size:.2f} MB, needs {', '.join(sorted(needed))}, GLIBC_{'.'.join(map(str, newest))}; auditwheel: {said[1]}"


def main() -> int:
    failed = 0
    for name in sys.argv[1:]:
        wheel = pathlib.Path(name)
        try:
            print(f"{wheel.name}: {check(wheel)}")
        except ValueError as e:
            print(f"{wheel.name}: {e}", file=sys.stderr)
            failed += 1
    return 1 if failed or len(sys.argv) < 2 else 0


if __name__ == "__main__":
    sys.exit(main())
