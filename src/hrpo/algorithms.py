"""How a model learns from rollouts: an `Algorithm` says what advantages are, and what the loss is; see `ALGORITHMS`."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hrpo.advantages import group_advantages, leave_one_out
from hrpo.config.schema import AdvantageScale, LossConfig, Reduction
from hrpo.loss import clipped_loss, hrpo_loss, likelihood_loss


@dataclass(frozen=True)
class LossInputs:
    """What a loss is made of: n completions of a micro-batch, up to t tokens each.

    logprobs: (n, t) of the policy, with gradient.
    reference: (n, t) of the reference; None where the algorithm needs none.
    sampled: (n, t) of the policy that sampled them; zeros for written solutions.
    advantages: (n,).
    mask: (n, t), 1 up to and including EOS.
    weights: (n, t) of the tokens, see `hrpo.loss.token_weights`: those of a whole batch sum to 1.
    """

    logprobs: Tensor
    reference: Tensor | None
    sampled: Tensor
    advantages: Tensor
    mask: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Algorithm:
    """HRPO (arXiv:2505.18454), and GRPO where no latents are fed: group advantages, a policy gradient, a k3 penalty.

    Args:
        beta: weight of the penalty on the divergence from the reference; 0 needs no reference, and leaves out groups
            whose advantages are all 0, whose loss must have no gradient then.
        scale_rewards: by what advantages are divided, see `group_advantages`.
        loss_aggregation: which mean over tokens the loss is, see `token_weights`.

    """

    beta: float = 0.005
    scale_rewards: AdvantageScale = "std"
    loss_aggregation: Reduction = "sequence"
    samples: ClassVar[bool] = True  # learns from sampled completions; else from written solutions
    has_ratio: ClassVar[bool] = False  # compares log-probabilities with those recorded while sampling

    @classmethod
    def of(cls, settings: LossConfig) -> "Algorithm":
        """Return the algorithm with the settings that it leaves open."""
        return cls(settings.beta, settings.scale_rewards, settings.loss_aggregation)

    def advantages(self, rewards: Tensor, group_size: int) -> Tensor:
        """(N,) rewards, the group's side by side -> (N,)."""
        return group_advantages(rewards, group_size, self.scale_rewards)

    def loss(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar loss and what is logged of it; those of a batch's micro-batches add up."""
        return hrpo_loss(
            inputs.logprobs,
            inputs.reference,
            inputs.advantages,
            inputs.mask,
            beta=self.beta,
            weights=inputs.weights,
        )


@dataclass(frozen=True)
class RLOO(Algorithm):
    """REINFORCE with a leave-one-out baseline (arXiv:2402.14740): each reward less the mean of the group's others."""

    def advantages(self, rewards: Tensor, group_size: int) -> Tensor:
        """See `Algorithm`."""
        return leave_one_out(rewards, group_size)


@dataclass(frozen=True)
class DAPO(Algorithm):
    """DAPO (arXiv:2503.14476): ratios clipped higher above than below, one mean over all tokens, no reference.

    Groups without a signal have no gradient; they are not sampled anew, so their tokens count in that mean. In strictly
    on-policy training the ratio is 1, so that clipping shows only where a rollout is learnt from more than once.
    """

    low: float = 0.2
    high: float = 0.28
    has_ratio: ClassVar[bool] = True

    @classmethod
    def of(cls, settings: LossConfig) -> "DAPO":
        """See `Algorithm`."""
        return cls(0.0, settings.scale_rewards, "token")

    def loss(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Algorithm`."""
        return clipped_loss(
            inputs.logprobs,
            inputs.sampled,
            inputs.advantages,
            inputs.mask,
            inputs.weights,
            low=self.low,
            high=self.high,
        )


@dataclass(frozen=True)
class SFT(Algorithm):
    """Supervised fine-tuning on written solutions: the mean over all tokens of -log p."""

    samples: ClassVar[bool] = False

    @classmethod
    def of(cls, settings: LossConfig) -> "SFT":
        """See `Algorithm`."""
        return cls(0.0, "unscaled", "token")

    def advantages(self, rewards: Tensor, group_size: int) -> Tensor:
        """Return ones: every solution is to be learnt."""
        return torch.ones_like(rewards)

    def loss(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Algorithm`."""
        return likelihood_loss(inputs.logprobs, inputs.weights)


ALGORITHMS: dict[str, type[Algorithm]] = {"hrpo": Algorithm, "rloo": RLOO, "dapo": DAPO, "sft": SFT}
