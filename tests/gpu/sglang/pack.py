#!/usr/bin/env python3
"""Packs SGLang 0.5.15 for a machine with a Hopper GPU, Python 3.12, torch 2.11 (CUDA 13), nvcc and ninja, but no network: about 68 MB.

    python3 pack.py FOLDER          there: mkdir p && for f in FOLDER/*.tar.xz; do tar xJf $f -C p; done && export PYTHONPATH=$PWD/p

Wheels from the package index, those that SGLang asks for and no others of their kinds: without what torch brings, kernels of other GPUs, and
FlashAttention 3's kernels but those of f16 heads of 64 and bf16 heads of 128 (the reasoner's and Qwen3-8B's). FlashInfer is there to be
imported. Needs zstandard and c++filt here. Some kernels are compiled there at the first start, which takes a minute.
"""

import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile

import zstandard

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "vllm"))
import pack as vllm_pack  # noqa: E402

SGLANG = ["sglang==0.5.15.post1", "sglang-kernel==0.4.4"]
NEEDS = """transformers==5.12.1 tokenizers==0.22.2 flashinfer_python==0.6.12 apache-tvm-ffi==0.1.11 compressed-tensors fastapi starlette uvicorn
uvloop orjson msgspec partial_json_parser prometheus-client pybase64 pydantic pydantic-core typing-inspection annotated-types annotated-doc
python-multipart pyzmq setproctitle watchfiles zstandard interegular IPython traitlets stack_data asttokens executing pure_eval
matplotlib_inline prompt_toolkit wcwidth pexpect ptyprocess jedi parso decorator gguf distro build blobfile openai==2.6.1 openai-harmony==0.0.4
jiter httpx httpcore h11 sniffio anyio llguidance dill ml-dtypes loguru nvidia-ml-py opentelemetry-api einops aiohttp aiosignal aiohappyeyeballs
frozenlist multidict propcache yarl attrs sentencepiece tiktoken regex huggingface_hub safetensors pyyaml""".split()
LEFT_OUT = re.compile(
    r"sglang/(multimodal_gen|test)/|sgl_kernel/(sm100/|flashmla_ops)|flashinfer/data/(cccl|cutlass)/|(^|/)tests/|/__pycache__/|\.data/"
)
FA3 = "sgl_kernel/flash_ops.abi3.so"
WANTED = {("64", "half_t"), ("128", "bfloat16_t")}  # head_dim and type of its kernels
MAINLOOP = re.compile(
    r"CollectiveMainloopFwdSm90<\d+, cute::tuple<.*? >, cute::tuple<cute::C<\d+>, cute::C<\d+>, cute::C<(\d+)> >, (\d+), cutlass::(\w+), float, "
    r"cutlass::arch::Sm90, (?:true|false), (?:true|false), (true|false), (?:true|false), (?:true|false), (?:true|false), (true|false)"
)


def wanted(code):
    """Whether a file of kernels, machine code of sm_90, is one that the models here call."""
    names = b"\n".join(set(re.findall(rb"\.text\.(_Z[A-Za-z0-9_$.]{10,})", code)))
    kernels = subprocess.run(["c++filt"], input=names, capture_output=True, check=True).stdout.decode()
    loops = MAINLOOP.findall(kernels)
    if not loops:
        return "FlashAttnFwdSm80" not in kernels  # what combines and prepares
    return all((dim, kind) in WANTED and dim == value_dim and cap == qv == "false" for dim, value_dim, kind, cap, qv in loops)


def prune(path):
    """Takes what is not for these models out of a library's CUDA fat binaries."""
    b, inflate = bytearray(path.read_bytes()), zstandard.ZstdDecompressor()
    for item, kind, head, payload, arch in [item for found in vllm_pack.binaries(b) for item in found]:
        code = bytes(b[item + head : item + head + payload])
        if code.startswith(b"\x28\xb5\x2f\xfd"):
            code = inflate.decompressobj().decompress(code)
        if kind != 2 or arch != 90 or not wanted(code):
            b[item + head : item + head + payload] = bytes(payload)
            struct.pack_into("<I", b, item + 28, 75)  # no GPU of the ones that this is for: the driver does not look at it
    path.write_bytes(b)
    subprocess.run(["fallocate", "--dig-holes", path], check=True)


def compress(out, site, names):
    with open(out, "wb") as f:
        tar = subprocess.Popen(["tar", "-S", "-cf", "-", "-C", str(site), *names], stdout=subprocess.PIPE)
        subprocess.run(["xz", "-6", "-T2"], stdin=tar.stdout, stdout=f, check=True)
    print(out, round(out.stat().st_size / 2**20, 1), "MiB")


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)
        vllm_pack.download(tmp / "wheels", [*SGLANG, *NEEDS])
        site = tmp / "site"
        for wheel in sorted((tmp / "wheels").glob("*.whl")):
            with zipfile.ZipFile(wheel) as z:
                for i in z.infolist():
                    if not LEFT_OUT.search(i.filename):
                        z.extract(i, site)
        for library in site.rglob("*.so*"):
            if "sgl_kernel" not in library.parts:
                subprocess.run(["strip", "--strip-unneeded", library], check=False, stderr=subprocess.DEVNULL)
        prune(site / FA3)
        compress(out / "flash.tar.xz", site, [FA3])
        (site / FA3).unlink()
        large = ["sglang", "sgl_kernel", "transformers"]
        compress(out / "sglang.tar.xz", site, large)
        for name in large:
            shutil.rmtree(site / name)
        compress(out / "others.tar.xz", site, ["."])


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
