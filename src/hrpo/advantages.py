"""Group-relative advantages (GRPO, arXiv:2402.03300), as HRPO uses them."""

import math

import torch
from torch import Tensor

from hrpo.config.schema import AdvantageScale


def group_advantages(rewards: Tensor, group_size: int, scale: AdvantageScale = "std") -> Tensor:
    """Compare each completion with the others of its prompt.

    A = (r - mean) / (std + 1e-4) within the group, std unbiased. A group whose rewards are all equal gets zeros. A
    completion without a reward (NaN) is none of its group, and gets zero.

    Args:
        rewards: (N,) one reward a completion, the group's completions side by side.
        group_size: completions per prompt, at least 2.
        scale: "std" divides by the group's standard deviation; "unscaled" does not (Dr. GRPO, arXiv:2503.20783).

    Returns:
        (N,) advantages.

    Raises:
        ValueError: `group_size` is below 2 or does not divide N.

    """
    if group_size < 2 or rewards.numel() % group_size:
        raise ValueError(f"group_size must be at least 2 and divide {rewards.numel()} rewards, got {group_size}")
    groups = rewards.reshape(-1, group_size)  # (B, G)
    groups = groups if groups.is_floating_point() else groups.float()
    centred = groups - groups.nanmean(dim=1, keepdim=True)
    if scale == "std":
        count = groups.isfinite().sum(dim=1, keepdim=True)
        centred = centred / ((centred.square().nansum(dim=1, keepdim=True) / (count - 1)).sqrt() + 1e-4)
    # rounding of the mean must not look like a signal
    return torch.where(_differ(groups) & groups.isfinite(), centred, 0).flatten()


def leave_one_out(rewards: Tensor, group_size: int) -> Tensor:
    """Compare each completion with the mean of the others of its prompt (RLOO, arXiv:2402.14740).

    Args:
        rewards: (N,); a completion without one (NaN) is none of its group, and gets zero.
        group_size: completions per prompt, at least 2.

    Returns:
        (N,) advantages.

    """
    centred = group_advantages(rewards, group_size, "unscaled").reshape(-1, group_size)  # r - mean of all
    count = rewards.reshape(-1, group_size).isfinite().sum(dim=1, keepdim=True)
    return (centred * count / (count - 1).clamp(min=1)).flatten()


def signal_share(rewards: Tensor, group_size: int) -> float:
    """Share of groups whose rewards differ; only these carry a policy gradient."""
    return _differ(rewards.reshape(-1, group_size)).float().mean().item()


def _differ(groups: Tensor) -> Tensor:
    """Return whether the rewards of a group that are there differ: (B, G) -> (B, 1)."""
    missing = groups.isnan()
    lowest = groups.where(~missing, math.inf).amin(dim=1, keepdim=True)
    return lowest < groups.where(~missing, -math.inf).amax(dim=1, keepdim=True)


def distinct_share(completion_ids: Tensor, group_size: int) -> float:
    """Return the different completions of a group over its size, averaged over groups; (N, T), padded alike."""
    groups = completion_ids.view(-1, group_size, completion_ids.shape[1])
    distinct: int = sum(torch.unique(group, dim=0).shape[0] for group in groups)
    return distinct / completion_ids.shape[0]
