"""Compiled code for CPUs: the files in `csrc/`, made into a library at first use.

It is for what decoding and training do besides matrix products: many small operations that cost PyTorch more to call
than to compute, or several passes over the same numbers. Needs a C++ compiler on Linux; without one, PyTorch does it.
Which of it a model uses is measured, see `kernels.py`.
"""

import copy
import ctypes
import functools
import hashlib
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from hrpo.common.files import write_bytes
from hrpo.common.locks import one_at_a_time
from hrpo.models.names import cache_folder

FILES = sorted((Path(__file__).parent / "csrc").iterdir())
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-shared"]
# What PyTorch found this CPU to have; a cache may be shared by machines that differ.
MACHINES = {"AVX512": ["-march=x86-64-v4"], "AVX2": ["-march=x86-64-v3"]}
DIGEST = hashlib.sha256().digest_size
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_pointer, _size = ctypes.c_void_p, ctypes.c_int64
ARGUMENTS: dict[str, list[Any]] = {  # the last of each: threads
    "attend": [_pointer, ctypes.c_int],
    "attend_packed": [_pointer, ctypes.c_int],
    "attend_packed_backward": [_pointer, ctypes.c_int],
    "mix": [*4 * [_pointer], *3 * [_size], ctypes.c_int],
    "multiply": [*3 * [_pointer], _size, ctypes.c_int],
    "rms_norm": [*3 * [_pointer], *2 * [_size], ctypes.c_float, ctypes.c_bool, ctypes.c_int],
    "rms_norm_backward": [*5 * [_pointer], *2 * [_size], ctypes.c_float, ctypes.c_int],
    "rotate": [_pointer, _size, *3 * [_pointer], *3 * [_size], ctypes.c_int],
    "blocks": [*2 * [_pointer], _size, *4 * [_pointer], _size, ctypes.c_int],
    "swiglu": [*2 * [_pointer], _size, _pointer, *2 * [_size], ctypes.c_int],
    "swiglu_backward": [*5 * [_pointer], *2 * [_size], ctypes.c_int],
    "candidates": [_pointer, *3 * [_size], *3 * [_pointer], ctypes.c_int],
}
log = logging.getLogger("hrpo")


class Compiled:
    """The library's functions.

    Args:
        library: a shared library made of the C++ files.

    """

    def __init__(self, library: Path) -> None:
        self.path = library
        loaded = ctypes.CDLL(str(library))
        self.functions: dict[tuple[str, torch.dtype], Callable[..., None]] = {}
        for name, arguments in ARGUMENTS.items():
            for suffix, dtype in DTYPES.items():
                if function := getattr(loaded, f"{name}_{suffix}", None):
                    function.argtypes, function.restype = arguments, None
                    self.functions[name, dtype] = function

    def find(self, name: str, tensor: torch.Tensor) -> Callable[..., None] | None:
        """Return the function for tensors like this one; None where there is none."""
        return self.functions.get((name, tensor.dtype)) if tensor.device.type == "cpu" else None

    def only(self, names: Collection[str]) -> "Compiled":
        """Return the same library with these functions alone."""
        part = copy.copy(self)
        part.functions = {key: function for key, function in self.functions.items() if key[0] in names}
        return part


@functools.cache
def compiled() -> Compiled | None:
    """Return the compiled code, made if it has not been yet; None, and a word once, where it cannot be."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return Compiled(_library(cache_folder() / "compiled"))
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        reason = next((line for line in said.split("\n") if "error" in line), said.split("\n")[0])
        log.warning(
            "decoding and updates run uncompiled, slower: %s; install g++, or name another compiler in CXX", reason
        )
        return None


def _library(folder: Path) -> Path:
    """Return the library for this machine, made unless it is there whole."""
    command = [*_compiler(), *FLAGS, *_machine()]
    content = b"".join(path.read_bytes() for path in FILES)
    version = hashlib.sha256(" ".join(command).encode() + content).hexdigest()[:16]
    library = folder / f"decoding-{version}.so"
    if not _whole(library):
        with one_at_a_time(folder):
            if not _whole(library):  # another process may have made it meanwhile
                _build(command, library)
    return library


def _compiler() -> list[str]:
    """Return the compiler's command: CXX as a shell reads it, g++ unless it is set."""
    try:
        return shlex.split(os.environ.get("CXX") or "g++")
    except ValueError as error:
        raise ValueError(f"CXX: cannot be read as a command ({error})") from error


def _machine() -> list[str]:
    """Return the flags for this machine's instructions."""
    capability = torch.backends.cpu.get_cpu_capability()
    flags = MACHINES.get(capability, [])
    if capability == "AVX512" and torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported():
        return [*flags, "-mavx512bf16"]  # oneDNN has something better where there are AMX tiles
    return flags


def _build(command: list[str], library: Path) -> None:
    """Make the library, its checksum at the end; a build that is killed leaves one draft, which the next one replaces.

    Args:
        command: the compiler and its flags.
        library: appears complete or not at all.

    """
    draft = library.with_suffix(".draft")
    try:
        sources = [str(path) for path in FILES if path.suffix == ".cpp"]
        subprocess.run([*command, *sources, "-o", str(draft)], check=True, capture_output=True, text=True)
        content = draft.read_bytes()
        write_bytes(library, content + hashlib.sha256(content).digest())
    finally:
        draft.unlink(missing_ok=True)


def _whole(library: Path) -> bool:
    """Whether the library is there as it was made: loading one that was cut short ends the process."""
    content = library.read_bytes() if library.is_file() else b""
    return hashlib.sha256(content[:-DIGEST]).digest() == content[-DIGEST:]
