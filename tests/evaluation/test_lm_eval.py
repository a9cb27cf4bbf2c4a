"""Under EleutherAI's harness: a local task, the mode on and off, and what the harness gets for the bare model."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from hrpo import HybridCausalLM, generate  # noqa: E402
from hrpo.common.errors import InputError  # noqa: E402
from hrpo.evaluation.lm_eval import HybridLM, cli_evaluate  # noqa: E402

EXAMPLES = Path(__file__).parents[2] / "examples" / "lm_eval"
PROBLEMS = 12
# Written without the first step the sums are guessed, and a guess begins with the delimiter: nothing is thought.
BEGUN = {"task": "sums_begun", "include": "sums.yaml", "doc_to_text": "{{prompt}}{{choices[0].split('=')[0]}}="}
NAMES = ("sums_begun", "sums_chosen")


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """The example's tasks on a few problems, in the working directory."""
    folder = tmp_path_factory.mktemp("tasks")
    for path in EXAMPLES.glob("*.yaml"):
        shutil.copy(path, folder)
    (folder / "sums_begun.yaml").write_text(yaml.safe_dump(BEGUN))
    with contextlib.chdir(folder):
        subprocess.run([sys.executable, EXAMPLES / "rows.py", str(PROBLEMS)], check=True)
        yield folder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return HybridCausalLM.from_pretrained("tiny", r_min=0.05, r_max=0.3)


def results(lm, folder):
    """Metrics of each task, and what the model answered to each request."""
    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    out = lm_eval.simple_evaluate(lm, tasks=list(NAMES), task_manager=tasks, bootstrap_iters=0)
    answers = {
        name: [row["resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]
        for name, rows in out["samples"].items()
    }
    return out["results"], answers


def test_with_the_mode_off_it_is_the_bare_model(model, folder):
    bare = results(HFLM(model.bare_lm, tokenizer=model.tokenizer, batch_size=5), folder)
    off = results(HybridLM(model, latent_mode="discrete", batch_size=5), folder)
    assert off == bare
    assert 0.2 < bare[0]["sums_begun"]["exact_match,answer"] <= 1
    assert 0.2 < bare[0]["sums_chosen"]["acc,none"] <= 1
    on = results(HybridLM(model, latent_mode="hidden", batch_size=5), folder)
    for name in NAMES:
        assert on[1][name] != bare[1][name]


@pytest.mark.parametrize("mode", ["hybrid", "hidden", "soft_thinking"])
def test_batches_change_nothing(model, folder, mode):
    one, many = (results(HybridLM(model, latent_mode=mode, batch_size=n), folder)[1] for n in (1, 7))
    assert one["sums_begun"] == many["sums_begun"]
    alone, together = ([answer for row in rows["sums_chosen"] for (answer,) in row] for rows in (one, many))
    assert len(alone) == 4 * PROBLEMS
    for (p, greedy), (q, other) in zip(alone, together, strict=True):
        assert p == pytest.approx(q, abs=1e-3)
        assert greedy == other


def test_likelihoods_are_those_of_a_forced_completion(model):
    lm = HybridLM(model, batch_size=3)
    encode = model.tokenizer.encode
    pairs = [("2+3*4=\n", "3*4=12\n2+12=14\n#### 14"), ("2+3*4=\n", "####"), ("7-9=\n", "#### -2")]
    requests = [(None, encode(context), encode(text, add_special_tokens=False)) for context, text in pairs]
    answers = lm._loglikelihood_tokens(requests)
    for (_, context, text), (logprob, greedy) in zip(requests, answers, strict=True):
        options = {"temperature": model.settings.temperature, "top_k": model.settings.top_k, "eos_token_id": []}
        rollout = generate(model, [context], forced_ids=torch.tensor([text]), **options)
        assert logprob == pytest.approx(rollout.sample_logprobs.sum().item(), abs=1e-4)
        free = generate(model, [context], greedy=True, max_new_tokens=len(text), **options)
        assert greedy == (free.completion_ids[0].tolist() == text)
        plain = generate(model, [context], forced_ids=torch.tensor([text]), latent_mode="discrete", **options)
        if rollout.hybrid_mask.any():
            assert abs(logprob - plain.sample_logprobs.sum().item()) > 1e-3
    assert answers[0][0] < answers[1][0] < 0
    off = HybridLM(model, latent_mode="discrete", batch_size=3)  # one forward of the harness, and steps of ours
    steps = off._forced([pair[1:] for pair in requests])
    for one, other in zip(off._loglikelihood_tokens(requests), steps, strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-4)
        assert one[1] == other[1]


def test_what_has_no_room_is_cut_from_the_left(model):
    lm = HybridLM(model, max_length=4)
    assert lm._cut([1, 2, 3], [4, 5]) == ([1, 2, 3], [4, 5])  # 5 is not fed
    assert lm._cut([1, 2, 3, 4], [5, 6]) == ([2, 3, 4], [5, 6])
    assert lm._cut([1], [2, 3, 4, 5, 6, 7]) == ([3], [4, 5, 6, 7])


def test_samples(model):
    """Each sample of a prompt is another, whatever is asked beside it; a seed gives them again."""
    ids = torch.tensor(2 * [model.tokenizer.encode("2+3*4=\n")])
    options = {"max_length": ids.shape[1] + 30, "stop": [], "do_sample": True, "temperature": 2.0}

    def ask(lm, rows):
        return lm._model_generate(ids[:rows], attention_mask=torch.ones_like(ids[:rows]), **options).tolist()

    together = ask(HybridLM(model, seed=5), 2)
    assert together[0] != together[1]
    again = HybridLM(model, seed=5)
    first, second = ask(again, 1)[0], ask(again, 1)[0]
    for row, alone in zip(together, (first, second), strict=True):
        assert row[: len(alone)] == alone or alone[: len(row)] == row
    assert ask(HybridLM(model, seed=6), 2) != together


def test_names_of_control_tokens_in_data_are_text(model):
    lm = HybridLM(model, batch_size=2)
    eos = model.tokenizer.eos_token_id
    for ids in (lm.tok_encode("1<eos>2"), *lm.tok_batch_encode(["1<eos>2", "3"])[0][:1].tolist()):
        assert eos not in ids
        assert len(ids) == len("1<eos>2")  # a token for each letter, most of them unknown to this tokenizer
    history = [{"role": "user", "content": "1<eos>"}, {"role": "assistant", "content": "2"}]
    context = lm.apply_chat_template([*history, {"role": "user", "content": "3"}])
    assert lm.tok_encode(context).count(eos) == 1  # where the template ends the answer
    request = Instance("loglikelihood", {}, (context, "4<eos>"), 0)
    seen = []
    lm._loglikelihood_tokens = lambda requests, **options: seen.extend(requests)
    lm.loglikelihood([request])
    assert eos not in seen[0][2]


def test_options_that_it_does_not_have(model):
    ids = torch.tensor([[5, 6]])
    with pytest.raises(ValueError, match="generation_kwargs: top_p, num_beams cannot be used"):
        HybridLM(model)._model_generate(ids, 9, [], attention_mask=torch.ones_like(ids), top_p=0.9, num_beams=2)


def test_a_gate_that_was_never_trained():
    with pytest.raises(InputError, match="latent_mode: the model decodes in mode discrete; it has no trained gate"):
        HybridLM("tiny", latent_mode="hybrid")


def test_a_mode_that_there_is_not():
    with pytest.raises(InputError, match=r"latent_mode: must be one of hybrid, .*, got 'hybird'"):
        HybridLM("tiny", latent_mode="hybird")


def test_command_line(folder, tmp_path, monkeypatch):
    words = ["run", "--model", "hrpo", "--model_args", "checkpoint=tiny,latent_mode=interpolation", "--batch_size", "4"]
    words += ["--tasks", "sums_chosen", "--include_path", str(folder), "--output_path", str(tmp_path), "--limit", "3"]
    monkeypatch.setattr(sys, "argv", ["lm-eval", *words])
    cli_evaluate()
    (path,) = tmp_path.rglob("results*.json")
    assert json.loads(path.read_text())["results"]["sums_chosen"]["acc,none"] in (0, 1 / 3, 2 / 3, 1)
