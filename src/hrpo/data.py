"""What travels from sampling to learning: a `Rollout`, completions with all that replay, loss and inspection read."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hrpo.gate import mix_candidates
from hrpo.latent import LATENT_MODES, LatentMode

Metrics = dict[str, float]
SHOWN_CANDIDATES = 20  # kept for display where the latent itself is stored


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are sampled.

    Args:
        temperature: tau, above 0; the latent is made from the tempered distribution when greedy, too.
        top_k: candidates kept, at most V; 0 keeps all.
        max_new_tokens: length limit T of a completion.
        greedy: take the likeliest token instead of sampling.
        seed: with prompt and sample index it gives each completion its key.

    """

    temperature: float = 0.5
    top_k: int = 50
    max_new_tokens: int | None = None
    greedy: bool = False
    seed: int = 0

    def check(self) -> None:
        """Refuse values that cannot be sampled with.

        Raises:
            ValueError: names the field.

        """
        if not self.temperature > 0:
            raise ValueError(
                f"temperature: must be above 0, got {self.temperature}; use greedy=True for the likeliest token"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k: must be at least 0, got {self.top_k}")


@dataclass(frozen=True)
class Rollout:
    """Completions of B prompts, group_size each: N = B * group_size rows, a prompt's side by side.

    prompt_ids, prompt_mask: (B, P), padded on the left.
    completion_ids: (N, T), padded on the right.
    completion_mask: (N, T), 1 up to and including EOS.
    hybrid_mask: (N, T), True where something else than the token was fed; never at EOS and at the last position,
        which are not fed.
    sample_logprobs: (N, T), log-softmax of the unscaled logits at the sampled token.
    support_ids: (N, T, K) int32, the sampler's candidates, the likeliest first.
    support_probs: (N, T, K), their probabilities.
    gate_mean: (N, T), mean over channels of a, the token's weight, where another input was fed; 1 elsewhere.
    temperature, top_k: the sampler's; top_k is 0 where all of V were candidates.
    dense_latents: (N, T, D), stored when all of V is mixed, for hidden states, and where other latents are fed in place
        of a completion's own; of the candidates only the likeliest 20 are kept then.
    mode: how latents were made and fed.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    hybrid_mask: Tensor
    sample_logprobs: Tensor
    support_ids: Tensor
    support_probs: Tensor
    gate_mean: Tensor
    group_size: int
    temperature: float
    top_k: int
    dense_latents: Tensor | None = None
    mode: LatentMode = LATENT_MODES["hybrid"]

    def __len__(self) -> int:
        """N."""
        return self.completion_ids.shape[0]

    @property
    def lengths(self) -> Tensor:
        """Tokens of each completion, EOS included: (N,)."""
        return self.completion_mask.sum(dim=1)

    def truncated(self, eos_token_ids: Sequence[int]) -> Tensor:
        """Whether a completion was cut off at the length limit: (N,) bools."""
        last = self.completion_ids.gather(1, (self.lengths - 1).unsqueeze(1)).squeeze(1)
        return ~torch.isin(last, last.new_tensor(list(eos_token_ids)))

    def finite(self) -> bool:
        """Whether the model's logits were numbers wherever something was written."""
        return bool(self.sample_logprobs.isfinite().all())

    def entropy(self) -> Tensor:
        """Entropy of the candidates that a token was chosen from, in nats, averaged over all tokens. Scalar."""
        entropies: Tensor = torch.special.entr(self.support_probs).sum(dim=2)  # (N, T)
        return (entropies * self.completion_mask).sum() / self.lengths.sum()

    def latents(self, embedding_table: Tensor) -> Tensor:
        """Return the latent h of every position: (V, D) -> (N, T, D), no gradient."""
        if self.dense_latents is not None:
            return self.dense_latents
        return mix_candidates(self.support_ids, self.mode.weigh(self.support_probs), embedding_table)

    def hidden_ratio(self) -> Tensor:
        """Hidden ratio sqrt(1 - gate_mean^2), averaged over mixed positions; 0 where there are none. Scalar."""
        ratio = torch.sqrt(1 - self.gate_mean**2)
        return (ratio * self.hybrid_mask).sum() / self.hybrid_mask.sum().clamp(min=1)

    def select(self, first: int, last: int) -> "Rollout":
        """Return rows `first` to `last` (exclusive), trimmed to their longest prompt and completion."""
        G = self.group_size
        prompts: slice | Tensor
        if first % G == 0 and last % G == 0:
            prompts, group_size = slice(first // G, last // G), G
        elif first // G == (last - 1) // G:  # a part of one group
            prompts, group_size = slice(first // G, first // G + 1), last - first
        else:  # parts of several groups: each row brings its own prompt
            prompts, group_size = torch.arange(first, last, device=self.prompt_mask.device) // G, 1
        prompt_mask = self.prompt_mask[prompts]
        longest = torch.stack([prompt_mask.sum(dim=1).max(), self.lengths[first:last].max()])
        P, T = map(int, longest.tolist())
        rows: dict[str, Any] = {
            name: value[first:last, :T]
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and not name.startswith("prompt_")
        }
        return replace(
            self,
            prompt_ids=self.prompt_ids[prompts][:, -P:],
            prompt_mask=prompt_mask[:, -P:],
            group_size=group_size,
            **rows,
        )

    def groups(self, which: Sequence[int]) -> "Rollout":
        """Return some of the groups, by number."""
        B, G = self.prompt_ids.shape[0], self.group_size
        if list(which) == list(range(B)):
            return self
        chosen = torch.tensor(which, device=self.completion_ids.device)
        rows = (chosen.unsqueeze(1) * G + torch.arange(G, device=chosen.device)).flatten()
        kept: dict[str, Any] = {
            name: value[chosen if name.startswith("prompt_") else rows]
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **kept)

    @staticmethod
    def join(parts: "Sequence[Rollout]", pad: int) -> "Rollout":
        """Return rollouts that were sampled alike as one, padded to the longest; `pad` is the token for that."""
        if len(parts) == 1:
            return parts[0]
        P, T = (max(getattr(part, name).shape[1] for part in parts) for name in ("prompt_ids", "completion_ids"))
        fills = {"prompt_ids": pad, "completion_ids": pad, "gate_mean": 1}
        joined: dict[str, Any] = {}
        for name, value in vars(parts[0]).items():
            if isinstance(value, Tensor):
                left = name.startswith("prompt_")
                pieces = [
                    _padded(getattr(part, name), P if left else T, fills.get(name, 0), left=left) for part in parts
                ]
                joined[name] = torch.cat(pieces)
        return replace(parts[0], **joined)

    def whole_groups(self, least: int, most: int) -> int:
        """Return the tokens of the largest group, within bounds: a budget for micro-batches that cuts none."""
        groups = self.prompt_mask.sum(1) + self.lengths.view(-1, self.group_size).sum(1)
        return min(max(int(groups.max()), least), most)

    def micro_batches(self, token_budget: int) -> Iterator[tuple[int, int]]:
        """Yield row ranges whose tokens stay within a budget: whole groups, or rows of one where it must be.

        A group costs its prompt once and its completions, without padding. Only a group that exceeds the budget by
        itself is cut, and each of its parts costs the prompt again. At least one row is taken, however long.
        """
        G = self.group_size
        prompts, lengths = self.prompt_mask.sum(1).tolist(), self.lengths.tolist()
        first, used = 0, 0
        for b, prompt in enumerate(prompts):
            cost = prompt + sum(lengths[b * G : (b + 1) * G])
            if used and used + cost > token_budget:
                yield first, b * G
                first, used = b * G, 0
            if cost <= token_budget:
                used += cost
                continue
            used = prompt
            for row in range(b * G, (b + 1) * G):
                if row > first and used + lengths[row] > token_budget:
                    yield first, row
                    first, used = row, prompt
                used += lengths[row]
            yield first, (b + 1) * G
            first, used = (b + 1) * G, 0
        if first < len(self):
            yield first, len(self)


def _padded(x: Tensor, length: int, fill: float, *, left: bool) -> Tensor:
    """(n, m, ...) -> (n, length, ...)."""
    room = x.new_full((len(x), length - x.shape[1], *x.shape[2:]), fill)
    return torch.cat([room, x] if left else [x, room], dim=1)


def sample_key(*parts: int | str) -> int:
    """Return a stable 63-bit key of what a completion is: seed, prompt, sample and whatever else sets it apart."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def left_pad(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and mask, (B, P) each, of rows of token ids."""
    P = max(map(len, rows))
    ids = torch.tensor([[pad] * (P - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (P - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
