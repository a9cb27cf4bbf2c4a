"""A causal language model and its gate: load, run, save."""

import contextlib
import copy
import dataclasses
import inspect
import json
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from hrpo.common.errors import InputError, model_named_by
from hrpo.common.files import new_folder, read_json
from hrpo.config.bounds import COUNT, MIN_TEMPERATURE, SEED, TOKENS, outside
from hrpo.config.schema import LONGEST, Dtype, MixedIn, Quantization, TaskConfig
from hrpo.gate import HybridGate, mix_candidates
from hrpo.latent import mode_names, mode_of
from hrpo.models.compat import check_usable
from hrpo.models.digests import base_digests, check_base
from hrpo.models.float64 import stay_in_float64
from hrpo.models.names import KNOWN, fetch_hybrid, resolve
from hrpo.models.quantization import check_quantization, keep_differentiable, quantization_options
from hrpo.models.rope import rope_limit
from hrpo.models.sizes import check_sizes
from hrpo.models.turns import NO_END, end_tokens

SETTINGS_FILE, GATE_FILE = "hybrid.json", "gate.safetensors"
WEIGHT_FILES = ("adapter_*", "model*.safetensors", "model*.json")  # none may outlive a save of other weights
AGAIN = "copy the folder again, or take another"
LOADING_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
_LAYER = re.compile(r"[\w.]+")
# Of an adapter's settings, those that may be other than PEFT's default: of the rest some import a module, match
# patterns, or change the weights that it is laid over.
ADAPTER_SETTINGS = {
    *(
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    ),
    *("r", "target_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "use_dora"),
    *("modules_to_save", "layers_to_transform"),
}
log = logging.getLogger("hrpo")
BOUNDS = {"max_new_tokens": (1, TOKENS), "top_k": (0, COUNT), "seed": (0, SEED), "step": (0, COUNT)}
MOST_TOKENS = 10**6  # of a vocabulary
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters on the linear layers of the blocks.

    Args:
        r: rank.
        alpha: the adapter's output is scaled by alpha / r.
        targets: names of the layers; "all-linear" takes every linear layer but the head, as the release does.

    """

    r: int = 32
    alpha: int = 64
    targets: str | list[str] = "all-linear"


@dataclass(frozen=True)
class HybridSettings:
    """What a checkpoint remembers, `hybrid.json`: how its model was made and how it decodes.

    Args:
        base_model: what the language model was trained from.
        base_files: digests of its files, see `hrpo.training.provenance`; empty where they are not known.
        latent_mode: what is fed while thinking, see `hrpo.latent`.
        mixed_in: which latent "hybrid" mixes in.
        dtype: of the computation, as in `from_pretrained`.
        quantization: of the base model's weights.
        temperature: of the sampler, tau.
        top_k: candidates kept, 0 for all.
        max_new_tokens: length limit of a completion.
        preamble: the messages that every conversation begins with: system prompt and worked examples.
        task: the settings of the task it was trained on.
        seed: of the run, and of the task's generated problems.
        step: updates done.

    """

    base_model: str
    latent_mode: str = "hybrid"
    dtype: Dtype = "float32"
    quantization: Quantization = "none"
    temperature: float = 0.5
    top_k: int = 50
    max_new_tokens: int = LONGEST
    preamble: list[dict[str, str]] = field(default_factory=list)
    task: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    step: int = 0
    mixed_in: MixedIn = "interpolation"
    base_files: dict[str, str] = field(default_factory=dict)


class HybridCausalLM(nn.Module):
    """An unmodified causal language model `lm` (bare or PEFT-wrapped) beside a `gate`.

    It stays in evaluation mode: dropout would make the replay differ from the rollout.

    Args:
        lm: the language model.
        gate: of the width of the model's input embedding.
        settings: what `save_pretrained` remembers.
        tokenizer: None for models driven with token ids alone.
        autocast: run the language model under autocast to this dtype; its weights stay as they are.

    """

    def __init__(
        self,
        lm: nn.Module,
        gate: HybridGate,
        settings: HybridSettings,
        tokenizer: PreTrainedTokenizerBase | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.lm, self.gate = lm, gate
        self.settings, self.tokenizer, self.autocast = settings, tokenizer, autocast
        self._reference: list[nn.Module] = []  # in a list: no part of parameters() and state_dict()
        self._accepts = set(inspect.signature(type(self.bare_lm).forward).parameters)
        width = self.embedding.weight.shape[1]
        if gate.hidden_size != width:
            raise InputError(f"the gate is {gate.hidden_size} wide, but the model's input embedding is {width} wide")
        gate.to(torch.float64 if self.lm_dtype == torch.float64 else torch.float32)
        if self.lm_dtype == torch.float64:
            stay_in_float64(self.bare_lm)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path,
        *,
        lora: Lora | None = None,
        dtype: Dtype | torch.dtype | None = None,
        quantization: Quantization | None = None,
        device: str | torch.device = "cpu",
        r_min: float = 0.99,
        r_max: float = 0.999,
        latent_mode: str = "hybrid",
        mixed_in: MixedIn = "interpolation",
        new_run: bool = False,
        trust_remote_code: bool = False,
    ) -> "HybridCausalLM":
        """Load a plain model, which gets a fresh gate, or a saved hybrid one, which gets its own back.

        A new run may start from a saved model that holds whole weights: it becomes the base model, and so the
        reference. Its gate goes on where it was trained; after training in a mode without one it is a fresh one.

        Args:
            path_or_name: a folder, a name from `hrpo model`, or a name on the Hub.
            lora: add adapters, which on a saved model starts a new run; None trains the model's own weights.
            dtype: "bfloat16" holds frozen weights in bfloat16 when there are adapters, and otherwise runs float32
                weights under autocast. What is trained, and the gate, stays float32. Default: what a saved model
                remembers, and float32 for a plain one.
            quantization: of frozen weights under adapters: "4bit" or "8bit"; needs bitsandbytes. Default: what a saved
                model remembers, and none for a plain one.
            device: where to put it.
            r_min: of a fresh gate.
            r_max: of a fresh gate.
            latent_mode: of a plain model and of a new run; else a saved model keeps its own.
            mixed_in: alike.
            new_run: start a new run from a saved model; a plain one has no other.
            trust_remote_code: run code that comes with the model.

        Raises:
            InputError: nothing usable is there.

        """
        folder = Path(fetch_hybrid(resolve(str(path_or_name))))
        saved = (folder / SETTINGS_FILE).is_file()
        own_adapter = own_gate = False
        if saved:
            settings = read_settings(folder / SETTINGS_FILE)
            own_adapter, own_gate = (folder / "adapter_config.json").is_file(), True
            if new_run or lora is not None:
                check_whole(folder)
                own_gate = mode_of(settings.latent_mode).gated  # else it was never trained
                base_model = str(folder.resolve())
                settings = dataclasses.replace(
                    settings, base_model=base_model, latent_mode=latent_mode, mixed_in=mixed_in, step=0
                )
        else:
            named = str(path_or_name) in KNOWN or not folder.is_dir()
            base_model = str(path_or_name) if named else str(folder.resolve())
            settings = HybridSettings(base_model, latent_mode, mixed_in=mixed_in)
        has_adapter = own_adapter or lora is not None
        dtype_name = cast(Dtype, str(dtype or settings.dtype).removeprefix("torch."))
        if dtype_name not in get_args(Dtype):
            raise InputError(f"model.dtype: must be one of {', '.join(get_args(Dtype))}, got {dtype_name}")
        bits = quantization or settings.quantization
        check_quantization(bits, dtype_name, adapters=has_adapter)
        settings = dataclasses.replace(settings, dtype=dtype_name, quantization=bits)
        half = dtype_name == "bfloat16"
        weights_dtype: torch.dtype = getattr(torch, "float32" if half and not has_adapter else dtype_name)
        with model_named_by(f"model.name: base_model in {folder / SETTINGS_FILE}"):
            base = resolve(settings.base_model) if own_adapter else str(folder)
        lm: Any = _load_lm(base, weights_dtype, trust_remote_code, **quantization_options(bits, weights_dtype, device))
        keep_differentiable(lm)
        if new_run or lora is not None:
            settings = dataclasses.replace(settings, base_files=base_digests(settings.base_model))
        if own_adapter:
            check_base(settings.base_model, settings.base_files)
            lm = _load_adapter(lm, folder)
        elif lora is not None:
            targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
            config = LoraConfig(task_type="CAUSAL_LM", r=lora.r, lora_alpha=lora.alpha, target_modules=targets)
            try:
                lm = get_peft_model(lm, config)
            except ValueError as error:
                # PEFT refuses some architectures too; that no targets would help then is the better answer.
                check_usable(cls(lm, HybridGate(lm.get_input_embeddings().weight.shape[1]), settings))
                raise InputError(f"model.lora_targets: {_first_line(error)}") from error
        bare: Any = lm.get_base_model() if isinstance(lm, PeftModel) else lm
        gate = HybridGate(bare.get_input_embeddings().weight.shape[1], r_min, r_max)
        if own_gate:
            gate = _read_gate(folder / GATE_FILE, gate.hidden_size)
        tokenizer = load_tokenizer(folder if saved else Path(base), trust_remote_code)
        autocast = torch.bfloat16 if half and not has_adapter else None
        model = cls(lm, gate, settings, tokenizer, autocast).to(device)
        check_usable(model)
        if not model.eos_token_ids:
            log.warning("model.name: %s: %s", base, NO_END)
        return model

    @property
    def bare_lm(self) -> Any:
        """The transformers model itself, without PEFT's wrapper (its layers still hold the adapters)."""
        return self.lm.get_base_model() if isinstance(self.lm, PeftModel) else self.lm

    @property
    def embedding(self) -> Any:
        """The module that embeds tokens, scale included."""
        return self.bare_lm.get_input_embeddings()

    @property
    def device(self) -> torch.device:
        """Where the embedding lies."""
        return cast(torch.device, self.embedding.weight.device)

    @property
    def lm_dtype(self) -> torch.dtype:
        """Of the language model's weights."""
        return cast(torch.dtype, self.embedding.weight.dtype)

    @property
    def rounding(self) -> torch.dtype:
        """The dtype whose rounding shows in the logits: how alike those of two ways to compute them can be."""
        return torch.bfloat16 if self.settings.quantization == "8bit" else self.autocast or self.lm_dtype

    @property
    def vocab_size(self) -> int:
        """V, the width of the head."""
        return cast(int, self.bare_lm.get_output_embeddings().weight.shape[0])

    @property
    def eos_token_ids(self) -> list[int]:
        """Token ids that end a completion, see `end_tokens`; empty where nothing names one."""
        return end_tokens(self.bare_lm, self.tokenizer)

    @property
    def end_texts(self) -> list[str]:
        """The same as text; as numbers without a tokenizer."""
        ids = self.eos_token_ids
        return list(map(str, ids)) if self.tokenizer is None else [str(self.tokenizer.decode([token])) for token in ids]

    @contextlib.contextmanager
    def weights(self, *, reference: bool = False) -> Iterator[Any]:
        """Yield the bare language model, or the reference: the kept copy, or the same with its adapters off."""
        if reference and self._reference:
            yield self._reference[0]
        elif reference and isinstance(self.lm, PeftModel):
            with _without_adapters(self.lm):
                yield self.bare_lm
        else:
            yield self.bare_lm

    def precision(self) -> torch.autocast:
        """Return the context in which the language model runs: autocast, or nothing."""
        # Without its cache of cast weights, as PyTorch asks for where a CUDA graph is captured: a cast taken from the
        # cache would be missing in the graph. Nothing is lost: each weight is read once in such a context.
        enabled = self.autocast is not None
        return torch.autocast(self.device.type, self.autocast, enabled=enabled, cache_enabled=False)

    def embed(self, token_ids: Tensor, *, reference: bool = False) -> Tensor:
        """Return the model's own, or the reference's, input embedding e: (...,) -> (..., D)."""
        with self.weights(reference=reference) as lm:
            return cast(Tensor, lm.get_input_embeddings()(token_ids))

    def embedding_table(self) -> Tensor:
        """W_e, the input embedding of every token (V, D), scale included; no gradient."""
        with torch.no_grad():
            if type(self.embedding) is nn.Embedding:
                return self.embedding.weight.detach()
            return self.embed(torch.arange(self.embedding.weight.shape[0], device=self.device))

    def mix(self, ids: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of candidates' embeddings: (n, K), (n, K) -> (n, D)."""
        if type(self.embedding) is nn.Embedding:
            return mix_candidates(ids, weights, self.embedding.weight)
        with torch.no_grad():
            rows = self.embed(ids.long()).to(weights.dtype)  # (n, K, D), scale included
        return torch.bmm(weights.unsqueeze(1), rows).squeeze(1)

    def keep_reference(self) -> None:
        """Keep a frozen copy of the language model as the reference (full fine-tuning with beta above 0).

        With adapters nothing is copied: the reference is the same weights with the adapters off.
        """
        if not isinstance(self.lm, PeftModel):
            self._reference[:] = [copy.deepcopy(self.lm).requires_grad_(False)]

    def load_reference(self, *, trust_remote_code: bool = False) -> None:
        """Load the reference anew from the base model (a fine-tuned checkpoint is no longer its own reference)."""
        if not isinstance(self.lm, PeftModel):
            check_base(self.settings.base_model, self.settings.base_files)
            with model_named_by("model.name: the base model"):
                base = _load_lm(resolve(self.settings.base_model), self.lm_dtype, trust_remote_code)
            self._reference[:] = [base.to(self.device).requires_grad_(False)]
            if self.lm_dtype == torch.float64:
                stay_in_float64(base)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        cache: Any = None,
        *,
        last_only: bool = False,
        reference: bool = False,
    ) -> tuple[Tensor, Any]:
        """Run the language model on embedded inputs.

        Args:
            inputs_embeds: (N, S, D).
            attention_mask: (N, cached + S), 0 on padding; positions are counted over it.
            cache: what an earlier call on the positions before returned; extended in place.
            last_only: logits of the last position only.
            reference: use the reference: the kept copy, or the weights with their adapters off.

        Returns:
            Logits (N, S or 1, V) and the cache.

        """
        length = inputs_embeds.shape[1]
        options: dict[str, Any] = {}
        if "position_ids" in self._accepts:
            options["position_ids"] = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -length:]
        if last_only and "logits_to_keep" in self._accepts:
            options["logits_to_keep"] = 1
        with self.weights(reference=reference) as lm, self.precision():
            out = lm(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                past_key_values=cache,
                use_cache=True,
                **options,
            )
        logits = out.logits[:, -1:] if last_only else out.logits
        return logits, getattr(out, "past_key_values", None)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model or its adapter, gate.safetensors, hybrid.json and the tokenizer; whole or not at all."""
        with new_folder(Path(folder), replaces=WEIGHT_FILES) as draft:
            self.write_files(draft)

    def write_files(self, folder: Path) -> None:
        """Write the same files into a folder that exists."""
        if isinstance(self.lm, PeftModel):
            for config in self.lm.peft_config.values():
                if isinstance(config, LoraConfig) and isinstance(config.target_modules, set):
                    config.target_modules = sorted(config.target_modules)  # a set's order changes with the process
            self.lm.save_pretrained(str(folder), save_embedding_layers=False)
        else:
            self.bare_lm.save_pretrained(str(folder))
        gate = {name: tensor.contiguous() for name, tensor in self.gate.state_dict().items()}
        metadata = {"r_min": str(self.gate.r_min), "r_max": str(self.gate.r_max)}
        (folder / GATE_FILE).write_bytes(_in_order(save(gate, metadata)))
        (folder / SETTINGS_FILE).write_text(json.dumps(dataclasses.asdict(self.settings), indent=2) + "\n")
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(str(folder))


def _in_order(data: bytes) -> bytes:
    """Return a safetensors file with its metadata in order, which the library leaves to chance."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    return data[:8] + json.dumps(header, separators=(",", ":")).encode().ljust(end - 8) + data[end:]


def check_whole(folder: Path) -> None:
    """Refuse a folder of an adapter where a whole model is needed.

    Raises:
        InputError: says how to merge it into its base model.

    """
    if not (folder / "adapter_config.json").is_file():
        return
    if (folder / SETTINGS_FILE).is_file():
        merge = f"run `hrpo export --checkpoint {folder} --out DIR` first, and start from DIR"
    else:
        merge = (
            f"merge it first, in Python: peft.AutoPeftModelForCausalLM.from_pretrained({str(folder)!r})"
            ".merge_and_unload().save_pretrained('DIR'); add the tokenizer's files to DIR, and start from DIR"
        )
    raise InputError(f"model.name: {folder} holds an adapter, not a whole model; {merge}")


@contextlib.contextmanager
def _without_adapters(lm: PeftModel) -> Iterator[None]:
    """Within it, adapters are off. PEFT's own `disable_adapter` goes through their parameters, too: 34 ms, not 4."""
    name = "_disable_adapters"  # looked up so, for `getattr` takes ten times longer for what a module lacks
    modules = (module for module in lm.modules() if name in vars(module) or hasattr(type(module), name))
    on: list[Any] = [module for module in modules if getattr(module, name) is False]
    for module in on:
        module._disable_adapters = True
    try:
        yield
    finally:
        for module in on:
            module._disable_adapters = False


@contextlib.contextmanager
def _loading(path: str) -> Iterator[None]:
    """Turn what transformers raises into one line."""
    try:
        yield
    except LOADING_ERRORS as error:
        if "trust_remote_code=True" in str(error):
            raise InputError(
                f"model.name: {path} comes with code of its own; read it, then set model.trust_remote_code to true "
                "(--trust_remote_code)"
            ) from error
        what = f"cannot load {path}" if Path(path).is_dir() else f"{path} is no folder here, and none on the Hub"
        fix = "it needs config.json and whole *.safetensors" if Path(path).is_dir() else "mend the name"
        raise InputError(f"model.name: {what}: {' '.join(str(error).split()).rstrip('.'):.300}; {fix}") from error


def context_of(config: Any) -> int | None:
    """Return the positions that a model serves; None where transformers' config of it names no limit.

    They are those that it was made for, and none beyond its `rope_limit`.
    """
    positions, limit = getattr(config.get_text_config(), "max_position_embeddings", None), rope_limit(config)
    return min(filter(None, [positions, limit and limit.tokens]), default=None)


def context_text(config: Any) -> str:
    """Return a model's context in words, and why it ends there where that is its position embedding."""
    context, limit = context_of(config), rope_limit(config)
    reason = f", beyond which its {limit.kind} position embedding changes" if limit and limit.tokens == context else ""
    return f"context of {context} tokens{reason}"


def load_config(path: str, trust_remote_code: bool) -> Any:
    """Return transformers' config of a model.

    Raises:
        InputError: there is none that it can read.

    """
    with _loading(path):
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)


def _load_lm(path: str, dtype: torch.dtype, trust_remote_code: bool, **options: Any) -> Any:
    check_whole(Path(path))
    config = load_config(path, trust_remote_code)
    if config.is_encoder_decoder:
        raise InputError(f"model.name: {path} has an encoder ({config.model_type}); use a decoder-only language model")
    with _loading(path):
        pad, vocab = (getattr(config.get_text_config(), name, None) for name in ("pad_token_id", "vocab_size"))
        if pad is not None and vocab is not None and not (type(pad) is int and -vocab <= pad < vocab):
            raise ValueError(f"pad_token_id is {pad!r:.60} in config.json, and the vocabulary has {vocab} tokens")
        check_sizes(Path(path), config, trust_remote_code)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # told below, in a line
            output_loading_info=True,
            **options,
        )
    lm, found = loaded
    if absent := sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}):
        raise InputError(  # transformers would make them up at random
            f"model.name: {path} lacks {len(absent)} of the tensors that its config.json names, "
            f"or has them in other shapes, such as {absent[0]}; {AGAIN}"
        )
    eos, V = lm.generation_config.eos_token_id, len(lm.get_input_embeddings().weight)
    for token in [] if eos is None else eos if isinstance(eos, list | tuple) else [eos]:
        if type(token) is not int or not 0 <= token < V:
            raise InputError(
                f"model.name: {path}: eos_token_id is {eos!r:.60} in its generation_config.json or config.json; "
                f"give a token id from 0 to {V - 1}, or a list of them"
            )
    return lm


def _load_adapter(lm: Any, folder: Path) -> Any:
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise InputError(f"model.name: {folder}: adapter_model.safetensors is missing; {AGAIN}")
    check_adapter(folder)
    try:
        _check_rank(folder, file, lm.get_input_embeddings().weight.shape[1])
        model = PeftModel.from_pretrained(lm, str(folder), is_trainable=True)
        with safe_open(file, "pt") as tensors:
            absent = sorted(get_peft_model_state_dict(model, save_embedding_layers=False).keys() - set(tensors.keys()))
    except LOADING_ERRORS as error:
        reason = " ".join(str(error).split())
        raise InputError(f"model.name: {folder}: cannot load its adapter: {reason:.300}; {AGAIN}") from error
    if absent:
        raise InputError(
            f"model.name: {file} lacks {len(absent)} tensors, such as {absent[0]}: cut, or of another model; {AGAIN}"
        )
    return model


def _check_rank(folder: Path, file: Path, width: int) -> None:
    """Refuse adapters of a rank of which not even one is in the file: all would be made in memory first.

    Raises:
        ValueError: names the rank.

    """
    rank = json.loads((folder / "adapter_config.json").read_text()).get("r")
    with safe_open(file, "pt") as tensors:
        held = sum(torch.Size(tensors.get_slice(name).get_shape()).numel() for name in tensors.keys())  # noqa: SIM118
    if type(rank) is not int or not 1 <= rank <= held // width:
        raise ValueError(f"r is {rank} in adapter_config.json, and {held // width} at most in its tensors")


def check_adapter(folder: Path) -> None:
    """Refuse an adapter other than LoRA: of others some name modules, tokenizers and patterns that loading would run.

    Raises:
        InputError: names what is wrong.

    """
    path = folder / "adapter_config.json"
    config = read_json(path, "model.name", AGAIN)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise InputError(f"model.name: {path}: no settings of a LoRA adapter; {AGAIN}")
    targets = config.get("target_modules")
    named = isinstance(targets, list) and all(isinstance(name, str) and _LAYER.fullmatch(name) for name in targets)
    strange = [] if named or targets == "all-linear" else ["target_modules"]
    defaults = dataclasses.asdict(LoraConfig())
    others = defaults.keys() - ADAPTER_SETTINGS
    strange += sorted(name for name in others if config.get(name) not in (None, defaults[name]))
    if strange:
        raise InputError(f"model.name: {path}: no usable value of {', '.join(strange)}; {AGAIN}")


def load_tokenizer(path: Path | str, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer; None for a folder that has none."""
    if Path(path).is_dir() and not any((Path(path) / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        _check_numbers(Path(path) / "tokenizer_config.json")
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)
        tokenizer.encode("0")  # some settings are looked at only now
    except Exception as error:  # the tokenizers library raises no other
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise InputError(f"model.name: cannot load the tokenizer of {path}: {reason}; {AGAIN}") from error
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


def read_settings(path: Path) -> HybridSettings:
    """Read a hybrid.json; InputError where it is none."""
    try:
        settings = HybridSettings(**json.loads(path.read_text()))
    except (OSError, RecursionError, TypeError, ValueError) as error:
        reason = _first_line(error)
        raise InputError(f"model.name: {path}: not the settings of a hybrid model: {reason}; {AGAIN}") from error
    values = dataclasses.asdict(settings)
    for name, value, allowed in (
        ("latent_mode", settings.latent_mode, mode_names()),
        ("mixed_in", settings.mixed_in, get_args(MixedIn)),
        ("dtype", settings.dtype, get_args(Dtype)),
        ("quantization", settings.quantization, get_args(Quantization)),
    ):
        if value not in allowed:
            raise InputError(f"model.name: {path}: {name} is {value!r}, not one of {', '.join(allowed)}")
    wrong = _misfits(values, dataclasses.asdict(HybridSettings("")))
    if not wrong:
        wrong = [f"task.{name}" for name in _misfits(settings.task, dataclasses.asdict(TaskConfig()))]
        wrong += [] if MIN_TEMPERATURE <= settings.temperature <= sys.float_info.max else ["temperature"]
        wrong += [name for name, bounds in BOUNDS.items() if outside(name, values[name], *bounds)]
        wrong += [] if all(map(_is_message, settings.preamble)) else ["preamble"]
    if wrong:
        raise InputError(f"model.name: {path}: no usable value of {', '.join(wrong)}; {AGAIN}")
    return settings


def _misfits(values: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """Return the names of values that are unknown, or of another type than their defaults."""
    types = {name: (float, int) if isinstance(value, float) else (type(value),) for name, value in defaults.items()}
    return [name for name, value in values.items() if type(value) not in types.get(name, ())]  # True is a number, too


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.keys() == {"role", "content"}
        and message["role"] in ("system", "user", "assistant")
        and isinstance(message["content"], str)
    )


def _read_gate(path: Path, width: int) -> HybridGate:
    if not path.is_file():
        raise InputError(f"model.name: {path}: missing; a folder with {SETTINGS_FILE} needs its gate beside it")
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        bounds = {name: float(metadata[name]) for name in ("r_min", "r_max") if name in metadata}
        own = tensors["Lambda"].numel()
        if own == width:  # the others' sizes grow with its square
            gate = HybridGate(width, **bounds).to(tensors["Lambda"].dtype)
            gate.load_state_dict(tensors)
            return gate
    except (AttributeError, KeyError, RuntimeError, SafetensorError, ValueError) as error:
        raise InputError(f"model.name: {path}: not a gate: {' '.join(str(error).split())}; {AGAIN}") from error
    raise InputError(
        f"model.name: {path}: the gate is {own} wide, the model's input embedding {width}: "
        "it is another model's; put its own beside it"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
