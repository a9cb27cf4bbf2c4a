"""A model as EleutherAI's lm-evaluation-harness drives it, thinking in its latent mode; needs hrpo's extra lm-eval.

`python -m hrpo.evaluation.lm_eval` is its command line that knows `--model hrpo --model_args
checkpoint=DIR,latent_mode=MODE`.
"""

import dataclasses
import sys
from collections import Counter
from typing import Any

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm

from hrpo.chat import CUT, continued, control_names, cut_in, cut_names
from hrpo.common.errors import InputError
from hrpo.common.output import warn
from hrpo.data import left_pad, sample_key
from hrpo.evaluation.inference import load_for_inference
from hrpo.latent import mode_of
from hrpo.model import HybridCausalLM
from hrpo.models.context import context_of
from hrpo.rollout import generate
from hrpo.tasks.base import Message


@register_model("hrpo")
class HybridLM(HFLM):  # type: ignore[misc]  # the harness has no types
    """The harness's model of transformers, decoding through `generate`.

    generate_until: completions as in evaluation; greedy decoding makes its latents at the temperature that the model
    remembers. loglikelihood: the continuation is forced, and fed as in a completion, until the delimiter appears in it.
    In the mode "discrete" that is what the harness computes for the bare model, and is left to it.

    Args:
        checkpoint: a model; or a checkpoint, a run folder, or a plain model to load.
        latent_mode: default the model's own.
        seed: of samples; a prompt asked several times gets different ones.
        batch_size: requests at a time.
        options: the harness's own: max_length, add_bos_token and so on.

    Raises:
        InputError: no such model or mode, or no trained gate where one is needed.

    """

    def __init__(
        self,
        checkpoint: str | HybridCausalLM,
        latent_mode: str | None = None,
        seed: int = 0,
        batch_size: int = 1,
        **options: Any,
    ) -> None:
        if latent_mode is not None:
            mode_of(latent_mode)
        model = load_for_inference(checkpoint) if isinstance(checkpoint, str) else checkpoint
        if context := context_of(model.bare_lm.config):
            longest = context - 1  # one more is read where the last token is not fed
            options["max_length"] = min(int(options.get("max_length") or longest), longest)
        super().__init__(
            pretrained=model.bare_lm,
            tokenizer=model.tokenizer,
            mixed_precision_dtype=model.autocast,
            batch_size=int(batch_size),
            **options,
        )
        self.hybrid, self.seed = model, seed
        own = model.settings.latent_mode
        self.mode = mode_of(latent_mode or own, model.settings.mixed_in)
        if self.mode.gated and not mode_of(own).gated:
            raise InputError(
                "latent_mode", f"the model decodes in mode {own}", f"it has no trained gate for {latent_mode}"
            )
        self.asked: Counter[tuple[int, ...]] = Counter()
        self.templated = False  # whether the harness's requests come from the chat template

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        """Return a conversation as the harness renders it, with `CUT` in the names of control tokens in messages."""
        self.templated = True
        render = super().apply_chat_template
        roles = tuple(message["role"] for message in chat_history)
        names = control_names(self.tokenizer, roles)
        return cut_names(lambda messages: render(list(messages), add_generation_prompt), chat_history, names)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return log p(continuation | context), and whether it is the greedy one; a continuation is text."""
        names, asked = control_names(self.tokenizer), list[Instance]()
        for request in requests:
            context, continuation = request.args
            asked.append(dataclasses.replace(request, arguments=(context, cut_in(continuation, names))))
        answers: list[tuple[float, bool]] = super().loglikelihood(asked, disable_tqdm)
        return answers

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **kwargs: Any
    ) -> list[int]:
        """Return the token ids of a request as the harness has them; the names of control tokens in data are text."""
        first, *others = self._cut_in(string).split(CUT)
        ids: list[int] = super().tok_encode(first, add_special_tokens, **kwargs)
        for part in others:
            ids = ids + continued(self.tokenizer, part)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return token ids, padded on the left, and their mask, (n, P) each; see `tok_encode`."""
        if not any(CUT in self._cut_in(string) for string in strings):
            padded: tuple[Tensor, Tensor] = super().tok_batch_encode(strings, padding_side, left_truncate_len, **kwargs)
            return padded
        rows = [self.tok_encode(string, left_truncate_len=left_truncate_len) for string in strings]
        return left_pad(rows, self.tokenizer.pad_token_id, torch.device("cpu"))

    def _cut_in(self, string: str) -> str:
        """Return a request with `CUT` in the names of control tokens, unless the template wrote it."""
        return string if self.templated else cut_in(string, control_names(self.tokenizer))

    def _model_generate(
        self,
        context: Tensor,
        max_length: int,
        stop: list[str],
        *,
        attention_mask: Tensor,
        do_sample: bool = False,
        temperature: float = 0.0,
        top_k: int | None = None,
        **others: Any,
    ) -> Tensor:
        """(n, P) left-padded prompts -> (n, P + T); the harness cuts completions at `stop` itself.

        Raises:
            ValueError: options of generation that this decoder does not have.

        """
        if others:
            raise ValueError(f"generation_kwargs: {', '.join(others)} cannot be used with --model hrpo")
        settings = self.hybrid.settings
        rows = zip(context, attention_mask.bool(), strict=True)
        prompts = [row[real].tolist() for row, real in rows]
        rollout = generate(
            self.hybrid,
            prompts,
            max_new_tokens=max_length - context.shape[1],
            temperature=temperature if do_sample else settings.temperature,
            top_k=settings.top_k if top_k is None else top_k,
            greedy=not do_sample,
            sample_keys=[self._key(prompt) for prompt in prompts],
            latent_mode=self.mode,
        )
        return torch.cat([context, rollout.completion_ids], dim=1)

    def _key(self, prompt: list[int]) -> int:
        """Return the key of the next sample of a prompt, whatever else is asked."""
        self.asked[tuple(prompt)] += 1
        return sample_key("lm-eval", self.seed, self.asked[tuple(prompt)], *prompt)

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Return log p(continuation | context), and whether it is the greedy one, for (key, context, continuation)."""
        if not self.mode.thinks:
            answers: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            return answers
        # The longest first: rows of a batch are about as long, and memory that does not suffice shows at once.
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1] + requests[i][2]))
        size, found = override_bs or self.batch_size, dict[int, tuple[float, bool]]()
        for first in tqdm(range(0, len(order), size), disable=disable_tqdm, desc="loglikelihood, forced"):
            part = order[first : first + size]
            pairs = [self._cut(*requests[i][1:]) for i in part]
            for i, answer in zip(part, self._forced(pairs), strict=True):
                found[i] = answer
                if requests[i][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], answer)
        return [found[i] for i in range(len(requests))]

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Drop what the model has no room for, from the left; the last token is not fed."""
        tokens = (context + continuation)[-(self.max_length + 1) :]
        split = max(len(tokens) - len(continuation), 1)
        return tokens[:split], tokens[split:]

    def _forced(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        longest = max(len(continuation) for _, continuation in pairs)
        # What stands behind a row's continuation is fed too, and changes nothing before it.
        forced = torch.tensor([tokens + tokens[-1:] * (longest - len(tokens)) for _, tokens in pairs])
        settings = self.hybrid.settings
        rollout = generate(
            self.hybrid,
            [context for context, _ in pairs],
            temperature=settings.temperature,
            top_k=settings.top_k,
            eos_token_id=[],
            latent_mode=self.mode,
            forced_ids=forced,
        )
        likeliest = rollout.support_ids[..., 0] == rollout.completion_ids  # (n, T)
        return [
            (float(rollout.sample_logprobs[n, : len(tokens)].sum()), bool(likeliest[n, : len(tokens)].all()))
            for n, (_, tokens) in enumerate(pairs)
        ]


if __name__ == "__main__":
    try:
        cli_evaluate()
    except InputError as error:
        warn(f"hrpo: error: {error}")
        sys.exit(2)
