"""The gate that mixes a token's embedding with a latent (HRPO, arXiv:2505.18454), and the latent."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

C = 8.0  # the constant c of the recurrence, as in Griffin (arXiv:2402.19427) and the paper


def latent_embedding(probs: Tensor, embedding_matrix: Tensor) -> Tensor:
    """Return h = p @ W_e / ||p||_2, the mean embedding of a distribution over tokens, scaled up where it is spread.

    Args:
        probs: (..., V) the sampler's own distribution: 0 outside its candidates, each row sums to 1.
        embedding_matrix: (V, D).

    Returns:
        (..., D) in the dtype of `probs`.

    """
    norm: Tensor = probs.norm(dim=-1, keepdim=True)
    return probs @ embedding_matrix.to(probs.dtype) / norm


def candidate_norm(probs: Tensor) -> Tensor:
    """||p||_2 of distributions given by their candidates, (..., K) -> (..., 1); above 0 where nothing was sampled."""
    norm: Tensor = probs.norm(dim=-1, keepdim=True)
    return norm.clamp(min=1e-12)


def mix_candidates(ids: Tensor, weights: Tensor, embedding_table: Tensor, chunk: int = 1024) -> Tensor:
    """Return the weighted sum of the embeddings of K candidates, without a row of V.

    Args:
        ids: (..., K) candidates.
        weights: (..., K); `p / ||p||_2` gives `latent_embedding`.
        embedding_table: (V, D).
        chunk: positions at a time, to bound the (chunk, K, D) in between where the dtypes differ.

    Returns:
        (..., D) in the dtype of `weights`.

    """
    flat = weights.flatten(0, -2)  # (n, K)
    flat_ids = ids.flatten(0, -2).long()
    if embedding_table.dtype == weights.dtype:
        with torch.no_grad():
            out = F.embedding_bag(flat_ids, embedding_table, per_sample_weights=flat, mode="sum")
        return out.view(*ids.shape[:-1], -1)
    out = flat.new_empty(flat_ids.shape[0], embedding_table.shape[1])
    for at in range(0, flat_ids.shape[0], chunk):
        rows = slice(at, at + chunk)
        found = embedding_table.index_select(0, flat_ids[rows].flatten()).to(flat.dtype)
        out[rows] = torch.bmm(flat[rows].unsqueeze(1), found.view(*flat_ids[rows].shape, -1)).squeeze(1)
    return out.view(*ids.shape[:-1], -1)


class HybridGate(nn.Module):
    """out = a * e + sqrt(1 - a^2 + 1e-8) * (i * h), with a and i seeing only the token's embedding e.

    Parameters and arithmetic are float32 (float64 in a float64 model), under autocast too: in bfloat16 a = .999
    rounds to 1 and an update of 5e-6 is lost.

    Args:
        hidden_size: D.
        r_min: lower end of the uniform draw of a at r = 1.
        r_max: upper end.

    """

    def __init__(self, hidden_size: int, r_min: float = 0.99, r_max: float = 0.999) -> None:
        super().__init__()
        if not 0 < r_min <= r_max < 1:
            raise ValueError(f"r_min and r_max must satisfy 0 < r_min <= r_max < 1, got {r_min} and {r_max}")
        self.r_min, self.r_max = r_min, r_max
        self.reset_gate = nn.Linear(hidden_size, hidden_size, dtype=torch.float32)
        self.input_gate = nn.Linear(hidden_size, hidden_size, dtype=torch.float32)
        bound = 1 / math.sqrt(hidden_size)
        for linear in (self.reset_gate, self.input_gate):
            nn.init.uniform_(linear.weight, -bound, bound)
            nn.init.zeros_(linear.bias)
        self.Lambda = nn.Parameter(self.lambda_of(torch.empty(hidden_size).uniform_(r_min, r_max)))

    @staticmethod
    def lambda_of(u: Tensor) -> Tensor:
        """Return the Lambda at which a = u when r = 1: -log(u^(-1/c) - 1). Shape as `u`, in (0, 1)."""
        return -torch.log(u ** (-1 / C) - 1)

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.Lambda.shape[0]

    def forward(
        self, embeds: Tensor, latents: Tensor, *, input_gate: bool = True, one_a: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mix.

        Args:
            embeds: (..., D) e, the model's own input embedding of the sampled token.
            latents: (..., D) h.
            input_gate: without it i = 1; an ablation.
            one_a: all channels have the geometric mean of their a; an ablation.

        Returns:
            The mixed input (..., D) and a (..., D), both in the gate's dtype.

        """
        with torch.autocast(embeds.device.type, enabled=False):
            e, h = embeds.to(self.Lambda.dtype), latents.to(self.Lambda.dtype)
            r = torch.sigmoid(self.reset_gate(e))
            i = torch.sigmoid(self.input_gate(e)) if input_gate else 1.0
            log_a = -C * F.softplus(-self.Lambda) * r
            if one_a:
                log_a = log_a.mean(dim=-1, keepdim=True).expand_as(log_a)
            a = torch.exp(log_a)
            # 1 - a^2 without cancellation: a is close to 1
            out = a * e + torch.sqrt(-torch.expm1(2 * log_a) + 1e-8) * (i * h)
        return out, a
