"""A gate on disk: gate.safetensors, with the bounds of a fresh one in its metadata."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from hrpo.common.errors import InputError
from hrpo.gate import HybridGate
from hrpo.models.loading_errors import AGAIN, on_one_line
from hrpo.models.settings import SETTINGS_FILE

GATE_FILE = "gate.safetensors"


def read_gate(path: Path, width: int) -> HybridGate:
    """Read the gate of a model whose input embedding is so wide.

    Raises:
        InputError: there is none, or it is another model's.

    """
    if not path.is_file():
        raise InputError("model.name", f"{path}: missing", f"a folder with {SETTINGS_FILE} needs its gate beside it")
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        bounds = {name: float(metadata[name]) for name in ("r_min", "r_max") if name in metadata}
        own = tensors["Lambda"].numel()
        if own == width:  # else nothing is made of that width: the sizes of the gate's weights grow with its square
            gate = HybridGate(width, **bounds).to(tensors["Lambda"].dtype)
            gate.load_state_dict(tensors)
            return gate
    except (AttributeError, KeyError, RuntimeError, SafetensorError, ValueError) as error:
        raise InputError("model.name", f"{path}: not a gate: {on_one_line(error)}", AGAIN) from error
    raise InputError(
        "model.name",
        f"{path}: the gate is {own} wide, the model's input embedding {width}: it is another model's",
        "put its own beside it",
    )


def write_gate(path: Path, gate: HybridGate) -> None:
    """Write a gate; the same one gives the same bytes."""
    tensors = {name: tensor.contiguous() for name, tensor in gate.state_dict().items()}
    metadata = {"r_min": str(gate.r_min), "r_max": str(gate.r_max)}
    path.write_bytes(with_sorted_metadata(save(tensors, metadata)))


def with_sorted_metadata(data: bytes) -> bytes:
    """Return a safetensors file with its metadata in order, which the library leaves to chance."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    return data[:8] + json.dumps(header, separators=(",", ":")).encode().ljust(end - 8) + data[end:]
