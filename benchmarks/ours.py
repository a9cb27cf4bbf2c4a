"""Our side: the trainer of `hrpo train`, with the paper's LoRA, on problems of a file; a decode step's products."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from hrpo import HybridCausalLM, Rollout
from hrpo.config.schema import EvalConfig, ModelConfig, RolloutConfig, TaskConfig, TrainConfig
from hrpo.engine.cpu.blocks import CompiledBlock
from hrpo.engine.cpu.linear import PackedLinear
from hrpo.engine.cuda.blocks import DecodingBlock
from hrpo.engine.cuda.graphs import capture
from hrpo.engine.cuda.linear import JoinedLinear
from hrpo.engine.interface import DEFAULT
from hrpo.engine.select import accelerator_for
from hrpo.training.run import Run

from .harness import DTYPES, clock


def trainer(folder: Path, model: str, dtype: str, problems: Sequence[str], **rollout: Any) -> Run:
    """Return a trainer that lives in `folder`; `rollout` is as in `RolloutConfig`."""
    for name, rows in (("train", problems), ("test", ["unused"])):
        lines = [json.dumps({"question": problem, "answer": "#### 0"}) + "\n" for problem in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    torch.manual_seed(0)
    return Run(
        TrainConfig(
            name="benchmark",
            output_dir=str(folder),
            max_steps=1000,
            model=ModelConfig(name=model, dtype=DTYPES[dtype]),  # type: ignore[arg-type]
            task=TaskConfig(name="gsm8k", path=str(folder / "train.jsonl")),
            rollout=RolloutConfig(**rollout),
            eval=EvalConfig(problems=0),
        )
    )


def update(run: Run, rollout: Rollout) -> None:
    """Learn from a rollout, however far the weights have moved since it was made; its groups' advantages spread."""
    spread = torch.linspace(-1, 1, rollout.group_size, device=run.model.device)
    stats = run.trainer.gradients(rollout, spread.repeat(len(rollout) // rollout.group_size))
    run.trainer.optimizer_step(stats["loss"])


@torch.no_grad()
def decode_products(model: HybridCausalLM, rows: int, repeats: int = 20) -> float:
    """Return the seconds of a decode step's matrix products alone: the same layers and weights, in order."""
    products: dict[int, Any] = {}  # by what they are: layers that read the same tensor have one
    for module in accelerator_for(model.device).decoding(model, DEFAULT).inference_model().modules():
        if isinstance(module, CompiledBlock | DecodingBlock):
            found = [module.inward, module.outward, module.gate_and_up, module.down]
            products |= {id(product): (product.compute, product.in_features) for product in found}
        elif isinstance(module, PackedLinear | JoinedLinear):
            products[id(module.product)] = (module.product.compute, module.in_features)
        elif isinstance(module, nn.Linear):
            products[id(module)] = (module, module.in_features)
    inputs = {size: torch.randn(rows, size).to(model.embedding.weight) for _, size in products.values()}

    def run() -> Any:
        for multiply, size in products.values():
            out = multiply(inputs[size])
        return out

    if model.device.type == "cuda":
        run = capture(run, run, None)  # the time of the products, not that of asking for each
    times = []
    for _ in range(repeats):
        start = clock()
        run()
        times.append(clock() - start)
    return median(times)
