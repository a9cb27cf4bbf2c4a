"""A pretended GPU: tensors that say they are on "cuda" and hold their numbers in main memory.

Import it before torch. What PyTorch refuses on a GPU because tensors are on several devices is refused here; what makes
the host wait, copies between devices and kernels are counted, with the line of hrpo that asked for them. A captured
graph is a list of operations that is repeated blindly on the very tensors of the capture, where waiting is refused.

It cannot show which kernel CUDA chooses and its rounding, streams, the allocator, NCCL, and inference mode.
"""

import collections
import ctypes
import hashlib
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent


def build() -> Path:
    """Return the device guard, compiled for the installed PyTorch."""
    import importlib.util

    torch_folder = Path(importlib.util.find_spec("torch").submodule_search_locations[0])
    source = FOLDER / "guard.cpp"
    version = (torch_folder / "version.py").read_bytes()
    name = f"hrpo-guard-{hashlib.sha256(source.read_bytes() + version).hexdigest()[:16]}.so"
    library = Path(tempfile.gettempdir()) / name
    if not library.exists():
        draft = library.with_suffix(f".{os.getpid()}")
        include = [f"-I{torch_folder / 'include'}", f"-I{sysconfig.get_path('include')}"]
        libraries = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch_folder / 'lib'}"]
        command = ["g++", "-shared", "-fPIC", "-std=c++20", "-O0", *include, str(source), "-o", str(draft), *libraries]
        subprocess.run(command, check=True, capture_output=True, text=True)
        draft.rename(library)
    return library


ctypes.CDLL(str(build()))

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
GPU = torch.device("cuda", 0)
MEMORY = 80 * 2**30  # bytes it says it has
torch.cuda._lazy_init = lambda: None
torch.inference_mode = lambda *_: torch.no_grad()  # views of wrapped tensors do not go with inference mode
torch.cuda.is_bf16_supported = lambda *a, **k: True
torch.cuda.max_memory_allocated = lambda *_: 0
torch.cuda.reset_peak_memory_stats = lambda *_: None
torch.cuda.mem_get_info = lambda *_: (MEMORY, MEMORY)
torch.cuda.memory_allocated = lambda *_: 0
torch.cuda.memory_reserved = lambda *_: 0
torch.cuda.empty_cache = lambda: None
torch.cuda.synchronize = lambda *_: None
torch.cuda.is_initialized = lambda: True
torch.cuda.graph_pool_handle = lambda: None
torch.cuda.get_device_properties = lambda *_: type("Properties", (), {"total_memory": MEMORY, "name": "pretended"})()
torch.cuda.amp.common.amp_definitely_not_available = lambda: False

WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
}
INDEX = {
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
NO_SCALARS = {aten.index_select.default, aten.gather.default, aten.bmm.default, aten.mm.default}
NO_KERNELS = {aten.detach.default, aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default}
NO_KERNELS |= {
    aten._unsafe_view.default,
    aten.empty_strided.default,
    aten.new_empty_strided.default,
    aten.lift_fresh.default,
}


def on_gpu(device) -> bool:
    """Whether a device is a GPU."""
    return device is not None and torch.device(device).type == "cuda"


def on_gpu_or_nothing(device) -> bool:
    """Whether what `Module.to` was given is a GPU; it may be a dtype, too."""
    return isinstance(device, str | torch.device) and on_gpu(device)


class Pretend(torch.Tensor):
    """A tensor that says it is on the GPU."""

    @staticmethod
    def __new__(cls, inner):
        out = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=GPU,
            requires_grad=False,
        )
        out.inner = inner
        return out

    def __init__(self, inner):
        pass

    def tolist(self):
        current().note("WAIT tolist")
        return self.inner.tolist()

    def numpy(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def __deepcopy__(self, memo):
        new = Pretend(self.inner.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            new = torch.nn.Parameter(new, self.requires_grad)
        memo[id(self)] = new
        return new

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def storage(self):
        return self.inner.storage()

    def data_ptr(self):
        return self.inner.data_ptr()

    def __reduce_ex__(self, protocol):
        current().note("WAIT pickled")
        return Pretend, (self.inner,)

    def __repr__(self, **_):
        return f"Pretend({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return current().call(func, args, kwargs or {})


_current = []


def current() -> "PretendedGPU":
    return _current[-1]


def emulated(func):
    """What a CUDA kernel does that CPUs lack, on CPU tensors; None where there is no need."""
    name = func.name()
    if name == "aten::bmm.dtype":
        return lambda x, y, dtype: torch.bmm(x.to(dtype), y.to(dtype))
    if name == "aten::baddbmm.dtype":
        return lambda bias, x, y, dtype, beta=1, alpha=1: torch.baddbmm(
            bias, x.to(dtype), y.to(dtype), beta=beta, alpha=alpha
        )
    if name == "torch_attn::_varlen_attn":
        return varlen_attn
    if name == "torch_attn::_varlen_attn_backward":
        return varlen_attn_backward
    return None


@torch.library.custom_op("pretended::rms_norm", mutates_args=())
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`F.rms_norm`, which is one kernel on CUDA: float32 inside, rounded once."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def varlen_attn(query, key, value, query_ends, key_ends, longest_query, longest_key, *options, **more):
    """`torch_attn::_varlen_attn`: causal attention of sequences end to end, float32 inside."""
    out = torch.empty_like(query)
    for queries, _, weights, v, _, _ in shares(query, key, value, query_ends, key_ends, (*options, *more.values())):
        out[queries] = (weights @ v).transpose(0, 1).to(query.dtype)
    logs = query.new_zeros(query.shape[1], len(query), dtype=torch.float32)
    return out, logs, torch.zeros(2, dtype=torch.uint64)


def varlen_attn_backward(grad, query, key, value, out, logs, query_ends, key_ends, *options, **more):
    """`torch_attn::_varlen_attn_backward`."""
    for_query, for_key, for_value = (torch.zeros_like(x, dtype=torch.float32) for x in (query, key, value))
    per = query.shape[1] // key.shape[1]
    for queries, keys, weights, v, q, k in shares(query, key, value, query_ends, key_ends, (*options, *more.values())):
        g = grad[queries].float().transpose(0, 1)  # (H, q, d)
        slopes = g @ v.transpose(1, 2)
        slopes = weights * (slopes - (slopes * weights).sum(dim=2, keepdim=True))
        for_query[queries] = (slopes @ k).transpose(0, 1) * scale_of((*options, *more.values()))
        parts = (slopes.transpose(1, 2) @ q, weights.transpose(1, 2) @ g)  # q has the scale in it
        for total, part in zip((for_key, for_value), parts, strict=True):
            total[keys] += part.unflatten(0, (-1, per)).sum(dim=1).transpose(0, 1)
    return tuple(x.to(query.dtype) for x in (for_query, for_key, for_value))


def scale_of(options):
    return next(x for x in options if isinstance(x, float))


def shares(query, key, value, query_ends, key_ends, options):
    """Yield each sequence's places, its softmax (H, q, k), and float32 values, scaled queries and keys (H, ..., d)."""
    per = query.shape[1] // key.shape[1]
    ends = zip(*(x.tolist() for x in (query_ends[:-1], query_ends[1:], key_ends[:-1], key_ends[1:])), strict=True)
    for q0, q1, k0, k1 in ends:
        q = query[q0:q1].float().transpose(0, 1) * scale_of(options)
        k, v = (x[k0:k1].float().transpose(0, 1).repeat_interleave(per, dim=0) for x in (key, value))
        hidden = ~torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril(k1 - k0 - (q1 - q0))
        weights = (q @ k.transpose(1, 2)).masked_fill(hidden, -torch.inf).softmax(dim=2)
        yield slice(q0, q1), slice(k0, k1), weights, v, q, k


class PretendedGPU(TorchDispatchMode):
    """Within it, there is a GPU.

    kernels, waits, copies: how many of each, by the line that asked for them; views and empty tensors are none.
    attention: (has a mask, has grouped heads) of each call of `scaled_dot_product_attention`.
    """

    def __init__(self):
        super().__init__()
        self.kernels, self.waits, self.copies = (collections.Counter() for _ in range(3))
        self.attention = []
        self.captured = None  # operations of the graph that is being captured

    def __enter__(self):
        _current.append(self)
        self.before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        self.real_attention, F.scaled_dot_product_attention = F.scaled_dot_product_attention, self.attend
        self.real_norm, F.rms_norm = F.rms_norm, self.norm
        return super().__enter__()

    def __exit__(self, *details):
        _current.pop()
        torch._C._set_only_lift_cpu_tensors(self.before)
        F.scaled_dot_product_attention, F.rms_norm = self.real_attention, self.real_norm
        return super().__exit__(*details)

    def attend(self, query, key, value, attn_mask=None, **options):
        grouped = query.shape[1] != key.shape[1]
        if isinstance(query, Pretend):
            self.attention.append((attn_mask is not None, grouped and query.dtype != torch.float64))
        return self.real_attention(query, key, value, attn_mask=attn_mask, **options)

    def norm(self, x, shape, weight=None, eps=None):
        if isinstance(x, Pretend) and not torch.is_grad_enabled():
            return rms_norm(x, weight, eps)
        return self.real_norm(x, shape, weight, eps)

    def counts(self) -> tuple[int, int, int]:
        """Kernels, waits and copies so far."""
        return self.kernels.total(), self.waits.total(), self.copies.total()

    def line(self) -> str:
        """The line of hrpo that runs."""
        frame, where = sys._getframe(2), "?"
        while frame is not None:
            name = frame.f_code.co_filename
            if "/src/hrpo/" in name:
                return f"{name.split('/src/hrpo/')[1]}:{frame.f_lineno}"
            if where == "?" and "site-packages" in name and "/torch/" not in name:
                where = f"({name.split('site-packages/')[-1]}:{frame.f_lineno})"
            frame = frame.f_back
        return where

    def note(self, kind):
        if self.captured is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {kind}, {self.line()}")
        (self.copies if kind.startswith("COPY") else self.waits)[f"{kind} {self.line()}"] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.call(func, args, kwargs or {})

    def call(self, func, args, kwargs):
        flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        there = [x for x in flat if isinstance(x, Pretend)]
        device = kwargs.get("device")
        if not there and not on_gpu(device):
            return func(*args, **kwargs)
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
        if composite and func not in WAITS and not emulated(func):
            with self:
                return func.decompose(*args, **kwargs)
        here = [x for x in flat if not isinstance(x, Pretend) and x.device.type != "meta"]
        out_there = self.checked(func, args, kwargs, here, there)
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not views and func not in NO_KERNELS:
            self.kernels[f"{func} {self.line()}"] += 1
        inner_args, inner_kwargs = tree_map(lambda x: x.inner if isinstance(x, Pretend) else x, (args, kwargs))
        if inner_kwargs.get("device") is not None:
            inner_kwargs = {**inner_kwargs, "device": torch.device("cpu")}
        if inner_kwargs.get("pin_memory"):
            inner_kwargs["pin_memory"] = False
        run = emulated(func) or func
        out = run(*inner_args, **inner_kwargs)
        if self.captured is not None:
            self.captured.append((run, inner_args, inner_kwargs, out))
        if func is aten._local_scalar_dense.default or not out_there:
            return out
        wrapped = tree_map(
            lambda x: Pretend(x) if isinstance(x, torch.Tensor) and not isinstance(x, Pretend) else x, out
        )
        if not there:
            return wrapped
        if func is aten.copy_.default:
            return args[0]
        return wrapped if run is not func else return_and_correct_aliasing(func, args, kwargs, wrapped)

    def checked(self, func, args, kwargs, here, there) -> bool:
        """Refuse what a GPU refuses, and note what waits and copies; whether what comes out is on the GPU."""
        device = kwargs.get("device")
        out_there = on_gpu(device) or (device is None and bool(there))
        if func is aten._to_copy.default:
            if there and not out_there:
                self.note("WAIT to the host")
            elif not there and out_there:
                self.note("COPY to the device")
        elif func is aten.copy_.default:
            if here and there:
                self.note("COPY copy_" if isinstance(args[0], Pretend) else "WAIT copy_")
                out_there = isinstance(args[0], Pretend)
        elif func in INDEX:
            if not isinstance(args[0], Pretend):
                raise RuntimeError(f"{func}: indices on cuda, self on cpu")
            for index in (i for i in args[1] if i is not None):
                if index.dtype in (torch.bool, torch.uint8):
                    self.note("WAIT nonzero of a bool index")
                if not isinstance(index, Pretend):
                    self.note("COPY index on the host")
            if len(args) > 2 and not isinstance(args[2], Pretend) and args[2].dim() > 0:
                raise RuntimeError(f"{func}: values on cpu")
        else:
            shapes = [tuple(x.shape) for x in here if x.dim() > 0]
            if shapes and there:
                message = "Expected all tensors to be on the same device"
                raise RuntimeError(f"{message}: {func} has {shapes} on cpu, {self.line()}")
            if here and there and func in NO_SCALARS:
                raise RuntimeError(f"{func}: 0-dim cpu tensor")
            if func in WAITS:
                self.note(f"WAIT {func}")
        return out_there


class CUDAGraph:
    """A list of operations, repeated on the very tensors of the capture."""

    def replay(self):
        for run, args, kwargs, results in self.operations:
            given = {x.untyped_storage().data_ptr() for x in tensors((args, kwargs))}
            for old, new in zip(tensors(results), tensors(run(*args, **kwargs)), strict=True):
                if old.untyped_storage().data_ptr() not in given:  # no view, nothing that was written in place
                    old.copy_(new)


class Capture:
    """`torch.cuda.graph`."""

    def __init__(self, graph, pool=None):
        self.graph = graph

    def __enter__(self):
        current().captured = []

    def __exit__(self, *_):
        self.graph.operations, current().captured = current().captured, None


class Stream:
    """`torch.cuda.Stream`: there is one alone."""

    def wait_stream(self, _):
        pass

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


def tensors(tree):
    return [x for x in tree_flatten(tree)[0] if isinstance(x, torch.Tensor)]


torch.cuda.CUDAGraph, torch.cuda.graph, torch.cuda.Stream = CUDAGraph, Capture, Stream
torch.cuda.stream, torch.cuda.current_stream = lambda stream: stream, Stream


def to_gpu(module):
    """`Module.to`, which refuses to exchange the tensors of wrappers; what is tied stays tied."""
    moved = {}

    def there(x):
        if id(x) not in moved:
            new = x.detach().to("cuda") if not isinstance(x, Pretend) else x
            if isinstance(x, torch.nn.Parameter):
                new = torch.nn.Parameter(new, requires_grad=x.requires_grad)
            moved[id(x)] = (x, new)
        return moved[id(x)][1]

    held = [module, *getattr(module, "_reference", [])]  # which hrpo keeps out of sight
    for part in (part for whole in held for part in whole.modules()):
        for own in (part._parameters, part._buffers):
            for name, x in list(own.items()):
                if x is not None:
                    own[name] = there(x)
    return module
