"""Finding the library, and agreement between package, header and library."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest

import lessismore
from lessismore import _errors, _library
from lessismore.vllm import settings as serving_settings

FIELDS = {
    "lim_engine_params": _library.EngineParams, "lim_decoder_params": _library.DecoderParams,
    "lim_attention": _library.Attention, "lim_stats": _library.Stats,
}  # fmt: skip


@pytest.fixture(scope="module")
def header(root):
    return (root / "include" / "lessismore.h").read_text()


def run(root, code, **environment):
    env = {**os.environ, "PYTHONPATH": str(root / "bindings" / "python"), **environment}
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True, timeout=60)


def test_versions_agree(header):
    numbers = [re.search(rf"#define LIM_VERSION_{part} +(\d+)", header)[1] for part in ("MAJOR", "MINOR", "PATCH")]
    assert ".".join(numbers) == lessismore.__version__
    assert re.search(r'#define LIM_VERSION_STRING +"(.*)"', header)[1] == lessismore.__version__


def test_limits_agree(header):
    assert int(re.search(r"#define LIM_MAX_ROWS +(\d+)", header)[1]) == serving_settings.MOST_ROWS


def test_status_codes_agree(header):
    found = {n: int(v) for n, v in re.findall(r"LIM_(OK|ERROR_\w+)\s*= (\d+)", header)}
    assert found == {s.name: s.value for s in _errors.Status}


def test_fields_agree_in_name_and_order(header):
    for name, structure in FIELDS.items():
        body = re.sub(r"/\*.*?\*/", "", re.search(rf"typedef struct {name} {{(.*?)}} {name};", header, re.S)[1], flags=re.S)
        assert re.findall(r"(\w+);", body) == [f[0] for f in structure._fields_]


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_layout_agrees(root, tmp_path):
    lines, want = [], []
    for name, structure in FIELDS.items():
        for field, *_ in structure._fields_:
            lines.append(f'printf("%zu ", offsetof({name}, {field}));')
            want.append(getattr(structure, field).offset)
        lines.append(f'printf("%zu ", sizeof({name}));')
        want.append(ctypes.sizeof(structure))
    source = tmp_path / "layout.c"
    source.write_text("#include <stdio.h>\n#include <lessismore.h>\nint main(void) {\n" + "\n".join(lines) + "\n}\n")
    subprocess.run(["cc", "-std=c11", f"-I{root / 'include'}", source, "-o", tmp_path / "layout"], check=True)
    assert [int(n) for n in subprocess.check_output([tmp_path / "layout"]).split()] == want


@pytest.mark.skipif(not shutil.which("readelf"), reason="no readelf")
def test_needs_nothing_but_libc():
    """No C++ runtime, and no driver either, though the CUDA engine is in it."""
    dynamic = subprocess.check_output(["readelf", "-d", lessismore.library_path()], text=True)
    needed = set(re.findall(r"\(NEEDED\).*\[(.*?)\]", dynamic))
    assert "libc.so.6" in needed
    assert {re.sub(r"[.-].*", "", name) for name in needed} <= {"libc", "libm", "libdl", "libpthread", "libresolv", "ld"}, needed


def test_environment_override(root, tmp_path):
    copy = tmp_path / "other name.so"
    shutil.copy(lessismore.library_path(), copy)
    r = run(root, "import lessismore; lessismore.Engine(4).close(); print(lessismore.library_path())", LESSISMORE_LIBRARY=str(copy))
    assert r.stdout.strip() == str(copy), r.stderr


@pytest.mark.parametrize("kind", ["missing", "text", "foreign"])
def test_a_wrong_override_is_named(root, tmp_path, kind):
    path = tmp_path / "x.so"
    if kind == "text":
        path.write_text("not a library")
    elif kind == "foreign":
        path = next(iter(_libc()))
    r = run(root, """
        import lessismore
        try:
            lessismore.Engine(4)
        except lessismore.LibraryError as e:
            assert isinstance(e, ImportError)
            print(e)
    """, LESSISMORE_LIBRARY=str(path))  # fmt: skip
    assert str(path) in r.stdout, r.stderr


def _libc():
    with open("/proc/self/maps") as f:
        return {line.split()[-1] for line in f if "libc.so" in line or "libc-" in line}


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_another_version_is_refused(root, tmp_path):
    source, library = tmp_path / "old.c", tmp_path / "old.so"
    source.write_text('const char *lim_version_string(void) { return "0.0.9"; }')
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", library], check=True)
    r = run(root, "import lessismore; lessismore.Engine(4)", LESSISMORE_LIBRARY=str(library))
    assert f"version 0.0.9, but this package is version {lessismore.__version__}" in r.stderr


def test_import_needs_no_library(root, tmp_path):
    r = run(root, "import lessismore; print(lessismore.__version__)", LESSISMORE_LIBRARY=str(tmp_path / "none"))
    assert r.stdout.strip() == lessismore.__version__, r.stderr


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_processes(root, tmp_path, method):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import multiprocessing, sys
        def work(n):
            import lessismore
            with lessismore.Engine(n) as engine:
                return engine.stats()["steps"]
        if __name__ == "__main__":
            work(4)
            with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
                print(pool.map(work, [3, 4]))
    """)
    )
    env = {**os.environ, "PYTHONPATH": str(root / "bindings" / "python")}
    r = subprocess.run([sys.executable, script, method], env=env, capture_output=True, text=True, timeout=60)
    assert r.stdout.strip() == "[0, 0]", r.stderr


def test_the_build_s_toolkit_is_no_setting_of_the_library(root, tmp_path):
    nvcc = tmp_path / "a toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.touch(0o755)
    more = {"LESSISMORE_CUDA": "on", "LESSISMORE_CUDA_TOOLKIT": str(tmp_path / "a toolkit")}
    done = subprocess.run([root / "scripts/cuda-toolchain.sh", "1"], env={**os.environ, **more}, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'a toolkit'}\n"
