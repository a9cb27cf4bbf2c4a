"""Under EleutherAI's harness: a local task, the mode on and off, and what the harness gets for the bare model."""

import json
import sys

import pytest
import torch
import yaml

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from hrpo import HybridCausalLM, generate  # noqa: E402
from hrpo.config import TaskConfig  # noqa: E402
from hrpo.errors import InputError  # noqa: E402
from hrpo.harness import HybridLM, cli_evaluate  # noqa: E402
from hrpo.tasks import load_task  # noqa: E402

PROBLEMS = 12
COMMON = {"dataset_path": "json", "test_split": "test", "doc_to_text": "{{prompt}}", "doc_to_target": "{{answer}}"}
TASKS = [
    {
        "task": "sums_written",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}{{begun}}",
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 40, "do_sample": False},
        "filter_list": [{"name": "answer", "filter": [{"function": "regex", "regex_pattern": "#### (.+)"}]}],
        "metric_list": [{"metric": "exact_match"}],
    },
    {
        "task": "sums_chosen",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    },
    {"task": "sums_worked", "output_type": "loglikelihood", "doc_to_target": "{{working}}"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of three tasks on a file of sums."""
    folder = tmp_path_factory.mktemp("tasks")
    examples = load_task(TaskConfig("arithmetic"), 0).test[:PROBLEMS]
    rows = [
        {
            "prompt": f"{example.question}=\n",
            "begun": f"{example.question[:3]}=",  # so that it works the sum out, which is thinking
            "answer": example.gold,
            "choices": [f"#### {example.gold}", f"#### {int(example.gold) + 1}", "#### 0\n"],
            "working": f"{example.question[:3]}=5\n#### {example.gold}",
        }
        for example in examples
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for task in TASKS:
        data = {"dataset_kwargs": {"data_files": {"test": str(folder / "sums.jsonl")}}}
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**COMMON, **data, **task}))
    return folder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return HybridCausalLM.from_pretrained("tiny", r_min=0.05, r_max=0.3)


def results(lm, folder):
    """Metrics of each task, and what the model answered to each request."""
    names = [task["task"] for task in TASKS]
    out = lm_eval.simple_evaluate(
        lm, tasks=names, task_manager=TaskManager(include_path=str(folder), include_defaults=False), bootstrap_iters=0
    )
    answers = {
        name: [row["resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]
        for name, rows in out["samples"].items()
    }
    return out["results"], answers


def test_with_the_mode_off_it_is_the_bare_model(model, folder):
    bare = results(HFLM(model.bare_lm, tokenizer=model.tokenizer, batch_size=5), folder)
    off = results(HybridLM(model, latent_mode="discrete", batch_size=5), folder)
    assert off == bare
    accuracy = bare[0]["sums_written"]["exact_match,answer"]
    assert 0.2 < accuracy <= 1
    hybrid, hidden = (
        results(HybridLM(model, latent_mode=mode, batch_size=5), folder)[1] for mode in ("hybrid", "hidden")
    )
    for task in ("sums_chosen", "sums_worked"):  # a space before the delimiter is a thought too
        assert hybrid[task] != bare[1][task]
    assert hidden["sums_written"] != bare[1]["sums_written"]


@pytest.mark.parametrize("mode", ["hybrid", "hidden", "soft_thinking"])
def test_batches_change_nothing(model, folder, mode):
    one, many = (results(HybridLM(model, latent_mode=mode, batch_size=n), folder)[1] for n in (1, 7))
    assert one["sums_written"] == many["sums_written"]
    for task in ("sums_chosen", "sums_worked"):
        flat = [[answer for row in rows[task] for (answer,) in row] for rows in (one, many)]
        assert len(flat[0]) == PROBLEMS * (3 if task == "sums_chosen" else 1)
        for (p, greedy), (q, other) in zip(*flat, strict=True):
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


def test_options_that_it_does_not_have(model):
    ids = torch.tensor([[5, 6]])
    with pytest.raises(ValueError, match="generation_kwargs: top_p, num_beams cannot be used"):
        HybridLM(model)._model_generate(ids, 9, [], attention_mask=torch.ones_like(ids), top_p=0.9, num_beams=2)


def test_a_gate_that_was_never_trained():
    with pytest.raises(InputError, match="latent_mode: the model decodes in mode discrete; it has no trained gate"):
        HybridLM("tiny", latent_mode="hybrid")


def test_command_line(folder, tmp_path, monkeypatch):
    words = ["run", "--model", "hrpo", "--model_args", "checkpoint=tiny,latent_mode=interpolation", "--batch_size", "4"]
    words += ["--tasks", "sums_chosen", "--include_path", str(folder), "--output_path", str(tmp_path), "--limit", "3"]
    monkeypatch.setattr(sys, "argv", ["lm-eval", *words])
    cli_evaluate()
    (path,) = tmp_path.rglob("results*.json")
    assert json.loads(path.read_text())["results"]["sums_chosen"]["acc,none"] in (0, 1 / 3, 2 / 3, 1)
