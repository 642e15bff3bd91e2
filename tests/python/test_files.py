"""Files that the package writes: nothing of anybody else's is replaced."""

import json
import os
import stat

import pytest

import lessismore
from lessismore import _files
from lessismore.cli import main

NEW, OLD = b'{"format": 1, "new": true}\n', b'{\n "format": 1}\n'


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.mark.parametrize("there", [None, b"", OLD])
@pytest.mark.parametrize("links", [0, 2])
def test_replaces_its_own(tmp_path, there, links):
    target = tmp_path / "0"
    if there is not None:
        target.write_bytes(there)
        target.chmod(0o640)
    for i in range(links):
        (tmp_path / str(i + 1)).symlink_to(str(i))
    path = tmp_path / str(links)
    if there is None and links:
        with pytest.raises(OSError, match=f"{path}: is a link to {target}, which is not there"):
            _files.write(path, NEW)
        return
    _files.check(path, NEW)
    _files.write(path, NEW)
    assert target.read_bytes() == NEW and path.is_symlink() == bool(links)
    assert stat.S_IMODE(target.stat().st_mode) == (0o644 if there is None else 0o640)
    assert len(list(tmp_path.iterdir())) == links + 1  # nothing is left beside


def test_leaves_everything_else_alone(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF precious")
    (tmp_path / "link").symlink_to("model.gguf")
    (tmp_path / "folder").mkdir()
    (tmp_path / "round").symlink_to("round")
    os.mkfifo(tmp_path / "pipe")
    before = contents(tmp_path)
    for name, text in {
        "model.gguf": "not written by lessismore",
        "link": "not written by lessismore",
        "folder": "is a folder",
        "round": "symbolic links",
        "pipe": "No such device",  # nobody reads it
        "none/stats.json": "No such file",
    }.items():
        with pytest.raises(OSError, match=f"^{tmp_path / name}: .*{text}"):
            _files.write(tmp_path / name, NEW)
        if name != "pipe":
            with pytest.raises(OSError, match=text):
                _files.check(tmp_path / name, NEW)
    assert contents(tmp_path) == before


def test_devices_pipes_and_open_files_are_written_to(tmp_path):
    read, write = os.pipe()
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    (tmp_path / "log").write_bytes(b"a host's log\n")
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_APPEND)
    (tmp_path / "stdout").symlink_to(f"/proc/self/fd/{write}")  # as /dev/stdout is
    for path in (tmp_path / "stdout", f"/dev/fd/{write}", tmp_path / "fifo", f"/dev/fd/{log}", "/dev/null"):
        mode = os.lstat(path).st_mode
        assert _files.streams(path)
        _files.write(path, NEW)
        assert os.lstat(path).st_mode == mode
    assert os.read(read, 4096) == 2 * NEW and os.read(reader, 4096) == NEW
    assert (tmp_path / "log").read_bytes() == b"a host's log\n" + NEW
    for fd in (read, write, reader, log):
        os.close(fd)


def test_a_full_disk_names_the_file():
    with pytest.raises(OSError, match="^/dev/full: No space left on device$"):
        _files.write("/dev/full", NEW)


def test_a_report_replaces_reports_only(tmp_path, capsys):
    stats, page, other = tmp_path / "stats.json", tmp_path / "report.html", tmp_path / "index.html"
    with lessismore.Engine(3) as engine:
        stats.write_text(json.dumps(engine.report()))
    other.write_text("<!DOCTYPE html>\n<html>mine</html>")
    arguments = ["report", str(stats), "-o"]
    for _ in range(2):
        code = main([*arguments, str(page)])
        assert code == 0, capsys.readouterr()
    for path in (other, stats):
        before = path.read_text()
        assert main([*arguments, str(path)]) == 1
        assert f"lessismore: {path}: is there and was not written by lessismore" in capsys.readouterr().err
        assert path.read_text() == before
