"""Frozen weights in 4 or 8 bits, by bitsandbytes."""

import importlib.util
import logging
from typing import Any, get_args

import torch
from transformers import BitsAndBytesConfig

from hrpo.common.errors import InputError
from hrpo.config.schema import Quantization


def check_quantization(kind: Quantization, dtype: str, *, adapters: bool) -> None:
    """Refuse what cannot be quantized.

    Raises:
        InputError: no such kind, bitsandbytes is missing, there are no adapters to train, or the dtype is float64.

    """
    if kind not in get_args(Quantization):
        raise InputError("model.quantization", f"must be one of {', '.join(get_args(Quantization))}, got {kind}")
    if kind == "none":
        return
    if not adapters:
        raise InputError("model.quantization", f"{kind} weights stay as they are", "set model.lora_rank above 0")
    if dtype == "float64":
        raise InputError("model.quantization", f"{kind} weights do not run in float64", "set model.dtype to bfloat16")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("model.quantization", f"{kind} needs bitsandbytes", "pip install 'hrpo[quantization]'")


def quantization_options(kind: Quantization, dtype: torch.dtype, device: str | torch.device) -> dict[str, Any]:
    """Return what transformers needs to know to load weights so: nf4 with double quantization, or LLM.int8()."""
    if kind == "none":
        return {}
    if kind == "8bit":
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # it notes every cast to float16
        config = BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    else:
        config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": config, "device_map": {"": str(device)}}


def keep_differentiable(lm: Any) -> None:
    """Keep 4-bit layers from packing their weights for inference on CPUs: packed ones pass no gradient on.

    They would do so in the first forward pass of a model in evaluation mode, in which ours stay.
    """
    for layer in lm.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
