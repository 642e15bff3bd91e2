"""The life of a handle of the library: used while it is open, closed once, by hand or at the latest with its owner."""

from __future__ import annotations

from types import TracebackType
from typing import NoReturn, Optional, Type, TypeVar

from . import _library
from ._errors import Error, HandleError

Self = TypeVar("Self", bound="Handle")


class Handle:
    """What Engine and Decoder share. A context manager."""

    _kind: str  # "engine" or "decoder", as in lim_engine_free
    _handle: Optional[int] = None

    def close(self) -> None:
        if self._handle is not None:
            getattr(_library.library(), f"lim_{self._kind}_free")(self._handle)
            self._handle = None

    def _use(self) -> int:
        if self._handle is None:
            raise HandleError(f"{self._kind} is closed")
        return self._handle

    def __reduce__(self) -> NoReturn:
        """A copy would close the original, and a number that is pickled may be another handle's where it is read."""
        raise TypeError(f"{type(self).__name__} cannot be copied or pickled: the library in this process knows it, by a number")

    def __enter__(self: Self) -> Self:
        self._use()
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except (Error, AttributeError, TypeError):  # a forked child, or the interpreter's end
            pass
