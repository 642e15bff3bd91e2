"""What `make test-platforms` says where a machine cannot try the wheels on other systems: why, and never nothing."""

import os
import pathlib
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "platforms"))
import run  # noqa: E402


def unreachable(*_, **__):
    raise urllib.error.URLError("no route")


@pytest.mark.parametrize("where, name, value, said", [
    (run.platform, "machine", lambda: "aarch64", "an x86_64 machine: this one is aarch64"),
    (os, "geteuid", lambda: 1000, "root, to enter other systems' folders"),
    (shutil, "which", lambda name: None, "apt-get, which installs mmdebstrap and QEMU"),
    (subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", "mount:\n not permitted"), "the right to mount: mount: not permitted"),
    (urllib.request, "urlopen", unreachable, f"Debian's packages: {run.MIRROR} cannot be reached: <urlopen error no route>"),
])  # fmt: skip
def test_what_is_missing_is_named(monkeypatch, where, name, value, said):
    def found(*_, **__):
        class Closed:
            def close(self):
                pass

        return Closed()

    for module, attribute, fine in (
        (run.platform, "machine", lambda: "x86_64"),
        (os, "geteuid", lambda: 0),
        (shutil, "which", lambda name: f"/usr/bin/{name}"),
        (subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "", "")),
        (urllib.request, "urlopen", found),
    ):
        monkeypatch.setattr(module, attribute, fine)
    assert run.missing() == ""
    monkeypatch.setattr(where, name, value)
    assert run.missing() == said
