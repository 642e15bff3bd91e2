"""Builds the shared library and puts it into the wheel, which is tagged by the glibc that the library needs.

LESSISMORE_LIBRARY names a library that is built already; `make library` makes one otherwise. Nothing is written
into this folder.
"""

import os
import pathlib
import platform
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAME = "liblessismore.so"
LICENSES = ("LICENSE", "THIRD_PARTY_LICENSES")
OLDEST = (2, 17)  # the oldest glibc that wheels have a tag for


def version() -> str:
    return re.search(r'"(.+)"', (HERE / "lessismore" / "_version.py").read_text())[1]


def same_version() -> None:
    """The package's, the header's and the library's version are one."""
    for name, pattern in (("include/lessismore.h", r'LIM_VERSION_STRING +"(.+)"'), ("plugin/version.go", r'Version = "(.+)"')):
        stated = re.search(pattern, (ROOT / name).read_text())[1]
        if stated != version():
            raise SystemExit(f"{name} states version {stated}, the package {version()}")


def library() -> pathlib.Path:
    """The shared library, built if need be."""
    if sys.platform != "linux" or "musl" in (sysconfig.get_config_var("SOABI") or ""):
        raise SystemExit(f"lessismore needs Linux with glibc, not {sys.platform} {sysconfig.get_config_var('SOABI')}")
    if given := os.environ.get("LESSISMORE_LIBRARY"):
        return pathlib.Path(given).resolve()
    if not (ROOT / "Makefile").exists():
        raise SystemExit(f"{ROOT} is no checkout of lessismore: build there, or name a library in LESSISMORE_LIBRARY")
    same_version()
    for tool in ("make", "go", "cmake"):
        if not shutil.which(tool):
            raise SystemExit(f"{tool} is needed to build the library, and not found in PATH")
    if subprocess.run(["make", "-C", ROOT, "library"]).returncode:
        raise SystemExit(f"make library failed in {ROOT}")
    return ROOT / "build" / NAME


def needed_glibc(path: pathlib.Path) -> "tuple[int, int]":
    """The newest GLIBC_x.y that an ELF library asks for: the names in its dynamic string table."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise SystemExit(f"{path} is no 64-bit little-endian ELF file")
    offset, size, count = struct.unpack_from("<40xQ10xHH", data, 0)  # section headers
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, offset + i * size) for i in range(count)]
    (versions,) = (s for s in sections if s[1] == 0x6FFFFFFE)  # SHT_GNU_verneed
    strings = sections[versions[6]]
    names = data[strings[4] : strings[4] + strings[5]]
    found = [tuple(map(int, m)) for m in re.findall(rb"\0GLIBC_(\d+)\.(\d+)(?=[.\0])", names)]
    return max([OLDEST, *found])


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the package in the source tree finds build/ by itself
            library()
            return
        package = pathlib.Path(self.build_lib) / "lessismore"
        shutil.copy2(library(), package / NAME)
        for name in LICENSES:  # of what is linked in, too
            if (ROOT / name).exists():
                shutil.copy2(ROOT / name, package / name)


class Wheel(bdist_wheel):
    def get_tag(self):
        built = pathlib.Path(self.bdist_dir) / "lessismore" / NAME
        major, minor = needed_glibc(built if built.exists() else library())  # there is none in an editable wheel
        return "py3", "none", f"manylinux_{major}_{minor}_{platform.machine()}"


class Binary(Distribution):
    def has_ext_modules(self) -> bool:
        return True


scratch = tempfile.mkdtemp(prefix="lessismore-build-")
try:
    setup(
        cmdclass={"build_py": BuildPy, "bdist_wheel": Wheel},
        distclass=Binary,
        options={"build": {"build_base": scratch}, "egg_info": {"egg_base": scratch}, "bdist_wheel": {"bdist_dir": f"{scratch}/wheel"}},
    )
finally:
    shutil.rmtree(scratch, ignore_errors=True)
