"""What a bare GPU machine can tell within ten minutes: laws, decode steps, updates, whole steps, a profile.

    python -m benchmarks.gpu [--out FOLDER] [--parts facts laws ...] [--pretend]

It needs torch, transformers, peft and accelerate; no network, and no model: random weights are made on the card, of the
shape of Qwen2.5-1.5B and 3B. Each part runs in a process of its own until its deadline, and prints a line of JSON after
each measurement, which `--out` keeps in gpu.jsonl. `--pretend` goes through all of it on a machine without a GPU, with
toy models on the pretended device of the tests: its times mean nothing.
"""

import argparse
import dataclasses
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
PRETEND = "HRPO_PRETENDED_GPU"  # in the environment of a part
if os.environ.get(PRETEND):
    sys.path.insert(0, str(ROOT / "tests" / "pretended_gpu"))
    import device  # before torch

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen2Config

from hrpo import HybridCausalLM, HybridGate, Rollout, generate, hrpo_loss, replay
from hrpo.algorithms import ALGORITHMS
from hrpo.config.schema import LatentConfig, LossConfig, ModelConfig, RolloutConfig
from hrpo.data import SamplingParams
from hrpo.engine.interface import DEFAULT, EngineOptions
from hrpo.engines import HybridEngine
from hrpo.latent import mode_of
from hrpo.model import HybridSettings
from hrpo.models.names import resolve
from hrpo.tasks import Example, Task
from hrpo.trainer import Settings, Trainer
from hrpo.training.estimate import estimate_memory

EAGER = dataclasses.replace(DEFAULT, static_shapes=False)
WITH_PEFT = dataclasses.replace(EAGER, accelerator="torch")  # the model's own operations


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large it all is.

    small, large: shapes of models; prompts x group completions of prompts of `prompt` tokens.
    steps: decode steps that are timed, after half as many; lengths: mean and most tokens of a completion in updates.
    """

    small: dict[str, int]
    large: dict[str, int]
    prompts: int = 8
    group: int = 8
    prompt: int = 150
    steps: int = 64
    lengths: tuple[int, int] = (220, 512)
    matrix: int = 8192


QWEN = {"vocab_size": 151936, "num_key_value_heads": 2}
REAL = Sizes(
    small={**QWEN, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    large={**QWEN, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16},
)
LITTLE = {"vocab_size": 512, "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48}
TOY = Sizes(
    small={**LITTLE, "hidden_size": 32, "num_attention_heads": 4},
    large={**LITTLE, "hidden_size": 64, "num_attention_heads": 4},
    prompts=2,
    group=3,
    prompt=6,
    steps=4,
    lengths=(3, 6),
    matrix=64,
)
SIZES = TOY if os.environ.get(PRETEND) else REAL


def tell(part: str, **numbers: Any) -> None:
    """Print a line of JSON."""
    print(json.dumps({"part": part, **numbers}), flush=True)


def clock() -> float:
    """Return the time in seconds, after all that the GPU has been asked to do."""
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(function: Callable[[], Any], repeats: int = 5) -> float:
    """Return the median time of a call, after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        start = clock()
        function()
        times.append(clock() - start)
    return median(times)


def peak() -> float:
    """Return the most memory that was held since the last call, in GB."""
    most = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return round(most, 2)


def made(
    shape: dict[str, int], dtype: torch.dtype = torch.bfloat16, *, lora: bool = True, key_biases: float = 0
) -> HybridCausalLM:
    """Return a model of random weights, made on the card, with adapters that do something."""
    torch.manual_seed(0)
    config = Qwen2Config(**shape, tie_word_embeddings=True, max_position_embeddings=32768, eos_token_id=1)
    if os.environ.get(PRETEND):
        lm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    else:
        with torch.device("cuda"):
            lm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    lm.generation_config = GenerationConfig(eos_token_id=1)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if name.endswith("k_proj.bias"):
                parameter.normal_(std=key_biases)
    if lora:
        lm = get_peft_model(lm, LoraConfig(task_type="CAUSAL_LM", r=32, lora_alpha=64, target_modules="all-linear"))
        with torch.no_grad():
            for name, parameter in lm.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.01)
    tokenizer = AutoTokenizer.from_pretrained(resolve("tiny"))
    gate = HybridGate(shape["hidden_size"])
    if dtype == torch.float64:
        gate = gate.double()
    model = HybridCausalLM(lm.eval(), gate, HybridSettings("random", dtype="bfloat16"), tokenizer)
    return device.to_gpu(model) if os.environ.get(PRETEND) else model.cuda()


def prompts(length: int, count: int, vocabulary: int) -> list[list[int]]:
    """Return prompts of about a length."""
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(max(2, length * 9 // 10), length + 1, (count,), generator=generator).tolist()
    return [torch.randint(2, vocabulary, (size,), generator=generator).tolist() for size in sizes]


def rolled_out(model: HybridCausalLM, tokens: int, options: EngineOptions = DEFAULT, **more: Any) -> Rollout:
    """Return completions that are all as long as that."""
    texts = prompts(SIZES.prompt, SIZES.prompts, model.vocab_size)
    more = {"group_size": SIZES.group, "eos_token_id": [], "delimiter": [7, 8, 9], **more}
    return generate(model, texts, max_new_tokens=tokens, options=options, **more)


def facts() -> None:
    """The card, versions, and how fast it copies and multiplies."""
    card = torch.cuda.get_device_properties(0)
    versions = {name: __import__(name).__version__ for name in ("torch", "transformers", "peft", "accelerate")}
    free, total = torch.cuda.mem_get_info()
    tell(
        "facts",
        card=card.name,
        total_gb=total / 1e9,
        free_gb=free / 1e9,
        cudnn=torch.backends.cudnn.version(),
        **versions,
    )
    x = torch.randn(SIZES.matrix, SIZES.matrix, device="cuda").to(torch.bfloat16)
    tell("facts", tflops=2 * SIZES.matrix**3 / seconds(lambda: x @ x) / 1e12)
    y = torch.empty(SIZES.matrix**2, dtype=torch.int64, device="cuda")
    z = torch.empty_like(y)
    tell("facts", copy_tb_per_s=2 * y.numel() * 8 / seconds(lambda: z.copy_(y)) / 1e12)


def laws() -> None:
    """Replay is rollout, a captured step is an eager one, and large key biases do no harm."""
    shape = {**LITTLE, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
    for dtype, limit in ((torch.float64, 1e-8), (torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        model = made(shape, dtype)
        rollouts = {name: rolled_out(model, 24, options) for name, options in (("graph", DEFAULT), ("eager", EAGER))}
        for name, rollout in rollouts.items():
            logprobs, _ = replay(model, rollout)
            gaps = (logprobs - rollout.sample_logprobs).abs()
            gap = (gaps.mean() if dtype == torch.bfloat16 else gaps.max()).item()
            tell("laws", law=f"replay of {name}, {dtype}", gap=gap, limit=limit, holds=gap < limit)
        if dtype == torch.float64:
            same = bool((rollouts["graph"].completion_ids == rollouts["eager"].completion_ids).all())
            tell("laws", law="graph = eager", holds=same)
    shape = {**shape, "hidden_size": 256}
    for size in (30, 100):
        model = made(shape, key_biases=size)
        rollout = rolled_out(model, 24)
        logprobs, _ = replay(model, rollout)
        gap = (logprobs - rollout.sample_logprobs).abs().mean().item()
        tell("laws", law=f"key biases of {size}", gap=gap, limit=0.2, holds=gap < 0.2, peak_gb=peak())


def decode() -> None:
    """Milliseconds of a decode step, by the difference of a long rollout and a short one."""
    for name, shape in (("1.5B", SIZES.small), ("3B", SIZES.large)):
        for lora in (True, False):
            model = made(shape, lora=lora)
            ways = {"graph": DEFAULT, "eager": EAGER, "model's own": WITH_PEFT}
            for mode in ("hybrid", "discrete"):
                for way, options in ways.items() if name == "1.5B" else [("graph", DEFAULT)]:
                    ms = 1000 * step_seconds(model, options, mode)
                    tell("decode", model=name, lora=lora, way=way, mode=mode, ms_a_step=ms, peak_gb=peak())
            del model
            free()


def step_seconds(model: HybridCausalLM, options: EngineOptions, mode: str) -> float:
    """Return the time of one decode step."""
    short, long = SIZES.steps // 2, SIZES.steps // 2 + SIZES.steps
    times = []
    for tokens in (short, long):
        times.append(seconds(lambda tokens=tokens: rolled_out(model, tokens, options, latent_mode=mode), 2))
    return (times[1] - times[0]) / SIZES.steps


def free() -> None:
    """Hand back what nobody holds."""
    gc.collect()
    torch.cuda.empty_cache()


def update() -> None:
    """Seconds of forward, loss and backward on given lengths, at first and again."""
    for name, shape in (("1.5B", SIZES.small), ("3B", SIZES.large)):
        model = made(shape)
        rollout = rolled_out(model, SIZES.lengths[1])
        for lengths in ("mean", "all"):
            for turn in ("first", "again", "again"):
                part = rollout if lengths == "all" else shortened(rollout, turn)
                for recompute in (0.0, 1.0) if turn == "first" else (0.0,):
                    start = clock()
                    learn(model, part, recompute)
                    numbers = {"seconds": clock() - start, "peak_gb": peak()}
                    tell("update", model=name, lengths=lengths, turn=turn, recompute=recompute, **numbers)
        del model, rollout
        free()


def shortened(rollout: Rollout, seed: str) -> Rollout:
    """Return a rollout whose completions end at other places, about the mean length."""
    mean, most = SIZES.lengths
    generator = torch.Generator().manual_seed(len(seed))
    lengths = torch.randint(max(1, mean // 2), min(most, mean * 3 // 2) + 1, (len(rollout), 1), generator=generator)
    mask = torch.arange(rollout.completion_ids.shape[1]) < lengths
    return dataclasses.replace(rollout, completion_mask=mask.long().to(rollout.completion_ids.device))


def learn(model: HybridCausalLM, rollout: Rollout, recompute: float) -> None:
    """Go forward and back through a rollout in micro-batches."""
    advantages = torch.linspace(-1, 1, len(rollout), device=model.device)
    for first, last in rollout.micro_batches(8192):
        part = rollout.select(first, last)
        logprobs, reference = replay(model, part, with_reference=True, recompute=recompute)
        loss, _ = hrpo_loss(logprobs, reference, advantages[first:last], part.completion_mask, beta=0.005)
        loss.backward()
    model.zero_grad()


def step() -> None:
    """Whole steps of training, with a reward at random; the estimate of their memory beside what they took."""
    model = made(SIZES.small)
    trainer = trainer_of(model)
    for number in range(3):
        torch.cuda.reset_peak_memory_stats()
        start = clock()
        done = trainer.step()
        numbers = {"seconds": clock() - start, "rollout_seconds": done.sample_seconds, "peak_gb": peak()}
        tell(
            "step",
            step=number,
            tokens=int(done.rollout.completion_mask.sum()),
            skipped=done.stats["skipped"],
            **numbers,
        )
    estimate = estimate_memory(
        model.bare_lm.config,
        ModelConfig(dtype="bfloat16"),
        LatentConfig(),
        RolloutConfig(SIZES.prompts, SIZES.group, SIZES.lengths[1], max_prompt_tokens=SIZES.prompt),
        reference=True,
        max_tokens_per_microbatch=0,
        gradient_checkpointing="auto",
        cpu=False,
        memory=torch.cuda.mem_get_info()[1],
    )
    tell("step", estimated_gb=sum(estimate.values()) / 1e9, of={name: size / 1e9 for name, size in estimate.items()})


def trainer_of(model: HybridCausalLM) -> Trainer:
    """Return what trains the model on questions that mean nothing."""
    words = " ".join(str(number) for number in range(SIZES.prompt // 3))
    task = Task(
        name="random",
        kind=None,
        train=[Example(f"{number} {words}", "") for number in range(64)],
        test=[],
        reward=lambda completions, **_: [float(hash(text) % 2) for text in completions],
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("gate."))
    groups = [{"params": [p for p in model.parameters() if p.requires_grad], "peak_lr": 1e-6}]
    return Trainer(
        model,
        task,
        ALGORITHMS["hrpo"].of(LossConfig()),
        torch.optim.AdamW(groups),
        HybridEngine(),
        Settings(
            problems=SIZES.prompts,
            group_size=SIZES.group,
            sampling=SamplingParams(0.5, 50, SIZES.lengths[1]),
            mode=mode_of("hybrid"),
            exact=False,
        ),
        write=lambda examples: None,  # type: ignore[arg-type,return-value]
    )


def profile() -> None:
    """The kernels that take most of four decode steps, and of an update."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    model = made(SIZES.small)
    rollout = rolled_out(model, SIZES.lengths[0])
    for name, run in (("rollout", lambda: rolled_out(model, 8)), ("update", lambda: learn(model, rollout, 0.0))):
        run()
        activities = (
            [ProfilerActivity.CPU] if os.environ.get(PRETEND) else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        )
        with profiler(activities=activities) as found:
            run()
            torch.cuda.synchronize()
        events = sorted(found.key_averages(), key=lambda event: -event.self_device_time_total)[:20]
        top = [[event.key, event.count, event.self_device_time_total / 1000] for event in events]
        tell("profile", of=name, kernels_ms=top)


PARTS: dict[str, tuple[Callable[[], None], int]] = {  # and their deadlines, seconds
    "facts": (facts, 30),
    "laws": (laws, 90),
    "decode": (decode, 150),
    "update": (update, 130),
    "step": (step, 100),
    "profile": (profile, 60),
}


def main() -> int:
    """Run the parts, one process after the other; a part that fails or takes too long keeps none from running."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep the lines of JSON in this folder")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--pretend", action="store_true", help="toy sizes on a pretended GPU; needs g++")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_part(options.child)
        return 0
    failed = []
    for name in options.parts:
        code, lines = in_process(name, pretend=options.pretend)
        if code:
            failed.append(name)
            lines.append(json.dumps({"part": name, "failed": code}))
            print(lines[-1], flush=True)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            with (options.out / "gpu.jsonl").open("a") as file:
                file.writelines(line + "\n" for line in lines)
    return 1 if failed else 0


def in_process(name: str, *, pretend: bool) -> tuple[str, list[str]]:
    """Run a part; return why it failed, empty where it has not, and its lines, which are printed as they come."""
    environment = {**os.environ, **({PRETEND: "1"} if pretend else {})}
    command = [sys.executable, "-m", "benchmarks.gpu", "--child", name]
    deadline = PARTS[name][1] * (10 if pretend else 1)
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    timer = threading.Timer(deadline, child.kill)
    timer.start()
    lines = []
    for line in child.stdout or ():
        print(line, end="", flush=True)
        lines.append(line.rstrip("\n"))
    code = child.wait()
    timer.cancel()
    return ("" if not code else f"exit code {code}" if code > 0 else f"ended after {deadline} s, or by a signal"), lines


def run_part(name: str) -> None:
    """Run a part here."""
    if os.environ.get(PRETEND):
        with device.PretendedGPU():
            PARTS[name][0]()
        return
    if not torch.cuda.is_available():
        sys.exit("there is no GPU here; --pretend goes through it without one")
    PARTS[name][0]()


if __name__ == "__main__":
    sys.exit(main())
