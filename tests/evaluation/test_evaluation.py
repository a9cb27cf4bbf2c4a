"""`hrpo eval`: who is asked what and how, answers that survive a kill, and what the numbers are."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from evaluated import TASK, evaluate, save
from models import byte_level

from hrpo.cli.main import main
from hrpo.common.errors import InputError
from hrpo.common.statistics import clustered_bootstrap, paired_bootstrap, wilson
from hrpo.evaluate import Answer, answer_round
from hrpo.evaluation import store
from hrpo.evaluation.entries import digest, make_entries
from hrpo.evaluation.numbers import comparisons_of, numbers_of
from hrpo.evaluation.questions import DIRECT_PROMPT
from hrpo.storage.run_dir import write_checksums
from hrpo.tasks.base import SYSTEM_PROMPT


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return {mode: save(folder / mode, mode, seed) for seed, mode in enumerate(("hybrid", "discrete"))}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows(file):
    return pq.read_table(file).to_pylist()


# ---- the files --------------------------------------------------------------------------------------------


def test_the_folder(trained, capsys):
    words = [
        "eval",
        "--checkpoint",
        trained["hybrid"],
        trained["discrete"],
        "tiny",
        "--problems",
        "6",
        "--samples",
        "3",
    ]
    main([*words, "--out", "out"])
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("avg@3 %", "pass@3 %", "p Holm", "hybrid - discrete"))
    names = {str(path.relative_to("out")) for path in Path("out").rglob("*") if path.is_file()}
    answers = {f"answers/{who}/arithmetic-{how}.parquet" for how in ("greedy", "sampled") for who in WHO}
    assert names == {"settings.json", "results.json", "results.md", *answers}
    results = json.loads(Path("out/results.json").read_text())
    assert results["settings"] == json.loads(Path("out/settings.json").read_text())
    assert list(results["tasks"]["arithmetic"]) == ["hybrid", "discrete", "tiny"]
    assert [(row["first"], row["second"], row["how"]) for row in results["comparisons"]] == [
        (first, second, how)
        for first, second in [("hybrid", "discrete"), ("hybrid", "tiny"), ("discrete", "tiny")]
        for how in ("greedy", "sampled")
    ]
    sampled = rows("out/answers/0-hybrid/arithmetic-sampled.parquet")
    assert [(row["problem"], row["sample"]) for row in sampled] == [(q, g) for q in range(6) for g in range(3)]
    numbers = results["tasks"]["arithmetic"]["hybrid"]["sampled"]
    assert numbers["accuracy"] == sum(row["strict"] for row in sampled) / 18
    assert numbers["lenient_accuracy"] == sum(row["lenient"] for row in sampled) / 18
    assert 0 < numbers["hidden_ratio"] < 1
    questions = [[row["question"] for row in rows(f"out/answers/{who}/arithmetic-greedy.parquet")] for who in WHO]
    assert questions[0] == questions[1] == questions[2]  # the same problems in the same order
    text = Path("out/results.md").read_text()
    assert "6 of 10,000 test problems" in text
    assert "corrected for all 6 comparisons" in text


WHO = ("0-hybrid", "1-discrete", "2-tiny")


def test_settings_are_fixed_before_the_first_question(trained, monkeypatch):
    monkeypatch.setattr("hrpo.evaluation.run.answer_round", lambda *_, **__: pytest.fail("a question was asked"))
    with pytest.raises(pytest.fail.Exception):
        evaluate(trained["hybrid"], problems=3)
    settings = json.loads(Path("out/settings.json").read_text())
    assert settings["seed"] == 5
    assert settings["tasks"]["arithmetic"]["problems"] == 3
    entry = settings["checkpoints"]["hybrid"]
    assert entry["step"] == 7
    assert entry["decoding"] == {
        "latent_mode": "hybrid",
        "mixed_in": "interpolation",
        "temperature": 1.0,
        "top_k": 50,
        "max_new_tokens": 20,
        "dtype": "float64",
        "quantization": "none",
    }
    assert {"hrpo", "torch", "transformers"} <= settings["versions"].keys()


def test_default_folder_is_that_of_the_settings(trained, capsys):
    folders = []
    for problems in (2, 3, 2):
        main(["eval", "--checkpoint", trained["discrete"], "--problems", str(problems), "--samples", "0"])
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("evaluation: ")]
        folders.append(line)
    assert folders[0] == folders[2] != folders[1]
    assert len(list(Path("evaluations").iterdir())) == 2


# ---- going on after a stop --------------------------------------------------------------------------------


def test_killed_and_resumed_equals_never_stopped(trained):
    """Files bit for bit; the kill hits while the second model is at its samples."""
    options = ["--problems", "24", "--samples", "2", "--batch", "4"]
    words = ["eval", "--checkpoint", trained["discrete"], trained["hybrid"], *options, "--out"]
    code = f"from hrpo.cli.main import main; main({[*words, 'stopped']!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
    parts = Path("stopped/answers/1-hybrid/arithmetic-sampled.parts")
    while not (parts / "000000.parquet").is_file():
        assert process.poll() is None, "it was over before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= len(list(parts.glob("*.parquet"))) < 3  # of 8 problems each
    assert not Path("stopped/results.json").exists()
    first = Path("stopped/answers/0-discrete/arithmetic-sampled.parquet")
    before = first.stat().st_mtime_ns
    main([*words, "stopped"])
    assert first.stat().st_mtime_ns == before
    main([*words, "whole"])
    whole, stopped = (
        {path.relative_to(name): path.read_bytes() for path in Path(name).rglob("*") if path.is_file()}
        for name in ("whole", "stopped")
    )
    assert whole == stopped


@pytest.fixture
def stopped(trained, monkeypatch):
    """An evaluation of ten problems, four in a part, that was stopped before its last part: the folder of its parts."""
    calls = []

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer_round(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr("hrpo.evaluation.run.answer_round", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(trained["hybrid"], problems=10, samples=0, batch=1)
    return Path("out/answers/0-hybrid/arithmetic-greedy.parts")


@pytest.mark.parametrize("missing", ["000000", "000001"])
def test_a_missing_part_is_answered_whichever_it_is(trained, stopped, missing, monkeypatch):
    asked = []

    def seen(model, task, problems, **options):
        asked.append(len(problems))
        return answer_round(model, task, problems, **options)

    evaluate(trained["hybrid"], problems=10, samples=0, batch=1, out="whole")
    (stopped / f"{missing}.parquet").unlink()
    monkeypatch.setattr("hrpo.evaluation.run.answer_round", seen)
    evaluate(trained["hybrid"], problems=10, samples=0, batch=1)
    assert asked == [4, 2]
    file = "answers/0-hybrid/arithmetic-greedy.parquet"
    assert [row["problem"] for row in rows(f"out/{file}")] == list(range(10))
    assert Path("out", file).read_bytes() == Path("whole", file).read_bytes()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("000000", lambda parts: (parts / "000001.parquet").replace(parts / "000000.parquet"), "to other problems"),
        ("000003", lambda parts: shutil.copy(parts / "000001.parquet", parts / "000003.parquet"), "to other problems"),
        ("copy", lambda parts: shutil.copy(parts / "000001.parquet", parts / "copy.parquet"), "to other problems"),
        ("000001", lambda parts: from_elsewhere(parts / "000001.parquet"), "of another evaluation, model, task or way"),
        ("000001", lambda parts: (parts / "000001.parquet").write_bytes(b"PAR1"), "is damaged"),
    ],
)
def test_parts_that_are_not_what_they_should_be(trained, stopped, monkeypatch, name, change, message):
    change(stopped)
    monkeypatch.setattr("hrpo.evaluation.run.answer_round", lambda *_, **__: pytest.fail("a question was asked"))
    line = rf"^--out: .*arithmetic-greedy\.parts/{name}\.parquet .*{message}.*; delete it to ask these questions again$"
    with pytest.raises(InputError, match=line):
        evaluate(trained["hybrid"], problems=10, samples=0, batch=1)


def from_elsewhere(part):
    """The same problems as another model answered them."""
    table = pq.read_table(part)
    pq.write_table(table.replace_schema_metadata({store.MARK: b"another"}), part)


def test_whole_files_that_changed_places(trained):
    evaluate(trained["hybrid"], trained["discrete"], problems=2, samples=0)
    one, other = (Path(f"out/answers/{who}/arithmetic-greedy.parquet") for who in ("0-hybrid", "1-discrete"))
    shutil.copy(other, one)
    with pytest.raises(InputError, match=r"0-hybrid/arithmetic-greedy\.parquet is of another evaluation, model"):
        evaluate(trained["hybrid"], trained["discrete"], problems=2, samples=0)


def test_finished_evaluation_loads_no_model(trained, monkeypatch):
    first = evaluate(trained["hybrid"], problems=2)
    monkeypatch.setattr("hrpo.evaluation.run.load_for_inference", lambda *_, **__: pytest.fail("a model was loaded"))
    assert json.dumps(evaluate(trained["hybrid"], problems=2)) == json.dumps(first)


def test_killed_between_whole_file_and_its_parts(tmp_path):
    answer = Answer("q", ["a", "b"], "x #### a", True, True, 3, False, 0, 0.0)
    path = tmp_path / "task-greedy.parquet"
    for number in range(2):
        store.append(path, number, 5 * number, 1, [answer] * 5)
    store._write(path, pq.read_table(store.parts(path)[0]))  # as if it were whole
    store.finish(path)
    assert store.parts(path) == []
    assert store.load(path) == [answer] * 5


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"samples": 2}, "samples"),
        ({"seed": 6}, "seed, tasks.arithmetic.digest"),
        ({"problems": 4}, "tasks.arithmetic.problems"),
        ({"max_new_tokens": 10}, "checkpoints.hybrid.decoding.max_new_tokens"),
        ({"batch": 8}, "batch"),
    ],
)
def test_changed_settings_are_refused(trained, change, field):
    evaluate(trained["hybrid"], problems=2)
    files = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    with pytest.raises(
        InputError, match=rf"^--out: out holds an evaluation with other settings \(.*{field}.* differ\)"
    ):
        evaluate(trained["hybrid"], **{"problems": 2, **change})
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == files


def test_changed_weights_are_refused(tmp_path):
    folder = save(tmp_path / "again", "discrete", 0)
    evaluate(folder, problems=1)
    save(tmp_path / "again", "discrete", 1)
    digest.cache_clear()
    with pytest.raises(InputError, match=r"checkpoints\.again\.files"):
        evaluate(folder, problems=1)


def test_unusable_model_is_found_before_anything_is_written(trained, tmp_path):
    broken = Path(save(tmp_path / "broken", "discrete", 0))
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot load"):
        evaluate(trained["hybrid"], str(broken), problems=2)
    assert not Path("out").exists()


# ---- random numbers ---------------------------------------------------------------------------------------


def test_samples_depend_on_seed_task_problem_and_sample_alone(trained):
    def completions(out):
        table = rows(f"{out}/answers/0-hybrid/arithmetic-sampled.parquet")
        return {(row["problem"], row["sample"]): row["completion"] for row in table}

    evaluate(trained["hybrid"], problems=6, samples=4, out="many")
    evaluate(trained["hybrid"], problems=4, samples=2, batch=3, out="few")
    evaluate(trained["hybrid"], problems=4, samples=2, seed=9, out="other")
    many, few, other = map(completions, ("many", "few", "other"))
    assert few == {key: many[key] for key in few}
    assert len({many[0, g] for g in range(4)} | {many[1, g] for g in range(4)}) > 2
    assert other != few


# ---- how a model is asked ---------------------------------------------------------------------------------

GSM8K = {
    "train": [{"question": f"Train {n}?", "answer": f"It is {n}.\n#### {n}"} for n in range(1, 6)],
    "test": [{"question": f"Test {n}?", "answer": f"It is {n}.\n#### {n}"} for n in range(7, 10)],
}
ARC = [
    {"question": {"stem": f"What {n}?", "choices": [{"label": x, "text": x * 2} for x in "ABCD"]}, "answerKey": "C"}
    for n in range(4)
]


@pytest.fixture
def data(tmp_path):
    for path, content in {
        "gsm8k/train.jsonl": GSM8K["train"],
        "gsm8k/test.jsonl": GSM8K["test"],
        "arc_challenge/ARC-Challenge-Train.jsonl": ARC[:3],
        "arc_challenge/ARC-Challenge-Test.jsonl": ARC[3:],
        "math500/test.jsonl": [{"problem": "$x = 3$. $x$?", "solution": r"\boxed{3}", "answer": "3"}],
        "nq_open/NQ-open.dev.jsonl": [
            {"question": "who", "answer": ["He"], "passages": [{"title": "T", "text": "It was he."}]}
        ],
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / path).write_text("".join(json.dumps(row) + "\n" for row in content))
    return tmp_path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A plain model that reads any text."""
    folder = tmp_path_factory.mktemp("base")
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_level()
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=1, max_position_embeddings=4096, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def asked(results, task):
    return {
        label.partition(" ")[2]: [(turn["role"], turn["content"]) for turn in turns]
        for label, turns in results["settings"]["tasks"][task]["asked"].items()
    }


def test_a_plain_model_is_asked_in_every_way(base, data):
    options = {"tasks": ["gsm8k"], "path": str(data), "max_new_tokens": 4, "samples": 0, "seed": 0}
    plain = asked(evaluate(base, prompts=["own", "cot", "direct"], out="zero", **options), "gsm8k")
    system = ("system", SYSTEM_PROMPT)
    assert plain == {"": [system], "(cot)": [system], "(direct)": [("system", DIRECT_PROMPT)]}
    few = asked(evaluate(base, prompts=["cot", "direct"], shots=2, out="few", **options), "gsm8k")
    assert few["(cot, 2-shot)"][0] == system
    assert few["(direct, 2-shot)"][0] == ("system", DIRECT_PROMPT)
    numbers = [question.removeprefix("Train ").removesuffix("?") for _, question in few["(cot, 2-shot)"][1::2]]
    assert len(set(numbers)) == 2
    assert few["(cot, 2-shot)"][2::2] == [("assistant", f"It is {n}.\n#### {n}") for n in numbers]
    assert few["(direct, 2-shot)"][2::2] == [("assistant", f"#### {n}") for n in numbers]


def test_several_tasks_from_one_folder(base, data):
    tasks = ["gsm8k", "math500", "arc_challenge", "nq"]
    results = evaluate(base, tasks=tasks, path=str(data), max_new_tokens=4, samples=2)
    assert {name: models.keys() for name, models in results["tasks"].items()} == {
        name: {Path(base).name} for name in tasks
    }
    folder = Path("out/answers") / f"0-{Path(base).name}"
    (question,) = {row["question"] for row in rows(folder / "nq-sampled.parquet")}
    assert question == "Context (which may or may not be relevant):\nT::::It was he.\n\nQuestion: who"


def test_worked_examples_without_written_solutions(base, data):
    options = {"path": str(data), "max_new_tokens": 4, "samples": 0, "problems": 1, "shots": 2}
    with pytest.raises(InputError, match=r"--shots: 2 worked examples, but arc_challenge has 0 .* --prompt direct"):
        evaluate(base, tasks=["arc_challenge"], **options)
    with pytest.raises(InputError, match=r"--shots: 2 worked examples, but math500 has 0 training problems here"):
        evaluate(base, tasks=["math500"], prompts=["direct"], **options)
    file = data / "rows.jsonl"
    test = json.loads((data / "math500/test.jsonl").read_text())
    others = [{"problem": f"{n}?", "solution": f"Well, \\boxed{{{n}}}"} for n in (1, 2)]
    file.write_text("".join(json.dumps(row) + "\n" for row in [test, *others]))
    found = asked(evaluate(base, tasks=["math500"], shots_path=str(file), **options), "math500")["(2-shot)"]
    assert {text for role, text in found if role == "user"} == {"1?", "2?"}  # no test problem
    with pytest.raises(InputError, match="but math500 has 2"):
        evaluate(base, tasks=["math500"], shots_path=str(file), out="more", **{**options, "shots": 3})


def test_beside_a_checkpoint_a_plain_model_is_asked_and_decodes_like_it(tmp_path):
    turns = [{"role": "system", "content": "Add."}]
    folder = save(tmp_path / "asked", "hybrid", 0, preamble=turns, top_k=7)
    settings = evaluate("tiny", folder, problems=1, samples=0)["settings"]
    assert settings["tasks"]["arithmetic"]["asked"] == {"tiny": turns, "asked": turns}
    decoding = settings["checkpoints"]["tiny"]["decoding"]
    assert (decoding["latent_mode"], decoding["top_k"], decoding["max_new_tokens"]) == ("discrete", 7, 20)
    assert settings["checkpoints"]["tiny"]["step"] == 0


def test_hybrid_checkpoint_evaluated_discretely(trained):
    results = evaluate(trained["hybrid"], latent_modes=["own", "discrete"], problems=8)
    own, discrete = results["tasks"]["arithmetic"].values()
    assert list(results["tasks"]["arithmetic"]) == ["hybrid", "hybrid (discrete)"]
    assert own["sampled"]["hidden_ratio"] > 0.1
    assert discrete["sampled"]["hidden_ratio"] == 0
    assert len(results["comparisons"]) == 2
    # what is discrete already is one row
    assert len(make_entries([trained["discrete"]], ["own", "discrete"], ["own"], 0, 0)) == 1


def test_labels_of_checkpoints_of_the_same_name(tmp_path):
    folders = [save(tmp_path / run / "checkpoint-3", "discrete", 0) for run in ("a", "b")]
    assert [entry.label for entry in make_entries(folders, ["own"], ["own"], 0, 0)] == [
        "a/checkpoint-3",
        "b/checkpoint-3",
    ]
    runs = [str(tmp_path / run) for run in ("a", "b")]
    for folder in map(Path, folders):
        (folder / "trainer.json").write_text('{"step": 3}')
        write_checksums(folder)
    assert [entry.label for entry in make_entries(runs, ["own"], ["own"], 0, 0)] == ["a", "b"]


def test_checkpoints_that_know_other_problems(trained, tmp_path):
    other = save(tmp_path / "longer", "discrete", 0, task={**TASK, "max_terms": 4})
    with pytest.raises(InputError, match=r"know arithmetic with different settings \(task.max_terms\)"):
        evaluate(trained["hybrid"], other, problems=1)
    words = save(tmp_path / "words", "discrete", 0, task={"name": "gsm8k"})
    with pytest.raises(InputError, match="--tasks: the checkpoints were trained on arithmetic and gsm8k"):
        evaluate(trained["hybrid"], words, problems=1)


def test_a_task_that_is_a_file_is_named(tmp_path):
    file = tmp_path / "echo.py"
    file.write_text(
        "kind = 'number'\nsystem = ''\ntrain = test = [{'prompt': '1+1', 'gold': '2'}]\n"
        "def metric(completions, gold, **columns):\n    return [0.25 for _ in completions]\n"
    )
    folder = save(tmp_path / "model", "discrete", 0, task={"name": str(file)})
    with pytest.raises(InputError, match=f"--tasks {file}$"):
        evaluate(folder)
    results = evaluate(folder, tasks=[str(file)], samples=2)
    assert results["tasks"]["echo"]["model"]["sampled"]["metric"] == 0.25


def test_scorers(base, data):
    options = {"tasks": ["gsm8k", "math500"], "path": str(data), "max_new_tokens": 4, "samples": 0}
    tasks = evaluate(base, scorer="math_string", **options)["settings"]["tasks"]
    assert {name: task["judged"] for name, task in tasks.items()} == {"gsm8k": "number", "math500": "math_string"}
    with pytest.raises(InputError, match="--scorer: it is for mathematical answers"):
        evaluate(base, scorer="math_string", **{**options, "tasks": ["gsm8k"]})


# ---- numbers ----------------------------------------------------------------------------------------------


def answers_of(strict, lenient=None, **fields):
    lenient = strict if lenient is None else lenient
    return [
        Answer("q", "7", "#### 7" if s else "7", bool(s), bool(right), 4 + i, i == 0, 0, 0.0, **fields)
        for i, (s, right) in enumerate(zip(strict, lenient, strict=True))
    ]


def test_numbers():
    strict = [1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]  # three problems, four samples
    lenient = [1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    numbers = numbers_of({"greedy": answers_of([1, 0, 1]), "sampled": answers_of(strict, lenient)}, 4)
    assert numbers["greedy"]["accuracy"] == 2 / 3
    assert numbers["greedy"]["accuracy_interval"] == wilson(2, 3)
    sampled = numbers["sampled"]
    assert (sampled["problems"], sampled["samples"]) == (3, 4)
    assert sampled["accuracy"] == 5 / 12
    assert sampled["accuracy_interval"] == clustered_bootstrap([[1, 0, 0, 0], [1] * 4, [0] * 4])
    assert sampled["lenient_accuracy"] == 6 / 12
    assert sampled["lenient_accuracy_interval"] == clustered_bootstrap([[1, 1, 0, 0], [1] * 4, [0] * 4])
    assert sampled["pass_at"] == pytest.approx({"1": 5 / 12, "2": (1 / 2 + 1) / 3, "4": 2 / 3})
    assert sampled["pass_at_interval"]["4"] == clustered_bootstrap([[1], [1], [0]])
    assert sampled["length"] == 9.5
    assert sampled["truncation_rate"] == 1 / 12
    assert sampled["format_rate"] == 5 / 12


def test_one_sample_is_a_proportion():
    numbers = numbers_of({"greedy": answers_of([1, 0]), "sampled": answers_of([1, 1])}, 1)["sampled"]
    assert numbers["accuracy_interval"] == wilson(2, 2)
    assert numbers["pass_at"] == {"1": 1}
    assert numbers_of({"greedy": answers_of([1, 0])}, 0).keys() == {"greedy"}


def test_comparisons():
    greedy = {"a": [1] * 10 + [0] * 2, "b": [0] * 10 + [1, 0]}
    sampled = {"a": [1, 1] * 6 + [1, 0] * 6, "b": [1, 0] * 12}
    answers = {
        "task": {name: {"greedy": answers_of(greedy[name]), "sampled": answers_of(sampled[name])} for name in "ab"}
    }
    first, second = comparisons_of(answers, 2)
    assert first["difference"] == pytest.approx(9 / 12)
    assert first["p"] == pytest.approx(2 * (1 + 11) / 2**11)  # 10 against 1
    expected = paired_bootstrap([1] * 6 + [0.5] * 6, [0.5] * 12)
    assert (second["difference"], second["interval"], second["p"]) == expected
    ordered = sorted((first, second), key=lambda row: row["p"])
    assert ordered[0]["p_holm"] == pytest.approx(2 * ordered[0]["p"])
    assert ordered[1]["p_holm"] == pytest.approx(max(ordered[1]["p"], ordered[0]["p_holm"]))
