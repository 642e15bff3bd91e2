"""What the library refuses, as exceptions that carry its text."""

from __future__ import annotations

import enum
from typing import Type


class Status(enum.IntEnum):
    """lim_status in the C header."""

    OK = 0
    ERROR_ARGUMENT = 1
    ERROR_UNSUPPORTED = 2
    ERROR_HANDLE = 3
    ERROR_BUSY = 4
    ERROR_SIZE = 5
    ERROR_MEMORY = 6
    ERROR_FORKED = 7
    ERROR_INTERNAL = 8
    ERROR_DEVICE = 9


class Error(Exception):
    """A call that was refused. Nothing has changed; the text names the argument and its value."""

    status = Status.ERROR_INTERNAL


class LibraryError(Error, ImportError):
    """The shared library is missing, cannot be loaded, or is of another version."""


class ArgumentError(Error, ValueError):
    """An argument has a value that is never right."""

    status = Status.ERROR_ARGUMENT


class UnsupportedError(Error, NotImplementedError):
    """An argument is right, but not something that this version can do."""

    status = Status.ERROR_UNSUPPORTED


class HandleError(Error, ValueError):
    """An engine or a decoder that is closed."""

    status = Status.ERROR_HANDLE


class BusyError(Error):
    """A decoder that another thread is using, or an engine with decoders that are still open."""

    status = Status.ERROR_BUSY


class OutOfMemoryError(Error, MemoryError):
    """The system has no memory or no threads left."""

    status = Status.ERROR_MEMORY


class ForkedError(Error):
    """The process is a child of os.fork(), where the library's threads do not exist."""

    status = Status.ERROR_FORKED


class DeviceError(Error):
    """There is no usable GPU or driver, or the driver failed."""

    status = Status.ERROR_DEVICE


_BY_STATUS: dict[int, Type[Error]] = {
    c.status: c for c in (ArgumentError, UnsupportedError, HandleError, BusyError, OutOfMemoryError, ForkedError, DeviceError)
}


def error(status: int, text: str) -> Error:
    """The exception for a status."""
    return _BY_STATUS.get(status, Error)(text)
