#!/usr/bin/env python3
"""Packs SGLang 0.5.15 for a machine with a Hopper GPU, Python 3.12, torch 2.11 (CUDA 13), nvcc and ninja, but no network: about 66 MB in three archives.

    python3 pack.py FOLDER          there: mkdir p && for f in FOLDER/*.tar.xz; do tar xJf $f -C p; done && export PYTHONPATH=$PWD/p

Wheels from the package index, those that SGLang asks for and no others of their kinds: without what torch brings, kernels of other GPUs, and
FlashAttention 3's kernels but those of f16 heads of 64 and bf16 heads of 128 (the reasoner's and Qwen3-8B's). FlashInfer is there to be
imported, and its norms are compiled here (a minute or two). Needs zstandard, c++filt and g++ here. SGLang's own small kernels are compiled there at the first
start, which takes a minute.
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
ROOT = HERE.parents[2]
sys.path.insert(0, str(HERE.parent / "vllm"))
import pack as vllm_pack  # noqa: E402

SGLANG = ["sglang==0.5.15.post1", "sglang-kernel==0.4.4"]
NEEDS = """transformers==5.12.1 tokenizers==0.22.2 flashinfer_python==0.6.12 apache-tvm-ffi==0.1.11 compressed-tensors==0.20.0 fastapi==0.165.0
starlette==1.10.0 uvicorn==0.54.0 uvloop==0.23.0 orjson==3.13.0 msgspec==0.22.0 partial_json_parser==0.2.1.1.post7 prometheus-client==0.26.0
pybase64==1.5.1 pydantic==2.14.4 pydantic-core==2.50.5 typing-inspection==0.4.5 annotated-types==0.8.0 annotated-doc==0.0.7
python-multipart==0.0.34 pyzmq==27.3.0 setproctitle==1.3.8 watchfiles==1.3.0 zstandard==0.25.0 interegular==0.3.3 IPython==9.18.1
traitlets==5.16.1 stack_data==0.6.3 asttokens==3.0.2 executing==2.3.0 pure_eval==0.2.4 matplotlib_inline==0.2.2 prompt_toolkit==3.0.53
wcwidth==0.9.4 pexpect==4.9.0 ptyprocess==0.7.0 jedi==0.20.1 parso==0.8.7 gguf==0.19.0 distro==1.9.0 build==1.6.1 blobfile==3.0.0
openai==2.6.1 openai-harmony==0.0.4 jiter==0.19.0 httpx==0.28.1 httpcore==1.0.9 h11==0.16.0 sniffio==1.3.1 anyio==4.16.0 llguidance==1.9.1
dill==0.4.1 ml-dtypes==0.6.0 loguru==0.7.3 nvidia-ml-py==13.615.71 opentelemetry-api==1.45.2 einops==0.8.2 aiohttp==3.14.5 aiosignal==1.4.0
aiohappyeyeballs==2.7.1 frozenlist==1.8.0 multidict==7.2.1 propcache==0.5.4 yarl==1.25.1 attrs==26.1.0 sentencepiece==0.2.2
regex==2026.11.19 huggingface_hub==1.33.0 safetensors==0.8.0 pyyaml==6.0.4 certifi==2026.10.19.post1 click==8.5.1 idna==3.20
pygments==2.21.0 rich==15.0.0""".split()
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


def build_norms(site):
    """FlashInfer's norms where it looks for what is compiled already: every engine there would compile them at its first step."""
    toolkit = subprocess.run(["sh", ROOT / "scripts" / "cuda-toolchain.sh"], check=True, capture_output=True, text=True).stdout.strip()
    data = site / "flashinfer" / "data"
    out = data / "aot" / "norm" / "norm.so"
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as unused:
        for name in ("cublasLt.h", "cublas_v2.h", "curand_kernel.h"):  # included, and nothing of them is used
            pathlib.Path(unused, name).touch()
        folders = (unused, f"{toolkit}/include", site / "tvm_ffi" / "include", data / "include", data / "csrc", data / "spdlog" / "include")
        types = [f"-DFLASHINFER_ENABLE_{name}" for name in ("F16", "BF16", "FP8_E4M3", "FP8_E5M2")] + ["-DENABLE_BF16", "-DENABLE_FP8"]
        subprocess.run(
            [f"{toolkit}/bin/nvcc", *(f"-isystem={folder}" for folder in folders), *types, "-DNDEBUG", "-O3", "-std=c++17", "-use_fast_math",
             "--expt-relaxed-constexpr", "-gencode=arch=compute_90a,code=sm_90a", "-Xfatbin=-compress-all", "-Xcompiler=-fPIC", "-shared", "-cudart=none",
             f"-Xlinker={toolkit}/lib/libcudart.so.13", data / "csrc" / "norm.cu", data / "csrc" / "flashinfer_norm_binding.cu", "-o", out],
            check=True,
        )  # fmt: skip


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
        build_norms(site)
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
