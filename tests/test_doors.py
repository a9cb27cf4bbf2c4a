"""The pages "add your own": the example of each is run as it stands there, and what it adds is then really used."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import torch
from models import CONFIGS, PROMPTS, SAMPLER, random_model

from hrpo import ALGORITHMS, ENGINES, LATENT_MODES, HybridCausalLM, SamplingParams, generate, replay
from hrpo.cli.main import main
from hrpo.common.errors import InputError
from hrpo.config.schema import LatentConfig, LossConfig, RolloutConfig, TaskConfig, TrainConfig
from hrpo.data import sample_key
from hrpo.engine.interface import DEFAULT, DecodingKernels
from hrpo.latent import LatentMode, mode_of
from hrpo.tasks import TASKS, load_task
from hrpo.training.run import Run
from hrpo.training.validate import check_config

ROOT = Path(__file__).parent.parent
G = 4
SMALL = RolloutConfig(prompts_per_step=3, group_size=G, max_new_tokens=32)
PAGES = ["add-a-latent-mode.md", "add-an-algorithm.md", "add-an-engine.md", "your-task.md"]


def same(actual, expected, atol=1e-8):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def blocks(page, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def run_example(page, number=0, **names):
    """Run a block of a page, and return all names that it knows then."""
    code = compile(blocks(page)[number], page, "exec", dont_inherit=True)
    exec(code, names)
    return names


@pytest.fixture(autouse=True)
def _doors_closed_again():
    """Take out of the doors what an example has put in."""
    before = [(door, dict(door)) for door in (LATENT_MODES, ALGORITHMS, ENGINES, TASKS)]
    yield
    for door, names in before:
        door.clear()
        door.update(names)


@pytest.fixture
def tiny():
    model = HybridCausalLM.from_pretrained("tiny", dtype="float64")
    return model, [model.tokenizer.encode(f"{question}=\n") for question in ("2+3*4", "7-9+1")]


# ---- latent modes -------------------------------------------------------------------------------------------------


def test_latent_mode_replays(tiny):
    model, prompts = tiny
    run_example("add-a-latent-mode.md")
    rollout = generate(model, prompts, latent_mode="sharpened", group_size=G, max_new_tokens=48)
    logprobs, _ = replay(model, rollout)
    assert rollout.hybrid_mask.any()
    same(logprobs, rollout.sample_logprobs)
    other = generate(model, prompts, latent_mode="hybrid", group_size=G, forced_ids=rollout.completion_ids)
    assert (other.sample_logprobs - rollout.sample_logprobs).abs().max() > 1e-6, "it feeds what hybrid feeds"


@pytest.mark.parametrize("arch", CONFIGS)
def test_latent_mode_replays_on_every_architecture(arch):
    run_example("add-a-latent-mode.md")
    model, mode = random_model(arch), mode_of("sharpened")
    rollout = generate(model, PROMPTS, latent_mode=mode, group_size=G, **SAMPLER)
    logprobs, _ = replay(model, rollout, with_reference=False)
    assert rollout.hybrid_mask.any()
    same(logprobs, rollout.sample_logprobs)


def test_latent_mode_is_checked_as_the_page_says():
    run_example("add-a-latent-mode.md")
    run_example("add-a-latent-mode.md", 2)


def test_latent_mode_trains_and_is_remembered(tmp_path):
    run_example("add-a-latent-mode.md")
    run = Run(TrainConfig(name="own", output_dir=str(tmp_path), latent=LatentConfig(mode="sharpened"), rollout=SMALL))
    metrics = run.train_step()  # a replay that gives other log-probabilities would stop it
    assert metrics["hidden_ratio"] > 0
    assert metrics["skipped"] == 0
    assert HybridCausalLM.from_pretrained(run.save()).settings.latent_mode == "sharpened"


# ---- algorithms ---------------------------------------------------------------------------------------------------


def test_algorithm_trains(tmp_path):
    names = run_example("add-an-algorithm.md")
    run = Run(TrainConfig(name="own", output_dir=str(tmp_path), algorithm="only_better", rollout=SMALL))
    before = run.model.gate.Lambda.detach().clone()
    metrics = run.train_step()
    assert isinstance(run.trainer.algorithm, names["OnlyBetter"])
    assert metrics["grad_norm"] > 0
    assert metrics["skipped"] == 0
    assert "kl" not in metrics
    assert not torch.equal(run.model.gate.Lambda, before)


def test_algorithm_learns_from_what_was_better():
    names = run_example("add-an-algorithm.md")
    algorithm = names["OnlyBetter"](beta=0.0)
    advantages = algorithm.advantages(torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]), 4)
    assert advantages.gt(0).tolist() == [True, *7 * [False]]
    logprobs, weights = torch.full((8, 2), -0.5, requires_grad=True), torch.full((8, 2), 1 / 16)
    inputs = names["LossInputs"](logprobs, None, logprobs.detach(), advantages, torch.ones(8, 2), weights)
    loss, _ = algorithm.loss(inputs)
    loss.backward()
    assert (logprobs.grad < 0).any(dim=1).tolist() == [True, *7 * [False]]
    assert not logprobs.grad[1:].any()


# ---- engines ------------------------------------------------------------------------------------------------------


def test_engine_gives_the_own_engines_tokens(tiny):
    model, prompts = tiny
    run_example("add-an-engine.md")
    keys = [sample_key(7, b, g) for b in range(len(prompts)) for g in range(G)]
    rollouts = []
    for name in ("hybrid", "in_turn"):
        engine = ENGINES[name]()
        engine.update_weights(model)
        sampling = SamplingParams(max_new_tokens=48)
        rollouts.append(engine.generate(prompts, sampling, mode_of("hybrid"), group_size=G, sample_keys=keys))
        engine.close()
    own, other = rollouts
    assert torch.equal(own.completion_ids, other.completion_ids)
    same(other.sample_logprobs, own.sample_logprobs)
    logprobs, _ = replay(model, other)
    same(logprobs, other.sample_logprobs)


def test_engine_decodes_in_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_example("add-an-engine.md")
    names = run_example("add-an-engine.md", 2, **names)
    run = names["run"]
    assert isinstance(run.trainer.engine, names["InTurn"])
    assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == run.step == 1


def test_engine_of_no_name_is_refused():
    config = TrainConfig(rollout=RolloutConfig(engine="hybird"))
    with pytest.raises(
        InputError, match=r"^rollout\.engine: must be one of hybrid, got 'hybird'; did you mean hybrid\?$"
    ):
        check_config(config)


def test_accelerator_decodes(tiny, monkeypatch):
    _, prompts = tiny
    names = run_example("add-an-engine.md", 3)
    assert names["rollout"].hybrid_mask.any()
    calls = []
    theirs = names["SortingKernels"].top_k
    monkeypatch.setattr(names["SortingKernels"], "top_k", lambda *args: calls.append(1) or theirs(*args))
    model = tiny[0]
    arguments = {"group_size": G, "max_new_tokens": 48}
    rollout = generate(model, prompts, options=names["options"], **arguments)
    own = generate(model, prompts, options=DEFAULT, **arguments)
    assert calls
    assert theirs is not DecodingKernels.top_k
    assert torch.equal(rollout.completion_ids, own.completion_ids)
    logprobs, _ = replay(model, rollout, options=names["options"])
    same(logprobs, rollout.sample_logprobs)


# ---- tasks --------------------------------------------------------------------------------------------------------


def test_task_scores_its_gold_answers(tmp_path):
    path = tmp_path / "task.py"
    path.write_text(blocks("your-task.md")[0])
    task = load_task(TaskConfig(name=str(path)), seed=0)
    examples = [*task.train[:3], *task.test[:3]]
    assert all(task.judge(f"#### {example.gold}", example).strict for example in examples)
    assert not any(task.judge(wrong, example).lenient for example in examples for wrong in ("", "#### never"))


# ---- commands -----------------------------------------------------------------------------------------------------


def commands():
    for page in PAGES:
        for line in "".join(blocks(page, "bash")).splitlines():
            if line.startswith("python "):
                yield pytest.param(page, shlex.split(line)[2:], id=line)


@pytest.mark.parametrize(("page", "words"), commands())
def test_commands_know_what_the_file_adds(page, words, tmp_path, monkeypatch, capsys):
    """The page's file is its first block, and the second, which calls `main`."""
    monkeypatch.chdir(ROOT)
    run_example(page)
    assert "main()" in blocks(page)[1]
    main([*words, "--output_dir", str(tmp_path), "--dry-run"])
    assert words[-1] in capsys.readouterr().out


def test_a_mode_that_overrides_its_latent_is_replayed():
    """Its rollouts keep the latents, so that nothing has to be said about it."""

    @dataclasses.dataclass(frozen=True)
    class Twice(LatentMode):
        def latent(self, step):
            return 2 * super().latent(step)

    model = random_model("llama")
    rollout = generate(model, PROMPTS, latent_mode=Twice("interpolation", gated=True), group_size=2, **SAMPLER)
    assert rollout.dense_latents is not None
    logprobs, _ = replay(model, rollout)
    torch.testing.assert_close(logprobs.detach(), rollout.sample_logprobs, atol=1e-8, rtol=0)


def test_a_ratio_is_of_what_was_sampled():
    config = TrainConfig(algorithm="dapo", loss=LossConfig(policy="tempered"))
    with pytest.raises(InputError, match=r"^loss\.policy: dapo compares .*; set it to model"):
        check_config(config)
    check_config(dataclasses.replace(config, loss=LossConfig()))
