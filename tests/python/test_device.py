"""Decoders on a GPU from Python, without one: against the stand-in driver (tests/gpu/standin), whose kernels do nothing, and
without any. What they compute is tested on GPU machines (tests/gpu)."""

import os
import shutil
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")

COMMON = """
    import ctypes
    import lessismore

    class Array:
        def __init__(self, address, shape, typestr, strides=None, stream=None):
            self.__cuda_array_interface__ = dict(
                version=3, data=(address, False), shape=shape, typestr=typestr, strides=strides, stream=stream)

    def right(rows=2, dim=128, tokens=64, kv_heads=2, heads=8, kind="<f2"):
        return dict(
            layer=0, query=Array(0x100000, (rows, heads, dim), "<f2"), out=Array(0x200000, (rows, heads, dim), "<f2"),
            key=Array(0x300000, (rows, tokens, kv_heads, dim), kind), value=Array(0x400000, (rows, tokens, kv_heads, dim), kind),
            lengths=Array(0x500000, (rows,), "<i4"))

    engine = lessismore.Engine(3, layers=[1], budget=16)
    SHAPE = dict(device=0, capacity=64, heads=8, kv_heads=2, head_dim=128)

    def refused(error, text, call, *args, **kwargs):
        try:
            call(*args, **kwargs)
        except error as e:
            assert text in str(e), e
        else:
            raise AssertionError(text)
"""


@pytest.fixture(scope="module")
def driver(root, tmp_path_factory):
    library = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    source = root / "tests" / "gpu" / "standin" / "standin.c"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-lpthread"], check=True)
    return library


@pytest.fixture
def run(root, tmp_path):
    def run(code, driver):
        log = tmp_path / "log"
        env = {
            **os.environ,
            "PYTHONPATH": str(root / "bindings" / "python"),
            "LESSISMORE_LIBCUDA": str(driver),
            "LIM_STANDIN_LOG": str(log),
        }
        code = textwrap.dedent(COMMON) + textwrap.dedent(code)
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
        if "has no CUDA" in done.stderr:
            pytest.skip("a build without CUDA")
        assert done.returncode == 0, done.stderr
        return log.read_text().splitlines() if log.exists() else []

    return run


def test_without_a_driver(run, tmp_path):
    run(
        """
        refused(lessismore.DeviceError, "device = 0: no usable CUDA driver", engine.decoder, 2, **SHAPE)
        refused(lessismore.DeviceError, "/none", lessismore.Decoder.work_size, engine, 2, **SHAPE)
        refused(lessismore.ArgumentError, "dtype = 'f32' is none of f16", engine.decoder, 2, **SHAPE, dtype="f32")
        refused(lessismore.UnsupportedError, "head_dim = 72", engine.decoder, 2, **{**SHAPE, "head_dim": 72})
        refused(lessismore.UnsupportedError, "64, 96, 128 or 256, as on a GPU it has to be with q4_0", engine.decoder, 2, **{**SHAPE, "head_dim": 192}, dtype="q4_0")
        refused(lessismore.ArgumentError, "kv_tokens = -1", engine.decoder, 2, **SHAPE, kv_tokens=-1)
        refused(lessismore.UnsupportedError, "kv_tokens = 7: a decoder on the CPU", engine.decoder, kv_tokens=7)
        refused(lessismore.ArgumentError, "capacity = 4294967296 does not fit", engine.decoder, 2, **{**SHAPE, "capacity": 1 << 32})
        assert engine.stats()["steps"] == 0  # all else works
        """,
        tmp_path / "none",
    )


def test_what_reaches_the_driver(run, driver):
    log = run(
        """
        with engine.decoder(2, **SHAPE) as decoder:
            call = right()
            for layer in range(3):
                call["layer"] = layer
                assert decoder.attend(**call, stream=0x77) is call["out"]
            call = right()
            call["query"] = Array(0x100000, (2, 8, 128), "<f2", stream=0x88)
            decoder.attend(**call)
            pages = right(rows=5)
            pages.update({name: right()[name] for name in ("query", "out", "lengths")})
            decoder.attend(**pages, table=Array(0x600000, (2, 1), "<i4"))
            assert decoder.stats()["steps"] == 0  # the stand-in's kernels do not count
            decoder.reset()
            refused(lessismore.BusyError, "has decoders that are still alive: 1", engine.close)
        refused(lessismore.HandleError, "decoder is closed", decoder.attend, **right())
        work = lessismore.Decoder.work_size(engine, 2, **SHAPE)
        longer = {**SHAPE, "capacity": 4096}
        assert lessismore.Decoder.work_size(engine, 2, **longer, kv_tokens=4096) < lessismore.Decoder.work_size(engine, 2, **longer)
        engine.decoder(2, **longer, kv_tokens=4096).close()
        engine.decoder(2, **SHAPE).close()
        memory = ctypes.create_string_buffer(work + 256)  # which the stand-in takes for the GPU's
        aligned = (ctypes.addressof(memory) + 255) // 256 * 256
        lessismore.Decoder(engine, 2, **SHAPE, work=Array(aligned, (work,), "|u1")).close()
        engine.close()
        """,
        driver,
    )
    launches = [line.split() for line in log if line.startswith("cuLaunchKernel")]
    assert [(l[1], l[l.index("stream") + 1]) for l in launches] == [
        ("lim_short_f16_128_8_direct", "0x77"),
        ("lim_short_f16_128_8_direct", "0x77"),
        ("lim_select_union", "0x77"),
        ("lim_short_f16_128_8_indexed", "0x77"),
        ("lim_tally", "0x77"),
        ("lim_short_f16_128_8_direct", "0x88"),
        ("lim_short_f16_128_8_indexed", "(nil)"),
    ]


def test_poll(run, driver):
    run(
        """
        with engine.decoder(2, **SHAPE) as decoder:  # layers are given
            first, eager = decoder.poll()
            assert not eager and decoder.poll() == (first, False)
        with lessismore.Engine(8, budget=16) as measuring, measuring.decoder(2, **SHAPE) as decoder:
            number, eager = decoder.poll()
            assert number > 0 and eager is True
            assert lessismore.Decoder.work_size(measuring, 2, **SHAPE) > lessismore.Decoder.work_size(engine, 2, **SHAPE)
        refused(lessismore.HandleError, "decoder is closed", decoder.poll)
        """,
        driver,
    )


def test_types(run, driver):
    log = run(
        """
        for dtype, kind, width in (("bf16", "<u2", 128), ("bf16", "<V2", 128), ("fp8", "|u1", 128), ("q8_0", "|u1", 136)):
            with engine.decoder(2, **SHAPE, dtype=dtype) as decoder:
                call = right(kind=kind)
                for name in ("key", "value"):
                    call[name] = Array(0x300000, (2, 64, 2, width), kind)
                decoder.attend(**call, key_scale=0.5)
        """,
        driver,
    )
    assert [l.split()[1] for l in log if l.startswith("cuLaunch")] == [
        f"lim_{kernel}_128_8_direct" for kernel in ("short_bf16", "short_bf16", "short_fp8", "short_q8_0")
    ]


def test_refusals(run, driver):
    log = run(
        """
        decoder = engine.decoder(2, **SHAPE)
        def bad(error, text, **changed):
            refused(error, text, decoder.attend, **{**right(), **changed})
        A, U, T = lessismore.ArgumentError, lessismore.UnsupportedError, TypeError
        bad(T, "query is a list", query=[1.0])
        bad(A, "query has shape (2, 8, 64), not (2, 8, 128)", query=Array(0x100000, (2, 8, 64), "<f2"))
        bad(A, "query has shape (2, 1024), which is not 3 dimensions", query=Array(0x100000, (2, 1024), "<f2"))
        bad(A, "query has dtype <f8", query=Array(0x100000, (2, 8, 128), "<f8"))
        bad(A, "query has dtype i32", query=Array(0x100000, (2, 8, 128), "<i4"))
        bad(A, "query has strides", query=Array(0x100000, (2, 8, 128), "<f2", (2, 4, 32)))
        bad(A, "out has shape (1, 8, 128)", out=Array(0x200000, (1, 8, 128), "<f2"))
        bad(A, "key has dtype f32, but the decoder is for f16", key=Array(0x300000, (2, 64, 2, 128), "<f4"))
        bad(A, "key has shape (2, 64, 4, 128)", key=Array(0x300000, (2, 64, 4, 128), "<f2"))
        bad(A, "value has shape (2, 32, 2, 128), but key has", value=Array(0x400000, (2, 32, 2, 128), "<f2"))
        bad(A, "but query has 2 rows", key=right(1)["key"], value=right(1)["value"])
        bad(A, "lengths has dtype f32", lengths=Array(0x500000, (2,), "<f4"))
        bad(A, "lengths has dtype i32 and shape (3,)", lengths=Array(0x500000, (3,), "<i4"))
        bad(A, "table has dtype", table=Array(0x600000, (3, 4), "<i4"))
        bad(A, "table_stride = 0", table=Array(0x600000, (2, 0), "<i4"))
        bad(A, "sinks has dtype f32 and shape (7,)", sinks=Array(0x700000, (7,), "<f4"))
        bad(A, "layer = 3", layer=3)
        bad(T, "layer = 'a' is not a whole number", layer="a")
        bad(A, "scale = 0", scale=0)
        bad(A, "mask is for decoders on the CPU", mask=[1.0])
        bad(A, "query_positions is for decoders on the CPU", query_positions=3)
        bad(T, "lengths is a NoneType", lengths=None)
        bad(A, "key_scale = 0.0", key_scale=0.0)
        bad(A, "softcap = -1", softcap=-1.0)
        bad(A, "n_rows = 3", **{n: v for n, v in right(3).items() if n != "layer"})
        bad(U, "key = 0x300008", key=Array(0x300008, (2, 64, 2, 128), "<f2"))
        bad(A, "value = 0x3000 is not in the memory of CUDA device 0", value=Array(0x3000, (2, 64, 2, 128), "<f2"))
        refused(A, "row = 2", decoder.token_set, 2)
        refused(T, "row = None", decoder.token_set, None)
        refused(A, "row = 0, but the last finished step had 0", decoder.token_set, 0)
        refused(A, "work has dtype f32", lessismore.Decoder, engine, 2, **SHAPE, work=Array(0x100000, (64,), "<f4"))
        refused(A, "work_size = 64 is less than", lessismore.Decoder, engine, 2, **SHAPE, work=Array(0x100000, (64,), "|u1"))
        """,
        driver,
    )
    assert not any(line.startswith("cuLaunch") for line in log)
