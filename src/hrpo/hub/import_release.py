"""Read a model that the paper's original release has trained, and write it as a checkpoint of ours."""

import dataclasses
import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hrpo.common.errors import InputError, model_named_by
from hrpo.common.files import check_links, check_vacant, new_folder, read_json
from hrpo.config.bounds import MIN_TEMPERATURE, TOKENS
from hrpo.config.schema import TaskConfig
from hrpo.model import HybridCausalLM
from hrpo.models.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from hrpo.models.digests import base_digests
from hrpo.models.gate_file import GATE_FILE
from hrpo.models.load import load_tokenizer
from hrpo.models.names import BUILT_IN_MODELS, resolve
from hrpo.models.settings import SETTINGS_FILE, HybridSettings
from hrpo.tasks import TASKS
from hrpo.tasks.base import SYSTEM_PROMPT, make_preamble

# The release's modules, as its modules_to_save names them, and their parameters: what our gate calls them.
GATE_NAMES = {
    "thinking_residual_gate_r.weight": "reset_gate.weight",
    "thinking_residual_gate_r.bias": "reset_gate.bias",
    "thinking_residual_gate_i.weight": "input_gate.weight",
    "thinking_residual_gate_i.bias": "input_gate.bias",
    "thinking_residual_Lambda.Lambda": "Lambda",
}
GATE_MODULES = {name.split(".")[0] for name in GATE_NAMES}
_MODULES_TO_SAVE = re.compile(r"\.modules_to_save(\.default)?(?=\.)")
R_MAX = 0.999  # in all of the paper's runs


def import_release(
    folder: str | Path,
    out: str | Path,
    *,
    base: str = "",
    task: str = "",
    temperature: float = 0.5,
    max_new_tokens: int = 512,
    r_min: float = 0.99,
    trust_remote_code: bool = False,
) -> Path:
    """Write the adapter and the gate of the release as a checkpoint, with the decoding settings of the paper.

    The release mixes as we do, `softplus(-Lambda)` included, so that the tensors are taken as they are. Its folder
    holds no settings: those that its training was started with have to be given.

    Args:
        folder: adapter_config.json and adapter_model.safetensors, the gate among the latter.
        out: a folder that is not there yet, or empty.
        base: the model that was trained; default the one that the adapter names.
        task: the name of its task, for evaluations.
        temperature: that was sampled at.
        max_new_tokens: length limit of a completion.
        r_min: of the gate at the start; only remembered.
        trust_remote_code: run code that comes with the base model.

    Returns:
        The checkpoint's folder.

    Raises:
        InputError: not such a folder, it does not fit the base model, or `out` holds something.

    """
    folder, out = Path(folder), Path(out)
    _check_options(task, temperature, max_new_tokens, r_min)
    check_vacant(out)
    config, tensors = _read(folder)
    gate, adapter = _split(config, tensors, folder)
    base = base or config.get("base_model_name_or_path") or ""
    with model_named_by("--base"):
        where = resolve(base)
    base_model = base if base in BUILT_IN_MODELS or not Path(where).is_dir() else str(Path(where).resolve())
    settings = _settings(base_model, task, temperature, max_new_tokens)
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch)
        _write(draft, config | {"modules_to_save": None, "base_model_name_or_path": where}, adapter)
        save_file(gate, draft / GATE_FILE, {"r_min": str(r_min), "r_max": str(R_MAX)})
        (draft / SETTINGS_FILE).write_text(json.dumps(dataclasses.asdict(settings)))
        model = _load(draft, folder, trust_remote_code)
    if get_peft_model_state_dict(model.lm, save_embedding_layers=False).keys() != adapter.keys():
        raise InputError("--base", f"the adapter in {folder} is of another model than {base}: their layers differ")
    model.settings = dataclasses.replace(model.settings, base_files=base_digests(where))
    model.tokenizer = load_tokenizer(folder, trust_remote_code) or load_tokenizer(where, trust_remote_code)
    with new_folder(out) as draft:
        check_vacant(out)  # another import may have ended just now
        model.write_files(draft)
    return out


def _check_options(task: str, temperature: float, max_new_tokens: int, r_min: float) -> None:
    """Refuse a task that there is none of, and numbers that cannot be."""
    if task and task not in TASKS:
        raise InputError("--task", f"{task!r} is none of {', '.join(TASKS)}")
    if not MIN_TEMPERATURE <= temperature < math.inf:
        raise InputError("--temperature", f"must be above 0 and finite, got {temperature:g}")
    if not 1 <= max_new_tokens <= TOKENS:
        raise InputError("--max_new_tokens", f"must be at least 1 and at most {TOKENS:,}, got {max_new_tokens}")
    if not 0 < r_min <= R_MAX:
        raise InputError("--r_min", f"must be above 0 and at most {R_MAX}, got {r_min:g}")


def _settings(base_model: str, task: str, temperature: float, max_new_tokens: int) -> HybridSettings:
    """Return what the checkpoint remembers; what is not asked for is as in the paper."""
    return HybridSettings(
        base_model=base_model,
        dtype="bfloat16",
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        preamble=make_preamble(SYSTEM_PROMPT, ()),
        task=dataclasses.asdict(TaskConfig(name=task)) if task else {},
    )


def _write(folder: Path, config: dict[str, Any], adapter: dict[str, Tensor]) -> None:
    """Write an adapter as PEFT does."""
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config))
    save_file(adapter, folder / ADAPTER_WEIGHTS)


def _load(draft: Path, folder: Path, trust_remote_code: bool) -> HybridCausalLM:
    """Load the draft of a checkpoint; errors name the folder that it was made from."""
    try:
        with model_named_by("--base"):
            return HybridCausalLM.from_pretrained(draft, trust_remote_code=trust_remote_code)
    except InputError as error:
        problem = error.problem.replace(str(draft), str(folder))  # a path, which the user has never seen
        raise InputError(error.field, problem, error.fix) from error


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read both files of the adapter."""
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(str(folder / name), "missing", "give the folder that the release saved its adapter in")
    check_links(folder, "DIR")
    try:
        config = read_json(folder / ADAPTER_CONFIG, str(folder), "copy the folder again")
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise InputError(str(folder), f"cannot read its adapter: {error}", "copy the folder again") from error
    if not isinstance(config, dict):
        raise InputError(str(folder / ADAPTER_CONFIG), "it holds no settings of an adapter", "copy the folder again")
    base, saved = config.get("base_model_name_or_path") or "", config.get("modules_to_save") or []
    if not (isinstance(base, str) and isinstance(saved, list) and all(isinstance(name, str) for name in saved)):
        raise InputError(str(folder / ADAPTER_CONFIG), "its names of modules are none", "copy the folder again")
    return config, tensors


def _split(
    config: dict[str, Any], tensors: dict[str, Tensor], folder: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the gate, in our names and float32, and the adapter."""
    gate, adapter, unknown = {}, {}, set(config.get("modules_to_save") or []) - GATE_MODULES
    for name, tensor in tensors.items():
        ours = GATE_NAMES.get(".".join(_MODULES_TO_SAVE.sub("", name).split(".")[-2:]))
        if ours is not None:
            gate[ours] = tensor.float()
        elif "lora_" in name:
            adapter[name] = tensor
        else:
            unknown.add(name)
    if missing := GATE_NAMES.keys() - {theirs for theirs, ours in GATE_NAMES.items() if ours in gate}:
        raise InputError(
            str(folder), f"its adapter has no {', '.join(sorted(missing))}", "was it trained by the release?"
        )
    if unknown:
        raise InputError(str(folder), f"it holds more than an adapter and a gate: {', '.join(sorted(unknown))}")
    widths = {name: tuple(tensor.shape) for name, tensor in gate.items()}
    D = gate["Lambda"].numel()
    if any(shape != (D, D) if "weight" in name else shape != (D,) for name, shape in widths.items()):
        raise InputError(str(folder), f"the widths of its gate disagree: {widths}")
    return gate, adapter
