"""Finds and loads the shared library, and types its functions. The structures mirror lessismore.h."""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib
import sysconfig
from ctypes import POINTER, c_char, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint64, c_void_p

from ._errors import LibraryError, error
from ._version import __version__
from .settings import EngineParams

NAME = "liblessismore.so"
VARIABLE = "LESSISMORE_LIBRARY"

BLOCK, BLOCK_BYTES = 32, {"q8_0": 34, "q4_0": 18}  # elements of a block of K/V, and bytes by its type


class DecoderParams(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("device", c_int32),
        ("max_rows", c_int32),
        ("capacity", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("value_dim", c_int32),
        ("kv_dtype", c_int32),
        ("work", c_uint64),
        ("work_size", c_uint64),
        ("kv_tokens", c_int64),
        ("reserved", c_uint64),
    ]


class Attention(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("layer", c_int32),
        ("n_rows", c_int32),
        ("query", c_void_p),
        ("key", c_void_p),
        ("value", c_void_p),
        ("output", c_void_p),
        ("query_row_stride", c_int64),
        ("query_head_stride", c_int64),
        ("output_row_stride", c_int64),
        ("output_head_stride", c_int64),
        ("key_page_stride", c_int64),
        ("key_token_stride", c_int64),
        ("key_head_stride", c_int64),
        ("value_page_stride", c_int64),
        ("value_token_stride", c_int64),
        ("value_head_stride", c_int64),
        ("query_dtype", c_int32),
        ("output_dtype", c_int32),
        ("key_dtype", c_int32),
        ("value_dtype", c_int32),
        ("lengths", c_void_p),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("value_dim", c_int32),
        ("n_slots", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
        ("sinks", c_void_p),
        ("table", c_void_p),
        ("table_stride", c_int64),
        ("page_size", c_int32),
        ("reserved", c_int32),
        ("stream", c_void_p),
        ("query_positions", c_void_p),
        ("positions", c_void_p),
        ("positions_row_stride", c_int64),
        ("mask", c_void_p),
        ("mask_row_stride", c_int64),
        ("alibi_slopes", c_void_p),
        ("key_scale", c_float),
        ("value_scale", c_float),
        ("sequences", c_void_p),
        ("n_pages", c_int64),
    ]


class Stats(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t)] + [
        (name, c_uint64)
        for name in (
            "steps", "rows", "rows_sparse", "rows_full", "tokens_visible", "tokens_attended",
            "sparse_layer_tokens_visible", "sparse_layer_tokens_attended", "dense_calls", "select_calls",
            "sparse_calls", "no_set_calls", "dense_ns", "select_ns", "sparse_ns", "ranking_ns", "measured_steps",
            "dense_steps", "reused_steps", "audits", "alarms",
        )
    ]  # fmt: skip


def candidates() -> list[pathlib.Path]:
    """Where the library is looked for, best first."""
    override = os.environ.get(VARIABLE)
    if override:
        return [pathlib.Path(override)]
    package = pathlib.Path(__file__).resolve().parent
    found = [package / NAME]
    if len(package.parents) > 2:
        found.append(package.parents[2] / "build" / NAME)
    return found


def library_path() -> pathlib.Path:
    """The shared library that is used.

    Raises LibraryError when there is none, naming where it was looked for.
    """
    paths = candidates()
    for path in paths:
        if path.is_file():
            return path.resolve()
    where = ", ".join(str(p) for p in paths)
    if os.environ.get(VARIABLE):
        raise LibraryError(f"{VARIABLE}={where!r} is no file")
    raise LibraryError(f"{NAME} was not found in {where}; {VARIABLE} can say where it is")


@functools.lru_cache(maxsize=None)
def library() -> ctypes.CDLL:
    """The loaded library, with typed functions. Raises LibraryError."""
    path = library_path()
    try:
        lib = ctypes.CDLL(str(path))
        version = lib.lim_version_string
    except (OSError, AttributeError) as e:
        musl = "musl" in str(sysconfig.get_config_var("SOABI"))
        why = "it needs glibc, and this Python is built for musl (Alpine Linux)" if musl else e
        raise LibraryError(f"{path} cannot be used: {why}") from e
    version.restype = c_char_p
    if version().decode() != __version__:
        raise LibraryError(f"{path} is version {version().decode()}, but this package is version {__version__}")
    status, handle = ctypes.c_int, c_void_p
    for name, restype, argtypes in (
        ("lim_last_error", c_char_p, []),
        ("lim_engine_default_params", status, [POINTER(EngineParams), c_size_t]),
        ("lim_engine_create", status, [POINTER(EngineParams), POINTER(handle)]),
        ("lim_engine_free", status, [handle]),
        ("lim_engine_ablate", status, [handle, c_int32, c_int32]),
        ("lim_engine_try", status, [handle, POINTER(c_int32), c_int64]),
        ("lim_profile_for_quality", status, [c_char_p, c_double, POINTER(c_char), c_size_t, POINTER(c_size_t)]),
        ("lim_ggml_engine", status, [POINTER(handle)]),
        ("lim_engine_stats", status, [handle, POINTER(Stats)]),
        ("lim_engine_stats_json", status, [handle, POINTER(c_char), c_size_t, POINTER(c_size_t)]),
        ("lim_decoder_work_size", status, [handle, POINTER(DecoderParams), POINTER(c_uint64)]),
        ("lim_decoder_create", status, [handle, POINTER(DecoderParams), POINTER(handle)]),
        ("lim_decoder_free", status, [handle]),
        ("lim_decoder_reset", status, [handle]),
        ("lim_decoder_attend", status, [handle, POINTER(Attention)]),
        ("lim_decoder_token_set", status, [handle, c_int32, c_void_p, c_int64, POINTER(c_int64)]),
        ("lim_decoder_stats", status, [handle, POINTER(Stats)]),
        ("lim_decoder_poll", status, [handle, POINTER(c_uint64), POINTER(c_int32)]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = restype, argtypes
        if restype is status:
            function.errcheck = functools.partial(_check, lib)
    return lib


SIZE = 5  # LIM_ERROR_SIZE: for the caller to deal with


def _check(lib: ctypes.CDLL, status: int, function: object, arguments: object) -> int:
    if status not in (0, SIZE):
        raise error(status, lib.lim_last_error().decode("utf-8", "replace"))
    return status


def stats_dict(stats: Stats) -> dict[str, int]:
    return {field[0]: getattr(stats, field[0]) for field in Stats._fields_[1:]}
