"""Law 2, second half: with latents off we are plain GRPO, so TRL's own trainer gives the same numbers.

TRL's `GRPOTrainer` runs one whole `train()` step on a rollout that we hand it. Its public seams are enough:
`rollout_func` supplies the token ids, the reward function passes the given rewards on, `compute_loss` shows
each micro-batch and its loss, and `on_pre_optimizer_step` the gradients.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from hrpo import HybridCausalLM, HybridGate, Rollout, generate, group_advantages, hrpo_loss, replay
from hrpo.config.schema import AdvantageScale, Reduction
from hrpo.loss import token_weights
from hrpo.model import HybridSettings

MODEL = Path(__file__).parent / "golden" / "llama" / "model"  # tiny random Llama, float32
VOCAB, PAD, BOS, EOS = 61, 0, 1, 2
GROUP, BETA = 4, 0.05
PROMPT_LENGTHS = [3, 8, 5, 1]
COMPLETION_LENGTHS = [9, 1, 4, 6, 2, 2, 7, 5, 3, 9, 1, 8, 5, 4, 9, 6]
ENDED = [0, 1, 1, 1, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 0, 1]  # 1: its last token is EOS; 0: cut off
REWARDS = [1.0, 0.0, 0.0, 1.0, *4 * [0.0], *4 * [1.0], 0.25, 1.0, 0.5, -1.0]  # groups 2 and 3: no signal


class Step(NamedTuple):
    """What one optimizer step of TRL did, rows in the order of our rollout."""

    advantages: Tensor  # (N,)
    micro_batches: list[tuple[list[int], float]]  # rows and loss of each
    gradients: dict[str, Tensor]


@pytest.fixture(autouse=True)
def reset_accelerate() -> Iterator[None]:
    """Accelerate's state is global: a later test in this process could not choose another precision."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def given_rollout() -> tuple[list[list[int]], list[list[int]]]:
    """One prompt a group and one completion a sample, as unpadded token ids; every completion is another."""
    generator = torch.Generator().manual_seed(3)

    def draw(length: int) -> list[int]:
        return torch.randint(3, VOCAB, (length,), generator=generator).tolist()

    prompts = [[BOS, *draw(length - 1)] for length in PROMPT_LENGTHS]
    completions = [
        [*draw(length - 1), EOS] if ended else draw(length)
        for length, ended in zip(COMPLETION_LENGTHS, ENDED, strict=True)
    ]
    assert len(set(map(tuple, completions))) == len(completions)
    return prompts, completions


def reference_model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


def perturb(model: PreTrainedModel) -> PreTrainedModel:
    """Move the weights by a fixed small step, so that the KL term is not zero."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    return model


def our_policy() -> HybridCausalLM:
    """The perturbed policy beside its reference, latents off."""
    model = HybridCausalLM(reference_model(), HybridGate(24), HybridSettings("memory", "discrete"))
    model.keep_reference()
    perturb(model.lm)
    return model


def our_rollout(model: HybridCausalLM, prompts: list[list[int]], completions: list[list[int]]) -> Rollout:
    """The given ids as a rollout of ours; a row may be cut off before the longest."""
    rows = [torch.tensor(completion) for completion in completions]
    forced = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=EOS)  # (N, T)
    rollout = generate(model, prompts, group_size=GROUP, forced_ids=forced, delimiter=[PAD])
    lengths = torch.tensor([len(completion) for completion in completions])
    mask = (torch.arange(forced.shape[1]) < lengths[:, None]).long()
    return dataclasses.replace(rollout, completion_mask=mask)


def trl_step(folder: Path, prompts: list[list[int]], completions: list[list[int]], **settings: Any) -> Step:
    """Train one step with TRL on the given ids and rewards."""
    words = {"<pad>": PAD, "<bos>": BOS, "<eos>": EOS} | {f"w{i}": i for i in range(3, VOCAB)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
    )

    def rollout_func(texts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        assert texts == [str(i) for i in range(len(prompts)) for _ in range(GROUP)]
        return {
            "prompt_ids": [prompts[int(text)] for text in texts],
            "completion_ids": completions,
            "logprobs": None,  # read for vLLM's correction only
            "given": REWARDS,  # an extra field, which reaches the reward functions
        }

    def reward(completions: list[str], given: list[float], **columns: Any) -> list[float]:
        return given

    batches: list[tuple[dict[str, Tensor], float]] = []
    gradients: dict[str, Tensor] = {}

    class Recorder(GRPOTrainer):
        def compute_loss(self, model: PreTrainedModel, inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
            loss = super().compute_loss(model, inputs, **kwargs)
            batches.append((inputs, loss.item()))
            return loss

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, model: PreTrainedModel, **kwargs: Any) -> None:
            gradients.update({name: p.grad.clone() for name, p in model.named_parameters()})

    trainer = Recorder(
        model=perturb(reference_model()),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(folder),
            num_generations=GROUP,
            num_iterations=1,
            temperature=1.0,
            beta=BETA,
            use_bias_correction_kl=False,  # default True: k3 * exp(lp - sg(lp)), which has another gradient
            max_steps=1,
            max_grad_norm=1e9,  # no clipping
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            shuffle_dataset=False,
            disable_tqdm=True,
            save_strategy="no",
            report_to="none",
            **settings,
        ),
        train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(len(prompts))]}),
        processing_class=tokenizer,
        rollout_func=rollout_func,
        callbacks=[Gradients()],
    )
    trainer.train()

    advantages = torch.full((len(completions),), torch.nan)
    micro_batches = []
    for inputs, loss in batches:
        rows = []  # TRL shuffles the completions before it splits them into micro-batches
        for n, mask in enumerate(inputs["completion_mask"].bool()):
            row = completions.index(inputs["completion_ids"][n][mask].tolist())
            prompt = inputs["prompt_ids"][n][inputs["prompt_mask"][n].bool()].tolist()
            assert prompt == prompts[row // GROUP]
            advantages[row] = inputs["advantages"][n]
            rows.append(row)
        micro_batches.append((rows, loss))
    return Step(advantages, micro_batches, gradients)


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'", "ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("loss_type", "reduction", "scale_rewards", "scale", "accumulate"),
    [
        ("grpo", "sequence", "group", "std", 1),
        ("grpo", "sequence", "group", "std", 4),
        ("dapo", "token", "none", "unscaled", 4),
    ],
)
def test_advantages_loss_and_gradients_equal_trl(
    tmp_path: Path,
    loss_type: str,
    reduction: Reduction,
    scale_rewards: str,
    scale: AdvantageScale,
    accumulate: int,
) -> None:
    prompts, completions = given_rollout()
    theirs = trl_step(
        tmp_path,
        prompts,
        completions,
        loss_type=loss_type,
        scale_rewards=scale_rewards,
        per_device_train_batch_size=len(completions) // accumulate,
        gradient_accumulation_steps=accumulate,
    )

    advantages = group_advantages(torch.tensor(REWARDS), GROUP, scale)
    torch.testing.assert_close(advantages, theirs.advantages, atol=1e-6, rtol=0)

    policy = our_policy()
    rollout = our_rollout(policy, prompts, completions)
    lp, ref = replay(policy, rollout)
    mask = rollout.completion_mask
    weights = token_weights(mask, reduction)
    loss, stats = hrpo_loss(lp, ref, advantages, mask, beta=BETA, weights=weights)
    assert stats["kl"] > 0.05  # so that a wrong KL term would show
    assert len(theirs.micro_batches) == accumulate
    assert loss.item() == pytest.approx(sum(value for _, value in theirs.micro_batches), abs=1e-5)
    for rows, value in theirs.micro_batches:
        part, _ = hrpo_loss(lp[rows], ref[rows], advantages[rows], mask[rows], beta=BETA, weights=weights[rows])
        assert part.item() == pytest.approx(value, abs=1e-5)

    loss.backward()
    ours = {name: parameter.grad for name, parameter in policy.lm.named_parameters()}
    assert ours.keys() == theirs.gradients.keys()
    for name, gradient in theirs.gradients.items():
        assert gradient.norm() > 1e-3, name
        assert (ours[name] - gradient).norm() <= 2e-4 * gradient.norm(), name
