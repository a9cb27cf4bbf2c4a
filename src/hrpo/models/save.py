"""Write a hybrid model: the language model or its adapter, gate.safetensors, hybrid.json and the tokenizer."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from transformers import PreTrainedTokenizerBase

from hrpo.gate import HybridGate
from hrpo.models.gate_file import GATE_FILE, write_gate
from hrpo.models.settings import SETTINGS_FILE, HybridSettings

WEIGHT_FILES = ("adapter_*", "model*.safetensors", "model*.json")  # none may outlive a save of other weights


def write_model(
    folder: Path, lm: Any, gate: HybridGate, settings: HybridSettings, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """Write a model's files into a folder that exists.

    Args:
        folder: where to.
        lm: a transformers model, or PEFT's wrapper of one, of which the adapter alone is written.
        gate: the gate.
        settings: what hybrid.json remembers.
        tokenizer: None for a model that is driven with token ids alone.

    """
    if isinstance(lm, PeftModel):
        _sort_target_modules(lm)
        lm.save_pretrained(str(folder), save_embedding_layers=False)
    else:
        lm.save_pretrained(str(folder))
    write_gate(folder / GATE_FILE, gate)
    (folder / SETTINGS_FILE).write_text(json.dumps(dataclasses.asdict(settings), indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))


def _sort_target_modules(lm: PeftModel) -> None:
    """Sort the names of the adapted layers, which PEFT keeps as a set: its order changes with the process."""
    for config in lm.peft_config.values():
        if isinstance(config, LoraConfig) and isinstance(config.target_modules, set):
            config.target_modules = sorted(config.target_modules)
