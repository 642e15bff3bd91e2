#!/usr/bin/env python3
"""Tries the wheels where they will run: on old and new systems of both architectures, in folders of their own.

    tests/platforms/run.py                     every system
    tests/platforms/run.py --short             one old system, one emulated architecture: what CI runs
    tests/platforms/run.py --only "Debian 13"  some
    tests/platforms/run.py --table FILE        the table, between its marks in FILE
    tests/platforms/run.py --missing           what this machine lacks for that, in a line; nothing if it lacks nothing

The folders hold what Debian's packages of the release hold, unpacked by mmdebstrap; another architecture than this
machine's runs in QEMU's user mode. In each: the wheel is imported, `lessismore doctor` computes an attention and
compares it, the numpy example runs, and a prebuilt llama.cpp solves a problem of tests/data/reasoner with and without
the library: node-llama-cpp, or xllamacpp where the system's glibc is too old for that. musl's loader is given the
library, and must answer with a text. Needs root; installs mmdebstrap and QEMU on Debian and its kin.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from dataclasses import dataclass, field

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent / "hosts"))
import hostlib  # noqa: E402
import install  # noqa: E402

# Emulation takes its time: a short problem, with a budget that it needs (with 48 tokens half of such problems go wrong).
SPARSE = {"LESSISMORE_BUDGET": "64", "LESSISMORE_LAYERS": "2,9"}
STEPS = hostlib.task.steps_for(256)
MIRROR = "http://deb.debian.org/debian"
MARKS = ("<!-- platforms: made by tests/platforms/run.py -->", "<!-- /platforms -->")
DEB = {"x86_64": "amd64", "aarch64": "arm64"}
NODE = {"x86_64": "linux-x64", "aarch64": "linux-arm64"}
EMULATED = "cortex-a72"  # a Raspberry Pi 4's: with QEMU's own default numpy does not end
BINFMT = pathlib.Path("/proc/sys/fs/binfmt_misc")
AARCH64 = (
    rb":lessismore-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:"
    rb"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-aarch64-static:F"
)


@dataclass
class System:
    name: str
    suite: str
    machine: str
    python: str
    host: str = ""
    packages: tuple = ()
    kind: str = ""  # of several with one suite
    rows: list = field(default_factory=list)
    glibc: str = ""

    @property
    def folder(self) -> pathlib.Path:
        return install.cache_dir().parent / "systems" / f"{self.suite}-{DEB[self.machine]}{self.kind}"


# node-llama-cpp's binaries need glibc 2.34.
NODE_HOST = {"host": "node-llama-cpp", "packages": ("nodejs", "libstdc++6", "libgomp1")}
OLD_HOST = {"host": "xllamacpp", "packages": ("libstdc++6", "libgomp1")}
SYSTEMS = [
    System("Debian 11", "bullseye", "x86_64", "3.9", **OLD_HOST),
    System("Debian 13", "trixie", "x86_64", "3.13", **NODE_HOST),
    System("Debian 11", "bullseye", "aarch64", "3.9", **OLD_HOST),
    System("Debian 13", "trixie", "aarch64", "3.13", **NODE_HOST),
]
# With what every Debian has, which dpkg does not ask for: grep and sed.
SOURCE = System(
    "Debian 13", "trixie", platform.machine(), "3.13", packages=("python3-pip", "g++", "golang-go", "grep", "sed"), kind="-source"
)
SHORT = (0, 3)


def run(command, **options) -> str:
    """What a command prints; raises RuntimeError with the end of what it said."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def missing() -> str:
    """What this machine lacks for the trials, in a line; empty if it lacks nothing."""
    if platform.machine() != "x86_64":
        return f"an x86_64 machine: this one is {platform.machine()}"
    if os.geteuid() != 0:
        return "root, to enter other systems' folders"
    if not shutil.which("apt-get"):
        return "apt-get, which installs mmdebstrap and QEMU"
    binfmt = "true" if (BINFMT / "register").exists() else f"mount -t binfmt_misc binfmt_misc {BINFMT}"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", f"mount -t tmpfs tmpfs /mnt && {binfmt}"], capture_output=True, text=True)
    if done.returncode:
        return f"the right to mount: {' '.join(done.stderr.split())}"
    try:
        urllib.request.urlopen(f"{MIRROR}/dists/{SYSTEMS[0].suite}/InRelease", timeout=30).close()
    except OSError as e:
        return f"Debian's packages: {MIRROR} cannot be reached: {e}"
    return ""


def tools() -> None:
    """mmdebstrap, user-mode QEMU that starts programs of the other architecture, musl."""
    names = {"mmdebstrap": "mmdebstrap", "qemu-aarch64-static": "qemu-user-static", "npm": "npm"}
    absent = [package for tool, package in names.items() if not shutil.which(tool)]
    if not musl():
        absent.append("musl")
    if absent:
        run(["apt-get", "update", "-qq"])
        run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *absent], env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        )
    if not (BINFMT / "register").exists():
        run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT])


def musl() -> pathlib.Path | None:
    return next(pathlib.Path("/lib").glob("ld-musl-*.so.1"), None)


class Emulation:
    """aarch64 programs start in QEMU while this is open, if they did not before."""

    def __enter__(self):
        self.ours = platform.machine() != "aarch64" and not any(
            "enabled" in text and "b700" in text for text in (p.read_text() for p in BINFMT.glob("*aarch64*"))
        )
        if self.ours:
            (BINFMT / "register").write_bytes(AARCH64)

    def __exit__(self, *_):
        if self.ours:
            (BINFMT / "lessismore-aarch64").write_text("-1")


def make(system: System) -> None:
    """The system's folder, unless it is there. Packages are unpacked and not set up: nothing of it runs here."""
    packages = ["python3", "dash", "coreutils", *system.packages]
    stamp = system.folder / "lessismore.stamp"
    if stamp.exists() and stamp.read_text() == " ".join(packages):
        return
    system.folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(system.folder, ignore_errors=True)
    run(
        ["mmdebstrap", "--variant=extract", f"--architectures={DEB[system.machine]}", f"--include={','.join(packages)}"]
        + ['--aptopt=Acquire::Retries "3"', system.suite, system.folder, f"deb {MIRROR} {system.suite} main"]
    )
    for name in ("bin", "sbin", "lib", "lib64"):  # what base-files would have linked
        if (system.folder / "usr" / name).exists() and not (system.folder / name).exists():
            (system.folder / name).symlink_to(f"usr/{name}")
    stamp.write_text(" ".join(packages))


class Inside:
    """Programs in a system's folder: its own /proc, this machine's devices, and what is tried in /try."""

    def __init__(self, system: System, trial: pathlib.Path):
        self.system, self.trial = system, trial
        for name in ("proc", "dev", "try", "tmp"):
            (system.folder / name).mkdir(exist_ok=True)

    def __call__(self, *command: str, input: str = "", timeout: float = 900, **environment: str) -> str:
        folder = self.system.folder
        script = (
            'mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && mount --bind "$2" "$1/try" && '
            'root=$1 && shift 2 && exec chroot "$root" "$@"'
        )
        variables = {"PATH": "/usr/bin:/bin", "HOME": "/try", "PYTHONPATH": "/try/site", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
        if self.system.machine != platform.machine():
            variables["QEMU_CPU"] = EMULATED
        variables |= environment
        settings = [f"{name}={value}" for name, value in variables.items()]
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", folder, self.trial, "env", "-i", *settings, *command],
            input=input, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{command[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
        self.log = done.stderr
        return done.stdout


def put(system: System, wheel: pathlib.Path, trial: pathlib.Path) -> None:
    """The wheel and numpy, as pip would install them there: by their tags. And the host, the model, the C programs."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    tags = [f"--platform=manylinux_2_28_{system.machine}", f"--platform=manylinux_2_27_{system.machine}"]
    tags += [f"--platform=manylinux2014_{system.machine}", "--only-binary=:all:", "--implementation=cp"]
    to = ["--root-user-action=ignore", "--no-compile", "--target", trial / "site"]
    run([*pip, "install", *tags, f"--python-version={system.python}", *to, wheel])
    shutil.copy(ROOT / "bindings" / "python" / "examples" / "with_numpy.py", trial)
    compiler = pathlib.Path(run([ROOT / "scripts" / "zig-toolchain.sh", system.machine]).strip()) / "cc"
    library = trial / "site" / "lessismore" / "liblessismore.so"
    options = ["-O1", "-std=c11", "-D_POSIX_C_SOURCE=200809L", f"-I{ROOT / 'include'}", "-pthread"]
    run([compiler, *options, ROOT / "tests" / "abi" / "device.c", "-o", trial / "device", f"-L{library.parent}", "-llessismore"])
    run([compiler, "-O1", "-shared", "-fPIC", ROOT / "tests" / "gpu" / "standin" / "standin.c", "-o", trial / "libcuda.so.1", "-lpthread"])
    shutil.copy(hostlib.REASONER, trial)
    if system.host == "node-llama-cpp":
        arch = NODE[system.machine]
        wanted = {"node-llama-cpp": install.NODE_LLAMA_CPP, f"@node-llama-cpp/{arch}": install.NODE_LLAMA_CPP}
        (trial / "package.json").write_text(json.dumps({"name": "try", "private": True, "dependencies": wanted}))
        options = ["--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--force"]  # of another CPU
        run(["npm", "install", *options], cwd=trial)
        shutil.copy(hostlib.DRIVERS / "node.mjs", trial)
    else:
        # Its module is for Python 3.10 or newer, but the llama.cpp that is linked into it asks for no Python.
        run([*pip, "download", *tags, "--python-version=3.13", "--no-deps", "--dest", trial, f"xllamacpp=={install.XLLAMACPP}"])
        with zipfile.ZipFile(next(trial.glob("xllamacpp-*.whl"))) as module:
            (trial / "llama.so").write_bytes(module.read("xllamacpp/xllamacpp.abi3.so"))
        for name in ("native", "capi", "engine", "protocol", "scenarios", "chaos"):
            shutil.copy(hostlib.DRIVERS / f"{name}.py", trial)


def solve(inside: Inside, library: str | None) -> dict:
    """One problem in the system's host; returns the library's statistics."""
    problem = hostlib.Problem.make(1, STEPS)
    job = {"prompts": [problem.prompt], "lengths": [len(problem.solution)], "context": 1024, "threads": 1}
    job["model"] = f"/try/{hostlib.REASONER.name}"
    environment = {"OMP_WAIT_POLICY": "passive"} | ({"LESSISMORE_STATS": "/try/stats.json", **SPARSE} if library else {})
    if inside.system.host == "node-llama-cpp":
        command = ["node", "/try/node.mjs", "/try/node_modules/node-llama-cpp/dist/index.js"]
        environment |= {"GGML_BACKEND_PATH": library} if library else {}
    else:
        command = ["python3", "/try/native.py"]
        job |= {"host": "/try/llama.so", "library": library, "scenario": "solve"}
    out = inside(*command, input=json.dumps(job) + "\n", **environment)
    tokens = next(line["tokens"] for line in map(json.loads, out.splitlines()) if "tokens" in line)
    if tokens != problem.solution:
        raise RuntimeError(f"the answer {'with the library' if library else 'of the host alone'} is wrong: {inside.log[-1500:]}")
    if not library:
        return {}
    stats = json.loads((inside.trial / "stats.json").read_text())
    if not stats["total"]["rows_sparse"]:
        raise RuntimeError(f"the library took no part: {stats.get('reason')}: {inside.log[-1500:]}")
    return stats["total"]


def attempt(system: System, wheel: pathlib.Path) -> None:
    """Everything on one system; fills in its rows of the table: what was run, the result, whether it is right."""

    def step(host: str, what: str, action) -> None:
        start = time.time()
        try:
            result, good = action(), True
        except Exception as e:  # noqa: BLE001 (the table says which)
            result, good = str(e), False
        print(f"{system.name} {system.machine}: {what}: {result} ({time.time() - start:.0f} s)", flush=True)
        system.rows.append((host, what, result, good))

    with tempfile.TemporaryDirectory(prefix="lessismore-try-") as folder:
        trial = pathlib.Path(folder)
        trial.chmod(0o755)
        make(system)
        put(system, wheel, trial)
        inside = Inside(system, trial)
        system.glibc = inside("python3", "-c", "import platform; print(platform.libc_ver()[1])").strip()
        library = "/try/site/lessismore/liblessismore.so"

        def imported() -> str:
            out = inside("python3", "-c", "import lessismore; print(lessismore.library_path(), lessismore.__version__)").split()
            if out[0] != library:
                raise RuntimeError(f"it found {out[0]}")
            return out[1]

        def doctor() -> str:
            found = json.loads(inside("python3", "-m", "lessismore", "doctor", "--quick", "--json"))["library"]
            if not found["works"]:
                raise RuntimeError(found["why"])
            return f"right, {found['target']} kernels"

        def example() -> str:
            out = inside("python3", "/try/with_numpy.py").strip()
            if out != "4 steps, 56.2% of the tokens attended":
                raise RuntimeError(out)
            return "right"

        def driver() -> str:
            code = "import lessismore; lessismore.Engine(4).decoder(device=0, capacity=4096, heads=4, kv_heads=2, head_dim=64)"
            try:
                inside("python3", "-c", code)
            except RuntimeError as e:
                if match := re.search(r"no usable CUDA driver: [^\n]*", str(e)):
                    return match[0]
                raise
            raise RuntimeError("a decoder on a GPU was made without a driver")

        def standin() -> str:
            log = "/try/driver.log"
            driver = {"LESSISMORE_LIBCUDA": "/try/libcuda.so.1", "LIM_STANDIN_LOG": log, "LD_LIBRARY_PATH": "/try/site/lessismore"}
            out = inside("/try/device", "standin", log, **driver).strip()
            if not re.fullmatch(r"device +[1-9]\d* checks, 0 failed", out):
                raise RuntimeError(out)
            return out.removeprefix("device").strip()

        def host() -> str:
            solve(inside, None)
            total = solve(inside, library)
            return f"exact, {total['tokens_attended'] / total['tokens_visible']:.0%} of the tokens attended"

        step("", "import", imported)
        step("", "`lessismore doctor`", doctor)
        step("numpy", "`with_numpy.py`", example)
        step("", "CUDA engine without a driver", driver)
        step("", "CUDA engine with the stand-in driver, from C", standin)
        if system.host == "node-llama-cpp":
            step(f"node-llama-cpp {install.NODE_LLAMA_CPP}", "a problem of the reasoner, with and without the library", host)
        else:
            node = f"node-llama-cpp {install.NODE_LLAMA_CPP}"
            system.rows.append((node, "", f"not possible: its binaries need glibc 2.34, this is {system.glibc}", True))
            what = "a problem of the reasoner, with and without the library, by llama.cpp's C functions"
            step(f"xllamacpp {install.XLLAMACPP}", what, host)


def build(system: System, source: pathlib.Path) -> None:
    """pip, given the source distribution where there is Go and a C++ compiler and nothing else; fills in the rows."""
    with tempfile.TemporaryDirectory(prefix="lessismore-try-") as folder:
        trial = pathlib.Path(folder)
        trial.chmod(0o755)
        make(system)
        shutil.copy(source, trial)
        for name in ("resolv.conf", "ssl/certs/ca-certificates.crt"):  # the package indexes are asked from in there
            target = system.folder / "etc" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(f"/etc/{name}", target)
        inside = Inside(system, trial)
        system.glibc = inside("python3", "-c", "import platform; print(platform.libc_ver()[1])").strip()
        indexes = ("PIP_INDEX_URL", "GOPROXY", "GONOSUMDB", "GOSUMDB")
        outside = {k: v for k, v in os.environ.items() if k in indexes or k.lower().endswith("_proxy")}
        code = (
            "import lessismore, numpy; e = lessismore.Engine(1, n_threads=1); s = e.decoder(); k = numpy.ones((9, 1, 32), 'f');"
            "print(bool((s.attend(0, k[0], k, k * 3) == 3).all()), lessismore.library_path())"
        )
        try:
            for tool in ("make", "cmake", "nvcc", "ninja"):
                if any((system.folder / d / tool).exists() for d in ("usr/bin", "usr/local/bin")):
                    raise RuntimeError(f"{tool} is there")
            inside("python3", "-m", "pip", "install", "--quiet", "--target", "/try/site", f"/try/{source.name}", timeout=3000, **outside)
            right, path = inside("python3", "-c", code).split()
            if right != "True" or path != "/try/site/lessismore/liblessismore.so":
                raise RuntimeError(f"attention right: {right}; library {path}")
            engines = (
                "both engines"
                if b"no usable CUDA driver" in (trial / "site" / "lessismore" / "liblessismore.so").read_bytes()
                else "the CPU engine"
            )
            result, good = f"built with {engines}, right", True
        except Exception as e:  # noqa: BLE001 (the table says which)
            result, good = str(e), False
        what = "`pip install lessismore-*.tar.gz` with Go, g++ and no make, CMake or CUDA"
        print(f"{system.name} {system.machine}: {what}: {result}", flush=True)
        system.rows.append(("", what, result, good))


def loader(wheel: pathlib.Path) -> System:
    """musl's own loader, given the wheel's library: it must refuse with a text."""
    with tempfile.TemporaryDirectory() as folder:
        run([sys.executable, "-m", "zipfile", "-e", wheel, folder])
        library = pathlib.Path(folder, "lessismore", "liblessismore.so")
        done = subprocess.run([musl(), "--list", library], capture_output=True, text=True)
    said = (done.stderr + done.stdout).replace(str(library), "liblessismore.so").strip().splitlines()
    system = System("musl", "", platform.machine(), "", glibc="none")
    good = done.returncode != 0 and bool(said) and said[0].startswith("Error loading shared library ld-linux")
    system.rows.append(("", "its loader, given the library", said[0] if said else "nothing said", good))
    return system


def table(systems: list[System]) -> str:
    lines = ["| system | glibc | architecture | host | what was run | result |", "|---|---|---|---|---|---|"]
    for system in systems:
        how = "" if system.machine == platform.machine() else ", emulated"
        for host, what, result, good in system.rows:
            text = result if good else "**failed**: " + result.replace("\n", " ")[:200]
            lines.append(f"| {system.name} | {system.glibc} | {system.machine}{how} | {host} | {what} | {text} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--missing", action="store_true")
    parser.add_argument("--only", help='systems whose name and architecture match this regular expression; "source": where pip builds')
    parser.add_argument("--table", type=pathlib.Path)
    parser.add_argument("--wheels", type=pathlib.Path, default=ROOT / "build" / "dist")
    options = parser.parse_args()
    if options.table and (options.short or options.only):
        parser.error("the table is of all systems")
    if options.missing:
        print(missing())
        return 0
    systems = [SYSTEMS[i] for i in SHORT] if options.short else SYSTEMS
    systems = [s for s in systems if re.search(options.only or "", f"{s.name} {s.machine}")]
    wheels = {}
    for system in systems:
        found = list(options.wheels.glob(f"lessismore-*_{system.machine}.whl"))
        if len(found) != 1:
            raise SystemExit(f"{options.wheels} has {len(found)} wheels for {system.machine}: make wheels")
        wheels[system.machine] = found[0]
    if lacks := missing():
        raise SystemExit(f"this needs {lacks}")
    tools()
    with Emulation():
        for system in systems:
            attempt(system, wheels[system.machine])
    if not options.short and re.search(options.only or "", f"{SOURCE.name} {SOURCE.machine} source"):
        (source,) = options.wheels.glob("lessismore-*.tar.gz")
        build(SOURCE, source)
        systems = [*systems, SOURCE]
    if platform.machine() in wheels:
        systems = [*systems, loader(wheels[platform.machine()])]
    text = table(systems)
    print(text)
    if options.table:
        page = options.table.read_text()
        before, after = page.index(MARKS[0]) + len(MARKS[0]), page.index(MARKS[1])
        options.table.write_text(page[:before] + "\n" + text + "\n" + page[after:])
    rows = [row for system in systems for row in system.rows]
    failed = sum(not good for *_, good in rows)
    print(f"{len(rows) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
