"""The training loop on the embedded model: run folder, resuming, modes, and what it refuses."""

import ctypes
import dataclasses
import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hrpo import HybridCausalLM, generate
from hrpo.common.errors import InputError, StoppedError
from hrpo.config.schema import (
    CheckConfig,
    EvalConfig,
    LatentConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    SftConfig,
    TaskConfig,
    TrainConfig,
)
from hrpo.engine import checkpointing
from hrpo.storage.run_dir import newest_checkpoint
from hrpo.trainer import Trainer, learning_rate_factor
from hrpo.training.run import Run
from hrpo.training.train import train


@pytest.fixture
def config(tmp_path):
    return TrainConfig(
        name="test",
        output_dir=str(tmp_path),
        max_steps=4,
        seed=3,
        save_every=2,
        model=ModelConfig(lora_rank=0),
        latent=LatentConfig(r_min=0.9),
        rollout=RolloutConfig(prompts_per_step=3, group_size=4, max_new_tokens=48),
        optimizer=OptimizerConfig(lr=1e-4, gate_lr=1e-3, lambda_lr=1e-2),
        eval=EvalConfig(problems=6, batch=4),
    )


def tensors(checkpoint):
    return {
        f"{path.name}/{name}": value
        for path in sorted(checkpoint.glob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def deterministic(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


@pytest.mark.parametrize(("lora_rank", "beta"), [pytest.param(0, 0.01, marks=pytest.mark.slow), (4, 0.01), (0, 0.0)])
def test_resumed_equals_never_stopped(config, tmp_path, lora_rank, beta):
    config = dataclasses.replace(
        config, model=ModelConfig(lora_rank=lora_rank), loss=LossConfig(beta=beta), eval=EvalConfig(problems=0)
    )
    whole = Run(config)
    while whole.step < 4:
        whole.log(whole.train_step())
    whole.save()
    expected = tensors(newest_checkpoint(whole.folder))

    stopped = Run(dataclasses.replace(config, name="stopped"))
    for _ in range(3):
        stopped.log(stopped.train_step())
        if stopped.step == 2:
            stopped.save()
    del stopped  # the third update is lost

    resumed = Run(dataclasses.replace(config, name="stopped"), resume=True)
    assert resumed.step == 2
    while resumed.step < 4:
        resumed.log(resumed.train_step())
    resumed.save()
    actual = tensors(newest_checkpoint(resumed.folder))
    assert actual.keys() == expected.keys()
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert deterministic(resumed.folder / name) == deterministic(whole.folder / name)


def test_run_folder(config, tmp_path):
    evaluation = train(config)
    folder = tmp_path / "test"
    assert {path.name for path in folder.iterdir()} == {
        "answers-after-greedy.jsonl",
        "answers-after-sampled.jsonl",
        "answers-before-greedy.jsonl",
        "answers-before-sampled.jsonl",
        "check.json",
        "checkpoint-2",
        "checkpoint-4",
        "config.yaml",
        "curves.png",
        "evaluation.json",
        "metrics.jsonl",
        "provenance.json",
        "report.md",
        "samples.jsonl",
    }
    assert json.loads((folder / "evaluation.json").read_text()) == json.loads(json.dumps(evaluation))
    assert yaml.safe_load((folder / "config.yaml").read_text()) == dataclasses.asdict(config)
    metrics = deterministic(folder / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-4 for row in metrics)
    assert all(0 < row["hidden_ratio"] < 0.5 for row in metrics)
    report = (folder / "report.md").read_text()
    assert "![curves](curves.png)" in report
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="is a run already"):
        Run(config)
    with pytest.raises(InputError, match="no run"):
        Run(dataclasses.replace(config, name="mistyped"), resume=True)
    assert Run(dataclasses.replace(config, max_tokens_per_microbatch=50), resume=True).step == 4
    with pytest.raises(InputError, match="seed"):
        Run(dataclasses.replace(config, seed=4), resume=True)

    model = HybridCausalLM.from_pretrained(newest_checkpoint(folder))
    settings = model.settings
    assert (settings.base_model, settings.latent_mode, settings.step) == ("tiny", "hybrid", 4)
    assert (settings.temperature, settings.top_k, settings.max_new_tokens) == (0.5, 50, 48)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_run_starts_from_another(config, tmp_path, lora_rank):
    first = Run(config)
    first.train_step()
    first.save()
    further = dataclasses.replace(config, name="further", model=ModelConfig(str(first.folder), lora_rank=lora_rank))
    second = Run(further)
    assert second.step == 0
    assert second.model.settings.base_model == str(newest_checkpoint(first.folder))
    assert torch.equal(second.model.gate.Lambda, first.model.gate.Lambda)
    assert torch.equal(second.model.embedding.weight, first.model.embedding.weight)
    second.train_step()
    second.save()
    resumed = Run(further, resume=True).model
    ids = torch.tensor([[2, 3, 4]])
    with torch.no_grad():
        expected, _ = first.model(first.model.embed(ids), torch.ones_like(ids))
        for reference in (True, False):
            actual, _ = resumed(resumed.embed(ids, reference=reference), torch.ones_like(ids), reference=reference)
            assert torch.equal(actual, expected) == reference
    if lora_rank:
        with pytest.raises(InputError, match="hrpo export"):
            Run(dataclasses.replace(config, name="third", model=ModelConfig(str(second.folder))))


def test_a_run_does_not_start_from_one_without_checkpoint(config, tmp_path):
    Run(config)
    with pytest.raises(InputError, match=r"model.name: the run .*test has no checkpoint"):
        Run(dataclasses.replace(config, name="b", model=ModelConfig(str(tmp_path / "test"))))


def test_discrete_mode_leaves_the_gate_alone(config):
    begun = Run(dataclasses.replace(config, latent=LatentConfig(mode="discrete")))
    before = {name: value.clone() for name, value in begun.model.gate.state_dict().items()}
    metrics = begun.train_step()
    assert metrics["hidden_ratio"] == 0
    assert metrics["kl"] == 0  # the first rollout is the reference's own
    for name, value in begun.model.gate.state_dict().items():
        assert torch.equal(value, before[name])
    begun.save()
    loaded = HybridCausalLM.from_pretrained(newest_checkpoint(begun.folder))
    assert loaded.settings.latent_mode == "discrete"


@pytest.mark.parametrize("mode", ["interpolation", "hidden"])
def test_latents_alone_train_without_the_gate(config, mode):
    begun = Run(dataclasses.replace(config, latent=LatentConfig(mode=mode)))
    gate = {name: value.clone() for name, value in begun.model.gate.state_dict().items()}
    weights = begun.model.embedding.weight.detach().clone()
    metrics = begun.train_step()
    assert metrics["hidden_ratio"] == 1
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-4
    assert metrics["kl"] > 0  # the reference reads tokens
    for name, value in begun.model.gate.state_dict().items():
        assert torch.equal(value, gate[name])
    assert not torch.equal(begun.model.embedding.weight, weights)
    begun.save()
    assert HybridCausalLM.from_pretrained(newest_checkpoint(begun.folder)).settings.latent_mode == mode


def test_recomputing_some_blocks_changes_nothing(config, monkeypatch):
    """To the bit: what is computed anew is the same."""

    def step(setting):
        name = f"{setting}-{checkpointing.LEAST_KEPT}"
        begun = Run(dataclasses.replace(config, name=name, gradient_checkpointing=setting))
        metrics = begun.train_step()
        rollout = begun.trainer.roll_out(begun.trainer.batch(0), key=0)
        return metrics["grad_norm"], begun.trainer.recompute(rollout)

    assert step("auto")[1] == 0  # so little is kept in any case
    monkeypatch.setattr(checkpointing, "LEAST_KEPT", 0)
    auto, share = step("auto")
    assert 0 < share < 1
    assert step(False) == (auto, 0)
    assert step(True) == (auto, 1)


def test_another_latent_is_mixed_in(config):
    latent = LatentConfig(mixed_in="hidden", r_min=0.9)
    begun = Run(dataclasses.replace(config, latent=latent))
    before = begun.model.gate.Lambda.clone()
    metrics = begun.train_step()
    assert 0 < metrics["hidden_ratio"] < 0.5
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-4
    assert not torch.equal(begun.model.gate.Lambda, before)
    begun.save()
    loaded = HybridCausalLM.from_pretrained(newest_checkpoint(begun.folder))
    assert (loaded.settings.latent_mode, loaded.settings.mixed_in) == ("hybrid", "hidden")
    rollout = generate(loaded, [[2, 3, 4]], max_new_tokens=4)
    assert rollout.mode.source == "hidden"
    assert rollout.mode.gated


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_bfloat16(config, lora_rank):
    begun = Run(dataclasses.replace(config, model=ModelConfig(lora_rank=lora_rank, dtype="bfloat16")))
    trained = [p for group in begun.trainer.optimizer.param_groups for p in group["params"]]
    assert {p.dtype for p in trained} == {torch.float32}
    before = [[p.clone() for p in group["params"]] for group in begun.trainer.optimizer.param_groups]
    metrics = begun.train_step()
    assert metrics["sampling/sampling_logp_difference/max"] < 0.2
    for group, old in zip(
        begun.trainer.optimizer.param_groups, before, strict=True
    ):  # weights or adapters, gate, Lambda
        assert any(not torch.equal(p, q) for p, q in zip(group["params"], old, strict=True))
    begun.save()
    assert HybridCausalLM.from_pretrained(newest_checkpoint(begun.folder)).settings.dtype == "bfloat16"


def test_micro_batches_and_masking(config):
    """The size of micro-batches changes the update by rounding alone; so an update can be split at will."""
    norms = []
    for budget in (10_000, 100):
        config = dataclasses.replace(config, name=f"budget-{budget}", max_tokens_per_microbatch=budget)
        norms.append(Run(config).train_step()["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    masked = dataclasses.replace(
        config, name="masked", rollout=RolloutConfig(3, 4, max_new_tokens=1), loss=LossConfig(0.0, mask_truncated=True)
    )
    metrics = Run(masked).train_step()
    assert metrics["completions/clipped_ratio"] == 1
    assert metrics["grad_norm"] == 0


def state(begun):
    optimizer = begun.trainer.optimizer.state_dict()["state"]
    return [
        *(p.detach().clone() for p in begun.model.parameters()),
        *(value.clone() for part in optimizer.values() for value in part.values()),
    ]


@pytest.mark.parametrize("objective", ["hrpo", "sft"])
def test_an_update_that_is_not_finite_is_skipped(config, objective, capsys):
    """It leaves nothing behind: not in weights, nor in the optimizer, nor in the next gradients."""
    begun = Run(dataclasses.replace(config, algorithm=objective, sft=SftConfig(batch=4)))
    begun.train_step()
    before = state(begun)
    embedding = begun.model.embedding.weight
    hook = embedding.register_hook(lambda gradient: gradient * float("inf"))
    metrics = begun.train_step()
    hook.remove()
    assert (metrics["skipped"], begun.step) == (1, 2)
    assert all(torch.equal(one, other) for one, other in zip(before, state(begun), strict=True))
    assert all(p.grad is None for p in begun.model.parameters())
    folder = begun.folder / "skipped" / "update-2"
    assert f"warning: update 2 was skipped, not finite: lm.model.embed_tokens.weight; the batch is in {folder}" in (
        capsys.readouterr().out.replace("\n", "")
    )
    batch = json.loads((folder / "batch.json").read_text())
    kept = load_file(folder / "rollout.safetensors")
    assert (batch["step"], batch["not_finite"]) == (2, ["lm.model.embed_tokens.weight"])
    assert len(batch["completions"]) == len(kept["completion_ids"])
    assert len(batch["rewards"]) == (0 if objective == "sft" else len(batch["completions"]))
    begun.log(metrics)
    assert "grad_norm" not in json.loads((begun.folder / "metrics.jsonl").read_text())
    assert begun.train_step()["skipped"] == 0
    assert not all(torch.equal(one, other) for one, other in zip(before, state(begun), strict=True))


def test_logits_that_are_not_finite(config, monkeypatch, capsys):
    """Skipped again and again, the run stops, with a checkpoint, and five batches at most are kept."""

    def spoiled(*args, **options):
        begun = Run(*args, **options)
        with torch.no_grad():
            begun.model.bare_lm.get_output_embeddings().weight[3] = float("nan")
        return begun

    monkeypatch.setattr("hrpo.training.train.Run", spoiled)
    check = CheckConfig(prompts=0, max_skipped=7)
    config = dataclasses.replace(config, max_steps=9, check=check, eval=EvalConfig(problems=0))
    with pytest.raises(StoppedError, match=r"the last 7 updates were skipped.*check\.max_skipped"):
        train(config)
    assert "the logits, while sampling" in capsys.readouterr().out
    assert newest_checkpoint(config.run_folder).name == "checkpoint-7"
    assert len(list((config.run_folder / "skipped").iterdir())) == 5
    with pytest.raises(StoppedError, match=r"the logits of .* are not finite after 0 updates"):
        train(dataclasses.replace(config, name="evaluated", eval=EvalConfig(problems=2)))


@pytest.mark.parametrize("objective", ["hrpo", "sft"])
@pytest.mark.parametrize(("damage", "named"), [(-1.0, "lm."), (float("nan"), "lm."), (float("inf"), "second moment")])
def test_weights_that_are_not_finite_are_not_saved(config, objective, damage, named):
    """Also where the second moment is infinite: the weights would never move again."""
    begun = Run(dataclasses.replace(config, algorithm=objective, sft=SftConfig(batch=4)))
    begun.train_step()
    begun.save()
    begun.trainer.optimizer.state[begun.model.embedding.weight]["exp_avg_sq"][3, 4] = damage
    with pytest.raises(StoppedError, match=rf"update 2 left numbers that are not finite in .*{named}.*optimizer\.lr"):
        begun.train_step()
    assert newest_checkpoint(begun.folder).name == "checkpoint-1"


def test_a_bias_that_keeps_ids_from_being_sampled_is_trained_beside(config):
    """A value that was infinite from the start, as on ids that are no tokens, does not end a run."""
    begun = Run(config)
    begun.never_finite = ["lm.model.norm.weight"]
    with torch.no_grad():
        begun.model.bare_lm.model.norm.weight[0] = -float("inf")
    assert begun.spoilt() == []
    with torch.no_grad():
        begun.model.gate.Lambda[0] = float("inf")
    assert begun.spoilt() == ["gate.Lambda"]


def test_weights_so_large_that_rounding_decides_are_blamed(config):
    begun = Run(config)
    with torch.no_grad():
        for layer in begun.model.bare_lm.model.layers:
            layer.self_attn.q_proj.weight *= 3e4
    with pytest.raises(
        StoppedError, match=r"a rounding of the embeddings alone makes .*; lower optimizer\.lr"
    ) as caught:
        begun.train_step()
    assert "bug" not in str(caught.value)


def test_what_is_replayed_otherwise_is_not_learnt_from(config, monkeypatch):
    begun = Run(config)
    begun.train_step()
    before = state(begun)
    roll_out = Trainer.roll_out

    def tampered(self, *args, **options):
        rollout = roll_out(self, *args, **options)
        rollout.sample_logprobs[0, 0] -= 0.01
        return rollout

    monkeypatch.setattr(Trainer, "roll_out", tampered)
    with pytest.raises(StoppedError, match=r"update 2 was not taken: .* differ by up to 0\.01 .*bug.*skipped/update-2"):
        begun.train_step()
    assert all(torch.equal(one, other) for one, other in zip(before, state(begun), strict=True))
    assert newest_checkpoint(begun.folder).name == "checkpoint-1"
    assert json.loads((begun.folder / "skipped" / "update-2" / "batch.json").read_text())["step"] == 2


def test_learning_rate_factor():
    factors = [learning_rate_factor(step, 10, 0.2) for step in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.5)
    assert factors[9] == pytest.approx(0.0381, abs=1e-4)  # (1 + cos(7/8 pi)) / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": RolloutConfig(group_size=1)}, "rollout.group_size"),
        ({"rollout": RolloutConfig(temperature=0)}, "rollout.temperature"),
        ({"max_tokens_per_microbatch": -1}, "max_tokens_per_microbatch"),
        ({"seed": -1}, "seed"),
        ({"name": "{mode.x}"}, "name"),
        ({"model": ModelConfig(lora_targets="nothing")}, "model.lora_targets"),
        ({"task": TaskConfig(num_fewshot=-1)}, "task.num_fewshot"),
        ({"rollout": RolloutConfig(max_new_tokens=0)}, "rollout.max_new_tokens"),
        ({"max_steps": 0}, "max_steps"),
        ({"latent": LatentConfig(r_min=1.0)}, "latent.r_min"),
        ({"latent": LatentConfig("soft_thinking")}, "latent.mode: soft_thinking is training-free"),
        ({"latent": LatentConfig("mixture_of_inputs")}, "latent.mode: mixture_of_inputs is training-free"),
        ({"latent": LatentConfig("hidden"), "loss": LossConfig(policy="sampler")}, "loss.policy: sampler needs all"),
        ({"optimizer": OptimizerConfig(warmup=1.0)}, "optimizer.warmup"),
        ({"task": TaskConfig("nope")}, "task.name"),
        ({"task": TaskConfig("gsm8k", path="nowhere.jsonl")}, "task.path"),
        ({"task": TaskConfig(min_terms=6)}, "task.min_terms"),
        ({"model": ModelConfig(name="./nowhere")}, "model.name"),
    ],
)
def test_refusals_write_nothing(config, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        train(dataclasses.replace(config, **changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc 2.33")
@pytest.mark.parametrize("keep", ["keep_freed", "map_tensors", ""])
def test_freed_memory_is_kept_until_it_is_given_back(keep):
    """Tensors are in the heap, which stays, and not mapped one by one; or they are, whatever was freed before."""
    code = f"""
import ctypes, resource, torch
from hrpo.engine.cpu.malloc import keep_freed, map_tensors, release_memory
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks mapped usmblks".split()]
    _fields_ += [(name, ctypes.c_size_t) for name in "fsmblks uordblks fordblks keepcost".split()]
info = ctypes.CDLL(None).mallinfo2
info.restype = Info
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2_000_000) for _ in range(10)]
    del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
{keep and keep + "()"}
if {keep!r} == "map_tensors":
    torch.ones(5_000_000)  # freed at once
before = info().mapped
tensor = torch.ones(2_000_000)
print(info().mapped - before)
if {keep!r} == "keep_freed":
    print(min([faults() for _ in range(5)]))
    release_memory()
    print(faults())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mapped, *counts = map(int, done.stdout.split())
    assert (mapped < 8_000_000) == (keep == "keep_freed")
    if counts:  # pages of 4 kB: 80 MB are 19,531
        assert counts[0] < 4_000
        assert counts[1] > 15_000


@pytest.mark.parametrize("begun_with", [0, 2])
def test_other_test_problems_on_resuming_are_asked_before_and_after(config, begun_with):
    """The model before training is made once more, so that both are of as many problems."""
    config = dataclasses.replace(config, max_steps=1, check=CheckConfig(prompts=0), eval=EvalConfig(problems=3))
    whole = train(dataclasses.replace(config, name="whole"))
    begun = Run(dataclasses.replace(config, eval=EvalConfig(problems=begun_with)))
    begun.evaluate("before")
    begun.log(begun.train_step())
    begun.save()
    begun.lock.release()
    evaluation = train(config, resume=True)
    assert evaluation == whole
    assert json.loads((config.run_folder / "evaluation.json").read_text()) == json.loads(json.dumps(whole))
    assert "3 held-out problems" in (config.run_folder / "report.md").read_text()


def test_a_lost_evaluation_before_training_is_not_made_with_the_trained_model(config):
    config = dataclasses.replace(
        config,
        max_steps=2,
        check=CheckConfig(prompts=0),
        optimizer=OptimizerConfig(lr=1e-2),
        eval=EvalConfig(problems=4),
    )
    evaluation = train(config)
    (config.run_folder / "evaluation.json").unlink()
    assert train(config, resume=True) == evaluation


@pytest.mark.parametrize("text", ["[]", '{"before": 3}', '{"before": {"greedy": {"problems": "6"}}}'])
def test_an_evaluation_that_is_none_is_told(config, text):
    begun = Run(config)
    begun.lock.release()
    (config.run_folder / "evaluation.json").write_text(text)
    with pytest.raises(InputError, match=r"^--resume: .*evaluation\.json is damaged .*; delete it, and what it held"):
        Run(config, resume=True)
