"""The wheel: built as pip does, installed where there is neither Go nor a compiler."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import reasoner
from test_examples import EXAMPLES, ROOT

import lessismore


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    before = tree()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT / "bindings" / "python"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert tree() == before  # nothing is left in the source tree
    (path,) = folder.iterdir()
    return path


def tree():
    folders = (ROOT / "bindings", ROOT / "demo")
    return sorted(p for folder in folders for p in folder.rglob("*") if "__pycache__" not in p.parts)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A virtual environment with the wheel in it, and a PATH with Python alone."""
    folder = tmp_path_factory.mktemp("empty")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LESSISMORE", "PYTHON"))}
    env["PATH"] = str(folder / "bin")
    for tool in ("go", "gcc", "cc", "c++", "make", "cmake"):
        assert shutil.which(tool, path=env["PATH"]) is None
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "install", "-q", wheel], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr

    def run(*command):
        command = [folder / "bin" / command[0], *command[1:]]
        return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=120)

    return run


def test_name_and_contents(wheel):
    major, minor = map(int, re.fullmatch(
        rf"lessismore-{re.escape(lessismore.__version__)}-py3-none-manylinux_(\d+)_(\d+)_\w+\.whl", wheel.name
    ).groups())  # fmt: skip
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        library = z.read("lessismore/liblessismore.so")
        metadata = z.read(f"lessismore-{lessismore.__version__}.dist-info/METADATA").decode()
    assert {
        "lessismore/py.typed",
        "lessismore/cli/bench.py",
        "lessismore/compare/table.py",
        "lessismore/cli/report.css",
        "lessismore/cli/report.js",
        "lessismore/LICENSE",
        "lessismore/THIRD_PARTY_LICENSES",
    } <= set(names)
    needed = {(int(a), int(b)) for a, b in re.findall(rb"\0GLIBC_(\d+)\.(\d+)(?=[.\0])", library)}
    assert max(needed) <= (major, minor)
    for line in ("License-Expression: Apache-2.0", "Requires-Python: >=3.9", "Description-Content-Type: text/markdown"):
        assert f"\n{line}\n" in metadata
    assert "lessismore doctor" in metadata.partition("\n\n")[2]  # the README is the page's text


def test_runs_without_go_and_a_compiler(installed):
    done = installed("python", EXAMPLES / "with_numpy.py")
    assert done.stdout == "4 steps, 56.2% of the tokens attended\n", done.stderr
    done = installed("python", "-c", "import lessismore; print(lessismore.library_path(), lessismore.__version__)")
    path, version = done.stdout.split()
    assert pathlib.Path(path).parts[-3:] == ("site-packages", "lessismore", "liblessismore.so") and version == lessismore.__version__


def test_the_command_is_installed(installed):
    done = installed("lessismore", "doctor")
    assert done.returncode == 0, done.stderr
    assert "site-packages/lessismore/liblessismore.so" in done.stdout
    assert "- llama-cpp-python  does not engage: not installed" in done.stdout
    done = installed("lessismore", "run", reasoner.GGUF, "-p", "a")
    assert done.returncode == 1 and done.stderr == "lessismore: llama-cpp-python is needed for this: pip install llama-cpp-python\n"
    assert installed("python", "-m", "lessismore", "--version").stdout == f"lessismore {lessismore.__version__}\n"
    done = installed("lessismore", "demo")
    assert done.returncode == 1
    assert done.stderr == "lessismore: the demo's models and host are needed for this: pip install lessismore-demo\n"


def test_the_demo(wheel, tmp_path):
    """Both wheels in a virtual environment without a checkout, with what pip would have fetched: the host, gguf, rich, numpy."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    before = tree()
    done = subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT / "demo"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert tree() == before
    (demo,) = tmp_path.glob("*.whl")
    assert demo.name == f"lessismore_demo-{lessismore.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(demo) as z:
        metadata = z.read(f"lessismore_demo-{lessismore.__version__}.dist-info/METADATA").decode()
    wanted = re.findall(r"^Requires-Dist: ([\w-]+)(.*)", metadata, re.M)
    assert ("lessismore", f"=={lessismore.__version__}") in wanted
    assert {name for name, _ in wanted} == {"lessismore", "llama-cpp-python", "gguf", "rich"}

    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    done = subprocess.run([*pip, "--python", python, "install", "-q", "--no-deps", wheel, demo], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = pathlib.Path(os.environ.get("LESSISMORE_CACHE") or f"{base}/lessismore/hosts").expanduser()
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    hosts = [next((cache / name / "lib").glob("python*/site-packages")) for name in ("llama-cpp-python", "venv")]
    (site / "hosts.pth").write_text("".join(f"{path}\n" for path in hosts))

    env = {k: v for k, v in os.environ.items() if not k.startswith(("LESSISMORE", "PYTHON"))}
    demo = [python.parent / "lessismore", "demo", "--problems", "1", "--context", "1024", "--threads", "1", "--json"]
    done = subprocess.run(demo, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["exact"] == found["problems"] == 1 and 0.3 < found["share_attended"] < 0.5
    assert found["budget"] == 256 and found["ms"].keys() == {"on", "off", "library"} and min(found["ms"].values()) > 0
    assert "problem 1: 1182 tokens, host right, library right" in done.stderr
    (site / "lessismore_demo" / "reasoner.gguf").write_bytes(b"GGUF")
    done = subprocess.run(demo, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and done.stdout == ""
    assert [line for line in done.stderr.splitlines() if line.startswith("lessismore: ")], done.stderr
    assert "Traceback" not in done.stderr


def test_musl_is_told_what_is_missing(tmp_path):
    """By the source distribution, which is what pip takes there, and by the package."""
    hook = tmp_path / "sitecustomize.py"
    hook.write_text("import sysconfig; known = sysconfig.get_config_var; musl = 'cpython-312-x86_64-linux-musl'\n"
                    "sysconfig.get_config_var = lambda name: musl if name == 'SOABI' else known(name)\n")  # fmt: skip
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    path = [str(tmp_path), str(ROOT / "bindings" / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "LESSISMORE_LIBRARY": str(broken)}
    done = subprocess.run([sys.executable, "-m", "lessismore", "doctor", "--quick"], env=env, capture_output=True, text=True)
    assert "it needs glibc, and this Python is built for musl" in done.stdout, done.stdout + done.stderr
    done = subprocess.run([sys.executable, "setup.py", "-q", "bdist_wheel", "-d", tmp_path], cwd=ROOT / "bindings" / "python", env=env,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1 and "lessismore needs Linux with glibc, not linux cpython-312-x86_64-linux-musl" in done.stderr


def test_says_what_is_missing_to_build(tmp_path):
    """Away from a checkout."""
    shutil.copytree(ROOT / "bindings" / "python", tmp_path / "a" / "b", ignore=shutil.ignore_patterns("__pycache__"))
    env = {k: v for k, v in os.environ.items() if k != "LESSISMORE_LIBRARY"}
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, tmp_path / "a" / "b"]
    done = subprocess.run(build, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and f"{tmp_path} is no checkout of lessismore" in done.stdout + done.stderr
