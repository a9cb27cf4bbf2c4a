"""A causal language model beside its gate: what the rest of the method asks of a model.

`embed` turns tokens into inputs, `forward` inputs into logits, and both do so for the reference, too. How a model is
loaded and saved is in `hrpo.models`.
"""

import contextlib
import copy
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hrpo.common.errors import InputError
from hrpo.common.files import new_folder
from hrpo.config.schema import Dtype, MixedIn, Quantization
from hrpo.gate import HybridGate, mix_candidates
from hrpo.models.adapter import without_adapters
from hrpo.models.float64 import stay_in_float64
from hrpo.models.load import load_model, load_reference
from hrpo.models.save import WEIGHT_FILES, write_model
from hrpo.models.settings import HybridSettings as HybridSettings
from hrpo.models.settings import Lora as Lora
from hrpo.models.turns import end_tokens


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
            raise InputError(
                "",
                f"the gate is {gate.hidden_size} wide, but the model's input embedding is {width} wide",
            )
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

        A new run may start from a saved model that holds full weights: it becomes the base model, and so the
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
        return load_model(
            cls,
            str(path_or_name),
            lora=lora,
            dtype=dtype,
            quantization=quantization,
            device=device,
            r_min=r_min,
            r_max=r_max,
            latent_mode=latent_mode,
            mixed_in=mixed_in,
            new_run=new_run,
            trust_remote_code=trust_remote_code,
        )

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
            with without_adapters(self.lm):
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
            self._reference[:] = [
                load_reference(self.settings, self.lm_dtype, self.device, trust_remote_code=trust_remote_code)
            ]

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
        write_model(folder, self.lm, self.gate, self.settings, self.tokenizer)
