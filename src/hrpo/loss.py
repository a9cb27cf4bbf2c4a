"""The HRPO objective (arXiv:2505.18454; on-policy, so no ratio and no clipping)."""

import torch
from torch import Tensor

from hrpo.config.schema import Reduction


def token_weights(
    completion_mask: Tensor, reduction: Reduction = "sequence", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Weight of each token in the loss; the weights of a whole batch sum to 1 (empty completions excepted).

    "sequence" averages over a completion's tokens and then over completions (paper); "token" over all tokens at
    once (DAPO, arXiv:2503.14476). Weights are taken over the whole batch, so that micro-batches add up exactly.

    Args:
        completion_mask: (N, T), 1 up to and including EOS.
        reduction: which mean.
        dtype: of the result.

    Returns:
        (N, T) weights, 0 where the mask is 0.

    """
    mask = completion_mask.to(dtype)
    if reduction == "token":
        return mask / mask.sum().clamp(min=1)
    return mask / mask.sum(dim=1, keepdim=True).clamp(min=1) / mask.shape[0]


def hrpo_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    completion_mask: Tensor,
    *,
    beta: float,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Policy gradient with a k3 penalty on the divergence from the reference.

    Args:
        logprobs: (N, T) of the policy, with gradient.
        ref_logprobs: (N, T) of the reference; None where beta is 0 and nobody wants the KL.
        advantages: (N,).
        completion_mask: (N, T), 1 up to and including EOS.
        beta: weight of the KL term.
        weights: (N, T) from `token_weights`; None takes the mean over these completions. A micro-batch passes its
            rows of the whole batch's weights, and the losses then sum to the batch's loss.

    Returns:
        The scalar loss, and its parts under `no_grad`: "policy_loss" (before the KL term) and "kl" (mean k3).

    Raises:
        ValueError: beta is not 0 and there is no reference.

    """
    if ref_logprobs is None and beta != 0:
        raise ValueError(f"beta is {beta}, so the loss needs ref_logprobs")
    if weights is None:
        weights = token_weights(completion_mask, dtype=logprobs.dtype)
    weights = weights.to(logprobs.dtype)  # (N, T)
    counts = completion_mask.bool()
    logprobs = torch.where(counts, logprobs, 0)  # whatever stands under the mask, finite or not, has no influence
    ratio = torch.exp(logprobs - logprobs.detach())  # (N, T): 1, with the gradient of log-prob
    policy_loss = -(weights * ratio * advantages.to(logprobs.dtype).unsqueeze(1)).sum()
    if ref_logprobs is None:
        return policy_loss, {"policy_loss": policy_loss.detach()}
    gap = torch.where(counts, ref_logprobs.to(logprobs.dtype), 0) - logprobs  # (N, T)
    kl = (weights * (torch.exp(gap) - gap - 1)).sum()  # k3, Schulman 2020
    loss = policy_loss + beta * kl
    return loss, {"policy_loss": policy_loss.detach(), "kl": kl.detach()}


def clipped_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    weights: Tensor,
    *,
    low: float,
    high: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Policy gradient with a clipped ratio (PPO, arXiv:1707.06347; DAPO's two bounds, arXiv:2503.14476).

    Args:
        logprobs: (N, T) of the policy, with gradient.
        old_logprobs: (N, T) of the policy that sampled.
        advantages: (N,).
        completion_mask: (N, T), 1 up to and including EOS.
        weights: (N, T) from `token_weights`.
        low: the ratio counts as at least 1 - low.
        high: and as at most 1 + high.

    Returns:
        The scalar loss, and under `no_grad` "policy_loss" and "clip_ratio", the weight of tokens that were clipped.

    """
    weights = weights.to(logprobs.dtype)
    gap = torch.where(completion_mask.bool(), logprobs - old_logprobs.to(logprobs.dtype), 0)  # (N, T)
    ratio, A = torch.exp(gap), advantages.to(logprobs.dtype).unsqueeze(1)
    clipped = ratio.clamp(1 - low, 1 + high)
    loss = -(weights * torch.minimum(ratio * A, clipped * A)).sum()
    share = (weights * (clipped * A < ratio * A)).sum()
    return loss, {"policy_loss": loss.detach(), "clip_ratio": share.detach()}


def likelihood_loss(logprobs: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean of -log p of written tokens, nats: (N, T) each -> scalar, and the same as "nll"."""
    loss = -(weights.to(logprobs.dtype) * logprobs).sum()
    return loss, {"nll": loss.detach()}
