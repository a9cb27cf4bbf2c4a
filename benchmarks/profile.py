"""Where the time of a training step goes: kinds of operations in a rollout and in an update.

    python -m benchmarks.profile [--dtype fp32 | bf16]

4 prompts x 8 completions of 64 tokens, LoRA. The share "outside operations" is Python, dispatch and waiting.
"""

import contextlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from hrpo.engine.cpu.build import Compiled

from . import ours
from .harness import finish, parse, problems, show

KINDS = {  # the first that a name holds
    "compiled attend": "attention",
    "compiled candidates": "candidates",
    "compiled mix": "candidates",
    "compiled blocks": "steps of all blocks (compiled)",
    "compiled multiply": "matrix products with weights (compiled)",
    "compiled": "norms, rotary embeddings, SwiGLU (compiled)",
    "mkldnn::_linear_pointwise": "matrix products with weights (oneDNN)",
    "mkldnn::_reorder": "packing weights",
    "flash_attention": "attention",
    "bmm": "attention",
    "aten::mm": "other matrix products",
    "addmm": "other matrix products",
    "_softmax": "softmax",
    "topk": "top-k",
    "aten::exp_": "softmax",
    "copy_": "copies",
    "aten::cat": "copies",
    "index": "gather and scatter",
    "gather": "gather and scatter",
    "scatter": "gather and scatter",
    "embedding": "gather and scatter",
    "view": "views",
    "slice": "views",
    "as_strided": "views",
    "reshape": "views",
    "transpose": "views",
    "aten::t": "views",
    "empty": "allocation",
    "zeros": "allocation",
    "fill_": "allocation",
}


def main() -> None:
    """Profile and print."""
    options = parse(__doc__)
    details: dict[str, Any] = {}
    for dtype in options.dtypes:
        with tempfile.TemporaryDirectory() as folder:
            trainer = ours.trainer(
                Path(folder),
                options.model,
                dtype,
                problems(options.prompts)[:4],
                prompts_per_step=4,
                group_size=8,
                max_new_tokens=64,
            )
            examples = trainer.trainer.batch(0)
            rollout = trainer.trainer.roll_out(examples, key=0)
            ours.update(trainer, rollout)
            parts = {
                "rollout": kinds(lambda trainer=trainer, examples=examples: trainer.trainer.roll_out(examples, key=0)),
                "update": kinds(lambda trainer=trainer, rollout=rollout: ours.update(trainer, rollout)),
            }
        details[dtype] = parts
        for name, (wall, shares) in parts.items():
            show(
                f"{name}, {dtype}: {wall:.2f} s",
                ["", "seconds", "share"],
                [
                    (kind, f"{s:.2f}", f"{s / wall:.0%}")
                    for kind, s in sorted(shares.items(), key=lambda item: -item[1])
                ],
            )
    finish(options, {}, details)


def kinds(run: Callable[[], object]) -> tuple[float, dict[str, float]]:
    """Return the wall seconds of a run, and the seconds in each kind of operation."""
    start = time.perf_counter()
    run()
    wall = time.perf_counter() - start  # without the profiler, whose own cost would count as Python
    with profile(activities=[ProfilerActivity.CPU]) as found, told():
        run()
    seconds: dict[str, float] = defaultdict(float)
    for event in found.key_averages():
        kind = next((kind for part, kind in KINDS.items() if part in event.key), "elementwise and other")
        seconds[kind] += event.self_cpu_time_total / 1e6
    seconds["outside operations"] = max(0.0, wall - sum(seconds.values()))
    return wall, dict(seconds)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Within it, the profiler learns of compiled code that is looked up, too."""
    find = Compiled.find

    def tell(library: Compiled, name: str, tensor: torch.Tensor) -> Callable[..., None] | None:
        function = find(library, name, tensor)

        def run(*arguments: Any) -> None:
            with record_function(f"compiled {name}"):
                function(*arguments)

        return function and run

    Compiled.find = tell
    try:
        yield
    finally:
        Compiled.find = find


if __name__ == "__main__":
    main()
