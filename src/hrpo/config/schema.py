"""Every setting, one dataclass a stage. Defaults are the paper's where it has one; docs/method.md lists them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from hrpo.common.errors import InputError
from hrpo.config import bounds

Auto = Literal["auto"]
Dtype = Literal["float32", "bfloat16", "float64"]
Quantization = Literal["none", "4bit", "8bit"]
MixedIn = Literal["interpolation", "hidden"]
Policy = Literal["model", "tempered", "sampler"]
Reduction = Literal["sequence", "token"]
AdvantageScale = Literal["std", "unscaled"]
LongPrompts = Literal["drop", "refuse"]
Target = Literal["solution", "answer"]
Tracker = Literal["none", "tensorboard", "wandb", "trackio"]
Scorer = Literal["own", "math_string"]
Sharding = Literal["none", "fsdp"]


LONGEST = 512  # tokens of a completion where nobody says another limit; the paper's


def length_limit(asked: int | Auto, context: int | None) -> int:
    """Return the most tokens of a completion: what is asked for; for auto `LONGEST`, or half of a shorter context."""
    shorter = LONGEST if context is None else min(LONGEST, max(1, context // 2))
    return shorter if asked == "auto" else asked


@dataclass(frozen=True)
class ModelConfig:
    """The language model.

    Args:
        name: a folder, a name that `hrpo model` lists, or a name on the Hub. A run folder stands for its newest
            checkpoint, which must hold whole weights (`hrpo export` makes them of an adapter).
        dtype: bfloat16 keeps frozen weights in bfloat16, or runs trainable float32 ones under autocast.
        quantization: of the frozen weights under adapters: "4bit" (nf4) or "8bit"; needs bitsandbytes.
        lora_rank: rank of the adapters on the linear layers of the blocks; 0 trains all weights.
        lora_alpha: the adapters' output is scaled by lora_alpha / lora_rank.
        lora_targets: layers that get adapters, separated by commas; "all-linear" takes all but the head.
        trust_remote_code: run code that comes with the model.
    """

    name: str = "tiny"
    dtype: Dtype = "float32"
    quantization: Quantization = "none"
    lora_rank: bounds.Rank = 32
    lora_alpha: bounds.Positive = 64
    lora_targets: str = "all-linear"
    trust_remote_code: bool = False


@dataclass(frozen=True)
class LatentConfig:
    """What is fed while the model thinks.

    Args:
        mode: "hybrid" mixes each sampled token with a latent (HRPO); "discrete" feeds tokens alone (GRPO);
            "interpolation" feeds the mean embedding of the candidates alone, and "hidden" the last hidden state.
            "no_input_gate", "no_norm" and "scalar_a" leave parts of HRPO out. "swapped" and "noise" evaluate a gated
            model with other latents than its own, and "soft_thinking" and "mixture_of_inputs" any model.
        mixed_in: which latent "hybrid" mixes in.
        r_min: lower end of the gate's initial a; the paper uses .95, .98 or .99.
        r_max: upper end.
    """

    mode: str = "hybrid"
    mixed_in: MixedIn = "interpolation"
    r_min: float = 0.99
    r_max: float = 0.999


@dataclass(frozen=True)
class TaskConfig:
    """The problems.

    Args:
        name: a name that `hrpo tasks` lists, reasoning_gym/NAME, or a Python file of your own (docs/your-task.md).
        path: the training file as its publisher has it, or a folder with training and test file; empty: the Hub.
        test_path: the test file; where this is left out, it is looked for beside the training file.
        scorer: how answers are judged: "own", by the task's rule, or mathematical ones by the release's, "math_string".
        rewards: what is rewarded, each with its weight: correct (the task's own reward), format (exactly one
            delimiter), or FILE.py:FUNCTION in TRL's signature.
        num_fewshot: worked examples that every prompt begins with.
        max_solution_chars: train only on problems whose written solution is at most this long; 0 takes all.
        min_terms: fewest terms of a problem (arithmetic).
        max_terms: most terms of a problem (arithmetic).
    """

    name: str = "arithmetic"
    path: str = ""
    test_path: str = ""
    scorer: Scorer = "own"
    rewards: dict[str, float] = field(default_factory=lambda: {"correct": 1.0})
    num_fewshot: bounds.Shots = 0
    max_solution_chars: bounds.Count = 0
    min_terms: int = 3
    max_terms: int = 5


@dataclass(frozen=True)
class RolloutConfig:
    """How completions are sampled.

    Args:
        prompts_per_step: prompts per update, B.
        group_size: completions per prompt, G; the paper uses 4 or 8.
        max_new_tokens: length limit of a completion, T; auto takes 512, the paper's, or half of a shorter context.
        temperature: of the sampler, tau.
        top_k: candidates kept at each step; 0 keeps the whole vocabulary. The paper's text has none, its code 50.
        max_prompt_tokens: longest prompt that is trained on; 0 takes what the model's context leaves.
        long_prompts: "drop" leaves problems with a longer prompt out, and says how many; "refuse" does not start.
        static_shapes: decode in few different steps, captured as CUDA graphs and repeated; auto does so on CUDA alone.
        torch_compile: fuse the operations of such steps by torch.compile, which takes a while at first.
        engine: who samples them: "hybrid", the model itself, or your own (docs/add-an-engine.md).
    """

    prompts_per_step: bounds.Batch = 8
    group_size: Annotated[int, bounds.Between(2, bounds.BATCH)] = 8
    max_new_tokens: Annotated[int | Auto, bounds.Between(1, bounds.TOKENS)] = "auto"
    temperature: bounds.Temperature = 0.5
    top_k: bounds.Count = 50
    max_prompt_tokens: bounds.Tokens = 0
    long_prompts: LongPrompts = "drop"
    static_shapes: bool | Auto = "auto"
    torch_compile: bool = False
    engine: str = "hybrid"


@dataclass(frozen=True)
class LossConfig:
    """The objective.

    Args:
        beta: weight of the KL term; 0 needs no reference.
        policy: the distribution whose log-probability is optimised: "model" (temperature 1, as released),
            "tempered" (the sampler's temperature, as TRL) or "sampler" (its temperature and candidates).
        loss_aggregation: mean over each completion's tokens first ("sequence") or over all tokens at once ("token").
        scale_rewards: divide advantages by the group's standard deviation ("std") or leave them ("unscaled").
        mask_truncated: leave completions that were cut off at the length limit out of the loss.
    """

    beta: bounds.Weight = 0.005
    policy: Policy = "model"
    loss_aggregation: Reduction = "sequence"
    scale_rewards: AdvantageScale = "std"
    mask_truncated: bool = False


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a cosine schedule.

    Args:
        lr: learning rate of the adapters, or of all weights in full fine-tuning.
        gate_lr: learning rate of the gates' linear layers.
        lambda_lr: learning rate of Lambda.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        weight_decay: on everything that is trained, gate and Lambda too.
        max_grad_norm: gradients are clipped to this norm, over all parameters.
        warmup: share of the updates over which the learning rates rise from 0.
    """

    lr: bounds.Rate = 5e-6
    gate_lr: bounds.Rate = 1e-4
    lambda_lr: bounds.Rate = 1e-3
    beta1: bounds.Share = 0.9
    beta2: bounds.Share = 0.99
    weight_decay: bounds.Weight = 0.1
    max_grad_norm: bounds.Norm = 0.1
    warmup: bounds.Share = 0.1


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning, `hrpo sft`.

    Args:
        target: what the model learns to write: the worked "solution", the answer after #### at its end, or the
            "answer" alone.
        batch: problems per update.
    """

    target: Target = "solution"
    batch: bounds.Batch = 32


@dataclass(frozen=True)
class CheckConfig:
    """A look at a few completions before training, and at the rewards while it goes.

    Args:
        prompts: training problems that are tried; 0 switches the check off.
        patience: training stops after so many updates in a row without a signal in any group; 0 goes on for ever.
        max_skipped: training stops after so many updates in a row that were skipped, something in them not finite.
    """

    prompts: Annotated[int, bounds.Between(0, bounds.BATCH)] = 8
    patience: bounds.Count = 20
    max_skipped: bounds.Positive = 5


@dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints stay.

    Args:
        save_total_limit: the newest so many; 0 keeps all.
        best: beside them the so many that answer the most held-out training problems right.
        problems: training problems that are held out for that, and never trained on.
    """

    save_total_limit: bounds.Count = 0
    best: bounds.Count = 0
    problems: Annotated[int, bounds.Between(0, 10**4)] = 0  # some are drawn for each


@dataclass(frozen=True)
class EvalConfig:
    """Held-out evaluation before and after training.

    Args:
        problems: test problems; 0 switches the evaluation off.
        batch: problems decoded at a time.
    """

    problems: bounds.Count = 500
    batch: bounds.Batch = 64


@dataclass(frozen=True)
class TrainConfig:
    """One run.

    Args:
        name: of the run, in OUTPUT_DIR/NAME; {mode} and {seed} stand for the latent mode (or sft) and the seed.
        output_dir: where runs are kept.
        max_steps: optimizer steps, one rollout each.
        seed: of data order, sampling and initial gate.
        max_tokens_per_microbatch: tokens of a micro-batch, a group's prompt counted once; lower it when memory runs
            out. 0 takes a group, or 1,024 to 4,096, on a CPU, where more is no faster; elsewhere up to 16,384, as
            memory allows.
        gradient_checkpointing: keep only the inputs of the model's blocks and compute the rest anew in the backward
            pass: less memory, more time. auto does it for as many blocks as memory asks for; on a CPU, so that the
            others keep no more than what the weights take, or 256 MB.
        sharding: with several processes, "fsdp" leaves each its share of the parameters, of their gradients and of the
            optimizer's state (torch's fully_shard); "none" gives each all of them.
        save_every: updates between checkpoints; the last is always kept.
        report_to: where metrics go beside the run folder: "tensorboard" (files in it), "wandb" or "trackio".
        algorithm: the algorithm: "hrpo", reinforcement learning in any latent mode; "rloo" or "dapo", the same with
            other advantages or another loss; or "sft", supervised fine-tuning on tokens alone, which `hrpo sft` sets.
        model: the language model.
        latent: what is fed while the model thinks.
        task: the problems.
        rollout: how completions are sampled.
        loss: the objective of reinforcement learning.
        sft: supervised fine-tuning.
        optimizer: AdamW with a cosine schedule.
        check: a look at a few completions before training, and at the rewards while it goes.
        keep: which checkpoints stay.
        eval: held-out evaluation before and after.
    """

    name: str = "run-{mode}-{seed}"
    output_dir: str = "runs"
    max_steps: bounds.Positive = 100
    seed: bounds.Seed = 0
    max_tokens_per_microbatch: bounds.Count = 0
    gradient_checkpointing: bool | Auto = "auto"
    sharding: Sharding = "none"
    save_every: bounds.Positive = 50
    report_to: Tracker = "none"
    algorithm: str = "hrpo"
    model: ModelConfig = field(default_factory=ModelConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    check: CheckConfig = field(default_factory=CheckConfig)
    keep: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    @property
    def run_folder(self) -> Path:
        """Where the run lives.

        Raises:
            InputError: the name has other braces than {mode} and {seed}, or leads out of output_dir.
        """
        mode = self.latent.mode
        mode = {"hrpo": mode, "sft": "sft"}.get(self.algorithm, f"{self.algorithm}-{mode}")
        try:
            name = self.name.format(mode=mode, seed=self.seed)
        except (AttributeError, KeyError, ValueError, IndexError) as error:
            raise InputError("name", f"{self.name!r} may hold {{mode}} and {{seed}}, and no other braces") from error
        path = Path(name)
        if path == Path() or path.is_absolute() or ".." in path.parts or not name.isprintable():
            raise InputError("name", f"{self.name!r} is no name within {self.output_dir}", "move it by --output_dir")
        return Path(self.output_dir) / path


@dataclass(frozen=True)
class CompareConfig:
    """A comparison of runs that differ in some settings, each from several seeds.

    Args:
        modes: latent modes, and sft with as many updates; the first is what the others are compared with.
        arms: any settings instead, by dotted names under a name of one's own, {low: {latent.r_min: 0.9}}; {arm} in the
            runs' name stands for that.
        decode: modes in which an arm's trained models answer the test problems once more, {low: [discrete, swapped]};
            each makes an arm of its own.
        seeds: of the runs of each.
        results: a folder for the comparison and a JSON of each finished run, not trained again; empty: the runs' own.
        report: what the comparison's files there are called: REPORT.json, REPORT.md and REPORT.png.
    """

    modes: list[str] = field(default_factory=lambda: ["hybrid", "discrete", "interpolation", "hidden"])
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    decode: dict[str, list[str]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    results: str = ""
    report: str = "comparison"
