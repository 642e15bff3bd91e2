"""The CUDA kernels from Python, without the library: the same planning code (kernels/cuda/plan.c) and the same
fatbin, launched through the driver. Needs a GPU, gcc and torch (for memory and references only)."""

import ctypes as C
import math
import os
import subprocess
import tempfile

import torch

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
FATBIN = os.environ.get("LESSISMORE_FATBIN", os.path.join(ROOT, "build", "cuda", "kernels.fatbin"))

F32, F16, BF16, Q8_0, Q4_0, FP8 = range(6)
FULL, SELECT, SPARSE = 0, 1, 2
UNION, MASS = 0, 1
TORCH = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16, FP8: torch.float8_e4m3fn}
NAMES = {F32: "f32", F16: "f16", BF16: "bf16", Q8_0: "q8_0", Q4_0: "q4_0", FP8: "fp8"}
PADDED_DIMS = tuple(dim for dim in range(16, 256, 16) if dim not in (64, 128))  # with f16 and bf16

i32, i64, u32, u64, f32 = C.c_int32, C.c_int64, C.c_uint32, C.c_uint64, C.c_float


class Device(C.Structure):
    _fields_ = [("multiprocessors", i32), ("shared_per_multiprocessor", i32), ("shared_per_block", i32), ("capability", i32)]


class Store(C.Structure):
    _fields_ = [("data", u64), ("token_stride", i64), ("head_stride", i64), ("page_stride", i64)]


class Rows(C.Structure):
    _fields_ = [("data", u64), ("row_stride", i64), ("head_stride", i64), ("type", i32), ("reserved", i32)]


class Call(C.Structure):
    _fields_ = [
        ("query", Rows),
        ("output", Rows),
        ("key", Store),
        ("value", Store),
        ("lengths", u64),
        ("table", u64),
        ("table_stride", i64),
        ("set", u64),
        ("set_stride", i64),
        ("positions", u64),
        ("sinks", u64),
        ("work", u64),
        ("kv_tokens", i64),
        ("n_rows", i32),
        ("heads", i32),
        ("kv_heads", i32),
        ("dim", i32),
        ("kv_type", i32),
        ("page_shift", i32),
        ("capacity", i32),
        ("scale", f32),
        ("softcap", f32),
        ("value_scale", f32),
        ("mode", i32),
        ("policy", i32),
        ("budget", i32),
        ("sink_tokens", i32),
        ("top_k", i32),
        ("recent", i32),
        ("lasting", i32),
        ("reserved", i32),
    ]


class Args(C.Structure):
    _fields_ = [
        ("call", Call),
        ("parts", u64),
        ("arrivals", u64),
        ("gathered", u64),
        ("logits", u64),
        ("sums", u64),
        ("ranks", u64),
        ("mass", u64),
        ("logit_stride", i64),
        ("chunk_tokens", u32),
        ("stages", i32),
        ("group", i32),
        ("room", i32),
        ("together", u32),
        ("cluster", u32),
        ("tma", u32),
        ("need", u32),
        ("room_stride", i64),
        ("survivors", u64),
        ("no_sets", u64),
        ("again", u64),
        ("queries", u64),
        ("floats", u32),
        ("reserved", u32 * 9),
        ("key_map", u64 * 16),
        ("value_map", u64 * 16),
    ]


class Probe(C.Structure):
    _fields_ = [
        ("own", u64),
        ("sets", u64),
        ("set_stride", i64),
        ("stamps", u64),
        ("kept", u64),
        ("count", u64),
        ("sum", u64),
        ("square", u64),
        ("row", i32),
        ("n_sets", i32),
        ("set_budget", i32),
        ("least", i32),
        ("stamp", u32),
        ("reserved", i32),
    ]


class ProbeArgs(C.Structure):
    _fields_ = [
        ("probe", Probe),
        ("length", u64),
        ("logits", u64),
        ("sums", u64),
        ("room_stride", i64),
        ("heads", i32),
        ("own_budget", i32),
        ("together", u32),
        ("reserved", i32),
    ]


class Launch(C.Structure):
    _fields_ = [("name", C.c_char * 48), ("grid", u32 * 3), ("block", u32), ("shared", u32), ("cluster", u32), ("pdl", u32)]


def build_plan():
    """What the product links in to plan and to launch, as a shared library: it is what runs here."""
    folder = tempfile.mkdtemp(prefix="lessismore-")
    path = os.path.join(folder, "plan.so")
    sources = [os.path.join(ROOT, "kernels", "cuda", name) for name in ("plan.c", "plan_probe.c", "context.c", "encode.c", "launch.c")]
    subprocess.check_call(["gcc", "-O2", "-std=c11", "-shared", "-fPIC", "-o", path, *sources])
    return C.CDLL(path)


class Kernels:
    def __init__(self):
        torch.zeros(1, device="cuda")  # the primary context
        self.cuda = C.CDLL("libcuda.so.1", C.RTLD_GLOBAL)  # launch.c's driver
        self.context = C.c_void_p()
        self.plan_library = build_plan()
        self.plan_library.lim_cuda_work_size.restype = C.c_size_t
        self.ok(self.cuda.cuCtxGetCurrent(C.byref(self.context)))
        self.module = C.c_void_p()
        with open(FATBIN, "rb") as f:
            self.image = f.read()
        self.ok(self.cuda.cuModuleLoadData(C.byref(self.module), self.image))
        p = torch.cuda.get_device_properties(0)
        self.device = Device(p.multi_processor_count, self.attribute(81), self.attribute(97), 10 * p.major + p.minor)
        self.functions = {}

    def ok(self, result):
        if result != 0:
            name = C.c_char_p()
            self.cuda.cuGetErrorName(result, C.byref(name))
            raise RuntimeError(f"driver: {name.value}")

    def attribute(self, number):
        value = C.c_int()
        self.ok(self.cuda.cuDeviceGetAttribute(C.byref(value), number, 0))
        return value.value

    def function(self, name):
        if name not in self.functions:
            f = C.c_void_p()
            self.ok(self.cuda.cuModuleGetFunction(C.byref(f), self.module, name))
            largest = self.device.shared_per_block
            static = C.c_int()
            self.ok(self.cuda.cuFuncGetAttribute(C.byref(static), 1, f))
            self.ok(self.cuda.cuFuncSetAttribute(f, 8, largest - static.value))
            self.ok(self.cuda.cuFuncSetAttribute(f, 9, 100))  # all of the memory as shared, as plugin/internal/cuda has it
            self.functions[name] = f
        return self.functions[name]

    def check(self, call):
        text = C.create_string_buffer(256)
        return self.plan_library.lim_cuda_check(C.byref(self.device), C.byref(call), text, 256), text.value.decode()

    def work_size(self, call):
        return self.plan_library.lim_cuda_work_size(C.byref(self.device), C.byref(call))

    def plan(self, call, all_logits=False):
        refused, text = self.check(call)
        if refused:
            raise ValueError(text)
        args, launches = Args(), (Launch * 2)()
        plan = self.plan_library.lim_cuda_plan_all if all_logits else self.plan_library.lim_cuda_plan
        count = plan(C.byref(self.device), C.byref(call), C.byref(args), launches)
        self.ok(self.plan_library.lim_cuda_encode(self.context, C.byref(args)))
        return Plan(self, args, [launches[i] for i in range(count)])

    def check_probe(self, call, probe):
        text = C.create_string_buffer(256)
        return self.plan_library.lim_cuda_check_probe(C.byref(call), C.byref(probe), text, 256), text.value.decode()

    def plan_probe(self, call, probe):
        for refused, text in (self.check(call), self.check_probe(call, probe)):
            if refused:
                raise ValueError(text)
        args, launches = (Args(), Args(), ProbeArgs()), (Launch * 3)()
        self.plan_library.lim_cuda_plan_probe(C.byref(self.device), C.byref(call), C.byref(probe), *map(C.byref, args), launches)
        self.ok(self.plan_library.lim_cuda_encode(self.context, C.byref(args[0])))
        return Plan(self, args, list(launches))

    def refuse_select(self, call):
        """What lim_cuda_check says of a selection, with stand-ins for the attention's arguments."""
        c = Call.from_buffer_copy(call)
        for rows in (c.query, c.output):
            rows.data, rows.row_stride, rows.head_stride, rows.type = 1 << 20, 1 << 20, 1 << 10, F16
        for store in (c.key, c.value):
            store.data, store.token_stride, store.head_stride, store.page_stride = 1 << 20, 1 << 20, 1 << 10, 1 << 30
        c.kv_type, c.scale, c.value_scale = F16, 1.0, 1.0
        refused, text = self.check(c)
        return text if refused else ""

    def plan_select(self, call, logits, stride, sums):
        args, launches = Args(), (Launch * 2)()
        self.plan_library.lim_cuda_plan_select(
            C.byref(self.device), C.byref(call), u64(logits), i64(stride), u64(sums), C.byref(args), launches
        )
        return Plan(self, args, [launches[0]])


class Plan:
    def __init__(self, kernels, args, launches):
        self.kernels, self.args, self.launches = kernels, args, launches
        self.each = args if isinstance(args, tuple) else [args] * len(launches)  # of each launch
        self.handles = [kernels.function(l.name) for l in launches]

    def run(self, stream=None, only=None):
        handle = C.c_void_p((stream or torch.cuda.current_stream()).cuda_stream)
        for i, (l, f, args) in enumerate(zip(self.launches, self.handles, self.each)):
            if only is not None and i != only:
                continue
            self.kernels.ok(self.kernels.plan_library.lim_cuda_start(C.byref(l), f, handle, C.byref(args)))


def split(budget, recency=0.25, sinks=4):
    """plugin.SplitBudget for rows with more tokens than the budget."""
    recent = min(max(math.ceil(budget * recency - 1e-9), 0), budget)
    top_k = budget - recent
    if recent <= sinks:
        sinks = 0
    else:
        recent -= sinks
    return sinks, top_k, recent


def to_q8_0(x):
    """[..., dim] float to ggml's blocks as bytes, and what they stand for."""
    blocks = x.float().reshape(*x.shape[:-1], -1, 32)
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).half()
    q = torch.where(scale > 0, (blocks / scale.float()).round(), torch.zeros_like(blocks)).clamp(-128, 127).to(torch.int8)
    data = torch.cat([scale.view(torch.uint8).reshape(*scale.shape[:-1], 2), q.view(torch.uint8)], -1)
    return data.reshape(*x.shape[:-1], -1).contiguous(), (q.double() * scale.double()).reshape(x.shape)


def to_q4_0(x):
    """The same with 16 bytes of two elements: an element in the lower half, the one 16 after it in the upper."""
    blocks = x.float().reshape(*x.shape[:-1], -1, 32)
    at = blocks.abs().argmax(-1, keepdim=True)
    scale = (blocks.gather(-1, at) / -8).half()
    q = torch.where(scale != 0, (blocks / scale.float()).round(), torch.zeros_like(blocks)).clamp(-8, 7) + 8
    nibbles = q.to(torch.uint8)
    data = torch.cat([scale.view(torch.uint8).reshape(*scale.shape[:-1], 2), nibbles[..., :16] | nibbles[..., 16:] << 4], -1)
    return data.reshape(*x.shape[:-1], -1).contiguous(), ((q.double() - 8) * scale.double()).reshape(x.shape)


PACKED = {Q8_0: to_q8_0, Q4_0: to_q4_0}
