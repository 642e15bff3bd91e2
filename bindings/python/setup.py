"""Builds the shared library and puts it into the wheel, which is tagged by the glibc that the library needs.

LESSISMORE_LIBRARY names a library that is built already; `make library` makes one in a checkout. A source distribution
carries what is built from in its folder `source`, the CUDA kernels' machine code and Highway's headers included, so
that Go and a C++ compiler are all that has to be there. Nothing is written into this folder.
"""

import gzip
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import tarfile
import tempfile

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = HERE / "source"  # in a source distribution
ROOT = SOURCE if SOURCE.exists() else HERE.parents[1]
NAME = "liblessismore.so"
LICENSES = ("LICENSE", "THIRD_PARTY_LICENSES")
OLDEST = (2, 28)  # the oldest glibc that wheels are built for
MACHINES = {62: "x86_64", 183: "aarch64"}
CUDA_HEADERS = "nvidia-cuda-runtime==13.0.96"  # of the version in scripts/cuda-toolchain.sh
SOURCES = (
    "CMakeLists.txt LICENSE THIRD_PARTY_LICENSES go.mod go.sum capi plugin kernels bindings/ggml include "
    "scripts/library.sh scripts/archives.sh scripts/from-pypi.sh scripts/zig-toolchain.sh"
).split()


def same_version() -> None:
    """The package's, the header's and the library's version are one."""
    done = subprocess.run([sys.executable, ROOT / "scripts" / "version.py"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip())


def require(*tools: str) -> None:
    for tool in tools:
        if not shutil.which(tool):
            raise SystemExit(f"{tool} is needed to build the library, and not found in PATH")


def library() -> pathlib.Path:
    """The shared library, built if need be."""
    if sys.platform != "linux" or "musl" in (sysconfig.get_config_var("SOABI") or ""):
        raise SystemExit(f"lessismore needs Linux with glibc, not {sys.platform} {sysconfig.get_config_var('SOABI')}")
    if given := os.environ.get("LESSISMORE_LIBRARY"):
        return pathlib.Path(given).resolve()
    if ROOT == SOURCE:
        return from_source()
    if not (ROOT / "Makefile").exists():
        raise SystemExit(f"{ROOT} is no checkout of lessismore: build there, or name a library in LESSISMORE_LIBRARY")
    same_version()
    require("make", "go", "cmake")
    if subprocess.run(["make", "-C", ROOT, "library"]).returncode:
        raise SystemExit(f"make library failed in {ROOT}")
    return ROOT / "build" / NAME


def tools_to_fetch() -> "list[str]":
    """What a source distribution's build takes from the package index, where pip isolates it."""
    if ROOT != SOURCE or os.environ.get("LESSISMORE_LIBRARY"):
        return []
    cmake = [] if shutil.which("cmake") else ["cmake>=3.22"]
    return [*cmake, *([] if shutil.which("make") else ["ninja"]), CUDA_HEADERS]


def cuda_headers() -> "list[pathlib.Path]":
    """Of CUDA_HEADERS, where it was installed: without them the library has no CUDA engine."""
    found = (pathlib.Path(folder) / "nvidia" / "cu13" / "include" for folder in sys.path)
    return [folder for folder in found if (folder / "cuda.h").exists()][:1]


def from_source() -> pathlib.Path:
    """The library, built from a source distribution in a scratch folder."""
    require("go", "cmake")
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        raise SystemExit(f"a C++ compiler is needed to build the library, and none of {', '.join(compilers)} is in PATH")
    copy = pathlib.Path(scratch) / "source"
    if not copy.exists():
        shutil.copytree(SOURCE, copy)
        options = [f"--cuda={folder}" for folder in cuda_headers()]
        if (copy / "third_party" / "hwy").exists():
            options.append(f"--highway={copy / 'third_party'}")
        if subprocess.run(["sh", copy / "scripts" / "library.sh", *options]).returncode:
            raise SystemExit("the library could not be built: see above")
    return copy / "build" / NAME


def glibc_and_machine(path: pathlib.Path) -> "tuple[tuple[int, int], str]":
    """The newest GLIBC_x.y that an ELF library asks for, and the machine it is for."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise SystemExit(f"{path} is no 64-bit little-endian ELF file")
    (machine,) = struct.unpack_from("<18xH", data, 0)
    if machine not in MACHINES:
        raise SystemExit(f"{path} is for ELF machine {machine}, none of {MACHINES}")
    offset, size, count = struct.unpack_from("<40xQ10xHH", data, 0)  # section headers
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, offset + i * size) for i in range(count)]
    (versions,) = (s for s in sections if s[1] == 0x6FFFFFFE)  # SHT_GNU_verneed
    strings = sections[versions[6]]
    names = data[strings[4] : strings[4] + strings[5]]
    found = [tuple(map(int, m)) for m in re.findall(rb"\0GLIBC_(\d+)\.(\d+)(?=[.\0])", names)]
    return max([OLDEST, *found]), MACHINES[machine]


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
        (major, minor), machine = glibc_and_machine(built if built.exists() else library())  # none in an editable wheel
        return "py3", "none", f"manylinux_{major}_{minor}_{machine}"


class Sdist(sdist):
    """With the sources of the library, and what has no package that a build could fetch."""

    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        target = pathlib.Path(base_dir) / "source"
        if ROOT == SOURCE:
            shutil.copytree(SOURCE, target)
            return
        same_version()
        require("git")
        kernels = pathlib.Path("plugin/internal/cuda/kernels.fatbin")
        if not (ROOT / kernels).exists():
            raise SystemExit(f"{ROOT / kernels} is missing: `make library CUDA=1` makes it")
        listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z", *SOURCES], check=True, capture_output=True, text=True)
        for name in [*listed.stdout.split("\0")[:-1], str(kernels)]:
            if not name.endswith(("_test.go", "_test.cc")):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target / name)
        highway = pathlib.Path(os.environ.get("HIGHWAY", "/usr/include")) / "hwy"
        for path in (p for p in highway.rglob("*.h") if "tests" not in p.relative_to(highway).parts):
            copy = target / "third_party" / "hwy" / path.relative_to(highway)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)

    def make_archive(self, base_name, format, root_dir=None, base_dir=None, owner=None, group=None):
        """The same bytes from the same sources: names in order, no dates but one, no owners."""
        if format != "gztar":
            raise SystemExit(f"a source distribution is a gztar, not a {format}")
        date = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))

        def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = date, 0, 0, "", ""
            entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            return entry

        path = pathlib.Path(f"{base_name}.tar.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, date) as zipped:
            with tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar:
                tar.add(pathlib.Path(root_dir or ".") / base_dir, pathlib.Path(base_dir).name, filter=plain)
        return str(path)


class Binary(Distribution):
    def has_ext_modules(self) -> bool:
        return True


scratch = tempfile.mkdtemp(prefix="lessismore-build-")
try:
    setup(
        cmdclass={"build_py": BuildPy, "bdist_wheel": Wheel, "sdist": Sdist},
        setup_requires=tools_to_fetch(),
        distclass=Binary,
        options={"build": {"build_base": scratch}, "egg_info": {"egg_base": scratch}, "bdist_wheel": {"bdist_dir": f"{scratch}/wheel"}},
    )
finally:
    shutil.rmtree(scratch, ignore_errors=True)
