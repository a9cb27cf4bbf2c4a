"""A checkpoint as a plain model folder: the adapter merged into the weights, the gate beside them."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoConfig

from hrpo.common.errors import InputError, model_named_by
from hrpo.common.files import check_links, check_vacant, new_folder
from hrpo.config.schema import Dtype
from hrpo.hub.model_card import CARD_FILE, model_card, results_of
from hrpo.model import HybridCausalLM
from hrpo.models.adapter import ADAPTER_CONFIG
from hrpo.models.names import fetch_hybrid, resolve
from hrpo.models.settings import SETTINGS_FILE, read_settings
from hrpo.storage.run_dir import model_in

STORED = ("float32", "bfloat16", "float16", "float64")


def export(checkpoint: str, out: str | Path, *, dtype: str = "", trust_remote_code: bool = False) -> Path:
    """Write a folder that loads without PEFT: transformers' own files, gate.safetensors, hybrid.json and a card.

    Weights and adapter are added in float32 (float64 in a float64 run), in a model loaded for this alone.

    Args:
        checkpoint: a saved hybrid model, or a run folder for its newest one.
        out: a folder that is not there yet, or empty.
        dtype: what the weights are stored in; default the number format that those under the adapter are stored in.
        trust_remote_code: run code that comes with the base model.

    Returns:
        The folder.

    Raises:
        InputError: nothing to export there, weights that cannot be merged, or `out` holds something or is being written
            by another process.

    """
    folder, out = saved_model(checkpoint), Path(out)
    if dtype and dtype not in STORED:
        raise InputError("--dtype", f"must be one of {', '.join(STORED)}, got {dtype}")
    check_vacant(out)
    has_adapter = (folder / ADAPTER_CONFIG).is_file()
    with model_named_by("--checkpoint"):
        settings = read_settings(folder / SETTINGS_FILE)
        exact: Dtype = "float64" if settings.dtype == "float64" else "float32"
        config = _config(resolve(settings.base_model) if has_adapter else str(folder), trust_remote_code)
    with new_folder(out) as draft:
        check_vacant(out)  # another export may have ended just now
        with model_named_by("--checkpoint"):
            model = HybridCausalLM.from_pretrained(folder, dtype=exact, trust_remote_code=trust_remote_code)
        lm, stored = _merged(model), getattr(torch, dtype) if dtype else config.dtype or torch.float32
        _check_range(lm, stored)
        HybridCausalLM(lm.to(stored), model.gate, settings, model.tokenizer).write_files(draft)
        model_card(draft, results_of(folder)).save(draft / CARD_FILE)
    return out


def saved_model(checkpoint: str) -> Path:
    """Return the folder of a saved hybrid model, the newest one of a run.

    Raises:
        InputError: there is none, or it has links to what lies outside.

    """
    with model_named_by("--checkpoint"):
        folder = Path(fetch_hybrid(resolve(model_in(checkpoint))))
    if not folder.is_dir():
        raise InputError("--checkpoint", f"{checkpoint} is no folder here, and no hybrid model that the Hub gives")
    if not (folder / SETTINGS_FILE).is_file():
        raise InputError("--checkpoint", f"{checkpoint} is no saved hybrid model", f"it has no {SETTINGS_FILE}")
    check_links(folder, "--checkpoint")
    return folder


def _config(name: str, trust_remote_code: bool) -> Any:
    """Return the config of the weights under the adapter, which can be merged into."""
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError("--checkpoint", f"cannot read the base model {name}: {reason}") from error
    _check_mergeable(config, name)
    return config


def _check_mergeable(config: Any, name: str) -> None:
    if getattr(config, "quantization_config", None):
        raise InputError("--checkpoint", f"its base model {name} is quantized, and nothing can be merged into it")


def _check_range(lm: Any, dtype: torch.dtype) -> None:
    """Refuse a number format in which weights would be infinite."""
    for name, p in lm.named_parameters():
        if not p.to(dtype).isfinite().equal(p.isfinite()):
            largest = p[p.isfinite()].abs().max().item()
            raise InputError(
                "--dtype",
                f"{str(dtype).removeprefix('torch.')} goes to {torch.finfo(dtype).max:.3g}, and "
                f"{name} has {largest:.3g}",
                "take float32",
            )


def _merged(model: HybridCausalLM) -> Any:
    """Return the language model with the adapter in its weights; the model itself is used up."""
    if not isinstance(model.lm, PeftModel):
        return model.lm
    _check_mergeable(model.bare_lm.config, model.settings.base_model)  # quantized as it was loaded
    head = model.bare_lm.get_output_embeddings()
    if head.weight is model.embedding.weight and any(isinstance(m, BaseTunerLayer) for m in (head, model.embedding)):
        raise InputError(
            "--checkpoint",
            "its adapter changes the embedding or the head, which share their weights",
            "merged into one it would change the other",
        )
    return model.lm.merge_and_unload()
