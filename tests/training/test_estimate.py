"""Memory from shapes: against a model's own numbers, and a measured run."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, LlamaConfig
from two_processes import in_processes

from hrpo.common.errors import StoppedError
from hrpo.config.schema import ModelConfig, RolloutConfig, TrainConfig
from hrpo.engine.checkpointing import fitting_tokens
from hrpo.models.names import local_folder
from hrpo.training.advice import told_out_of_memory
from hrpo.training.estimate import estimate_memory

LLAMA = LlamaConfig(
    vocab_size=1000, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4
)  # embedding and head 2 x 64,000; a block 4 x 4,096 + 3 x 10,240 + 2 x 64; norm 64
WEIGHTS = 2 * 64_000 + 3 * (4 * 4096 + 3 * 10_240 + 128) + 64
GATE = 2 * (64 * 64 + 64) + 64
CONFIG = TrainConfig(model=ModelConfig(lora_rank=8), rollout=RolloutConfig(4, 8, 100, max_prompt_tokens=50))


def estimated(config, lm_config, **where):
    """What a run with these settings needs."""
    return estimate_memory(
        lm_config,
        config.model,
        config.latent,
        config.rollout,
        reference=config.loss.beta != 0,
        max_tokens_per_microbatch=config.max_tokens_per_microbatch,
        gradient_checkpointing=config.gradient_checkpointing,
        sharding=config.sharding,
        **where,
    )


def test_parts_by_hand():
    parts = estimated(CONFIG, LLAMA, cpu=False)
    adapters = 3 * 8 * (4 * (64 + 64) + 3 * (64 + 160))
    assert parts["weights"] == 4 * WEIGHTS
    assert parts["adapters and gate"] == 4 * (adapters + GATE)
    assert parts["AdamW"] == 8 * (adapters + GATE)
    assert "reference" not in parts
    full = dataclasses.replace(
        CONFIG, model=ModelConfig(lora_rank=0), max_tokens_per_microbatch=30
    )  # decoding takes more
    parts = estimated(full, LLAMA, cpu=True)
    assert parts["reference"] == parts["weights"] == 4 * WEIGHTS
    assert parts["AdamW"] == 8 * (WEIGHTS + GATE)
    assert parts["keys and values"] == 2 * 3 * 64 * 4 * (4 * 8 * 100 + 4 * 50)
    half = dataclasses.replace(CONFIG, model=ModelConfig(dtype="bfloat16"))
    assert estimated(half, LLAMA, cpu=False)["weights"] == 2 * WEIGHTS


def test_what_saves_memory_saves_it():
    def total(**changes):
        return sum(estimated(dataclasses.replace(CONFIG, **changes), LLAMA, cpu=False).values())

    assert total(gradient_checkpointing=True) < total()
    assert (
        total(max_tokens_per_microbatch=200)
        < total(max_tokens_per_microbatch=2000)
        < total(max_tokens_per_microbatch=20_000)
    )
    assert total(max_tokens_per_microbatch=20_000) == total(max_tokens_per_microbatch=40_000)  # there are not as many


def test_processes_share_groups_and_shards_share_parameters():
    rolls = dataclasses.replace(CONFIG, max_tokens_per_microbatch=30)  # decoding takes more than the update
    alone = estimated(rolls, LLAMA, cpu=True)
    shared = estimated(rolls, LLAMA, cpu=True, processes=4)
    assert shared["keys and values"] * 4 == alone["keys and values"]
    assert shared["weights"] == alone["weights"]
    full = dataclasses.replace(CONFIG, model=ModelConfig(lora_rank=0), sharding="fsdp")
    alone, sharded = (estimated(full, LLAMA, cpu=True, processes=count) for count in (1, 4))
    assert "gathered weights" not in alone
    for name in ("weights", "reference", "AdamW", "gradients"):
        assert sharded[name] == alone[name] // 4
    root = 2 * 64_000 + 64 + GATE  # what belongs to no block
    running = root * (4 + 4) + 2 * (WEIGHTS + GATE - root) // 3 * 4
    assert sharded["gathered weights"] == running
    long = dataclasses.replace(CONFIG.rollout, max_new_tokens=400)
    rolls = dataclasses.replace(full, max_tokens_per_microbatch=30, rollout=long)
    assert estimated(rolls, LLAMA, cpu=True, processes=4)["gathered weights"] == 4 * (WEIGHTS + GATE)
    short = dataclasses.replace(
        full, max_tokens_per_microbatch=5, rollout=dataclasses.replace(CONFIG.rollout, max_new_tokens=8)
    )
    parts = estimated(short, LLAMA, cpu=True, processes=4)  # then a checkpoint takes most
    assert parts["whole AdamW"] == 8 * (WEIGHTS + GATE)
    assert parts.keys().isdisjoint({"keys and values", "activations"})
    assert "whole AdamW" not in estimated(short, LLAMA, cpu=False, processes=4)  # it is not on the accelerator


def test_blocks_are_recomputed_on_a_cpu_where_it_tells():
    def activations(recompute, cpu, **changes):
        config = dataclasses.replace(
            CONFIG, gradient_checkpointing=recompute, max_tokens_per_microbatch=10**6, **changes
        )
        return estimated(config, LLAMA, cpu=cpu)["activations"]

    many = {"rollout": RolloutConfig(80, 8, 100, max_prompt_tokens=50)}
    assert activations("auto", True) == activations(False, True)  # a few MB
    assert activations("auto", False, **many) == activations(False, False, **many)
    assert activations(True, True, **many) < activations("auto", True, **many) < activations(False, True, **many)


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--gradient_checkpointing=true"], ["--model.dtype=bfloat16"]], ids=" ".join)
def test_measured_on_smollm2(words, tmp_path):
    """Within a third of the peak of two real updates, which pack and fragment more than shapes tell."""
    if not local_folder("smollm2-135m").is_dir():
        pytest.skip("run `hrpo model smollm2-135m` first")
    code = """
import sys, torch
from hrpo.cli.main import main
from hrpo.common.memory import peak_memory
main(["train", *sys.argv[1:]])
print(peak_memory(torch.device("cpu")))
"""
    settings = ["--model.name=smollm2-135m", "--eval.problems=0", "--check.prompts=0", "--max_steps=2"]
    settings += ["--rollout.prompts_per_step=4", "--rollout.max_new_tokens=64", f"--output_dir={tmp_path}", *words]
    done = subprocess.run([sys.executable, "-c", code, *settings], capture_output=True, text=True, check=True)
    peak = int(done.stdout.splitlines()[-1])
    (folder,) = tmp_path.iterdir()
    longest = max(
        json.loads(line)["completions/mean_length"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    )
    config = TrainConfig(
        gradient_checkpointing=True if "--gradient_checkpointing=true" in words else "auto",
        model=ModelConfig("smollm2-135m", "bfloat16" if "--model.dtype=bfloat16" in words else "float32"),
        rollout=RolloutConfig(4, 8, round(longest), max_prompt_tokens=30),
    )
    lm_config = AutoConfig.from_pretrained(local_folder("smollm2-135m"))
    estimate = sum(estimated(config, lm_config, cpu=not torch.cuda.is_available()).values())
    assert 0.67 * peak < estimate < 1.33 * peak


@pytest.mark.slow
@pytest.mark.parametrize(("lora_rank", "sharding"), [(32, "none"), (32, "fsdp"), (0, "none"), (0, "fsdp")])
def test_measured_in_two_processes(lora_rank, sharding, tmp_path):
    """Within a fifth of the peak of each process."""
    if not local_folder("smollm2-135m").is_dir():
        pytest.skip("run `hrpo model smollm2-135m` first")
    words = ["--model.name=smollm2-135m", f"--model.lora_rank={lora_rank}", f"--sharding={sharding}"]
    words += ["--eval.problems=0", "--check.prompts=0", "--max_steps=2", "--rollout.prompts_per_step=4"]
    words += ["--rollout.max_new_tokens=64", f"--output_dir={tmp_path}", "--name=run"]
    script = tmp_path / "peak.py"
    script.write_text(
        "import os, sys, torch\n"
        "from hrpo.cli.main import run_command\n"
        "from hrpo.common.memory import peak_memory\n"
        "from hrpo.common.distributed import leave\n"
        "code = run_command(['train', *sys.argv[2:]])\n"
        "with open(sys.argv[1] + os.environ['RANK'], 'w') as file:\n"
        "    file.write(str(peak_memory(torch.device('cpu'))))\n"
        "leave(code)\n"
    )
    in_processes(2, [str(script), str(tmp_path / "peak-"), *words])
    peaks = [int((tmp_path / f"peak-{rank}").read_text()) for rank in range(2)]
    longest = max(
        json.loads(line)["completions/mean_length"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    )
    config = TrainConfig(
        sharding=sharding,
        model=ModelConfig("smollm2-135m", lora_rank=lora_rank),
        rollout=RolloutConfig(4, 8, round(longest), max_prompt_tokens=30),
    )
    lm_config = AutoConfig.from_pretrained(local_folder("smollm2-135m"))
    estimate = sum(estimated(config, lm_config, cpu=not torch.cuda.is_available(), processes=2).values())
    print(lora_rank, sharding, [f"{peak / 1e9:.2f}" for peak in peaks], f"{estimate / 1e9:.2f} GB")
    for peak in peaks:
        assert 0.8 * peak < estimate < 1.2 * peak


def test_a_micro_batch_fits_an_accelerator():
    assert fitting_tokens(100, 10**9) == 16384
    assert fitting_tokens(100_000, 10**9) == 8192
    assert fitting_tokens(10**9, 10**9) == 2048  # the fewest: blocks are computed anew then
    small = estimated(CONFIG, LLAMA, cpu=False, memory=30_000_000)
    large = estimated(CONFIG, LLAMA, cpu=False, memory=80 * 2**30)
    assert small["activations"] < large["activations"]


def test_no_memory_left_is_one_line():
    with (
        pytest.raises(StoppedError) as told,
        told_out_of_memory(ModelConfig(lora_rank=0, dtype="float32"), "auto"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
    assert str(told.value) == (
        "out of memory (CUDA out of memory): lower max_tokens_per_microbatch, set gradient_checkpointing to true, "
        "train adapters (model.lora_rank 32), set model.dtype to bfloat16, or lower rollout.prompts_per_step"
    )
