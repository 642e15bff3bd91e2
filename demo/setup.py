"""The package of `lessismore demo`: built from a checkout, whose test model, its task and the maker of models go into it."""

import importlib.util
import pathlib
import re
import shutil
import sys
import tempfile

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).resolve().parents[1]
REASONER = ROOT / "tests" / "data" / "reasoner"
SOURCES = (REASONER / "task.py", ROOT / "tests" / "hosts" / "make_model.py")
VERSION = ROOT / "bindings" / "python" / "lessismore" / "_version.py"


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        package = pathlib.Path(self.build_lib) / "lessismore_demo"
        for source in SOURCES:
            shutil.copyfile(source, package / source.name)
        spec = importlib.util.spec_from_file_location("to_gguf", REASONER / "to_gguf.py")
        to_gguf = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(to_gguf)
        (package / "reasoner.gguf").write_bytes(to_gguf.convert())
        shutil.copyfile(ROOT / "LICENSE", package / "LICENSE")


if not VERSION.exists():
    sys.exit(f"{ROOT} is no checkout of lessismore: this package is built in one")
version = re.search(r'"(.+)"', VERSION.read_text())[1]
scratch = tempfile.mkdtemp(prefix="lessismore-build-")
try:
    setup(
        version=version,
        install_requires=[f"lessismore=={version}", "llama-cpp-python>=0.3.30", "gguf>=0.10", "rich>=13"],
        cmdclass={"build_py": BuildPy},
        options={"build": {"build_base": scratch}, "egg_info": {"egg_base": scratch}, "bdist_wheel": {"bdist_dir": f"{scratch}/wheel"}},
    )
finally:
    shutil.rmtree(scratch, ignore_errors=True)
