"""What is tried on the pretended GPU, in a process of its own: `cases.py NAME ...` prints what came out as JSON."""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import device  # before torch
import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "engine")]
from engines import adapted
from models import IDS, SHAPE, random_lm, random_model
from peft import LoraConfig, get_peft_model
from test_scores import with_key_biases
from transformers import LlamaConfig

from hrpo import HybridCausalLM, HybridGate, generate, hrpo_loss, replay
from hrpo.config.schema import (
    CheckConfig,
    EvalConfig,
    LatentConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    TrainConfig,
)
from hrpo.engine import like_llama
from hrpo.engine.cuda import graphs
from hrpo.engine.interface import DEFAULT
from hrpo.model import HybridSettings
from hrpo.training import run as run_module

like_llama.FAILURES_RAISE = True
PROMPTS = [[7, 8, 9, 10, 11], [12, 13, 14], [20, 21, 22, 23]]
SAMPLER = {"group_size": 4, "max_new_tokens": 12, "temperature": 0.8, "top_k": 20, "delimiter": [3, 4], "seed": 3}
EAGER = dataclasses.replace(DEFAULT, static_shapes=False)


def learnt(model, options, mode="hybrid", trains=True, **sampler):
    """A rollout, its replay and its gradient: what can be compared."""
    rollout = generate(model, PROMPTS, options=options, latent_mode=mode, **{**SAMPLER, **sampler})
    logprobs, reference = replay(model, rollout, with_reference=True)
    advantages = torch.linspace(-1, 1, len(rollout), device=model.device)
    loss, _ = hrpo_loss(logprobs, reference, advantages, rollout.completion_mask, beta=0.1)
    loss.backward()
    norm = sum(p.grad.double().norm() ** 2 for p in model.parameters() if p.grad is not None).item() ** 0.5
    gaps = (logprobs - rollout.sample_logprobs)[rollout.completion_mask.bool()].abs()
    return {
        "ids": rollout.completion_ids.tolist(),
        "loss": loss.item(),
        "norm": norm,
        "gap": gaps.max().item(),
        "mean_gap": gaps.mean().item(),
    }


def both(make: Callable[[], HybridCausalLM], options=DEFAULT, **arguments) -> dict[str, Any]:
    """The same on the CPU and on the pretended GPU."""
    torch.manual_seed(0)
    model = make()
    model.keep_reference()
    on_cpu = learnt(model, DEFAULT, **arguments)
    model.zero_grad()
    with device.PretendedGPU() as gpu:
        there = learnt(device.to_gpu(model), options, **arguments)
    return {"cpu": on_cpu, "gpu": there, "masked_and_grouped": sum(mask and group for mask, group in gpu.attention)}


def llama(layers: int, dtype=torch.bfloat16, *, lora: bool = True) -> HybridCausalLM:
    """A model of Llama's layout with heads as wide as FlashAttention wants them."""
    shape = {**SHAPE, **IDS, "hidden_size": 64, "head_dim": 16, "num_hidden_layers": layers, "initializer_range": 0.1}
    lm, gate = random_lm(LlamaConfig(**shape), torch.float32), HybridGate(64, r_min=0.3, r_max=0.8)
    if not lora:
        return HybridCausalLM(lm, gate, HybridSettings("memory"), autocast=dtype)
    lm = get_peft_model(lm.to(dtype), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_" in name:
                parameter.data = 0.1 * torch.randn_like(parameter, dtype=torch.float32)
    return HybridCausalLM(lm, gate, HybridSettings("memory"))


def step(layers: int, *, lora: bool) -> list[int]:
    """Kernels, waits and copies of a decode step, as it is captured."""
    steps = []

    def noted(_, compute, state, key):
        before = gpu.counts()
        state = compute(state)
        steps.append([now - then for now, then in zip(gpu.counts(), before, strict=True)])
        return state

    run, graphs.CapturedSteps.run = graphs.CapturedSteps.run, noted
    try:
        with device.PretendedGPU() as gpu:
            generate(device.to_gpu(llama(layers, lora=lora)), PROMPTS, **{**SAMPLER, "eos_token_id": []})
    finally:
        graphs.CapturedSteps.run = run
    assert all(other == steps[0] for other in steps), steps
    return steps[0]


def steps(*, lora: bool) -> dict[str, Any]:
    """The same for models of two and of four layers."""
    two, four = step(2, lora=lora), step(4, lora=lora)
    return {"layer": (four[0] - two[0]) / 2, "waits": four[1], "copies": four[2]}


def micro_batch(*, lora: bool) -> dict[str, Any]:
    """What a micro-batch waits for and copies: policy and reference, loss, backward."""
    with device.PretendedGPU() as gpu:
        model = device.to_gpu(llama(2, lora=lora))
        model.keep_reference()
        rollout = generate(model, PROMPTS, **SAMPLER)
        advantages = torch.linspace(-1, 1, len(rollout), device="cuda")
        gpu.waits.clear(), gpu.copies.clear()
        part = rollout.select(0, len(rollout))
        logprobs, reference = replay(model, part, with_reference=True)
        loss, _ = hrpo_loss(logprobs, reference, advantages, part.completion_mask, beta=0.1)
        loss.backward()
    return {"waits": dict(gpu.waits), "copies": dict(gpu.copies)}


def key_biases(size: int) -> dict[str, float]:
    """How far a replay in bfloat16 is from what was sampled."""
    model = with_key_biases(size)
    with device.PretendedGPU(), torch.no_grad():
        device.to_gpu(model)
        rollout = generate(model, PROMPTS, **{**SAMPLER, "group_size": 8})
        logprobs, _ = replay(model, rollout)
        gaps = (logprobs - rollout.sample_logprobs)[rollout.completion_mask.bool()].abs()
        return {"mean_gap": gaps.mean().item()}


def training(**settings) -> dict[str, Any]:
    """Two updates, and the second again after a resume from the first: the same losses."""
    to = nn.Module.to
    run_module.join_processes = lambda: device.GPU
    nn.Module.to = lambda module, where=None, *rest, **options: (
        device.to_gpu(module) if device.on_gpu_or_nothing(where) else to(module, where, *rest, **options)
    )
    with tempfile.TemporaryDirectory() as folder, device.PretendedGPU() as gpu:
        config = TrainConfig(
            **{
                "name": "run",
                "output_dir": folder,
                "max_steps": 2,
                "save_every": 1,
                "latent": LatentConfig(r_min=0.9),
                "rollout": RolloutConfig(prompts_per_step=2, group_size=3, max_new_tokens=12),
                "optimizer": OptimizerConfig(lr=1e-3, gate_lr=1e-3, lambda_lr=1e-2),
                "check": CheckConfig(prompts=0),
                "eval": EvalConfig(problems=0),
                **settings,
            }
        )
        run = run_module.Run(config)
        first = run.train_step()
        run.save()
        second = run.train_step()
        run.lock.release()
        again = run_module.Run(config, resume=True)
        resumed = again.train_step()
        again.lock.release()
    losses = [metrics["loss"] for metrics in (first, second, resumed)]
    skipped = [metrics["skipped"] for metrics in (first, second, resumed)]
    masked = sum(mask and group for mask, group in gpu.attention)
    return {"losses": losses, "skipped": skipped, "masked_and_grouped": masked, "device": run.model.device.type}


LORA = ModelConfig(lora_rank=4, dtype="float32")
CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "step_lora": lambda: steps(lora=True),
    "step_full": lambda: steps(lora=False),
    "micro_batch_lora": lambda: micro_batch(lora=True),
    "micro_batch_full": lambda: micro_batch(lora=False),
    "bfloat16_lora": lambda: both(lambda: llama(3)),
    "bfloat16_full": lambda: both(lambda: llama(3, lora=False)),
    "key_biases_30": lambda: key_biases(30),
    "key_biases_100": lambda: key_biases(100),
    **{f"lora_{arch}": lambda arch=arch: both(lambda: adapted(arch)) for arch in ("llama", "qwen2", "qwen3")},
    **{f"lora_{arch}": lambda arch=arch: both(lambda: adapted(arch)) for arch in ("gemma3", "mistral", "gpt2")},
    "eager_llama": lambda: both(lambda: adapted("llama"), EAGER),
    "full_llama": lambda: both(lambda: random_model("llama")),
    "all_candidates": lambda: both(lambda: adapted("llama"), top_k=0),
    "greedy": lambda: both(lambda: adapted("llama"), greedy=True),
    **{
        f"mode_{mode}": lambda mode=mode: both(lambda: random_model("llama", latent_mode=mode), mode=mode)
        for mode in ("discrete", "interpolation", "hidden", "soft_thinking", "mixture_of_inputs", "swapped", "noise")
    },
    **{
        f"training_{name}": lambda name=name: training(algorithm=name, model=LORA)
        for name in ("hrpo", "rloo", "dapo", "sft")
    },
    "training_full": lambda: training(model=ModelConfig(lora_rank=0)),
    "training_bfloat16": lambda: training(model=ModelConfig(lora_rank=4, dtype="bfloat16")),
    "training_autocast": lambda: training(model=ModelConfig(lora_rank=0, dtype="bfloat16")),
    "training_recomputing": lambda: training(model=LORA, gradient_checkpointing=True),
}

if __name__ == "__main__":
    print(json.dumps({name: CASES[name]() for name in sys.argv[1:]}))
