"""Low-rank adapters: added to a model, loaded from a folder, and switched off while the reference runs."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open

from hrpo.common.errors import InputError
from hrpo.common.files import read_json
from hrpo.models.loading_errors import AGAIN, LOADING_ERRORS, on_one_line
from hrpo.models.settings import SETTINGS_FILE, Lora

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LAYER_NAME = re.compile(r"[\w.]+")
# Of an adapter's settings, those that may be other than PEFT's default: of the rest some import a module, match
# patterns, or change the weights that it is laid over.
ADAPTER_SETTINGS = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    "inference_mode",
    *("r", "target_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "use_dora"),
    *("modules_to_save", "layers_to_transform"),
}


def require_full_weights(folder: Path) -> None:
    """Refuse a folder that holds an adapter alone where a model's full weights are needed.

    Raises:
        InputError: says how to merge it into its base model.

    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    if (folder / SETTINGS_FILE).is_file():
        merge = f"run `hrpo export --checkpoint {folder} --out DIR` first, and start from DIR"
    else:
        merge = (
            f"merge it first, in Python: peft.AutoPeftModelForCausalLM.from_pretrained({str(folder)!r})"
            ".merge_and_unload().save_pretrained('DIR'); add the tokenizer's files to DIR, and start from DIR"
        )
    raise InputError("model.name", f"{folder} holds an adapter, not a whole model", merge)


def add_adapter(lm: Any, lora: Lora) -> Any:
    """Return the model with fresh adapters, in PEFT's wrapper.

    Raises:
        ValueError: PEFT does not know the architecture, or finds no layer of these names.

    """
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    return get_peft_model(
        lm, LoraConfig(task_type="CAUSAL_LM", r=lora.r, lora_alpha=lora.alpha, target_modules=targets)
    )


@contextlib.contextmanager
def without_adapters(lm: PeftModel) -> Iterator[None]:
    """Within it, the adapters are off.

    PEFT's public `disable_adapter` also goes through every parameter of the adapters, to freeze it and to thaw it
    again. That is too slow for what happens in each micro-batch, so this sets the private attribute that PEFT's layers
    look at.
    """
    name = "_disable_adapters"
    # Looked up in `vars` first: `getattr` of a torch module is slow where the module lacks the attribute.
    modules = (module for module in lm.modules() if name in vars(module) or hasattr(type(module), name))
    on: list[Any] = [module for module in modules if getattr(module, name) is False]
    for module in on:
        module._disable_adapters = True
    try:
        yield
    finally:
        for module in on:
            module._disable_adapters = False


def load_adapter(lm: Any, folder: Path) -> Any:
    """Return the model with the adapters of a folder, in PEFT's wrapper.

    Raises:
        InputError: there are none, they are damaged, or another model's.

    """
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise InputError("model.name", f"{folder}: {ADAPTER_WEIGHTS} is missing", AGAIN)
    check_adapter(folder)
    try:
        _check_rank(folder, file, lm.get_input_embeddings().weight.shape[1])
        model = PeftModel.from_pretrained(lm, str(folder), is_trainable=True)
        with safe_open(file, "pt") as tensors:
            absent = sorted(get_peft_model_state_dict(model, save_embedding_layers=False).keys() - set(tensors.keys()))
    except LOADING_ERRORS as error:
        reason = on_one_line(error)
        raise InputError("model.name", f"{folder}: cannot load its adapter: {reason:.300}", AGAIN) from error
    if absent:
        raise InputError(
            "model.name",
            f"{file} lacks {len(absent)} tensors, such as {absent[0]}: cut, or of another model",
            AGAIN,
        )
    return model


def _check_rank(folder: Path, file: Path, width: int) -> None:
    """Refuse adapters of a rank of which not even one is in the file: all would be made in memory first.

    Raises:
        ValueError: names the rank.

    """
    rank = json.loads((folder / ADAPTER_CONFIG).read_text()).get("r")
    with safe_open(file, "pt") as tensors:
        held = sum(torch.Size(tensors.get_slice(name).get_shape()).numel() for name in tensors.keys())  # noqa: SIM118
    if type(rank) is not int or not 1 <= rank <= held // width:
        raise ValueError(f"r is {rank} in {ADAPTER_CONFIG}, and {held // width} at most in its tensors")


def check_adapter(folder: Path) -> None:
    """Refuse an adapter other than LoRA: of others some name modules, tokenizers and patterns that loading would run.

    Raises:
        InputError: names what is wrong.

    """
    path = folder / ADAPTER_CONFIG
    config = read_json(path, "model.name", AGAIN)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise InputError("model.name", f"{path}: no settings of a LoRA adapter", AGAIN)
    targets = config.get("target_modules")
    named = isinstance(targets, list) and all(isinstance(name, str) and LAYER_NAME.fullmatch(name) for name in targets)
    strange = [] if named or targets == "all-linear" else ["target_modules"]
    defaults = dataclasses.asdict(LoraConfig())
    others = defaults.keys() - ADAPTER_SETTINGS
    strange += sorted(name for name in others if config.get(name) not in (None, defaults[name]))
    if strange:
        raise InputError("model.name", f"{path}: no usable value of {', '.join(strange)}", AGAIN)
