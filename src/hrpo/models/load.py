"""Load a hybrid model: from a plain model's folder, which has no gate yet, or from a saved hybrid one."""

import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from hrpo.common.errors import InputError, model_named_by
from hrpo.config.schema import Dtype, MixedIn, Quantization
from hrpo.gate import HybridGate
from hrpo.latent import mode_of
from hrpo.models.adapter import ADAPTER_CONFIG, add_adapter, load_adapter, require_full_weights
from hrpo.models.base import HybridModel
from hrpo.models.compat import check_supported
from hrpo.models.digests import base_digests, check_base
from hrpo.models.float64 import stay_in_float64
from hrpo.models.gate_file import GATE_FILE, read_gate
from hrpo.models.loading_errors import AGAIN, first_line, loading
from hrpo.models.names import BUILT_IN_MODELS, fetch_hybrid, resolve
from hrpo.models.quantization import check_quantization, keep_differentiable, quantization_options
from hrpo.models.settings import SETTINGS_FILE, HybridSettings, Lora, read_settings
from hrpo.models.sizes import check_sizes
from hrpo.models.turns import NO_END

MOST_TOKENS = 10**6  # of a vocabulary
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
log = logging.getLogger("hrpo")
M = TypeVar("M", bound=HybridModel)
# What makes a model of its parts: its class.
Assemble = Callable[[Any, HybridGate, HybridSettings, PreTrainedTokenizerBase | None, torch.dtype | None], M]


@dataclass(frozen=True)
class Source:
    """A folder that a model is loaded from, or a name on the Hub, and what the model takes over from there."""

    folder: Path
    settings: HybridSettings
    has_adapter: bool = False
    has_gate: bool = False

    @property
    def base(self) -> str:
        """What the language model's own weights are loaded from.

        Raises:
            InputError: the adapter's base model is not there.

        """
        if not self.has_adapter:
            return str(self.folder)
        with model_named_by("model.name", f"base_model in {self.folder / SETTINGS_FILE}"):
            return resolve(self.settings.base_model)


def load_model(
    assemble: Assemble[M],
    name: str,
    *,
    lora: Lora | None,
    dtype: Dtype | torch.dtype | None,
    quantization: Quantization | None,
    device: str | torch.device,
    r_min: float,
    r_max: float,
    latent_mode: str,
    mixed_in: MixedIn,
    new_run: bool,
    trust_remote_code: bool,
) -> M:
    """Do what `HybridCausalLM.from_pretrained` says; `assemble` is that class."""
    new_run = new_run or lora is not None
    source = _find(name, latent_mode, mixed_in, new_run=new_run)
    has_adapter = source.has_adapter or lora is not None
    settings = _with_precision(source.settings, dtype, quantization, has_adapter=has_adapter)
    # Without an adapter the weights are trained, and an update of them is lost in bfloat16's rounding.
    autocast = torch.bfloat16 if settings.dtype == "bfloat16" and not has_adapter else None
    weights: torch.dtype = torch.float32 if autocast else getattr(torch, settings.dtype)
    base = source.base
    lm = load_lm(base, weights, trust_remote_code, **quantization_options(settings.quantization, weights, device))
    keep_differentiable(lm)
    if new_run:
        settings = dataclasses.replace(settings, base_files=base_digests(settings.base_model))
    width = lm.get_input_embeddings().weight.shape[1]
    if source.has_adapter:
        check_base(settings.base_model, settings.base_files)
        lm = load_adapter(lm, source.folder)
    elif lora is not None:
        lm = _with_new_adapter(assemble, lm, lora, settings)
    gate = HybridGate(width, r_min, r_max)
    if source.has_gate:
        gate = read_gate(source.folder / GATE_FILE, width)
    tokenizer = load_tokenizer(source.folder, trust_remote_code)
    model = assemble(lm, gate, settings, tokenizer, autocast).to(torch.device(device))
    check_supported(model)
    if not model.eos_token_ids:
        log.warning("model.name: %s: %s", base, NO_END)
    return model


def _find(name: str, latent_mode: str, mixed_in: MixedIn, *, new_run: bool) -> Source:
    """Find a model, and settle what it remembers: a saved one its own settings, of which a new run keeps some."""
    folder = Path(fetch_hybrid(resolve(name)))
    if not (folder / SETTINGS_FILE).is_file():
        base_model = name if name in BUILT_IN_MODELS or not folder.is_dir() else str(folder.resolve())
        return Source(folder, HybridSettings(base_model, latent_mode, mixed_in=mixed_in))
    settings = read_settings(folder / SETTINGS_FILE)
    if not new_run:
        return Source(folder, settings, has_adapter=(folder / ADAPTER_CONFIG).is_file(), has_gate=True)
    require_full_weights(folder)
    trained_gate = mode_of(settings.latent_mode).gated
    changes: dict[str, Any] = {
        "base_model": str(folder.resolve()),
        "latent_mode": latent_mode,
        "mixed_in": mixed_in,
        "step": 0,
    }
    return Source(folder, dataclasses.replace(settings, **changes), has_gate=trained_gate)


def _with_precision(
    settings: HybridSettings,
    dtype: Dtype | torch.dtype | None,
    quantization: Quantization | None,
    *,
    has_adapter: bool,
) -> HybridSettings:
    """Return the settings with the number formats that were asked for, where they were.

    Raises:
        InputError: there is no such format, or it needs what is not there.

    """
    name = cast(Dtype, str(dtype or settings.dtype).removeprefix("torch."))
    if name not in get_args(Dtype):
        raise InputError("model.dtype", f"must be one of {', '.join(get_args(Dtype))}, got {name}")
    bits = quantization or settings.quantization
    check_quantization(bits, name, adapters=has_adapter)
    return dataclasses.replace(settings, dtype=name, quantization=bits)


def _with_new_adapter(assemble: Assemble[M], lm: Any, lora: Lora, settings: HybridSettings) -> Any:
    """Return the model with fresh adapters.

    Raises:
        InputError: they fit no layer, or the model cannot be used at all.

    """
    try:
        return add_adapter(lm, lora)
    except ValueError as error:
        # PEFT refuses some architectures too; that no targets would help then is the better answer.
        check_supported(assemble(lm, HybridGate(lm.get_input_embeddings().weight.shape[1]), settings, None, None))
        raise InputError("model.lora_targets", first_line(error)) from error


def load_reference(
    settings: HybridSettings, dtype: torch.dtype, device: torch.device, *, trust_remote_code: bool
) -> Any:
    """Load, frozen, the base model that a model's full weights were trained from.

    Raises:
        InputError: it is not there, or not as it was.

    """
    check_base(settings.base_model, settings.base_files)
    with model_named_by("model.name", "the base model"):
        base = load_lm(resolve(settings.base_model), dtype, trust_remote_code)
    base.to(device).requires_grad_(False)
    if dtype == torch.float64:
        stay_in_float64(base)
    return base


def load_config(path: str, trust_remote_code: bool) -> Any:
    """Return transformers' config of a model.

    Raises:
        InputError: there is none that it can read.

    """
    with loading(path):
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)


def load_lm(path: str, dtype: torch.dtype, trust_remote_code: bool, **options: Any) -> Any:
    """Load a transformers language model with all its weights.

    Args:
        path: a folder, or a name on the Hub.
        dtype: of its weights.
        trust_remote_code: run code that comes with it.
        options: of transformers' `from_pretrained`.

    Raises:
        InputError: it is no decoder-only language model, or its files are damaged.

    """
    require_full_weights(Path(path))
    config = load_config(path, trust_remote_code)
    if config.is_encoder_decoder:
        raise InputError(
            "model.name", f"{path} has an encoder ({config.model_type})", "use a decoder-only language model"
        )
    with loading(path):
        _check_padding(config)
        check_sizes(Path(path), config, trust_remote_code)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # _check_complete tells of them, in a line
            output_loading_info=True,
            **options,
        )
    lm, found = loaded
    _check_complete(path, found)
    _check_eos(path, lm)
    return lm


def _check_padding(config: Any) -> None:
    """Refuse a padding token that is none of the vocabulary's.

    Raises:
        ValueError: names it.

    """
    pad, vocab = (getattr(config.get_text_config(), name, None) for name in ("pad_token_id", "vocab_size"))
    if pad is not None and vocab is not None and not (type(pad) is int and -vocab <= pad < vocab):
        raise ValueError(f"pad_token_id is {pad!r:.60} in config.json, and the vocabulary has {vocab} tokens")


def _check_complete(path: str, found: dict[str, Any]) -> None:
    """Refuse a model that lacks weights, which transformers would make up at random."""
    if absent := sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}):
        raise InputError(
            "model.name",
            f"{path} lacks {len(absent)} of the tensors that its config.json names, or has "
            f"them in other shapes, such as {absent[0]}",
            AGAIN,
        )


def _check_eos(path: str, lm: Any) -> None:
    """Refuse an end of completions that is no token of the vocabulary."""
    eos, V = lm.generation_config.eos_token_id, len(lm.get_input_embeddings().weight)
    for token in [] if eos is None else eos if isinstance(eos, list | tuple) else [eos]:
        if type(token) is not int or not 0 <= token < V:
            raise InputError(
                "model.name",
                f"{path}: eos_token_id is {eos!r:.60} in its generation_config.json or config.json",
                f"give a token id from 0 to {V - 1}, or a list of them",
            )


def load_tokenizer(path: Path | str, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer; None for a folder that has none."""
    if Path(path).is_dir() and not any((Path(path) / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        _check_numbers(Path(path) / "tokenizer_config.json")
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)
        tokenizer.encode("0")  # some settings are looked at only now
    except Exception as error:  # the tokenizers library raises no other
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError("model.name", f"cannot load the tokenizer of {path}: {reason}", AGAIN) from error
    return cast(PreTrainedTokenizerBase, tokenizer)


def _check_numbers(path: Path) -> None:
    """Refuse counts of tokens, such as `extra_ids`, that a tokenizer would make one by one.

    Raises:
        ValueError: names the first.

    """
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name, value in settings.items():
        if isinstance(value, int) and value > MOST_TOKENS and name != "model_max_length":
            raise ValueError(f"{name} is {value} in tokenizer_config.json, and at most {MOST_TOKENS} here")
