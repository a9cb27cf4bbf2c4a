"""What one of several processes does for test_processes.py: updates of some runs, and what they looked like.

    python tests/two_processes.py FOLDER CASE [CASE ...]

with the variables that launchers set (RANK, WORLD_SIZE, ...). The first process leaves FOLDER/CASE.pt.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from hrpo.common.distributed import full, is_main_process, leave
from hrpo.config.schema import (
    CheckConfig,
    EvalConfig,
    LatentConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    SftConfig,
    TrainConfig,
)
from hrpo.training.run import Run

EXACT = ModelConfig(dtype="float64", lora_rank=0)
CASES: dict[str, dict] = {
    "full": {"model": EXACT},
    "lora": {"model": ModelConfig(lora_rank=4), "max_tokens_per_microbatch": 60},
    "no-reference": {"loss": LossConfig(beta=0.0)},
    "token-mean": {"model": EXACT, "loss": LossConfig(loss_aggregation="token", mask_truncated=True)},
    "one-prompt": {"model": EXACT, "rollout": RolloutConfig(1, 4, 24, 1.0)},
    "sft": {"algorithm": "sft"},
    "hidden": {"latent": LatentConfig("hybrid", "hidden", 0.9)},
    "recompute": {"gradient_checkpointing": True, "max_tokens_per_microbatch": 60},
    "bfloat16": {"model": ModelConfig(dtype="bfloat16", lora_rank=4)},
}
SHARDED = "sharded-"  # before a case's name: the same, with sharding


def config_of(case: str, folder: Path) -> TrainConfig:
    settings = {
        "max_steps": 4,
        "model": ModelConfig(lora_rank=0),
        "latent": LatentConfig(r_min=0.9),
        "rollout": RolloutConfig(3, 4, 24, 1.0),
        "loss": LossConfig(beta=0.01),
        "sft": SftConfig(batch=5),
        "optimizer": OptimizerConfig(lr=1e-4, gate_lr=1e-3, lambda_lr=1e-2, warmup=0.0),
        "check": CheckConfig(prompts=0),
        "eval": EvalConfig(problems=3, batch=4),
        "sharding": "fsdp" if case.startswith(SHARDED) else "none",
        **CASES[case.removeprefix(SHARDED)],
    }
    return TrainConfig(name=case, output_dir=str(folder), **settings)


def in_processes(count: int, words: list[str]) -> None:
    """Run a script in so many processes, as a launcher would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = []
    for rank in range(count):
        own = {**shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1}
        environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
        running.append(subprocess.Popen([sys.executable, *words], env=environment))
    assert [process.wait(300) for process in running] == [0] * count


def look(begun: Run) -> dict:
    """The first update's completions and gradients, two updates' metrics, answers; a checkpoint stays."""
    seen: dict = {"sharded": [isinstance(p, DTensor) for p in begun.model.parameters()]}
    examples = begun.trainer.batch(0)
    if begun.config.algorithm == "hrpo":
        rollout = begun.trainer.roll_out(examples, key=0)
        seen["ids"], seen["mask"] = rollout.completion_ids, rollout.completion_mask
        advantages = torch.linspace(-1, 1, len(rollout), dtype=torch.float64)
        seen["stats"] = begun.trainer.gradients(rollout, advantages)
        seen["gradients"] = {
            name: full(p.grad).clone() for name, p in begun.model.named_parameters() if p.grad is not None
        }
        begun.trainer.forget_gradients()
    seen["metrics"] = []
    for _ in range(2):
        seen["metrics"].append(begun.train_step())
        begun.log(seen["metrics"][-1])
    seen["metrics"] = [{k: v for k, v in row.items() if "second" not in k} for row in seen["metrics"]]
    seen["evaluation"] = begun.evaluate("after")
    begun.save()
    return seen


def main(folder: Path, cases: list[str]) -> None:
    for case in cases:
        seen = look(Run(config_of(case, folder)))
        if is_main_process():
            torch.save(seen, folder / f"{case}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    leave(0)
