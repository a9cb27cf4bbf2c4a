"""Our side of a training step: the trainer of `hrpo train`, with the paper's LoRA, on problems of a file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hrpo.config import EvalConfig, ModelConfig, RolloutConfig, TaskConfig, TrainConfig
from hrpo.trainer import Trainer

from .harness import DTYPES


def trainer(folder: Path, model: str, dtype: str, problems: Sequence[str], **rollout: Any) -> Trainer:
    """Return a trainer that lives in `folder`; `rollout` is as in `RolloutConfig`."""
    for name, rows in (("train", problems), ("test", ["unused"])):
        lines = [json.dumps({"question": problem, "answer": "#### 0"}) + "\n" for problem in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    torch.manual_seed(0)
    return Trainer(
        TrainConfig(
            name="benchmark",
            folder=str(folder),
            updates=1000,
            model=ModelConfig(name=model, dtype=DTYPES[dtype]),  # type: ignore[arg-type]
            task=TaskConfig(name="gsm8k", path=str(folder / "train.jsonl")),
            rollout=RolloutConfig(**rollout),
            eval=EvalConfig(problems=0),
        )
    )
