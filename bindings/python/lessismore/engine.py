"""The engine: a configuration, its threads, and what was counted under it."""

from __future__ import annotations

import ctypes
import json
from typing import TYPE_CHECKING, Any, Callable, Iterable, Optional

from . import _library
from ._handle import Handle
from ._values import integer, text
from .decoder import Decoder
from .settings import EngineParams, Logger, Path, Settings, changed

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .decoder import _Shape

MAX_LAYERS = 4096


class Engine(Handle):
    """A configuration, its threads, and what was counted under it.

    Args:
        n_layers: attention layers of the model that take part.
        settings: how token sets are chosen; any field of it may be given by its name instead, such as budget=1024. See
            lessismore.Settings. A profile is kept where one is named, by `profile` or `profile_dir`.
        model: text that tells the model from others of its shape, such as a hash of its weights.
        profile_dir: a directory for profiles, by model and settings; needs model.
        n_threads: threads per call; 0 (default): one per CPU.
        logger: called with a level (0 error, 1 warning, 2 info, 3 debug) and a line of text.

    May be used from several threads at once. A context manager; close() ends it.

    Raises:
        ArgumentError: a value is out of range; the text names it.
        TypeError: a value is not a number.
        LibraryError: the shared library is missing or of another version.
        ForkedError: in a child of os.fork().
    """

    _kind = "engine"

    def __init__(
        self,
        n_layers: int,
        settings: Optional[Settings] = None,
        *,
        model: Optional[str] = None,
        profile_dir: Optional[Path] = None,
        n_threads: int = 0,
        logger: Optional[Callable[[int, str], Any]] = None,
        **changes: Any,
    ) -> None:
        chosen = changed(settings, changes)
        lib = _library.library()
        params = EngineParams()
        lib.lim_engine_default_params(params, ctypes.sizeof(params))
        params.n_layers = integer("n_layers", n_layers, 32)
        params.n_threads = integer("n_threads", n_threads, 32)
        chosen.state(params)
        for name, given in (("model", model), ("profile_dir", profile_dir)):
            if given is not None:
                setattr(params, name, text(name, given))
        self._logger = None  # kept: C holds no reference
        if logger is not None:
            host = logger
            self._logger = Logger(lambda user, level, line: host(level, line.decode("utf-8", "replace")))
            params.logger = self._logger
        handle = ctypes.c_void_p()
        lib.lim_engine_create(params, handle)
        self._handle = handle.value

    def ablate(self, select: int, sparse: int = -1) -> None:
        """Makes every step from now on dense, but for layer `sparse`, which attends to the token set that layer
        `select` chooses; -1: all layers are dense. select -1 and sparse -1 end the ablation (lim_engine_ablate in
        the C header).
        """
        select, sparse = integer("select", select, 32), integer("sparse", sparse, 32)
        _library.library().lim_engine_ablate(self._use(), select, sparse)

    def attempt(self, layers: Iterable[int] = ()) -> None:
        """Has every step from now on select by these layers, whatever is in force; none: ends that (lim_engine_try in the C header)."""
        _attempt(self._use(), layers)

    def decoder(self, max_rows: int = 1, **shape: Unpack[_Shape]) -> Decoder:
        """Makes a decoder on the CPU or on a GPU: see Decoder."""
        return Decoder(self, max_rows, **shape)

    def stats(self) -> dict[str, int]:
        """The counts of all decoders, ended ones included (lim_stats in the C header); on a GPU as their stats() last
        read them."""
        stats = _library.Stats(struct_size=ctypes.sizeof(_library.Stats))
        _library.library().lim_engine_stats(self._use(), stats)
        return _library.stats_dict(stats)

    def report(self) -> dict[str, Any]:
        """The configuration, the instruction set in use, and the counts of each decoder."""
        return _report(self._use())

    def close(self) -> None:
        """Ends the engine and its threads; again is nothing to do.

        Raises BusyError while it has open decoders.
        """
        super().close()


def _attempt(handle: Any, layers: Iterable[int]) -> None:
    numbers = [integer("layers", layer, 32) for layer in layers]
    of = (ctypes.c_int32 * len(numbers))(*numbers) if numbers else None
    _library.library().lim_engine_try(handle, of, len(numbers))


def check(settings: Settings) -> None:
    """Asks the library what is wrong with settings. Raises as Engine does."""
    Engine(MAX_LAYERS, settings, n_threads=1).close()


class HostEngine:
    """The engine that serves the ggml hosts of this process (lim_ggml_engine in the C header).

    Raises UnsupportedError where no host has loaded the library.
    """

    def __init__(self) -> None:
        handle = ctypes.c_void_p()
        _library.library().lim_ggml_engine(handle)
        self._handle = handle.value
        assert self._handle

    __reduce__ = Handle.__reduce__

    def attempt(self, layers: Iterable[int] = ()) -> None:
        """See Engine.attempt()."""
        _attempt(self._handle, layers)

    def ablate(self, select: int, sparse: int = -1) -> None:
        """See Engine.ablate()."""
        _library.library().lim_engine_ablate(self._handle, select, sparse)

    def report(self) -> dict[str, Any]:
        """See Engine.report()."""
        assert self._handle
        return _report(self._handle)


def _report(handle: int) -> dict[str, Any]:
    lib, needed = _library.library(), ctypes.c_size_t()
    lib.lim_engine_stats_json(handle, None, 0, needed)
    while True:
        text = ctypes.create_string_buffer(needed.value + 64)  # the numbers grow while others attend
        if lib.lim_engine_stats_json(handle, text, len(text), needed) == 0:
            report: dict[str, Any] = json.loads(text.value)
            return report
