"""Files that are written for a user: whole or not at all, and never in the place of somebody else's.

The rules are those of the library's own files (plugin/output.go).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from typing import Iterator, Optional, Union

Path = Union[str, "os.PathLike[str]"]

ALIKE = 10  # first bytes that tell a file that was written here from anybody else's
HEAD = 64  # bytes that are looked at to find them
LINKS = 40  # that are followed


def write(path: Path, data: bytes, *, alike: int = ALIKE, mine: bool = False) -> None:
    """Puts data in a file. Only a file that is empty or begins like data is replaced, or any where the folder is the
    library's (mine); a symbolic link is followed to a file that begins like data, and stays. Character devices, pipes
    and the process's open files (/dev/stdout) are written to.

    Raises OSError, which names path, whatever was on the way.
    """
    with _named(path) as name:
        target, there, linked = _follow(name)
        if there is None:
            _replace(target, data, 0o644)
        elif _streams(target, there):
            _stream(target, data)
        else:
            _replaceable(there)
            if linked or not mine:
                _begins(target, data, alike)
            _replace(target, data, stat.S_IMODE(there.st_mode))


def check(path: Path, data: bytes = b"") -> None:
    """Says before the work what write() would refuse after it, as far as the beginning of data tells. Raises OSError."""
    with _named(path) as name:
        target, there, _ = _follow(name)
        if there is None:
            if not os.access(os.path.dirname(target), os.W_OK):
                raise PermissionError(errno.EACCES, "its folder cannot be written to")
        elif not _streams(target, there):
            _replaceable(there)
            if data:
                _begins(target, data, ALIKE)


def streams(path: Path) -> bool:
    """Whether write() adds to what was written before. Raises OSError."""
    with _named(path) as name:
        target, there, _ = _follow(name)
        return there is not None and _streams(target, there)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[str]:
    """An error on the way has the name that the user gave."""
    name = os.fspath(path)
    try:
        yield name
    except OSError as e:
        raise OSError(f"{name}: {e.strerror or e}") from None


def _follow(path: str) -> tuple[str, Optional[os.stat_result], bool]:
    """What a name stands for, links followed; None where there is nothing yet; and whether a link led there."""
    target = path
    for hop in range(LINKS):
        folder = os.path.realpath(os.path.dirname(target) or ".", strict=True)
        target = os.path.join(folder, os.path.basename(target))
        if target.startswith("/proc/"):  # an open file, whatever it is
            return target, os.stat(target), hop > 0
        try:
            there = os.lstat(target)
        except FileNotFoundError:
            if hop:
                raise OSError(errno.ENOENT, f"is a link to {target}, which is not there") from None
            return target, None, False
        if not stat.S_ISLNK(there.st_mode):
            return target, there, hop > 0
        target = os.path.join(folder, os.readlink(target))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _streams(target: str, there: os.stat_result) -> bool:
    """Replaced, an open file would lose its reader."""
    return target.startswith("/proc/") or stat.S_ISFIFO(there.st_mode) or stat.S_ISCHR(there.st_mode)


def _replaceable(there: os.stat_result) -> None:
    if stat.S_ISDIR(there.st_mode):
        raise OSError(errno.EISDIR, "is a folder: name a file in it")
    if not stat.S_ISREG(there.st_mode):
        raise OSError(errno.EINVAL, "is neither a file nor a pipe nor a character device")


def _begins(target: str, data: bytes, alike: int) -> None:
    with open(target, "rb") as f:
        head = f.read(HEAD)
    if head and _beginning(head, alike) != _beginning(data, alike):
        raise OSError(errno.EEXIST, "is there and was not written by lessismore: it is not replaced")


def _beginning(data: bytes, alike: int) -> bytes:
    """White space does not count: a person may have laid a profile out."""
    return b"".join(data[:HEAD].split())[:alike]


def _replace(target: str, data: bytes, mode: int) -> None:
    handle, beside = tempfile.mkstemp(prefix=".lessismore-", dir=os.path.dirname(target))
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data)
        os.chmod(beside, mode)
        os.replace(beside, target)
    except BaseException:
        os.unlink(beside)
        raise


def _stream(target: str, data: bytes) -> None:
    # A pipe that nobody reads is an error, not a wait; one that somebody reads may be waited for.
    handle = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY)
    os.set_blocking(handle, True)
    with os.fdopen(handle, "wb") as f:
        f.write(data)
